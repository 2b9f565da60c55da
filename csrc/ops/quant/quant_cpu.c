#include <float.h>
#include <math.h>
#include "quant_norm.h"
#include "cpu/codes.h"

SGK_INLINE vf load_some(sgk_dtype t, const void *p, int64_t i, int64_t n) { return n >= VF ? vf_load(t, p, i) : vf_load_part(t, p, i, n); }

SGK_INLINE float amax_of(sgk_dtype t, const void *p, int64_t first, int64_t n)
{
    vf      m0 = vf_zero(), m1 = vf_zero();
    int64_t i = 0;
    for (; i + 2 * VF <= n; i += 2 * VF) {
        m0 = vf_max(vf_abs(vf_load(t, p, first + i)), m0);
        m1 = vf_max(vf_abs(vf_load(t, p, first + i + VF)), m1);
    }
    for (; i < n; i += VF) m0 = vf_max(vf_abs(load_some(t, p, first + i, n - i)), m0);
    return vf_most(vf_max(m0, m1));
}

SGK_INLINE void encode_run(sgk_dtype t, sgk_dtype code, uint8_t *q, const void *p, int64_t first, int64_t n, float by, bool divide, float least, float most)
{
    const vf b = vf_set(by);
    for (int64_t i = 0; i < n; i += VF) {
        const vf v = load_some(t, p, first + i, n - i);
        encode(code, q + i, n - i, divide ? vf_div(v, b) : vf_mul(v, b), least, most);
    }
}

/* ---- rows ---- */
SGK_INLINE void rows(sgk_dtype t, sgk_dtype code, const struct quant_rows_args *a, int64_t begin, int64_t end)
{
    const float most = code == SGK_E4M3 ? 448.0f : 127.0f;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t              x       = row * a->input_stride;
        const struct quant_scaling scaling = quant_row_scaling(amax_of(t, a->input, x, a->dim), code);
        a->s[row * a->s_stride]            = scaling.s;
        encode_run(t, code, a->q + row * a->q_stride, a->input, x, a->dim, scaling.by, false, -most, most);
    }
}

void SGK_CPU_FN(quant_rows)(const void *args, int64_t begin, int64_t end)
{
    const struct quant_rows_args *a    = args;
    const bool                    e4m3 = a->code == SGK_E4M3;
    if (a->dtype == SGK_F32) e4m3 ? rows(SGK_F32, SGK_E4M3, a, begin, end) : rows(SGK_F32, SGK_U8, a, begin, end);
    else if (a->dtype == SGK_F16) e4m3 ? rows(SGK_F16, SGK_E4M3, a, begin, end) : rows(SGK_F16, SGK_U8, a, begin, end);
    else e4m3 ? rows(SGK_BF16, SGK_E4M3, a, begin, end) : rows(SGK_BF16, SGK_U8, a, begin, end);
}

/* ---- the whole tensor ---- */
SGK_INLINE int64_t block_size(const struct quant_tensor_args *a, int64_t n)
{
    return (n + 1) * QUANT_BLOCK < a->count ? QUANT_BLOCK : a->count - n * QUANT_BLOCK;
}

