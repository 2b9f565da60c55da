/* Scaled dot-product attention over dense, packed and paged keys and values. */
#ifndef SGL_KERNEL_ATTENTION_H
#define SGL_KERNEL_ATTENTION_H
#include <stdbool.h>
#include "base.h"

/**
 * What sgk_flash_attn may be told beyond q, k and v. Fill with SGK_FLASH_ATTN_OPTIONS_INIT and set what differs.
 * Tensors are i32 and may be NULL unless another type is named; B is the number of sequences.
 */
typedef struct sgk_flash_attn_options {
    size_t size;                        /* sizeof(sgk_flash_attn_options) as the caller compiled it: it may grow at its end */

    /* Keys and values to append first: [B, N, K, D or E], or [N, K, D or E] with cu_seqlens_k_new; dtype of q. Token t of sequence n goes to
     * place seqused_k[n] + t of its cache. Both or neither; they need seqused_k. */
    const DLTensor *k_new, *v_new;

    const DLTensor *cu_seqlens_q;       /* [B + 1]: sequence n has rows cu_seqlens_q[n] .. cu_seqlens_q[n + 1] - 1 of q [T, H, D] */
    const DLTensor *cu_seqlens_k;       /* [B + 1]: the same for k, v [S, K, D]; excludes page_table and kv_batch_idx */
    const DLTensor *cu_seqlens_k_new;   /* [B + 1]: the same for k_new, v_new; without them ignored */
    const DLTensor *seqused_q;          /* [B]: only so many queries count; later rows of out and softmax_lse are left as they are */
    const DLTensor *seqused_k;          /* [B]: how much of the cache is filled, before anything is appended. NULL: all of it */
    const DLTensor *page_table;         /* [B, P]: place j of sequence n is row j % page_size of page page_table[n, j / page_size] */
    const DLTensor *kv_batch_idx;       /* [B]: the row of k and v that holds sequence n's cache. NULL: row n */
    const DLTensor *leftpad_k;          /* [B]: the place of sequence n's key 0 */

    const DLTensor *q_v;                /* as out, dtype of q: scores get q_v[i] . v[j] besides. Not for e4m3 */
    const DLTensor *rotary_cos, *rotary_sin;                /* [R, rotary_dim / 2], dtype of q: k_new and q are rotated first. Both or neither; they need k_new */
    const DLTensor *seqlens_rotary;                         /* [B]: the position of sequence n's first new token. NULL: seqused_k */
    const DLTensor *q_descale, *k_descale, *v_descale;      /* [B, K], f32, any strides: what q, k and v of e4m3 are multiplied by. Other formats: no effect */
    const DLTensor *sinks;                                  /* [H], f32 | f16 | bf16: a score of each head that takes part in the sum and has no value */

    int64_t max_seqlen_q;               /* the longest sequence of q; needed with cu_seqlens_q. -1: not given */
    int64_t max_seqlen_k;               /* of k; needed with cu_seqlens_k. -1: not given */
    double  softmax_scale;              /* 0: 1 / sqrt(D), with q_v 1 / sqrt(D + E) */
    bool    causal;
    int64_t window_size_left, window_size_right;            /* -1: no limit */
    int64_t attention_chunk;            /* queries see keys of their own chunk of so many alone; 0: no chunks */
    double  softcap;                    /* scores s become softcap * tanh(s / softcap); 0: they do not */
    bool    rotary_interleaved;         /* pairs are (2i, 2i + 1); otherwise (i, i + rotary_dim / 2) */
    int64_t num_splits;                 /* parts that a sequence's keys are cut into on the GPU, at most 256; 0: chosen by the library; see exec->batch_invariant below */
    bool    top_left;                   /* query i stands at i: the first query and the first key are aligned, not the last ones */
    int64_t sm_margin;                  /* multiprocessors that kernels which fill the GPU leave to others */
} sgk_flash_attn_options;

#define SGK_FLASH_ATTN_OPTIONS_INIT { sizeof(sgk_flash_attn_options), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
                                      -1, -1, 0, false, -1, -1, 0, 0, true, 0, false, 0 }

