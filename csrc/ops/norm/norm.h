/* What the norm kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_NORM_H
#define SGK_NORM_H
#include "base/types.h"

/* The forms; a build is shaped by -DFORM=... */
#define NORM_RMS       0       /* output = x r (shift + weight) */
#define NORM_RMS_ADD   1       /* the same of x = input + other; other = x */
#define NORM_RMS_GATED 2       /* output = x r weight silu(other) */
#define NORM_LAYER     3       /* output = (x - mean) r weight + bias */
#define NORM_LAYER_ADD 4       /* the same of x = input + other; other = x */

/*
 * Row i is [i / (middle last), i / last % middle, i % last]; its place in a tensor is the sum of these by the tensor's strides. The
 * launcher folds dimensions that are evenly spaced in every tensor, so middle and last are 1 but for odd strides.
 */
struct norm_args {
    void       *output;
    const void *input;
    void       *other;                                  /* residual or gate */
    const void *weight, *bias;                          /* NULL: 0 */
    int64_t     rows, middle, last, dim;
    int64_t     output_stride[3], input_stride[3], other_stride[3];     /* in elements */
    sgk_dtype   dtype;
    float       eps, shift, inverse_dim;
    int32_t     stream;                                 /* CPU: output is written around the caches */
};

#endif
