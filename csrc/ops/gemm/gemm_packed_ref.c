/* The definition. Everything else about packed weights is a faster way to get these numbers. */
#include "base/convert.h"
#include "cpu/cpu.h"
#include "gemm_packed_item.h"
#include "ops/quant/quant.h"

static const float e2m1[16] = { 0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6 };

/* Element k of row n as it is stored; four bits of int4 as their number. */
static double stored(const struct packed_args *a, const char *weight, int64_t n, int64_t k)
{
    static const sgk_dtype formats[] = { [WEIGHT_F32] = SGK_F32, [WEIGHT_F16] = SGK_F16, [WEIGHT_BF16] = SGK_BF16, [WEIGHT_E4M3] = SGK_E4M3, [WEIGHT_I8] = SGK_I8, [WEIGHT_SMALL] = SGK_F32 };
    const int64_t          block = n / PACKED_BLOCK, c = n % PACKED_BLOCK;
    if (a->format == WEIGHT_SMALL) return ((const float *)(const void *)weight)[k * a->columns + n];
    if (packed_nibbles(a->format)) {
        const int64_t at   = a->plain ? n * a->weight_stride + k / 2
                                      : packed_block_at(a->format, block, a->depth, a->group_k) +
                                            packed_element_at(a->format, k, c, packed_width(a->columns, block), a->depth, a->group_k);
        const int     code = ((const uint8_t *)weight)[at] >> (packed_half(a->format, k, c) ? 4 : 0) & 15;
        return a->format == WEIGHT_MXFP4 ? (double)e2m1[code] : code;
    }
    const sgk_dtype t = formats[a->format];
    if (a->plain) return load_as_f64(weight, n * a->weight_stride + k, t);
    return load_as_f64(weight + packed_block_at(a->format, block, a->depth, 0) + packed_element_at(a->format, k, c, packed_width(a->columns, block), a->depth, 0), 0, t);
}

/* What element k of row n is multiplied by on its way. */
static double scale_of(const struct packed_args *a, int64_t n, int64_t k)
{
    const int64_t block = n / PACKED_BLOCK, c = n % PACKED_BLOCK, g = a->group_k ? k / a->group_k : 0, groups = packed_ceil(a->depth, a->group_k ? a->group_k : 1);
    if (a->format == WEIGHT_MXFP4) {
        const int code = ((const uint8_t *)a->scale)[block * PACKED_BLOCK * groups + g * packed_width(a->columns, block) + c];
        return code == 255 ? (double)NAN : ldexp(1, code - 127);
    }
    if (a->format == WEIGHT_INT4) return ((const float *)a->scale)[(block * groups + g) * PACKED_BLOCK + c];
    if (a->format == WEIGHT_E4M3 && a->scale) return ((const float *)a->scale)[n / a->group_n * groups + g];
    return 1;
}

static double zero_of(const struct packed_args *a, int64_t n, int64_t k)
{
    if (a->format != WEIGHT_INT4) return 0;
    return a->zeros[(n / PACKED_BLOCK * (a->depth / a->group_k) + k / a->group_k) * PACKED_BLOCK + n % PACKED_BLOCK];
}

static struct quant_scaling scaling_of(const struct packed_args *a, int64_t row)
{
    float amax = 0;
    for (int64_t k = 0; k < a->depth; ++k) amax = fmaxf(amax, fabsf(load_f32(a->dtype, a->input, row + k)));
    return quant_row_scaling(amax, SGK_U8);
}

static double quantised(float v, float by)
{
    v *= by;
    return isnan(v) ? 0 : (double)rintf(fminf(fmaxf(v, -127), 127));
}

void packed_ref(const void *args, int64_t begin, int64_t end)
{
    const struct packed_cpu_args *cpu = args;
    const struct packed_args     *a   = &cpu->a;
    for (int64_t i = packed_share(cpu->items, begin, cpu->parts); i < packed_share(cpu->items, end, cpu->parts); ++i) {
        const packed_item item   = packed_item_at(cpu, i);
        const char *const weight = (const char *)a->weight + item.b * a->weight_batch;
        for (int64_t m = item.m; m < item.m + item.rows; ++m) {
            const int64_t              x       = item.b * a->input_batch + m * a->input_stride;
            const struct quant_scaling scaling = cpu->quantise ? scaling_of(a, x) : (struct quant_scaling){ .s = a->input_scale ? a->input_scale[m] : 1 };
            for (int64_t n = item.n; n < item.n + item.columns; ++n) {
                double sum = 0;
                for (int64_t k = 0; k < a->depth; ++k) {
                    const double v = cpu->quantise ? quantised(load_f32(a->dtype, a->input, x + k), scaling.by) : load_as_f64(a->input, x + k, a->dtype) - (a->dtype == SGK_U8 ? 128 : 0);
                    sum += v * (stored(a, weight, n, k) - zero_of(a, n, k)) * scale_of(a, n, k);
                }
                sum *= (double)scaling.s;
                if (a->format == WEIGHT_I8) sum *= (double)((const float *)a->scale)[n];
                if (a->bias) sum += load_as_f64(a->bias, n, a->bias_dtype);
                store_f64(a->out, item.b * a->out_batch + m * a->out_stride + n, a->out_dtype, sum);
            }
        }
    }
}