/**
 * out[i] = sum_j p_ij v[j],   p_ij = exp(s_ij - softmax_lse[i]),   s_ij = softmax_scale * (q[i] . k[j] + q_v[i] . v[j]),
 * softmax_lse[i] = ln(sum_j exp(s_ij) + exp(sink)), for each sequence and head; query head h reads key head h / (H / K).
 *
 * (T. Dao: FlashAttention-2, 2023, for the order of the work: one pass over the keys with a running maximum.)
 *
 * A sequence has sq queries (seqused_q at most) and sk keys: what is filled, less leftpad_k, and what is appended. Query i
 * stands at c = i + sk - sq, so that the last query and the last key are aligned, and sees key j when
 *
 *     c - window_size_left <= j <= c + window_size_right        and, causal, j <= c
 *     floor(j / attention_chunk) = floor(c / attention_chunk)   where there are chunks
 *
 * A query that sees no key gets out 0 and softmax_lse -inf, also with sinks; where k and v have room for no key at all, +inf.
 *
 * New token t of sequence n is rotated by row seqlens_rotary[n] + t of rotary_cos and rotary_sin, query i by row seqlens_rotary[n] + i where
 * attention is causal or has a window or chunks, otherwise by row seqlens_rotary[n]: the first rotary_dim elements, (x, y) becomes
 * (x cos - y sin, x sin + y cos), rounded to the dtype once. q itself is not written.
 *
 * @param out          [B, Q, H, E] or [T, H, E], dtype of q, for e4m3 bf16; rows and heads may be strided
 * @param softmax_lse  [B, H, Q] or [H, T], f32; may be NULL
 * @param q            [B, Q, H, D], or with cu_seqlens_q [T, H, D]; f32 | f16 | bf16 | e4m3; D up to 576; all but D may be strided
 * @param k            dense [C, S, K, D] with C = B unless kv_batch_idx is given; with cu_seqlens_k [S, K, D]; with page_table
 *                     [pages, page_size, K, D], any page_size; dtype of q; H a multiple of K; all but D may be strided.
 *                     Written only where k_new is appended
 * @param v            as k with head size E, up to 512
 * @param options      NULL: none
 *
 * Head sizes that are no multiple of 8 are slow on the GPU. Sums are f32, p is rounded to the dtype (for e4m3 to f16, or with many queries to e4m3) on its way through the GPU's matrix units, and out is rounded once. On the CPU a
 * sequence's numbers depend on that sequence alone; on the GPU they do with exec->batch_invariant: on its own queries and keys, and on what all
 * sequences of the call have in common (formats, heads and head sizes, options, how queries, keys and pages lie), not on which others there are, on
 * their order, or on max_seqlen_q, max_seqlen_k and the width of page_table. Each sequence is then done by what suits its own number of queries and cut
 * by its own number of keys; num_splits counts for those of more than 32 queries (e4m3) or 64 / (H / K), at least 1.
 *
 * Scratch memory on the GPU (see SGK_EXEC workspace_query): for parts of results and lists of work; with small pages and many queries also for keys
 * and values of all places that page_table has room for, where those take at most 256 MiB.
 *
 * On the CPU, and on the GPU with exec->check_indices, all index tensors are bounds-checked before anything is written. Otherwise
 * lengths are cut to what the tensors hold, and a page or cache row that does not exist reads as zeros and is never written.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_flash_attn(const DLTensor *out, const DLTensor *softmax_lse,
                                  const DLTensor *q, const DLTensor *k, const DLTensor *v,
                                  const sgk_flash_attn_options *options, const sgk_exec *exec);

/**
 * Fills what the released interface makes before attention and hands to it. sgk_flash_attn plans for itself, in the call: nothing reads this.
 *
 * @param metadata    [B + 1], i32: each sequence's keys, then num_splits; written
 * @param seqused_k   [B], i32: each sequence's keys
 * @param num_splits  0 to 256
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_attention_scheduler_metadata(const DLTensor *metadata, const DLTensor *seqused_k, int64_t num_splits, const sgk_exec *exec);

/** What the two functions below may be told besides. Fill with SGK_ATTENTION_POOL_OPTIONS_INIT and set what differs. */
typedef struct sgk_attention_pool_options {
    size_t          size;                   /* sizeof(sgk_attention_pool_options) as the caller compiled it: it may grow at its end */
    double          sm_scale;
    double          logit_cap;              /* scores s become logit_cap * tanh(s / logit_cap); 0: they do not */
    bool            is_cross_attn;          /* keys are those of the encoder, 0 .. encoder_lens[b] - 1, and every query sees all of them */
    int64_t         sliding_window_size;    /* a query sees so many keys, itself included; 0 or less: all before it */
    const DLTensor *encoder_lens;           /* [B], i64, may be NULL: where each sequence's own tokens begin in req_to_token */
    const DLTensor *sinks;                  /* [H], f32 | f16 | bf16, may be NULL */
} sgk_attention_pool_options;

#define SGK_ATTENTION_POOL_OPTIONS_INIT { sizeof(sgk_attention_pool_options), 1, 0, false, 0, NULL, NULL }

