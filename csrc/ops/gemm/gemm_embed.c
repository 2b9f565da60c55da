/* Patch embedding: convolutions that are applied once are products with a matrix. */
#include <string.h>
#include "base/match.h"
#include "cuda/memory.h"
#include "sgl_kernel/gemm.h"

/* [A, B, C, D, E] without gaps as [A, B * C * D * E]. */
typedef struct {
    DLTensor tensor;
    int64_t  shape[2], strides[2];
} matrix;

static const DLTensor *as_matrix(const DLTensor *t, matrix *m)
{
    const int64_t depth = t->shape[1] * t->shape[2] * t->shape[3] * t->shape[4];
    m->shape[0] = t->shape[0], m->shape[1] = depth;
    m->strides[0] = depth, m->strides[1] = 1;
    m->tensor         = *t;
    m->tensor.ndim    = 2;
    m->tensor.shape   = m->shape;
    m->tensor.strides = m->strides;
    return &m->tensor;
}

sgk_status sgk_conv3d_embed(const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *bias, const sgk_exec *exec)
{
    sgk_match m = { .op = "conv3d_embed_cpu" };
    SGK_MATCH(&m, input, "N C D H W", SGK_ANY_FLOAT);
    SGK_MATCH(&m, weight, "O C D H W", 1u << m.dtype);
    SGK_MATCH(&m, bias, "O", 1u << m.dtype);
    SGK_MATCH_OUT(&m, out, "N O", 1u << m.dtype);
    SGK_MATCH_DENSE(&m, input);
    SGK_MATCH_DENSE(&m, weight);
    SGK_TRY(sgk_match_done(&m));
    matrix patches, filters;
    return sgk_linear(out, as_matrix(input, &patches), as_matrix(weight, &filters), bias, exec);
}

sgk_status sgk_conv3d_embed_weight_pack(const DLTensor *packed, const DLTensor *weight, const sgk_exec *exec)
{
    sgk_match m = { .op = "conv3d_embed_weight_pack" };
    SGK_MATCH(&m, weight, "O C D H W", SGK_ANY_FLOAT);
    SGK_MATCH_OUT(&m, packed, "O C D H W", 1u << m.dtype);
    SGK_MATCH_DENSE(&m, weight);
    SGK_MATCH_DENSE(&m, packed);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    const size_t bytes = (size_t)(sgk_numel(weight) * sgk_dtype_size(m.dtype));
    if (sgk_on_gpu(&m)) return sgk_cuda_copy(m.device.device_id, sgk_data(packed), sgk_data(weight), bytes, SGK_EXEC(exec, stream, NULL));
    if (bytes) memcpy(sgk_data(packed), sgk_data(weight), bytes);
    return SGK_OK;
}
