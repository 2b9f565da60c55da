/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include "base/convert.h"
#include "cpu/cpu.h"
#include "grouped.h"
#include "grouped_cpu.h"

static double scale_of(const struct grouped_args *a, int64_t group, int64_t row, int64_t column, int64_t k)
{
    const int64_t matrix = a->form == GROUPED_MASKED ? group : 0;
    if (a->scaling == GROUPED_BLOCKS)
        return (double)((const float *)a->sa)[matrix * a->sa_group + row * a->sa_row + k / GROUPED_BLOCK * a->sa_step] *
               ((const float *)a->sb)[group * a->sb_group + column / GROUPED_BLOCK * a->sb_block + k / GROUPED_BLOCK * a->sb_step];
    if (a->scaling == GROUPED_MX) return (double)grouped_mx_a(a, group, row, k) * grouped_mx_b(a, group, column, k);
    return 1;
}

static double element(const double *value, const void *p, int64_t i, sgk_dtype t) { return t == SGK_E4M3 ? value[((const uint8_t *)p)[i]] : load_as_f64(p, i, t); }

void grouped_ref(const void *args, int64_t begin, int64_t end)
{
    const struct grouped_cpu_args *cpu   = args;
    const struct grouped_args     *a     = &cpu->a;
    const int64_t                  every = a->scaling == GROUPED_BLOCKS ? GROUPED_BLOCK : a->scaling == GROUPED_MX ? GROUPED_MX_BLOCK
                                                                                                                   : a->depth;
    double                         value[256];                          /* of codes; wider elements are looked at as they are */
    for (int c = 0; c < 256; ++c) value[c] = e4m3_to_f32((uint8_t)c);
    for (int64_t i = begin; i < end; ++i) {
        const struct grouped_item item = grouped_item_of(cpu, i);
        for (int64_t m = item.row; m < item.row + item.rows; ++m)
            for (int64_t n = item.column; n < item.column + item.columns; ++n) {
                const int64_t group = a->form == GROUPED_INDICES ? a->layout[m] : item.group, matrix = a->form == GROUPED_MASKED ? group : 0;
                double        sum = 0;
                if (group < 0) continue;
                for (int64_t k = 0; k < a->depth; k += every) {
                    double part = 0;
                    for (int64_t e = k; e < k + every && e < a->depth; ++e)
                        part += element(value, a->a, matrix * a->a_group + m * a->a_stride + e, a->dtype) * element(value, a->b, group * a->b_group + n * a->b_stride + e, a->dtype);
                    sum += part * scale_of(a, group, m, n, k);
                }
                store_f64(a->out, matrix * a->out_group + m * a->out_stride + n, a->out_dtype, sum);
            }
    }
}

/* An item is a row. What is no group's stays as it is. */
void grouped_quant_ref(const void *args, int64_t begin, int64_t end)
{
    const struct grouped_quant_args *a = args;
    for (int64_t g = 0; g < a->groups; ++g) {
        const int64_t start = a->offsets[g], behind = start + a->layout[3 * g];
        for (int64_t row = start > begin ? start : begin; row < behind && row < end; ++row)
            for (int64_t column = 0; column < a->columns; column += GROUPED_MX_BLOCK) {
                float v[GROUPED_MX_BLOCK], most = 0;
                for (int i = 0; i < GROUPED_MX_BLOCK; ++i) {
                    v[i] = load_f32(a->dtype, a->input, row * a->input_stride + column + i);
                    most = fmaxf(most, fabsf(v[i]));
                }
                const uint32_t bits = f32_bits(most / 448), up = (bits >> 23) + ((bits & 0x7fffff) != 0), code = up < 254 ? up : 254;
                for (int i = 0; i < GROUPED_MX_BLOCK; ++i)
                    ((uint8_t *)a->q)[row * a->q_stride + column + i] = f32_to_e4m3_sat(v[i] * ldexpf(1, 127 - (int)code));
                const int64_t blocks                                                                                                    = a->columns / GROUPED_MX_BLOCK;
                ((uint8_t *)a->scales)[a->scale_offsets[g] * blocks + grouped_mx_place(row - start, column / GROUPED_MX_BLOCK, blocks)] = (uint8_t)code;
            }
    }
}
