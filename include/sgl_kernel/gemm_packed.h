/* Matrix products with weights that were packed once, when a model was loaded. */
#ifndef SGL_KERNEL_GEMM_PACKED_H
#define SGL_KERNEL_GEMM_PACKED_H
#include <stdbool.h>
#include "base.h"

/*
 * Packed bytes are private and belong to this version of the library: nothing may be computed from them or kept in a file. A packed weight may be
 * cut along its first dimension where it has three, and along N at multiples of 32. The layout is the same on every device.
 *
 * Numbers, on every device: products are exact in the formats below and sums are f32, in i32 for products of integers, in a fixed order; scales
 * and bias are applied in f32, and one rounding happens at the end. On the CPU a row's bits never depend on the other rows; CPUs with
 * AVX512_BF16 multiply bf16 with VDPBF16PS, which takes numbers below 2^-126 as 0 and gives 0 for them. e4m3 is decoded exactly: zeros, subnormal
 * numbers and NaN are what they are.
 *
 * is_vnni says that the weight is packed; otherwise it is as the model has it, and is turned while it is multiplied: correct, and slower.
 *
 * Scratch memory: on the CPU every product, on the GPU those that quantise their input (see SGK_EXEC workspace_query).
 * All return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error().
 */

/**
 * Packs a weight.
 *
 * @param packed  f32 | f16 | bf16 | e4m3, and u8 for pairs of e2m1: like weight; i8: [N, K + 4] or [E, N, K + 4], the last numbers hold sums
 *                over K; a two-dimensional weight with N below 16 of any of these: f32 [K, N], turned and nothing else. Dense
 * @param weight  [N, K] or [E, N, K]; dense
 */
SGK_API sgk_status sgk_convert_weight_packed(const DLTensor *packed, const DLTensor *weight, const sgk_exec *exec);
SGK_API bool sgk_weight_is_small(const DLTensor *weight);       /* two-dimensional, with N below 16 */

/** Packs the scales of mxfp4: u8 [N, G] or [E, N, G], dense, to the same shape. */
SGK_API sgk_status sgk_convert_scale_packed(const DLTensor *packed, const DLTensor *scale, const sgk_exec *exec);

enum { SGK_INT4_AWQ  = 0,
       SGK_INT4_GPTQ = 1 };

/**
 * Packs weights of four bits, (q - zero) * scale with groups of g rows along K; g is a multiple of 4, above 128 of 128; N is a multiple of 32.
 * All may have a leading E. All are dense.
 *
 * @param packed         u8 [N / 32, K / p, 16 p + 128], p being g and at most 128
 * @param packed_zeros   i8 [N / 32, K / g, 32]
 * @param packed_scales  f32 [N / 32, K / g, 32]
 * @param weight         i32, AWQ: [K, N / 8], element i of a word is column 8 w + i, shifted by 4 * {0, 4, 1, 5, 2, 6, 3, 7}[i];
 *                       GPTQ: [K / 8, N], element i of a word is row 8 w + i, shifted by 4 i
 * @param qzeros         i32 [K / g, N / 8], AWQ: in the same order; GPTQ: shifted by 4 i, and one is added to each
 * @param scales         f32 | f16 | bf16 [K / g, N]
 */
SGK_API sgk_status sgk_convert_weight_packed_scale_zp(const DLTensor *packed, const DLTensor *packed_zeros, const DLTensor *packed_scales, const DLTensor *weight,
                                                      const DLTensor *qzeros, const DLTensor *scales, int64_t quant_method_4bit, const sgk_exec *exec);
/** The sizes of its results: which = 0: K / p, 1: 16 p + 128, 2: K / g; 0 where the arguments do not fit. */
SGK_API int64_t sgk_int4_packed_size(const DLTensor *weight, const DLTensor *scales, int64_t quant_method_4bit, int which);

/**
 * out = round(mat1 mat2^T + bias)
 *
 * @param out      [*M, N], dtype of mat1; rows may be strided
 * @param mat1     [*M, K], f32 | f16 | bf16; rows may be strided
 * @param mat2     [N, K], dtype of mat1, packed or not; or, packed from fewer than 16 rows, f32 [K, N]
 * @param bias     [N], f32; may be NULL
 */
SGK_API sgk_status sgk_weight_packed_linear(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *bias, bool is_vnni, const sgk_exec *exec);