void SGK_CPU_FN(quant_tensor_amax)(const void *args, int64_t begin, int64_t end)
{
    const struct quant_tensor_args *a = args;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t first = n * QUANT_BLOCK, count = block_size(a, n);
        const float   amax = a->dtype == SGK_F32 ? amax_of(SGK_F32, a->input, first, count) : a->dtype == SGK_F16 ? amax_of(SGK_F16, a->input, first, count)
                                                                                                                  : amax_of(SGK_BF16, a->input, first, count);
        const int32_t bits = (int32_t)f32_bits(amax / 448.0f);
        int32_t      *s = (int32_t *)a->s, seen = __atomic_load_n(s, __ATOMIC_RELAXED);
        while (seen < bits && !__atomic_compare_exchange_n(s, &seen, bits, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    }
}

void SGK_CPU_FN(quant_tensor)(const void *args, int64_t begin, int64_t end)
{
    const struct quant_tensor_args *a  = args;
    const float                     by = quant_reciprocal(*a->s);
    for (int64_t n = begin; n < end; ++n) {
        const int64_t first = n * QUANT_BLOCK, count = block_size(a, n);
        uint8_t      *q = a->q + first;
        if (a->dtype == SGK_F32) encode_run(SGK_F32, SGK_E4M3, q, a->input, first, count, by, false, -448, 448);
        else if (a->dtype == SGK_F16) encode_run(SGK_F16, SGK_E4M3, q, a->input, first, count, by, false, -448, 448);
        else encode_run(SGK_BF16, SGK_E4M3, q, a->input, first, count, by, false, -448, 448);
    }
}

/* ---- groups ---- */

/* As quant_silu. */
SGK_INLINE vf silu(vf a)
{
    a = vf_max(vf_set(-FLT_MAX), a);
    return vf_div(a, vf_add(vf_set(1), vf_exp(vf_mul(a, vf_set(-1)))));
}

/* round(round(silu(gate)) * up) in the format t; a fused group has at most 128 elements and is a multiple of 16. */
SGK_INLINE void fuse(sgk_dtype t, void *out, const void *input, int64_t gate, int64_t up, int64_t n)
{
    for (int64_t i = 0; i < n; i += VF) {
        vf_store(t, out, i, silu(vf_load(t, input, gate + i)));
        vf_store(t, out, i, vf_mul(vf_load(t, out, i), vf_load(t, input, up + i)));
    }
}

SGK_INLINE void encode_scaled(sgk_dtype t, const struct quant_groups_args *a, const struct quant_scaling *k, uint8_t *q, const void *from, int64_t first,
                              int64_t n)
{
    if (a->code == SGK_I8) encode_run(t, SGK_I8, q, from, first, n, k->by, k->divide, a->least, a->most);
    else if (k->divide) encode_run(t, SGK_E4M3, q, from, first, n, k->by, true, a->least, a->most);
    else encode_run(t, SGK_E4M3, q, from, first, n, k->by, false, a->least, a->most);
}

/* Of group j of the row whose scales begin at `place`. */
SGK_INLINE void store_scale(const struct quant_groups_args *a, int64_t place, int64_t j, struct quant_scaling k)
{
    if (!a->ue8m0) {
        ((float *)a->s)[place + j * a->s_column] = k.s;
        return;
    }
    uint8_t *word = (uint8_t *)a->s + (place + j / 4 * a->s_column) * 4;
    word[j % 4]   = (uint8_t)(k.exponent + 127);
    if (j == a->groups - 1)
        for (int64_t i = j % 4 + 1; i < 4; ++i) word[i] = 0;
}

SGK_INLINE void group(sgk_dtype t, const struct quant_groups_args *a, int64_t row, int64_t j)
{
    const int64_t batch = row / a->batch_rows, line = row - batch * a->batch_rows;
    if (a->masked_m && line >= a->masked_m[batch]) return;
    const void *from = a->input;
    int64_t     x    = row * a->input_stride + j * a->group;
    float       values[128];
    if (a->fuse) {
        fuse(t, values, a->input, x, x + a->groups * a->group, a->group);
        from = values, x = 0;
    }
    const struct quant_scaling scaling = quant_group_scaling(amax_of(t, from, x, a->group), a);
    encode_scaled(t, a, &scaling, a->q + row * a->q_stride + j * a->group, from, x, a->group);
    store_scale(a, batch * a->s_batch + line * a->s_row, j, scaling);
}

SGK_INLINE void groups(sgk_dtype t, const struct quant_groups_args *a, int64_t begin, int64_t end)
{
    int64_t row = begin / a->groups, j = begin % a->groups;
    for (int64_t n = begin; n < end; ++n) {
        group(t, a, row, j);
        if (++j == a->groups) j = 0, ++row;
    }
}

void SGK_CPU_FN(quant_groups)(const void *args, int64_t begin, int64_t end)
{
    const struct quant_groups_args *a = args;
    if (a->dtype == SGK_F32) groups(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) groups(SGK_F16, a, begin, end);
    else groups(SGK_BF16, a, begin, end);
}

/* ---- groups of a norm ---- */
SGK_INLINE void store_some(sgk_dtype t, void *p, int64_t i, int64_t n, vf v)
{
    if (n >= VF) vf_store(t, p, i, v);
    else vf_store_part(t, p, i, n, v);
}

/* The row, or the sum: made in every pass rather than kept, as the row is in the first-level cache by then. */
SGK_INLINE vf summed(sgk_dtype t, bool add, const struct quant_norm_args *n, int64_t row, int64_t d, int64_t left)
{
    const vf x = load_some(t, n->groups.input, row * n->groups.input_stride + d, left);
    return add ? vf_add(x, load_some(t, n->residual, row * n->residual_stride + d, left)) : x;
}

/* Elements [first, first + count) of the norm, rounded to the format. */
SGK_INLINE void normalise(sgk_dtype t, bool add, const struct quant_norm_args *n, void *out, int64_t row, int64_t first, int64_t count, vf scale)
{
    for (int64_t i = 0; i < count; i += VF) {
        const vf x = summed(t, add, n, row, first + i, count - i);
        store_some(t, out, i, count - i, vf_mul(vf_mul(x, scale), load_some(t, n->weight, first + i, count - i)));
    }
}

SGK_INLINE void norm_rows(sgk_dtype t, bool add, const struct quant_norm_args *n, int64_t begin, int64_t end)
{
    enum { MOST = 512 };                                /* elements at a time: a group of up to that many is normalised once */
    float                           normed[MOST];
    const struct quant_groups_args *a   = &n->groups;
    const int64_t                   dim = a->groups * a->group, step = a->group < MOST ? a->group : MOST;
    for (int64_t row = begin; row < end; ++row) {
        vf sum = vf_zero();
        for (int64_t d = 0; d < dim; d += VF) {
            const vf x = summed(t, add, n, row, d, dim - d);
            sum        = vf_fma(x, x, sum);
        }
        const vf scale = vf_set(1 / sqrtf(vf_sum(sum) / (float)dim + n->eps));
        for (int64_t j = 0; j < a->groups; ++j) {
            const int64_t first = j * a->group;
            float         amax  = 0;
            for (int64_t i = 0; i < a->group; i += step) {
                const int64_t count = a->group - i < step ? a->group - i : step;
                normalise(t, add, n, normed, row, first + i, count, scale);
                amax = fmaxf(amax, amax_of(t, normed, 0, count));
            }
            const struct quant_scaling scaling = quant_group_scaling(amax, a);
            for (int64_t i = 0; i < a->group; i += step) {
                const int64_t count = a->group - i < step ? a->group - i : step;
                if (a->group > step) normalise(t, add, n, normed, row, first + i, count, scale);
                encode_scaled(t, a, &scaling, a->q + row * a->q_stride + first + i, normed, 0, count);
            }
            store_scale(a, row * a->s_row, j, scaling);
        }
        for (int64_t d = 0; add && d < dim; d += VF) store_some(t, n->residual, row * n->residual_stride + d, dim - d, summed(t, true, n, row, d, dim - d));
    }
}

void SGK_CPU_FN(quant_norm)(const void *args, int64_t begin, int64_t end)
{
    const struct quant_norm_args *n = args;
    const sgk_dtype               t = n->groups.dtype;
    if (n->residual) t == SGK_F32 ? norm_rows(SGK_F32, true, n, begin, end) : t == SGK_F16 ? norm_rows(SGK_F16, true, n, begin, end)
                                                                                           : norm_rows(SGK_BF16, true, n, begin, end);
    else t == SGK_F32 ? norm_rows(SGK_F32, false, n, begin, end) : t == SGK_F16 ? norm_rows(SGK_F16, false, n, begin, end)
                                                                                : norm_rows(SGK_BF16, false, n, begin, end);
}
