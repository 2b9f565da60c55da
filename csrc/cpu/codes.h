/* f32 lanes to 8-bit codes: e4m3 to nearest even, i8 towards zero, u8 to nearest with the zero point 128. */
#ifndef SGK_CODES_H
#define SGK_CODES_H
#include "cpu/simd.h"

/*
 * vi: the lanes as integers. codes(): the code of each lane in its low byte, with anything above it; NaN becomes 0x7f in e4m3, and 0 in integer
 * formats. What is known of v:
 *
 *     CODES_ANY     nothing: it is clamped to least and most
 *     CODES_ENDS    e4m3: least and most are -448 and 448
 *     CODES_WITHIN  it is no NaN, and not further beyond the ends, of i8 and u8 -127 and 127, than a rounding
 *
 * e4m3: with m the greater of |v| and 2^-6, |v| + 2^20 * (the power of two in m) is rounded where the code ends, as the last bit of that sum is
 * the last of v's code, also where that code is subnormal. The exponent of the sum then counts the binades. NaN goes in as 480, whose code would be 0x7f.
 */
enum { CODES_ANY,
       CODES_ENDS,
       CODES_WITHIN };
enum { E4M3_LEAST_NORMAL = 0x3c800000,
       E4M3_MOST         = 0x43e00000,
       E4M3_NAN          = 0x43f00000,
       E4M3_ROUNDS       = (20 << 23) + 24,                 /* the 24 takes the bias of the exponent away */
       F32_EXPONENT      = 0x7f800000,
       F32_MAGNITUDE     = 0x7fffffff };

#if defined(__AVX512F__)

typedef __m512i vi;
SGK_INLINE vi vi_set(int32_t x) { return _mm512_set1_epi32(x); }
SGK_INLINE vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
SGK_INLINE vi magnitudes(const float *p) { return _mm512_and_si512(_mm512_castps_si512(vf_load_f32(p)), vi_set(F32_MAGNITUDE)); }
/* Of a magnitude, with the sign in bit 7 of `sign`. */
SGK_INLINE vi e4m3(vi magnitude, vi sign)
{
    const vi binade = _mm512_and_si512(_mm512_max_epi32(magnitude, vi_set(E4M3_LEAST_NORMAL)), vi_set(F32_EXPONENT)), magic = _mm512_add_epi32(binade, vi_set(E4M3_ROUNDS));
    const vi sum = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(magic)));
    return _mm512_ternarylogic_epi32(vi_set(0x80), sign, _mm512_add_epi32(sum, _mm512_srli_epi32(magic, 20)), 0xca);
}
SGK_INLINE vi codes(sgk_dtype code, int known, vf v, vf least, vf most)
{
    if (code == SGK_E4M3 && known != CODES_ANY) {
        const vi u = _mm512_castps_si512(v), magnitude = _mm512_and_si512(u, vi_set(F32_MAGNITUDE));
        if (known == CODES_WITHIN) return e4m3(magnitude, _mm512_srli_epi32(u, 24));
        const __mmask16 number = _mm512_cmple_epi32_mask(magnitude, vi_set(F32_EXPONENT));
        return e4m3(_mm512_mask_min_epi32(vi_set(E4M3_NAN), number, magnitude, vi_set(E4M3_MOST)), _mm512_maskz_srli_epi32(number, u, 24));
    }
    if (known == CODES_WITHIN) return code == SGK_I8 ? _mm512_cvttps_epi32(v) : _mm512_add_epi32(_mm512_cvtps_epi32(v), vi_set(128));
    const __mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
    const vf        c      = _mm512_mask_min_ps(_mm512_castsi512_ps(vi_set(code == SGK_E4M3 ? E4M3_NAN : 0)), number, most, _mm512_max_ps(least, v));
    if (code == SGK_I8) return _mm512_cvttps_epi32(c);
    if (code == SGK_U8) return _mm512_add_epi32(_mm512_cvtps_epi32(c), vi_set(128));
    return e4m3(_mm512_castps_si512(vf_abs(c)), _mm512_srli_epi32(_mm512_castps_si512(c), 24));
}
SGK_INLINE void codes_store(uint8_t *p, vi c) { _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(c)); }

#elif defined(__AVX2__)

