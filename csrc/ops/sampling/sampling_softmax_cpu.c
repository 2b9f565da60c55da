#include <float.h>
#include <math.h>
#include "cpu/simd.h"
#include "sampling.h"

enum { BLOCK     = 4096,
       ALL_LANES = (1 << VF) - 1 };       /* sums are f32 within a block and f64 across blocks */

/* The n elements at p[i], at most VF; other lanes are -infinity, which counts for nothing. */
SGK_INLINE vf load_logits(sgk_dtype t, const void *p, int64_t i, int64_t n)
{
    if (n >= VF) return vf_load(t, p, i);
    float lanes[VF];
    for (int64_t j = 0; j < VF; ++j) lanes[j] = j < n ? load_f32(t, p, i + j) : -INFINITY;
    return vf_load_f32(lanes);
}

SGK_INLINE void store_part(float *p, int64_t n, vf v)
{
    if (n >= VF) vf_store_f32(p, v);
    else vf_store_part(SGK_F32, p, 0, n, v);
}

SGK_INLINE void fill(float *out, int64_t n, float value)
{
    for (int64_t i = 0; i < n; ++i) out[i] = value;
}

SGK_INLINE void first_maximum(sgk_dtype t, const void *p, int64_t in, float *out, int64_t dim, float max)
{
    int64_t first = -1;
    for (int64_t i = 0; i < dim; i += VF) {
        const vf x = load_logits(t, p, in + i, dim - i);
        if (vf_equal_mask(x, x) != ALL_LANES) {
            fill(out, dim, NAN);
            return;
        }
        const unsigned equal = vf_equal_mask(x, vf_set(max));
        if (first < 0 && equal) first = i + __builtin_ctz(equal);
    }
    fill(out, dim, 0);
    if (max > -INFINITY) out[first] = 1;
}

SGK_INLINE void softmax_row(sgk_dtype t, const void *p, int64_t in, float *out, int64_t dim, float temperature)
{
    vf      most0 = vf_set(-INFINITY), most1 = most0;        /* max gives its second operand where one is NaN: NaN is found by the sum */
    int64_t i = 0;
    for (; i + 2 * VF <= dim; i += 2 * VF) {
        most0 = vf_max(vf_load(t, p, in + i), most0);
        most1 = vf_max(vf_load(t, p, in + i + VF), most1);
    }
    for (; i < dim; i += VF) most0 = vf_max(load_logits(t, p, in + i, dim - i), most0);
    const float most = vf_most(vf_max(most0, most1));

    if (temperature == 0) {
        first_maximum(t, p, in, out, dim, most);
        return;
    }
    /* Finite, so that -infinity less the maximum is no NaN, and 0 times the factor is 0. */
    const vf max = vf_set(fmaxf(most, -FLT_MAX)), factor = vf_set(fminf(1 / temperature, FLT_MAX));
    double   sum = 0;
    for (int64_t block = 0; block < dim; block += BLOCK) {
        const int64_t end  = block + BLOCK < dim ? block + BLOCK : dim;
        vf            part = vf_zero();
        for (i = block; i < end; i += VF) {
            const vf e = vf_exp(vf_mul(vf_sub(load_logits(t, p, in + i, end - i), max), factor));
            store_part(out + i, end - i, e);
            part = vf_add(part, e);
        }
        sum += vf_sum(part);
    }
    const float scale = sum == 0 ? 0 : (float)(1 / sum);
    for (i = 0; i < dim; ++i) out[i] *= scale;
}

SGK_INLINE void softmax_rows(sgk_dtype t, const struct softmax_args *a, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; ++i)
        softmax_row(t, a->logits, i * a->logits_stride, a->out + i * a->out_stride, a->dim, a->temperature_arr ? a->temperature_arr[i] : a->temperature);
}

void SGK_CPU_FN(softmax)(const void *args, int64_t begin, int64_t end)
{
    const struct softmax_args *a = args;
    if (a->dtype == SGK_F32) softmax_rows(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) softmax_rows(SGK_F16, a, begin, end);
    else softmax_rows(SGK_BF16, a, begin, end);
}
