/* The cosines and sines of up to PAIRS pairs are widened once for each token and then serve all heads. */
#include "cpu/simd.h"
#include "rope.h"

enum { PAIRS = 256 };

/* Pairs [first, first + count) of every head: elements i and i + half. */
SGK_INLINE void rotate_neox(sgk_dtype t, const struct rope_heads *h, int64_t token, int64_t first, int64_t count, int64_t half,
                            const float *c, const float *s)
{
    for (int64_t n = 0; n < h->heads; ++n) {
        const int64_t at_x = token + n * h->head_stride + first, at_y = at_x + half;
        int64_t       i = 0;
        for (; i + VF <= count; i += VF) {
            const vf x = vf_load(t, h->data, at_x + i), y = vf_load(t, h->data, at_y + i), ci = vf_load_f32(c + i), si = vf_load_f32(s + i);
            vf_store(t, h->data, at_x + i, vf_sub(vf_mul(x, ci), vf_mul(y, si)));
            vf_store(t, h->data, at_y + i, vf_add(vf_mul(y, ci), vf_mul(x, si)));
        }
        for (; i < count; ++i) {
            const float x = load_f32(t, h->data, at_x + i), y = load_f32(t, h->data, at_y + i);
            store_f32(t, h->data, at_x + i, x * c[i] - y * s[i]);
            store_f32(t, h->data, at_y + i, y * c[i] + x * s[i]);
        }
    }
}

/* The same with neighbours as pairs: c has each cosine twice, s has each sine as -s, +s. */
SGK_INLINE void rotate_neighbours(sgk_dtype t, const struct rope_heads *h, int64_t token, int64_t first, int64_t count,
                                  const float *c, const float *s)
{
    for (int64_t n = 0; n < h->heads; ++n) {
        const int64_t at = token + n * h->head_stride + 2 * first;
        int64_t       i  = 0;
        for (; i + VF <= 2 * count; i += VF) {
            const vf x = vf_load(t, h->data, at + i);
            vf_store(t, h->data, at + i, vf_add(vf_mul(x, vf_load_f32(c + i)), vf_mul(vf_swap_pairs(x), vf_load_f32(s + i))));
        }
        for (; i < 2 * count; i += 2) {
            const float x = load_f32(t, h->data, at + i), y = load_f32(t, h->data, at + i + 1);
            store_f32(t, h->data, at + i, x * c[i] + y * s[i]);
            store_f32(t, h->data, at + i + 1, y * c[i + 1] + x * s[i + 1]);
        }
    }
}

SGK_INLINE void rotary_embedding_tokens(sgk_dtype t, const struct rotary_embedding_args *a, int64_t begin, int64_t end)
{
    const struct rope_heads *both[] = { &a->query, &a->key };
    const int64_t            half   = a->rot_dim / 2;
    float                    c[2 * PAIRS], s[2 * PAIRS];
    for (int64_t token = begin; token < end; ++token) {
        const int64_t outer = token / a->inner, inner = token % a->inner;
        const int64_t row = a->cache_stride * load_index(a->positions, outer * a->positions_outer_stride + inner * a->positions_inner_stride,
                                                         a->wide ? SGK_I64 : SGK_I32);
        for (int64_t first = 0; first < half; first += PAIRS) {
            const int64_t count = half - first < PAIRS ? half - first : PAIRS;
            for (int64_t i = 0; i < count; ++i) {
                const float ci = load_f32(t, a->cos_sin_cache, row + first + i), si = load_f32(t, a->cos_sin_cache, row + half + first + i);
                if (a->is_neox) c[i] = ci, s[i] = si;
                else c[2 * i] = c[2 * i + 1] = ci, s[2 * i] = -si, s[2 * i + 1] = si;
            }
            for (int k = 0; k < 2; ++k) {
                const int64_t at = outer * both[k]->outer_stride + inner * both[k]->inner_stride;
                if (a->is_neox) rotate_neox(t, both[k], at, first, count, half, c, s);
                else rotate_neighbours(t, both[k], at, first, count, c, s);
            }
        }
    }
}

void SGK_CPU_FN(rotary_embedding)(const void *args, int64_t begin, int64_t end)
{
    const struct rotary_embedding_args *a = args;
    if (a->dtype == SGK_F32) rotary_embedding_tokens(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) rotary_embedding_tokens(SGK_F16, a, begin, end);
    else rotary_embedding_tokens(SGK_BF16, a, begin, end);
}
