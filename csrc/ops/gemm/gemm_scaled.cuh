/* What the kernels of products with scales share: which tile a block has, scales, bias, the store. */
#pragma once
#include "gemm_scaled.h"
#include "types.cuh"

/* 0 without a bias, and beyond the last column. */
DEVICE float scaled_bias(const scaled_args *a, int64_t n)
{
    if (!a->bias || n >= a->columns) return 0;
    if (a->out_dtype == SGK_F32) return ((const float *)a->bias)[n];
    return a->out_dtype == SGK_F16 ? to_f32(((const f16 *)a->bias)[n]) : to_f32(((const bf16 *)a->bias)[n]);
}

/* Two results in the 16-bit format of out, the first in the low half. */
DEVICE uint32_t scaled_pack(const scaled_args *a, float lo, float hi) { return a->out_dtype == SGK_F16 ? pack_f16x2(lo, hi) : pack_bf16x2(lo, hi); }

/* `out` is the batch's. */
DEVICE void scaled_store(const scaled_args *a, void *out, int64_t m, int64_t n, float v)
{
    if (m >= a->rows || n >= a->columns) return;
    const int64_t to = m * a->out_stride + n;
    if (a->out_dtype == SGK_F32) ((float *)out)[to] = v;
    else if (a->out_dtype == SGK_F16) from_f32((f16 *)out + to, v);
    else from_f32((bf16 *)out + to, v);
}

/* Whether two neighbouring columns, the first one even, can be stored at once. */
DEVICE bool scaled_pairs(const scaled_args *a, const void *out)
{
    return a->out_stride % 2 == 0 && (uint64_t)out % (a->out_dtype == SGK_F32 ? 8 : 4) == 0;
}

/* Columns n (even) and n + 1. */
DEVICE void scaled_store2(const scaled_args *a, void *out, int64_t m, int64_t n, float v, float w, bool pairs)
{
    if (!pairs || n + 1 >= a->columns || m >= a->rows) {
        scaled_store(a, out, m, n, v);
        scaled_store(a, out, m, n + 1, w);
        return;
    }
    const int64_t to = m * a->out_stride + n;
    if (a->out_dtype == SGK_F32) *(float2 *)((float *)out + to) = make_float2(v, w);
    else *(uint32_t *)((uint16_t *)out + to) = scaled_pack(a, v, w);
}

DEVICE void *scaled_out(const scaled_args *a, int64_t batch)
{
    return (uint8_t *)a->out + batch * a->out_batch * (a->out_dtype == SGK_F32 ? 4 : 2);
}
