/* What the products of 8-bit numbers with scales are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_GEMM_SCALED_H
#define SGK_GEMM_SCALED_H
#include "base/types.h"
#include "cuda/tma_map.h"

struct scaled_args {
    void        *out;                                                   /* [batch][M][N] */
    const void  *input, *weight, *bias;                                 /* [batch][M][K], [batch][N][K], [N] of out's format or NULL */
    const float *input_scales, *weight_scales;
    int64_t      batch, rows, columns, depth;                           /* M, N, K */
    int64_t      out_stride, input_stride, weight_stride;               /* of rows, in elements */
    int64_t      out_batch, input_batch, weight_batch;
    int64_t      input_scale_step, weight_scale_step;                   /* from a row's scale to the next one's; 0: one for all */
    sgk_dtype    input_dtype, weight_dtype, out_dtype;
};

/*
 * The form for sm_90a. Its tiles have a first operand (along the 64 rows of an instruction) and a second one (along its columns): input and
 * weight, or, for few rows, weight and input.
 */
struct scaled_wgmma_args {
    sgk_tma_map        first, second, result;       /* result: where out can be written by TMA */
    struct scaled_args s;
    int32_t            first_tiles, second_tiles;
    int32_t            band;                        /* so many first tiles are walked before the next second tile */
    int32_t            steps;                       /* parts of the ring in K */
    int32_t            split;                       /* blocks of a cluster: each has a share of K; above 1 a cluster has one tile */
    int32_t            by_tma;                      /* out is f16 or bf16 and in 16-byte pieces */
    int32_t            whole, halves;               /* chains: tiles, and halves of those behind them */
};
enum { SCALED_WGMMA_DEPTH = 128 };

/* gemm_scaled_few.cu: of input a block copies `high` rows for each tile. */
struct scaled_few_args {
    sgk_tma_map        first, second;               /* input, weight */
    struct scaled_args s;
    int32_t            high;                        /* a multiple of 8 */
    int32_t            steps, share;                /* slabs of 128 in K: all, and at most of a block */
    int32_t            split;                       /* blocks of a cluster: each has a share of K */
    int32_t            in_fours;                    /* four columns of out are 8 aligned bytes */
    int32_t            once;                        /* no other tile reads the same weight */
    int32_t            ahead;                       /* so many slabs of weight are asked for before the wait for the kernel before this one */
};

/* gemm_scaled_chains.cu: its tile, and its shared memory in bytes, pieces of 128 rows by 128 in K first; the warpgroups have results of their own. */
enum {
    CHAINS_ROWS          = 256,
    CHAINS_COLUMNS       = 128,
    CHAINS_WEIGHTS       = 5,                                           /* pieces in the ring of weight, */
    CHAINS_INPUTS        = 7,                                           /* in that of input, */
    CHAINS_PIECES        = CHAINS_WEIGHTS + CHAINS_INPUTS,              /* in both */
    CHAINS_PIECE         = 128 * 128,
    CHAINS_RESULTS       = CHAINS_PIECES * CHAINS_PIECE,                /* where results begin: [64][128] of 16 bits, */
    CHAINS_RESULTS_BYTES = 64 * 128 * 2,
    CHAINS_ROW_SCALES    = CHAINS_RESULTS + 2 * CHAINS_RESULTS_BYTES,   /* scales of rows, */
    CHAINS_COLUMN_SCALES = CHAINS_ROW_SCALES + CHAINS_ROWS * 4,         /* of columns, */
    CHAINS_BIASES        = CHAINS_COLUMN_SCALES + CHAINS_COLUMNS * 4,   /* their biases, */
    CHAINS_BARRIERS      = CHAINS_BIASES + CHAINS_COLUMNS * 4,          /* barriers: full and empty ones of all pieces, */
    CHAINS_SCALES_FULL   = CHAINS_BARRIERS + 2 * CHAINS_PIECES * 8,     /* and of the scales */
    CHAINS_SCALES_EMPTY  = CHAINS_SCALES_FULL + 8,
    CHAINS_MEMORY        = CHAINS_SCALES_EMPTY + 8,
};

/* The CPU's work is cut into parts that share nothing; part p has the p-th piece of the scratch memory. */
struct scaled_cpu_args {
    struct scaled_args a;
    int64_t            parts;
    int64_t            row_blocks;                  /* each of SCALED_BLOCK_ROWS rows at most */
    void              *scratch;                     /* NULL: rows are few, and what is packed fits the stack */
};

enum {
    SCALED_FEW_ROWS   = 24,
    SCALED_BLOCK      = 128,                                            /* columns of a block */
    SCALED_BLOCK_ROWS = 192,                                            /* at most; a multiple of every tile's height */
    SCALED_STEP_BYTES = 2048,                                           /* of a packed row: the piece of K that is summed in registers */
    /* A packed row, and the sums of a block's row. */
    SCALED_ROW_BYTES = SCALED_STEP_BYTES + SCALED_BLOCK * 4,
    SCALED_SCRATCH   = SCALED_BLOCK_ROWS * SCALED_ROW_BYTES,
};

#ifndef __CUDACC__
#include <stdbool.h>
#include "cuda/kernel.h"

/* Every build of gemm_scaled.cu, of gemm_scaled_wgmma.cu and gemm_scaled_chains.cu, and of gemm_scaled_few.cu, for gemm_kernels[]. */
enum { SCALED_MMA_BUILDS   = 11,
       SCALED_WGMMA_BUILDS = 22,
       SCALED_FEW_BUILDS   = 14 };
typedef struct {
    sgk_kernel kernel;
    int        kind, bm, bn, bk, warps, stages, efficiency;
    bool       pieces;
} scaled_mma_build;
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  input, weight;
    bool       swap, turns;
    int        groups, rows, bn, stages, slabs, chunk, buffers, slab, end;
    bool       chains;              /* gemm_scaled_chains.cu, for results of this format */
    sgk_dtype  out;
} scaled_wgmma_build;
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        rows, columns, parts, ways, stages;
} scaled_few_build;
extern scaled_few_build   scaled_few_builds[SCALED_FEW_BUILDS];
extern scaled_mma_build   scaled_mma_builds[SCALED_MMA_BUILDS];
extern scaled_wgmma_build scaled_wgmma_builds[SCALED_WGMMA_BUILDS];
#endif

#endif
