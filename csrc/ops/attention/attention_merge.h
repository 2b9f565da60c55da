/* What the merge of two partial attentions is given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ATTENTION_MERGE_H
#define SGK_ATTENTION_MERGE_H
#include "base/types.h"

struct merge_values {
    void   *data;
    int64_t token_stride, head_stride;
};        /* strides in elements */

struct merge_state_args {
    struct merge_values v_merged, v_a, v_b;
    struct merge_values s_merged, s_a, s_b;             /* f32 */
    int64_t             rows, heads, dim;                         /* row r is head r % heads of token r / heads */
    sgk_dtype           dtype;
    int32_t             base2;                                    /* the sums' logarithms are binary, otherwise natural */
    int32_t             lanes_log2;                               /* GPU: 2^lanes_log2 threads of a block share a row */
    float               to_log2, to_log2_low, from_log2;          /* GPU: factors from the sums' logarithms to binary ones, in two parts, and back */
};

#ifndef __CUDACC__
#include "cuda/kernel.h"
/* Every build of attention_merge.cu, for attention_kernels[]. */
enum { MERGE_BUILDS = 6 };
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        piece;
} merge_build;
extern merge_build merge_state_builds[MERGE_BUILDS];

void check_merge_state(void);
#endif

#endif
