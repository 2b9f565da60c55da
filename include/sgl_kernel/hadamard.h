/* Hadamard transforms. */
#ifndef SGL_KERNEL_HADAMARD_H
#define SGL_KERNEL_HADAMARD_H
#include "base.h"

/**
 * Multiplies rows by a Hadamard matrix:
 *
 *     out[i, :] = round(scale * (M kron S) x[i, :])
 *
 * S is the matrix of order 2^k in Sylvester's order, S[r][c] = (-1)^(number of ones in r & c). M is that of the given order: 1, Paley's of
 * order 12, Williamson's of order 20 and 28, or Paley's of order 20 doubled to 40; csrc/ops/hadamard/hadamard.h constructs them. k is the
 * least for which order * 2^k is at least D, and at least 2 where order is not 1. A row counts as if zeros followed it up to
 * that length, and of the product its first D elements are stored.
 *
 * @param out    [..., D], dtype of x; may not be x
 * @param x      [..., D], f32 | f16 | bf16; D at most 32768, or order * 1024; leading dimensions evenly spaced in memory
 * @param order  1, 12, 20, 28 or 40
 * @param scale  finite as f32
 *
 * Sums are f32 in an order that D, order and the kind of device fix; one rounding at the end.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_hadamard_transform(const DLTensor *out, const DLTensor *x, int order, double scale, const sgk_exec *exec);

#endif
