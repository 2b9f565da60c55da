/* Constrained decoding. */
#ifndef SGL_KERNEL_GRAMMAR_H
#define SGL_KERNEL_GRAMMAR_H
#include "base.h"

/**
 * logits[r, j] = -infinity where bit j % 32 of bitmask[r, j / 32] is 0, for every row r, or for the rows that indices names.
 *
 * Columns from 32 W on, which have no bit, stay as they are.
 *
 * @param logits   [B, V] or [V], f32 | f16 | bf16; rows may be strided
 * @param bitmask  [B, W] or [W], i32, W at most V / 32 rounded up; rows may be strided
 * @param indices  [N], i32: rows of logits and of bitmask alike, whose numbers of rows may then differ; or NULL
 *
 * An index without a row is an error on the CPU, and on the GPU with exec->check_indices; otherwise it is passed over. A row may be named
 * more than once.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_apply_token_bitmask_inplace(const DLTensor *logits, const DLTensor *bitmask, const DLTensor *indices, const sgk_exec *exec);
#endif
