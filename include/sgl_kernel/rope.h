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
 * f32 inside, one rounding at the end. On the CPU a position outside of [0, P) is an error; on the GPU such a token is left as it is.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_rotary_embedding(const DLTensor *query, const DLTensor *key, const DLTensor *positions,
                                        const DLTensor *cos_sin_cache, int64_t head_size, bool is_neox, const sgk_exec *exec);

/**
 * The same rotation by a cache in f32, from q to q_rope and from k to k_rope; elements from R on are copied. With the four fused arguments
 * also stores keys and values, k_buffer[kv_cache_loc[t]] = k_rope[t] and v_buffer[kv_cache_loc[t]] = v[t].
 *
 * @param q_rope         [T, H, D], dtype of q; written; may be q itself
 * @param k_rope         [T, K, D], dtype of q; written; may be k itself
 * @param k_buffer       [S, K, D], dtype of q, written; NULL together with v_buffer, v and kv_cache_loc
 * @param v_buffer       as k_buffer
 * @param q              [T, H, D], f32 | f16 | bf16
 * @param k, v           [T, K, D], dtype of q; q, k and v may be slices of one tensor
 * @param cos_sin_cache  [P, R], f32: R / 2 cosines, then R / 2 sines; R even, at most D
 * @param pos_ids        [T], i64 | i32: a row of cos_sin_cache for each token; any stride
 * @param kv_cache_loc   [T], i64 | i32: a row of the buffers for each token, none twice; any stride
 * @param interleave     pairs are elements 2 i and 2 i + 1; otherwise i and i + R / 2
 *
 * Rows and heads may have any strides. f32 inside, one rounding at the end. On the CPU an index out of range is an error; on the GPU a token
 * with such a position is passed over, and one with such a place is rotated but not stored.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_apply_rope_pos_ids_cos_sin_cache(const DLTensor *q_rope, const DLTensor *k_rope, const DLTensor *k_buffer,
                                                        const DLTensor *v_buffer, const DLTensor *q, const DLTensor *k, const DLTensor *v,
                                                        const DLTensor *cos_sin_cache, const DLTensor *pos_ids, const DLTensor *kv_cache_loc,
                                                        bool interleave, const sgk_exec *exec);
#endif
