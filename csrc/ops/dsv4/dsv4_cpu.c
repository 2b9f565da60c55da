/* A head is normalised, rotated and transformed in f32 beside its place; what the rotation needs is laid out once for all heads of a token. */
#include <math.h>
#include "dsv4.h"
#include "cpu/butterfly.h"
#include "cpu/codes.h"

enum { TURNS = DSV4_ROPE / VF,
       AHEAD = 2048 };                                  /* elements that are asked for in time */

/* Neighbours are one number: times c, plus the other one times s. */
typedef struct { vf c[TURNS], s[TURNS]; } turns;

SGK_INLINE void turns_make(turns *r, const struct dsv4_rope *rope, int64_t token)
{
    static const float signs[16] = { -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1 };
    const int64_t      position  = load_index(rope->positions, token * rope->position_stride, rope->wide ? SGK_I64 : SGK_I32);
    const float       *f         = rope->freqs + position * rope->freqs_stride;
    for (int i = 0; i < TURNS; ++i) {
        const vf z = vf_load_f32(f + i * VF);
        r->c[i] = vf_evens(z), r->s[i] = vf_mul(vf_odds(z), vf_load_f32(signs));
    }
}

/* Vector i of those that rotate. */
SGK_INLINE vf turned(vf v, const turns *r, int i) { return vf_add(vf_mul(v, r->c[i]), vf_mul(vf_swap_pairs(v), r->s[i])); }

/* Loads dim elements, a multiple of 2 VF, and gives what makes their mean square 1. */
SGK_INLINE float load_for_norm(vf *v, const void *p, int64_t at, int dim, float eps)
{
    vf s0 = vf_zero(), s1 = vf_zero();
#pragma GCC unroll 32
    for (int i = 0; i < dim / VF; i += 2) {
        vf_prefetch2(SGK_BF16, p, at + i * VF + AHEAD);
        v[i] = vf_load(SGK_BF16, p, at + i * VF), v[i + 1] = vf_load(SGK_BF16, p, at + (i + 1) * VF);
        s0 = vf_fma(v[i], v[i], s0), s1 = vf_fma(v[i + 1], v[i + 1], s1);
    }
    return 1 / sqrtf(vf_sum(vf_add(s0, s1)) / (float)dim + eps);
}

SGK_INLINE void encode_times(uint8_t *q, const float *x, int n, float by, bool finite)
{
    const code_scale ends = { by, -DSV4_MOST, DSV4_MOST, false, CODES_ENDS, false }, within = { by, -DSV4_MOST, DSV4_MOST, false, CODES_WITHIN, false };
    if (finite) codes_run(SGK_F32, SGK_E4M3, false, &within, q, x, 0, n);
    else codes_run(SGK_F32, SGK_E4M3, false, &ends, q, x, 0, n);
}

/* The head is rounded before it is rotated. */
SGK_INLINE void q_head(int dim, const struct dsv4_q_args *a, int64_t from, int64_t to, const turns *r)
{
    vf       v[192 / VF];
    const vf scale = vf_set(load_for_norm(v, a->input, from, dim, a->eps));
#pragma GCC unroll 32
    for (int i = 0; i < dim / VF; i += 2) {
        vf        x = vf_mul(v[i], scale), y = vf_mul(v[i + 1], scale);
        const int turn = i - (dim - DSV4_ROPE) / VF;
        if (turn >= 0) x = turned(vf_rounded(SGK_BF16, x), r, turn), y = turned(vf_rounded(SGK_BF16, y), r, turn + 1);
        vf_store2(SGK_BF16, a->output, to + i * VF, x, y);
    }
}

void SGK_CPU_FN(dsv4_q)(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_q_args *a = args;
    turns                     r;
    for (int64_t t = begin; t < end; ++t) {
        turns_make(&r, &a->rope, t);
        for (int64_t h = 0; h < a->heads; ++h) {
            const int64_t from = t * a->input_token + h * a->input_head, to = t * a->output_token + h * a->output_head;
            if (a->dim == 128) q_head(128, a, from, to, &r);
            else q_head(192, a, from, to, &r);
        }
    }
}