/**
 * out[m, j] = round(sigmoid(sum_k mat1[m, k] * mat2[k, 0] + bias) * post_mul_mat[m, j])
 *
 * @param out           [M, J], dtype of mat1; rows may be strided
 * @param mat1          [M, K], f32 | f16 | bf16; rows may be strided
 * @param mat2          [K, 1], f32: packed from [1, K]; is_vnni must be true
 * @param bias          [1], f32; may be NULL
 * @param post_mul_mat  [M, J], dtype of mat1; rows may be strided
 */
SGK_API sgk_status sgk_fused_linear_sigmoid_mul(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *bias, bool is_vnni,
                                                const DLTensor *post_mul_mat, const sgk_exec *exec);

/**
 * out[b] = round(mat1[b] mat2[b]^T * scale)
 *
 * @param out    [B, M, N], dtype of mat1; rows and matrices may be strided
 * @param mat1   [B, M, K], f32 | f16 | bf16; rows and matrices may be strided
 * @param mat2   [B, N, K], dtype of mat1 or e4m3; packed or not
 * @param scale  f32, no dimension; may be NULL, and must be where mat2 is not e4m3
 */
SGK_API sgk_status sgk_bmm_cpu(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, bool is_vnni, const DLTensor *scale, const sgk_exec *exec);

/**
 * out[m, n] = round((sum_k (mat1[m, k] - 128) * mat2[n, k]) * scales1[m] * scales2[n] + bias[n]); sums in i32
 *
 * @param out      [M, N], f32 | f16 | bf16; rows may be strided
 * @param mat1     [M, K], u8 with the zero point 128; rows may be strided
 * @param mat2     i8 [N, K], or packed [N, K + 4]
 * @param scales1  M numbers, f32, of any shape; dense
 * @param scales2  N numbers, f32, of any shape; dense
 * @param bias     [N], f32; may be NULL
 */
SGK_API sgk_status sgk_int8_scaled_mm_cpu(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *scales1, const DLTensor *scales2,
                                          const DLTensor *bias, bool is_vnni, const sgk_exec *exec);

/** The same with the rows of mat1, f32 | f16 | bf16, quantised as sgk_per_token_quant_int8 does. */
SGK_API sgk_status sgk_int8_scaled_mm_with_quant(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *scales2, const DLTensor *bias,
                                                 bool is_vnni, const sgk_exec *exec);

/**
 * out[m, n] = round(sum_k mat1[m, k] * mat2[n, k] * scales2[n / bn, k / bk] + bias[n]), block_size being { bn, bk }
 *
 * @param out       [M, N], f32 | f16 | bf16; rows may be strided
 * @param mat1      [M, K], f32 | f16 | bf16; rows may be strided
 * @param mat2      [N, K], e4m3; packed or not
 * @param scales2   [ceil(N / bn), ceil(K / bk)], f32; dense. bk is a multiple of 32
 * @param bias      [N], f32; may be NULL
 */
SGK_API sgk_status sgk_fp8_scaled_mm_cpu(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *scales2, const int64_t *block_size,
                                         int64_t block_count, const DLTensor *bias, bool is_vnni, const sgk_exec *exec);

/**
 * out[m, n] = round(sum_k mat1[m, k] * mat2[n, k] * 2^(scales2[n, k / 32] - 127) + bias[n]); the scale 255 is NaN
 *
 * @param out      [M, N], f32 | f16 | bf16; rows may be strided
 * @param mat1     [M, K], f32 | f16 | bf16; rows may be strided; K a multiple of 32
 * @param mat2     [N, K / 2], u8: two e2m1, the even k in the low half; packed or not
 * @param scales2  N K / 32 numbers, u8, from sgk_convert_scale_packed, of any shape; dense
 * @param bias     [N], f32; may be NULL
 */
SGK_API sgk_status sgk_mxfp4_scaled_mm_cpu(const DLTensor *out, const DLTensor *mat1, const DLTensor *mat2, const DLTensor *scales2, const DLTensor *bias, bool is_vnni,
                                           const sgk_exec *exec);

/**
 * out[m, n] = round(s[m] * sum over groups g of w_scales[g, n] * (sum over k of g of xq[m, k] * (w[n, k] - w_zeros[g, n])) + bias[n]); inner sums in i32
 *
 * xq and s are the rows of x, quantised as sgk_per_token_quant_int8 does, without the zero point.
 *
 * @param out                [M, N], f32 | f16 | bf16; rows may be strided
 * @param x                  [M, K], f32 | f16 | bf16; rows may be strided
 * @param w,w_zeros,w_scales from sgk_convert_weight_packed_scale_zp
 * @param bias               [N], f32; may be NULL
 */
