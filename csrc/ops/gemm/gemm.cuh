/* What the linear kernels share: which tile a block has, the bias, the store. T is the kernel's format. */
#pragma once
#include "gemm.h"
#include "types.cuh"

/* One product of a batch. */
DEVICE linear_args linear_batch(const linear_args *a, int64_t i)
{
    linear_args b = *a;
    b.input       = (const T *)a->input + i * a->input_batch;
    b.weight      = (const T *)a->weight + i * a->weight_batch;
    b.out         = a->out_dtype == SGK_F32 ? (void *)((float *)a->out + i * a->out_batch) : (void *)((T *)a->out + i * a->out_batch);
    if (a->bias) b.bias = a->bias_dtype == SGK_F32 ? (const void *)((const float *)a->bias + i * a->bias_batch) : (const void *)((const T *)a->bias + i * a->bias_batch);
    return b;
}

/* Tile `id` of a product: they go down the rows in bands of 8 before they go on to the next columns: what runs at one time shares weights and input in L2. */
DEVICE void linear_tile(const linear_args *a, int bm, int bn, int64_t id, int64_t *m0, int64_t *n0)
{
    const int64_t down = (a->rows + bm - 1) / bm, across = (a->columns + bn - 1) / bn;
    const int64_t band = id / (8 * across), rest = id % (8 * across), high = down - band * 8 < 8 ? down - band * 8 : 8;
    *m0 = (band * 8 + rest % high) * bm;
    *n0 = rest / high * bn;
}

/* 0 without a bias, and beyond the last column. */
DEVICE float linear_bias(const linear_args *a, int64_t n)
{
    if (!a->bias || n >= a->columns) return 0;
    return a->bias_dtype == SGK_F32 ? ((const float *)a->bias)[n] : to_f32(((const T *)a->bias)[n]);
}

DEVICE void linear_store(const linear_args *a, int64_t m, int64_t n, float v)
{
    if (m >= a->rows || n >= a->columns) return;
    const int64_t to = m * a->out_stride + n;
    if (a->out_dtype == SGK_F32) ((float *)a->out)[to] = v;
    else from_f32((T *)a->out + to, v);
}

/* Whether two neighbouring columns, the first one even, can be stored at once. */
DEVICE bool linear_pairs(const linear_args *a) { return a->out_stride % 2 == 0 && (uint64_t)a->out % (a->out_dtype == SGK_F32 ? 8 : 4) == 0; }

struct alignas(2 * sizeof(T)) linear_pair { T v[2]; };

/* Columns n (even) and n + 1. */
DEVICE void linear_store2(const linear_args *a, int64_t m, int64_t n, float v, float w, bool pairs)
{
    if (!pairs || n + 1 >= a->columns || m >= a->rows) {
        linear_store(a, m, n, v);
        linear_store(a, m, n + 1, w);
        return;
    }
    const int64_t to = m * a->out_stride + n;
    if (a->out_dtype == SGK_F32) {
        *(float2 *)((float *)a->out + to) = make_float2(v, w);
    } else {
        linear_pair p;
        from_f32(&p.v[0], v), from_f32(&p.v[1], w);
        *(linear_pair *)((T *)a->out + to) = p;
    }
}
