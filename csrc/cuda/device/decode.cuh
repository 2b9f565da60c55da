/*
 * 8-bit floats to pairs of f16, which hold each of them exactly: four codes to two pairs, in order. e5m2 is the upper half of an f16. e4m3
 * is converted by an instruction from sm_89 on; before it by moving its bits, with exponents too low by 8 (a product sets that right, also of the
 * subnormal ones), and the one code for NaN by itself.
 */
#pragma once
#include "types.cuh"

DEVICE void e5m2x4_to_f16(uint32_t pairs[2], uint32_t codes)
{
    pairs[0] = __byte_perm(codes, 0, 0x1404);
    pairs[1] = __byte_perm(codes, 0, 0x3424);
}

#if __CUDA_ARCH__ >= 890
DEVICE void e4m3x4_to_f16(uint32_t pairs[2], uint32_t codes)
{
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pairs[0]) : "h"((uint16_t)codes));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pairs[1]) : "h"((uint16_t)(codes >> 16)));
}
#else
DEVICE uint32_t e4m3x2_to_f16(uint32_t high_bytes)
{
    const uint32_t magnitude = high_bytes >> 1 & 0x3f803f80, nan = (magnitude + 0x00800080) & 0x40004000;
    uint32_t       r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(magnitude | (high_bytes & 0x80008000)), "r"(0x5c005c00));      /* by 2^8 */
    return r | nan | (nan - (nan >> 14));
}
DEVICE void e4m3x4_to_f16(uint32_t pairs[2], uint32_t codes)
{
    pairs[0] = e4m3x2_to_f16(__byte_perm(codes, 0, 0x1404));
    pairs[1] = e4m3x2_to_f16(__byte_perm(codes, 0, 0x3424));
}
#endif
