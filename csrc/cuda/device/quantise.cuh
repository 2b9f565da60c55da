/*
 * f32 to 8-bit codes, four at a time. What lies beyond the format becomes its largest number. NaN is one code on every GPU: 0x7f in e4m3,
 * 0 in i8, the zero point in u8.
 *
 * e4m3 is rounded to nearest even: by an instruction from sm_89 on, before it in integers:
 *
 *     |v| >= 2^-6   the fraction is cut to three bits with a carry into the exponent, whose bias falls from 127 to 7
 *     below         v + 2^14 has the least e4m3, 2^-9, as its last bit
 */
#pragma once
#include "types.cuh"

DEVICE float clamp_keeping_nan(float v, float least, float most)
{
    const float c = fminf(fmaxf(v, least), most);
    return v == v ? c : __uint_as_float(0x7fffffff);
}

#if __CUDA_ARCH__ >= 890
DEVICE uint32_t e4m3x2(float lo, float hi)
{
    uint16_t r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
    return r;
}
#else
DEVICE uint32_t e4m3_code(float v)
{
    const uint32_t u = __float_as_uint(v), any = u & 0x7fffffff, magnitude = any < 0x43e00000 ? any : 0x43e00000;     /* 448 */
    const uint32_t normal = (magnitude + (magnitude >> 20 & 1) + 0x7ffffu - (120u << 23)) >> 20;
    const uint32_t small  = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 16384.0f)) & 0xff;
    const uint32_t code   = (magnitude < 0x3c800000 ? small : normal) | (u >> 24 & 0x80);
    return any > 0x7f800000 ? 0x7f : code;
}
DEVICE uint32_t e4m3x2(float lo, float hi) { return e4m3_code(lo) | e4m3_code(hi) << 8; }
#endif

DEVICE uint32_t e4m3x4(const float v[4]) { return e4m3x2(v[0], v[1]) | e4m3x2(v[2], v[3]) << 16; }

/* Towards zero. */
DEVICE uint32_t i8_code(float v)
{
    uint32_t r;
    asm("cvt.rzi.s8.f32 %0, %1;" : "=r"(r) : "f"(v));
    return r & 0xff;
}
DEVICE uint32_t i8x4(const float v[4]) { return i8_code(v[0]) | i8_code(v[1]) << 8 | i8_code(v[2]) << 16 | i8_code(v[3]) << 24; }

/* To nearest even, zero point 128; v is within +-127.5. */
DEVICE uint32_t u8x4(const float v[4])
{
    return (uint32_t)(__float2int_rn(v[0]) + 128) | (uint32_t)(__float2int_rn(v[1]) + 128) << 8 |
           (uint32_t)(__float2int_rn(v[2]) + 128) << 16 | (uint32_t)(__float2int_rn(v[3]) + 128) << 24;
}

/* n codes at once: 4, 8 or 16, to an address that is a multiple of n. */
DEVICE void store_codes(uint8_t *q, const uint32_t *codes, int n)
{
    if (n == 4) *(uint32_t *)q = codes[0];
    else if (n == 8) *(uint2 *)q = make_uint2(codes[0], codes[1]);
    else *(uint4 *)q = make_uint4(codes[0], codes[1], codes[2], codes[3]);
}
