/* What the linear kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_GEMM_H
#define SGK_GEMM_H
#include "base/types.h"

struct linear_args {
    void       *out;
    const void *input, *weight, *bias;                          /* bias may be NULL */
    int64_t     rows, columns, depth;                           /* M, N, K */
    int64_t     out_stride, input_stride, weight_stride;        /* in elements */
    sgk_dtype   dtype, out_dtype, bias_dtype;
};

/* The CPU's work is cut into parts that share nothing; part p has the p-th piece of the scratch memory. */
struct linear_cpu_args {
    struct linear_args a;
    int64_t            parts;
    int64_t            row_blocks;                                         /* each of LINEAR_BLOCK_ROWS rows at most */
    void              *scratch;                                            /* NULL: rows are few, and all is read where it lies */
};

enum {
    LINEAR_FEW_ROWS   = 24,                                     /* up to here nothing is packed */
    LINEAR_BLOCK      = 128,                                    /* columns of a block */
    LINEAR_BLOCK_ROWS = 576,                                    /* at most; a multiple of every tile's height */
    LINEAR_GROUP_ROWS = 32,                                     /* of input that are packed together, at most */
    LINEAR_STEP_BYTES = 2048,                                   /* of a packed row: the piece of K that is summed in registers */
    /* Packed weights, packed rows of a group, sums. */
    LINEAR_SCRATCH = LINEAR_BLOCK * LINEAR_STEP_BYTES + LINEAR_GROUP_ROWS * LINEAR_STEP_BYTES + LINEAR_BLOCK_ROWS * LINEAR_BLOCK * 4,
};

#endif
