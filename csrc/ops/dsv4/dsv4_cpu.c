/* A head is normalised, rotated and transformed in f32 beside its place; what the rotation needs is laid out once for all heads of a token. */
#include <math.h>
#include "dsv4.h"
#include "cpu/butterfly.h"
#include "cpu/codes.h"

enum { TURNS = DSV4_ROPE / VF,
       SPLIT = VF == 16,                                /* numbers in f32 lie in the order of vf_load_pairs of bf16 */
       AHEAD = 2048 };                                  /* elements that are asked for in time */

/* Neighbours are one number: times c, plus the other one times s. */
typedef struct { vf c[TURNS], s[TURNS]; } turns;

SGK_INLINE const float *turns_row(const struct dsv4_rope *rope, int64_t token)
{
    const int64_t position = load_index(rope->positions, token * rope->position_stride, rope->wide ? SGK_I64 : SGK_I32);
    return rope->freqs + position * rope->freqs_stride;
}

/* Asks for the row of a token. */
SGK_INLINE void turns_soon(const struct dsv4_rope *rope, int64_t token)
{
    const float *f = turns_row(rope, token);
    for (int i = 0; i < DSV4_ROPE; i += 16) __builtin_prefetch(f + i);
}

SGK_INLINE void turns_make(turns *r, const struct dsv4_rope *rope, int64_t token)
{
    static const float signs[16] = { -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1 };
    const float       *f         = turns_row(rope, token);
    for (int i = 0; i < TURNS; ++i) {
        const vf z = vf_load_f32(f + i * VF);
        r->c[i] = vf_evens(z), r->s[i] = vf_mul(vf_odds(z), vf_load_f32(signs));
    }
}

/* Vector i of those that rotate. */
SGK_INLINE vf turned(vf v, const turns *r, int i) { return vf_add(vf_mul(v, r->c[i]), vf_mul(vf_swap_pairs(v), r->s[i])); }

/* Heads in f32, two vectors at a time: at the widest the evens of 2 VF elements, then the odds, with c[i] and s[i + 1] for each pair. */
SGK_INLINE void turns_make_two(turns *r, const struct dsv4_rope *rope, int64_t token)
{
    if (!SPLIT) turns_make(r, rope, token);
    const float *f = turns_row(rope, token);
    for (int i = 0; SPLIT && i < TURNS; i += 2) vf_unzip(vf_load_f32(f + i * VF), vf_load_f32(f + (i + 1) * VF), &r->c[i], &r->s[i + 1]);
}
SGK_INLINE void load_two(const void *p, int64_t at, vf *x)
{
    if (SPLIT) vf_load_pairs(SGK_BF16, p, at, &x[0], &x[1]);
    else x[0] = vf_load(SGK_BF16, p, at), x[1] = vf_load(SGK_BF16, p, at + VF);
}
SGK_INLINE void turn_two(vf *x, const turns *r, int i)
{
    if (SPLIT) {
        const vf c = r->c[i], s = r->s[i + 1], even = vf_sub(vf_mul(x[0], c), vf_mul(x[1], s)), odd = vf_add(vf_mul(x[1], c), vf_mul(x[0], s));
        x[0] = even, x[1] = odd;
    } else {
        x[0] = turned(x[0], r, i), x[1] = turned(x[1], r, i + 1);
    }
}
SGK_INLINE void store_two(bool stream, uint16_t *p, vf x, vf y)
{
    if (SPLIT) vf_store_pairs(SGK_BF16, stream, p, 0, x, y);
    else vf_store2(SGK_BF16, p, 0, x, y);
}

/* What makes the mean square of dim elements, a multiple of 2 VF, 1. `asks`: for what comes later. */
SGK_INLINE float scale_of(bool asks, const void *p, int64_t at, int64_t dim, float eps)
{
    vf s0 = vf_zero(), s1 = vf_zero();
    for (int64_t i = 0; i < dim; i += 2 * VF) {
        vf x, y;
        if (asks) vf_prefetch2(SGK_BF16, p, at + i + AHEAD);
        vf_load_pairs(SGK_BF16, p, at + i, &x, &y);
        s0 = vf_fma(x, x, s0), s1 = vf_fma(y, y, s1);
    }
    return 1 / sqrtf(vf_sum(vf_add(s0, s1)) / (float)dim + eps);
}

/* n numbers, a multiple of 64. */
SGK_INLINE void encode_known(bool stream, uint8_t *q, const float *x, int n, const code_scale *k)
{
#if defined(__AVX512F__)
    for (int i = 0; i < n; i += 64) codes_64_split(SGK_E4M3, stream, k, q + i, x + i);
#else
    codes_run(SGK_F32, SGK_E4M3, stream, k, q, x, 0, n);
#endif
}
SGK_INLINE void encode_times(bool stream, uint8_t *q, const float *x, int n, float by, bool finite)
{
    const code_scale ends = { by, -DSV4_MOST, DSV4_MOST, false, CODES_ENDS, false }, within = { by, -DSV4_MOST, DSV4_MOST, false, CODES_WITHIN, false };
    if (finite) encode_known(stream, q, x, n, &within);
    else encode_known(stream, q, x, n, &ends);
}

