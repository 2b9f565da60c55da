/* Codes of e4m3 to bf16 where the processor multiplies that: both bytes by tables of 128. */
#ifndef SGK_E4M3_H
#define SGK_E4M3_H
#include "cpu/simd.h"

#if defined(__AVX512BF16__)
typedef struct {
    __m512i high[2], low[2], order;
} e4m3_tables;

static e4m3_tables e4m3_to_bf16(void)
{
    uint8_t       high[128], low[128];
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int i = 0; i < 128; i += 16) {             /* as the bits of an f32 a code is 2^120 times too small, also where it is subnormal */
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

/* 64 codes: those of places 0 to 7, 16 to 23, 32 to 39 and 48 to 55, then the others. */
SGK_INLINE void e4m3_widen(const e4m3_tables *t, __m512i codes, __m512i to[2])
{
    const __m512i sign = _mm512_and_si512(codes, _mm512_set1_epi8((char)0x80));
    const __m512i high = _mm512_or_si512(_mm512_permutex2var_epi8(t->high[0], codes, t->high[1]), sign);
    const __m512i low  = _mm512_permutex2var_epi8(t->low[0], codes, t->low[1]);
    to[0]              = _mm512_unpacklo_epi8(low, high);
    to[1]              = _mm512_unpackhi_epi8(low, high);
}

/* 64 codes, as two rows of 32, to 32 pairs. */
SGK_INLINE void e4m3_pairs(const e4m3_tables *t, __m512i codes, __m512i to[2]) { e4m3_widen(t, _mm512_permutexvar_epi8(t->order, codes), to); }
#endif

#endif
