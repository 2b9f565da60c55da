/* Mixture of experts: rows to their experts and back. */
#ifndef SGL_KERNEL_MOE_H
#define SGL_KERNEL_MOE_H
#include "base.h"

/**
 * output[i, :] = input[dst2src_map[i], :]
 *
 * @param output       [D, C], dtype of input; rows may be strided; must not overlap input
 * @param input        [S, C], any dtype; rows may be strided
 * @param dst2src_map  [D], i32 | i64, contiguous; in [0, S)
 *
 * Exact, any C. An entry outside [0, S) is refused on the CPU, and on the GPU with exec->check_indices, before anything is written; otherwise
 * that row is left as it is.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_shuffle_rows(const DLTensor *output, const DLTensor *input, const DLTensor *dst2src_map, const sgk_exec *exec);

/**
 * output[i, :] = round(factors[i K] * input[permutation[i K], :] + ... + factors[i K + K - 1] * input[permutation[i K + K - 1], :])
 *
 * @param output       [M, C], f32 | f16 | bf16; rows may be strided; must not overlap another argument
 * @param input        [S, C], dtype of output; rows may be strided
 * @param permutation  [M K], i32 | i64, contiguous; in [0, S)
 * @param factors      [M K], dtype of output, contiguous; NULL: 1
 *
 * f32 inside, in the order of the formula, one rounding at the end. An entry of permutation outside [0, S) is refused on the CPU, and on
 * the GPU with exec->check_indices, before anything is written; otherwise its term is left out.
 */
SGK_API sgk_status sgk_apply_shuffle_mul_sum(const DLTensor *output, const DLTensor *input, const DLTensor *permutation, const DLTensor *factors,
                                             const sgk_exec *exec);

/**
 * output[t, :] = round(input[t, 0, :] + ... + input[t, K - 1, :])
 *
 * @param output  [T, H], dtype of input; rows may be strided; must not overlap input
 * @param input   [T, K, H], f32 | f16 | bf16; any strides but for the last dimension; 0 for K = 0
 *
 * f32 inside, in the order of the formula, one rounding at the end.
 */
SGK_API sgk_status sgk_moe_sum(const DLTensor *output, const DLTensor *input, const sgk_exec *exec);

/** output[t, :] = round(routed_scaling_factor * (input[t, 0, :] + ... + input[t, K - 1, :])); otherwise as sgk_moe_sum. */
SGK_API sgk_status sgk_moe_sum_reduce(const DLTensor *output, const DLTensor *input, double routed_scaling_factor, const sgk_exec *exec);
#endif
