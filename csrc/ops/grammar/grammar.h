/* What the grammar kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_GRAMMAR_H
#define SGK_GRAMMAR_H
#include "base/divisor.h"

struct token_bitmask_args {
    void              *logits;
    const int32_t     *bitmask;
    const int32_t     *indices;                             /* rows to do; NULL: all of them */
    int64_t            count;                                     /* how many */
    int64_t            rows;                                      /* that both logits and bitmask have */
    int64_t            columns;                                   /* that have a bit */
    int64_t            logits_stride, bitmask_stride;             /* in elements */
    uint32_t           fill;                                      /* minus infinity; in 16 bits twice */
    int32_t            size;                                      /* bytes of a logit */
    int32_t            early;                                     /* GPU: logits are asked for before it is known whether they are needed */
    struct sgk_divisor chunks;                                /* GPU: blocks of a row */
};

/* The CPU cuts rows into blocks, so that one long row is work for several threads. */
enum { GRAMMAR_BLOCK = 8192 };

#endif
