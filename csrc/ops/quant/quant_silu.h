/*
 * silu(a) = a / (1 + e^-a) in f32 steps that every device rounds alike; the exponential is that of simd.h's vf_exp, operation by
 * operation. Read by the host compiler and by NVRTC; FMA, MUL, ADD and RINT are single roundings.
 */
#ifndef SGK_QUANT_SILU_H
#define SGK_QUANT_SILU_H
#include "quant.h"

#ifdef __CUDACC__
#define QUANT_FMA(a, b, c) __fmaf_rn(a, b, c)
#define QUANT_MUL(a, b)    __fmul_rn(a, b)
#define QUANT_ADD(a, b)    __fadd_rn(a, b)
#define QUANT_RINT(a)      rintf(a)
#else
#define QUANT_FMA(a, b, c) fmaf(a, b, c)
#define QUANT_MUL(a, b)    ((a) * (b))
#define QUANT_ADD(a, b)    ((a) + (b))
#define QUANT_RINT(a)      rintf(a)
#endif

QUANT_FN float quant_exp(float x)
{
    x               = x > 88.8f ? 88.8f : x;
    x               = x < -104.0f ? -104.0f : x;
    const float k   = QUANT_RINT(QUANT_MUL(x, 1.44269504f));
    const float r   = QUANT_FMA(k, -1.428606765e-06f, QUANT_FMA(k, -0.693145752f, x));
    float       p   = 1.9875691500e-4f;
    p               = QUANT_FMA(p, r, 1.3981999507e-3f);
    p               = QUANT_FMA(p, r, 8.3334519073e-3f);
    p               = QUANT_FMA(p, r, 4.1665795894e-2f);
    p               = QUANT_FMA(p, r, 1.6666665459e-1f);
    p               = QUANT_FMA(p, r, 5.0000001201e-1f);
    p               = QUANT_FMA(p, QUANT_MUL(r, r), QUANT_ADD(r, 1.0f));
    const int32_t n = x == x ? (int32_t)k : 0, half = n >> 1;       /* in two steps: 2^128 is no number */
    return QUANT_MUL(QUANT_MUL(p, QUANT_FROM_BITS((uint32_t)(half + 127) << 23)), QUANT_FROM_BITS((uint32_t)(n - half + 127) << 23));
}

/* The clamp keeps -infinity from becoming infinity over infinity; NaN stays. */
QUANT_FN float quant_silu(float a)
{
    a = a < -QUANT_FLT_MAX ? -QUANT_FLT_MAX : a;
    return a / QUANT_ADD(1.0f, quant_exp(-a));
}

#endif
