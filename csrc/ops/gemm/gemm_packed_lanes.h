/* What the CPU's products with packed weights are made of: lanes of f32 and of i32, each with its step. */
#ifndef SGK_GEMM_PACKED_LANES_H
#define SGK_GEMM_PACKED_LANES_H
#include "cpu/simd.h"
#include "gemm_packed.h"

/* i32 lanes: sum += the products of four neighbours, u8 by s8. */
#if defined(__AVX512F__)
typedef __m512i quads;
SGK_INLINE quads quads_zero(void) { return _mm512_setzero_si512(); }
SGK_INLINE quads quads_load(const void *p) { return _mm512_loadu_si512(p); }
SGK_INLINE void quads_store(void *p, quads v) { _mm512_storeu_si512(p, v); }
SGK_INLINE quads quads_add(quads a, quads b) { return _mm512_add_epi32(a, b); }
SGK_INLINE quads quads_sub(quads a, quads b) { return _mm512_sub_epi32(a, b); }
SGK_INLINE vf quads_to_f32(quads a) { return _mm512_cvtepi32_ps(a); }
SGK_INLINE quads quads_set(uint32_t x) { return _mm512_set1_epi32((int)x); }
SGK_INLINE quads quads_times128(quads a) { return _mm512_slli_epi32(a, 7); }
#if defined(__AVX512VNNI__)
/* Not the intrinsic: GCC 12 copies and spills the sums around it. */
SGK_INLINE quads quads_dot(quads sum, quads x, quads w)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
}
#else
SGK_INLINE quads quads_dot(quads sum, quads x, quads w)
{
    const quads even = _mm512_madd_epi16(_mm512_and_si512(x, _mm512_set1_epi16(0xff)), _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8));
    const quads odd  = _mm512_madd_epi16(_mm512_srli_epi16(x, 8), _mm512_srai_epi16(w, 8));
    return quads_add(sum, quads_add(even, odd));
}
#endif
#elif defined(__AVX2__)
typedef __m256i quads;
SGK_INLINE quads quads_zero(void) { return _mm256_setzero_si256(); }
SGK_INLINE quads quads_load(const void *p) { return _mm256_loadu_si256(p); }
SGK_INLINE void quads_store(void *p, quads v) { _mm256_storeu_si256(p, v); }
SGK_INLINE quads quads_add(quads a, quads b) { return _mm256_add_epi32(a, b); }
SGK_INLINE quads quads_sub(quads a, quads b) { return _mm256_sub_epi32(a, b); }
SGK_INLINE vf quads_to_f32(quads a) { return _mm256_cvtepi32_ps(a); }
SGK_INLINE quads quads_set(uint32_t x) { return _mm256_set1_epi32((int)x); }
SGK_INLINE quads quads_times128(quads a) { return _mm256_slli_epi32(a, 7); }
SGK_INLINE quads quads_dot(quads sum, quads x, quads w)
{
    const quads even = _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    const quads odd  = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(w, 8));
    return quads_add(sum, quads_add(even, odd));
}
#else
typedef int32x4_t quads;
SGK_INLINE quads quads_zero(void) { return vdupq_n_s32(0); }
SGK_INLINE quads quads_load(const void *p) { return vld1q_s32(p); }
SGK_INLINE void quads_store(void *p, quads v) { vst1q_s32(p, v); }
SGK_INLINE quads quads_add(quads a, quads b) { return vaddq_s32(a, b); }
SGK_INLINE quads quads_sub(quads a, quads b) { return vsubq_s32(a, b); }
SGK_INLINE vf quads_to_f32(quads a) { return vcvtq_f32_s32(a); }
SGK_INLINE quads quads_set(uint32_t x) { return vreinterpretq_s32_u32(vdupq_n_u32(x)); }
SGK_INLINE quads quads_times128(quads a) { return vshlq_n_s32(a, 7); }
SGK_INLINE quads quads_dot(quads sum, quads x, quads w)
{
    const uint8x16_t u  = vreinterpretq_u8_s32(x);
    const int8x16_t  s  = vreinterpretq_s8_s32(w);
    const int16x8_t  u0 = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(u))), u1 = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(u)));
    const int16x8_t  s0 = vmovl_s8(vget_low_s8(s)), s1 = vmovl_s8(vget_high_s8(s));
    const int32x4_t  a = vpaddq_s32(vmull_s16(vget_low_s16(u0), vget_low_s16(s0)), vmull_s16(vget_high_s16(u0), vget_high_s16(s0)));
    const int32x4_t  b = vpaddq_s32(vmull_s16(vget_low_s16(u1), vget_low_s16(s1)), vmull_s16(vget_high_s16(u1), vget_high_s16(s1)));
    return quads_add(sum, vpaddq_s32(a, b));
}
#endif

/* f32 lanes: sum += a product, or the products of a pair of bf16. */
SGK_INLINE vf dot_f32(packed_way way, vf sum, vf x, vf w)
{
#if defined(__AVX512BF16__)
    if (way == BY_BF16) return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
#endif
    (void)way;
    return vf_fma(x, w, sum);
}

SGK_INLINE vf broadcast(const uint32_t *x)
{
    float f;
    memcpy(&f, x, 4);
    return vf_set(f);
}

#endif