typedef __m256i vi;
SGK_INLINE vi vi_set(int32_t x) { return _mm256_set1_epi32(x); }
SGK_INLINE vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
SGK_INLINE vi magnitudes(const float *p) { return _mm256_and_si256(_mm256_castps_si256(vf_load_f32(p)), vi_set(F32_MAGNITUDE)); }
SGK_INLINE vi e4m3(vi magnitude, vi sign)
{
    const vi binade = _mm256_and_si256(_mm256_max_epi32(magnitude, vi_set(E4M3_LEAST_NORMAL)), vi_set(F32_EXPONENT)), magic = _mm256_add_epi32(binade, vi_set(E4M3_ROUNDS));
    const vi sum = _mm256_add_epi32(_mm256_castps_si256(vf_add(_mm256_castsi256_ps(magnitude), _mm256_castsi256_ps(magic))), _mm256_srli_epi32(magic, 20));
    return _mm256_or_si256(_mm256_and_si256(sum, vi_set(0x7f)), _mm256_and_si256(sign, vi_set(0x80)));
}
SGK_INLINE vi codes(sgk_dtype code, int known, vf v, vf least, vf most)
{
    if (code != SGK_E4M3 && known == CODES_WITHIN) return code == SGK_I8 ? _mm256_cvttps_epi32(v) : _mm256_add_epi32(_mm256_cvtps_epi32(v), vi_set(128));
    const vi nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    if (code == SGK_E4M3 && known != CODES_ANY) {
        const vi u = _mm256_castps_si256(v), magnitude = _mm256_and_si256(u, vi_set(F32_MAGNITUDE));
        if (known == CODES_WITHIN) return e4m3(magnitude, _mm256_srli_epi32(u, 24));
        return e4m3(_mm256_blendv_epi8(_mm256_min_epi32(magnitude, vi_set(E4M3_MOST)), vi_set(E4M3_NAN), nan), _mm256_srli_epi32(_mm256_andnot_si256(nan, u), 24));
    }
    const vf c = _mm256_castsi256_ps(_mm256_blendv_epi8(_mm256_castps_si256(vf_min(most, vf_max(least, v))), vi_set(code == SGK_E4M3 ? E4M3_NAN : 0), nan));
    if (code == SGK_I8) return _mm256_cvttps_epi32(c);
    if (code == SGK_U8) return _mm256_add_epi32(_mm256_cvtps_epi32(c), vi_set(128));
    return e4m3(_mm256_castps_si256(vf_abs(c)), _mm256_srli_epi32(_mm256_castps_si256(c), 24));
}
SGK_INLINE void codes_store(uint8_t *p, vi c)
{
    const vi low   = _mm256_and_si256(c, vi_set(0xff));
    const vi words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    _mm_storel_epi64((void *)p, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_castsi256_si128(words)));
}

#else

typedef uint32x4_t vi;
SGK_INLINE vi vi_set(int32_t x) { return vreinterpretq_u32_s32(vdupq_n_s32(x)); }
SGK_INLINE vi e4m3(vi magnitude, vi sign)
{
    const vi magic = vaddq_u32(vandq_u32(vmaxq_u32(magnitude, vi_set(E4M3_LEAST_NORMAL)), vi_set(F32_EXPONENT)), vi_set(E4M3_ROUNDS));
    const vi sum   = vreinterpretq_u32_f32(vf_add(vreinterpretq_f32_u32(magnitude), vreinterpretq_f32_u32(magic)));
    return vbslq_u32(vi_set(0x80), sign, vaddq_u32(sum, vshrq_n_u32(magic, 20)));
}
SGK_INLINE vi codes(sgk_dtype code, int known, vf v, vf least, vf most)
{
    if (code == SGK_E4M3 && known == CODES_WITHIN) return e4m3(vreinterpretq_u32_f32(vf_abs(v)), vshrq_n_u32(vreinterpretq_u32_f32(v), 24));
    const vf c = vbslq_f32(vceqq_f32(v, v), vf_min(most, vf_max(least, v)), vreinterpretq_f32_u32(vi_set(code == SGK_E4M3 ? E4M3_NAN : 0)));
    if (code == SGK_I8) return vreinterpretq_u32_s32(vcvtq_s32_f32(c));
    if (code == SGK_U8) return vreinterpretq_u32_s32(vaddq_s32(vcvtnq_s32_f32(c), vdupq_n_s32(128)));
    return e4m3(vreinterpretq_u32_f32(vf_abs(c)), vshrq_n_u32(vreinterpretq_u32_f32(c), 24));
}
SGK_INLINE void codes_store(uint8_t *p, vi c)
{
    const uint16x4_t words = vmovn_u32(c);
    const uint32_t   bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
    memcpy(p, &bytes, sizeof bytes);
}

#endif

/* The codes of the first n lanes of v, clamped. */
SGK_INLINE void encode(sgk_dtype code, uint8_t *p, int64_t n, vf v, float least, float most)
{
    const vi c = codes(code, CODES_ANY, v, vf_set(least), vf_set(most));
    if (n >= VF) {
        codes_store(p, c);
    } else {
        uint8_t lanes[VF];
        codes_store(lanes, c);
        memcpy(p, lanes, (size_t)n);
    }
}

