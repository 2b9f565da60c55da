/*
 * Number formats in kernels. f16 and bf16 are their own types, so that a kernel shaped by -DT=bf16 reads the same for all formats:
 * to_f32(x) widens, from_f32(&x, v) rounds once to nearest even.
 */
#pragma once
#include "base/types.h"

#define DEVICE static __device__ __forceinline__
#define INF    __uint_as_float(0x7f800000)

typedef float f32;
struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

DEVICE float to_f32(f32 x) { return x; }
DEVICE float to_f32(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
DEVICE float to_f32(f16 x)
{
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
    return f;
}

DEVICE void from_f32(f32 *x, float v) { *x = v; }
DEVICE void from_f32(bf16 *x, float v) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(x->bits) : "f"(v)); }
DEVICE void from_f32(f16 *x, float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(x->bits) : "f"(v)); }

/* Two f32 to a packed pair, the first in the low half. */
DEVICE uint32_t pack_bf16x2(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
DEVICE uint32_t pack_f16x2(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

/* 16 bytes of T in f32: PIECE<T> elements, PIECE = 16 / sizeof(T). The overload is chosen by the tag. */
DEVICE void unpack16(float *v, uint4 u, const f32 *)
{
    v[0] = __uint_as_float(u.x), v[1] = __uint_as_float(u.y), v[2] = __uint_as_float(u.z), v[3] = __uint_as_float(u.w);
}
DEVICE void unpack16(float *v, uint4 u, const bf16 *)
{
    const uint32_t w[4] = { u.x, u.y, u.z, u.w };
    #pragma unroll
    for (int i = 0; i < 4; ++i) v[2 * i] = __uint_as_float(w[i] << 16), v[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
}
DEVICE void unpack16(float *v, uint4 u, const f16 *)
{
    const uint32_t w[4] = { u.x, u.y, u.z, u.w };
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        f16 lo = { (uint16_t)(w[i] & 0xffff) }, hi = { (uint16_t)(w[i] >> 16) };
        v[2 * i] = to_f32(lo), v[2 * i + 1] = to_f32(hi);
    }
}
DEVICE uint4 pack16(const float *v, const f32 *)
{
    return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
}
DEVICE uint4 pack16(const float *v, const bf16 *)
{
    return make_uint4(pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3]), pack_bf16x2(v[4], v[5]), pack_bf16x2(v[6], v[7]));
}
DEVICE uint4 pack16(const float *v, const f16 *)
{
    return make_uint4(pack_f16x2(v[0], v[1]), pack_f16x2(v[2], v[3]), pack_f16x2(v[4], v[5]), pack_f16x2(v[6], v[7]));
}

/* Index tensors are i32 or i64; `wide` says which. */
DEVICE int64_t load_index(const void *p, int64_t i, bool wide) { return wide ? ((const int64_t *)p)[i] : ((const int32_t *)p)[i]; }
