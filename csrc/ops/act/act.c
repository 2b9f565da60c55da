#include "act.h"
#include "act_timestep.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/act.h"

SGK_CPU_DECL(silu_and_mul);
SGK_CPU_DECL(gelu_and_mul);
SGK_CPU_DECL(gelu_tanh_and_mul);
SGK_CPU_DECL(gelu_quick);
static const sgk_cpu_impl silu_and_mul_cpu[]      = SGK_CPU_IMPLS(silu_and_mul);
static const sgk_cpu_impl gelu_and_mul_cpu[]      = SGK_CPU_IMPLS(gelu_and_mul);
static const sgk_cpu_impl gelu_tanh_and_mul_cpu[] = SGK_CPU_IMPLS(gelu_tanh_and_mul);
static const sgk_cpu_impl gelu_quick_cpu[]        = SGK_CPU_IMPLS(gelu_quick);

/* Every build of act.cu, a table an activation. The last of a format takes any row. */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        piece, steps;
} act_build;

#define BUILD(act, gated, type, dtype, piece, steps) \
    { SGK_KERNEL("act/act.cu", "activation", "-DACT=" act " -DGATED=" #gated " -DT=" type " -DPIECE=" #piece " -DSTEPS=" #steps, SGK_GENERAL), \
      dtype, piece, steps }
/* Two loads in flight for each thread: one of each half, or two pieces of a plain row. */
#define BUILDS(act, gated, steps) { \
    BUILD(act, gated, "f32", SGK_F32, 4, steps), \
    BUILD(act, gated, "f32", SGK_F32, 1, 4), \
    BUILD(act, gated, "f16", SGK_F16, 8, steps), \
    BUILD(act, gated, "f16", SGK_F16, 1, 4), \
    BUILD(act, gated, "bf16", SGK_BF16, 8, steps), \
    BUILD(act, gated, "bf16", SGK_BF16, 1, 4), \
}

static act_build silu_and_mul_builds[]      = BUILDS("silu", 1, 1);
static act_build gelu_and_mul_builds[]      = BUILDS("gelu", 1, 1);
static act_build gelu_tanh_and_mul_builds[] = BUILDS("gelu_tanh", 1, 1);
static act_build gelu_quick_builds[]        = BUILDS("gelu_quick", 0, 2);

const sgk_kernel_table act_kernels[] = {
    SGK_KERNEL_TABLE(silu_and_mul_builds),
    SGK_KERNEL_TABLE(gelu_and_mul_builds),
    SGK_KERNEL_TABLE(gelu_tanh_and_mul_builds),
    SGK_KERNEL_TABLE(gelu_quick_builds),
    SGK_KERNEL_TABLE(timestep_builds),
    { 0 },
};

enum { THREADS = 256 };                                 /* as in act.cu */

static act_build *choose(act_build *b, const struct act_args *a)
{
    const bool vectors = sgk_in_pieces(a->input, a->input_stride, a->dtype) && sgk_in_pieces(a->out, a->out_stride, a->dtype) &&
                         sgk_in_pieces(NULL, a->dim, a->dtype);
    while (b->dtype != a->dtype || (b->piece > 1 && !vectors)) ++b;
    return b;
}

static sgk_status run(const sgk_match *m, struct act_args *a, const sgk_cpu_impl *cpu, act_build *builds, const sgk_exec *exec)
{
    if (a->rows == 0 || a->dim == 0) return SGK_OK;
    if (!sgk_on_gpu(m)) {
        const int64_t blocks = (a->dim + ACT_BLOCK - 1) / ACT_BLOCK, each = a->dim < ACT_BLOCK ? a->dim : ACT_BLOCK, size = sgk_dtype_size(a->dtype);
        a->stream = a->out != a->input && sgk_cpu_streams(a->out, a->rows, a->dim * size, size);
        return sgk_cpu_run(m->op, cpu, a, a->rows * blocks, sgk_cpu_grain(3 * each * size), exec);
    }
    act_build    *b      = choose(builds, a);
    const int64_t pieces = a->dim / b->piece;
    while (1 << a->lanes_log2 < THREADS && (int64_t)b->steps << a->lanes_log2 < pieces) ++a->lanes_log2;
    const int64_t chunk = (int64_t)b->steps << a->lanes_log2, rows = THREADS >> a->lanes_log2;
    const int64_t chunks = (pieces + chunk - 1) / chunk, groups = (a->rows + rows - 1) / rows;
    a->chunks = sgk_divisor_of(chunks);

    SGK_LOG_BUILD(exec, m->op, &b->kernel, b->piece > 1 ? "" : " (rows are not in 16-byte pieces)");
    const sgk_launch shape = { .grid = { chunks * groups }, .block = { THREADS } };
    return sgk_cuda_launch(m->op, &b->kernel, &shape, m->device.device_id, exec, a, sizeof *a);
}

