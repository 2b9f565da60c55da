/* Weights of eight and four bits as the tiles take them: values, and whole steps of a panel in registers. */
#ifndef SGK_GEMM_PACKED_CODES_H
#define SGK_GEMM_PACKED_CODES_H
#include "base/convert.h"
#include "cpu/e4m3.h"
#include "cpu/simd.h"
#include "gemm_packed.h"

static const float e2m1[16] = { 0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6 };

/* e4m3 by its bits: as those of an f32 it is 2^120 times too small, also where it is subnormal. */
SGK_INLINE float e4m3_value(uint32_t code)
{
    const uint32_t magnitude = code & 0x7f;
    const float    v         = f32_from_bits(magnitude << 20) * 0x1p120f;
    return f32_from_bits((magnitude == 0x7f ? 0x7fc00000u : f32_bits(v)) | (code & 0x80) << 24);
}

#if defined(__AVX512BF16__)
/* 16 bytes of mxfp4 to 16 pairs of bf16, by a table that looks at five bits: it has all numbers twice. */
SGK_INLINE __m512i e2m1_to_bf16(void)
{
    const __m256i all = _mm256_setr_epi16(0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, (short)0x8000, (short)0xbf00, (short)0xbf80, (short)0xbfc0, (short)0xc000,
                                          (short)0xc040, (short)0xc080, (short)0xc0c0);
    return _mm512_broadcast_i64x4(all);
}
SGK_INLINE __m512i e2m1_pairs(__m512i table, const void *from)
{
    const __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128(from));
    return _mm512_permutexvar_epi16(_mm512_or_si512(b, _mm512_slli_epi32(b, 12)), table);
}

/* 16 scales of mxfp4: powers of two by their exponents. */
SGK_INLINE vf e8m0_of(__m512i code)
{
    const __m512i number = _mm512_max_epu32(_mm512_slli_epi32(code, 23), _mm512_set1_epi32(0x00400000));
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(number, _mm512_cmpeq_epi32_mask(code, _mm512_set1_epi32(255)), _mm512_set1_epi32(0x7fc00000)));
}
SGK_INLINE vf e8m0_lanes(const void *from) { return e8m0_of(_mm512_cvtepu8_epi32(_mm_loadu_si128(from))); }
#endif

#endif