/**
 * Attention of one new token a sequence to a pool of keys and values: token p of sequence b lies in slot
 * req_to_token[req_pool_indices[b], p], with encoder_lens p + encoder_lens[b]. key and value are written to slot loc[b] first.
 *
 * @param output            [B, H, E], dtype of query; rows and heads may be strided
 * @param query             [B, H, D], f32 | f16 | bf16
 * @param k_cache, v_cache  [slots, K, D] and [slots, K, E], dtype of query; H a multiple of K; may be the same memory, as the latent
 *                          keys of which the first E are the values: then value is not written
 * @param key, value        [B, K, D] and [B, K, E]; both NULL: nothing is written
 * @param loc               [B], i64
 * @param attn_logits       [B, H, splits, E + 1], f32: what the released operator works in, and this one leaves as it is; may be NULL
 * @param req_to_token      [R, C], i32 | i64
 * @param req_pool_indices  [B], i64
 * @param seq_lens          [B], i64: tokens of each sequence, the new one included
 * @param options           NULL: none
 *
 * Formula, numbers and index checks as sgk_flash_attn, causal. A sequence without keys gives 0.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_decode_attention(const DLTensor *output, const DLTensor *query, const DLTensor *k_cache, const DLTensor *v_cache, const DLTensor *key,
                                        const DLTensor *value, const DLTensor *loc, const DLTensor *attn_logits, const DLTensor *req_to_token,
                                        const DLTensor *req_pool_indices, const DLTensor *seq_lens, const sgk_attention_pool_options *options, const sgk_exec *exec);

/**
 * Attention of new tokens to those before them, which are in a pool as in sgk_decode_attention, and to each other, causal. The new keys and
 * values are read where they are and not written to the pool.
 *
 * @param o_extend                 [T, H, E], dtype of q_extend
 * @param q_extend                 [T, H, D], f32 | f16 | bf16
 * @param k_extend, v_extend       [T, K, D] and [T, K, E]; NULL with is_cross_attn
 * @param k_buffer, v_buffer       [slots, K, D] and [slots, K, E]; with another number of heads or other sizes than k_extend the pool is not read, and no
 *                                 sequence may have tokens before the new ones
 * @param req_to_token             [R, C], i32 | i64
 * @param req_pool_indices         [B], i64
 * @param seq_lens                 [B], i64: tokens of each sequence, the new ones included
 * @param extend_seq_lens          [B], dtype of req_to_token: the new ones
 * @param extend_start_loc         [B], dtype of req_to_token: their first row; sequences follow each other without gaps
 * @param max_len_extend           the most new tokens of a sequence
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_extend_attention(const DLTensor *o_extend, const DLTensor *q_extend, const DLTensor *k_extend, const DLTensor *v_extend, const DLTensor *k_buffer,
                                        const DLTensor *v_buffer, const DLTensor *req_to_token, const DLTensor *req_pool_indices, const DLTensor *seq_lens,
                                        const DLTensor *extend_seq_lens, const DLTensor *extend_start_loc, int64_t max_len_extend,
                                        const sgk_attention_pool_options *options, const sgk_exec *exec);

/** What sgk_sparse_attention may be told besides. Fill with SGK_SPARSE_ATTENTION_OPTIONS_INIT and set what differs. */
typedef struct sgk_sparse_attention_options {
    size_t          size;                   /* sizeof(sgk_sparse_attention_options) as the caller compiled it: it may grow at its end */
    const DLTensor *cu_seqlens_q, *cu_seqlens_k;            /* [B + 1], i32: sequences are packed; both or neither */
    const DLTensor *seqused_k;              /* [B], i32: how many keys count, at most */
    int64_t         max_seqlen_q, max_seqlen_k;             /* the longest sequences, where they are packed */
    double          softmax_scale;          /* 0: 1 / sqrt(D) */
    bool            is_causal;
    double          softcap;                /* as in sgk_flash_attn_options */
    const DLTensor *alibi_slopes;           /* not supported: NULL */
    double          p_dropout;              /* not supported: 0 */
} sgk_sparse_attention_options;

#define SGK_SPARSE_ATTENTION_OPTIONS_INIT { sizeof(sgk_sparse_attention_options), NULL, NULL, NULL, -1, -1, 0, false, 0, NULL, 0 }

