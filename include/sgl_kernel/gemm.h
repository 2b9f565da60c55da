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
 * Scratch memory: on the CPU for M above 24, in bf16 where the CPU multiplies that above 8, and for any M if that is batch invariant (see
 * SGK_EXEC workspace_query); on the GPU none.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_linear(const DLTensor *out, const DLTensor *input, const DLTensor *weight,
                              const DLTensor *bias, const sgk_exec *exec);

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
#endif
