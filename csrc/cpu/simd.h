/*
 * f32 lanes of whatever width this file is compiled for: vf, VF of them. Loads and stores convert from and to the float formats.
 * The format is a constant argument, so that the compiler makes one tight loop for each.
 */
#ifndef SGK_SIMD_H
#define SGK_SIMD_H
#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif
#include <string.h>
#include "base/convert.h"
#include "cpu/cpu.h"

typedef float v4 __attribute__((vector_size(16)));         /* four f32, with C's operators */
SGK_INLINE v4 v4_load(const float *p)
{
    v4 v;
    memcpy(&v, p, sizeof v);
    return v;
}
SGK_INLINE void v4_store(float *p, v4 v) { memcpy(p, &v, sizeof v); }

/*
 * Every width has these. vf_min and vf_max give their second operand where one is NaN. vf_swap_pairs: lanes 0 and 1, 2 and 3, ...
 * change places; vf_evens, vf_odds: both are the first, the second of them; vf_unzip: of two vectors all the first, all the second. vf_equal_mask: bit i is set where lanes i are equal; NaN equals nothing. vf_pow2: a * 2^whole. vf_sums4: the
 * sums of four vectors, each by the same tree over its lanes.
 */
/* clang-format off */
#if defined(__AVX512F__)

typedef __m512 vf;
enum { VF = 16 };
SGK_INLINE vf    vf_zero(void)              { return _mm512_setzero_ps(); }
SGK_INLINE vf    vf_set(float x)            { return _mm512_set1_ps(x); }
SGK_INLINE vf    vf_add(vf a, vf b)         { return _mm512_add_ps(a, b); }
SGK_INLINE vf    vf_sub(vf a, vf b)         { return _mm512_sub_ps(a, b); }
SGK_INLINE vf    vf_mul(vf a, vf b)         { return _mm512_mul_ps(a, b); }
SGK_INLINE vf    vf_div(vf a, vf b)         { return _mm512_div_ps(a, b); }
SGK_INLINE vf    vf_fma(vf a, vf b, vf c)   { return _mm512_fmadd_ps(a, b, c); }
SGK_INLINE vf    vf_min(vf a, vf b)         { return _mm512_min_ps(a, b); }
SGK_INLINE vf    vf_max(vf a, vf b)         { return _mm512_max_ps(a, b); }
SGK_INLINE vf    vf_abs(vf a)               { return _mm512_abs_ps(a); }
SGK_INLINE vf    vf_round(vf a)             { return _mm512_roundscale_ps(a, 8); }
SGK_INLINE vf    vf_pow2(vf a, vf whole)    { return _mm512_scalef_ps(a, whole); }
SGK_INLINE float vf_sum(vf a)               { return _mm512_reduce_add_ps(a); }
SGK_INLINE float vf_most(vf a)              { return _mm512_reduce_max_ps(a); }
SGK_INLINE vf    vf_swap_pairs(vf a)         { return _mm512_permute_ps(a, 0xb1); }
SGK_INLINE vf    vf_evens(vf a)              { return _mm512_moveldup_ps(a); }
SGK_INLINE vf    vf_odds(vf a)               { return _mm512_movehdup_ps(a); }
SGK_INLINE void vf_unzip(vf a, vf b, vf *evens, vf *odds)
{
    const __m512i at = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    *evens = _mm512_permutex2var_ps(a, at, b), *odds = _mm512_permutex2var_ps(a, _mm512_add_epi32(at, _mm512_set1_epi32(1)), b);
}
SGK_INLINE unsigned vf_equal_mask(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
SGK_INLINE v4 vf_sums4(vf a, vf b, vf c, vf d)
{
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 s  = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 h  = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}
SGK_INLINE vf    vf_load_f32(const float *p)       { return _mm512_loadu_ps(p); }
SGK_INLINE void  vf_store_f32(float *p, vf v)      { _mm512_storeu_ps(p, v); }
SGK_INLINE vf    vf_load_f16(const uint16_t *p)    { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
SGK_INLINE void  vf_store_f16(uint16_t *p, vf v)   { _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
SGK_INLINE vf    vf_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}
SGK_INLINE vf    vf_load_e4m3(const uint8_t *p)
{
    const __m512i u = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)), code = _mm512_and_si512(u, _mm512_set1_epi32(0x7f));
    const __m512i normal = _mm512_add_epi32(_mm512_slli_epi32(code, 20), _mm512_set1_epi32(120 << 23));
    const __m512  small = _mm512_mul_ps(_mm512_cvtepi32_ps(code), _mm512_set1_ps(0x1p-9f));
    __m512i       r = _mm512_mask_mov_epi32(normal, _mm512_cmplt_epi32_mask(code, _mm512_set1_epi32(8)), _mm512_castps_si512(small));
    r = _mm512_mask_mov_epi32(r, _mm512_cmpeq_epi32_mask(code, _mm512_set1_epi32(0x7f)), _mm512_set1_epi32(0x7fc00000));
    return _mm512_castsi512_ps(_mm512_or_si512(r, _mm512_slli_epi32(_mm512_and_si512(u, _mm512_set1_epi32(0x80)), 24)));
}
/* By integers: rounds to nearest even, and NaN stays NaN. */
SGK_INLINE __m256i vf_bf16_by_integers(vf v)
{
    const __m512i u = _mm512_castps_si512(v), lsb = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), lsb), 16);
    const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), r, quiet));
}
#if defined(__AVX512BF16__)
/* The instructions turn subnormal numbers into zero, so those take the integers. */
SGK_INLINE __m256i vf_bf16(vf v)
{
    if (__builtin_expect(_mm512_fpclass_ps_mask(v, 0x20), 0)) return vf_bf16_by_integers(v);
    return (__m256i)_mm512_cvtneps_pbh(v);
}
SGK_INLINE __m512i vf_bf16_2(vf a, vf b)
{
    const __m512i   both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    const __mmask32 zero = _mm512_testn_epi16_mask(both, _mm512_set1_epi16(0x7fff));
    if (__builtin_expect(zero, 0) && (_mm512_fpclass_ps_mask(a, 0x20) | _mm512_fpclass_ps_mask(b, 0x20)))
        return _mm512_inserti64x4(_mm512_castsi256_si512(vf_bf16_by_integers(a)), vf_bf16_by_integers(b), 1);
    return both;
}
#else
SGK_INLINE __m256i vf_bf16(vf v)            { return vf_bf16_by_integers(v); }
SGK_INLINE __m512i vf_bf16_2(vf a, vf b)    { return _mm512_inserti64x4(_mm512_castsi256_si512(vf_bf16(a)), vf_bf16(b), 1); }
#endif
SGK_INLINE void vf_store_bf16(uint16_t *p, vf v) { _mm256_storeu_si256((void *)p, vf_bf16(v)); }

