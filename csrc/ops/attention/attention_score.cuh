/* What is done to scores. */
#pragma once
#include "attention.h"
#include "math.cuh"

/* cap * tanh(x / cap) within some 1e-7 cap. */
DEVICE float soft_capped(float x, float cap)
{
    const float e = exp2_approx(x / cap * (2 * LOG2_E));
    return cap - 2 * cap * reciprocal_approx(1 + e);
}

DEVICE float sink_of(const attention_args *a, int h)
{
    return a->sinks_dtype == SGK_F32 ? ((const float *)a->sinks)[h] : a->sinks_dtype == SGK_F16 ? to_f32(((const f16 *)a->sinks)[h])
                                                                                                : to_f32(((const bf16 *)a->sinks)[h]);
}
