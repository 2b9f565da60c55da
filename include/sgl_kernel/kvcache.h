/* Writing keys and values into their cache. */
#ifndef SGL_KERNEL_KVCACHE_H
#define SGL_KERNEL_KVCACHE_H
#include "base.h"

/**
 * k_cache[out_loc[i]] = k[i];   v_cache[out_loc[i]] = v[i]
 *
 * @param k_cache  [S, ...], any dtype; [S, H, D] may have strided rows and heads, otherwise only rows may be strided
 * @param v_cache  [S, ...], dtype of k_cache; a row may have another size than k_cache's; must not overlap k_cache
 * @param out_loc  [N], i32 | i64, contiguous; in [0, S), no place twice: which of two rows stays is not defined
 * @param k        [N, ...], dtype of k_cache, as many elements a row as k_cache; strides as k_cache
 * @param v        [N, ...], the same for v_cache
 *
 * A place outside [0, S) is refused on the CPU, and on the GPU with exec->check_indices, before anything is written; otherwise that row is left out.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_store_kv_cache(const DLTensor *k_cache, const DLTensor *v_cache, const DLTensor *out_loc,
                                      const DLTensor *k, const DLTensor *v, const sgk_exec *exec);

/**
 * The same by other names: k_cache[indices[i]] = k[i], v_cache[indices[i]] = v[i].
 *
 * @param row_dim  the elements of a row of k, which is checked; -1: not said
 */
SGK_API sgk_status sgk_store_cache(const DLTensor *k_cache, const DLTensor *v_cache, const DLTensor *indices, const DLTensor *k, const DLTensor *v,
                                   int64_t row_dim, const sgk_exec *exec);
#endif