/* How a run of elements is encoded: times or by `by`, with `rounds` rounded to their own format after that, clamped. */
typedef struct {
    float by, least, most;
    bool  divide;
    int   known;
    bool  rounds;
} code_scale;

SGK_INLINE vf scaled(sgk_dtype t, const code_scale *k, vf v)
{
    const vf x = k->divide ? vf_div(v, vf_set(k->by)) : vf_mul(v, vf_set(k->by));
    return k->rounds ? vf_rounded_result(t, x) : x;
}
SGK_INLINE vi codes_scaled(sgk_dtype t, sgk_dtype code, const code_scale *k, vf v) { return codes(code, k->known, scaled(t, k, v), vf_set(k->least), vf_set(k->most)); }

/*
 * 64 elements at p[i] to 64 codes at q; `stream`: around the caches, and q is a multiple of 64. Elements of 16 bits come in pairs: bf16 is an f32
 * less its low half, so that the lower and the upper elements of all pairs are a shift and a mask away.
 */
#if defined(__AVX512F__)
/* The low bytes of two vectors, those of the second behind those of the first in every lane. */
SGK_INLINE vi codes_beside(vi low, vi high) { return _mm512_ternarylogic_epi32(vi_set(0xff), low, _mm512_slli_epi32(high, 8), 0xca); }
SGK_INLINE vi codes_of_pairs(sgk_dtype t, sgk_dtype code, const code_scale *k, const void *p, int64_t i)
{
    vf evens, odds;
    vf_split_bf16((const uint16_t *)p + i, &evens, &odds);
    return codes_beside(codes_scaled(t, code, k, evens), codes_scaled(t, code, k, odds));
}
SGK_INLINE vi codes_of_two(sgk_dtype t, sgk_dtype code, const code_scale *k, const void *p, int64_t i)
{
    return codes_beside(codes_scaled(t, code, k, vf_load(t, p, i)), codes_scaled(t, code, k, vf_load(t, p, i + VF)));
}
/* Two vectors whose lanes hold codes of two neighbours. */
SGK_INLINE vi codes_join_pairs(vi a, vi b)
{
    const vi words = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return _mm512_permutex2var_epi16(a, words, b);
}
/* Two vectors whose lanes hold codes of two vectors. */
SGK_INLINE vi codes_join_vectors(vi a, vi b)
{
#if defined(__AVX512VBMI__)
    const vi bytes = _mm512_set_epi8(125, 121, 117, 113, 109, 105, 101, 97, 93, 89, 85, 81, 77, 73, 69, 65, 124, 120, 116, 112, 108, 104, 100, 96, 92, 88, 84, 80, 76, 72, 68, 64,
                                     61, 57, 53, 49, 45, 41, 37, 33, 29, 25, 21, 17, 13, 9, 5, 1, 60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0);
    return _mm512_permutex2var_epi8(a, bytes, b);
#else
    const __m256i first  = _mm256_set_m128i(_mm512_cvtepi32_epi8(_mm512_srli_epi32(a, 8)), _mm512_cvtepi32_epi8(a));
    const __m256i second = _mm256_set_m128i(_mm512_cvtepi32_epi8(_mm512_srli_epi32(b, 8)), _mm512_cvtepi32_epi8(b));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
#endif
}
#if defined(__AVX512VBMI__)
/*
 * Codes by bits, of numbers x times `by` that are 2^-120 of what is encoded, no NaN and not further beyond the ends than a rounding. Then the exponent
 * is that of the code, subnormal codes are subnormal numbers, and the code is what the bits are above the twentieth: half of one is added and the
 * rest cut off. In the middle between two codes that is right every second time, so that is looked for: an element of *least becomes 0. Then all of it
 * is done again with `exact`, where what is in the middle becomes the even code.
 */
SGK_INLINE vi codes_small_product(bool exact, vf x, vf by)
{
    const vi u = _mm512_castps_si512(vf_mul(x, by));
    return exact ? _mm512_add_epi32(_mm512_add_epi32(u, vi_set(0x7ffff)), _mm512_and_si512(_mm512_srli_epi32(u, 20), vi_set(1))) : u;
}
SGK_INLINE vi codes_small_round(bool exact, vi halves) { return exact ? halves : _mm512_add_epi16(halves, _mm512_set1_epi16(8)); }

/* Around them: subnormal numbers are not to be flushed to zero. */
enum { CODES_FLUSHES = 0x8040 };                        /* MXCSR */
SGK_INLINE unsigned codes_small_begin(void)
{
    const unsigned flags = _mm_getcsr();
    if (flags & CODES_FLUSHES) _mm_setcsr(flags & ~(unsigned)CODES_FLUSHES);
    return flags;
}
SGK_INLINE void codes_small_end(unsigned flags)
{
    if (flags & CODES_FLUSHES) _mm_setcsr(flags);
}

