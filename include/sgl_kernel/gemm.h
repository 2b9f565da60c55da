/* Matrix products. */
#ifndef SGL_KERNEL_GEMM_H
#define SGL_KERNEL_GEMM_H
#include "base.h"

/**
 * out[m, n] = round(sum_k input[m, k] * weight[n, k] + bias[n])
 *
 * @param out     [*M, N], dtype of input or f32; rows may be strided; must not overlap an argument
 * @param input   [*M, K], f32 | f16 | bf16; rows may be strided, also with stride 0
 * @param weight  [N, K], dtype of input; rows may be strided
 * @param bias    [N], dtype of input or f32; may be NULL
 *
 * *M is any number of leading dimensions that are evenly spaced in memory. Every size may be 0; with K = 0 the product is 0.
 *
 * Products and sums are f32 (f32 inputs are not shortened to TF32) in a fixed order, bias is added in f32, and one rounding happens at
 * the end. On the CPU a row's bits never depend on the other rows, but for bf16 where the CPU multiplies that; there and on the GPU the
 * version is chosen by M unless exec asks for batch_invariant, and then they don't either. CPUs with AVX512_BF16 or AMX multiply bf16 with
 * VDPBF16PS or TDPBF16PS, which take numbers below 2^-126 as 0 and give 0 for them.
 *
 * Programmatic launch is off for this operator where neither exec->pdl nor TRTLLM_ENABLE_PDL=1 asks for it.
 *
 * Scratch memory: on the CPU for M above 24, in bf16 where the CPU multiplies that above 8, and for any M if that is batch invariant (see
 * SGK_EXEC workspace_query); on the GPU none.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_linear(const DLTensor *out, const DLTensor *input, const DLTensor *weight,
                              const DLTensor *bias, const sgk_exec *exec);

/**
 * out[b, m, n] = round(sum_k input[b, m, k] * weight[b, n, k] + bias[b, n])
 *
 * @param out     [B, M, N], dtype of input or f32; B and M may be strided; must not overlap an argument
 * @param input   [B, M, K], f32 | f16 | bf16; B and M may be strided, also with stride 0
 * @param weight  [B, N, K], dtype of input; B and N may be strided, also with stride 0
 * @param bias    [B, N], dtype of input or f32; B may be strided; may be NULL
 *
 * Any sizes. Numbers, scratch memory and errors as of sgk_linear.
 */
SGK_API sgk_status sgk_linear_batched(const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *bias, const sgk_exec *exec);

/**
 * output[m, n] = round(sum_k mat_a[m, k] * mat_b[n, k]): the logits of a router.
 *
 * @param output  [M, N], dtype of mat_a or f32; rows may be strided; must not overlap an argument
 * @param mat_a   [M, K], f32 | f16 | bf16; rows may be strided
 * @param mat_b   [N, K], dtype of mat_a; rows may be strided
 *
 * Any sizes. Numbers, scratch memory and errors as of sgk_linear; programmatic launch is on by default.
 */
SGK_API sgk_status sgk_dsv3_router_gemm(const DLTensor *output, const DLTensor *mat_a, const DLTensor *mat_b, const sgk_exec *exec);

/**
 * output[m, n] = round(sum_k mat_a[m, k] * mat_b[k, n]): the projections of a token's latent vectors, in one product.
 *
 * @param output  [M, N], dtype of mat_a or f32; rows may be strided; must not overlap an argument
 * @param mat_a   [M, K], f32 | f16 | bf16; rows may be strided
 * @param mat_b   [K, N], dtype of mat_a; stride 1 along K, columns may be strided
 *
 * Any sizes. Numbers, scratch memory and errors as of sgk_linear; programmatic launch is on by default.
 */
SGK_API sgk_status sgk_dsv3_fused_a_gemm(const DLTensor *output, const DLTensor *mat_a, const DLTensor *mat_b, const sgk_exec *exec);