/* Two vectors in a row; vf_stream2 goes around the caches and takes addresses that are multiples of 64. */
SGK_INLINE __m512i vf_halves2(sgk_dtype t, vf a, vf b)
{
    if (t == SGK_BF16) return vf_bf16_2(a, b);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)),
                              _mm512_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), 1);
}
SGK_INLINE void vf_store2(sgk_dtype t, void *p, int64_t i, vf a, vf b)
{
    if (t == SGK_F32) _mm512_storeu_ps((float *)p + i, a), _mm512_storeu_ps((float *)p + i + 16, b);
    else _mm512_storeu_si512((uint16_t *)p + i, vf_halves2(t, a, b));
}
SGK_INLINE void vf_stream2(sgk_dtype t, void *p, int64_t i, vf a, vf b)
{
    if (t == SGK_F32) _mm512_stream_ps((float *)p + i, a), _mm512_stream_ps((float *)p + i + 16, b);
    else _mm512_stream_si512((void *)((uint16_t *)p + i), vf_halves2(t, a, b));
}
#define VF_STREAMS

/* bf16 by pairs: see vf_load_pairs. */
SGK_INLINE void vf_split_bf16(const uint16_t *p, vf *a, vf *b)
{
    const __m512i both = _mm512_loadu_si512(p);
    *a = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)), *b = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
}
SGK_INLINE void vf_join_bf16(bool stream, uint16_t *p, vf a, vf b)
{
    const __m512i turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = _mm512_permutexvar_epi16(turn, vf_bf16_2(a, b));
    if (stream) _mm512_stream_si512((void *)p, both);
    else _mm512_storeu_si512(p, both);
}
#if defined(__AVX512BF16__)
/*
 * To look for subnormal numbers takes a tenth of a norm. So what is written elsewhere than it is read may be computed between these two without: results that would be subnormal
 * are flushed to zero, which the processor notes, and where vf_flush_end() says that there were some all is to be done again with vf_store_pairs(). Not for what is subnormal on the
 * way, as an exponential may be, and both around a call that is not inlined: the compiler does not know of them.
 */
