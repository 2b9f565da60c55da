/* What the linear kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_GEMM_H
#define SGK_GEMM_H
#include "base/types.h"
#include "cuda/tma_map.h"

struct linear_args {
    void       *out;
    const void *input, *weight, *bias;                          /* bias may be NULL */
    int64_t     rows, columns, depth;                           /* M, N, K */
    int64_t     out_stride, input_stride, weight_stride;        /* in elements */
    sgk_dtype   dtype, out_dtype, bias_dtype;
    int64_t     batch;                                          /* products; from one to the next, in elements: */
    int64_t     out_batch, input_batch, weight_batch, bias_batch;
    int32_t     early;                                          /* programmatic launch, where the device has it: the kernel may start while the one before it runs */
};

/*
 * The form for sm_90a. Its tiles have a first operand (along the 64 rows of an instruction) and a second one (along its columns): input and
 * weight, or, for few rows, weight and input.
 */
struct linear_wgmma_args {
    sgk_tma_map        first, second, result;       /* result: where out can be written by TMA */
    struct linear_args l;
    int32_t            first_tiles, second_tiles;   /* of one product */
    int32_t            tiles;                       /* of all; LEAN: of those that differ in weight */
    int32_t            band;                        /* so many first tiles are walked before the next second tile */
    int32_t            parts;                       /* of the ring, in all of K */
    int32_t            share, rest;                 /* a share of K, in pairs of slabs (where more are a part, in parts; in gemm_share.cu in slabs), and how many shares have one more */
    int32_t            stages;                      /* parts of the ring in shared memory */
    int32_t            split;                       /* shares of K: each a block's of a cluster, which has one tile; in gemm_wide.cu all of them a block's */
    int32_t            pieces;                      /* of 8 columns of the tile whose sums a block of a cluster adds; the last ones may have fewer */
    int32_t            by_tma;                      /* out is in the kernel's format and in 16-byte pieces */
    int32_t            stage_bytes;                 /* that the boxes of a part of the ring have: where an operand has fewer rows than a tile, they are as high as it is */
};
enum { LINEAR_WGMMA_DEPTH = 64 };

/* The form of gemm_few.cu, which has all of K of so many columns a block, and of gemm_pair.cu, where two blocks have each half of K of so many. */
struct linear_few_args {
    struct linear_args l;
    int32_t            ahead;                       /* pieces of 8 in K of a column that come to L2 before the programmatic launch's wait */
    int32_t            release;                     /* slabs of a warp after which the next kernel may be launched */
};
enum { LINEAR_FEW_COLUMNS  = 16,
       LINEAR_PAIR_COLUMNS = 32 };

/* The CPU's work is cut into parts that share nothing; part p has the p-th piece of the scratch memory. */
struct linear_cpu_args {
    struct linear_args a;
    int64_t            parts;
    int64_t            row_blocks;                                         /* each of LINEAR_BLOCK_ROWS rows at most */
    void              *scratch;                                            /* NULL: rows are few, and all is read where it lies */
};

enum {
    LINEAR_FEW_ROWS   = 24,                                     /* up to here nothing is packed, */
    LINEAR_FEW_TILES  = 8,                                      /* or up to here, where AMX would take the packed, */
    LINEAR_FEW_PAIRS  = 8,                                      /* or gemm_packed_cpu.c would, which turns its weights */
    LINEAR_BLOCK      = 128,                                    /* columns of a block */
    LINEAR_BLOCK_ROWS = 576,                                    /* at most; a multiple of every tile's height */
    LINEAR_GROUP_ROWS = 32,                                     /* of input that are packed together, at most */
    LINEAR_STEP_BYTES = 2048,                                   /* of a packed row: the piece of K that is summed in registers */
    /* Packed weights, packed rows of a group, sums. */
    LINEAR_SCRATCH = LINEAR_BLOCK * LINEAR_STEP_BYTES + LINEAR_GROUP_ROWS * LINEAR_STEP_BYTES + LINEAR_BLOCK_ROWS * LINEAR_BLOCK * 4,
};

#endif