/* Of four vectors: quarter q has four codes of each vector's quarter q. */
SGK_INLINE vi codes_small_quarters(bool exact, const vf *x, vf by, vi *least)
{
    const vi upper  = _mm512_set_epi16(63, 61, 59, 57, 31, 29, 27, 25, 55, 53, 51, 49, 23, 21, 19, 17, 47, 45, 43, 41, 15, 13, 11, 9, 39, 37, 35, 33, 7, 5, 3, 1);
    const vi lower  = _mm512_set_epi16(62, 60, 58, 56, 30, 28, 26, 24, 54, 52, 50, 48, 22, 20, 18, 16, 46, 44, 42, 40, 14, 12, 10, 8, 38, 36, 34, 32, 6, 4, 2, 0);
    const vi fields = _mm512_set1_epi64(0x3828180834241404);                    /* four codes, then the bytes with their signs */
    vi       two[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        const vi u = codes_small_product(exact, x[2 * i], by), v = codes_small_product(exact, x[2 * i + 1], by);
        const vi halves = codes_small_round(exact, _mm512_permutex2var_epi16(u, upper, v));
        if (!exact) *least = _mm512_min_epu16(*least, _mm512_ternarylogic_epi32(halves, _mm512_set1_epi16(15), _mm512_permutex2var_epi16(u, lower, v), 0xea));
        two[i] = _mm512_multishift_epi64_epi8(fields, halves);
    }
    const vf a = _mm512_castsi512_ps(two[0]), b = _mm512_castsi512_ps(two[1]);
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)0x80), _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd)), _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)), 0xca);
}

/* Of 64 numbers in the order of vf_load_pairs. Here an element of *least with an even number becomes 0 wherever a low half is 0; few are, where the largest number has no code of its own. */
SGK_INLINE vi codes_small_split(bool exact, const float *x, vf by, vi *least)
{
    const vi upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const vi odd   = _mm512_set1_epi16((short)0xff00);
    const vi a = codes_small_product(exact, vf_load_f32(x), by), b = codes_small_product(exact, vf_load_f32(x + VF), by);
    const vi c = codes_small_product(exact, vf_load_f32(x + 2 * VF), by), d = codes_small_product(exact, vf_load_f32(x + 3 * VF), by);
    if (!exact) *least = _mm512_min_epu16(*least, _mm512_min_epu16(_mm512_min_epu16(a, b), _mm512_min_epu16(c, d)));
    const vi evens = codes_small_round(exact, _mm512_permutex2var_epi16(a, upper, c)), odds = codes_small_round(exact, _mm512_permutex2var_epi16(b, upper, d));
    const vi bits  = _mm512_ternarylogic_epi32(odd, _mm512_slli_epi16(odds, 4), _mm512_srli_epi16(evens, 4), 0xca);
    const vi signs = _mm512_ternarylogic_epi32(odd, odds, _mm512_srli_epi16(evens, 8), 0xca);
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)0x80), signs, bits, 0xca);
}
#endif
/* Codes of 64 numbers in the order of vf_load_pairs. */
SGK_INLINE void codes_64_split(sgk_dtype code, bool stream, const code_scale *k, uint8_t *q, const float *x)
{
    const vi all = codes_join_pairs(codes_of_two(SGK_F32, code, k, x, 0), codes_of_two(SGK_F32, code, k, x, 2 * VF));
    if (stream) _mm512_stream_si512((void *)q, all);
    else _mm512_storeu_si512(q, all);
}
SGK_INLINE void codes_64(sgk_dtype t, sgk_dtype code, bool stream, const code_scale *k, uint8_t *q, const void *p, int64_t i)
{
    const vi all = t == SGK_BF16 ? codes_join_pairs(codes_of_pairs(t, code, k, p, i), codes_of_pairs(t, code, k, p, i + 2 * VF))
                                 : codes_join_vectors(codes_of_two(t, code, k, p, i), codes_of_two(t, code, k, p, i + 2 * VF));
    if (stream) _mm512_stream_si512((void *)q, all);
    else _mm512_storeu_si512(q, all);
}
#else
SGK_INLINE void codes_64(sgk_dtype t, sgk_dtype code, bool stream, const code_scale *k, uint8_t *q, const void *p, int64_t i)
{
    (void)stream;
    for (int j = 0; j < 64; j += VF) codes_store(q + j, codes_scaled(t, code, k, vf_load(t, p, i + j)));
}
#endif

