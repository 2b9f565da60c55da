/* What the kernels of the experts are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_MOE_H
#define SGK_MOE_H
#include "base/divisor.h"

struct shuffle_rows_args {
    void              *output;
    const void        *input, *map;
    int64_t            rows, sources, bytes;                   /* bytes of a row */
    int64_t            output_stride, input_stride;            /* in bytes */
    int32_t            wide_map;                               /* map is i64, otherwise i32 */
    int32_t            lanes_log2;                             /* GPU: 2^lanes_log2 threads of a block share a row */
    struct sgk_divisor chunks;                          /* GPU: blocks that share a row */
};

/* output[t] = scale * sum over j < terms of factors[t terms + j] * input[row(t, j)]. Strides in elements. */
struct moe_sum_args {
    void              *output;
    const void        *input;
    const void        *permutation;                            /* of [0, sources) to input's rows; NULL: row (t, j) lies at t token_stride + j term_stride */
    const void        *factors;                                /* NULL: 1 */
    int64_t            tokens, terms, dim, sources;
    int64_t            output_stride, token_stride, term_stride;       /* with a permutation term_stride is that of a row */
    float              scale;
    sgk_dtype          dtype;
    int32_t            wide_permutation;
    int32_t            lanes_log2;                             /* GPU: 2^lanes_log2 threads of a block share a token */
    struct sgk_divisor chunks;                          /* GPU: blocks that share a token */
};

/* The CPU cuts rows into blocks, so that one long row is work for several threads, and its sums stay in the cache. */
enum { MOE_BLOCK = 1024 };

/* Threads in the kernels' blocks, and pieces of a row that one of them copies. */
enum { SHUFFLE_THREADS = 128,
       SHUFFLE_STEPS   = 2,
       MOE_SUM_THREADS = 128 };

#endif
