/*
 * Groups of bf16 to e4m3 by tables. A scale is made of the largest magnitude of its group, itself one of bf16, so but for powers of two there are as many
 * scales as such a number has values of its 7 bits behind the exponent, and each has a table of codes; all scales that are powers of two share one.
 */
#ifndef SGK_QUANT_LOOKUP_H
#define SGK_QUANT_LOOKUP_H
#include "cpu/codes.h"
#include "quant.h"

enum { LOOKED_UP = 8 };                                 /* groups at a time */

#if defined(__AVX512VBMI__)
#include <pthread.h>

typedef struct {
    _Alignas(64) uint8_t codes[129][128];               /* [m][b]: of 1.b where the largest is 1.m * 2^8; [128]: where the scale is 1 */
    int32_t  smalls[128]; /* how many of them stand for less than 1, less those that stand for 2 or more */
    uint16_t begins[129][8];                            /* the first magnitudes of codes 1 to 8, the subnormal ones and the first that is none */
} lookup_tables;
static lookup_tables lookup[2];                         /* of versions 1 and 2 */

static void lookup_make(void)
{
    enum { BINADES = 6,
           FIRST   = 116 };                             /* exponents of bf16, with their bias, where such codes begin */
    uint16_t x[128], low[BINADES * 128];
    uint8_t  q[BINADES * 128];
    for (int i = 0; i < 128; ++i) x[i] = (uint16_t)(0x3f80 + i);
    for (int i = 0; i < BINADES * 128; ++i) low[i] = (uint16_t)((FIRST << 7) + i);
    for (int version = 1; version <= 2; ++version) {
        lookup_tables *t = &lookup[version - 1];
        for (int m = 0; m <= 128; ++m) {
            const struct quant_groups_args a     = { .version = version, .most = 448, .ue8m0 = m == 128 };
            const struct quant_scaling     s     = quant_group_scaling(m == 128 ? 448 : 256 + 2 * (float)m, &a);
            const code_scale               scale = { m == 128 ? 1 : s.by, -448, 448, s.divide, CODES_WITHIN, false };
            codes_run(SGK_BF16, SGK_E4M3, false, &scale, t->codes[m], x, 0, 128);
            if (m < 128) t->smalls[m] = -128;
            for (int i = 0; i < 128 && m < 128; ++i) t->smalls[m] += (t->codes[m][i] < 0x38) + (t->codes[m][i] < 0x40);
            codes_run(SGK_BF16, SGK_E4M3, false, &scale, q, low, 0, BINADES * 128);
            for (int code = 1, i = 0; code <= 8; ++code) {
                while (q[i] < code) ++i;
                t->begins[m][code - 1] = low[i];
            }
        }
    }
}

typedef struct {                                        /* of groups: */
    float   scale[LOOKED_UP];
    int32_t exponent[LOOKED_UP];                        /* of the scale, where it is a power of two */
    int32_t table[LOOKED_UP], bias[LOOKED_UP], least[LOOKED_UP];
    int32_t above[LOOKED_UP];                           /* how far magnitudes are above those in `begins` */
} lookup_batch;

/* Before anything is looked up. */
SGK_INLINE void lookup_prepare(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, lookup_make);
}

/* Whether groups of these arguments can be. */
SGK_INLINE bool lookup_takes(const struct quant_groups_args *a)
{
    return a->dtype == SGK_BF16 && a->code == SGK_E4M3 && !a->clamps && a->group % 64 == 0 && a->group > 0;
}

/* The largest magnitudes of `count` groups, as bf16. */
SGK_INLINE __m256i lookup_most(const uint16_t *x, int64_t group, int count)
{
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
    __m512i       m[LOOKED_UP];
#pragma GCC unroll 8
    for (int g = 0; g < LOOKED_UP; ++g) {
        const uint16_t *p = x + (g < count ? g : 0) * group;
        m[g]              = _mm512_and_si512(_mm512_loadu_si512(p), magnitude);
        for (int64_t i = 32; i < group; i += 32) m[g] = _mm512_max_epu16(m[g], _mm512_and_si512(_mm512_loadu_si512(p + i), magnitude));
    }
    /* Quarters of vectors for two groups, then a quarter for each of four, an eighth for each. */
    __m512i two[4], four[2];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {                       /* 0 and 2, 4 and 6, 1 and 3, 5 and 7 */
        const __m512i a = m[k % 2 * 4 + k / 2], b = m[k % 2 * 4 + k / 2 + 2];
        two[k] = _mm512_max_epu16(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee));
    }
    for (int k = 0; k < 2; ++k)
        four[k] = _mm512_max_epu16(_mm512_shuffle_i64x2(two[2 * k], two[2 * k + 1], 0x88), _mm512_shuffle_i64x2(two[2 * k], two[2 * k + 1], 0xdd));
    __m512i all = _mm512_max_epu16(_mm512_unpacklo_epi64(four[0], four[1]), _mm512_unpackhi_epi64(four[0], four[1]));
    all         = _mm512_max_epu16(all, _mm512_ror_epi64(all, 32));
    all         = _mm512_max_epu16(all, _mm512_ror_epi64(all, 16));
    return _mm512_cvtepi64_epi32(_mm512_and_si512(all, _mm512_set1_epi64(0xffff)));
}

