/* Root mean square norms. */
#ifndef SGL_KERNEL_NORM_H
#define SGL_KERNEL_NORM_H
#include "base.h"

/**
 * output[i, :] = round(input[i, :] * r_i * weight),   r_i = 1 / sqrt(mean(input[i, :]^2) + eps)
 *
 * (B. Zhang, R. Sennrich: Root Mean Square Layer Normalization, 2019.)
 *
 * @param output  [N, D], dtype of input; rows may be strided; may be input itself, otherwise must not overlap an argument
 * @param input   [N, D], f32 | f16 | bf16; rows may be strided
 * @param weight  [D], dtype of input
 * @param eps     added to the mean square; finite, not negative
 *
 * Sums are f32 in a fixed order and one rounding happens at the end: row i gives the same bits whatever N is.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_rmsnorm(const DLTensor *output, const DLTensor *input,
                               const DLTensor *weight, double eps, const sgk_exec *exec);

/**
 * x = input + residual;  residual = round(x);  input = round(x * r * weight),   r_i = 1 / sqrt(mean(x[i, :]^2) + eps)
 *
 * The norm is taken of the sum before it is rounded.
 *
 * @param input     [N, D], f32 | f16 | bf16; rows may be strided; read and written
 * @param residual  [N, D], dtype of input; rows may be strided; read and written; must not overlap input
 * @param weight    [D], dtype of input
 * @param eps       added to the mean square; finite, not negative
 *
 * @return as sgk_rmsnorm
 */
SGK_API sgk_status sgk_fused_add_rmsnorm(const DLTensor *input, const DLTensor *residual,
                                         const DLTensor *weight, double eps, const sgk_exec *exec);
#endif
