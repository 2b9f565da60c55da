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
    else if (stream) vf_stream2(SGK_BF16, p, 0, x, y);
    else vf_store2(SGK_BF16, p, 0, x, y);
}

/* What makes the mean square of dim elements, a multiple of 2 VF, 1. `asks`: for what comes later, `once` as vf_prefetch2_once() does. */
SGK_INLINE float scale_of(bool asks, bool once, const void *p, int64_t at, int64_t dim, float eps)
{
    vf s0 = vf_zero(), s1 = vf_zero();
    for (int64_t i = 0; i < dim; i += 2 * VF) {
        vf x, y;
        if (asks) vf_prefetch2_once(SGK_BF16, once, p, at + i + AHEAD);
        vf_load_pairs(SGK_BF16, p, at + i, &x, &y);
        s0 = vf_fma(x, x, s0), s1 = vf_fma(y, y, s1);
    }
    return 1 / sqrtf(vf_sum(vf_add(s0, s1)) / (float)dim + eps);
}

/* n numbers, a multiple of 64; `split`: as load_two() has them. */
SGK_INLINE void encode_known(bool stream, bool split, uint8_t *q, const float *x, int n, const code_scale *k)
{
#if defined(__AVX512F__)
    for (int i = 0; split && i < n; i += 64) codes_64_split(SGK_E4M3, stream, k, q + i, x + i);
    if (split) return;
#endif
    (void)split;
    codes_run(SGK_F32, SGK_E4M3, stream, k, q, x, 0, n);
}
SGK_INLINE void encode_times(bool stream, bool split, uint8_t *q, const float *x, int n, float by, bool finite)
{
    const code_scale ends = { by, -DSV4_MOST, DSV4_MOST, false, CODES_ENDS, false }, within = { by, -DSV4_MOST, DSV4_MOST, false, CODES_WITHIN, false };
    if (finite) encode_known(stream, split, q, x, n, &within);
    else encode_known(stream, split, q, x, n, &ends);
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
        vf v[2];
        load_two(a->input, from + last + i * VF, v);
        v[0] = vf_rounded_result(SGK_BF16, vf_mul(v[0], scale)), v[1] = vf_rounded_result(SGK_BF16, vf_mul(v[1], scale));
        turn_two(v, r, i);
        store_two(stream, (uint16_t *)a->output + to + last + i * VF, v[0], v[1]);
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
        scale[i] = scale_of(true, stream, a->input, token * a->input_token + head * a->input_head, dim, a->eps);
        if (++head == a->heads) head = 0, ++token;
    }
    for (int64_t t = begin; t < end; ++t) {
        turns_make_two(&r, &a->rope, t);
        for (int64_t h = 0; h < a->heads; ++h, now = (now + 1) % TOGETHER) {
            const vf this = vf_set(scale[now]);
            if (token < end) {
                scale[now] = scale_of(true, stream, a->input, token * a->input_token + head * a->input_head, dim, a->eps);
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
        encode_times(stream, SPLIT, token + g * DSV4_K_GROUP, x + g * DSV4_K_GROUP, DSV4_K_GROUP, dsv4_inverse(e[g]), finite[g]);
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
        for (int64_t t = first; t < last; ++t) scale[t - first] = scale_of(false, false, a->kv, t * a->kv_stride, DSV4_K, a->eps);
        for (int64_t t = first; t < last; ++t) k_token(stream, a, t, t + FAR < end ? t + FAR : t, vf_set(scale[t - first]));
    }
}

#if defined(__AVX512VBMI__)
/* The numbers are 2^-60 of what they are, as their inverse scales: see codes_small_product(). */
#define K_SMALL 0x1p-60f
enum { K_GROUPS = DSV4_K_CODES / DSV4_K_GROUP };

typedef struct {
    _Alignas(64) float x[DSV4_K_CODES], by[VF];
    uint8_t *token, *scales;                  /* its places */
    uint8_t  e[VF];
    bool     usual;                           /* finite numbers of usual size */
} k_small;

/* In lane i the largest of m[i], i < 8, whose elements are no NaN and have no sign. */
SGK_INLINE vi most8(const vi *m)
{
    vi      two[4], four[2];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) two[k] = vi_max(_mm512_shuffle_i32x4(m[2 * k], m[2 * k + 1], 0x44), _mm512_shuffle_i32x4(m[2 * k], m[2 * k + 1], 0xee));
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) four[k] = vi_max(_mm512_shuffle_i32x4(two[2 * k], two[2 * k + 1], 0x88), _mm512_shuffle_i32x4(two[2 * k], two[2 * k + 1], 0xdd));
    const vi all = vi_max(_mm512_unpacklo_epi64(four[0], four[1]), _mm512_unpackhi_epi64(four[0], four[1]));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 4, 8, 12, 2, 6, 10, 14), vi_max(all, _mm512_shuffle_epi32(all, 0xb1)));
}

