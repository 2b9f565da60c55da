/* What the activation kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ACT_H
#define SGK_ACT_H
#include "base/types.h"

struct silu_and_mul_args {
    void       *out;
    const void *input;
    int64_t     rows, dim;                              /* of out; a row of input has 2 dim elements */
    int64_t     out_stride, input_stride;               /* in elements */
    sgk_dtype   dtype;
    int32_t     lanes_log2;                             /* GPU: 2^lanes_log2 threads of a block share a row */
};

/* The CPU cuts rows into blocks, so that one long row is work for several threads. */
enum { ACT_BLOCK = 4096 };

#endif
