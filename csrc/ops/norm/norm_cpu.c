#include <math.h>
#include "cpu/simd.h"
#include "norm.h"

/* The elements of a row are taken in steps of two vectors, whose results are stored together. */
enum { STEP = 2 * VF };

SGK_INLINE int64_t place(const struct norm_args *a, const int64_t *stride, int64_t row)
{
    if (a->middle == 1 && a->last == 1) return row * stride[0];
    return row / (a->middle * a->last) * stride[0] + row / a->last % a->middle * stride[1] + row % a->last * stride[2];
}

typedef struct { int64_t in, out, other; } places;

SGK_INLINE places places_of(const struct norm_args *a, int64_t row)
{
    return (places){ place(a, a->input_stride, row), place(a, a->output_stride, row), place(a, a->other_stride, row) };
}

/* The first n of VF elements; n is VF but at the end of a row. */
SGK_INLINE vf load(sgk_dtype t, const void *p, int64_t i, int64_t n) { return n == VF ? vf_load(t, p, i) : vf_load_part(t, p, i, n); }
SGK_INLINE void store(sgk_dtype t, void *p, int64_t i, int64_t n, vf v)
{
    if (n == VF) vf_store(t, p, i, v);
    else vf_store_part(t, p, i, n, v);
}

#define ADDS(form)   ((form) == NORM_RMS_ADD || (form) == NORM_LAYER_ADD)
#define LAYERS(form) ((form) == NORM_LAYER || (form) == NORM_LAYER_ADD)

/* x, in f32: with an addition the unrounded sum. It is made in every pass rather than kept: the row is in the first-level cache by then. */
SGK_INLINE vf value(sgk_dtype t, int form, const struct norm_args *a, places at, int64_t d, int64_t n)
{
    const vf x = load(t, a->input, at.in + d, n);
    return ADDS(form) ? vf_add(x, load(t, a->other, at.other + d, n)) : x;
}

/* Two chains, so that the additions overlap. */
SGK_INLINE float row_sum(sgk_dtype t, int form, const struct norm_args *a, places at)
{
    vf      sum0 = vf_zero(), sum1 = vf_zero();
    int64_t d = 0;
    for (; d + STEP <= a->dim; d += STEP) {
        sum0 = vf_add(sum0, value(t, form, a, at, d, VF));
        sum1 = vf_add(sum1, value(t, form, a, at, d + VF, VF));
    }
    for (; d < a->dim; d += VF) sum0 = vf_add(sum0, value(t, form, a, at, d, a->dim - d < VF ? a->dim - d : VF));
    return vf_sum(vf_add(sum0, sum1));
}

/* Of x - mean; the lanes behind the row are 0 and must stay so. */
SGK_INLINE float sum_of_squares(sgk_dtype t, int form, const struct norm_args *a, places at, float mean)
{
    const vf m    = vf_set(mean);
    vf       sum0 = vf_zero(), sum1 = vf_zero();
    int64_t  d = 0;
    for (; d + STEP <= a->dim; d += STEP) {
        vf x = value(t, form, a, at, d, VF), y = value(t, form, a, at, d + VF, VF);
        if (LAYERS(form)) x = vf_sub(x, m), y = vf_sub(y, m);
        sum0 = vf_fma(x, x, sum0);
        sum1 = vf_fma(y, y, sum1);
    }
    for (; d < a->dim; d += VF) {
        const int64_t n = a->dim - d < VF ? a->dim - d : VF;
        vf            x = value(t, form, a, at, d, n);
        if (LAYERS(form)) {
            float means[VF];
            vf_store_f32(means, m);
            x = vf_sub(x, load(SGK_F32, means, 0, n));
        }
        sum0 = vf_fma(x, x, sum0);
    }
    return vf_sum(vf_add(sum0, sum1));
}

