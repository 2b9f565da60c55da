/* A head is rotated into its place, from where the buffer of keys takes it: what is stored twice is computed once. */
#include "cpu/simd.h"
#include "rope_apply.h"

SGK_INLINE void rotate_halves(sgk_dtype t, const void *from, int64_t x, void *to, int64_t out, int64_t half, const float *row)
{
    int64_t i = 0;
    for (; i + VF <= half; i += VF) {
        const vf u = vf_load(t, from, x + i), v = vf_load(t, from, x + half + i), c = vf_load_f32(row + i), s = vf_load_f32(row + half + i);
        vf_store(t, to, out + i, vf_sub(vf_mul(u, c), vf_mul(v, s)));
        vf_store(t, to, out + half + i, vf_add(vf_mul(v, c), vf_mul(u, s)));
    }
    for (; i < half; ++i) {
        const float u = load_f32(t, from, x + i), v = load_f32(t, from, x + half + i);
        store_f32(t, to, out + i, u * row[i] - v * row[half + i]);
        store_f32(t, to, out + half + i, v * row[i] + u * row[half + i]);
    }
}

/* c has each cosine twice, s each sine as -s, +s, for pairs [first, first + count). */
SGK_INLINE void rotate_neighbours(sgk_dtype t, const void *from, int64_t x, void *to, int64_t out, int64_t count, const float *c, const float *s)
{
    int64_t i = 0;
    for (; i + VF <= 2 * count; i += VF) {
        const vf u = vf_load(t, from, x + i);
        vf_store(t, to, out + i, vf_add(vf_mul(u, vf_load_f32(c + i)), vf_mul(vf_swap_pairs(u), vf_load_f32(s + i))));
    }
    for (; i < 2 * count; i += 2) {
        const float u = load_f32(t, from, x + i), v = load_f32(t, from, x + i + 1);
        store_f32(t, to, out + i, u * c[i] + v * s[i]);
        store_f32(t, to, out + i + 1, v * c[i + 1] + u * s[i + 1]);
    }
}

enum { PAIRS = 256 };

SGK_INLINE void rotate_heads(sgk_dtype t, const struct apply_rope_args *a, const struct apply_rope_heads *from, const struct apply_rope_heads *to,
                             int32_t heads, int64_t token, const float *row)
{
    const int64_t half = a->rot_dim / 2, size = t == SGK_F32 ? 4 : 2;
    float         c[2 * PAIRS], s[2 * PAIRS];
    for (int64_t first = 0; a->interleave && first < half; first += PAIRS) {
        const int64_t count = half - first < PAIRS ? half - first : PAIRS;
        for (int64_t i = 0; i < count; ++i)
            c[2 * i] = c[2 * i + 1] = row[first + i], s[2 * i] = -row[half + first + i], s[2 * i + 1] = row[half + first + i];
        for (int64_t n = 0; n < heads; ++n)
            rotate_neighbours(t, from->data, token * from->row_stride + n * from->head_stride + 2 * first,
                              to->data, token * to->row_stride + n * to->head_stride + 2 * first, count, c, s);
    }
    for (int64_t n = 0; n < heads; ++n) {
        const int64_t x = token * from->row_stride + n * from->head_stride, out = token * to->row_stride + n * to->head_stride;
        if (!a->interleave) rotate_halves(t, from->data, x, to->data, out, half, row);
        memmove((char *)to->data + (out + a->rot_dim) * size, (const char *)from->data + (x + a->rot_dim) * size, (size_t)(a->rest * size));
    }
}

SGK_INLINE void store_heads(sgk_dtype t, const struct apply_rope_args *a, const struct apply_rope_heads *from, const struct apply_rope_heads *buffer,
                            int64_t token, int64_t slot)
{
    const int64_t size = t == SGK_F32 ? 4 : 2;
    for (int64_t n = 0; n < a->k_heads; ++n)
        memcpy((char *)buffer->data + (slot * buffer->row_stride + n * buffer->head_stride) * size,
               (const char *)from->data + (token * from->row_stride + n * from->head_stride) * size, (size_t)(a->head_size * size));
}

SGK_INLINE void apply_rope_tokens(sgk_dtype t, const struct apply_rope_args *a, int64_t begin, int64_t end)
{
    for (int64_t token = begin; token < end; ++token) {
        const float *row = a->cos_sin_cache + load_index(a->pos_ids, token * a->pos_stride, a->pos_wide ? SGK_I64 : SGK_I32) * a->cache_stride;
        rotate_heads(t, a, &a->q, &a->q_rope, a->q_heads, token, row);
        rotate_heads(t, a, &a->k, &a->k_rope, a->k_heads, token, row);
        if (!a->k_buffer.data) continue;
        const int64_t slot = load_index(a->kv_cache_loc, token * a->loc_stride, a->loc_wide ? SGK_I64 : SGK_I32);
        store_heads(t, a, &a->k_rope, &a->k_buffer, token, slot);
        store_heads(t, a, &a->v, &a->v_buffer, token, slot);
    }
}

void SGK_CPU_FN(apply_rope)(const void *args, int64_t begin, int64_t end)
{
    const struct apply_rope_args *a = args;
    if (a->dtype == SGK_F32) apply_rope_tokens(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) apply_rope_tokens(SGK_F16, a, begin, end);
    else apply_rope_tokens(SGK_BF16, a, begin, end);
}
