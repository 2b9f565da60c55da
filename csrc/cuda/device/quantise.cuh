/*
 * f32 to 8-bit codes, four at a time. NaN is one code on every GPU: 0x7f in e4m3, 0 in i8, the zero point in u8.
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
    const uint32_t u = __float_as_uint(v), magnitude = u & 0x7fffffff;
    const uint32_t normal = (magnitude + (magnitude >> 20 & 1) + 0x7ffffu - (120u << 23)) >> 20;
    const uint32_t small  = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 16384.0f)) & 0xff;
    const uint32_t code   = magnitude > 0x7f800000 ? 0x7f : magnitude < 0x3c800000 ? small
                                                                                   : normal;
    return code | (u >> 24 & 0x80);
}
DEVICE uint32_t e4m3x2(float lo, float hi) { return e4m3_code(lo) | e4m3_code(hi) << 8; }
#endif

/* v is clamped and keeps NaN positive. */
DEVICE uint32_t e4m3x4(const float v[4]) { return e4m3x2(v[0], v[1]) | e4m3x2(v[2], v[3]) << 16; }

/* Towards zero; a NaN converts to 0. */
DEVICE uint32_t i8x4(const float v[4])
{
    return (uint32_t)(__float2int_rz(v[0]) & 0xff) | (uint32_t)(__float2int_rz(v[1]) & 0xff) << 8 |
           (uint32_t)(__float2int_rz(v[2]) & 0xff) << 16 | (uint32_t)(__float2int_rz(v[3]) & 0xff) << 24;
}

/* To nearest even, zero point 128. */
DEVICE uint32_t u8x4(const float v[4])
{
    return (uint32_t)(__float2int_rn(v[0]) + 128) | (uint32_t)(__float2int_rn(v[1]) + 128) << 8 |
           (uint32_t)(__float2int_rn(v[2]) + 128) << 16 | (uint32_t)(__float2int_rn(v[3]) + 128) << 24;
}

DEVICE uint32_t codes_x4(sgk_dtype code, const float v[4]) { return code == SGK_E4M3 ? e4m3x4(v) : code == SGK_I8 ? i8x4(v)
                                                                                                                  : u8x4(v); }

DEVICE uint8_t code_of(sgk_dtype code, float v)
{
    const float four[4] = { v, v, v, v };
    return (uint8_t)codes_x4(code, four);
}

/* The codes of a piece of 16 bytes: four of f32, eight of a 16-bit format. */
DEVICE void store_codes4(uint8_t *q, sgk_dtype code, const float v[4]) { *(uint32_t *)q = codes_x4(code, v); }
DEVICE void store_codes8(uint8_t *q, sgk_dtype code, const float v[8]) { *(uint2 *)q = make_uint2(codes_x4(code, v), codes_x4(code, v + 4)); }
