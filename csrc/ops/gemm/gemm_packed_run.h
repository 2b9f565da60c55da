/* Products with packed weights, for what is composed of them. */
#ifndef SGK_GEMM_PACKED_RUN_H
#define SGK_GEMM_PACKED_RUN_H
#include <stdbool.h>
#include "base/exec.h"
#include "gemm_packed.h"

/* No size of `a` is 0 but depth. `quantise`: the rows of input to u8, for i8 and int4. */
sgk_status packed_on_cpu(const char *op, const struct packed_args *a, bool quantise, DLDevice device, const sgk_exec *exec);

#endif
