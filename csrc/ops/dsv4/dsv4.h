/* What DeepSeek-V4's fused kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_DSV4_H
#define SGK_DSV4_H
#include "base/divisor.h"

/* The rotation of the last DSV4_ROPE elements of a head: neighbours are a complex number, times one of the row of the token's position. */
enum { DSV4_ROPE = 64 };

struct dsv4_rope {
    const float *freqs;                                 /* real, imaginary, real, ... */
    const void  *positions;
    int64_t      freqs_stride, position_stride;         /* in elements */
    int64_t      max_position;
    int32_t      wide;                                  /* positions are i64, otherwise i32 */
};

/* Strides are in elements. by_heads is for the GPU. */
struct dsv4_q_args {
    void              *output;                            /* bf16 */
    const void        *input;                             /* bf16 */
    struct dsv4_rope   rope;
    int64_t            tokens, heads, dim;                /* dim is a multiple of 64 */
    int64_t            output_token, output_head, input_token, input_head;
    float              eps;
    struct sgk_divisor by_heads;
};

/* A token in the cache: codes of the first elements in groups of one scale, then the rotated elements in bf16. Behind the tokens of a page lie
 * their scales, exponents of two. */
enum {
    DSV4_K           = 512,
    DSV4_K_CODES     = DSV4_K - DSV4_ROPE,
    DSV4_K_GROUP     = 64,
    DSV4_TOKEN_BYTES = DSV4_K_CODES + 2 * DSV4_ROPE,
    DSV4_SCALE_BYTES = 8,
};

struct dsv4_k_args {
    uint8_t         *cache;
    const void      *kv;                                /* bf16 */
    const void      *weight;                            /* bf16 */
    const void      *places;                            /* of a token in the cache */
    struct dsv4_rope rope;
    int64_t          tokens, slots, page_size;
    int64_t          page_bytes, kv_stride, place_stride;
    float            eps;
    int32_t          places_wide;
};

enum { DSV4_INDEXER = 128 };                            /* elements of a head */

struct dsv4_indexer_args {
    uint8_t           *codes;
    float             *weights_out;
    const void        *input;                             /* bf16 */
    const void        *weight;                            /* bf16 */
    struct dsv4_rope   rope;
    int64_t            tokens, heads;
    int64_t            codes_token, codes_head, out_token, out_head, input_token, input_head, weight_token, weight_head;
    float              weight_scale;
    struct sgk_divisor by_heads;
};

#define DSV4_LEAST_AMAX 1e-4f
#define DSV4_MOST       448.0f                          /* e4m3 */

#ifdef __CUDACC__
#define DSV4_FN       static __device__ __forceinline__
#define DSV4_BITS(f)  __float_as_uint(f)
#define DSV4_FLOAT(u) __uint_as_float(u)
#else
#include "base/convert.h"
#define DSV4_FN       static inline
#define DSV4_BITS(f)  f32_bits(f)
#define DSV4_FLOAT(u) f32_from_bits(u)
#endif

DSV4_FN float dsv4_scale(float amax) { return (amax < DSV4_LEAST_AMAX ? DSV4_LEAST_AMAX : amax) / DSV4_MOST; }

/* The exponent, with its bias, of the least power of two that is not below a scale. */
DSV4_FN uint32_t dsv4_exponent(float s)
{
    const uint32_t u = DSV4_BITS(s);
    return (u >> 23) + ((u & 0x7fffff) != 0);
}

/* 2^(127 - e), 13 <= e <= 255: what values are multiplied by. */
DSV4_FN float dsv4_inverse(uint32_t e) { return DSV4_FLOAT(e <= 253 ? (254 - e) << 23 : 0x00400000u >> (e - 254)); }

#endif
