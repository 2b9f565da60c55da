/* What the copy kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_COPY_H
#define SGK_COPY_H
#include "base/divisor.h"

/* Every row of out is a row of a, then one of b. Strides in bytes; 0 where all heads share a row. */
struct concat_part {
    const void *data;
    int64_t     row_stride, head_stride, bytes;
};
struct concat_args {
    void              *out;
    int64_t            row_stride, head_stride;         /* of out */
    struct concat_part a, b;
    int64_t            rows, heads;
    uint32_t           lines;                           /* GPU: a block's heads */
    struct sgk_divisor width, chunks, by_heads;         /* GPU: its pieces of each; blocks that share a line of heads; heads */
};
enum { CONCAT_THREADS = 256,
       CONCAT_STEPS   = 2 };                            /* pieces a thread has in flight */

/* Values that travel as a kernel argument; 4 KiB of those fit every launch. */
#ifndef VALUES
#define VALUES 960
#endif
struct copy_values_args {
    int32_t *output;
    int64_t  count;
    int32_t  values[VALUES];
};

/* One of k and v. Rows are dense; strides of rows in elements. */
struct downcast_rows {
    void        *out;
    const void  *x;
    const float *scale;
    int64_t      out_stride, stride;
};
struct downcast_args {
    struct downcast_rows rows[2];
    const void          *loc;
    int64_t              tokens, places, dim, mult, offset;      /* dim: elements of a row */
    sgk_dtype            dtype;
    int32_t              wide_loc;
    int32_t              lanes_log2;                             /* GPU: 2^lanes_log2 threads share a row */
};

#endif