/* What becomes of x. */
SGK_INLINE vf result(sgk_dtype t, int form, const struct norm_args *a, places at, int64_t d, int64_t n, vf x, vf mean, vf scale)
{
    if (LAYERS(form)) {
        const vf y = vf_mul(vf_mul(vf_sub(x, mean), scale), load(t, a->weight, d, n));
        return a->bias ? vf_add(y, load(t, a->bias, d, n)) : y;
    }
    vf g = a->weight ? vf_add(vf_set(a->shift), load(t, a->weight, d, n)) : vf_set(a->shift);
    if (form == NORM_RMS_GATED) {
        const vf gate = load(t, a->other, at.other + d, n);
        g             = vf_mul(g, vf_div(gate, vf_add(vf_set(1), vf_exp2(vf_mul(gate, vf_set(-1.44269504f))))));
    }
    return vf_mul(vf_mul(x, scale), g);
}

/* n of VF elements. Each is written behind its own last use, so in-place is safe. */
SGK_INLINE void write_part(sgk_dtype t, int form, const struct norm_args *a, places at, int64_t d, int64_t n, vf mean, vf scale)
{
    const vf x = value(t, form, a, at, d, n), u = result(t, form, a, at, d, n, x, mean, scale);
    if (ADDS(form)) store(t, a->other, at.other + d, n, x);
    store(t, a->output, at.out + d, n, u);
}

/* The last pass asks for a later row while it writes this one, so that memory is read all the time. */
SGK_INLINE void write_row(sgk_dtype t, int form, bool stream, const struct norm_args *a, places at, places next, vf mean, vf scale)
{
    const int64_t line = stream ? vf_to_line(t, a->output, at.out) : 0, head = line < a->dim ? line : a->dim;
    int64_t       d = 0;
    for (int64_t n; d < head; d += n) {
        n = head - d < VF ? head - d : VF;
        write_part(t, form, a, at, d, n, mean, scale);
    }
    for (; d + STEP <= a->dim; d += STEP) {
        vf_prefetch2(t, a->input, next.in + d);
        if (ADDS(form) || form == NORM_RMS_GATED) vf_prefetch2(t, a->other, next.other + d);
        const vf x = value(t, form, a, at, d, VF), y = value(t, form, a, at, d + VF, VF);
        const vf u = result(t, form, a, at, d, VF, x, mean, scale), v = result(t, form, a, at, d + VF, VF, y, mean, scale);
        if (ADDS(form)) vf_store2(t, a->other, at.other + d, x, y);
        if (stream) vf_stream2(t, a->output, at.out + d, u, v);
        else vf_store2(t, a->output, at.out + d, u, v);
    }
    for (; d < a->dim; d += VF) write_part(t, form, a, at, d, a->dim - d < VF ? a->dim - d : VF, mean, scale);
}

enum { AHEAD = 2048 };                                  /* elements: a row further on is asked for */

SGK_INLINE void rows(sgk_dtype t, int form, const struct norm_args *a, int64_t begin, int64_t end)
{
    const int64_t far = a->dim < AHEAD ? AHEAD / a->dim : 1;
    for (int64_t i = begin; i < end; ++i) {
        const places at = places_of(a, i), next = i + far < end ? places_of(a, i + far) : at;
        const float  mean  = LAYERS(form) ? row_sum(t, form, a, at) / (float)a->dim : 0;
        const float  scale = 1 / sqrtf(sum_of_squares(t, form, a, at, mean) / (float)a->dim + a->eps);
        if (a->stream) write_row(t, form, true, a, at, next, vf_set(mean), vf_set(scale));
        else write_row(t, form, false, a, at, next, vf_set(mean), vf_set(scale));
    }
    if (a->stream) vf_stream_end();
}

/* One tight loop for each format. */
#define FORM(name, form) \
    void SGK_CPU_FN(name)(const void *args, int64_t begin, int64_t end) \
    { \
        const struct norm_args *a = args; \
        if (a->dtype == SGK_F32) rows(SGK_F32, form, a, begin, end); \
        else if (a->dtype == SGK_F16) rows(SGK_F16, form, a, begin, end); \
        else rows(SGK_BF16, form, a, begin, end); \
    }
FORM(rmsnorm, NORM_RMS)
FORM(fused_add_rmsnorm, NORM_RMS_ADD)
FORM(fused_rmsnorm_gated, NORM_RMS_GATED)
FORM(layernorm, NORM_LAYER)
FORM(fused_add_layernorm, NORM_LAYER_ADD)
