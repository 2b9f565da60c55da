/* Gated activations. */
#ifndef SGL_KERNEL_ACT_H
#define SGL_KERNEL_ACT_H
#include "base.h"

/**
 * out[i, j] = round(silu(input[i, j]) * input[i, D + j]),   silu(a) = a / (1 + e^-a)
 *
 * silu(-infinity) is -0, the limit; silu(NaN) is NaN.
 *
 * @param out    [..., D], dtype of input; rows may be strided; must not overlap input
 * @param input  [..., 2 D], f32 | f16 | bf16; any number of leading dimensions, evenly spaced in memory
 *
 * f32 inside, one rounding at the end.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_silu_and_mul(const DLTensor *out, const DLTensor *input, const sgk_exec *exec);
#endif
