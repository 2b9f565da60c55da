/* Activations, gated and plain. */
#ifndef SGL_KERNEL_ACT_H
#define SGL_KERNEL_ACT_H
#include "base.h"

/**
 * out[i, j] = round(silu(input[i, j]) * input[i, D + j]),   silu(a) = a / (1 + e^-a)
 *
 * silu(-infinity) is -0, the limit; silu(NaN) is NaN.
 *
 * @param out    [..., D], dtype of input; rows may be strided; must not overlap input
 * @param input  [..., 2 D], f32 | f16 | bf16; any number of leading dimensions, evenly spaced in memory
 *
 * f32 inside, one rounding at the end.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_silu_and_mul(const DLTensor *out, const DLTensor *input, const sgk_exec *exec);

/**
 * As sgk_silu_and_mul, but row i (of all rows, the leading dimensions counted as one) is left as it is where
 * expert_ids[i / expert_step] is -1.
 *
 * @param expert_ids   [E], i32 | i64, contiguous; at least as many as there are steps of expert_step rows
 * @param expert_step  rows that share an expert, at least 1
 */
SGK_API sgk_status sgk_silu_and_mul_experts(const DLTensor *out, const DLTensor *input, const DLTensor *expert_ids, int64_t expert_step,
                                            const sgk_exec *exec);

/**
 * out[i, j] = round(gelu(input[i, j]) * input[i, D + j]),   gelu(a) = a / 2 * (1 + erf(a / sqrt(2)))
 *
 * gelu(-infinity) is 0, the limit. Tensors and numbers as in sgk_silu_and_mul.
 */
SGK_API sgk_status sgk_gelu_and_mul(const DLTensor *out, const DLTensor *input, const sgk_exec *exec);

/**
 * out[i, j] = round(gelu_tanh(input[i, j]) * input[i, D + j]),   gelu_tanh(a) = a / 2 * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 a^3)))
 *
 * gelu_tanh(-infinity) is 0, the limit. Tensors and numbers as in sgk_silu_and_mul.
 */
SGK_API sgk_status sgk_gelu_tanh_and_mul(const DLTensor *out, const DLTensor *input, const sgk_exec *exec);

/**
 * out[i, j] = round(a / (1 + e^(-1.702 a))),   a = input[i, j]
 *
 * @param out    [..., D], dtype of input; rows may be strided; may be input itself
 * @param input  [..., D], f32 | f16 | bf16; any number of leading dimensions, evenly spaced in memory
 *
 * f32 inside, one rounding at the end; 0 for -infinity.
 */
SGK_API sgk_status sgk_gelu_quick(const DLTensor *out, const DLTensor *input, const sgk_exec *exec);

/**
 * output[b, i] = round(sin(v)),   output[b, dim / 2 + i] = round(cos(v)),   v = scale * input[b] * e^(-ln(max_period) * i / (dim / 2 - downscale_freq_shift))
 *
 * @param output                [B, dim], f32 | f16 | bf16; rows may be strided; must not overlap input
 * @param input                 [B], f32 | f64 | f16 | bf16 | i32 | i64; any stride
 * @param dim                   even
 * @param flip_sin_to_cos       cosines first, then sines
 * @param downscale_freq_shift  not dim / 2
 * @param max_period            at least 1
 *
 * v is f64, or as good as that: large timesteps lose no digits.
 */
SGK_API sgk_status sgk_timestep_embedding(const DLTensor *output, const DLTensor *input, int64_t dim, bool flip_sin_to_cos, double downscale_freq_shift,
                                          double scale, int64_t max_period, const sgk_exec *exec);
#endif
