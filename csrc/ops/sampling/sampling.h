/* What the sampling kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_SAMPLING_H
#define SGK_SAMPLING_H
#include "base/types.h"

struct softmax_args {
    float       *out;
    const void  *logits;
    const float *temperature_arr;                       /* or NULL */
    int64_t      rows, dim;
    int64_t      out_stride, logits_stride;             /* in elements */
    sgk_dtype    dtype;
    float        temperature;
};

struct top_k_top_p_args {
    const uint32_t *probs;                              /* f32, taken by its bits */
    int32_t        *output;
    const void     *indices, *top_k_arr;                /* or NULL */
    const float    *top_p_arr;                          /* or NULL */
    const int64_t  *seed;
    int64_t         draws, rows, dim;                   /* elements of output; of probs */
    int64_t         probs_stride;                       /* in elements */
    int64_t         top_k;
    float           top_p;
    int32_t         joint, one_seed;
    int32_t         indices_wide, top_k_wide;           /* i64, otherwise i32 */
    int32_t         weight_bits;                        /* see sampling_draw.h */
};

#endif