/* Heads, or tokens of one head, whose scales are found one beside the other before any is written: none waits for a root and a quotient. */
enum { TOGETHER = 8 };

/* The head is rounded before it is rotated. */
SGK_INLINE void q_head(bool stream, int64_t dim, const struct dsv4_q_args *a, int64_t from, int64_t to, vf scale, const turns *r)
{
    const int64_t last = dim - DSV4_ROPE;
    for (int64_t d = 0; d < last; d += 2 * VF) {
        vf x, y;
        vf_load_pairs(SGK_BF16, a->input, from + d, &x, &y);
        vf_store_pairs(SGK_BF16, stream, a->output, to + d, vf_mul(x, scale), vf_mul(y, scale));
    }
#pragma GCC unroll 8
    for (int i = 0; i < TURNS; i += 2) {
        const int64_t at = last + i * VF;
        const vf      x = vf_mul(vf_load(SGK_BF16, a->input, from + at), scale), y = vf_mul(vf_load(SGK_BF16, a->input, from + at + VF), scale);
        const vf      u = turned(vf_rounded_result(SGK_BF16, x), r, i), v = turned(vf_rounded_result(SGK_BF16, y), r, i + 1);
        if (stream) vf_stream2(SGK_BF16, a->output, to + at, u, v);
        else vf_store2(SGK_BF16, a->output, to + at, u, v);
    }
}

/* The scale of a head is found while the one TOGETHER heads before it is written: so memory is read and written all the time. */
SGK_INLINE void q_tokens(bool stream, int64_t dim, const struct dsv4_q_args *a, int64_t begin, int64_t end)
{
    turns   r;
    float   scale[TOGETHER];
    int64_t token = begin, head = 0;                    /* of the next scale */
    int     now = 0;
    for (int i = 0; i < TOGETHER && token < end; ++i) {
        scale[i] = scale_of(true, a->input, token * a->input_token + head * a->input_head, dim, a->eps);
        if (++head == a->heads) head = 0, ++token;
    }
    for (int64_t t = begin; t < end; ++t) {
        turns_make(&r, &a->rope, t);
        for (int64_t h = 0; h < a->heads; ++h, now = (now + 1) % TOGETHER) {
            const vf this = vf_set(scale[now]);
            if (token < end) {
                scale[now] = scale_of(true, a->input, token * a->input_token + head * a->input_head, dim, a->eps);
                if (++head == a->heads) head = 0, ++token;
            }
            q_head(stream, dim, a, t * a->input_token + h * a->input_head, t * a->output_token + h * a->output_head, this, &r);
        }
    }
}

void SGK_CPU_FN(dsv4_q)(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_q_args a     = *(const struct dsv4_q_args *)args;
    const bool               lines = ((uintptr_t)a.output | (uintptr_t)(2 * a.output_token) | (uintptr_t)(2 * a.output_head) | (uintptr_t)(2 * a.dim)) % 64 == 0;
    if (!lines || a.output == a.input || !sgk_cpu_streams(a.output, a.tokens * a.heads, 2 * a.dim, 2)) {
        a.dim == 128 ? q_tokens(false, 128, &a, begin, end) : q_tokens(false, a.dim, &a, begin, end);
        return;
    }
    a.dim == 128 ? q_tokens(true, 128, &a, begin, end) : q_tokens(true, a.dim, &a, begin, end);
    vf_stream_end();
}

/* Scales first, then codes, for the same reason. */
SGK_INLINE void k_token(bool stream, const struct dsv4_k_args *a, int64_t t, int64_t ahead, vf scale)
{
    enum { GROUPS = DSV4_K_CODES / DSV4_K_GROUP };
    const int64_t      place = load_index(a->places, t * a->place_stride, a->places_wide ? SGK_I64 : SGK_I32), in_page = place & (a->page_size - 1);
    uint8_t           *page = a->cache + place / a->page_size * a->page_bytes, *token = page + in_page * DSV4_TOKEN_BYTES;
    uint8_t           *scales = page + a->page_size * DSV4_TOKEN_BYTES + in_page * DSV4_SCALE_BYTES;
    _Alignas(64) float x[DSV4_K];
    turns              r;
    uint32_t           e[GROUPS];
    bool               finite[GROUPS];
    turns_make_two(&r, &a->rope, t);
    turns_soon(&a->rope, ahead);
    for (int d = 0; d < DSV4_K; d += 2 * VF) {
        vf v[2], w[2];
        vf_prefetch2(SGK_BF16, a->kv, ahead * a->kv_stride + d);
        load_two(a->kv, t * a->kv_stride + d, v), load_two(a->weight, d, w);
        vf_store_f32(x + d, vf_mul(vf_mul(v[0], scale), w[0])), vf_store_f32(x + d + VF, vf_mul(vf_mul(v[1], scale), w[1]));
    }
    for (int g = 0; g < GROUPS; ++g) e[g] = dsv4_exponent(dsv4_scale(amax_run(SGK_F32, x + g * DSV4_K_GROUP, 0, DSV4_K_GROUP, &finite[g])));
    for (int g = 0; g < GROUPS; ++g) {
        encode_times(stream, token + g * DSV4_K_GROUP, x + g * DSV4_K_GROUP, DSV4_K_GROUP, dsv4_inverse(e[g]), finite[g]);
        scales[g] = (uint8_t)e[g];
    }
    for (int i = 0; i < TURNS; i += 2) {
        vf v[2] = { vf_load_f32(x + DSV4_K_CODES + i * VF), vf_load_f32(x + DSV4_K_CODES + (i + 1) * VF) };
        turn_two(v, &r, i);
        store_two(stream, (uint16_t *)(void *)(token + DSV4_K_CODES) + i * VF, v[0], v[1]);
    }
}