/*
 * Finds the scales of `count` groups, at most LOOKED_UP; false where one has no table: its largest magnitude is tiny, or no number. That is a chain of some
 * hundred cycles, so codes of other groups should be written before those of these.
 */
SGK_INLINE bool lookup_find(lookup_batch *l, const struct quant_groups_args *a, int64_t group, const uint16_t *x, int count)
{
    enum { LEAST = 32 << 7 };                           /* no scale below is a subnormal number */
    const lookup_tables *t     = &lookup[a->version - 1];
    const __m256i        most  = lookup_most(x, group, count);
    const __m256         value = _mm256_castsi256_ps(_mm256_slli_epi32(most, 16));
    if (_mm256_cmpgt_epu32_mask(_mm256_sub_epi32(most, _mm256_set1_epi32(LEAST)), _mm256_set1_epi32(0x7f7f - LEAST)) |
        _mm256_cmp_ps_mask(value, _mm256_set1_ps(a->eps), _CMP_NGE_UQ)) return false;
    __m256  s = a->version == 1 ? _mm256_div_ps(value, _mm256_set1_ps(448)) : _mm256_mul_ps(value, _mm256_set1_ps(a->inverse));
    __m256i table, below, from;                         /* from: the exponent of what becomes 1 to 2, with its bias; below: how much of that is less than 1 */
    if (a->ue8m0) {
        if (a->version == 1) s = _mm256_max_ps(s, _mm256_set1_ps(1e-10f));
        const __m256i  u     = _mm256_castps_si256(s);
        const __mmask8 above = _mm256_test_epi32_mask(u, _mm256_set1_epi32(0x7fffff));
        from                 = _mm256_srli_epi32(u, 23);
        from                 = _mm256_mask_add_epi32(from, above, from, _mm256_set1_epi32(1));
        table = _mm256_set1_epi32(128), below = _mm256_setzero_si256();
    } else {
        from  = _mm256_sub_epi32(_mm256_srli_epi32(most, 7), _mm256_set1_epi32(8));
        table = _mm256_and_si256(most, _mm256_set1_epi32(127));
        below = _mm256_i32gather_epi32(t->smalls, table, 4);
    }
    _mm256_storeu_ps(l->scale, s);
    _mm256_storeu_si256((void *)l->exponent, _mm256_sub_epi32(from, _mm256_set1_epi32(127)));
    _mm256_storeu_si256((void *)l->table, table);
    _mm256_storeu_si256((void *)l->above, _mm256_slli_epi32(_mm256_sub_epi32(from, _mm256_set1_epi32(127)), 7));
    _mm256_storeu_si256((void *)l->bias, _mm256_slli_epi32(_mm256_sub_epi32(_mm256_setzero_si256(), from), 3));
    _mm256_storeu_si256((void *)l->least, _mm256_add_epi32(_mm256_slli_epi32(_mm256_sub_epi32(from, _mm256_set1_epi32(6)), 7), below));
    return true;
}

/* 64 elements, some of which have subnormal codes: the magnitudes where those begin are counted. */
static __attribute__((noinline)) __m512i lookup_smalls(const code_table *k, const uint16_t *begins, int above, __m512i a, __m512i b)
{
    const __m512i magnitude = _mm512_set1_epi16(0x7fff), least = _mm512_set1_epi16((short)k->least), one = _mm512_set1_epi16(1);
    const __m512i u = _mm512_and_si512(a, magnitude), v = _mm512_and_si512(b, magnitude);
    __m512i       m = _mm512_setzero_si512(), n = m;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        const __m512i first = _mm512_set1_epi16((short)(begins[i] + above));
        m = _mm512_mask_add_epi16(m, _mm512_cmpge_epu16_mask(u, first), m, one), n = _mm512_mask_add_epi16(n, _mm512_cmpge_epu16_mask(v, first), n, one);
    }
    const __mmask64 smalls = (__mmask64)_mm512_cmplt_epu16_mask(v, least) << 32 | _mm512_cmplt_epu16_mask(u, least);
    return code_signed(a, b, _mm512_mask_mov_epi8(code_table_codes(k, u, v), smalls, code_lower_bytes(m, n)));
}

/* Asks for as much as it encodes at `soon`, unless that is NULL. */
SGK_INLINE void lookup_encode(const lookup_batch *l, bool stream, const struct quant_groups_args *a, int64_t group, uint8_t *q, const uint16_t *x, int count, const uint16_t *soon)
{
    const lookup_tables *t = &lookup[a->version - 1];
    for (int g = 0; g < count; ++g) {
        const uint8_t   *codes = t->codes[l->table[g]];
        const code_table k     = { .low = _mm512_load_si512(codes), .high = _mm512_load_si512(codes + 64), .bias = _mm512_set1_epi8((char)l->bias[g]), .least = (uint16_t)l->least[g] };
        for (int64_t i = 0; i < group; i += 64, q += 64, x += 64) {
            if (soon) __builtin_prefetch(soon), __builtin_prefetch(soon + 32), soon += 64;
            const __m512i u = _mm512_loadu_si512(x), v = _mm512_loadu_si512(x + 32);
            __m512i       all;
            if (!code_table_look_up(&k, true, u, v, &all)) all = lookup_smalls(&k, t->begins[l->table[g]], l->above[g], u, v);
            codes_64_store(stream, q, all);
        }
    }
}
#else
typedef struct {
    float   scale[1];
    int32_t exponent[1];
} lookup_batch;
#endif
#endif
