/* From logits to tokens: softmax with temperature, and draws from the likeliest entries of a row. */
#ifndef SGL_KERNEL_SAMPLING_H
#define SGL_KERNEL_SAMPLING_H
#include <stdbool.h>
#include "base.h"

/**
 * out[i, :] = softmax(logits[i, :] / t_i),   t_i = temperature_arr[i], or temperature_val where there is no tensor
 *
 * A temperature of 0 gives 1 at the first maximum and 0 elsewhere. A logit of -infinity gives 0, and a row of nothing else gives zeros.
 * A NaN makes its row NaN; so does +infinity, but at temperature 0, where it is the maximum.
 *
 * @param out              [N, V], f32; rows may be strided; may be logits itself
 * @param logits           [N, V], f32 | f16 | bf16; rows may be strided
 * @param temperature_arr  [N], f32, or NULL
 * @param temperature_val  read where temperature_arr is NULL
 *
 * A temperature must be finite and not negative. One in temperature_arr that is not is an error on the CPU, and on the GPU with
 * exec->check_indices; otherwise it makes its row NaN.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_softmax(const DLTensor *out, const DLTensor *logits, const DLTensor *temperature_arr, double temperature_val,
                               const sgk_exec *exec);

/**
 * output[i] = an index drawn from row r = probs[indices[i], :] (probs[i, :] where there are no indices), in proportion to the entries kept:
 *
 *     top k:  the entries >= the k-th largest, ties included;                             all of them where k <= 0 or k >= V
 *     top p:  the entries >= t, the largest t such that entries >= t sum to p of the row; all of them where p >= 1
 *
 * joint: both hold, p being a share of the whole row. Otherwise top k comes first, and p is a share of what it kept.
 *
 * Rows need not sum to 1. Negative and NaN entries count as 0, and +infinity as 2^128, more than any finite one. An entry of 0 is never drawn;
 * a row without a positive entry gives 0.
 *
 * @param probs            [R, V], f32; rows may be strided; V at least 1, at most 2^31 - 1
 * @param output           [N], i32
 * @param maybe_indices    [N], i32 | i64, or NULL: then N is R
 * @param maybe_top_k_arr  [N], i32 | i64, or NULL: then top_k_val
 * @param maybe_top_p_arr  [N], f32, or NULL: then top_p_val. Not negative, not NaN: an error on the CPU, and on the GPU with
 *                         exec->check_indices; otherwise NaN counts as 1
 * @param seed             [1] or [N], i64
 *
 * Entry i uses the 64 random bits philox(seed, i) with one seed, philox(seed[i], 0) with N of them, so that a draw does not depend on its
 * place in the batch (J. Salmon et al.: Parallel random numbers: as easy as 1, 2, 3, 2011). Sums are exact, in integers: the same
 * seed gives the same index on every device. For that an entry counts in multiples of its row's maximum / 2^b, rounded down, where b is
 * at least 31 and, for V below 2^18, at least 44.
 *
 * An index outside of [0, R) is an error on the CPU, and on the GPU with exec->check_indices; otherwise it gives -1.
 * @return as sgk_softmax
 */
SGK_API sgk_status sgk_top_k_top_p_sampling_from_probs(const DLTensor *probs, const DLTensor *output, const DLTensor *maybe_indices,
                                                       const DLTensor *maybe_top_k_arr, int64_t top_k_val,
                                                       const DLTensor *maybe_top_p_arr, double top_p_val, bool joint,
                                                       const DLTensor *seed, const sgk_exec *exec);
#endif