/* Elements [first, first + n) of p to n codes: what does not fill vectors. Once for all formats. */
static __attribute__((noinline, unused)) void codes_few(sgk_dtype t, sgk_dtype code, const code_scale *k, uint8_t *q, const void *p, int64_t first, int64_t n)
{
    for (int64_t i = 0; i < n; i += VF) {
        const int64_t m = n - i < VF ? n - i : VF;
        encode(code, q + i, m, scaled(t, k, vf_load_part(t, p, first + i, m)), k->least, k->most);
    }
}

/* The same of any n. */
SGK_INLINE void codes_run(sgk_dtype t, sgk_dtype code, bool stream, const code_scale *k, uint8_t *q, const void *p, int64_t first, int64_t n)
{
    const int64_t to_line = stream ? (int64_t)(-(uintptr_t)q % 64) : 0;
    int64_t       i       = to_line < n ? to_line : n;
    if (i) codes_few(t, code, k, q, p, first, i);
    for (; i + 64 <= n; i += 64) codes_64(t, code, stream, k, q + i, p, first + i);
    for (; i + VF <= n; i += VF) codes_store(q + i, codes_scaled(t, code, k, vf_load(t, p, first + i)));
    if (i < n) codes_few(t, code, k, q + i, p, first + i, n - i);
}

/* codes_run() with what is known as a constant; what is not the usual case goes through the caches. */
SGK_INLINE void codes_known(sgk_dtype t, sgk_dtype code, bool stream, const code_scale *k, uint8_t *q, const void *p, int64_t first, int64_t n)
{
    const code_scale any = { k->by, k->least, k->most, k->divide, CODES_ANY, k->rounds }, ends = { k->by, k->least, k->most, k->divide, CODES_ENDS, k->rounds };
    const code_scale within = { k->by, k->least, k->most, k->divide, CODES_WITHIN, k->rounds };
    if (k->known == CODES_WITHIN) codes_run(t, code, stream, &within, q, p, first, n);
    else if (code == SGK_E4M3 && k->known == CODES_ENDS) codes_run(t, code, false, &ends, q, p, first, n);
    else codes_run(t, code, stream && code != SGK_E4M3, &any, q, p, first, n);
}

/*
 * bf16 times one number, with `rounds` rounded to bf16, as e4m3, by a table. An element is a sign, an exponent e and 7 bits; what those bits times the
 * number become is looked up, and each step of e adds 8 to the code. That holds from the least normal number of e4m3 on; what is smaller, and NaN, takes the long way.
 */
#if defined(__AVX512VBMI__)
typedef struct {
    __m512i  low, high;                                 /* codes of 1.b times 1.`mantissa`, for b of 7 bits */
    __m512i  bias;                                      /* of codes, for the exponents */
    uint32_t mantissa;                                  /* ~0: there are no codes yet */
    uint16_t least, most;                               /* magnitudes: the first that is in the table; the first of the largest code */
    int      smalls, tops;                              /* how many there are of 1.b below least and most, or less 128 */
    int      rest;                                      /* so many runs are not looked up */
    bool     long_lived;                                /* for more than a row: worth knowing where subnormal codes begin, too */
    uint32_t small_by;                                  /* of which number that is known; 0: none */
    uint16_t small[8];                                  /* the first magnitude of codes 1 to 8 */
} code_table;

SGK_INLINE void code_table_clear(code_table *k)
{
    const __m512i zero = _mm512_setzero_si512();
    *k                 = (code_table){ zero, zero, zero, ~0u, 0, 0, 0, 0, 0, false, 0, { 0 } };
}

/* How many of its codes are below one. */
SGK_INLINE int codes_below(const code_table *k, int code)
{
    const __m512i c = _mm512_set1_epi8((char)code);
    return __builtin_popcountll(_mm512_cmplt_epu8_mask(k->low, c)) + __builtin_popcountll(_mm512_cmplt_epu8_mask(k->high, c));
}

