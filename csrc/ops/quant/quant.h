/* What the quantisers are given, and the arithmetic of their scales. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_QUANT_H
#define SGK_QUANT_H
#include "base/divisor.h"

struct quant_rows_args {                    /* a scale for each row */
    uint8_t    *q;
    float      *s;
    const void *input;
    int64_t     rows, dim;
    int64_t     q_stride, s_stride, input_stride;       /* in elements */
    sgk_dtype   dtype;
    sgk_dtype   code;                                   /* e4m3, or u8 with zero point 128 */
};

struct quant_tensor_args {                  /* one scale */
    uint8_t    *q;
    float      *s;
    const void *input;
    int64_t     count;
    sgk_dtype   dtype;
};

struct quant_groups_args {                  /* a scale for each group of neighbours */
    uint8_t           *q;
    void              *s;                                   /* f32, or words of four exponents */
    const void        *input;
    const int32_t     *masked_m;
    int64_t            rows, batch_rows;                    /* of all batches, of one */
    int64_t            groups, group;                       /* groups of a row, elements of a group */
    int64_t            q_stride, input_stride;              /* in elements */
    int64_t            s_batch, s_row, s_column;            /* strides of s, in elements or words */
    sgk_dtype          dtype;
    sgk_dtype          code;                                /* e4m3 or i8 */
    float              eps, least, most, inverse;           /* inverse: 1 / most */
    int32_t            version;                             /* 1 or 2 */
    int32_t            ue8m0, fuse;
    int32_t            clamps;                              /* least and most are not the ends of the format */
    int32_t            lanes_log2;                          /* GPU: 2^lanes_log2 threads share a group */
    int32_t            tile_log2;                           /* GPU: 2^tile_log2 rows have their groups of a column in turn */
    struct sgk_divisor columns, lines;                      /* GPU: groups of a row, rounded up to whole words of scales; rows of a batch */
};

/* What a build of the group quantiser knows of its arguments. */
#define GROUPS_ANY    0
#define GROUPS_PLAIN  1
#define GROUPS_PACKED 2
#define GROUPS_FIRST  3

/* The CPU's piece of work on a tensor. */
enum { QUANT_BLOCK = 8192 };

#ifdef __CUDACC__
#define QUANT_FN           static __device__ __forceinline__
#define QUANT_BITS(f)      __float_as_uint(f)
#define QUANT_FROM_BITS(u) __uint_as_float(u)
#else
#include "base/convert.h"
#define QUANT_FN           static inline
#define QUANT_BITS(f)      f32_bits(f)
#define QUANT_FROM_BITS(u) f32_from_bits(u)
#endif
#define QUANT_FLT_MAX 3.402823466e+38f

/* How the elements that share a scale are scaled: x / by or x * by. */
struct quant_scaling {
    float   s, by;
    int32_t divide, exponent;
};

/* 1 / s where it is a number, so that zeros stay zeros. */
QUANT_FN float quant_reciprocal(float s)
{
    const float r = 1.0f / s;
    return s == 0 ? 0 : r > QUANT_FLT_MAX ? QUANT_FLT_MAX
                                          : r;
}

QUANT_FN struct quant_scaling quant_row_scaling(float amax, sgk_dtype code)
{
    struct quant_scaling r = { 0, 0, 0, 0 };
    if (code == SGK_E4M3) {
        r.s  = amax / 448.0f;
        r.by = quant_reciprocal(r.s);
    } else {
        amax = amax < 1e-7f ? 1e-7f : amax;
        r.s  = amax / 127.0f;
        r.by = 127.0f / amax;
    }
    return r;
}

/* log2 of the least power of two that is not below v, a normal number or infinity. */
QUANT_FN int32_t quant_exponent(float v)
{
    const uint32_t u = QUANT_BITS(v);
    return (int32_t)(u >> 23) - 127 + ((u & 0x7fffff) != 0);
}

/* 2^-e for -126 <= e <= 128; the last two are subnormal. */
QUANT_FN float quant_power(int32_t e)
{
    return QUANT_FROM_BITS(e <= 126 ? (uint32_t)(127 - e) << 23 : 0x00400000u >> (e - 127));
}

QUANT_FN struct quant_scaling quant_group_scaling(float amax, const struct quant_groups_args *a)
{
    struct quant_scaling r = { 0, 0, 0, 0 };
    amax                   = amax < a->eps ? a->eps : amax;
    const float s          = a->version == 1 ? amax / a->most : amax * a->inverse;
    if (a->ue8m0) {
        r.exponent = quant_exponent(s < 1e-10f && a->version == 1 ? 1e-10f : s);
        r.by       = quant_power(r.exponent);                 /* the same as dividing by the power of two */
    } else {
        r.s      = s;
        r.by     = a->version == 1 ? s : a->most / amax;
        r.divide = a->version == 1 && s != 0;           /* where s is 0 it multiplies by it */
    }
    return r;
}

#endif
