/* A matrix of 16 x 16 pairs of bf16, or fours of bytes: rows become columns. */
#ifndef SGK_GEMM_TURN_H
#define SGK_GEMM_TURN_H
#include "cpu/simd.h"

#if defined(__AVX512F__)
SGK_INLINE void turn16(__m512i x[16])
{
    __m512i y[16];
    #pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        y[i]     = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    #pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {           /* x[i + j]: quarter q has column 4 q + j of rows i to i + 3 */
        x[i]     = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    #pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i even = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88), odd = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
        const __m512i even_below = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88), odd_below = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
        y[j]      = _mm512_shuffle_i32x4(even, even_below, 0x88);
        y[4 + j]  = _mm512_shuffle_i32x4(odd, odd_below, 0x88);
        y[8 + j]  = _mm512_shuffle_i32x4(even, even_below, 0xdd);
        y[12 + j] = _mm512_shuffle_i32x4(odd, odd_below, 0xdd);
    }
    #pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) x[i] = y[i];
}
#endif

#endif
