/*
 * Packed weights, version 1, and what the products with them are given. Read by the host compiler and by NVRTC alike.
 *
 * Rows of a weight [N, K] become the columns of the product. 32 of them are a block (the last one may be narrower: r of them), and blocks lie
 * one behind the other, so that a weight can be cut along N at multiples of 32. Within a block, elements that are multiplied at one time
 * are neighbours, c being the column in the block:
 *
 *     f32, f16, e4m3      [K][r]
 *     bf16                [K / 2][r][2]           an odd K ends with [r]
 *     i8                  [K / 4][r][4]           K % 4 elements more end with [r][K % 4]; then r sums over K, each an i32
 *     mxfp4               [K / 2][r]              a byte has two: the even k in its low half; scales [K / 32][r]
 *     int4                [K / g][g / 4][16][4]   a byte has two: column c in its low half, c + 16 in its high half. Behind each group of g, which
 *                                                 is at most 128: the sums over it of (weight - zero) for the 32 columns, each an i32
 *     small               [K][N], f32             fewer than 16 columns, of any float format
 */
#ifndef SGK_GEMM_PACKED_H
#define SGK_GEMM_PACKED_H
#include "base/types.h"
#ifdef __CUDACC__
#define PACKED_FN static __device__ __forceinline__
#else
#define PACKED_FN static inline
#endif

enum {
    PACKED_BLOCK = 32,                          /* columns */
    PACKED_SMALL = 16,                          /* fewer columns than that are kept in f32 */
    MXFP4_GROUP  = 32,                          /* along K, with one scale */
    INT4_GROUP   = 128,                         /* at most, with sums of their own */
};

typedef enum {
    WEIGHT_F32,
    WEIGHT_F16,
    WEIGHT_BF16,
    WEIGHT_E4M3,
    WEIGHT_I8,
    WEIGHT_MXFP4,
    WEIGHT_INT4,
    WEIGHT_SMALL,
} weight_format;

/* out[b, m, n] = round((sum_k input[b, m, k] * weight[b, n, k] * (scales)) * (scales) + bias[n]) */
struct packed_args {
    void         *out;
    const void   *input, *weight;
    const void   *bias;                                /* NULL: none */
    const void   *scale;                               /* i8: f32 [N]; e4m3: f32 [ceil(N / group_n)][ceil(K / group_k)]; mxfp4: u8; int4: f32; NULL: none */
    const int8_t *zeros;                               /* int4 */
    const float  *input_scale;                         /* i8, input u8: [rows] */
    int64_t       batch, rows, columns, depth;         /* B, M, N, K */
    int64_t       out_batch, out_stride;               /* in elements, as all that follow */
    int64_t       input_batch, input_stride;
    int64_t       weight_batch, weight_stride;         /* weight_batch in bytes; weight_stride of plain rows */
    int64_t       group_n, group_k;
    sgk_dtype     dtype, out_dtype, bias_dtype;        /* dtype of input; bias: f32, or dtype on the CPU */
    int32_t       format;                              /* weight_format */
    int32_t       plain;                               /* weight is as the model has it */
};

PACKED_FN int64_t packed_least(int64_t a, int64_t b) { return a < b ? a : b; }
PACKED_FN int64_t packed_ceil(int64_t n, int64_t d) { return (n + d - 1) / d; }

/* Of a block of columns. */
PACKED_FN int64_t packed_width(int64_t columns, int64_t block) { return packed_least(PACKED_BLOCK, columns - block * PACKED_BLOCK); }

/* Rows of int4 that have sums of their own. */
PACKED_FN int64_t int4_part(int64_t group) { return packed_least(group, INT4_GROUP); }
PACKED_FN int64_t int4_part_bytes(int64_t group) { return 16 * int4_part(group) + 128; }

/* Bytes before a block of columns. */
PACKED_FN int64_t packed_block_at(int32_t format, int64_t block, int64_t depth, int64_t group)
{
    const int64_t columns = block * PACKED_BLOCK;
    switch (format) {
    case WEIGHT_F32:   return columns * depth * 4;
    case WEIGHT_F16:
    case WEIGHT_BF16:  return columns * depth * 2;
    case WEIGHT_I8:    return columns * (depth + 4);
    case WEIGHT_MXFP4: return columns * (depth / 2);
    case WEIGHT_INT4:  return block * (depth / int4_part(group)) * int4_part_bytes(group);
    default:           return columns * depth;
    }
}

/* The byte that has element k of column c, within a block of r columns. */
PACKED_FN int64_t packed_element_at(int32_t format, int64_t k, int64_t c, int64_t r, int64_t depth, int64_t group)
{
    int64_t tail;
    switch (format) {
    case WEIGHT_F32:  return (k * r + c) * 4;
    case WEIGHT_F16:  return (k * r + c) * 2;
    case WEIGHT_BF16: return (k / 2 * 2 * r + (k - k % 2 + 1 < depth ? c * 2 + k % 2 : c)) * 2;
    case WEIGHT_I8:
        tail = packed_least(4, depth - k / 4 * 4);
        return k / 4 * 4 * r + c * tail + k % 4;
    case WEIGHT_MXFP4: return k / 2 * r + c;
    case WEIGHT_INT4:  return k / int4_part(group) * int4_part_bytes(group) + k % int4_part(group) / 4 * 64 + c % 16 * 4 + k % 4;
    default:           return k * r + c;
    }
}

