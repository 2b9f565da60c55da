/* What the kernels do to scores besides the scale. */
#pragma once
#include "attention.h"
#include "math.cuh"
#include "types.cuh"

/* most * tanh(x); with x the score over softcap, and most softcap in the unit that is wanted. 1 - 2 / (1 + e^2x) keeps the sign and both limits. */
DEVICE float attention_softcap(float x, float most) { return most * (1.0f - 2.0f * reciprocal_approx(1.0f + exp2_approx(2 * LOG2_E * x))); }

DEVICE float attention_sink(const attention_args *a, int h)
{
    if (a->sinks_dtype == SGK_F32) return ((const f32 *)a->sinks)[h];
    return a->sinks_dtype == SGK_F16 ? to_f32(((const f16 *)a->sinks)[h]) : to_f32(((const bf16 *)a->sinks)[h]);
}
