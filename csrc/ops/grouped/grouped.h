/* What the kernels of block-scaled and grouped products are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_GROUPED_H
#define SGK_GROUPED_H
#include "base/types.h"
#include "cuda/tma_map.h"

/* Which rows of a belong to which matrix of b. */
typedef enum {
    GROUPED_ONE,            /* there is one */
    GROUPED_INDICES,        /* row i: b[layout[i]]; below 0: to none. Rows of a block of GROUPED_ALIGNMENT belong to what its first row does, or to none */
    GROUPED_MASKED,         /* a has a matrix for each: its first layout[g] rows */
    GROUPED_OFFSETS,        /* rows offsets[g] to offsets[g] + layout[3 g] - 1 */
    GROUPED_ENDS,           /* rows up to layout[g] - 1, from layout[g - 1] rounded up to GROUPED_ALIGNMENT */
} grouped_form;

enum { GROUPED_ALIGNMENT = 128,
       GROUPED_BLOCK     = 128,          /* elements of K with one scale, and columns */
       GROUPED_MX_BLOCK  = 32 };         /* elements of K with one scale in MX formats */

/* How products are scaled. */
typedef enum {
    GROUPED_PLAIN,          /* not at all */
    GROUPED_BLOCKS,         /* f32: sa for 1 x 128 elements of a, sb for 128 x 128 of b */
    GROUPED_MX,             /* powers of two for 1 x 32 elements of both, in tiles of 128 x 4 (grouped_mx_place) */
} grouped_scaling;

struct grouped_args {
    void           *out;
    const void     *a, *b, *sa, *sb;
    const int32_t  *layout, *offsets;                                /* i32, see grouped_form */
    const int32_t  *sa_offsets;                                      /* MX: the first row of sa of each group, of sa_rows */
    int64_t         rows, columns, depth, groups;                    /* rows: of a, or of one matrix of it (masked) */
    int64_t         out_stride, a_stride, b_stride;                  /* in elements: from row to row, */
    int64_t         out_group, a_group, b_group;                     /* from matrix to matrix */
    int64_t         sa_row, sa_step, sa_group;                       /* sa: from row to row, block of K to block of K, matrix to matrix; MX: sa_row alone */
    int64_t         sb_block, sb_step, sb_group;                     /* sb: from block of columns to block of columns, ... */
    int64_t         sa_rows;
    sgk_dtype       dtype, out_dtype;
    grouped_form    form;
    grouped_scaling scaling;
};

/* Rows of groups to codes and powers of two, in places of MX. */
struct grouped_quant_args {
    void          *q, *scales;
    const void    *input;
    const int32_t *layout, *offsets, *scale_offsets;                 /* as in GROUPED_OFFSETS; the first row of scales of each group */
    int64_t        rows, columns, groups, scale_rows;
    int64_t        q_stride, input_stride;
    sgk_dtype      dtype;
};

/*
 * The form for sm_90a. Its tiles have a first operand (along the 64 rows of an instruction) and a second one (along its columns): a and b,
 * or, for few rows a group, b and a.
 */
struct grouped_wgmma_args {
    sgk_tma_map         first, second, result;      /* result: where out can be written by TMA */
    struct grouped_args g;
    int32_t             m_tiles, n_tiles;           /* m_tiles: of one group or by indices; where lengths lie on the GPU it counts for itself */
    int32_t             band;                       /* so many tiles of rows are walked before the next columns */
    int32_t             steps;                      /* parts of the ring in K */
    int32_t             split;                      /* blocks of a cluster: each has a share of K; above 1 a cluster has one tile */
    int32_t             pair_m, pair_n;             /* 2: a cluster of two blocks has two tiles that share columns, or rows, and reads those once */
    int32_t             by_tma;                     /* out is in 16 bits and in 16-byte pieces */
};

/* The form for few rows of one group, with scales: a is the first operand, of which a block copies `high` rows for each tile. */
struct grouped_few_args {
    sgk_tma_map         first, second;
    struct grouped_args g;
    int32_t             high;                       /* a multiple of 8 */
    int32_t             steps, share;               /* slabs of 128 in K: all, and at most of a block */
    int32_t             split;                      /* blocks of a cluster: each has a share of K */
    int32_t             in_fours;                   /* four columns of out are 8 aligned bytes */
    int32_t             once;                       /* no other tile reads the same b */
};

/* The CPU: an item is a run of GROUPED_CPU_COLUMNS columns of GROUPED_CPU_ROWS rows of one group. */
struct grouped_cpu_args {
    struct grouped_args a;
    const int64_t      *items;                      /* [groups + 1]: items before each group; one group: 0 and all */
    int64_t             across;                     /* items side by side */
};
enum { GROUPED_CPU_ROWS    = 32,
       GROUPED_CPU_COLUMNS = 64 };

/* Where the scale of row r and block c of K lies, with `blocks` of them (a multiple of 4): tiles of 128 rows x 4 blocks of 512 bytes. */
#ifdef __CUDACC__
__device__ __forceinline__
#else
static inline
#endif
    int64_t grouped_mx_place(int64_t r, int64_t c, int64_t blocks)
{
    return (r / 128 * (blocks / 4) + c / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4 + c % 4;
}

#endif
