/* Quantisers of activations to 8 bits. */
#ifndef SGL_KERNEL_QUANT_H
#define SGL_KERNEL_QUANT_H
#include <stdbool.h>
#include "base.h"

/*
 * In all of them
 *   - every step is one f32 operation, in the order written, so that all devices give the same bits;
 *   - amax leaves NaN out; a NaN becomes the e4m3 code 0x7f, and 0 in integer formats;
 *   - what has nothing but zeros becomes zeros, also where its scale is 0;
 *   - e4m3 is rounded to nearest even after the clamp;
 *   - input is f32 | f16 | bf16, its leading dimensions evenly spaced in memory.
 */

/**
 * s = amax(row) / 448,   q = e4m3(clamp(x * (1 / s), +-448))
 *
 * 1 / s is at most the largest f32.
 *
 * @param output_q  [..., D], e4m3, sizes of input
 * @param output_s  one f32 a row, in any shape with evenly spaced elements: [N], [N, 1], ...
 * @param input     [..., D]
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_per_token_quant_fp8(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, const sgk_exec *exec);

/**
 * s = max(|row|, 1e-7) / 127,   q = 128 + round(x * (127 / amax)), to nearest even: zero point 128
 *
 * @param output_q  [..., D], u8, sizes of A
 * @param output_s  one f32 a row, in any shape with evenly spaced elements
 * @param A         [..., D]
 * @return as sgk_per_token_quant_fp8
 */
SGK_API sgk_status sgk_per_token_quant_int8(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *A, const sgk_exec *exec);

/**
 * q = e4m3(clamp(x * (1 / s), +-448)) with one scale for the whole tensor
 *
 * is_static: s is what output_s holds. Otherwise first s = max(output_s, amax / 448), which is stored: output_s is 0 at the start of
 * a new tensor, and may gather the maximum of several calls.
 *
 * @param output_q  e4m3, contiguous, sizes of input
 * @param output_s  f32, one element
 * @param input     any sizes, contiguous
 * @return as sgk_per_token_quant_fp8
 */
SGK_API sgk_status sgk_per_tensor_quant_fp8(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, bool is_static,
                                            const sgk_exec *exec);

/**
 * One scale for each group_size neighbours of a row, a = max(eps, amax(group)):
 *
 *     plain         s = a / max                                   q = cast(clamp(x / s, min, max))
 *     scale_ue8m0   s = 2^ceil(log2(max(a / max, 1e-10)))         q = cast(clamp(x / s, min, max))
 *
 * cast rounds to nearest even for e4m3 and towards zero for i8.
 *
 * @param output_q     [..., D], e4m3 | i8, sizes of input
 * @param output_s     plain: [N, D / group_size], f32, any strides (row-major, column-major, column-major with padded columns).
 *                     scale_ue8m0: [N, ceil(D / group_size / 4)], i32, any strides: byte b of word [t, j] is log2(s) + 127 of group 4 j + b;
 *                     bytes behind the last group are 0
 * @param input        [..., D]
 * @param group_size   divides D
 * @param eps          at least 0
 * @param min, max     what is used of the format's range; min <= -1, max >= 1
 * @return as sgk_per_token_quant_fp8
 */
SGK_API sgk_status sgk_per_token_group_quant_8bit(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, int64_t group_size,
                                                  double eps, double min, double max, bool scale_ue8m0, const sgk_exec *exec);

/**
 * The second version, which multiplies; a = max(1e-10, amax(group)):
 *
 *     plain         s = a * (1 / max)                             q = cast(clamp(x * (max / a), min, max))
 *     scale_ue8m0   s = 2^ceil(log2(a * (1 / max)))               q = cast(clamp(x / s, min, max))
 *
 * fuse_silu_and_mul: x = round(round(silu(gate)) * up), each rounded to the format of input, whose rows are [gate | up].
 *
 * @param output_q     [..., D], e4m3 | i8
 * @param output_s     as above; [B, N, ...] with masked_m
 * @param input        [..., D], or [..., 2 D] with fuse_silu_and_mul; three dimensions with masked_m
 * @param masked_m     NULL or i32 [B]: of batch b the first masked_m[b] rows are done and nothing of the others is written
 * @param group_size   16, 32, 64 or 128; divides D
 * @param eps          1e-10
 * @param min, max     -448 and 448 for e4m3, -128 and 127 for i8
 * @return as sgk_per_token_quant_fp8
 */
SGK_API sgk_status sgk_per_token_group_quant_8bit_v2(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input,
                                                     const DLTensor *masked_m, int64_t group_size, double eps, double min, double max,
                                                     bool scale_ue8m0, bool fuse_silu_and_mul, const sgk_exec *exec);

/**
 * y = round(input * weight / sqrt(mean(input ^ 2) + rms_eps)), rounded once, to the format of input; y is then quantised as by
 * sgk_per_token_group_quant_8bit. Sums are f32, so that two devices may differ in the last bit of y.
 *
 * @param output_q, output_s, group_size, min, max, scale_ue8m0   as there
 * @param input        [..., D]
 * @param weight       [D], format of input
 * @param rms_eps      at least 0
 * @param quant_eps    eps of the quantiser
 * @return as sgk_per_token_quant_fp8
 */
SGK_API sgk_status sgk_fused_rmsnorm_quant(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, const DLTensor *weight,
                                           int64_t group_size, double rms_eps, double quant_eps, double min, double max, bool scale_ue8m0,
                                           const sgk_exec *exec);

/**
 * The same of x = input + residual; residual = round(x). The norm is taken of the unrounded sum.
 *
 * @param residual     [..., D], format and sizes of input; read and written
 */
SGK_API sgk_status sgk_fused_add_rmsnorm_quant(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *residual, const DLTensor *input,
                                               const DLTensor *weight, int64_t group_size, double rms_eps, double quant_eps, double min, double max,
                                               bool scale_ue8m0, const sgk_exec *exec);
#endif
