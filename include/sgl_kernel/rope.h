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
 * T may also be two dimensions, [B, S], in query, key and positions alike; positions may then be [B * S], too, if query has four. Tokens and
 * heads of query and of key may each have strides of their own.
 *
 * f32 inside, one rounding at the end. A position outside of [0, P) is an error on the CPU, and on the GPU with exec->check_indices;
 * otherwise such a token is left as it is.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_rotary_embedding(const DLTensor *query, const DLTensor *key, const DLTensor *positions,
                                        const DLTensor *cos_sin_cache, int64_t head_size, bool is_neox, const sgk_exec *exec);

/**
 * The same from query to query_out and from key to key_out; elements from R on are copied.
 *
 * @param query_out  shape and dtype of query; written; may be query itself
 * @param key_out    the same for key; NULL together with key
 *
 * All else as above.
 */
SGK_API sgk_status sgk_rotary_embedding_out(const DLTensor *query_out, const DLTensor *key_out, const DLTensor *query, const DLTensor *key,
                                            const DLTensor *positions, const DLTensor *cos_sin_cache, int64_t head_size, bool is_neox,
                                            const sgk_exec *exec);

/**
 * The same in place by three positions of a token, of time, height and width (P. Wang et al.: Qwen2-VL, 2024): which of them pair i takes its
 * cosine and sine from is said by sections t, h, w:
 *
 *     in order     time for i < t, height for i < t + h, else width
 *     interleaved  height for i = 1, 4, 7, ... below 3 h, width for i = 2, 5, 8, ... below 3 w, else time
 *
 * @param positions          [3, T], or [T]: then one for all; i64 | i32; any strides
 * @param query              [T, H * head_size] or [T, H, head_size], as above; key the same with K heads, or NULL
 * @param mrope_section      t, h, w; may be NULL for positions [T]
 * @param sections           how many numbers these are
 * @param mrope_interleaved  see above
 *
 * All else as above.
 */
SGK_API sgk_status sgk_multimodal_rotary_embedding(const DLTensor *query, const DLTensor *key, const DLTensor *positions, const DLTensor *cos_sin_cache,
                                                   int64_t head_size, const int64_t *mrope_section, size_t sections, bool mrope_interleaved, bool is_neox,
                                                   const sgk_exec *exec);

/**
 * Rotates elements j and j + D / 2 of every head, in place, by cosines and sines that each token has to itself:
 *
 *     x' = round(x cos_j - y sin_j),   y' = round(y cos_(j + D / 2) + x sin_(j + D / 2))
 *
 * @param query  [T, H, D], f32 | f16 | bf16, D even; read and written
 * @param key    [T, K, D], dtype of query; read and written; both may be slices of one tensor
 * @param cos    [T, D], dtype of query or f32
 * @param sin    [T, D], dtype of cos
 *
 * Rows and heads may have any strides. f32 inside, one rounding at the end.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_apply_rotary_pos_emb(const DLTensor *query, const DLTensor *key, const DLTensor *cos, const DLTensor *sin, const sgk_exec *exec);

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
 * Rows and heads may have any strides. f32 inside, one rounding at the end. An index out of range is an error on the CPU, and on the GPU with
 * exec->check_indices; otherwise a token with such a position is passed over, and one with such a place is rotated but not stored.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_apply_rope_pos_ids_cos_sin_cache(const DLTensor *q_rope, const DLTensor *k_rope, const DLTensor *k_buffer,
                                                        const DLTensor *v_buffer, const DLTensor *q, const DLTensor *k, const DLTensor *v,
                                                        const DLTensor *cos_sin_cache, const DLTensor *pos_ids, const DLTensor *kv_cache_loc,
                                                        bool interleave, const sgk_exec *exec);

/** What sgk_fused_qk_norm_rope is told beside its tensors. */
typedef struct sgk_qk_norm_rope_options {
    size_t  size;                       /* sizeof(sgk_qk_norm_rope_options) as the caller compiled it: it may grow at its end */
    int64_t num_heads_q, num_heads_k, num_heads_v;
    int64_t head_dim;                   /* 64, 128 or 256 */
    int64_t rotary_dim;                 /* elements of a head that rotate: a multiple of head_dim / 32, with is_neox of twice that */
    double  eps, base;
    bool    is_neox;                    /* pairs are elements i and i + rotary_dim / 2; otherwise 2 i and 2 i + 1 */
    double  factor, low, high;          /* YaRN; factor 1: none */
    double  attention_factor;           /* times the rotated elements */
} sgk_qk_norm_rope_options;

/**
 * Normalises every head of q and k and rotates its first rotary_dim elements by the token's position, in place:
 *
 *     x = head * weight / sqrt(mean(head^2) + eps),   f_i = base^(-2 i / rotary_dim)
 *     x' = round((x cos(p f_i) - y sin(p f_i)) attention_factor),   y' = round((y cos(p f_i) + x sin(p f_i)) attention_factor)
 *
 * With factor other than 1, f_i becomes f_i / factor * ramp + f_i (1 - ramp), ramp going from 0 at i = low to 1 at i = high (B. Peng et al.: YaRN,
 * 2023); where low and high are the same, high is 0.001 more. Heads of v stay as they are.
 *
 * @param qkv           [T, (Hq + Hk + Hv) * head_dim], bf16: heads of q, of k, of v; rows may be strided; read and written
 * @param q_weight      [head_dim], bf16
 * @param k_weight      [head_dim], bf16
 * @param position_ids  [T], i32; any stride
 *
 * f32 inside, one rounding at the end.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_fused_qk_norm_rope(const DLTensor *qkv, const DLTensor *q_weight, const DLTensor *k_weight, const DLTensor *position_ids,
                                          const sgk_qk_norm_rope_options *options, const sgk_exec *exec);
#endif