static __attribute__((noinline)) void k_small_exact(bool stream, const k_small *k)
{
    for (int g = 0; g < K_GROUPS; ++g) codes_64_store(stream, k->token + g * DSV4_K_GROUP, codes_small_split(true, k->x + g * DSV4_K_GROUP, vf_set(k->by[g]), NULL));
}

static __attribute__((noinline)) void k_unusual(bool stream, const struct dsv4_k_args *a, int64_t t, float scale) { k_token(stream, a, t, t, vf_set(scale)); }

/* Group by group: the numbers of token t, then the codes of `last`, whose scales are known by then. */
SGK_INLINE void k_small_token(bool stream, const struct dsv4_k_args *a, int64_t t, int64_t ahead, float scale, const float *w, k_small *this, const k_small *last)
{
    enum { MOST = 11 };                                 /* of vrangeps: the larger magnitude */
    const int64_t place = load_index(a->places, t * a->place_stride, a->places_wide ? SGK_I64 : SGK_I32), in_page = place & (a->page_size - 1);
    uint8_t      *page  = a->cache + place / a->page_size * a->page_bytes;
    const vf      small = vf_set(scale * K_SMALL);
    vi            m[8], least = vi_set(-1);
    turns         r;
    turns_make_two(&r, &a->rope, t);
    turns_soon(&a->rope, ahead);
#pragma GCC unroll 1
    for (int g = 0; g < K_GROUPS; ++g) {
        vf v[4];
#pragma GCC unroll 2
        for (int i = 0; i < 4; i += 2) {
            const int at = g * DSV4_K_GROUP + i * VF;
            vf_prefetch2(SGK_BF16, a->kv, ahead * a->kv_stride + at);
            load_two(a->kv, t * a->kv_stride + at, v + i);
            v[i] = vf_mul(vf_mul(v[i], small), vf_load_f32(w + at)), v[i + 1] = vf_mul(vf_mul(v[i + 1], small), vf_load_f32(w + at + VF));
            vf_store_f32(this->x + at, v[i]), vf_store_f32(this->x + at + VF, v[i + 1]);
        }
        m[g] = _mm512_castps_si512(_mm512_range_ps(_mm512_range_ps(v[0], v[1], MOST), _mm512_range_ps(v[2], v[3], MOST), MOST));
        if (last->usual) codes_64_store(stream, last->token + g * DSV4_K_GROUP, codes_small_split(false, last->x + g * DSV4_K_GROUP, vf_set(last->by[g]), &least));
    }
    m[7] = m[6];
    if (last->usual) {
        if (__builtin_expect(_mm512_mask_testn_epi16_mask(0x55555555, least, least), 0)) k_small_exact(stream, last);
        memcpy(last->scales, last->e, K_GROUPS);
    }
    const vi most = most8(m);
    const vf s    = vf_div(vf_max(vf_set(DSV4_LEAST_AMAX), vf_mul(_mm512_castsi512_ps(most), vf_set(1 / K_SMALL))), vf_set(DSV4_MOST));
    const vi e    = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(s), vi_set(0x7fffff)), 23);
    vf_store_f32(this->by, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_sub_epi32(vi_set(254 - 60), e), 23)));
    codes_store(this->e, e);
    this->token  = page + in_page * DSV4_TOKEN_BYTES;
    this->scales = page + a->page_size * DSV4_TOKEN_BYTES + in_page * DSV4_SCALE_BYTES;
    this->usual  = scale > 0 && scale < INFINITY && !_mm512_cmpge_epu32_mask(most, vi_set(0x3f800000));
    if (!this->usual) {
        k_unusual(stream, a, t, scale);
        return;
    }
