/* Attention to the keys that lists of blocks and columns name. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ATTENTION_SPARSE_H
#define SGK_ATTENTION_SPARSE_H
#include "attention.h"

/* The list of head h's queries 64 r .. 64 r + 63 of sequence n is number (n * heads + h) * row_blocks + r. */
struct attention_sparse_args {
    struct attention_args a;                                /* GPU: as if each query head had keys of its own */
    const int32_t        *block_count, *column_count;       /* [lists] */
    const int32_t        *block_offset;                     /* [lists][nnz_s]: first of 64 keys */
    const int32_t        *column_index;                     /* [lists][nnz_v] */
    int32_t               row_blocks, nnz_s, nnz_v;
    int32_t               group;                            /* query heads of a key head */
};

#ifndef __CUDACC__
#include "cuda/kernel.h"
enum { SPARSE_BUILDS = 2 };
extern struct sparse_build {
    sgk_kernel kernel;
    sgk_dtype  dtype;
} attention_sparse_builds[SPARSE_BUILDS];

void check_attention_sparse(void);
#endif

#endif