/**
 * out[n, o] = round(sum over c, d, h, w of input[n, c, d, h, w] * weight[o, c, d, h, w] + bias[o])
 *
 * A three-dimensional convolution whose kernel is as large as its input, so that it is applied once: sgk_linear on patches.
 *
 * @param out     [N, O], dtype of input; rows may be strided; must not overlap an argument
 * @param input   [N, C, D, H, W], f32 | f16 | bf16; dense
 * @param weight  [O, C, D, H, W], dtype of input; dense; packed by sgk_conv3d_embed_weight_pack or not
 * @param bias    [O], dtype of input
 *
 * Any sizes. Numbers, scratch memory and errors as of sgk_linear.
 */
SGK_API sgk_status sgk_conv3d_embed(const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *bias, const sgk_exec *exec);

/**
 * Prepares the weight of sgk_conv3d_embed, once, when a model is loaded. What it writes is private: at present a copy.
 *
 * @param packed  [O, C, D, H, W], dtype of weight; dense; must not overlap weight
 * @param weight  [O, C, D, H, W], f32 | f16 | bf16; dense
 */
SGK_API sgk_status sgk_conv3d_embed_weight_pack(const DLTensor *packed, const DLTensor *weight, const sgk_exec *exec);

/**
 * out[m, n] = round(scales_a[m] * (scales_b[n] * sum_k mat_a[m, k] * mat_b[k, n]) + bias[n])
 *
 * @param out       [M, N], f16 | bf16 | f32; rows may be strided; must not overlap an argument
 * @param mat_a     [M, K], e4m3; rows may be strided
 * @param mat_b     [K, N], e4m3; column-major: the stride of dimension 0 is 1, columns may be strided
 * @param scales_a  M elements, or one for all rows; any shape, evenly spaced; f32
 * @param scales_b  N elements, or one for all columns; any shape, evenly spaced; f32
 * @param bias      [N], dtype of out; may be NULL
 *
 * Any sizes, which may be 0; with K = 0 the product is 0. Rows of mat_a and columns of mat_b that begin at multiples of 16 bytes are faster.
 *
 * Products are exact. Sums are f32 in a fixed order; the matrix units of sm_90a sum 128 to 384 products with 14 bits, which are then added in
 * f32. Scales and bias are applied in f32, and one rounding happens at the end. On the CPU a row's bits never depend on the other rows; on
 * the GPU the version is chosen by M unless exec asks for batch_invariant, and then they don't either.
 *
 * Scratch memory: on the CPU for M above 24 (see SGK_EXEC workspace_query), on the GPU none.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_fp8_scaled_mm(const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a,
                                     const DLTensor *scales_b, const DLTensor *bias, const sgk_exec *exec);

/**
 * The same with mat_a and mat_b in i8. Sums are exact in 32 bits, and wrap beyond them; a sum is rounded to f32 before it is scaled.
 */
SGK_API sgk_status sgk_int8_scaled_mm(const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a,
                                      const DLTensor *scales_b, const DLTensor *bias, const sgk_exec *exec);

/**
 * D[b, m, n] = round(A_scale * (B_scale * sum_k A[b, m, k] * B[b, k, n]))
 *
 * @param D        [B, M, N], f16 | bf16 | f32; matrices and rows may be strided; must not overlap an argument
 * @param A        [B, M, K], e4m3 | e5m2; matrices and rows may be strided
 * @param B        [B, K, N], e4m3 | e5m2, also another one than A; column-major: the stride of dimension 1 is 1; matrices and columns may be strided
 * @param A_scale  one element, any shape; f32
 * @param B_scale  one element, any shape; f32
 * @param workspace_buffer  [*W], u8; may be NULL; not used
 *
 * Sizes, numbers, scratch memory and errors as of sgk_fp8_scaled_mm.
 */
SGK_API sgk_status sgk_bmm_fp8(const DLTensor *D, const DLTensor *A, const DLTensor *B, const DLTensor *A_scale, const DLTensor *B_scale,
                               const DLTensor *workspace_buffer, const sgk_exec *exec);
#endif
