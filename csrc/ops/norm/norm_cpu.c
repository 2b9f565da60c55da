#include <math.h>
#include "cpu/simd.h"
#include "norm.h"

SGK_INLINE int64_t place(const struct norm_args *a, const int64_t *stride, int64_t row)
{
    if (a->middle == 1 && a->last == 1) return row * stride[0];
    return row / (a->middle * a->last) * stride[0] + row / a->last % a->middle * stride[1] + row % a->last * stride[2];
}

/* The first n of VF elements; n is VF but at the end of a row. */
SGK_INLINE vf load(sgk_dtype t, const void *p, int64_t i, int64_t n) { return n == VF ? vf_load(t, p, i) : vf_load_part(t, p, i, n); }
SGK_INLINE void store(sgk_dtype t, void *p, int64_t i, int64_t n, vf v)
{
    if (n == VF) vf_store(t, p, i, v);
    else vf_store_part(t, p, i, n, v);
}

/* x, in f32: with `add` the unrounded sum. It is made in every pass rather than kept: the row is in the first-level cache by then. */
SGK_INLINE vf value(sgk_dtype t, bool add, const struct norm_args *a, int64_t in, int64_t other, int64_t n)
{
    const vf x = load(t, a->input, in, n);
    return add ? vf_add(x, load(t, a->other, other, n)) : x;
}

SGK_INLINE float sum_of_squares(sgk_dtype t, bool add, const struct norm_args *a, int64_t in, int64_t other)
{
    vf      sum0 = vf_zero(), sum1 = vf_zero();              /* two chains, so that the multiply-adds overlap */
    int64_t d = 0;
    for (; d + 2 * VF <= a->dim; d += 2 * VF) {
        const vf x = value(t, add, a, in + d, other + d, VF), y = value(t, add, a, in + d + VF, other + d + VF, VF);
        sum0 = vf_fma(x, x, sum0);
        sum1 = vf_fma(y, y, sum1);
    }
    for (; d < a->dim; d += VF) {
        const vf x = value(t, add, a, in + d, other + d, a->dim - d < VF ? a->dim - d : VF);
        sum0       = vf_fma(x, x, sum0);
    }
    return vf_sum(vf_add(sum0, sum1));
}

/* VF elements, or the n last. Each is written behind its own last use, so in-place is safe. */
SGK_INLINE void rms_piece(sgk_dtype t, int form, const struct norm_args *a, int64_t in, int64_t out, int64_t other, int64_t d, int64_t n, vf scale, vf shift)
{
    const vf x = value(t, form == NORM_RMS_ADD, a, in + d, other + d, n);
    vf       g = a->weight ? vf_add(shift, load(t, a->weight, d, n)) : shift;
    if (form == NORM_RMS_GATED) {
        const vf gate = load(t, a->other, other + d, n);
        g             = vf_mul(g, vf_div(gate, vf_add(vf_set(1), vf_exp(vf_sub(vf_zero(), gate)))));
    }
    if (form == NORM_RMS_ADD) store(t, a->other, other + d, n, x);
    store(t, a->output, out + d, n, vf_mul(vf_mul(x, scale), g));
}

SGK_INLINE void rms_rows(sgk_dtype t, int form, const struct norm_args *a, int64_t begin, int64_t end)
{
    const int64_t whole = a->dim / VF * VF;
    const vf      shift = vf_set(a->shift);
    for (int64_t i = begin; i < end; ++i) {
        const int64_t in = place(a, a->input_stride, i), out = place(a, a->output_stride, i), other = place(a, a->other_stride, i);
        const vf      scale = vf_set(1 / sqrtf(sum_of_squares(t, form == NORM_RMS_ADD, a, in, other) / (float)a->dim + a->eps));
        for (int64_t d = 0; d < whole; d += VF) rms_piece(t, form, a, in, out, other, d, VF, scale, shift);
        if (whole < a->dim) rms_piece(t, form, a, in, out, other, whole, a->dim - whole, scale, shift);
    }
}

SGK_INLINE void layer_piece(sgk_dtype t, bool add, const struct norm_args *a, int64_t in, int64_t out, int64_t other, int64_t d, int64_t n, vf mean, vf scale)
{
    const vf x = value(t, add, a, in + d, other + d, n);
    const vf y = vf_mul(vf_mul(vf_sub(x, mean), scale), load(t, a->weight, d, n));
    if (add) store(t, a->other, other + d, n, x);
    store(t, a->output, out + d, n, a->bias ? vf_add(y, load(t, a->bias, d, n)) : y);
}

SGK_INLINE void layer_rows(sgk_dtype t, bool add, const struct norm_args *a, int64_t begin, int64_t end)
{
    const int64_t whole = a->dim / VF * VF, rest = a->dim - whole;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t in = place(a, a->input_stride, i), out = place(a, a->output_stride, i), other = place(a, a->other_stride, i);
        vf            sum = vf_zero();
        for (int64_t d = 0; d < whole; d += VF) sum = vf_add(sum, value(t, add, a, in + d, other + d, VF));
        if (rest) sum = vf_add(sum, value(t, add, a, in + whole, other + whole, rest));
        const vf mean = vf_set(vf_sum(sum) / (float)a->dim);

        vf squares = vf_zero();
        for (int64_t d = 0; d < whole; d += VF) {
            const vf x = vf_sub(value(t, add, a, in + d, other + d, VF), mean);
            squares    = vf_fma(x, x, squares);
        }
        if (rest) {                                     /* the lanes behind the row are 0 and must stay so */
            float means[VF];
            vf_store_f32(means, mean);
            const vf x = vf_sub(value(t, add, a, in + whole, other + whole, rest), vf_load_part(SGK_F32, means, 0, rest));
            squares    = vf_fma(x, x, squares);
        }

        const vf scale = vf_set(1 / sqrtf(vf_sum(squares) / (float)a->dim + a->eps));
        for (int64_t d = 0; d < whole; d += VF) layer_piece(t, add, a, in, out, other, d, VF, mean, scale);
        if (rest) layer_piece(t, add, a, in, out, other, whole, rest, mean, scale);
    }
}

/* One tight loop for each format. */
#define ROWS(rows, form) \
    const struct norm_args *a = args; \
    if (a->dtype == SGK_F32) rows(SGK_F32, form, a, begin, end); \
    else if (a->dtype == SGK_F16) rows(SGK_F16, form, a, begin, end); \
    else rows(SGK_BF16, form, a, begin, end)

void SGK_CPU_FN(rmsnorm)(const void *args, int64_t begin, int64_t end) { ROWS(rms_rows, NORM_RMS); }
void SGK_CPU_FN(fused_add_rmsnorm)(const void *args, int64_t begin, int64_t end) { ROWS(rms_rows, NORM_RMS_ADD); }
void SGK_CPU_FN(fused_rmsnorm_gated)(const void *args, int64_t begin, int64_t end) { ROWS(rms_rows, NORM_RMS_GATED); }
void SGK_CPU_FN(layernorm)(const void *args, int64_t begin, int64_t end) { ROWS(layer_rows, false); }
void SGK_CPU_FN(fused_add_layernorm)(const void *args, int64_t begin, int64_t end) { ROWS(layer_rows, true); }