/* Whether there is a table for that number; all calls for a table have the same `rounds`. */
SGK_INLINE bool code_table_set(code_table *k, float by, bool rounds)
{
    const uint32_t u = f32_bits(by), mantissa = u & 0x7fffff;
    const int      e = (int)(u >> 23) - 127, first = 121 - e, last = 135 - e;      /* exponents of bf16, with their bias */
    if (first < 2 || last > 254) return false;          /* NaN, infinity, 0 and negative numbers are so too */
    if (mantissa != k->mantissa) {
        const code_scale one = { f32_from_bits(mantissa | 0x3f800000), 0, 0, false, CODES_WITHIN, rounds };
        uint16_t         x[128];
        uint8_t          q[128];
        for (int i = 0; i < 128; ++i) x[i] = (uint16_t)(0x3f80 + i);
        codes_64(SGK_BF16, SGK_E4M3, false, &one, q, x, 0), codes_64(SGK_BF16, SGK_E4M3, false, &one, q + 64, x, 64);
        k->low = _mm512_loadu_si512(q), k->high = _mm512_loadu_si512(q + 64);
        k->mantissa = mantissa;
        /* 448 is 1.75 * 2^8 and 3.5 * 2^7; what becomes 2 * 2^-7 or more does so among subnormal codes too. */
        const int top = codes_below(k, 0x3e);
        k->tops       = codes_below(k, 0x3f) > top ? top : codes_below(k, 0x46) - 128;
        k->smalls     = codes_below(k, 0x40) - 128;
    }
    k->most  = (uint16_t)((last << 7) + k->tops);
    k->least = (uint16_t)((first << 7) + k->smalls);
    k->bias  = _mm512_set1_epi8((char)(8 * (e - 127)));
    return true;
}

/* Of 64 bf16, in two vectors: the lower and the upper bytes. */
SGK_INLINE __m512i code_lower_bytes(__m512i a, __m512i b)
{
    const __m512i evens = _mm512_set_epi8(126, 124, 122, 120, 118, 116, 114, 112, 110, 108, 106, 104, 102, 100, 98, 96, 94, 92, 90, 88, 86, 84, 82, 80, 78, 76, 74, 72, 70, 68, 66, 64,
                                          62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return _mm512_permutex2var_epi8(a, evens, b);
}
SGK_INLINE __m512i code_upper_bytes(__m512i a, __m512i b)
{
    const __m512i odds = _mm512_set_epi8(127, 125, 123, 121, 119, 117, 115, 113, 111, 109, 107, 105, 103, 101, 99, 97, 95, 93, 91, 89, 87, 85, 83, 81, 79, 77, 75, 73, 71, 69, 67, 65,
                                         63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi8(a, odds, b);
}
SGK_INLINE __m512i code_signed(__m512i a, __m512i b, __m512i codes) { return _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)0x80), code_upper_bytes(a, b), codes, 0xca); }

/* Codes of magnitudes from k->least on, in two vectors. */
SGK_INLINE __m512i code_table_codes(const code_table *k, __m512i u, __m512i v)
{
    const __m512i mantissas = code_lower_bytes(u, v), exponents = code_lower_bytes(_mm512_srli_epi16(u, 4), _mm512_srli_epi16(v, 4));      /* times 8, with bits of no use below */
    return _mm512_add_epi8(_mm512_add_epi8(_mm512_and_si512(exponents, _mm512_set1_epi8((char)0xf8)), k->bias), _mm512_permutex2var_epi8(k->low, mantissas, k->high));
}

/* 64 elements to *codes; false where one is not in the table. `within`: all are finite, and none has a larger code than k->most. */
SGK_INLINE bool code_table_look_up(const code_table *k, bool within, __m512i a, __m512i b, __m512i *codes)
{
    const __m512i   magnitude = _mm512_set1_epi16(0x7fff), least = _mm512_set1_epi16((short)k->least), most = _mm512_set1_epi16((short)k->most);
    const __m512i   numbers = _mm512_set1_epi16((short)(0x7f80 - k->least));
    __m512i         u = _mm512_and_si512(a, magnitude), v = _mm512_and_si512(b, magnitude);
    const __mmask32 outside = within ? _mm512_cmplt_epu16_mask(u, least) | _mm512_cmplt_epu16_mask(v, least)
                                     : _mm512_cmpgt_epu16_mask(_mm512_sub_epi16(u, least), numbers) | _mm512_cmpgt_epu16_mask(_mm512_sub_epi16(v, least), numbers);
    if (__builtin_expect(outside, 0)) return false;
    if (!within) u = _mm512_min_epu16(u, most), v = _mm512_min_epu16(v, most);
    *codes = code_signed(a, b, code_table_codes(k, u, v));
    return true;
}

/* Where the subnormal codes of numbers times k->small_by begin, which are among the five binades below the table's and the first one of that. */
static __attribute__((noinline, unused)) void code_table_set_smalls(code_table *k, const code_scale *scale)
{
    enum { BINADES = 6 };
    const code_scale within = { scale->by, -448, 448, false, CODES_WITHIN, scale->rounds };
    const int        begin  = (k->least >> 7) - (BINADES - 1);
    uint16_t         x[BINADES * 128];
    uint8_t          q[BINADES * 128];
    for (int i = 0; i < BINADES * 128; ++i) x[i] = (uint16_t)((begin << 7) + i);
    codes_run(SGK_BF16, SGK_E4M3, false, &within, q, x, 0, BINADES * 128);
    for (int code = 1, i = 0; code <= 8; ++code) {
        while (q[i] < code) ++i;
        k->small[code - 1] = x[i];
    }
    k->small_by = f32_bits(scale->by);
}

