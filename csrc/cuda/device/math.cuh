/* The special function unit as it is: within 2 units in the last place, subnormal arguments and results are 0. The compiler's own
 * __expf and __fdividef scale around subnormals, which costs more than the instruction. */
#pragma once
#include "types.cuh"

#define LOG2_E 1.44269504f                              /* e^x is 2^(x LOG2_E) */

DEVICE float exp2_approx(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Within 2^-22 of the logarithm of numbers from 1/2 to 2, and of itself elsewhere. */
DEVICE float log2_approx(float x)
{
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float reciprocal_approx(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* x / (1 + e^-x). */
DEVICE float silu_approx(float x) { return x * reciprocal_approx(1.0f + exp2_approx(-LOG2_E * x)); }