#pragma GCC unroll 2
    for (int i = 0; i < TURNS; i += 2) {
        const int at = DSV4_K_CODES + i * VF;
        vf        v[2];
        vf_prefetch2(SGK_BF16, a->kv, ahead * a->kv_stride + at);
        load_two(a->kv, t * a->kv_stride + at, v);
        v[0] = vf_mul(vf_mul(v[0], vf_set(scale)), vf_load_f32(w + at)), v[1] = vf_mul(vf_mul(v[1], vf_set(scale)), vf_load_f32(w + at + VF));
        turn_two(v, &r, i);
        store_two(stream, (uint16_t *)(void *)(this->token + DSV4_K_CODES) + i * VF, v[0], v[1]);
    }
}

/* false, with nothing done, where a weight is not finite: there NaN may be anywhere. */
SGK_INLINE bool k_small_tokens(bool stream, const struct dsv4_k_args *a, int64_t begin, int64_t end)
{
    enum { FAR = TOGETHER + TOGETHER / 2 };
    _Alignas(64) float w[DSV4_K];
    k_small            k[2];
    vf                 nothing = vf_zero();
    for (int d = 0; d < DSV4_K; d += 2 * VF) {
        vf v[2];
        load_two(a->weight, d, v);
        vf_store_f32(w + d, v[0]), vf_store_f32(w + d + VF, v[1]);
        nothing = vf_fma(v[0], vf_zero(), vf_fma(v[1], vf_zero(), nothing));
    }
    if (begin == end || vf_equal_mask(nothing, vf_zero()) != 0xffff) return begin == end;
    k[(begin & 1) ^ 1].usual = false;
    for (int64_t first = begin; first < end; first += TOGETHER) {
        const int64_t last = first + TOGETHER < end ? first + TOGETHER : end;
        float         scale[TOGETHER];
        for (int64_t t = first; t < last; ++t) scale[t - first] = scale_of(false, false, a->kv, t * a->kv_stride, DSV4_K, a->eps);
        for (int64_t t = first; t < last; ++t) k_small_token(stream, a, t, t + FAR < end ? t + FAR : t, scale[t - first], w, &k[t & 1], &k[(t & 1) ^ 1]);
    }
    if (k[(end & 1) ^ 1].usual) k_small_exact(stream, &k[(end & 1) ^ 1]), memcpy(k[(end & 1) ^ 1].scales, k[(end & 1) ^ 1].e, K_GROUPS);
    return true;
}
#endif

void SGK_CPU_FN(dsv4_k)(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_k_args a      = *(const struct dsv4_k_args *)args;
    const bool               lines  = ((uintptr_t)a.cache | (uintptr_t)a.page_bytes) % 64 == 0;
    const bool               stream = lines && sgk_cpu_streams(a.cache, a.tokens, DSV4_TOKEN_BYTES, 1);
#if defined(__AVX512VBMI__)
    const unsigned flags = codes_small_begin();
    const bool     done  = stream ? k_small_tokens(true, &a, begin, end) : k_small_tokens(false, &a, begin, end);
    codes_small_end(flags);
#else
    const bool done = false;
#endif
    if (!done && stream) k_tokens(true, &a, begin, end);
    else if (!done) k_tokens(false, &a, begin, end);
    if (stream) vf_stream_end();
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
        encode_times(false, SPLIT && !BUTTERFLY_ORDERS, a->codes + t * a->codes_token + h * a->codes_head, x[n], DSV4_INDEXER, 1 / scale[n], finite[n]);
        a->weights_out[t * a->out_token + h * a->out_head] =
            bf16_to_f32(((const uint16_t *)a->weight)[t * a->weight_token + h * a->weight_head]) * a->weight_scale * scale[n];
    }
}