/* 64 elements, some of which are below k->least; false where one is NaN, or where it is not worth it. */
SGK_INLINE bool code_table_look_up_smalls(code_table *k, const code_scale *scale, __m512i a, __m512i b, __m512i *codes)
{
    const __m512i magnitude = _mm512_set1_epi16(0x7fff), most = _mm512_set1_epi16((short)k->most), least = _mm512_set1_epi16((short)k->least), one = _mm512_set1_epi16(1);
    const __m512i infinity = _mm512_set1_epi16(0x7f80);
    __m512i       u = _mm512_and_si512(a, magnitude), v = _mm512_and_si512(b, magnitude), m = _mm512_setzero_si512(), n = m;
    if (!k->long_lived || k->least < 7 << 7 || (_mm512_cmpgt_epu16_mask(u, infinity) | _mm512_cmpgt_epu16_mask(v, infinity))) return false;
    if (k->small_by != f32_bits(scale->by)) code_table_set_smalls(k, scale);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        const __m512i first = _mm512_set1_epi16((short)k->small[i]);
        m = _mm512_mask_add_epi16(m, _mm512_cmpge_epu16_mask(u, first), m, one), n = _mm512_mask_add_epi16(n, _mm512_cmpge_epu16_mask(v, first), n, one);
    }
    const __mmask64 smalls = (__mmask64)_mm512_cmplt_epu16_mask(v, least) << 32 | _mm512_cmplt_epu16_mask(u, least);
    u = _mm512_min_epu16(u, most), v = _mm512_min_epu16(v, most);
    *codes = code_signed(a, b, _mm512_mask_mov_epi8(code_table_codes(k, u, v), smalls, code_lower_bytes(m, n)));
    return true;
}
SGK_INLINE void codes_64_store(bool stream, uint8_t *q, __m512i codes)
{
    if (stream) _mm512_stream_si512((void *)q, codes);
    else _mm512_storeu_si512(q, codes);
}

/* 64 elements; false, with nothing written, where one is not in the table. */
SGK_INLINE bool codes_64_looked_up(code_table *k, const code_scale *scale, bool stream, uint8_t *q, const uint16_t *p)
{
    const __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 32);
    __m512i       codes;
    if (!code_table_look_up(k, false, a, b, &codes) && !code_table_look_up_smalls(k, scale, a, b, &codes)) return false;
    codes_64_store(stream, q, codes);
    return true;
}
#else
typedef struct {
    int  rest;
    bool long_lived;
} code_table;
SGK_INLINE void code_table_clear(code_table *k) { k->rest = 0, k->long_lived = false; }
SGK_INLINE bool code_table_set(code_table *k, float by, bool rounds)
{
    (void)k, (void)by, (void)rounds;
    return false;
}
SGK_INLINE bool codes_64_looked_up(code_table *k, const code_scale *scale, bool stream, uint8_t *q, const uint16_t *p)
{
    (void)k, (void)scale, (void)stream, (void)q, (void)p;
    return false;
}
#endif

/* As codes_run with CODES_ENDS, for bf16 to e4m3; the table is that of k->by. Where it often has no answer it is left alone for a while. */
SGK_INLINE void codes_looked_up(bool stream, code_table *table, const code_scale *k, uint8_t *q, const void *p, int64_t first, int64_t n)
{
    const code_scale ends = { k->by, -448, 448, false, CODES_ENDS, k->rounds };
    if (table->rest > 0) {
        --table->rest;
        codes_run(SGK_BF16, SGK_E4M3, stream, &ends, q, p, first, n);
        return;
    }
    const int64_t to_line = stream ? (int64_t)(-(uintptr_t)q % 64) : 0;
    int64_t       i = to_line < n ? to_line : n, missing = 0;
    if (i) codes_few(SGK_BF16, SGK_E4M3, &ends, q, p, first, i);
    for (; i + 64 <= n; i += 64)
        if (!codes_64_looked_up(table, &ends, stream, q + i, (const uint16_t *)p + first + i)) {
            codes_64(SGK_BF16, SGK_E4M3, stream, &ends, q + i, p, first + i);
            missing += 64;
        }
    if (i < n) codes_few(SGK_BF16, SGK_E4M3, &ends, q + i, p, first + i, n - i);
    if (4 * missing > n) table->rest = 15;
}

