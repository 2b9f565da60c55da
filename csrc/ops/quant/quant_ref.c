/* The definition, in f32 steps: a quantiser's codes depend on every rounding. Everything else in this folder is a faster way to get these numbers. */
#include <math.h>
#include "quant_norm.h"
#include "quant_silu.h"
#include "cpu/cpu.h"

static uint8_t encode(sgk_dtype code, float v, float least, float most)
{
    if (isnan(v)) return code == SGK_E4M3 ? 0x7f : code == SGK_U8 ? 128
                                                                  : 0;
    v = fminf(fmaxf(v, least), most);
    if (code == SGK_E4M3) return f32_to_e4m3(v);
    if (code == SGK_U8) return (uint8_t)((int)rintf(v) + 128);
    return (uint8_t)(int8_t)v;
}

void quant_rows_ref(const void *args, int64_t begin, int64_t end)
{
    const struct quant_rows_args *a    = args;
    const float                   most = a->code == SGK_E4M3 ? 448.0f : 127.0f;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t x    = row * a->input_stride;
        float         amax = 0;
        for (int64_t d = 0; d < a->dim; ++d) amax = fmaxf(amax, fabsf(load_f32(a->dtype, a->input, x + d)));
        const struct quant_scaling scaling = quant_row_scaling(amax, a->code);
        a->s[row * a->s_stride]            = scaling.s;
        for (int64_t d = 0; d < a->dim; ++d)
            a->q[row * a->q_stride + d] = encode(a->code, load_f32(a->dtype, a->input, x + d) * scaling.by, -most, most);
    }
}

/* Item n is block n. The maximum of floats that are not negative is that of their bits as integers. */
void quant_tensor_amax_ref(const void *args, int64_t begin, int64_t end)
{
    const struct quant_tensor_args *a = args;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t last = (n + 1) * QUANT_BLOCK < a->count ? (n + 1) * QUANT_BLOCK : a->count;
        float         amax = 0;
        for (int64_t i = n * QUANT_BLOCK; i < last; ++i) amax = fmaxf(amax, fabsf(load_f32(a->dtype, a->input, i)));
        const int32_t bits = (int32_t)f32_bits(amax / 448.0f);
        int32_t      *s = (int32_t *)a->s, seen = __atomic_load_n(s, __ATOMIC_RELAXED);
        while (seen < bits && !__atomic_compare_exchange_n(s, &seen, bits, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    }
}

void quant_tensor_ref(const void *args, int64_t begin, int64_t end)
{
    const struct quant_tensor_args *a  = args;
    const float                     by = quant_reciprocal(*a->s);
    for (int64_t n = begin; n < end; ++n) {
        const int64_t last = (n + 1) * QUANT_BLOCK < a->count ? (n + 1) * QUANT_BLOCK : a->count;
        for (int64_t i = n * QUANT_BLOCK; i < last; ++i) a->q[i] = encode(SGK_E4M3, load_f32(a->dtype, a->input, i) * by, -448.0f, 448.0f);
    }
}

static float rounded(sgk_dtype t, float v)
{
    uint32_t memory;
    store_f32(t, &memory, 0, v);
    return load_f32(t, &memory, 0);
}

/* One group: value(from, i) is element i of it. */
static void quantise(const struct quant_groups_args *a, int64_t row, int64_t j, float (*value)(const void *from, int64_t i), const void *from)
{
    const int64_t batch = row / a->batch_rows, t = row % a->batch_rows;
    float         amax = 0;
    for (int64_t i = 0; i < a->group; ++i) amax = fmaxf(amax, fabsf(value(from, i)));
    const struct quant_scaling scaling = quant_group_scaling(amax, a);
    for (int64_t i = 0; i < a->group; ++i) {
        const float v                              = value(from, i);
        a->q[row * a->q_stride + j * a->group + i] = encode(a->code, scaling.divide ? v / scaling.by : v * scaling.by, a->least, a->most);
    }
    const int64_t place = batch * a->s_batch + t * a->s_row;
    if (!a->ue8m0) {
        ((float *)a->s)[place + j * a->s_column] = scaling.s;
        return;
    }
    uint8_t *word = (uint8_t *)a->s + (place + j / 4 * a->s_column) * 4;
    word[j % 4]   = (uint8_t)(scaling.exponent + 127);
    for (int64_t k = j + 1; j == a->groups - 1 && k % 4; ++k) word[k % 4] = 0;
}

struct group {
    const struct quant_groups_args *a;
    int64_t                         first;
};

static float group_value(const void *from, int64_t i)
{
    const struct group             *g = from;
    const struct quant_groups_args *a = g->a;
    const float                     x = load_f32(a->dtype, a->input, g->first + i);
    if (!a->fuse) return x;
    return rounded(a->dtype, rounded(a->dtype, quant_silu(x)) * load_f32(a->dtype, a->input, g->first + i + a->groups * a->group));
}

/* Item n is group n % groups of row n / groups. */
void quant_groups_ref(const void *args, int64_t begin, int64_t end)
{
    const struct quant_groups_args *a = args;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t row = n / a->groups, j = n % a->groups;
        if (a->masked_m && row % a->batch_rows >= a->masked_m[row / a->batch_rows]) continue;
        quantise(a, row, j, group_value, &(struct group){ a, row * a->input_stride + j * a->group });
    }
}

/* The norm is taken in double of the exact sum, and rounded once to the format. */
struct normed {
    const struct quant_norm_args *n;
    int64_t                       row, first;
    double                        scale;
};

static double summed(const struct quant_norm_args *n, int64_t row, int64_t d)
{
    const double x = load_as_f64(n->groups.input, row * n->groups.input_stride + d, n->groups.dtype);
    return n->residual ? x + load_as_f64(n->residual, row * n->residual_stride + d, n->groups.dtype) : x;
}

static float normed_value(const void *from, int64_t i)
{
    const struct normed *g = from;
    uint32_t             memory;
    store_f64(&memory, 0, g->n->groups.dtype, summed(g->n, g->row, g->first + i) * g->scale * load_as_f64(g->n->weight, g->first + i, g->n->groups.dtype));
    return load_f32(g->n->groups.dtype, &memory, 0);
}

/* Items are rows. */
void quant_norm_ref(const void *args, int64_t begin, int64_t end)
{
    const struct quant_norm_args *n   = args;
    const int64_t                 dim = n->groups.groups * n->groups.group;
    for (int64_t row = begin; row < end; ++row) {
        double sum = 0;
        for (int64_t d = 0; d < dim; ++d) sum += summed(n, row, d) * summed(n, row, d);
        const double scale = 1 / sqrt(sum / (double)dim + n->eps);
        for (int64_t j = 0; j < n->groups.groups; ++j)
            quantise(&n->groups, row, j, normed_value, &(struct normed){ n, row, j * n->groups.group, scale });
        for (int64_t d = 0; d < dim && n->residual; ++d) store_f64(n->residual, row * n->residual_stride + d, n->groups.dtype, summed(n, row, d));
    }
}