#if defined(__AVX512VBMI__) && defined(__AVX512BF16__)
#define FOURS
/*
 * Four heads at once, one in each quarter of a vector: only the four neighbours of a quarter meet by shuffles, the other steps are sums of vectors, and
 * the maxima, scales and quotients of the four are those of lanes. The numbers are 2^-60 of what they are, so that times the inverse of a scale, which is
 * 2^-60 of what it is, they have the exponents of e4m3: see codes_small_product().
 */
enum { FOUR       = 4,
       FOUR_PARTS = DSV4_INDEXER / FOUR,                /* vectors of the four: elements 4 i to 4 i + 3 of each */
       FOUR_LINES = DSV4_INDEXER / (2 * VF),            /* vectors of bf16 of a head */
       FOUR_AHEAD = 4096 };                             /* elements that are asked for in time */
#define FOUR_SMALL 0x1p-60f

/* Of the pairs of a token: what the first and the second are multiplied by for the sum of both when they are turned, and for the difference. */
typedef struct { _Alignas(64) float sum[DSV4_ROPE / 2], less[DSV4_ROPE / 2]; } four_turns;

SGK_INLINE void four_turns_make(four_turns *r, const struct dsv4_rope *rope, int64_t token)
{
    const float *f = turns_row(rope, token);
    for (int i = 0; i < DSV4_ROPE / 2; i += VF) {
        vf c, s;
        vf_unzip(vf_load_f32(f + 2 * i), vf_load_f32(f + 2 * i + VF), &c, &s);
        vf_store_f32(r->sum + i, vf_mul(vf_add(c, s), vf_set(FOUR_SMALL))), vf_store_f32(r->less + i, vf_mul(vf_sub(c, s), vf_set(FOUR_SMALL)));
    }
}

