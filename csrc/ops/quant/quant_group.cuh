/* The codes of a group, on the GPU. T is the format of the input: f32, f16 or bf16. */
#pragma once
#include "quant.h"
#include "math.cuh"
#include "quant_size.cuh"
#include "quantise.cuh"

DEVICE float rounded(float v)
{
    T x;
    from_f32(&x, v);
    return to_f32(x);
}

/*
 * x / s, correctly rounded, in three instructions; r is 1 / s, correctly rounded. One step of Newton is enough for every x of up to 11
 * bits (tried: all of them, with all 2^23 s), as long as nothing underflows. For s from 2^-90 to 2^100 that concerns only quotients
 * under 2^-11, whose codes are 0. Zeros keep their sign.
 */
DEVICE float quotient(float x, float s, float r)
{
    const float q = __fmul_rn(x, r);
    return __fmaf_rn(-__fmaf_rn(q, s, -x), r, q);
}

/* n values, a multiple of 4, to the codes of as many bytes. */
DEVICE void encode(uint32_t *codes, float *v, int n, const quant_groups_args &a, const quant_scaling &k)
{
    if (k.divide) {
        if (sizeof(T) == 2 && k.by >= 8.1e-28f && k.by <= 1.2e30f) {
            const float rough = reciprocal_approx(k.by), r = __fmaf_rn(rough, __fmaf_rn(-k.by, rough, 1.0f), rough);
            #pragma unroll
            for (int i = 0; i < n; ++i) v[i] = quotient(v[i], k.by, r);
        } else {
            #pragma unroll
            for (int i = 0; i < n; ++i) v[i] = __fdiv_rn(v[i], k.by);
        }
    } else {
        #pragma unroll
        for (int i = 0; i < n; ++i) v[i] = __fmul_rn(v[i], k.by);
    }
    if (a.clamps) {
        #pragma unroll
        for (int i = 0; i < n; ++i) v[i] = clamp_keeping_nan(v[i], a.least, a.most);
    }
    if (a.code == SGK_E4M3) {
        #pragma unroll
        for (int i = 0; i < n; i += 4) codes[i / 4] = e4m3x4(v + i);
    } else {
        #pragma unroll
        for (int i = 0; i < n; i += 4) codes[i / 4] = i8x4(v + i);
    }
}

/* Of a group alone; `place` is where the scales of its row begin. */
DEVICE void store_scale(const quant_groups_args &a, int64_t place, int64_t column, const quant_scaling &k)
{
    if (!a.ue8m0) {
        ((float *)a.s)[place + column * a.s_column] = k.s;
        return;
    }
    uint8_t *word    = (uint8_t *)((uint32_t *)a.s + place + (column >> 2) * a.s_column);
    word[column & 3] = (uint8_t)(k.exponent + 127);
    if (column == a.groups - 1)
        for (int64_t i = (column & 3) + 1; i < 4; ++i) word[i] = 0;
}

/* Over the 2^lanes_log2 threads of a group; `lanes_log2` is the same as a constant, or -1. An exchange beyond the group is with the thread itself. */
DEVICE float group_max(float amax, int lanes_log2, const quant_groups_args &a)
{
    #pragma unroll
    for (int o = 0; o < (lanes_log2 < 0 ? 5 : lanes_log2); ++o) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, 1 << o & ((1 << a.lanes_log2) - 1)));
    return amax;
}

/* Of the groups of a warp, each of which has 2^lanes_log2 threads. Four columns, all in one warp, make a word; those behind the last add 0. */
DEVICE void store_scales(const quant_groups_args &a, int64_t place, uint32_t column, uint32_t lane, bool live, const quant_scaling &k)
{
    if (!a.ue8m0) {
        if (live && lane == 0) ((float *)a.s)[place + column * a.s_column] = k.s;
        return;
    }
    uint32_t word = live ? (uint32_t)(k.exponent + 127) << 8 * (column & 3) : 0;
    word |= __shfl_xor_sync(~0u, word, 1 << a.lanes_log2);
    word |= __shfl_xor_sync(~0u, word, 2 << a.lanes_log2);
    if (live && lane == 0 && (column & 3) == 0) ((uint32_t *)a.s)[place + (column >> 2) * a.s_column] = word;
}
