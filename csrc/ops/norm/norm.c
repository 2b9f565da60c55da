#include "norm.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/norm.h"

SGK_CPU_DECL(rmsnorm);
SGK_CPU_DECL(fused_add_rmsnorm);
static const sgk_cpu_impl rmsnorm_cpu[]           = SGK_CPU_IMPLS(rmsnorm);
static const sgk_cpu_impl fused_add_rmsnorm_cpu[] = SGK_CPU_IMPLS(fused_add_rmsnorm);

/*
 * Every build of norm.cu. VECS is how many 16-byte pieces of a row a thread keeps in registers; a row of up to
 * 32 * WARPS * VECS pieces fits. 0 keeps nothing and reads the row twice: any length, any alignment.
 */
/* clang-format off */
#define BUILD(entry, type, dtype, warps, vecs) \
    { SGK_KERNEL("norm/norm.cu", entry, "-DT=" type " -DWARPS=" #warps " -DVECS=" #vecs, SGK_GENERAL), dtype, warps, vecs }
#define BUILDS(entry, type, dtype) \
    BUILD(entry, type, dtype, 1, 4), BUILD(entry, type, dtype, 4, 2), BUILD(entry, type, dtype, 8, 2), \
    BUILD(entry, type, dtype, 8, 4), BUILD(entry, type, dtype, 16, 4), BUILD(entry, type, dtype, 16, 8), BUILD(entry, type, dtype, 8, 0)

typedef struct { sgk_kernel kernel; sgk_dtype dtype; int warps, vecs; } norm_build;

static norm_build rmsnorm_builds[] = {
    BUILDS("rmsnorm", "f32", SGK_F32), BUILDS("rmsnorm", "f16", SGK_F16), BUILDS("rmsnorm", "bf16", SGK_BF16),
};
static norm_build fused_add_rmsnorm_builds[] = {
    BUILDS("fused_add_rmsnorm", "f32", SGK_F32), BUILDS("fused_add_rmsnorm", "f16", SGK_F16), BUILDS("fused_add_rmsnorm", "bf16", SGK_BF16),
};
/* clang-format on */

const sgk_kernel_table norm_kernels[] = { SGK_KERNEL_TABLE(rmsnorm_builds), SGK_KERNEL_TABLE(fused_add_rmsnorm_builds), { 0 } };

/* The first build of this format that takes the row; the last one takes any. `vectors`: rows are 16-byte pieces throughout. */
static norm_build *choose(norm_build *builds, size_t count, sgk_dtype dtype, int64_t dim, bool vectors)
{
    for (size_t i = 0; i < count; ++i) {
        norm_build *b = &builds[i];
        if (b->dtype != dtype) continue;
        if (b->vecs == 0) return b;
        const int64_t pieces = dim * sgk_dtype_size(dtype) / 16;
        if (vectors && pieces <= 32 * (int64_t)b->warps * b->vecs) return b;
    }
    return NULL;
}

static bool in_pieces(const void *data, int64_t stride, sgk_dtype dtype)
{
    return (uintptr_t)data % 16 == 0 && stride * sgk_dtype_size(dtype) % 16 == 0;
}

static sgk_status launch(const char *op, norm_build *b, int64_t rows, int ordinal, const sgk_exec *exec, const void *args, size_t size)
{
    SGK_LOG_BUILD(exec, op, &b->kernel, b->vecs ? "" : " (rows longer than any register build or not in 16-byte pieces)");
    const sgk_launch shape = { .grid = { rows }, .block = { 32u * (unsigned)b->warps } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, args, size);
}

sgk_status sgk_rmsnorm(const DLTensor *output, const DLTensor *input, const DLTensor *weight, double eps, const sgk_exec *exec)
{
    sgk_match m = { .op = "rmsnorm" };
    SGK_MATCH(&m,     input,  "N D", SGK_ANY_FLOAT);
    SGK_MATCH(&m,     weight, "D",   1u << m.dtype);
    SGK_MATCH_OUT(&m, output, "N D", 1u << m.dtype);
    sgk_match_same(&m, output, input);
    SGK_MATCH_FINITE(&m, eps, 0);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const struct rmsnorm_args a = {
        .output = sgk_data(output), .input = sgk_data(input), .weight = sgk_data(weight),
        .rows = SGK_DIM(&m, 'N'), .dim = SGK_DIM(&m, 'D'),
        .output_stride = sgk_stride(output, 0), .input_stride = sgk_stride(input, 0),
        .dtype = m.dtype, .eps = (float)eps,
    };
    if (a.rows == 0 || a.dim == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) {
        const bool vectors = in_pieces(a.output, a.output_stride, a.dtype) && in_pieces(a.input, a.input_stride, a.dtype) &&
                             in_pieces(a.weight, a.dim, a.dtype);
        norm_build *b = choose(rmsnorm_builds, sizeof rmsnorm_builds / sizeof *rmsnorm_builds, a.dtype, a.dim, vectors);
        return launch(m.op, b, a.rows, m.device.device_id, exec, &a, sizeof a);
    }
    return sgk_cpu_run(m.op, rmsnorm_cpu, &a, a.rows, sgk_cpu_grain(2 * a.dim * sgk_dtype_size(a.dtype)), exec);
}

sgk_status sgk_fused_add_rmsnorm(const DLTensor *input, const DLTensor *residual, const DLTensor *weight, double eps, const sgk_exec *exec)
{
    sgk_match m = { .op = "fused_add_rmsnorm" };
    SGK_MATCH_OUT(&m, input,    "N D", SGK_ANY_FLOAT);
    SGK_MATCH_OUT(&m, residual, "N D", 1u << m.dtype);
    SGK_MATCH(&m,     weight,   "D",   1u << m.dtype);
    SGK_MATCH_FINITE(&m, eps, 0);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const struct fused_add_rmsnorm_args a = {
        .input = sgk_data(input), .residual = sgk_data(residual), .weight = sgk_data(weight),
        .rows = SGK_DIM(&m, 'N'), .dim = SGK_DIM(&m, 'D'),
        .input_stride = sgk_stride(input, 0), .residual_stride = sgk_stride(residual, 0),
        .dtype = m.dtype, .eps = (float)eps,
    };
    if (a.rows == 0 || a.dim == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) {
        const bool vectors = in_pieces(a.input, a.input_stride, a.dtype) && in_pieces(a.residual, a.residual_stride, a.dtype) &&
                             in_pieces(a.weight, a.dim, a.dtype);
        norm_build *b = choose(fused_add_rmsnorm_builds, sizeof fused_add_rmsnorm_builds / sizeof *fused_add_rmsnorm_builds, a.dtype, a.dim, vectors);
        return launch(m.op, b, a.rows, m.device.device_id, exec, &a, sizeof a);
    }
    return sgk_cpu_run(m.op, fused_add_rmsnorm_cpu, &a, a.rows, sgk_cpu_grain(4 * a.dim * sgk_dtype_size(a.dtype)), exec);
}