/* Quarter j of vector i becomes quarter i of vector j. */
SGK_INLINE void quarters_exchange(vi *v)
{
    const vi a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
    const vi c = _mm512_shuffle_i32x4(v[2], v[3], 0x44), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
    v[0] = _mm512_shuffle_i32x4(a, c, 0x88), v[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    v[2] = _mm512_shuffle_i32x4(b, d, 0x88), v[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

SGK_INLINE vf quarter_of(const float *p) { return _mm512_broadcast_f32x4(_mm_load_ps(p)); }

/* Half of the elements of four heads, all but the last step. */
SGK_INLINE void four_half(const uint16_t *p, int64_t stride, bool turns, const four_turns *r, vf *v)
{
#pragma GCC unroll 1
    for (int j = 0; j < FOUR_LINES / 2; ++j) {                   /* as straight code it is slower: more than the registers would be under way */
        vi w[FOUR];
#pragma GCC unroll 4
        for (int q = 0; q < FOUR; ++q) {
            const uint16_t *line = p + q * stride + j * 2 * VF;
            __builtin_prefetch(line + FOUR_AHEAD);
            w[q] = _mm512_loadu_si512(line);
        }
        quarters_exchange(w);
#pragma GCC unroll 4
        for (int i = 0; i < FOUR; ++i) {
            vf a, b;
            if (turns) {
                const vf sum = quarter_of(r->sum + 4 * (4 * j + i)), less = quarter_of(r->less + 4 * (4 * j + i));
                const vf even = _mm512_castsi512_ps(_mm512_slli_epi32(w[i], 16)), odd = _mm512_castsi512_ps(_mm512_and_si512(w[i], vi_set((int)0xffff0000)));
                a = vf_fma(even, sum, vf_mul(odd, less)), b = _mm512_fmsub_ps(even, less, vf_mul(odd, sum));
            } else {
                const vi ones = vi_set(0x21802180), signs = vi_set((int)0xa1802180);    /* 2^-60 in bf16, with a sign for the second of two */
                a = _mm512_dpbf16_ps(vf_zero(), (__m512bh)w[i], (__m512bh)ones), b = _mm512_dpbf16_ps(vf_zero(), (__m512bh)w[i], (__m512bh)signs);
            }
#pragma GCC unroll 2
            for (int step = 0; step < 2; ++step) {      /* the first and the second, the third and the fourth of a quarter meet; twice, as their places change */
                const vf first = _mm512_shuffle_ps(a, b, 0x88), second = _mm512_shuffle_ps(a, b, 0xdd);
                a = vf_add(first, second), b = vf_sub(first, second);
            }
            v[8 * j + 2 * i] = a, v[8 * j + 2 * i + 1] = b;
        }
    }
    butterfly_step(16, v, 2), butterfly_step(16, v, 4), butterfly_step(16, v, 8);
}

/* The last step; returns the largest magnitude of each head, in all lanes of its quarter. Of a head with a number that is not finite no result is, and this is NaN or infinity. */
SGK_INLINE vi four_meet(vf *x, const vf *v)
{
    enum { HALF = FOUR_PARTS / 2,
           MOST = 11 };                                 /* of vrangeps: the larger magnitude */
    vf      m, n;
#pragma GCC unroll 16
    for (int i = 0; i < HALF; ++i) {
        const vf u = x[i], sum = vf_add(u, v[i]), less = butterfly_less(u, v[i]);
        x[i] = sum, x[i + HALF] = less;
        m = i ? _mm512_range_ps(m, sum, MOST) : sum, n = i ? _mm512_range_ps(n, less, MOST) : less;
    }
    m = _mm512_range_ps(m, n, MOST);
    m = _mm512_range_ps(m, _mm512_permute_ps(m, 0xb1), MOST);
    return _mm512_and_si512(_mm512_castps_si512(_mm512_range_ps(m, _mm512_permute_ps(m, 0x4e), MOST)), vi_set(F32_MAGNITUDE));
}

typedef struct {
    vf      by, scale;
    int64_t token, head;
    bool    usual;                                      /* the heads have finite numbers of usual size */
} four_heads;

/* Half of the codes of four heads; without `exact` an element of *least becomes 0 where one of them may have to be an even one. */
SGK_INLINE void four_codes(bool exact, bool stream, const struct dsv4_indexer_args *a, const four_heads *k, const vf *x, int half, vi *least)
{
    vi       c[FOUR];
    uint8_t *to = a->codes + k->token * a->codes_token + k->head * a->codes_head + half * (DSV4_INDEXER / 2);
    x += half * (FOUR_PARTS / 2);
#pragma GCC unroll 4
    for (int i = 0; i < FOUR; ++i) c[i] = codes_small_quarters(exact, x + FOUR * i, k->by, least);
    quarters_exchange(c);
#pragma GCC unroll 4
    for (int i = 0; i < FOUR; ++i) codes_64_store(stream, to + i * a->codes_head, c[i]);
}

static __attribute__((noinline)) void four_exact(bool stream, const struct dsv4_indexer_args *a, const four_heads *k, const vf *x)
{
    for (int half = 0; half < 2; ++half) four_codes(true, stream, a, k, x, half, NULL);
}

static __attribute__((noinline)) void four_unusual(const struct dsv4_indexer_args *a, const four_heads *k)
{
    turns r;
    turns_make_two(&r, &a->rope, k->token);
    indexer_heads(a, k->token, k->head, FOUR, &r);
}

SGK_INLINE void four_weights(const struct dsv4_indexer_args *a, const four_heads *k)
{
    const uint16_t *weight = (const uint16_t *)a->weight + k->token * a->weight_token + k->head * a->weight_head;
    float          *out    = a->weights_out + k->token * a->out_token + k->head * a->out_head;
    const v4        scale  = (v4)_mm512_castps512_ps128(_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), k->scale));
    if (a->weight_head == 1 && a->out_head == 1) {
        const v4 w = (v4)_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64((const void *)weight)), 16);
        v4_store(out, w * a->weight_scale * scale);
    } else {
        for (int q = 0; q < FOUR; ++q) out[q * a->out_head] = bf16_to_f32(weight[q * a->weight_head]) * a->weight_scale * scale[q];
    }
}

