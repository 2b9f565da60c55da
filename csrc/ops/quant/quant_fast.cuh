/* silu(gate) * up by few instructions, for the quantisers. */
#pragma once
#include "types.cuh"

/* Within 32 units in the last place of quant_silu, for results that are not tiny; see quant.cu. */
DEVICE float fast_silu(float g)
{
    float e, r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(g * -1.44269504f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + e));
    return g * r;
}

/* The same as a product in f32, rounded: that is exact, but for what becomes 0 either way. */
DEVICE uint32_t product(uint32_t x, uint32_t y, const bf16 *)
{
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "r"(0x80008000u));
    return r;
}
