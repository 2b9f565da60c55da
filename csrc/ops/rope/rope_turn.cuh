/* Cosine and sine of one pair's angle, times the attention factor. */
#pragma once
#include "rope_norm.h"
#include "math.cuh"

#define NEAREST 12582912.0f                             /* 1.5 x 2^23: a sum with it has no fraction, and may be up to 2^22 from it */

/*
 * The angle is brought into one turn with 2 pi in two parts, of which the first has so few bits that its multiples are exact. `pair` is a
 * whole number. Conversions and roundings by their own instructions would wait for the unit that makes exponentials, cosines and sines.
 */
DEVICE void turn(float *c, float *s, const qk_norm_rope_args *a, float pair, float position)
{
    const float f     = exp2_approx(pair * a->step) * fmaf(__saturatef((pair - a->low) * a->slope), a->gain, 1.0f);
    const float angle = position * f, n = __fadd_rn(__fmaf_rn(angle, 0.15915494f, NEAREST), -NEAREST);
    const float reduced = fmaf(-n, 1.9353072e-3f, fmaf(-n, 6.28125f, angle));
    *c                  = __cosf(reduced) * a->attention_factor;
    *s                  = __sinf(reduced) * a->attention_factor;
}
