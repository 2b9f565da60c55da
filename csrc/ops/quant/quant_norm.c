#include "quant_norm.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/quant.h"

SGK_CPU_DECL(quant_norm);
static const sgk_cpu_impl norm_cpu[] = SGK_CPU_IMPLS(quant_norm);

/* A row of up to `lanes * vecs` 16-byte pieces stays in the registers of its block; 0 keeps nothing: any length, group and alignment. */
#define BUILD(type, dtype, add, lanes, vecs) \
    { SGK_KERNEL("quant/quant_norm.cu", "quant_norm", "-DT=" type " -DADD=" #add " -DLANES=" #lanes " -DVECS=" #vecs, SGK_GENERAL), dtype, add, lanes, vecs }
#define BUILDS(type, dtype, add) \
    BUILD(type, dtype, add, 128, 2), BUILD(type, dtype, add, 256, 4), BUILD(type, dtype, add, 512, 8), BUILD(type, dtype, add, 256, 0)
quant_norm_build quant_norm_builds[QUANT_NORM_BUILDS] = {
    BUILDS("f32", SGK_F32, 0),
    BUILDS("f32", SGK_F32, 1),
    BUILDS("f16", SGK_F16, 0),
    BUILDS("f16", SGK_F16, 1),
    BUILDS("bf16", SGK_BF16, 0),
    BUILDS("bf16", SGK_BF16, 1),
};

static sgk_status norm_cuda(const char *op, struct quant_norm_args *n, int ordinal, const sgk_exec *exec)
{
    struct quant_groups_args *a   = &n->groups;
    const int64_t             dim = a->groups * a->group, piece = 16 / sgk_dtype_size(a->dtype), lanes = a->group / piece;
    const bool                vectors = quant_in_pieces(a->input, a->input_stride, a->q, a->q_stride, a->group, a->dtype) && sgk_in_pieces(n->weight, 0, a->dtype) &&
                                        sgk_in_pieces(n->residual, n->residual_stride, a->dtype) && lanes <= 32 && (lanes & (lanes - 1)) == 0;
    quant_norm_build         *b       = quant_norm_builds;
    while (b->dtype != a->dtype || b->add != !!n->residual || (b->vecs && (!vectors || dim / piece > (int64_t)b->lanes * b->vecs))) ++b;
    while (b->vecs && 1 << a->lanes_log2 < lanes) ++a->lanes_log2;
    SGK_LOG_BUILD(exec, op, &b->kernel, b->vecs ? "" : " (rows are longer than any register build, or a group is not 1, 2, 4, ... 32 pieces of 16 bytes)");
    const sgk_launch shape = { .grid = { a->rows }, .block = { (unsigned)b->lanes } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, n, sizeof *n);
}

static sgk_status norm_quant(const char *op, const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, bool add,
                             const DLTensor *residual, const DLTensor *weight, double rms_eps, const quant_group_options *o, const sgk_exec *exec)
{
    sgk_match              m = { .op = op };
    struct quant_norm_args n;
    SGK_TRY(quant_match_groups(&m, &n.groups, output_q, output_s, input, NULL, o));
    SGK_MATCH(&m, weight, "D", 1u << m.dtype);
    if (add) {
        SGK_MATCH_OUT(&m, residual, "*N D", 1u << m.dtype);
        SGK_TRY(quant_match_rows(&m, residual, "residual", input));
    }
    SGK_MATCH_FINITE(&m, rms_eps, 0);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    n.weight          = sgk_data(weight);
    n.residual        = add ? sgk_data(residual) : NULL;
    n.residual_stride = add ? sgk_fold_stride(residual, 1) : 0;
    n.eps             = (float)rms_eps;
    if (n.groups.rows == 0 || n.groups.groups == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return norm_cuda(op, &n, m.device.device_id, exec);
    return sgk_cpu_run(op, norm_cpu, &n, n.groups.rows, sgk_cpu_grain(n.groups.groups * n.groups.group * (sgk_dtype_size(m.dtype) * (1 + 2 * add) + 1)), exec);
}

sgk_status sgk_fused_rmsnorm_quant(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, const DLTensor *weight,
                                   int64_t group_size, double rms_eps, double quant_eps, double min, double max, bool scale_ue8m0,
                                   const sgk_exec *exec)
{
    const quant_group_options o = { group_size, quant_eps, min, max, scale_ue8m0, false, 1 };
    return norm_quant("fused_rmsnorm_quant", output_q, output_s, input, false, NULL, weight, rms_eps, &o, exec);
}

sgk_status sgk_fused_add_rmsnorm_quant(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *residual, const DLTensor *input,
                                       const DLTensor *weight, int64_t group_size, double rms_eps, double quant_eps, double min, double max,
                                       bool scale_ue8m0, const sgk_exec *exec)
{
    const quant_group_options o = { group_size, quant_eps, min, max, scale_ue8m0, false, 1 };
    return norm_quant("fused_add_rmsnorm_quant", output_q, output_s, input, true, residual, weight, rms_eps, &o, exec);
}