#define VF_FLUSHES
enum { VF_FLUSH = 0x8000, VF_UNDERFLOWS = 0x0010, VF_MASKS_UNDERFLOW = 0x0800 };        /* MXCSR */
SGK_INLINE unsigned vf_flush_begin(void)
{
    const unsigned before = _mm_getcsr();
    _mm_setcsr((before & ~(unsigned)VF_UNDERFLOWS) | VF_FLUSH | VF_MASKS_UNDERFLOW);
    return before;
}
SGK_INLINE bool vf_flush_end(unsigned before)
{
    const bool none = !(_mm_getcsr() & VF_UNDERFLOWS);
    _mm_setcsr(before);
    return none;
}
SGK_INLINE void vf_join_flushed(bool stream, uint16_t *p, vf a, vf b)
{
    const __m512i turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = _mm512_permutexvar_epi16(turn, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    if (stream) _mm512_stream_si512((void *)p, both);
    else _mm512_storeu_si512(p, both);
}
#endif

#elif defined(__AVX2__)

typedef __m256 vf;
enum { VF = 8 };
SGK_INLINE vf    vf_zero(void)              { return _mm256_setzero_ps(); }
SGK_INLINE vf    vf_set(float x)            { return _mm256_set1_ps(x); }
SGK_INLINE vf    vf_add(vf a, vf b)         { return _mm256_add_ps(a, b); }
SGK_INLINE vf    vf_sub(vf a, vf b)         { return _mm256_sub_ps(a, b); }
SGK_INLINE vf    vf_mul(vf a, vf b)         { return _mm256_mul_ps(a, b); }
SGK_INLINE vf    vf_div(vf a, vf b)         { return _mm256_div_ps(a, b); }
SGK_INLINE vf    vf_fma(vf a, vf b, vf c)   { return _mm256_fmadd_ps(a, b, c); }
SGK_INLINE vf    vf_min(vf a, vf b)         { return _mm256_min_ps(a, b); }
SGK_INLINE vf    vf_max(vf a, vf b)         { return _mm256_max_ps(a, b); }
SGK_INLINE vf    vf_abs(vf a)               { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
SGK_INLINE vf    vf_round(vf a)             { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* a * 2^whole in two steps, so that results down to the subnormals come out. */
SGK_INLINE vf vf_pow2(vf a, vf whole)
{
    const __m256i n = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(whole, _mm256_set1_ps(252)), _mm256_set1_ps(-252)));
    const __m256i half = _mm256_srai_epi32(n, 1), rest = _mm256_sub_epi32(n, half);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256 x = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    const __m256 y = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(a, x), y);
}
SGK_INLINE float vf_sum(vf a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
SGK_INLINE float vf_most(vf a)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
SGK_INLINE vf    vf_swap_pairs(vf a)         { return _mm256_permute_ps(a, 0xb1); }
SGK_INLINE vf    vf_evens(vf a)              { return _mm256_moveldup_ps(a); }
SGK_INLINE vf    vf_odds(vf a)               { return _mm256_movehdup_ps(a); }
SGK_INLINE void vf_unzip(vf a, vf b, vf *evens, vf *odds)
{
    const __m256d e = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), o = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd));
    *evens = _mm256_castpd_ps(_mm256_permute4x64_pd(e, 0xd8)), *odds = _mm256_castpd_ps(_mm256_permute4x64_pd(o, 0xd8));
}
SGK_INLINE unsigned vf_equal_mask(vf a, vf b) { return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
SGK_INLINE v4 vf_sums4(vf a, vf b, vf c, vf d)
{
    const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    const __m256 h  = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}
SGK_INLINE vf    vf_load_f32(const float *p)       { return _mm256_loadu_ps(p); }
SGK_INLINE void  vf_store_f32(float *p, vf v)      { _mm256_storeu_ps(p, v); }
SGK_INLINE vf    vf_load_f16(const uint16_t *p)    { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
SGK_INLINE void  vf_store_f16(uint16_t *p, vf v)   { _mm_storeu_si128((void *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
SGK_INLINE vf    vf_load_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
}
SGK_INLINE vf    vf_load_e4m3(const uint8_t *p)
{
    const __m256i u = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)), code = _mm256_and_si256(u, _mm256_set1_epi32(0x7f));
    const __m256i normal = _mm256_add_epi32(_mm256_slli_epi32(code, 20), _mm256_set1_epi32(120 << 23));
    const __m256  small = _mm256_mul_ps(_mm256_cvtepi32_ps(code), _mm256_set1_ps(0x1p-9f));
    __m256i       r = _mm256_blendv_epi8(normal, _mm256_castps_si256(small), _mm256_cmpgt_epi32(_mm256_set1_epi32(8), code));
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc00000), _mm256_cmpeq_epi32(code, _mm256_set1_epi32(0x7f)));
    return _mm256_castsi256_ps(_mm256_or_si256(r, _mm256_slli_epi32(_mm256_and_si256(u, _mm256_set1_epi32(0x80)), 24)));
}
/* In the upper halves. */
SGK_INLINE __m256i vf_bf16_above(vf v)
{
    const __m256i u = _mm256_castps_si256(v), lsb = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), lsb), quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    return _mm256_blendv_epi8(r, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}