SGK_API sgk_status sgk_int4_scaled_mm_cpu(const DLTensor *out, const DLTensor *x, const DLTensor *w, const DLTensor *w_zeros, const DLTensor *w_scales,
                                          const DLTensor *bias, const sgk_exec *exec);

typedef struct {
    size_t          size;                   /* sizeof(sgk_qkv_proj_options) */
    double          eps;                    /* of both norms */
    bool            use_int8_w8a8, use_fp8_w8a16;                                  /* one at most */
    const DLTensor *q_a_proj_scale, *q_b_proj_scale, *kv_a_proj_scale;              /* i8: f32, one a row; e4m3: f32 blocks; else NULL */
    const DLTensor *w_scale;                /* f32, no dimension, of w_kc in e4m3; may be NULL */
    bool            is_vnni;                /* must be true */
    const int64_t  *block_size;             /* of e4m3 */
    int64_t         block_count;
    int64_t         q_lora_rank, kv_lora_rank, qk_rope_head_dim;                   /* of the form with one weight */
} sgk_qkv_proj_options;

/**
 * The input projection of multi-head latent attention. With qa and kv the products of hidden_states with the two first weights:
 *
 *     q = rmsnorm(qa) q_b^T, [T, H, Dn + Dr]
 *     q_input[t, h] = [ q[t, h, :Dn] w_kc[h]^T | rope(q[t, h, Dn:]) ]
 *     k_input[t, 0] = [ rmsnorm(kv[t, :Rkv])   | rope(kv[t, Rkv:])  ]
 *
 * rope turns neighbours, (x[2 i], x[2 i + 1]), by row positions[t] of cos_sin_cache. Every product and norm is rounded once.
 *
 * @param q_input          [T, H, Rkv + Dr], dtype of hidden_states; tokens and heads may be strided
 * @param k_input          [T, 1, Rkv + Dr], dtype of hidden_states; its first Rkv columns are the values
 * @param hidden_states    [T, D], f32 | f16 | bf16; rows may be strided
 * @param q_a_proj_weight  [Rq, D], packed: dtype of hidden_states, or i8 [Rq, D + 4] or e4m3 as options say; so are the next two
 * @param q_b_proj_weight  [H (Dn + Dr), Rq]
 * @param kv_a_proj_weight [Rkv + Dr, D]
 * @param w_kc             [H, Rkv, Dn], packed: dtype of hidden_states or e4m3
 * @param q_a_layernorm_weight,kv_a_layernorm_weight  [Rq], [Rkv], dtype of hidden_states
 * @param positions        [T], i64; rows of cos_sin_cache
 * @param cos_sin_cache    [P, Dr], dtype of hidden_states: Dr / 2 cosines, then as many sines
 *
 * Scratch memory: on both devices.
 */
SGK_API sgk_status sgk_qkv_proj_with_rope(const DLTensor *q_input, const DLTensor *k_input, const DLTensor *hidden_states, const DLTensor *q_a_proj_weight,
                                          const DLTensor *q_b_proj_weight, const DLTensor *kv_a_proj_weight, const DLTensor *w_kc,
                                          const DLTensor *q_a_layernorm_weight, const DLTensor *kv_a_layernorm_weight, const DLTensor *positions,
                                          const DLTensor *cos_sin_cache, const sgk_qkv_proj_options *options, const sgk_exec *exec);

/** The same with the two first weights in one, [Rq + Rkv + Dr, D], whose scale is options' q_a_proj_scale. */
SGK_API sgk_status sgk_qkv_proj_with_rope_fused_weight(const DLTensor *q_input, const DLTensor *k_input, const DLTensor *hidden_states,
                                                       const DLTensor *qkv_a_proj_weight, const DLTensor *q_b_proj_weight, const DLTensor *w_kc,
                                                       const DLTensor *q_a_layernorm_weight, const DLTensor *kv_a_layernorm_weight, const DLTensor *positions,
                                                       const DLTensor *cos_sin_cache, const sgk_qkv_proj_options *options, const sgk_exec *exec);
#endif
