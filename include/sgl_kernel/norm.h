/*
 * Root mean square norms and layer norms.
 *
 * r = 1 / sqrt(mean(x^2) + eps) for each row x. Tensors named [.., D] have two to four dimensions, all tensors of a call the same; the last
 * one is dense, the others may have any stride. Sums are f32 in a fixed order and one rounding happens at the end: a row gives the same
 * bits whatever the other rows are. Every function returns SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see
 * sgk_last_error().
 */
#ifndef SGL_KERNEL_NORM_H
#define SGL_KERNEL_NORM_H
#include <stdbool.h>
#include "base.h"

/**
 * output = round(input * r * weight)
 *
 * (B. Zhang, R. Sennrich: Root Mean Square Layer Normalization, 2019.)
 *
 * @param output  [.., D], dtype of input; may be input itself, otherwise must not overlap an argument
 * @param input   [.., D], f32 | f16 | bf16
 * @param weight  [D], dtype of input
 * @param eps     added to the mean square; finite, not negative
 */
SGK_API sgk_status sgk_rmsnorm(const DLTensor *output, const DLTensor *input,
                               const DLTensor *weight, double eps, const sgk_exec *exec);

/** output = round(input * r * (1 + weight)); arguments as sgk_rmsnorm */
SGK_API sgk_status sgk_gemma_rmsnorm(const DLTensor *output, const DLTensor *input,
                                     const DLTensor *weight, double eps, const sgk_exec *exec);

/** The same under another name: that of the operator which is given heads, [B, heads, S, D]. */
SGK_API sgk_status sgk_gemma3_rmsnorm(const DLTensor *output, const DLTensor *input,
                                      const DLTensor *weight, double eps, const sgk_exec *exec);

/**
 * output = round(input * r * (weight + scale_shift)), without the last factor when with_scale is false
 *
 * @param scale_shift  finite
 * @param with_scale   false: weight is checked and not used
 * The other arguments are as in sgk_rmsnorm.
 */
SGK_API sgk_status sgk_gemma4_rmsnorm(const DLTensor *output, const DLTensor *input, const DLTensor *weight, double eps,
                                      double scale_shift, bool with_scale, const sgk_exec *exec);

/** output = round(input * r): despite its name a norm by the mean, not by the sum, of the squares; arguments as sgk_rmsnorm */
SGK_API sgk_status sgk_l2norm(const DLTensor *output, const DLTensor *input, double eps, const sgk_exec *exec);

/**
 * x = input + residual;  residual = round(x);  input = round(x * r * weight)
 *
 * The norm is taken of the sum before it is rounded.
 *
 * @param input     [.., D], f32 | f16 | bf16; read and written
 * @param residual  [.., D], dtype of input; read and written; must not overlap input
 * @param weight    [D], dtype of input
 * @param eps       added to the mean square; finite, not negative
 */
SGK_API sgk_status sgk_fused_add_rmsnorm(const DLTensor *input, const DLTensor *residual,
                                         const DLTensor *weight, double eps, const sgk_exec *exec);

/** x = input + residual;  residual = round(x);  input = round(x * r * (1 + weight)); arguments as sgk_fused_add_rmsnorm */
SGK_API sgk_status sgk_gemma_fused_add_rmsnorm(const DLTensor *input, const DLTensor *residual,
                                               const DLTensor *weight, double eps, const sgk_exec *exec);

/**
 * output = round(input * r * weight * gate / (1 + e^-gate))
 *
 * @param gate  [.., D], dtype of input
 * The other arguments are as in sgk_rmsnorm.
 */
SGK_API sgk_status sgk_fused_rmsnorm_gated(const DLTensor *output, const DLTensor *input, const DLTensor *weight,
                                           const DLTensor *gate, double eps, const sgk_exec *exec);

/**
 * output = round((input - mean) / sqrt(variance + eps) * weight + bias), the variance being mean((input - mean)^2)
 *
 * (J. L. Ba, J. R. Kiros, G. E. Hinton: Layer Normalization, 2016.)
 *
 * @param output  [.., D], dtype of input; may be input itself, otherwise must not overlap an argument
 * @param input   [.., D], f32 | f16 | bf16
 * @param weight  [D], dtype of input
 * @param bias    [D], dtype of input; NULL: none
 * @param eps     added to the variance; finite, not negative
 */
SGK_API sgk_status sgk_layernorm(const DLTensor *output, const DLTensor *input, const DLTensor *weight, const DLTensor *bias,
                                 double eps, const sgk_exec *exec);

/**
 * x = input + residual;  residual = round(x);  output = layernorm(x), taken of the sum before it is rounded
 *
 * @param residual  [.., D], dtype of input; read and written; must not overlap another argument
 * The other arguments are as in sgk_layernorm.
 */
SGK_API sgk_status sgk_fused_add_layernorm(const DLTensor *output, const DLTensor *input, const DLTensor *residual, const DLTensor *weight,
                                           const DLTensor *bias, double eps, const sgk_exec *exec);
#endif