SGK_INLINE __m128i vf_bf16(vf v)
{
    const __m256i w = _mm256_srli_epi32(vf_bf16_above(v), 16);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(w, w), 0x08));
}
SGK_INLINE void vf_store_bf16(uint16_t *p, vf v) { _mm_storeu_si128((void *)p, vf_bf16(v)); }

/* Two vectors in a row; vf_stream2 goes around the caches and takes addresses that are multiples of 32. */
SGK_INLINE __m256i vf_halves2(sgk_dtype t, vf a, vf b)
{
    if (t == SGK_BF16) return _mm256_set_m128i(vf_bf16(b), vf_bf16(a));
    return _mm256_set_m128i(_mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
SGK_INLINE void vf_store2(sgk_dtype t, void *p, int64_t i, vf a, vf b)
{
    if (t == SGK_F32) _mm256_storeu_ps((float *)p + i, a), _mm256_storeu_ps((float *)p + i + 8, b);
    else _mm256_storeu_si256((void *)((uint16_t *)p + i), vf_halves2(t, a, b));
}
SGK_INLINE void vf_stream2(sgk_dtype t, void *p, int64_t i, vf a, vf b)
{
    if (t == SGK_F32) _mm256_stream_ps((float *)p + i, a), _mm256_stream_ps((float *)p + i + 8, b);
    else _mm256_stream_si256((void *)((uint16_t *)p + i), vf_halves2(t, a, b));
}
#define VF_STREAMS

/* bf16 by pairs: see vf_load_pairs. */
SGK_INLINE void vf_split_bf16(const uint16_t *p, vf *a, vf *b)
{
    const __m256i both = _mm256_loadu_si256((const void *)p);
    *a = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), *b = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
}
SGK_INLINE void vf_join_bf16(bool stream, uint16_t *p, vf a, vf b)
{
    const __m256i both = _mm256_blend_epi16(_mm256_srli_epi32(vf_bf16_above(a), 16), vf_bf16_above(b), 0xaa);
    if (stream) _mm256_stream_si256((void *)p, both);
    else _mm256_storeu_si256((void *)p, both);
}

#else /* NEON, baseline Armv8-A: it converts f16, not bf16 */

typedef float32x4_t vf;
enum { VF = 4 };
SGK_INLINE vf    vf_zero(void)              { return vdupq_n_f32(0); }
SGK_INLINE vf    vf_set(float x)            { return vdupq_n_f32(x); }
SGK_INLINE vf    vf_add(vf a, vf b)         { return vaddq_f32(a, b); }
SGK_INLINE vf    vf_sub(vf a, vf b)         { return vsubq_f32(a, b); }
SGK_INLINE vf    vf_mul(vf a, vf b)         { return vmulq_f32(a, b); }
SGK_INLINE vf    vf_div(vf a, vf b)         { return vdivq_f32(a, b); }
SGK_INLINE vf    vf_fma(vf a, vf b, vf c)   { return vfmaq_f32(c, a, b); }
SGK_INLINE vf    vf_min(vf a, vf b)         { return vbslq_f32(vcltq_f32(a, b), a, b); }        /* FMIN would give NaN for either */
SGK_INLINE vf    vf_max(vf a, vf b)         { return vbslq_f32(vcgtq_f32(a, b), a, b); }
SGK_INLINE vf    vf_abs(vf a)               { return vabsq_f32(a); }
SGK_INLINE vf    vf_round(vf a)             { return vrndnq_f32(a); }
/* As for AVX2. */
SGK_INLINE vf vf_pow2(vf a, vf whole)
{
    const int32x4_t   n = vcvtnq_s32_f32(vf_max(vf_min(whole, vf_set(252)), vf_set(-252)));
    const int32x4_t   half = vshrq_n_s32(n, 1), rest = vsubq_s32(n, half), bias = vdupq_n_s32(127);
    const float32x4_t x = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
    const float32x4_t y = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23));
    return vmulq_f32(vmulq_f32(a, x), y);
}
SGK_INLINE float vf_sum(vf a)               { return vaddvq_f32(a); }
SGK_INLINE float vf_most(vf a)              { return vmaxvq_f32(a); }
SGK_INLINE vf    vf_swap_pairs(vf a)        { return vrev64q_f32(a); }
SGK_INLINE vf    vf_evens(vf a)             { return vtrn1q_f32(a, a); }
SGK_INLINE vf    vf_odds(vf a)              { return vtrn2q_f32(a, a); }
SGK_INLINE void  vf_unzip(vf a, vf b, vf *evens, vf *odds) { *evens = vuzp1q_f32(a, b), *odds = vuzp2q_f32(a, b); }
SGK_INLINE unsigned vf_equal_mask(vf a, vf b)
{
    return vaddvq_u32(vandq_u32(vceqq_f32(a, b), (uint32x4_t){ 1, 2, 4, 8 }));
}
SGK_INLINE v4    vf_sums4(vf a, vf b, vf c, vf d)  { return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)); }
SGK_INLINE vf    vf_load_f32(const float *p)       { return vld1q_f32(p); }
SGK_INLINE void  vf_store_f32(float *p, vf v)      { vst1q_f32(p, v); }
SGK_INLINE vf    vf_load_f16(const uint16_t *p)    { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
SGK_INLINE void  vf_store_f16(uint16_t *p, vf v)   { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
SGK_INLINE vf    vf_load_bf16(const uint16_t *p)   { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
SGK_INLINE vf    vf_load_e4m3(const uint8_t *p)
{
    uint32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    const uint32x4_t  u = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes)))), code = vandq_u32(u, vdupq_n_u32(0x7f));
    const uint32x4_t  normal = vaddq_u32(vshlq_n_u32(code, 20), vdupq_n_u32(120u << 23));
    const float32x4_t small = vmulq_f32(vcvtq_f32_u32(code), vdupq_n_f32(0x1p-9f));
    uint32x4_t        r = vbslq_u32(vcltq_u32(code, vdupq_n_u32(8)), vreinterpretq_u32_f32(small), normal);
    r = vbslq_u32(vceqq_u32(code, vdupq_n_u32(0x7f)), vdupq_n_u32(0x7fc00000), r);
    return vreinterpretq_f32_u32(vorrq_u32(r, vshlq_n_u32(vandq_u32(u, vdupq_n_u32(0x80)), 24)));
}
SGK_INLINE void  vf_store_bf16(uint16_t *p, vf v)
{
    const uint32x4_t u = vreinterpretq_u32_f32(v), lsb = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t r = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), lsb);
    const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), r, quiet), 16));
}

