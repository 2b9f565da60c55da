/* f32 lanes to 8-bit codes: e4m3 to nearest even, i8 towards zero, u8 to nearest with the zero point 128. */
#ifndef SGK_CODES_H
#define SGK_CODES_H
#include "cpu/simd.h"

/* The code of v, which is within the format; NaN becomes `nan`. VF bytes. */
#if defined(__AVX512F__)
SGK_INLINE void store_codes(sgk_dtype code, uint8_t *p, vf v, uint32_t nan)
{
    __m512i r;
    if (code == SGK_E4M3) {
        const __m512i u = _mm512_castps_si512(v), magnitude = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
        const __m512i odd    = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
        const __m512i normal = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(magnitude, odd), _mm512_set1_epi32(0x7ffff - (120 << 23))), 20);
        /* Beside 2^14 the last bit of an f32 is the least e4m3. */
        const __m512i small = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(16384)));
        r                   = _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x3c800000)), normal, small);
        r                   = _mm512_or_si512(_mm512_and_si512(r, _mm512_set1_epi32(0x7f)), _mm512_and_si512(_mm512_srli_epi32(u, 24), _mm512_set1_epi32(0x80)));
    } else if (code == SGK_I8) {
        r = _mm512_cvttps_epi32(v);
    } else {
        r = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(128));
    }
    r = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), r, _mm512_set1_epi32((int)nan));
    _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(r));
}
#elif defined(__AVX2__)
SGK_INLINE void store_codes(sgk_dtype code, uint8_t *p, vf v, uint32_t nan)
{
    __m256i r;
    if (code == SGK_E4M3) {
        const __m256i u = _mm256_castps_si256(v), magnitude = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
        const __m256i odd    = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
        const __m256i normal = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(magnitude, odd), _mm256_set1_epi32(0x7ffff - (120 << 23))), 20);
        const __m256i small  = _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(16384)));
        r                    = _mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), magnitude));
        r                    = _mm256_or_si256(_mm256_and_si256(r, _mm256_set1_epi32(0x7f)), _mm256_and_si256(_mm256_srli_epi32(u, 24), _mm256_set1_epi32(0x80)));
    } else if (code == SGK_I8) {
        r = _mm256_and_si256(_mm256_cvttps_epi32(v), _mm256_set1_epi32(0xff));
    } else {
        r = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(128));
    }
    r                   = _mm256_blendv_epi8(r, _mm256_set1_epi32((int)nan), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storel_epi64((void *)p, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_castsi256_si128(words)));
}
#else
SGK_INLINE void store_codes(sgk_dtype code, uint8_t *p, vf v, uint32_t nan)
{
    uint32x4_t r;
    if (code == SGK_E4M3) {
        const uint32x4_t u = vreinterpretq_u32_f32(v), magnitude = vandq_u32(u, vdupq_n_u32(0x7fffffff));
        const uint32x4_t odd    = vandq_u32(vshrq_n_u32(magnitude, 20), vdupq_n_u32(1));
        const uint32x4_t normal = vshrq_n_u32(vaddq_u32(vaddq_u32(magnitude, odd), vdupq_n_u32(0x7ffffu - (120u << 23))), 20);
        const uint32x4_t small  = vreinterpretq_u32_f32(vaddq_f32(vreinterpretq_f32_u32(magnitude), vdupq_n_f32(16384)));
        r                       = vbslq_u32(vcltq_u32(magnitude, vdupq_n_u32(0x3c800000)), small, normal);
        r                       = vorrq_u32(vandq_u32(r, vdupq_n_u32(0x7f)), vandq_u32(vshrq_n_u32(u, 24), vdupq_n_u32(0x80)));
    } else if (code == SGK_I8) {
        r = vreinterpretq_u32_s32(vcvtq_s32_f32(v));
    } else {
        r = vreinterpretq_u32_s32(vaddq_s32(vcvtnq_s32_f32(v), vdupq_n_s32(128)));
    }
    r                      = vbslq_u32(vceqq_f32(v, v), r, vdupq_n_u32(nan));
    const uint16x4_t words = vmovn_u32(r);
    const uint32_t   bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
    memcpy(p, &bytes, sizeof bytes);
}
#endif

/* vf_min and vf_max give their second operand where one is NaN: the clamp keeps it, a maximum leaves it out. */
SGK_INLINE vf clamp_keeping_nan(vf v, vf least, vf most) { return vf_min(most, vf_max(least, v)); }

/* The codes of the first n lanes of v, clamped. */
SGK_INLINE void encode(sgk_dtype code, uint8_t *p, int64_t n, vf v, float least, float most)
{
    const uint32_t nan = code == SGK_E4M3 ? 0x7f : code == SGK_U8 ? 128
                                                                  : 0;
    v                  = clamp_keeping_nan(v, vf_set(least), vf_set(most));
    if (n >= VF) {
        store_codes(code, p, v, nan);
    } else {
        uint8_t lanes[VF];
        store_codes(code, lanes, v, nan);
        memcpy(p, lanes, (size_t)n);
    }
}

#endif
