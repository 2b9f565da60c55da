#include "act.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/act.h"

SGK_CPU_DECL(silu_and_mul);
static const sgk_cpu_impl silu_and_mul_cpu[] = SGK_CPU_IMPLS(silu_and_mul);

/* Every build of act.cu. The last of a format takes any row. */
typedef struct { sgk_kernel kernel; sgk_dtype dtype; int piece, steps; } act_build;

#define BUILD(type, dtype, piece, steps) \
    { SGK_KERNEL("act/act.cu", "silu_and_mul", "-DT=" type " -DPIECE=" #piece " -DSTEPS=" #steps, SGK_GENERAL), dtype, piece, steps }

/* clang-format off */
static act_build silu_and_mul_builds[] = {
    BUILD("f32",  SGK_F32,  4, 2), BUILD("f32",  SGK_F32,  1, 4),
    BUILD("f16",  SGK_F16,  8, 2), BUILD("f16",  SGK_F16,  1, 4),
    BUILD("bf16", SGK_BF16, 8, 2), BUILD("bf16", SGK_BF16, 1, 4),
};
/* clang-format on */

const sgk_kernel_table act_kernels[] = { SGK_KERNEL_TABLE(silu_and_mul_builds), { 0 } };

enum { THREADS = 256 };                                 /* as in act.cu */

static bool in_pieces(const void *data, int64_t elements, sgk_dtype dtype)
{
    return (uintptr_t)data % 16 == 0 && elements * sgk_dtype_size(dtype) % 16 == 0;
}

static act_build *choose(const struct silu_and_mul_args *a)
{
    const bool vectors = in_pieces(a->input, a->input_stride, a->dtype) && in_pieces(a->out, a->out_stride, a->dtype) &&
                         in_pieces(NULL, a->dim, a->dtype);
    act_build *b = silu_and_mul_builds;
    while (b->dtype != a->dtype || (b->piece > 1 && !vectors)) ++b;
    return b;
}

static sgk_status silu_and_mul_cuda(struct silu_and_mul_args *a, const char *op, int ordinal, const sgk_exec *exec)
{
    act_build *b = choose(a);
    const int64_t pieces = a->dim / b->piece;
    while (1 << a->lanes_log2 < THREADS && (int64_t)b->steps << a->lanes_log2 < pieces) ++a->lanes_log2;
    const int64_t chunk = (int64_t)b->steps << a->lanes_log2, rows = THREADS >> a->lanes_log2;
    const int64_t chunks = (pieces + chunk - 1) / chunk, groups = (a->rows + rows - 1) / rows;

    SGK_LOG_BUILD(exec, op, &b->kernel, b->piece > 1 ? "" : " (rows are not in 16-byte pieces)");
    const sgk_launch shape = { .grid = { chunks * groups }, .block = { THREADS } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

sgk_status sgk_silu_and_mul(const DLTensor *out, const DLTensor *input, const sgk_exec *exec)
{
    sgk_match m = { .op = "silu_and_mul" };
    SGK_MATCH_OUT(&m, out,   "*N D", SGK_ANY_FLOAT);
    SGK_MATCH(&m,     input, "*N W", 1u << m.dtype);
    SGK_REQUIRE(input->ndim == out->ndim, SGK_BAD_ARG, "silu_and_mul: input has %d dimensions, expected %d like out", input->ndim, out->ndim);
    for (int d = 0; d < out->ndim - 1; ++d)
        SGK_REQUIRE(input->shape[d] == out->shape[d], SGK_BAD_ARG, "silu_and_mul: input has size %lld in dimension %d, expected %lld like out",
                    (long long)input->shape[d], d, (long long)out->shape[d]);
    SGK_REQUIRE(SGK_DIM(&m, 'W') == 2 * SGK_DIM(&m, 'D'), SGK_BAD_ARG, "silu_and_mul: input has size %lld in its last dimension, expected 2 x %lld",
                (long long)SGK_DIM(&m, 'W'), (long long)SGK_DIM(&m, 'D'));
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    struct silu_and_mul_args a = {
        .out = sgk_data(out), .input = sgk_data(input),
        .rows = SGK_DIM(&m, 'N'), .dim = SGK_DIM(&m, 'D'),
        .out_stride = sgk_fold_stride(out, 1), .input_stride = sgk_fold_stride(input, 1),
        .dtype = m.dtype,
    };
    if (a.rows == 0 || a.dim == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return silu_and_mul_cuda(&a, m.op, m.device.device_id, exec);
    const int64_t blocks = (a.dim + ACT_BLOCK - 1) / ACT_BLOCK, each = a.dim < ACT_BLOCK ? a.dim : ACT_BLOCK;
    return sgk_cpu_run(m.op, silu_and_mul_cpu, &a, a.rows * blocks, sgk_cpu_grain(3 * each * sgk_dtype_size(a.dtype)), exec);
}