#endif

/* clang-format on */

/* VF elements at p[i]; codes of e4m3 are read, never written. */
SGK_INLINE vf vf_load(sgk_dtype t, const void *p, int64_t i)
{
    return t == SGK_F32 ? vf_load_f32((const float *)p + i) : t == SGK_F16 ? vf_load_f16((const uint16_t *)p + i)
                                                          : t == SGK_E4M3  ? vf_load_e4m3((const uint8_t *)p + i)
                                                                           : vf_load_bf16((const uint16_t *)p + i);
}
SGK_INLINE void vf_store(sgk_dtype t, void *p, int64_t i, vf v)
{
    if (t == SGK_F32) vf_store_f32((float *)p + i, v);
    else if (t == SGK_F16) vf_store_f16((uint16_t *)p + i, v);
    else vf_store_bf16((uint16_t *)p + i, v);
}

/* v as the format holds it. */
SGK_INLINE vf vf_rounded(sgk_dtype t, vf v)
{
#if defined(__AVX512F__)
    if (t == SGK_F16) return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    if (t == SGK_BF16) return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(vf_bf16(v)), 16));
    return v;
#elif defined(__AVX2__)
    if (t == SGK_F16) return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    if (t == SGK_BF16) return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(vf_bf16(v)), 16));
    return v;
