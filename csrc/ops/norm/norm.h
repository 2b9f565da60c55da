/* What the norm kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_NORM_H
#define SGK_NORM_H
#include "base/types.h"

struct rmsnorm_args {
    void       *output;
    const void *input, *weight;
    int64_t     rows, dim;
    int64_t     output_stride, input_stride;            /* in elements */
    sgk_dtype   dtype;
    float       eps;
};

struct fused_add_rmsnorm_args {
    void       *input, *residual;
    const void *weight;
    int64_t     rows, dim;
    int64_t     input_stride, residual_stride;          /* in elements */
    sgk_dtype   dtype;
    float       eps;
};

#endif
