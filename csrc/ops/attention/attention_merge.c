#include "attention_merge.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/attention.h"

SGK_CPU_DECL(merge_state);
static const sgk_cpu_impl merge_state_cpu[] = SGK_CPU_IMPLS(merge_state);

/* The last of a format takes any row. */
#define BUILD(type, dtype, piece) \
    { SGK_KERNEL("attention/attention_merge.cu", "merge_state", "-DT=" type " -DPIECE=" #piece, SGK_GENERAL), dtype, piece }

merge_build merge_state_builds[MERGE_BUILDS] = {
    BUILD("f32", SGK_F32, 4),
    BUILD("f32", SGK_F32, 1),
    BUILD("f16", SGK_F16, 8),
    BUILD("f16", SGK_F16, 1),
    BUILD("bf16", SGK_BF16, 8),
    BUILD("bf16", SGK_BF16, 1),
};

enum { THREADS = 256 };                                 /* as in attention_merge.cu */

static bool in_pieces(const struct merge_values *v, const struct merge_state_args *a)
{
    return sgk_in_pieces(v->data, v->token_stride, a->dtype) && sgk_in_pieces(NULL, v->head_stride, a->dtype) && sgk_in_pieces(NULL, a->dim, a->dtype);
}

static sgk_status merge_state_cuda(struct merge_state_args *a, const char *op, int ordinal, const sgk_exec *exec)
{
    const bool   vectors = in_pieces(&a->v_merged, a) && in_pieces(&a->v_a, a) && in_pieces(&a->v_b, a);
    merge_build *b       = merge_state_builds;
    while (b->dtype != a->dtype || (b->piece > 1 && !vectors)) ++b;
    while (1 << a->lanes_log2 < THREADS && (int64_t)1 << a->lanes_log2 < a->dim / b->piece) ++a->lanes_log2;
    const int64_t rows = THREADS >> a->lanes_log2;

    SGK_LOG_BUILD(exec, op, &b->kernel, b->piece > 1 ? "" : " (rows are not in 16-byte pieces)");
    const sgk_launch shape = { .grid = { (a->rows + rows - 1) / rows }, .block = { THREADS } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

/* Where every tensor's tokens follow one another as its heads do, rows need no division. */
static bool evenly_spaced(const struct merge_values *v, int64_t heads) { return v->token_stride == heads * v->head_stride; }
static void fold_heads(struct merge_state_args *a)
{
    struct merge_values *const all[] = { &a->v_merged, &a->v_a, &a->v_b, &a->s_merged, &a->s_a, &a->s_b };
    for (int i = 0; i < 6; ++i)
        if (!evenly_spaced(all[i], a->heads)) return;
    for (int i = 0; i < 6; ++i) all[i]->token_stride = all[i]->head_stride;
    a->heads = 1;
}

static struct merge_values values(const DLTensor *t)
{
    return (struct merge_values){ sgk_data(t), sgk_stride(t, 0), sgk_stride(t, 1) };
}

static sgk_status merge(const char *op, bool base2, const DLTensor *v_merged, const DLTensor *s_merged, const DLTensor *v_a, const DLTensor *s_a,
                        const DLTensor *v_b, const DLTensor *s_b, const sgk_exec *exec)
{
    sgk_match m = { .op = op };
    SGK_MATCH(&m, v_a, "N H D", SGK_ANY_FLOAT);
    SGK_MATCH(&m, s_a, "N H~", 1u << SGK_F32);
    SGK_MATCH(&m, v_b, "N H D", 1u << m.dtype);
    SGK_MATCH(&m, s_b, "N H~", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, v_merged, "N H D", 1u << m.dtype);
    SGK_MATCH_OUT(&m, s_merged, "N H~", 1u << SGK_F32);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    struct merge_state_args a = {
        .v_merged    = values(v_merged),
        .v_a         = values(v_a),
        .v_b         = values(v_b),
        .s_merged    = values(s_merged),
        .s_a         = values(s_a),
        .s_b         = values(s_b),
        .rows        = SGK_DIM(&m, 'N') * SGK_DIM(&m, 'H'),
        .heads       = SGK_DIM(&m, 'H'),
        .dim         = SGK_DIM(&m, 'D'),
        .dtype       = m.dtype,
        .base2       = base2,
        .to_log2     = base2 ? 1 : 1.44269504f,
        .to_log2_low = base2 ? 0 : 1.92596299e-8f,
        .from_log2   = base2 ? 1 : 0.69314718f,
    };
    if (a.rows == 0) return SGK_OK;
    fold_heads(&a);
    if (sgk_on_gpu(&m)) return merge_state_cuda(&a, op, m.device.device_id, exec);
    return sgk_cpu_run(op, merge_state_cpu, &a, a.rows, sgk_cpu_grain(3 * a.dim * sgk_dtype_size(a.dtype)), exec);
}

sgk_status sgk_merge_state_v2(const DLTensor *v_merged, const DLTensor *s_merged, const DLTensor *v_a, const DLTensor *s_a,
                              const DLTensor *v_b, const DLTensor *s_b, const sgk_exec *exec)
{
    return merge("merge_state_v2", false, v_merged, s_merged, v_a, s_a, v_b, s_b, exec);
}

sgk_status sgk_merge_state(const DLTensor *v_merged, const DLTensor *s_merged, const DLTensor *v_a, const DLTensor *s_a,
                           const DLTensor *v_b, const DLTensor *s_b, const sgk_exec *exec)
{
    return merge("merge_state", true, v_merged, s_merged, v_a, s_a, v_b, s_b, exec);
}