#else
    uint32_t lanes[VF];
    if (t == SGK_F32) return v;
    vf_store(t, lanes, 0, v);
    return vf_load(t, lanes, 0);
#endif
}

/* The same of a result of numbers that came from format t, so that what is NaN has no low bits: no branch. */
SGK_INLINE vf vf_rounded_result(sgk_dtype t, vf v)
{
#if defined(__AVX512F__)
    if (t == SGK_BF16) {
        const __m512i u = _mm512_castps_si512(v), lsb = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
        return _mm512_castsi512_ps(_mm512_and_si512(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), lsb), _mm512_set1_epi32((int)0xffff0000)));
    }
#endif
    return vf_rounded(t, v);
}

/* The first n < VF elements at p[i]; the other lanes are 0. Touches nothing behind them. */
SGK_INLINE vf vf_load_part(sgk_dtype t, const void *p, int64_t i, int64_t n)
{
    float         lanes[VF] = { 0 };
    const int64_t size      = t == SGK_F32 ? 4 : t == SGK_E4M3 ? 1
                                                               : 2;
    memcpy(lanes, (const char *)p + i * size, (size_t)(n * size));
    return vf_load(t, lanes, 0);
}
SGK_INLINE void vf_store_part(sgk_dtype t, void *p, int64_t i, int64_t n, vf v)
{
    float         lanes[VF];
    const int64_t size = t == SGK_F32 ? 4 : 2;
    vf_store(t, lanes, 0, v);
    memcpy((char *)p + i * size, lanes, (size_t)(n * size));
}

#if !defined(VF_STREAMS)
SGK_INLINE void vf_store2(sgk_dtype t, void *p, int64_t i, vf a, vf b) { vf_store(t, p, i, a), vf_store(t, p, i + VF, b); }
SGK_INLINE void vf_stream2(sgk_dtype t, void *p, int64_t i, vf a, vf b) { vf_store2(t, p, i, a, b); }
#endif

/*
 * 2 VF elements at p[i] as two vectors: of bf16 those at even and those at odd places, where that is cheaper, otherwise one half and the other. What is
 * computed element by element does not care. `stream`: as vf_stream2.
 */
SGK_INLINE void vf_load_pairs(sgk_dtype t, const void *p, int64_t i, vf *a, vf *b)
{
#if defined(VF_STREAMS)
    if (t == SGK_BF16) {
        vf_split_bf16((const uint16_t *)p + i, a, b);
        return;
    }
#endif
    *a = vf_load(t, p, i), *b = vf_load(t, p, i + VF);
}
/* Whether they are those at even and at odd places. */
SGK_INLINE bool vf_splits(sgk_dtype t)
{
#if defined(VF_STREAMS)
    return t == SGK_BF16;
#else
    (void)t;
    return false;
#endif
}
SGK_INLINE void vf_store_pairs(sgk_dtype t, bool stream, void *p, int64_t i, vf a, vf b)
{
#if defined(VF_STREAMS)
    if (t == SGK_BF16) {
        vf_join_bf16(stream, (uint16_t *)p + i, a, b);
        return;
    }
#endif
    if (stream) vf_stream2(t, p, i, a, b);
    else vf_store2(t, p, i, a, b);
}

/* The same; `flushed`: between vf_flush_begin() and vf_flush_end(). */
SGK_INLINE void vf_store_pairs_of(bool flushed, sgk_dtype t, bool stream, void *p, int64_t i, vf a, vf b)
{
#if defined(VF_FLUSHES)
    if (flushed && t == SGK_BF16) {
        vf_join_flushed(stream, (uint16_t *)p + i, a, b);
        return;
    }
#endif
    (void)flushed;
    vf_store_pairs(t, stream, p, i, a, b);
}

