/* The list of build tables: one a family of this build. */
#include "cuda/kernel.h"
#include "sgk_config.h"

#define X(family) extern const sgk_kernel_table family##_kernels[];
SGK_FAMILIES(X)
#undef X

const sgk_kernel_table *const sgk_kernel_tables[] = {
#define X(family) family##_kernels,
    SGK_FAMILIES(X)
#undef X
        NULL
};
