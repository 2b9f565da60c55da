/* Products with packed weights, for what is composed of them. */
#ifndef SGK_GEMM_PACKED_RUN_H
#define SGK_GEMM_PACKED_RUN_H
#include <stdbool.h>
#include "base/exec.h"
#include "gemm_packed.h"

/* Whether this CPU multiplies pairs of bf16. */
bool packed_has_pairs(void);

/* `quantise`: the rows of input to u8, for i8 and int4. Sizes may be 0. packed_product gets the scratch memory itself, packed_run is given as much as
 * packed_scratch says. */
size_t packed_scratch(const struct packed_args *a, bool quantise, DLDevice device, const sgk_exec *exec);
sgk_status packed_run(const char *op, const struct packed_args *a, bool quantise, void *memory, DLDevice device, const sgk_exec *exec);
sgk_status packed_product(const char *op, const struct packed_args *a, bool quantise, DLDevice device, const sgk_exec *exec);

/* For the check of what only CPUs with AMX run: the plan for all rows, the memory it wants, and where that is. */
struct packed_cpu_args packed_plan(const struct packed_args *a, bool quantise, bool tiles, const sgk_exec *exec);
size_t packed_plan_bytes(const struct packed_cpu_args *cpu);
void packed_plan_place(struct packed_cpu_args *cpu, char *memory);

#endif