/* Tensors [..., D] and [..., times D] whose leading dimensions are the same. */
static sgk_status match_rows(sgk_match *m, const DLTensor *out, const DLTensor *input, int times, struct act_args *a)
{
    SGK_MATCH_OUT(m, out, "*N D", SGK_ANY_FLOAT);
    SGK_MATCH(m, input, "*N W", 1u << m->dtype);
    SGK_REQUIRE(input->ndim == out->ndim, SGK_BAD_ARG, "%s: input has %d dimensions, expected %d like out", m->op, input->ndim, out->ndim);
    for (int d = 0; d < out->ndim - 1; ++d)
        SGK_REQUIRE(input->shape[d] == out->shape[d], SGK_BAD_ARG, "%s: input has size %lld in dimension %d, expected %lld like out",
                    m->op, (long long)input->shape[d], d, (long long)out->shape[d]);
    SGK_REQUIRE(SGK_DIM(m, 'W') == times * SGK_DIM(m, 'D'), SGK_BAD_ARG, "%s: input has size %lld in its last dimension, expected %d x %lld",
                m->op, (long long)SGK_DIM(m, 'W'), times, (long long)SGK_DIM(m, 'D'));
    *a = (struct act_args){
        .out          = sgk_data(out),
        .input        = sgk_data(input),
        .rows         = SGK_DIM(m, 'N'),
        .dim          = SGK_DIM(m, 'D'),
        .out_stride   = sgk_fold_stride(out, 1),
        .input_stride = sgk_fold_stride(input, 1),
        .dtype        = m->dtype,
    };
    return SGK_OK;
}

static sgk_status gated(const char *op, const DLTensor *out, const DLTensor *input, const sgk_cpu_impl *cpu, act_build *builds, const sgk_exec *exec)
{
    sgk_match       m = { .op = op };
    struct act_args a;
    SGK_TRY(match_rows(&m, out, input, 2, &a));
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    return run(&m, &a, cpu, builds, exec);
}

sgk_status sgk_silu_and_mul(const DLTensor *out, const DLTensor *input, const sgk_exec *exec)
{
    return gated("silu_and_mul", out, input, silu_and_mul_cpu, silu_and_mul_builds, exec);
}

sgk_status sgk_gelu_and_mul(const DLTensor *out, const DLTensor *input, const sgk_exec *exec)
{
    return gated("gelu_and_mul", out, input, gelu_and_mul_cpu, gelu_and_mul_builds, exec);
}

sgk_status sgk_gelu_tanh_and_mul(const DLTensor *out, const DLTensor *input, const sgk_exec *exec)
{
    return gated("gelu_tanh_and_mul", out, input, gelu_tanh_and_mul_cpu, gelu_tanh_and_mul_builds, exec);
}

sgk_status sgk_silu_and_mul_experts(const DLTensor *out, const DLTensor *input, const DLTensor *expert_ids, int64_t expert_step, const sgk_exec *exec)
{
    sgk_match       m = { .op = "silu_and_mul_experts" };
    struct act_args a;
    SGK_TRY(match_rows(&m, out, input, 2, &a));
    SGK_MATCH(&m, expert_ids, "E", SGK_ANY_INDEX);
    SGK_REQUIRE(expert_step >= 1, SGK_BAD_ARG, "%s: expert_step is %lld, expected at least 1", m.op, (long long)expert_step);
    const int64_t steps = a.rows / expert_step + (a.rows % expert_step != 0);
    SGK_REQUIRE(SGK_DIM(&m, 'E') >= steps, SGK_BAD_ARG, "%s: expert_ids has size %lld, expected at least %lld for %lld rows in steps of %lld", m.op,
                (long long)SGK_DIM(&m, 'E'), (long long)steps, (long long)a.rows, (long long)expert_step);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    a.expert_ids  = sgk_data(expert_ids);
    a.wide_ids    = sgk_dtype_at(expert_ids) == SGK_I64;
    a.expert_step = expert_step;
    return run(&m, &a, silu_and_mul_cpu, silu_and_mul_builds, exec);
}

sgk_status sgk_gelu_quick(const DLTensor *out, const DLTensor *input, const sgk_exec *exec)
{
    sgk_match       m = { .op = "gelu_quick" };
    struct act_args a;
    SGK_TRY(match_rows(&m, out, input, 1, &a));
    sgk_match_same(&m, out, input);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    return run(&m, &a, gelu_quick_cpu, gelu_quick_builds, exec);
}
