/* Fused kernels of DeepSeek-V4's attention. */
#ifndef SGL_KERNEL_DSV4_H
#define SGL_KERNEL_DSV4_H
#include "base.h"

/*
 * In all of them the last 64 elements of a head are 32 complex numbers, neighbours real and imaginary, and are rotated: multiplied by the
 * row of freqs_cis that the token's position names.
 *
 *     freqs_cis  [P, 64], f32: real, imaginary, real, ...
 *     positions  [T], i32 | i64; any stride
 *
 * An index out of range is an error on the CPU, and on the GPU with exec->check_indices; otherwise nothing is written for such a token.
 * Returned is SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error().
 */

/**
 * q_output[t, h, :] = rotated(round(q_input[t, h, :] / sqrt(mean(q_input[t, h, :]^2) + eps)))
 *
 * @param q_output  [T, H, D], bf16; may be q_input itself
 * @param q_input   [T, H, D], bf16, D 128 or 192; tokens and heads may be strided
 *
 * f32 inside; rounded before the rotation and after it, as the release does.
 */
SGK_API sgk_status sgk_dsv4_fused_q_norm_rope(const DLTensor *q_output, const DLTensor *q_input, const DLTensor *freqs_cis, const DLTensor *positions,
                                              double eps, const sgk_exec *exec);

/**
 * Normalises and rotates keys and stores them into the paged cache that FlashMLA reads:
 *
 *     y = rotated(kv[t, :] * kv_weight / sqrt(mean(kv[t, :]^2) + eps))
 *
 * Elements 0 to 447 become e4m3 codes of y / 2^e in groups of 64, 2^e the least power of two that is not below max(1e-4, |y|) / 448; the
 * last 64 become bf16. Token l = out_loc[t] is token l mod page_size of page l / page_size, and a page holds
 *
 *     448 codes and 64 bf16 of its first token, of its second, ...    at 576 (l mod page_size)
 *     7 exponents e + 127 and an unused byte of its first token, ...  at 576 page_size + 8 (l mod page_size)
 *     up to a multiple of 576 bytes: nothing
 *
 * @param kvcache    [N, 584 page_size rounded up to a multiple of 576], u8 | e4m3; written; pages may be strided
 * @param kv         [T, 512], bf16; rows may be strided
 * @param kv_weight  [512], bf16
 * @param out_loc    [T], i32 | i64: a place below N page_size for each token, none twice; any stride
 * @param page_size  a power of two, 1 to 256
 *
 * f32 inside, one rounding at the end.
 */
SGK_API sgk_status sgk_dsv4_fused_k_norm_rope_flashmla(const DLTensor *kvcache, const DLTensor *kv, const DLTensor *kv_weight, const DLTensor *freqs_cis,
                                                       const DLTensor *positions, const DLTensor *out_loc, double eps, int64_t page_size, const sgk_exec *exec);

/**
 * Rotates the indexer's queries, transforms them and quantises them with a scale for each head:
 *
 *     h = H rotated(q_input[t, h, :]) / sqrt(128),   s = max(1e-4, |h|) / 448
 *     q_fp8[t, h, :] = e4m3(h / s),   weights_out[t, h, 0] = weight[t, h] * weight_scale * s
 *
 * H is the Hadamard matrix of order 128 in Sylvester's order.
 *
 * @param q_fp8        [T, H, 128], e4m3 | u8 | i8
 * @param weights_out  [T, H, 1], f32
 * @param q_input      [T, H, 128], bf16; tokens and heads may be strided, here and everywhere
 * @param weight       [T, H], bf16
 *
 * f32 inside, one rounding at the end.
 */
SGK_API sgk_status sgk_dsv4_fused_q_indexer_rope_hadamard_quant(const DLTensor *q_fp8, const DLTensor *weights_out, const DLTensor *q_input,
                                                                const DLTensor *weight, const DLTensor *freqs_cis, const DLTensor *positions,
                                                                double weight_scale, const sgk_exec *exec);

#endif