/* Nothing to prepare for the reference. */
void packed_strips_ref(const void *args, int64_t begin, int64_t end) { (void)args, (void)begin, (void)end; }

/* Item i is a block of columns of one matrix. */
void pack_ref(const void *args, int64_t begin, int64_t end)
{
    const struct pack_args *a      = args;
    const int64_t           blocks = packed_ceil(a->columns, PACKED_BLOCK);
    const int64_t           size   = a->format == WEIGHT_F32 ? 4 : a->format == WEIGHT_F16 || a->format == WEIGHT_BF16 ? 2
                                                                                                                       : 1;
    const int64_t           matrix = a->columns * (a->depth * size + (a->format == WEIGHT_I8 ? 4 : 0));
    for (int64_t i = begin; i < end; ++i) {
        const int64_t     e = i / blocks, block = i % blocks, r = packed_width(a->columns, block);
        char *const       to   = (char *)a->packed + e * matrix + packed_block_at(a->format, block, a->depth, 0);
        const char *const from = (const char *)a->weight + (e * a->columns + block * PACKED_BLOCK) * a->depth * size;
        for (int64_t c = 0; c < r; ++c) {
            int32_t sum = 0;
            for (int64_t k = 0; k < a->depth; ++k) {
                const char *const p = from + (c * a->depth + k) * size;
                memcpy(to + packed_element_at(a->format, k, c, r, a->depth, 0), p, (size_t)size);
                if (a->format == WEIGHT_I8) sum += *(const int8_t *)p;
            }
            if (a->format == WEIGHT_I8) memcpy(to + r * a->depth + c * 4, &sum, 4);
        }
    }
}

/* Item i is row i of [K, N] in f32. */
void pack_small_ref(const void *args, int64_t begin, int64_t end)
{
    const struct pack_args *a = args;
    for (int64_t k = begin; k < end; ++k)
        for (int64_t n = 0; n < a->columns; ++n) ((float *)a->packed)[k * a->columns + n] = (float)load_as_f64(a->weight, n * a->depth + k, a->dtype);
}

/* Item i is a block of columns of one matrix. */
void pack_int4_ref(const void *args, int64_t begin, int64_t end)
{
    const struct pack_int4_args *a      = args;
    const int64_t                blocks = a->columns / PACKED_BLOCK, groups = a->depth / a->group, part = int4_part(a->group);
    for (int64_t i = begin; i < end; ++i) {
        const int64_t  e = i / blocks, n = i % blocks * PACKED_BLOCK;
        uint8_t *const to = a->packed + i * (a->depth / part) * int4_part_bytes(a->group);
        for (int64_t c = 0; c < PACKED_BLOCK; ++c) {
            for (int64_t g = 0; g < groups; ++g) {
                a->packed_zeros[(i * groups + g) * PACKED_BLOCK + c]  = (int8_t)int4_zero(a, e, g, n + c);
                a->packed_scales[(i * groups + g) * PACKED_BLOCK + c] = load_f32(a->scales_dtype, a->scales, (e * groups + g) * a->columns + n + c);
            }
            int32_t sum = 0;
            for (int64_t k = 0; k < a->depth; ++k) {
                const int      code = int4_weight(a, e, k, n + c);
                uint8_t *const at   = to + packed_element_at(WEIGHT_INT4, k, c, PACKED_BLOCK, a->depth, a->group);
                *at                 = (uint8_t)(c < 16 ? code : *at | code << 4);               /* the low half first */
                sum += code - int4_zero(a, e, k / a->group, n + c);
                if (k % part == part - 1) {
                    memcpy(to + k / part * int4_part_bytes(a->group) + 16 * part + c * 4, &sum, 4);
                    sum = 0;
                }
            }
        }
    }
}

void linear_sigmoid_ref(const void *args, int64_t begin, int64_t end)
{
    const struct linear_sigmoid_args *a = args;
    for (int64_t m = begin; m < end; ++m) {
        double sum = a->bias ? (double)*a->bias : 0;
        for (int64_t k = 0; k < a->depth; ++k) sum += load_as_f64(a->input, m * a->input_stride + k, a->dtype) * (double)a->weight[k * a->weight_stride];
        const double by = 1 / (1 + exp(-sum));
        for (int64_t j = 0; j < a->columns; ++j)
            store_f64(a->out, m * a->out_stride + j, a->dtype, by * load_as_f64(a->by, m * a->by_stride + j, a->dtype));
    }
}
