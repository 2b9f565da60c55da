/* The largest |x| of pieces as they were loaded. T is their format; a pair of 16 bits is compared as one; NaN counts for nothing. */
#pragma once
#include "types.cuh"

DEVICE uint32_t sizes(uint32_t x, const f32 *) { return x & 0x7fffffff; }
DEVICE uint32_t sizes(uint32_t x, const f16 *) { return x & 0x7fff7fff; }
DEVICE uint32_t sizes(uint32_t x, const bf16 *) { return x & 0x7fff7fff; }
DEVICE uint32_t larger(uint32_t x, uint32_t y, const f32 *) { return __float_as_uint(fmaxf(__uint_as_float(x), __uint_as_float(y))); }
DEVICE uint32_t larger(uint32_t x, uint32_t y, const f16 *)
{
    uint32_t r;
    asm("max.f16x2 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y));
    return r;
}
DEVICE uint32_t larger(uint32_t x, uint32_t y, const bf16 *)
{
    uint32_t r;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y));
    return r;
}
DEVICE float largest(uint32_t pair, const f32 *) { return __uint_as_float(pair); }
DEVICE float largest(uint32_t pair, const bf16 *) { return fmaxf(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)); }
DEVICE float largest(uint32_t pair, const f16 *)
{
    const f16 lo = { (uint16_t)pair }, hi = { (uint16_t)(pair >> 16) };
    return fmaxf(to_f32(lo), to_f32(hi));
}
DEVICE float largest_size(const uint4 *p, int n)
{
    const T *const tag  = 0;
    uint32_t       most = 0;
    #pragma unroll
    for (int i = 0; i < n; ++i) {
        const uint32_t of_p = larger(larger(sizes(p[i].x, tag), sizes(p[i].y, tag), tag), larger(sizes(p[i].z, tag), sizes(p[i].w, tag), tag), tag);
        most                = i ? larger(most, of_p, tag) : of_p;
    }
    return fmaxf(largest(most, tag), 0);        /* all of them may be NaN */
}