/* What vf_stream2 wrote is seen by other threads after this one; at the end of a range of items. */
SGK_INLINE void vf_stream_end(void)
{
#if defined(VF_STREAMS)
    _mm_sfence();
#endif
}

/* How many of the elements at p[i] lie before the next line of the caches, where vf_stream2 can begin. */
SGK_INLINE int64_t vf_to_line(sgk_dtype t, const void *p, int64_t i)
{
    const int64_t size = t == SGK_F32 ? 4 : 2;
    return (int64_t)(-((uintptr_t)p + (uintptr_t)(i * size)) % 64) / size;
}

/* Asks for the lines of 2 VF elements at p[i]; they need not exist. */
SGK_INLINE void vf_prefetch2(sgk_dtype t, const void *p, int64_t i)
{
    const int64_t size = t == SGK_F32 ? 4 : 2;
    const char   *at   = (const char *)p + i * size;
    __builtin_prefetch(at);
    if (2 * VF * size > 64) __builtin_prefetch(at + 64);
}

/* The same; `once`: of what comes from memory and is read once, so that it need not go through the caches behind the first. */
SGK_INLINE void vf_prefetch2_once(sgk_dtype t, bool once, const void *p, int64_t i)
{
    const int64_t size = t == SGK_F32 ? 4 : 2;
    const char   *at   = (const char *)p + i * size;
    if (!once) {
        vf_prefetch2(t, p, i);
        return;
    }
    __builtin_prefetch(at, 0, 0);
    if (2 * VF * size > 64) __builtin_prefetch(at + 64, 0, 0);
}

/* vf_sum of eight vectors, the same bits. */
SGK_INLINE void vf_sums8(const vf *v, float *sums)
{
#if defined(__AVX512F__)
    vf two[4], four[2];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) two[k] = vf_add(_mm512_shuffle_f32x4(v[2 * k], v[2 * k + 1], 0x44), _mm512_shuffle_f32x4(v[2 * k], v[2 * k + 1], 0xee));
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) four[k] = vf_add(_mm512_shuffle_f32x4(two[2 * k], two[2 * k + 1], 0x88), _mm512_shuffle_f32x4(two[2 * k], two[2 * k + 1], 0xdd));
    const __m512d low = _mm512_castps_pd(four[0]), high = _mm512_castps_pd(four[1]);
    vf            all = vf_add(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    all               = vf_add(all, vf_swap_pairs(all));
    const __m512i at  = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(sums, _mm512_castps512_ps256(_mm512_permutexvar_ps(at, all)));
#else
    for (int k = 0; k < 8; ++k) sums[k] = vf_sum(v[k]);
#endif
}

/* 2^t, within 4 units in the last place, for the formats of 16 bits within 3e-6; 0 and infinity at the ends, NaN stays. */
SGK_INLINE vf vf_exp2_for(sgk_dtype format, vf t)
{
    const bool half = format != SGK_F32;
#if defined(__AVX512F__)
    const vf k = t, r = _mm512_reduce_ps(t, 9);         /* r = t less its floor, 0 for infinity; vf_pow2 takes the floor of k */
    vf       p = half ? vf_set(1.34266848e-2f) : vf_fma(vf_set(1.86713186e-3f), r, vf_set(9.01702537e-3f));
    p          = vf_fma(p, r, vf_set(half ? 5.22424728e-2f : 5.57999180e-2f));
    p          = vf_fma(p, r, vf_set(half ? 2.41280198e-1f : 2.40164448e-1f));
    p          = vf_fma(p, r, vf_set(half ? 6.93044841e-1f : 6.93151312e-1f));
#else
    const vf clamped = vf_max(vf_set(-152), vf_min(vf_set(129), t));    /* min and max give their second operand where one is NaN */
    const vf k = vf_round(clamped), r = vf_sub(clamped, k);
    vf       p = half ? vf_set(9.58285294e-3f) : vf_fma(vf_set(1.32647217e-3f), r, vf_set(9.67151361e-3f));
    p          = vf_fma(p, r, vf_set(half ? 5.59064262e-2f : 5.55073376e-2f));
    p          = vf_fma(p, r, vf_set(half ? 2.40240991e-1f : 2.40222421e-1f));
    p          = vf_fma(p, r, vf_set(half ? 6.93124175e-1f : 6.93146978e-1f));
#endif
    return vf_pow2(vf_fma(p, r, vf_set(1)), k);
}
SGK_INLINE vf vf_exp2(vf t) { return vf_exp2_for(SGK_F32, t); }

