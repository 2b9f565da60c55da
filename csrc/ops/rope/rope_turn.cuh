/* Cosine and sine of one pair's angle, times the attention factor. */
#pragma once
#include "rope_norm.h"
#include "types.cuh"

/* The angle is brought into one turn with 2 pi in two parts, of which the first has so few bits that its multiples are exact. */
DEVICE void turn(float *c, float *s, const qk_norm_rope_args *a, int pair, float position)
{
    float f = exp2f((float)pair * a->step);
    if (a->scaled) f *= fmaf(__saturatef(((float)pair - a->low) * a->slope), a->gain, 1.0f);
    const float angle = position * f, n = rintf(angle * 0.15915494f), reduced = fmaf(-n, 1.9353072e-3f, fmaf(-n, 6.28125f, angle));
    *c = __cosf(reduced) * a->attention_factor;
    *s = __sinf(reduced) * a->attention_factor;
}
