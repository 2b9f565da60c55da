/* A head is normalised, rotated and transformed in f32 beside its place; what the rotation needs is laid out once for all heads of a token. */
#include <math.h>
#include "dsv4.h"
#include "cpu/butterfly.h"
#include "cpu/codes.h"

/* Neighbours are one number: times c, plus the other one times s. */
typedef struct { float c[DSV4_ROPE], s[DSV4_ROPE]; } turns;

static void turns_make(turns *r, const struct dsv4_rope *rope, int64_t token)
{
    const int64_t position = load_index(rope->positions, token * rope->position_stride, rope->wide ? SGK_I64 : SGK_I32);
    const float  *f        = rope->freqs + position * rope->freqs_stride;
    for (int i = 0; i < DSV4_ROPE; i += 2) {
        r->c[i] = r->c[i + 1] = f[i];
        r->s[i] = -f[i + 1], r->s[i + 1] = f[i + 1];
    }
}

SGK_INLINE void rotate(float *x, const turns *r)
{
    for (int i = 0; i < DSV4_ROPE; i += VF) {
        const vf v = vf_load_f32(x + i);
        vf_store_f32(x + i, vf_add(vf_mul(v, vf_load_f32(r->c + i)), vf_mul(vf_swap_pairs(v), vf_load_f32(r->s + i))));
    }
}

/* Loads dim elements, a multiple of 2 VF, and gives what makes their mean square 1. */
SGK_INLINE float load_for_norm(float *x, const void *p, int64_t at, int64_t dim, float eps)
{
    vf s0 = vf_zero(), s1 = vf_zero();
    for (int64_t d = 0; d < dim; d += 2 * VF) {
        const vf u = vf_load(SGK_BF16, p, at + d), v = vf_load(SGK_BF16, p, at + d + VF);
        vf_store_f32(x + d, u), vf_store_f32(x + d + VF, v);
        s0 = vf_fma(u, u, s0), s1 = vf_fma(v, v, s1);
    }
    return 1 / sqrtf(vf_sum(vf_add(s0, s1)) / (float)dim + eps);
}

SGK_INLINE float amax_of(const float *x, int64_t n) { return amax_of_numbers(SGK_F32, x, 0, n); }

SGK_INLINE void encode_times(uint8_t *q, const float *x, int n, float by)
{
    const code_scale k = { by, -DSV4_MOST, DSV4_MOST, false, CODES_ENDS };
    codes_run(SGK_F32, SGK_E4M3, false, &k, q, x, 0, n);
}

void SGK_CPU_FN(dsv4_q)(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_q_args *a = args;
    float                     x[192];
    turns                     r;
    for (int64_t t = begin; t < end; ++t) {
        turns_make(&r, &a->rope, t);
        for (int64_t h = 0; h < a->heads; ++h) {
            const int64_t to = t * a->output_token + h * a->output_head, last = a->dim - DSV4_ROPE;
            const vf      scale = vf_set(load_for_norm(x, a->input, t * a->input_token + h * a->input_head, a->dim, a->eps));
            for (int64_t d = 0; d < a->dim; d += VF) vf_store(SGK_BF16, a->output, to + d, vf_mul(vf_load_f32(x + d), scale));
            for (int64_t d = last; d < a->dim; d += VF) vf_store_f32(x + d, vf_load(SGK_BF16, a->output, to + d));      /* rounded */
            rotate(x + last, &r);
            for (int64_t d = last; d < a->dim; d += VF) vf_store(SGK_BF16, a->output, to + d, vf_load_f32(x + d));
        }
    }
}

void SGK_CPU_FN(dsv4_k)(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_k_args *a = args;
    float                     x[DSV4_K];
    turns                     r;
    for (int64_t t = begin; t < end; ++t) {
        turns_make(&r, &a->rope, t);
        const vf scale = vf_set(load_for_norm(x, a->kv, t * a->kv_stride, DSV4_K, a->eps));
        for (int d = 0; d < DSV4_K; d += VF) vf_store_f32(x + d, vf_mul(vf_mul(vf_load_f32(x + d), scale), vf_load(SGK_BF16, a->weight, d)));
        rotate(x + DSV4_K_CODES, &r);

        const int64_t place = load_index(a->places, t * a->place_stride, a->places_wide ? SGK_I64 : SGK_I32);
        uint8_t      *page = a->cache + place / a->page_size * a->page_bytes, *token = page + place % a->page_size * DSV4_TOKEN_BYTES;
        uint8_t      *scales = page + a->page_size * DSV4_TOKEN_BYTES + place % a->page_size * DSV4_SCALE_BYTES;
        for (int g = 0; g < DSV4_K_CODES / DSV4_K_GROUP; ++g) {
            const uint32_t e = dsv4_exponent(dsv4_scale(amax_of(x + g * DSV4_K_GROUP, DSV4_K_GROUP)));
            encode_times(token + g * DSV4_K_GROUP, x + g * DSV4_K_GROUP, DSV4_K_GROUP, dsv4_inverse(e));
            scales[g] = (uint8_t)e;
        }
        for (int i = 0; i < DSV4_ROPE; i += VF) vf_store_bf16((uint16_t *)(void *)(token + DSV4_K_CODES + 2 * i), vf_load_f32(x + DSV4_K_CODES + i));
    }
}

void SGK_CPU_FN(dsv4_indexer)(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_indexer_args *a = args;
    float                           x[DSV4_INDEXER];
    turns                           r;
    lane_matrix                     matrix;
    lane_matrix_make(&matrix);
    for (int64_t t = begin; t < end; ++t) {
        turns_make(&r, &a->rope, t);
        for (int64_t h = 0; h < a->heads; ++h) {
            const int64_t from = t * a->input_token + h * a->input_head;
            for (int i = 0; i < DSV4_INDEXER; i += VF) vf_store_f32(x + i, vf_load(SGK_BF16, a->input, from + i));
            rotate(x + DSV4_INDEXER - DSV4_ROPE, &r);
            butterflies(x, DSV4_INDEXER, DSV4_INDEXER, &matrix);
            const float root = 0.08838834764831845f;     /* 128^-0.5 */
            for (int i = 0; i < DSV4_INDEXER; i += VF) vf_store_f32(x + i, vf_mul(vf_load_f32(x + i), vf_set(root)));
            const float s = dsv4_scale(amax_of(x, DSV4_INDEXER));
            encode_times(a->codes + t * a->codes_token + h * a->codes_head, x, DSV4_INDEXER, 1 / s);
            a->weights_out[t * a->out_token + h * a->out_head] =
                bf16_to_f32(((const uint16_t *)a->weight)[t * a->weight_token + h * a->weight_head]) * a->weight_scale * s;
        }
    }
}
