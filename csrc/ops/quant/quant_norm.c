#include "quant_norm.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/quant.h"

SGK_CPU_DECL(quant_norm);
static const sgk_cpu_impl norm_cpu[] = SGK_CPU_IMPLS(quant_norm);

/* The first of a format take groups of 128, the fourth others that have 16, 32, 64, ... elements, the last any length, group and alignment. */
#define BUILD(type, dtype, add, spans, lanes) \
    { SGK_KERNEL("quant/quant_norm.cu", "quant_norm", "-DT=" type " -DADD=" #add " -DSPANS=" #spans " -DLANES=" #lanes, SGK_GENERAL), dtype, add, spans, lanes }
#define BUILDS(type, dtype, add) \
    BUILD(type, dtype, add, 1, 3), BUILD(type, dtype, add, 2, 3), BUILD(type, dtype, add, 4, 3), BUILD(type, dtype, add, 4, -1), BUILD(type, dtype, add, 0, -1)
quant_norm_build quant_norm_builds[QUANT_NORM_BUILDS] = {
    BUILDS("f32", SGK_F32, 0),
    BUILDS("f32", SGK_F32, 1),
    BUILDS("f16", SGK_F16, 0),
    BUILDS("f16", SGK_F16, 1),
    BUILDS("bf16", SGK_BF16, 0),
    BUILDS("bf16", SGK_BF16, 1),
};

enum { MOST_THREADS = 512,
       SPAN         = 16 };     /* as in the kernel */

static bool fits(const quant_norm_build *b, const struct quant_norm_args *n)
{
    const struct quant_groups_args *a = &n->groups;
    if (b->dtype != a->dtype || b->add != !!n->residual) return false;
    if (b->spans == 0) return true;
    const int64_t lanes = a->group / SPAN;
    return a->group % SPAN == 0 && (lanes & (lanes - 1)) == 0 && lanes <= (a->ue8m0 ? 8 : 32) &&       /* a word of scales is of one warp */
           (b->lanes_log2 < 0 || lanes == 1 << b->lanes_log2) && a->groups * lanes <= (b->spans == 1 && !b->add ? 256 : MOST_THREADS) * b->spans &&
           quant_in_pieces(a->input, a->input_stride, a->q, a->q_stride, a->group, a->dtype) && sgk_in_pieces(n->weight, 0, a->dtype) &&
           sgk_in_pieces(n->residual, n->residual_stride, a->dtype);
}

static sgk_status norm_cuda(const char *op, struct quant_norm_args *n, int ordinal, const sgk_exec *exec)
{
    struct quant_groups_args *a = &n->groups;
    quant_norm_build         *b = quant_norm_builds;
    while (!fits(b, n)) ++b;
    SGK_LOG_BUILD(exec, op, &b->kernel, b->spans ? "" : " (rows are longer than any register build, or a group is not 1, 2, 4, ... times 16 elements)");
    unsigned threads = 256;
    if (b->spans) {
        while (SPAN << a->lanes_log2 < a->group) ++a->lanes_log2;
        threads = (unsigned)((a->groups * (a->group / SPAN) + 32 * b->spans - 1) / (32 * b->spans) * 32);
    }
    const sgk_launch shape = { .grid = { a->rows }, .block = { threads } };
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
