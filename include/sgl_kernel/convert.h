/* Number formats. */
#ifndef SGL_KERNEL_CONVERT_H
#define SGL_KERNEL_CONVERT_H
#include "base.h"

/**
 * output = input in the format of output, element for element.
 *
 * Rounds once, to nearest, ties to even. Beyond the largest number f16, bf16, e5m2 and f32 become infinity and e4m3 becomes NaN; integers
 * take their nearest bound, and NaN becomes 0 there. To bool: whether it is not zero.
 *
 * @param output  contiguous, sizes of input, any format: f32 | f64 | f16 | bf16 | e4m3 | e5m2 | i8 | u8 | i32 | i64 | bool
 * @param input   contiguous, any format
 *
 * For tools and tests: runs on the CPU only; SGK_UNSUPPORTED for CUDA tensors.
 * @return SGK_OK, SGK_BAD_ARG or SGK_UNSUPPORTED; see sgk_last_error()
 */
SGK_API sgk_status sgk_convert(const DLTensor *output, const DLTensor *input, const sgk_exec *exec);
#endif
