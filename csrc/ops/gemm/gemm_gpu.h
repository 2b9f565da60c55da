/* linear on the GPU, for the family's public functions. */
#ifndef SGK_GEMM_GPU_H
#define SGK_GEMM_GPU_H
#include "cuda/cuda.h"
#include "gemm.h"

sgk_status linear_on_gpu(const char *op, const struct linear_args *a, int ordinal, const sgk_exec *exec);

/* Which build runs, and K in how many parts. */
typedef struct {
    sgk_kernel *kernel;
    int         split;
} linear_choice;

/* For the check and the tuner, which try every build: what runs instead of the choice; a shape that the build does not take is refused. */
extern linear_choice linear_forced;
/* Whether that build takes one product of dense tensors of these sizes, on device 0. */
bool linear_takes(linear_choice choice, sgk_dtype dtype, sgk_dtype out_dtype, int64_t rows, int64_t columns, int64_t depth);
/* Whether it gives the bits that all builds give for which this holds. */
bool linear_same_bits(linear_choice choice, sgk_dtype dtype, sgk_dtype out_dtype, int64_t depth, int shares);

/* M of the columns of gemm_table.def. */
#define LINEAR_TABLE_ROWS { 1, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192 }
/* A choice as gemm_table.def spells it. */
const char *linear_token(linear_choice choice, char *text, size_t size);
/* Whether the tuner should try it: not where most of a tile would be empty, or most of the GPU would wait. */
bool linear_sensible(linear_choice choice, int64_t rows, int64_t columns, int64_t depth);

#endif