PACKED_FN int packed_nibbles(int32_t format) { return format == WEIGHT_MXFP4 || format == WEIGHT_INT4; }

/* Which half of its byte an element of four bits is. */
PACKED_FN int packed_half(int32_t format, int64_t k, int64_t c) { return format == WEIGHT_MXFP4 ? (int)(k % 2) : (int)(c / 16); }

/* Packing. Pairs of four bits, and the scales of mxfp4, are bytes that are laid out like e4m3. */
struct pack_args {
    void       *packed;
    const void *weight;
    int64_t     batch, columns, depth;
    sgk_dtype   dtype;
    int32_t     format;
};

/* AWQ's and GPTQ's weights of four bits. */
struct pack_int4_args {
    uint8_t        *packed;                              /* [batch][N / 32][K / part][16 part + 128] */
    int8_t         *packed_zeros;                        /* [batch][N / 32][G][32] */
    float          *packed_scales;
    const uint32_t *weight, *zeros;
    const void     *scales;
    int64_t         batch, columns, depth, group;
    sgk_dtype       scales_dtype;
    int32_t         gptq;
};

PACKED_FN int int4_shift(int64_t i, int32_t gptq)
{
    const int order = 0x73625140 >> (4 * (int)i) & 15;            /* AWQ's: 0 4 1 5 2 6 3 7 */
    return 4 * (gptq ? (int)i : order);
}
PACKED_FN int int4_weight(const struct pack_int4_args *a, int64_t e, int64_t k, int64_t n)
{
    if (a->gptq) return (int)(a->weight[(e * (a->depth / 8) + k / 8) * a->columns + n] >> int4_shift(k % 8, 1)) & 15;
    return (int)(a->weight[(e * a->depth + k) * (a->columns / 8) + n / 8] >> int4_shift(n % 8, 0)) & 15;
}
PACKED_FN int int4_zero(const struct pack_int4_args *a, int64_t e, int64_t g, int64_t n)
{
    const int64_t groups = a->depth / a->group;
    const int     zero   = (int)(a->zeros[(e * groups + g) * (a->columns / 8) + n / 8] >> int4_shift(n % 8, a->gptq)) & 15;
    return zero + (a->gptq ? 1 : 0);
}

/* out[m, j] = round(sigmoid(sum_k input[m, k] * weight[k] + bias) * gate[m, j]) */
struct linear_sigmoid_args {
    void        *out;
    const void  *input, *by;
    const float *weight, *bias;
    int64_t      rows, depth, columns;
    int64_t      input_stride, by_stride, weight_stride, out_stride;
    sgk_dtype    dtype;
};

/* Rows quantised to u8 around 128, one scale each. */
struct packed_quant_args {
    uint8_t    *q;
    float      *s;
    const void *input;
    int64_t     rows, depth, input_stride;
    sgk_dtype   dtype;
};

/* What lies between the products of qkv_proj_with_rope: see gemm_mla.c. */

#ifndef __CUDACC__

/* The CPU's work is cut into items, a block of rows by some columns; part p of them has the p-th piece of the scratch memory. */
enum {
    PACKED_STEPS       = 128,                      /* of a panel: pieces of K that are multiplied before the sums go to memory, at most */
    PACKED_STEP_BYTES  = 128,                      /* of a panel: 32 columns of 4 bytes */
    PACKED_STRIP       = 12,                       /* rows that are multiplied together, at most */
    PACKED_TILE_STRIP  = 32,                       /* the same for AMX, which takes these many always, */
    PACKED_TILE_STEPS  = 16,                       /* and so many steps at a time */
    PACKED_BLOCK_ROWS  = 43 * PACKED_STRIP,        /* of an item, at most */
    PACKED_GROUP       = 4 * PACKED_BLOCK,         /* columns of an item, at most */
    PACKED_FEW         = 64,                       /* rows: up to here an item has one block of columns, */
    PACKED_FEW_ROWS    = 4,                        /* or up to here two, and its rows wait for memory */
    PACKED_TURNS       = 2,                        /* chunks of K that are turned together of plain weights: pages of memory are changed less often */
    PACKED_PANEL_BYTES = PACKED_STEPS * PACKED_STEP_BYTES,
};

/* How numbers are multiplied. */
typedef enum {
    BY_F32,                                         /* a step is one element */
    BY_BF16,                                        /* two: VDPBF16PS */
    BY_I8,                                          /* four: VPDPBUSD, u8 by s8 */
} packed_way;

PACKED_FN int64_t packed_step(packed_way way) { return way == BY_F32 ? 1 : way == BY_BF16 ? 2
                                                                                          : 4; }

struct packed_cpu_args {
    struct packed_args a;
    packed_way         way;
    int64_t            chunk;                       /* elements of K that are summed before the sums go to memory; a multiple of a step */
    int64_t            row_blocks, group;           /* of each matrix; columns of an item */
    int64_t            items, parts;
    int64_t            some, some_rows, row_bytes;  /* matrices, and rows of each, that are prepared at a time; bytes of a row then */
    int32_t            quantise;                    /* input is to be quantised */
    int32_t            tiles;                       /* for AMX: strips have PACKED_TILE_STRIP rows, and a row's steps are neighbours */
    uint32_t          *strips;                      /* the input as the tiles take it */
    float             *row_scale;                   /* of the rows that were quantised */
    char              *scratch;
    int64_t            part_scratch;                /* a panel, rows on their way to it, sums */
};

#endif
#endif
