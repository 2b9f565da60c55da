#include <float.h>
#include "act.h"
#include "cpu/simd.h"

#define LOG2_E 1.44269504f                              /* e^x is 2^(x LOG2_E) */

enum act { SILU,
           GELU,
           GELU_TANH,
           GELU_QUICK };

/* a / (1 + 2^x). The clamp keeps -infinity from becoming infinity over infinity; max gives its second operand, so NaN passes. */
SGK_INLINE vf over_one_plus_exp2(sgk_dtype t, vf a, vf x)
{
    return vf_div(vf_max(vf_set(-FLT_MAX), a), vf_one_plus_exp2(t, x));
}

/* See act.h. The smaller of 30 and NaN is NaN, its second operand. */
SGK_INLINE vf gelu(bool half, vf a)
{
    const vf x = vf_min(vf_set(30), vf_max(a, vf_sub(vf_zero(), a)));
    const vf t = vf_div(vf_set(1), vf_fma(vf_set(half ? ERFC_HALF_P : ERFC_P), x, vf_set(1)));
    vf       p = vf_set(half ? ERFC_HALF_4 : ERFC_8);
    if (!half) {
        p = vf_fma(p, t, vf_set(ERFC_7));
        p = vf_fma(p, t, vf_set(ERFC_6));
        p = vf_fma(p, t, vf_set(ERFC_5));
        p = vf_fma(p, t, vf_set(ERFC_4));
    }
    p               = vf_fma(p, t, vf_set(half ? ERFC_HALF_3 : ERFC_3));
    p               = vf_fma(p, t, vf_set(half ? ERFC_HALF_2 : ERFC_2));
    p               = vf_fma(p, t, vf_set(half ? ERFC_HALF_1 : ERFC_1));
    p               = vf_fma(p, t, vf_set(half ? ERFC_HALF_0 : ERFC_0));
    const vf half_x = vf_mul(vf_set(0.5f), x), tail = vf_mul(vf_mul(p, t), vf_exp2(vf_mul(half_x, vf_mul(x, vf_set(-LOG2_E)))));
    return vf_sub(vf_max(vf_zero(), a), vf_mul(half_x, tail));
}

SGK_INLINE vf act(enum act which, sgk_dtype t, vf a)
{
    switch (which) {
    case SILU:       return over_one_plus_exp2(t, a, vf_mul(a, vf_set(-LOG2_E)));
    case GELU:       return gelu(t != SGK_F32, a);
    case GELU_TANH:  return over_one_plus_exp2(t, a, vf_mul(a, vf_fma(vf_mul(a, a), vf_set(GELU_TANH_3 * LOG2_E), vf_set(GELU_TANH_1 * LOG2_E))));
    case GELU_QUICK: return over_one_plus_exp2(t, a, vf_mul(a, vf_set(-1.702f * LOG2_E)));
    }
    return a;
}

/* n of VF elements. */
SGK_INLINE void act_part(enum act which, sgk_dtype t, const struct act_args *a, int64_t in, int64_t out, int64_t n)
{
    const bool gated = which != GELU_QUICK;
    if (n == VF) {
        const vf x = act(which, t, vf_load(t, a->input, in));
        vf_store(t, a->out, out, gated ? vf_mul(x, vf_load(t, a->input, in + a->dim)) : x);
    } else {
        const vf x = act(which, t, vf_load_part(t, a->input, in, n));
        vf_store_part(t, a->out, out, n, gated ? vf_mul(x, vf_load_part(t, a->input, in + a->dim, n)) : x);
    }
}

/* Elements [first, last) of a row, two vectors at a time. */
SGK_INLINE void act_row(enum act which, sgk_dtype t, bool stream, const struct act_args *a, int64_t in, int64_t out, int64_t first, int64_t last)
{
    enum { STEP  = 2 * VF,
           AHEAD = 2048,                                /* elements that are asked for in time */
           NEAR  = 32768 };                             /* the next row is better, where it is not further */
    const bool    gated = which != GELU_QUICK;
    const int64_t ahead = a->input_stride > 0 && a->input_stride <= NEAR ? a->input_stride : AHEAD;
    const int64_t gate = in + a->dim, line = stream ? first + vf_to_line(t, a->out, out + first) : first, head = line < last ? line : last;
    int64_t       d = first;
    for (int64_t n; d < head; d += n) {
        n = head - d < VF ? head - d : VF;
        act_part(which, t, a, in + d, out + d, n);
    }
    for (; d + STEP <= last; d += STEP) {
        vf_prefetch2(t, a->input, in + d + ahead);
        if (gated) vf_prefetch2(t, a->input, gate + d + ahead);
        vf x, y, u, v;
        vf_load_pairs(t, a->input, in + d, &x, &y);
        x = act(which, t, x), y = act(which, t, y);
        if (gated) {
            vf_load_pairs(t, a->input, gate + d, &u, &v);
            x = vf_mul(x, u), y = vf_mul(y, v);
        }
        vf_store_pairs(t, stream, a->out, out + d, x, y);
    }
    for (; d < last; d += VF) act_part(which, t, a, in + d, out + d, last - d < VF ? last - d : VF);
}

SGK_INLINE void act_blocks(enum act which, sgk_dtype t, const struct act_args *a, int64_t begin, int64_t end)
{
    const int64_t blocks = (a->dim + ACT_BLOCK - 1) / ACT_BLOCK;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t row = n / blocks, in = row * a->input_stride, out = row * a->out_stride;
        const int64_t first = n % blocks * ACT_BLOCK, last = first + ACT_BLOCK < a->dim ? first + ACT_BLOCK : a->dim;
        if (a->expert_ids && load_index(a->expert_ids, row / a->expert_step, a->wide_ids ? SGK_I64 : SGK_I32) == -1) continue;
        if (a->stream) act_row(which, t, true, a, in, out, first, last);
        else act_row(which, t, false, a, in, out, first, last);
    }
    if (a->stream) vf_stream_end();
}

SGK_INLINE void act_rows(enum act which, const struct act_args *a, int64_t begin, int64_t end)
{
    if (a->dtype == SGK_F32) act_blocks(which, SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) act_blocks(which, SGK_F16, a, begin, end);
    else act_blocks(which, SGK_BF16, a, begin, end);
}

void SGK_CPU_FN(silu_and_mul)(const void *args, int64_t begin, int64_t end) { act_rows(SILU, args, begin, end); }
void SGK_CPU_FN(gelu_and_mul)(const void *args, int64_t begin, int64_t end) { act_rows(GELU, args, begin, end); }
void SGK_CPU_FN(gelu_tanh_and_mul)(const void *args, int64_t begin, int64_t end) { act_rows(GELU_TANH, args, begin, end); }
void SGK_CPU_FN(gelu_quick)(const void *args, int64_t begin, int64_t end) { act_rows(GELU_QUICK, args, begin, end); }