/* The largest magnitude of n elements, NaN left out. */
SGK_INLINE float amax_of_numbers(sgk_dtype t, const void *p, int64_t first, int64_t n)
{
    vf      m0 = vf_zero(), m1 = vf_zero();
    int64_t i = 0;
    for (; i + 2 * VF <= n; i += 2 * VF) {
        m0 = vf_max(vf_abs(vf_load(t, p, first + i)), m0);
        m1 = vf_max(vf_abs(vf_load(t, p, first + i + VF)), m1);
    }
    for (int64_t m; i < n; i += m) {
        m  = n - i < VF ? n - i : VF;
        m0 = vf_max(vf_abs(m == VF ? vf_load(t, p, first + i) : vf_load_part(t, p, first + i, m)), m0);
    }
    return vf_most(vf_max(m0, m1));
}

/*
 * The same; `finite` tells whether all are finite numbers, false where that is not known. Magnitudes stand in the order of their bits, NaN above
 * infinity.
 */
SGK_INLINE float amax_run(sgk_dtype t, const void *p, int64_t first, int64_t n, bool *finite)
{
    *finite = false;
#if defined(__AVX512F__) || defined(__AVX2__)
    if (t == SGK_F32 && n >= VF) {
        const float *x  = (const float *)p + first;
        int64_t      i  = 0;
        vi           m0 = vi_set(0), m1 = m0;
        for (; i + 2 * VF <= n; i += 2 * VF) m0 = vi_max(m0, magnitudes(x + i)), m1 = vi_max(m1, magnitudes(x + i + VF));
        for (; i < n; i += VF) m0 = vi_max(m0, magnitudes(x + (i + VF <= n ? i : n - VF)));    /* the last step may take elements that were seen */
        m0 = vi_max(m0, m1);
#if defined(__AVX512F__)
        const __m256i h = _mm256_max_epi32(_mm512_castsi512_si256(m0), _mm512_extracti64x4_epi64(m0, 1));
#else
        const __m256i h = m0;
#endif
        __m128i q      = _mm_max_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
        q              = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0x4e));
        const int most = _mm_cvtsi128_si32(_mm_max_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
        *finite        = most < F32_EXPONENT && most > 27 << 23;     /* a scale made of less than 2^-100 may be off by half of itself */
        if (most <= F32_EXPONENT) return f32_from_bits((uint32_t)most);
    }
    if (t != SGK_F32 && n >= 2 * VF) {
        const uint16_t *x = (const uint16_t *)p + first;
        int64_t         i = 0;
#if defined(__AVX512F__)
        const vi sign = _mm512_set1_epi16((short)0x8000);
        vi       m0 = vi_set(0), m1 = m0;
        for (; i + 4 * VF <= n; i += 4 * VF) {
            m0 = _mm512_max_epu16(m0, _mm512_andnot_si512(sign, _mm512_loadu_si512(x + i)));
            m1 = _mm512_max_epu16(m1, _mm512_andnot_si512(sign, _mm512_loadu_si512(x + i + 2 * VF)));
        }
        for (; i < n; i += 2 * VF)                          /* the last step may take elements that were seen */
            m0 = _mm512_max_epu16(m0, _mm512_andnot_si512(sign, _mm512_loadu_si512(x + (i + 2 * VF <= n ? i : n - 2 * VF))));
        m0              = _mm512_max_epu16(m0, m1);
        const __m256i h = _mm256_max_epu16(_mm512_castsi512_si256(m0), _mm512_extracti64x4_epi64(m0, 1));
#else
        const vi sign = _mm256_set1_epi16((short)0x8000);
        vi       m0 = vi_set(0), m1 = m0;
        for (; i + 4 * VF <= n; i += 4 * VF) {
            m0 = _mm256_max_epu16(m0, _mm256_andnot_si256(sign, _mm256_loadu_si256((const void *)(x + i))));
            m1 = _mm256_max_epu16(m1, _mm256_andnot_si256(sign, _mm256_loadu_si256((const void *)(x + i + 2 * VF))));
        }
        for (; i < n; i += 2 * VF)
            m0 = _mm256_max_epu16(m0, _mm256_andnot_si256(sign, _mm256_loadu_si256((const void *)(x + (i + 2 * VF <= n ? i : n - 2 * VF)))));
        const __m256i h = _mm256_max_epu16(m0, m1);
#endif
        const __m128i q = _mm_max_epu16(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1)), ones = _mm_set1_epi16(-1);
        const int     most     = 0xffff ^ _mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(q, ones)), 0);
        const int     infinity = t == SGK_BF16 ? 0x7f80 : 0x7c00;
        *finite                = most < infinity;
        if (most <= infinity) return t == SGK_BF16 ? f32_from_bits((uint32_t)most << 16) : _cvtsh_ss((unsigned short)most);
    }
#endif
    return amax_of_numbers(t, p, first, n);
}

#endif
