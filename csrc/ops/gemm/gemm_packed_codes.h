/* Weights of eight and four bits as the tiles take them: values, and whole steps of a panel in registers. */
#ifndef SGK_GEMM_PACKED_CODES_H
#define SGK_GEMM_PACKED_CODES_H
#include "base/convert.h"
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
/* 64 codes of e4m3, as two rows of 32, to 32 pairs of bf16: both bytes of each by tables of 128. */
typedef struct {
    __m512i high[2], low[2], order;
} e4m3_tables;

static e4m3_tables e4m3_to_bf16(void)
{
    uint8_t       high[128], low[128];
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int i = 0; i < 128; i += 16) {             /* as e4m3_value() */
        const __m512i code = _mm512_add_epi32(lanes, _mm512_set1_epi32(i));
        const __m512i v    = _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(code, 20)), _mm512_set1_ps(0x1p120f)));
        const __m512i bits = _mm512_mask_mov_epi32(v, _mm512_cmpeq_epi32_mask(code, _mm512_set1_epi32(127)), _mm512_set1_epi32(0x7fc00000));
        _mm_storeu_si128((void *)(high + i), _mm512_cvtepi32_epi8(_mm512_srli_epi32(bits, 24)));
        _mm_storeu_si128((void *)(low + i), _mm512_cvtepi32_epi8(_mm512_srli_epi32(bits, 16)));
    }
    /* Quarter q: pairs of columns 4 q to 4 q + 3, then those of 16 columns on. */
    const __m512i first = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 32, 1, 33, 2, 34, 3, 35, 16, 48, 17, 49, 18, 50, 19, 51));
    const __m512i order = _mm512_add_epi8(first, _mm512_setr_epi64(0, 0, 0x0404040404040404, 0x0404040404040404, 0x0808080808080808, 0x0808080808080808, 0x0c0c0c0c0c0c0c0c, 0x0c0c0c0c0c0c0c0c));
    return (e4m3_tables){ { _mm512_loadu_si512(high), _mm512_loadu_si512(high + 64) }, { _mm512_loadu_si512(low), _mm512_loadu_si512(low + 64) }, order };
}

SGK_INLINE void e4m3_step(const e4m3_tables *t, const void *from, __m512i to[2])
{
    const __m512i codes = _mm512_permutexvar_epi8(t->order, _mm512_loadu_si512(from));
    const __m512i sign  = _mm512_and_si512(codes, _mm512_set1_epi8((char)0x80));
    const __m512i high  = _mm512_or_si512(_mm512_permutex2var_epi8(t->high[0], codes, t->high[1]), sign);
    const __m512i low   = _mm512_permutex2var_epi8(t->low[0], codes, t->low[1]);
    to[0]               = _mm512_unpacklo_epi8(low, high);
    to[1]               = _mm512_unpackhi_epi8(low, high);
}

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
SGK_INLINE vf e8m0_lanes(const void *from)
{
    const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(from)), number = _mm512_slli_epi32(code, 23);
    const __m512i some = _mm512_mask_mov_epi32(number, _mm512_testn_epi32_mask(code, code), _mm512_set1_epi32(0x00400000));
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(some, _mm512_cmpeq_epi32_mask(code, _mm512_set1_epi32(255)), _mm512_set1_epi32(0x7fc00000)));
}
#endif

#endif
