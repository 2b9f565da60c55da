/* Weights as the kernels see them: packed or plain, one element at a time. FORMAT is a constant or a->format. */
#pragma once
#include "gemm_packed.h"
#include "types.cuh"

/* e4m3 by its bits: as those of an f32 it is 2^120 times too small, also where it is subnormal. */
DEVICE float e4m3_value(uint32_t code)
{
    const uint32_t magnitude = code & 0x7f;
    const float    v         = __uint_as_float(magnitude << 20) * 0x1p120f;
    return __uint_as_float((magnitude == 0x7f ? 0x7fc00000u : __float_as_uint(v)) | (code & 0x80) << 24);
}

/* e2m1 likewise, 2^126 times too small. */
DEVICE float e2m1_value(uint32_t code)
{
    return __uint_as_float(__float_as_uint(__uint_as_float((code & 7) << 22) * 0x1p126f) | (code & 8) << 28);
}

/* The address of element k of row n; of one of four bits, that of its byte. */
DEVICE const uint8_t *weight_at(const packed_args *a, int32_t format, const uint8_t *weight, int64_t n, int64_t k)
{
    if (format == WEIGHT_SMALL) return weight + (k * a->columns + n) * 4;
    const int64_t block = n / PACKED_BLOCK, c = n % PACKED_BLOCK;
    if (a->plain) {
        const int64_t size = format == WEIGHT_F32 ? 4 : format == WEIGHT_F16 || format == WEIGHT_BF16 ? 2
                                                                                                      : 1;
        return weight + (n * a->weight_stride + (format == WEIGHT_MXFP4 ? k / 2 : k)) * size;
    }
    return weight + packed_block_at(format, block, a->depth, a->group_k) + packed_element_at(format, k, c, packed_width(a->columns, block), a->depth, a->group_k);
}

DEVICE float weight_value(const packed_args *a, int32_t format, const uint8_t *weight, int64_t n, int64_t k)
{
    const uint8_t *p = weight_at(a, format, weight, n, k);
    switch (format) {
    case WEIGHT_F16:   return to_f32(*(const f16 *)p);
    case WEIGHT_BF16:  return to_f32(*(const bf16 *)p);
    case WEIGHT_E4M3:  return e4m3_value(*p);
    case WEIGHT_MXFP4: return e2m1_value(*p >> (k % 2 * 4) & 15);
    default:           return *(const float *)p;
    }
}

/* What the products of a group of K are multiplied by; 1 where there are no scales. */
DEVICE float weight_scale(const packed_args *a, int32_t format, int64_t n, int64_t k)
{
    if (!a->scale || n >= a->columns) return 1;
    const int64_t groups = packed_ceil(a->depth, a->group_k), g = k / a->group_k, block = n / PACKED_BLOCK, c = n % PACKED_BLOCK;
    if (format == WEIGHT_MXFP4) {
        const uint32_t code = ((const uint8_t *)a->scale)[block * PACKED_BLOCK * groups + g * packed_width(a->columns, block) + c];
        return __uint_as_float(code == 0 ? 0x00400000u : code == 255 ? 0x7fc00000u
                                                                     : code << 23);
    }
    if (format == WEIGHT_INT4) return ((const float *)a->scale)[(block * groups + g) * PACKED_BLOCK + c];
    return ((const float *)a->scale)[n / a->group_n * groups + g];
}

DEVICE float packed_bias(const packed_args *a, int64_t n) { return a->bias && n < a->columns ? ((const float *)a->bias)[n] : 0; }

DEVICE void packed_store(const packed_args *a, int64_t b, int64_t m, int64_t n, float v)
{
    if (m >= a->rows || n >= a->columns) return;
    const int64_t to = b * a->out_batch + m * a->out_stride + n;
    if (a->out_dtype == SGK_F32) ((float *)a->out)[to] = v;
    else if (a->out_dtype == SGK_F16) from_f32((f16 *)a->out + to, v);
    else from_f32((bf16 *)a->out + to, v);
}

/* Which tile a block has: matrices one behind the other, in each the tiles of some columns down the rows. */
DEVICE void packed_tile(const packed_args *a, int bm, int bn, int64_t *b, int64_t *m0, int64_t *n0)
{
    const int64_t down = (a->rows + bm - 1) / bm, across = (a->columns + bn - 1) / bn, id = blockIdx.x;
    *b  = id / (down * across);
    *m0 = id % down * bm;
    *n0 = id / down % across * bn;
}