/* The same step of n vectors, a constant of at most 8: then the next step finds its operands ready. */
#define VF_EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); ++i)

/*
 * n vectors become 1 + 2^t, what a sigmoid divides by: infinity for t from 128 on; of NaN anything. 2^t is within 3e-6 for the formats of 16 bits,
 * otherwise as vf_exp2.
 */
SGK_INLINE void vf_one_plus_exp2(sgk_dtype format, int n, vf *t)
{
    const bool half = format != SGK_F32;
    vf         r[8], p[8];
#if defined(__AVX512F__)
    VF_EACH(i, n)
    r[i] = _mm512_reduce_ps(t[i], 9);
    if (half) VF_EACH(i, n)
    p[i] = vf_fma(vf_set(1.34266848e-2f), r[i], vf_set(5.22424728e-2f));
    else VF_EACH(i, n)
        p[i] = vf_fma(vf_fma(vf_set(1.86713186e-3f), r[i], vf_set(9.01702537e-3f)), r[i], vf_set(5.57999180e-2f));
    VF_EACH(i, n)
    p[i] = vf_fma(p[i], r[i], vf_set(half ? 2.41280198e-1f : 2.40164448e-1f));
    VF_EACH(i, n)
    p[i] = vf_fma(p[i], r[i], vf_set(half ? 6.93044841e-1f : 6.93151312e-1f));
    VF_EACH(i, n)
    p[i] = vf_fma(p[i], r[i], vf_set(1));
    VF_EACH(i, n)
    p[i] = vf_pow2(p[i], t[i]);
#else
    vf k[8];
    VF_EACH(i, n)
    t[i] = vf_max(vf_set(-126), vf_min(vf_set(128), t[i]));
    VF_EACH(i, n)
    k[i] = vf_add(t[i], vf_set(0x1.8p23f));               /* ends in the whole number next to t */
    VF_EACH(i, n)
    r[i] = vf_sub(t[i], vf_sub(k[i], vf_set(0x1.8p23f)));
    if (half) VF_EACH(i, n)
    p[i] = vf_fma(vf_set(9.58285294e-3f), r[i], vf_set(5.59064262e-2f));
    else VF_EACH(i, n)
        p[i] = vf_fma(vf_fma(vf_set(1.32647217e-3f), r[i], vf_set(9.67151361e-3f)), r[i], vf_set(5.55073376e-2f));
    VF_EACH(i, n)
    p[i] = vf_fma(p[i], r[i], vf_set(half ? 2.40240991e-1f : 2.40222421e-1f));
    VF_EACH(i, n)
    p[i] = vf_fma(p[i], r[i], vf_set(half ? 6.93124175e-1f : 6.93146978e-1f));
    VF_EACH(i, n)
    p[i] = vf_fma(p[i], r[i], vf_set(1));
#if defined(__AVX2__)
    VF_EACH(i, n)
    p[i] = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p[i]), _mm256_slli_epi32(_mm256_castps_si256(k[i]), 23)));
#else
    VF_EACH(i, n)
    p[i] = vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(p[i]), vshlq_n_u32(vreinterpretq_u32_f32(k[i]), 23)));
#endif
#endif
    VF_EACH(i, n)
    t[i] = vf_add(vf_set(1), p[i]);
}

/* e^x, within 2 units in the last place; 0 below -104, infinity above 88.7. NaN stays NaN.
 * 2^k e^r with |r| <= ln 2 / 2, and a polynomial for e^r (Cody and Waite's reduction in two steps). */
SGK_INLINE vf vf_exp(vf x)
{
    const vf clamped = vf_max(vf_set(-104.0f), vf_min(vf_set(88.8f), x));   /* min and max give their second operand where one is NaN */
    const vf k       = vf_round(vf_mul(clamped, vf_set(1.44269504f)));
    const vf r       = vf_fma(k, vf_set(-1.428606765e-06f), vf_fma(k, vf_set(-0.693145752f), clamped));
    vf       p       = vf_set(1.9875691500e-4f);
    p                = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p                = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p                = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p                = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p                = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p                = vf_fma(p, vf_mul(r, r), vf_add(r, vf_set(1)));
    return vf_pow2(p, k);
}

#endif
