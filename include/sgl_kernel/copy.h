/* Concatenations and small copies. */
#ifndef SGL_KERNEL_COPY_H
#define SGL_KERNEL_COPY_H
#include "base.h"

/**
 * k[t, h, :D] = k_nope[t, h, :];   k[t, h, D:] = k_rope[t, 0, :]
 *
 * @param k       [T, H, D + R], any dtype; any strides but for the last dimension; must not overlap another argument
 * @param k_nope  [T, H, D], dtype of k; strides as k
 * @param k_rope  [T, 1, R], dtype of k; strides as k
 *
 * Exact. Rows in 16-byte pieces are fastest on a GPU.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED (a row of 2^31 pieces or heads on a GPU), SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_concat_mla_k(const DLTensor *k, const DLTensor *k_nope, const DLTensor *k_rope, const sgk_exec *exec);

/**
 * out[i, j, :A] = a[i, j, :];   out[i, j, A:] = b[i, j, :]
 *
 * @param out  [D0, D1, A + B], any dtype; any strides but for the last dimension; must not overlap another argument
 * @param a    [D0, D1, A], dtype of out; strides as out
 * @param b    [D0, D1, B], dtype of out; strides as out
 *
 * Exact; as sgk_concat_mla_k otherwise.
 */
SGK_API sgk_status sgk_concat_mla_absorb_q(const DLTensor *out, const DLTensor *a, const DLTensor *b, const sgk_exec *exec);

/**
 * output = input, from the CPU to a GPU inside kernel arguments: neither a copy engine nor a wait is involved, and input may change as
 * soon as the call returns. A graph that captures the call keeps the values of that moment.
 *
 * @param output  [N], i32, contiguous, on a GPU (or on the CPU, for code that runs on both)
 * @param input   [N], i32, contiguous, on the CPU
 *
 * Any N: 960 values a launch.
 */
SGK_API sgk_status sgk_copy_to_gpu_no_ce(const DLTensor *output, const DLTensor *input, const sgk_exec *exec);

/**
 * k_out[loc[t] * mult + offset] = e4m3(k[t] * inv),   inv = round(1 / round(k_scale));   the same for v
 *
 * round() is to the format of k, the product too; the result is kept within -448 to 448, NaN stays NaN.
 *
 * @param k_out, v_out      [R, H, D], e4m3 | u8; rows may be strided; must not overlap another argument
 * @param k, v              [S, H, D], f16 | bf16, of one format; strides as k_out
 * @param k_scale, v_scale  [1], f32
 * @param loc               [S], i32 | i64, contiguous; loc[t] * mult + offset in [0, R), no place twice
 *
 * A place outside [0, R) is refused on the CPU, and on the GPU with exec->check_indices, before anything is written; otherwise that row is left out.
 */
SGK_API sgk_status sgk_downcast_fp8(const DLTensor *k_out, const DLTensor *v_out, const DLTensor *k, const DLTensor *v, const DLTensor *k_scale,
                                    const DLTensor *v_scale, const DLTensor *loc, int64_t mult, int64_t offset, const sgk_exec *exec);
#endif
