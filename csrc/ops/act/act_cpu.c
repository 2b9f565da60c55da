#include <float.h>
#include "act.h"
#include "cpu/simd.h"

#define LOG2_E 1.44269504f                              /* e^x is 2^(x LOG2_E) */

enum act { SILU,
           GELU,
           GELU_TANH,
           GELU_QUICK };

/* n vectors of a / (1 + 2^x). The clamp keeps -infinity from becoming infinity over infinity; max gives its second operand, so NaN passes. */
SGK_INLINE void over_one_plus_exp2(sgk_dtype t, int n, vf *a, vf *x)
{
    vf_one_plus_exp2(t, n, x);
    VF_EACH(i, n)
    a[i] = vf_div(vf_max(vf_set(-FLT_MAX), a[i]), x[i]);
}

/* See act.h; half of erfc, times |a|. The smaller of 30 and NaN is NaN, its second operand. */
SGK_INLINE void gelu(bool half, int n, vf *a)
{
    vf x[8], t[8], p[8];
    VF_EACH(i, n)
    x[i] = vf_min(vf_set(30), vf_abs(a[i]));
    VF_EACH(i, n)
    t[i] = vf_div(vf_set(1), vf_fma(vf_set(half ? ERFC_HALF_P : ERFC_P), x[i], vf_set(1)));
    VF_EACH(i, n)
    p[i] = vf_set(0.5f * (half ? ERFC_HALF_4 : ERFC_8));
    if (!half) {
        VF_EACH(i, n)
        p[i] = vf_fma(p[i], t[i], vf_set(0.5f * ERFC_7));
        VF_EACH(i, n)
        p[i] = vf_fma(p[i], t[i], vf_set(0.5f * ERFC_6));
        VF_EACH(i, n)
        p[i] = vf_fma(p[i], t[i], vf_set(0.5f * ERFC_5));
        VF_EACH(i, n)
        p[i] = vf_fma(p[i], t[i], vf_set(0.5f * ERFC_4));
    }
    VF_EACH(i, n)
    p[i] = vf_fma(p[i], t[i], vf_set(0.5f * (half ? ERFC_HALF_3 : ERFC_3)));
    VF_EACH(i, n)
    p[i] = vf_fma(p[i], t[i], vf_set(0.5f * (half ? ERFC_HALF_2 : ERFC_2)));
    VF_EACH(i, n)
    p[i] = vf_fma(p[i], t[i], vf_set(0.5f * (half ? ERFC_HALF_1 : ERFC_1)));
    VF_EACH(i, n)
    p[i] = vf_fma(p[i], t[i], vf_set(0.5f * (half ? ERFC_HALF_0 : ERFC_0)));
    VF_EACH(i, n)
    p[i] = vf_mul(p[i], t[i]);
    VF_EACH(i, n)
    t[i] = vf_mul(x[i], vf_mul(x[i], vf_set(-0.5f * LOG2_E)));
    VF_EACH(i, n)
    t[i] = vf_exp2_for(half ? SGK_BF16 : SGK_F32, t[i]);
    VF_EACH(i, n)
    a[i] = vf_fma(-x[i], vf_mul(p[i], t[i]), vf_max(vf_zero(), a[i]));
}

/* n vectors in place. */
SGK_INLINE void act(enum act which, sgk_dtype t, int n, vf *a)
{
    vf x[8];
    switch (which) {
    case SILU:
        VF_EACH(i, n)
        x[i] = vf_mul(a[i], vf_set(-LOG2_E));
        break;
    case GELU: gelu(t != SGK_F32, n, a); return;
    case GELU_TANH:
        VF_EACH(i, n)
        x[i] = vf_mul(a[i], vf_fma(vf_mul(a[i], a[i]), vf_set(GELU_TANH_3 * LOG2_E), vf_set(GELU_TANH_1 * LOG2_E)));
        break;
    case GELU_QUICK:
        VF_EACH(i, n)
        x[i] = vf_mul(a[i], vf_set(-1.702f * LOG2_E));
        break;
    }
    over_one_plus_exp2(t, n, a, x);
}

/* n of VF elements. */
SGK_INLINE void act_part(enum act which, sgk_dtype t, const struct act_args *a, int64_t in, int64_t out, int64_t n)
{
    const bool gated = which != GELU_QUICK;
    vf         x     = n == VF ? vf_load(t, a->input, in) : vf_load_part(t, a->input, in, n);
    act(which, t, 1, &x);
    if (gated) x = vf_mul(x, n == VF ? vf_load(t, a->input, in + a->dim) : vf_load_part(t, a->input, in + a->dim, n));
    if (n == VF) vf_store(t, a->out, out, x);
    else vf_store_part(t, a->out, out, n, x);
}

/* n vectors, two by two; as much as they read is asked for from `soon` on. */
SGK_INLINE void act_vectors(enum act which, sgk_dtype t, bool stream, int n, const struct act_args *a, int64_t in, int64_t out, int64_t soon)
{
    const bool gated = which != GELU_QUICK;
    vf         x[8], u, v;
#pragma GCC unroll 4
    for (int i = 0; i < n; i += 2) {
        vf_prefetch2(t, a->input, soon + (1 + gated) * i * VF);
        if (gated) vf_prefetch2(t, a->input, soon + 2 * (i + 1) * VF);
        vf_load_pairs(t, a->input, in + i * VF, &x[i], &x[i + 1]);
    }
    act(which, t, n, x);
#pragma GCC unroll 4
    for (int i = 0; i < n; i += 2) {
        if (gated) {
            vf_load_pairs(t, a->input, in + a->dim + i * VF, &u, &v);
            x[i] = vf_mul(x[i], u), x[i + 1] = vf_mul(x[i + 1], v);
        }
        vf_store_pairs(t, stream, a->out, out + i * VF, x[i], x[i + 1]);
    }
}

/* Where what is read is asked for, in the order of memory, while element d of the row that begins at `row` is written. */
SGK_INLINE int64_t soon_of(enum act which, sgk_dtype t, const struct act_args *a, int64_t row, int64_t d)
{
    enum { AHEAD = 20480 };                             /* bytes, of the row and the next ones */
    const int64_t parts = which == GELU_QUICK ? 1 : 2, all = parts * a->dim, most = AHEAD / (t == SGK_F32 ? 4 : 2);
    const int64_t at = parts * d + (most < all || a->input_stride == all ? most : all);
    return at < all ? row + at : row + a->input_stride + at - all;
}

/* Elements [first, last) of a row. */
SGK_INLINE void act_row(enum act which, sgk_dtype t, bool stream, const struct act_args *a, int64_t in, int64_t out, int64_t first, int64_t last)
{
    enum { MANY = VF == 16 ? 8 : 4 };                   /* vectors that fit into registers */
    const int64_t line = stream ? first + vf_to_line(t, a->out, out + first) : first, head = line < last ? line : last;
    int64_t       d = first;
    for (int64_t n; d < head; d += n) {
        n = head - d < VF ? head - d : VF;
        act_part(which, t, a, in + d, out + d, n);
    }
    for (; d + MANY * VF <= last; d += MANY * VF) act_vectors(which, t, stream, MANY, a, in + d, out + d, soon_of(which, t, a, in, d));
    for (; d + 2 * VF <= last; d += 2 * VF) act_vectors(which, t, stream, 2, a, in + d, out + d, soon_of(which, t, a, in, d));
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
