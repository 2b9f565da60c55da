/*
 * Functions of the check and the benchmark, not of the library's interface: they run and are checked like operators.
 * All tensors are contiguous.
 */
#ifndef SGK_PROBE_OPS_H
#define SGK_PROBE_OPS_H
#include "sgl_kernel/base.h"

/** A kernel that does nothing, as often as there are elements in `grid` (at least once); nothing at all on the CPU. @param grid [N], f32 */
sgk_status sgk_probe_empty(const DLTensor *grid, const sgk_exec *exec);
/** The launch of sgk_probe_copy for `count` elements without checks and choices, `times` in a row, after sgk_probe_copy has run on this device. */
sgk_status sgk_probe_copy_bare(void *output, const void *input, int64_t count, const sgk_exec *exec, int times);
/** output = input. Both [N], i32, 16-byte aligned. */
sgk_status sgk_probe_copy(const DLTensor *output, const DLTensor *input, const sgk_exec *exec);
/** output[b] = input[4096 b] ^ ... ^ input[4096 b + 4095]. output [B], input [4096 B], i32, 16-byte aligned. */
sgk_status sgk_probe_read(const DLTensor *output, const DLTensor *input, const sgk_exec *exec);

/** The format's loads: output = input in f32. output [N] f32, input [N] f32 | f16 | bf16. */
sgk_status sgk_probe_load(const DLTensor *output, const DLTensor *input, const sgk_exec *exec);
/** The format's stores: output = round(input). output [N] f32 | f16 | bf16, input [N] f32. */
sgk_status sgk_probe_store(const DLTensor *output, const DLTensor *input, const sgk_exec *exec);
/** output = e^input; the CPU's lanes. Both [N], f32. */
sgk_status sgk_probe_exp(const DLTensor *output, const DLTensor *input, const sgk_exec *exec);

#endif