/**
 * Attention in which queries 64 r .. 64 r + 63 of a sequence and head see the keys that list r names: for each of its first block_count
 * entries of block_offset the 64 keys from there on, and each of its first column_count entries of column_index; of those the ones that exist,
 * and causal only up to the query's own place c = i + sk - sq. A key that is named twice counts twice.
 *
 * (H. Jiang et al.: MInference 1.0, 2024.)
 *
 * @param out           [B, Q, H, E] or [T, H, E], dtype of q; rows and heads may be strided
 * @param softmax_lse   [B, H, Q] or [H, T], f32; may be NULL
 * @param q             [B, Q, H, D] or [T, H, D], f16 | bf16, on the CPU also f32
 * @param k, v          [B, S, K, D] and [B, S, K, E], or [S, K, D] and [S, K, E]; dtype of q; H a multiple of K
 * @param block_count   [B, H, R], i32, R at least a 64th of the longest sequence of queries; like all four dense
 * @param block_offset  [B, H, R, N], i32
 * @param column_count  [B, H, R], i32
 * @param column_index  [B, H, R, V], i32
 * @param options       NULL: none
 *
 * A query that sees no key gets out 0 and softmax_lse -inf. Numbers and index checks as sgk_flash_attn.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_sparse_attention(const DLTensor *out, const DLTensor *softmax_lse, const DLTensor *q, const DLTensor *k, const DLTensor *v, const DLTensor *block_count,
                                        const DLTensor *block_offset, const DLTensor *column_count, const DLTensor *column_index,
                                        const sgk_sparse_attention_options *options, const sgk_exec *exec);

/**
 * Lists for sgk_sparse_attention from vertical lines (keys that all queries see) and slashes (distances from query to key at which keys are
 * seen): each list's blocks cover its slashes, and the vertical lines beside them become its columns. Lists of queries behind a sequence's
 * end are left as they are, and so is what lies behind the counts.
 *
 * @param block_count, block_offset, column_count, column_index  [B, H, R], [B, H, R, S], [B, H, R], [B, H, R, V], i32, dense, R = context_size /
 *                              block_size_M rounded up; written
 * @param q_seqlens, kv_seqlens [B], i32
 * @param vertical_indexes      [B, H, V], i32, ascending, dense
 * @param slash_indexes         [B, H, S], i32, descending, dense
 * @param vertical_indices_count, slash_indices_count  [H], i32: how many of them count, for each head; both or neither
 * @param block_size_M          queries of a list
 * @param block_size_N          keys of a block
 * @param causal                otherwise slashes reach behind the last query, too
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_convert_vertical_slash_indexes(const DLTensor *block_count, const DLTensor *block_offset, const DLTensor *column_count, const DLTensor *column_index,
                                                      const DLTensor *q_seqlens, const DLTensor *kv_seqlens, const DLTensor *vertical_indexes, const DLTensor *slash_indexes,
                                                      const DLTensor *vertical_indices_count, const DLTensor *slash_indices_count, int64_t context_size, int64_t block_size_M,
                                                      int64_t block_size_N, bool causal, const sgk_exec *exec);

/**
 * One step of lightning attention: new_kv = e^-slope past_kv + k v', output = q new_kv, for each sequence and head.
 *
 * @param output   [B, H, 1, E], dtype of q; like all tensors dense
 * @param new_kv   [B, H, D, E], f32; may be past_kv itself
 * @param q, k     [B, H, 1, D], f32 | f16 | bf16
 * @param v        [B, H, 1, E], dtype of q
 * @param past_kv  [B, H, D, E], f32
 * @param slope    [H, 1, 1], f32
 *
 * Products and sums are f32; output is rounded once.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_lightning_attention_decode(const DLTensor *output, const DLTensor *new_kv, const DLTensor *q, const DLTensor *k, const DLTensor *v, const DLTensor *past_kv,
                                                  const DLTensor *slope, const sgk_exec *exec);

/**
 * Merges attention over two disjoint sets of keys, given the natural logarithms of their sums:
 *
 *     s_merged = ln(e^s_a + e^s_b),   v_merged = round(v_a e^(s_a - s_merged) + v_b e^(s_b - s_merged))
 *
 * A side whose s is infinite has no keys: the result is the other side, whatever the values are. Where neither has any, v_merged is 0 and
 * s_merged minus infinity.
 *
 * @param v_merged  [N, H, D], dtype of v_a; written
 * @param s_merged  [N, H], f32, any strides; written
 * @param v_a, v_b  [N, H, D], f32 | f16 | bf16
 * @param s_a, s_b  [N, H], f32, any strides
 *
 * Tokens and heads may have any strides. f32 inside, one rounding at the end.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_merge_state_v2(const DLTensor *v_merged, const DLTensor *s_merged, const DLTensor *v_a, const DLTensor *s_a,
                                      const DLTensor *v_b, const DLTensor *s_b, const sgk_exec *exec);

/** The same with binary logarithms: s_merged = log2(2^s_a + 2^s_b). */
SGK_API sgk_status sgk_merge_state(const DLTensor *v_merged, const DLTensor *s_merged, const DLTensor *v_a, const DLTensor *s_a,
                                   const DLTensor *v_b, const DLTensor *s_b, const sgk_exec *exec);
#endif
