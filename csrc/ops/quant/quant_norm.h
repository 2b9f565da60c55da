/* What the quantised norms are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_QUANT_NORM_H
#define SGK_QUANT_NORM_H
#include "quant.h"

struct quant_norm_args {
    struct quant_groups_args groups;                    /* of the norm, rounded: version 1, neither fused nor masked */
    const void              *weight;
    void                    *residual;                  /* NULL: none */
    int64_t                  residual_stride;           /* in elements */
    float                    eps;
};

#ifndef __CUDACC__
#include <stdbool.h>
#include "base/match.h"
#include "cuda/kernel.h"

/* Every build of quant_norm.cu, for quant_kernels[]. */
enum { QUANT_NORM_BUILDS = 30 };
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        add, spans, lanes_log2;
} quant_norm_build;
extern quant_norm_build quant_norm_builds[QUANT_NORM_BUILDS];

/* What the caller chooses of a group quantiser. */
typedef struct {
    int64_t group_size;
    double  eps, min, max;
    bool    scale_ue8m0, fuse;
    int     version;
} quant_group_options;

/* Matches the tensors of a group quantiser, all but the end of the matching, and fills its arguments. */
sgk_status quant_match_groups(sgk_match *m, struct quant_groups_args *a, const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input,
                              const DLTensor *masked_m, const quant_group_options *o);

/* The same sizes as input in all dimensions but the last. */
sgk_status quant_match_rows(const sgk_match *m, const DLTensor *t, const char *name, const DLTensor *input);

/* Rows of `dim` elements in pieces of 16 bytes, and their codes in pieces of as many elements. */
bool quant_in_pieces(const void *input, int64_t input_stride, const void *q, int64_t q_stride, int64_t dim, sgk_dtype dtype);
#endif

#endif
