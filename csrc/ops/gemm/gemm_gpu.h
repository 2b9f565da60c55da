/* linear on the GPU, for the family's public functions. */
#ifndef SGK_GEMM_GPU_H
#define SGK_GEMM_GPU_H
#include "cuda/cuda.h"
#include "gemm.h"

sgk_status linear_on_gpu(const char *op, const struct linear_args *a, int ordinal, const sgk_exec *exec);

/* Which build runs, K in how many parts, and in what bands tiles are walked. */
typedef struct {
    sgk_kernel *kernel;
    int         split, band;
} linear_choice;

/* For the check and the tuner, which try every build: what runs instead of the choice; a shape that the build does not take is refused. */
extern linear_choice linear_forced;
/* Whether that build takes one product of dense tensors of these sizes, on device 0. */
bool linear_takes(linear_choice choice, sgk_dtype dtype, sgk_dtype out_dtype, int64_t rows, int64_t columns, int64_t depth);
/* Whether it gives the bits that all builds give for which this holds. */
bool linear_same_bits(linear_choice choice, sgk_dtype dtype, sgk_dtype out_dtype, int64_t depth, int shares);

/* M of the columns of gemm_table.def. */
#define LINEAR_TABLE_ROWS { 1, 4, 8, 16, 32 }
/* A choice as gemm_table.def and gemm_costs.def spell it. */
const char *linear_token(linear_choice choice, char *text, size_t size);
/* Whether the tuner should try it: not where most of a tile would be empty, or most of the GPU would wait. */
bool linear_sensible(linear_choice choice, int64_t rows, int64_t columns, int64_t depth);

/*
 * What the time of a build of tiles is taken to be a sum of, each times a cost (gemm_costs.def): 1; rounds of its blocks but the first; the slabs of 64 in K that
 * a multiprocessor has one after the other; the same times the rows of both operands that a part of the GPU reads at a time, in thousands; nanoseconds in which
 * memory moves the operands.
 * false: not a build of tiles.
 */
enum { LINEAR_WORK = 5 };
bool linear_work(linear_choice choice, int64_t rows, int64_t columns, int64_t depth, int64_t batch, int multiprocessors, double work[LINEAR_WORK]);
/* Whether gemm_costs.def has it, or it is no such build. */
bool linear_has_cost(linear_choice choice);

#endif