/* Behind each half of a transform come half of the codes of the heads before it, whose maxima and quotients, a chain, are known by then. */
SGK_INLINE void indexer_fours(bool stream, const struct dsv4_indexer_args *a, int64_t begin, int64_t end)
{
    vf         x[2][FOUR_PARTS];
    const vf   root = vf_set(0.08838834764831845f);
    four_heads k    = { .usual = false };
    four_turns r;
    int        now = 0;
    for (int64_t t = begin; t < end; ++t) {
        four_turns_make(&r, &a->rope, t);
        turns_soon(&a->rope, t + 1 < end ? t + 1 : t);
        for (int64_t h = 0; h < a->heads; h += FOUR, now ^= 1) {
            const uint16_t *p     = (const uint16_t *)a->input + t * a->input_token + h * a->input_head;
            vi              least = vi_set(-1);
            vf              v[FOUR_PARTS / 2];
            four_half(p, a->input_head, false, &r, v);
#pragma GCC unroll 16
            for (int i = 0; i < FOUR_PARTS / 2; ++i) x[now][i] = v[i];
            if (k.usual) four_codes(false, stream, a, &k, x[now ^ 1], 0, &least);
            four_half(p + DSV4_INDEXER / 2, a->input_head, true, &r, v);
            const vi most = four_meet(x[now], v);
            if (k.usual) {
                four_codes(false, stream, a, &k, x[now ^ 1], 1, &least);
                if (__builtin_expect(_mm512_testn_epi16_mask(least, least), 0)) four_exact(stream, a, &k, x[now ^ 1]);
                four_weights(a, &k);
            } else if (t > begin || h) {
                four_unusual(a, &k);
            }
            const vf amax = vf_mul(vf_mul(_mm512_castsi512_ps(most), vf_set(1 / FOUR_SMALL)), root);
            k.scale       = vf_div(vf_max(vf_set(DSV4_LEAST_AMAX), amax), vf_set(DSV4_MOST));
            k.by          = vf_div(vf_mul(root, vf_set(FOUR_SMALL)), k.scale);
            k.usual       = !_mm512_cmpge_epu32_mask(most, vi_set(0x3f800000));
            k.token = t, k.head = h;
        }
    }
    if (begin == end || !a->heads) return;
    if (k.usual) four_exact(stream, a, &k, x[now ^ 1]), four_weights(a, &k);
    else four_unusual(a, &k);
}
#endif

void SGK_CPU_FN(dsv4_indexer)(const void *args, int64_t begin, int64_t end)
{
    const struct dsv4_indexer_args a = *(const struct dsv4_indexer_args *)args;
    turns                          r;
#if defined(FOURS)
    if (a.heads % FOUR == 0) {
        const bool     lines = ((uintptr_t)a.codes | (uintptr_t)a.codes_token | (uintptr_t)a.codes_head) % 64 == 0;
        const unsigned flags = codes_small_begin();
        if (lines && sgk_cpu_streams(a.codes, a.tokens * a.heads, DSV4_INDEXER, 1)) indexer_fours(true, &a, begin, end), vf_stream_end();
        else indexer_fours(false, &a, begin, end);
        codes_small_end(flags);
        return;
    }
#endif
    for (int64_t t = begin; t < end; ++t) {
        turns_make_two(&r, &a.rope, t);
        turns_soon(&a.rope, t + 1 < end ? t + 1 : t);
        for (int64_t h = 0; h < a.heads; h += TOGETHER) indexer_heads(&a, t, h, a.heads - h < TOGETHER ? (int)(a.heads - h) : TOGETHER, &r);
    }
}