SGK_INLINE void k_tokens(bool stream, const struct dsv4_k_args *a, int64_t begin, int64_t end)
{
    enum { FAR = TOGETHER + TOGETHER / 2 };             /* tokens that are asked for in time */
    for (int64_t first = begin; first < end; first += TOGETHER) {
        const int64_t last = first + TOGETHER < end ? first + TOGETHER : end;
        float         scale[TOGETHER];
        for (int64_t t = first; t < last; ++t) scale[t - first] = scale_of(false, a->kv, t * a->kv_stride, DSV4_K, a->eps);
        for (int64_t t = first; t < last; ++t) k_token(stream, a, t, t + FAR < end ? t + FAR : t, vf_set(scale[t - first]));
    }
}

void SGK_CPU_FN(dsv4_k)(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_k_args a     = *(const struct dsv4_k_args *)args;
    const bool               lines = ((uintptr_t)a.cache | (uintptr_t)a.page_bytes) % 64 == 0;
    if (!lines || !sgk_cpu_streams(a.cache, a.tokens, DSV4_TOKEN_BYTES, 1)) {
        k_tokens(false, &a, begin, end);
        return;
    }
    k_tokens(true, &a, begin, end);
    vf_stream_end();
}

SGK_INLINE void indexer_heads(const struct dsv4_indexer_args *a, int64_t t, int64_t first, int count, const turns *r)
{
    enum { VECTORS = DSV4_INDEXER / VF,
           FIRST   = VECTORS - TURNS };
    _Alignas(64) float x[TOGETHER][DSV4_INDEXER];
    float              scale[TOGETHER];
    bool               finite[TOGETHER];
    const vf           root = vf_set(0.08838834764831845f);           /* 128^-0.5 */
    for (int n = 0; n < count; ++n) {
        const int64_t from = t * a->input_token + (first + n) * a->input_head;
        vf            v[VECTORS];
        for (int i = 0; i < DSV4_INDEXER; i += 2 * VF) vf_prefetch2(SGK_BF16, a->input, from + i + AHEAD);
#pragma GCC unroll 16
        for (int i = 0; i < VECTORS; i += 2) {
            load_two(a->input, from + i * VF, v + i);
            if (i >= FIRST) turn_two(v + i, r, i - FIRST);
        }
        butterfly_vectors(VECTORS, true, SPLIT, v);
#pragma GCC unroll 16
        for (int i = 0; i < VECTORS; ++i) vf_store_f32(x[n] + i * VF, vf_mul(v[i], root));
    }
    for (int n = 0; n < count; ++n) scale[n] = dsv4_scale(amax_run(SGK_F32, x[n], 0, DSV4_INDEXER, &finite[n]));
    for (int n = 0; n < count; ++n) {
        const int64_t h = first + n;
        encode_times(false, a->codes + t * a->codes_token + h * a->codes_head, x[n], DSV4_INDEXER, 1 / scale[n], finite[n]);
        a->weights_out[t * a->out_token + h * a->out_head] =
            bf16_to_f32(((const uint16_t *)a->weight)[t * a->weight_token + h * a->weight_head]) * a->weight_scale * scale[n];
    }
}

/* Codes go through the caches: arithmetic would wait for what goes around them. */
void SGK_CPU_FN(dsv4_indexer)(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_indexer_args a = *(const struct dsv4_indexer_args *)args;
    turns                          r;
    for (int64_t t = begin; t < end; ++t) {
        turns_make_two(&r, &a.rope, t);
        turns_soon(&a.rope, t + 1 < end ? t + 1 : t);
        for (int64_t h = 0; h < a.heads; h += TOGETHER) indexer_heads(&a, t, h, a.heads - h < TOGETHER ? (int)(a.heads - h) : TOGETHER, &r);
    }
}