void SGK_CPU_FN(dsv4_k)(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_k_args *a    = args;
    const int                 log2 = __builtin_ctzll((uint64_t)a->page_size);
    _Alignas(64) float        x[DSV4_K];
    turns                     r;
    for (int64_t t = begin; t < end; ++t) {
        const int64_t place = load_index(a->places, t * a->place_stride, a->places_wide ? SGK_I64 : SGK_I32), in_page = place & (a->page_size - 1);
        uint8_t      *page = a->cache + (place >> log2) * a->page_bytes, *token = page + in_page * DSV4_TOKEN_BYTES;
        uint8_t      *scales = page + a->page_size * DSV4_TOKEN_BYTES + in_page * DSV4_SCALE_BYTES;
        for (int i = 0; i < DSV4_TOKEN_BYTES; i += 64) __builtin_prefetch(token + i, 1);
        turns_make(&r, &a->rope, t);
        vf       v[DSV4_K / VF];
        const vf scale = vf_set(load_for_norm(v, a->kv, t * a->kv_stride, DSV4_K, a->eps));
        for (int i = 0; i < DSV4_K / VF; ++i) vf_store_f32(x + i * VF, vf_mul(vf_mul(v[i], scale), vf_load(SGK_BF16, a->weight, i * VF)));
        for (int g = 0; g < DSV4_K_CODES / DSV4_K_GROUP; ++g) {
            bool           finite;
            const uint32_t e = dsv4_exponent(dsv4_scale(amax_run(SGK_F32, x + g * DSV4_K_GROUP, 0, DSV4_K_GROUP, &finite)));
            encode_times(token + g * DSV4_K_GROUP, x + g * DSV4_K_GROUP, DSV4_K_GROUP, dsv4_inverse(e), finite);
            scales[g] = (uint8_t)e;
        }
        for (int i = 0; i < TURNS; ++i)
            vf_store_bf16((uint16_t *)(void *)(token + DSV4_K_CODES) + i * VF, turned(vf_load_f32(x + DSV4_K_CODES + i * VF), &r, i));
    }
}

void SGK_CPU_FN(dsv4_indexer)(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_indexer_args *a     = args;
    const int                       first = (DSV4_INDEXER - DSV4_ROPE) / VF;
    _Alignas(64) float              x[DSV4_INDEXER];
    turns                           r;
    for (int64_t t = begin; t < end; ++t) {
        turns_make(&r, &a->rope, t);
        for (int64_t h = 0; h < a->heads; ++h) {
            const int64_t from = t * a->input_token + h * a->input_head;
            for (int i = 0; i < DSV4_INDEXER; i += 2 * VF) vf_prefetch2(SGK_BF16, a->input, from + i + AHEAD);
            for (int i = 0; i < DSV4_INDEXER / VF; ++i) {
                const vf v = vf_load(SGK_BF16, a->input, from + i * VF);
                vf_store_f32(x + i * VF, i < first ? v : turned(v, &r, i - first));
            }
            butterflies(x, DSV4_INDEXER, DSV4_INDEXER);
            const vf root = vf_set(0.08838834764831845f);   /* 128^-0.5 */
            for (int i = 0; i < DSV4_INDEXER; i += VF) vf_store_f32(x + i, vf_mul(vf_load_f32(x + i), root));
            bool        finite;
            const float s = dsv4_scale(amax_run(SGK_F32, x, 0, DSV4_INDEXER, &finite));
            encode_times(a->codes + t * a->codes_token + h * a->codes_head, x, DSV4_INDEXER, 1 / s, finite);
            a->weights_out[t * a->out_token + h * a->out_head] =
                bf16_to_f32(((const uint16_t *)a->weight)[t * a->weight_token + h * a->weight_head]) * a->weight_scale * s;
        }
    }
}
