/* Rotary position embedding. */
#ifndef SGL_KERNEL_ROPE_H
#define SGL_KERNEL_ROPE_H
#include <stdbool.h>
#include "base.h"

/**
 * Rotates pairs (x, y) of the first R elements of every head by the angle of the token's position:
 *
 *     x' = round(x cos_i - y sin_i),   y' = round(y cos_i + x sin_i)
 *
 * (J. Su et al.: RoFormer, 2021.) Elements from R on stay as they are.
 *
 * @param query          [T, H * head_size] or [T, H, head_size], f32 | f16 | bf16; read and written
 * @param key            the same with heads K, H a multiple of K; may be NULL; must not overlap query, but both may be
 *                       slices of one tensor
 * @param positions      [T], i64 | i32: a row of cos_sin_cache for each token; any strides
 * @param cos_sin_cache  [P, R], dtype of query: R / 2 cosines, then R / 2 sines; R even, at most head_size
 * @param head_size      elements in a head
 * @param is_neox        pairs are elements i and i + R / 2; otherwise 2 i and 2 i + 1
 *
 * T may also be two dimensions, [B, S], in query, key and positions alike. Tokens and heads of query and of key may each have strides
 * of their own.
 *
 * f32 inside, one rounding at the end. A position outside of [0, P) is an error on the CPU, and on the GPU with exec->check_indices;
 * otherwise such a token is left as it is.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_rotary_embedding(const DLTensor *query, const DLTensor *key, const DLTensor *positions,
                                        const DLTensor *cos_sin_cache, int64_t head_size, bool is_neox, const sgk_exec *exec);
#endif
