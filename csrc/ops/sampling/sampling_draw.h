/*
 * The arithmetic of a draw, the same on every device: all integers, so that the order of a sum cannot matter.
 *
 * A probability is taken by its key: its bits, when it is positive, which order as its value does; 0 otherwise. It counts with its weight, a
 * multiple of the row's scale:
 *
 *     weight = floor(p / 2^(E + 1) * 2^weight_bits)     2^E <= the row's maximum < 2^(E + 1)
 *
 * where weight_bits = 63 - (bits of V), so that a row sums to less than 2^63.
 */
#ifndef SGK_SAMPLING_DRAW_H
#define SGK_SAMPLING_DRAW_H
#include "base/types.h"

#ifdef __CUDACC__
#define BOTH static __device__ __forceinline__
#else
#define BOTH static inline
#endif

/* 0 for 0, negative and NaN; without a branch, for the compilers' sake. */
BOTH uint32_t key_of(uint32_t bits) { return bits & -(uint32_t)(bits - 1u < 0x7f800000u); }

/* A number is fraction * 2^(exponent - 150); infinity counts as 2^128. */
BOTH int32_t exponent_of(uint32_t key) { return key >> 23 ? (int32_t)(key >> 23) : 1; }
BOTH uint32_t fraction_of(uint32_t key) { return (key & 0x7fffff) | (key >> 23 ? 0x800000u : 0); }

/* What a fraction is shifted left by, or right where this is negative. At most weight_bits - 24. */
BOTH int32_t weight_shift(uint32_t key, uint32_t top_key, int32_t weight_bits)
{
    return weight_bits - 24 - (exponent_of(top_key) - exponent_of(key));
}

/* The part of a weight that does not fit left shifts: weight = small_weight << max(shift, 0). Less than 2^24. */
BOTH uint32_t small_weight(uint32_t key, int32_t shift)
{
    return shift >= 0 ? fraction_of(key) : shift > -24 ? fraction_of(key) >> -shift
                                                       : 0;
}

BOTH uint64_t weight_of(uint32_t key, uint32_t top_key, int32_t weight_bits)
{
    const int32_t shift = weight_shift(key, top_key, weight_bits);
    return (uint64_t)small_weight(key, shift) << (shift > 0 ? shift : 0);
}

/* The least sum that is a share top_p < 1 of total. */
BOTH uint64_t share_of(uint64_t total, float top_p)
{
    const double share = (double)top_p * (double)total;
    uint64_t     n     = share > 0 ? (uint64_t)share : 0;
    n += (double)n < share;
    return n < 1 ? 1 : n > total ? total
                                 : n;
}

BOTH uint64_t multiply_high(uint64_t a, uint64_t b)
{
#ifdef __CUDACC__
    return __umul64hi(a, b);
#else
    __extension__ typedef unsigned __int128 u128;
    return (uint64_t)((u128)a * b >> 64);
#endif
}

/* Philox 4x32-10: the first 64 bits of the block that `counter` has under `seed`. */
BOTH uint64_t philox(uint64_t seed, uint64_t counter)
{
    uint32_t x0 = (uint32_t)counter, x1 = (uint32_t)(counter >> 32), x2 = 0, x3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = (uint64_t)x0 * 0xD2511F53u, b = (uint64_t)x2 * 0xCD9E8D57u;
        x0 = (uint32_t)(b >> 32) ^ x1 ^ k0;
        x2 = (uint32_t)(a >> 32) ^ x3 ^ k1;
        x1 = (uint32_t)b;
        x3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (uint64_t)x1 << 32 | x0;
}

/* Where in [0, kept) the draw falls: the index is the first whose sum up to and with itself exceeds it. kept > 0. */
BOTH uint64_t draw_below(uint64_t kept, uint64_t seed, uint64_t counter) { return multiply_high(philox(seed, counter), kept); }

#endif
