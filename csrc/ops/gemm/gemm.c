#include "gemm.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/gemm.h"

SGK_CPU_DECL(linear);
SGK_CPU_DECL_AMX(linear);
static const sgk_cpu_impl linear_cpu[] = SGK_CPU_IMPLS(linear), linear_tiles_cpu[] = SGK_CPU_IMPLS_AMX(linear);

/* Every build of the three kernels. */
/* clang-format off */
#define VECTOR(type, dtype, rows) \
    { SGK_KERNEL("gemm/gemm_vector.cu", "linear_vector", "-DT=" type " -DROWS=" #rows, SGK_GENERAL), dtype, rows }
static struct vector_build { sgk_kernel kernel; sgk_dtype dtype; int rows; } vector_builds[] = {
    VECTOR("f32",  SGK_F32,  1), VECTOR("f32",  SGK_F32,  4), VECTOR("f32", SGK_F32, 8),
    VECTOR("f16",  SGK_F16,  1), VECTOR("f16",  SGK_F16,  4),
    VECTOR("bf16", SGK_BF16, 1), VECTOR("bf16", SGK_BF16, 4),
};

/* `efficiency` is the share of the largest tile's speed, in percent, that a tile reaches when all multiprocessors have one. */
#define MMA(type, dtype, bm, bn, bk, wm, wn, wk, stages, efficiency)                                                                 \
    { SGK_KERNEL("gemm/gemm.cu", "linear_mma", "-DT=" type " -DBM=" #bm " -DBN=" #bn " -DBK=" #bk " -DWM=" #wm " -DWN=" #wn " -DWK=" #wk \
                 " -DSTAGES=" #stages, SGK_GENERAL), dtype, bm, bn, bk, wm * wn * wk, stages, efficiency }
#define MMAS(type, dtype)                                       \
    MMA(type, dtype, 128, 128,  32, 2, 4, 1, 4, 100),           \
    MMA(type, dtype, 128,  64,  32, 4, 2, 1, 4, 90),            \
    MMA(type, dtype,  64,  64,  64, 2, 2, 1, 4, 75),            \
    MMA(type, dtype,  32,  32, 128, 1, 1, 4, 4, 45),            \
    MMA(type, dtype,  16,  32, 128, 1, 1, 4, 4, 30)
static struct mma_build { sgk_kernel kernel; sgk_dtype dtype; int bm, bn, bk, warps, stages, efficiency; } mma_builds[] = {
    MMAS("f16", SGK_F16), MMAS("bf16", SGK_BF16),
};

/* The last row of a format takes any strides, addresses and K. */
#define SIMT(type, dtype, pieces) \
    { SGK_KERNEL("gemm/gemm_simt.cu", "linear_simt", "-DT=" type " -DPIECES=" #pieces, SGK_GENERAL), dtype, pieces }
static struct simt_build { sgk_kernel kernel; sgk_dtype dtype; int pieces; } simt_builds[] = {
    SIMT("f32", SGK_F32, 1), SIMT("f32", SGK_F32, 0), SIMT("f16", SGK_F16, 0), SIMT("bf16", SGK_BF16, 0),
};
/* clang-format on */

const sgk_kernel_table gemm_kernels[] = { SGK_KERNEL_TABLE(vector_builds), SGK_KERNEL_TABLE(mma_builds), SGK_KERNEL_TABLE(simt_builds), { 0 } };

static int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Reading this many bytes of weights from the cache, or so many operations, is worth waking a thread for (see sgk_cpu_grain). */
enum { LINEAR_GRAIN_BYTES      = 384 * 1024,
       LINEAR_GRAIN_OPERATIONS = 4 * 1024 * 1024 };

static sgk_status linear_on_cpu(const char *op, const struct linear_args *a, DLDevice device, const sgk_exec *exec)
{
    struct linear_cpu_args cpu     = { .a = *a, .row_blocks = ceil_div(a->rows, LINEAR_BLOCK_ROWS) };
    const int64_t          threads = sgk_num_threads(exec), weights = a->columns * (a->depth + 1);
    const bool             few   = a->rows <= LINEAR_FEW_ROWS;
    const int64_t          worth = 1 + weights * sgk_dtype_size(a->dtype) / LINEAR_GRAIN_BYTES;
    if (few) {
        cpu.parts = least(least(threads, ceil_div(a->columns, 16)), a->rows == 1 ? worth : 1 + 2 * a->rows * weights / LINEAR_GRAIN_OPERATIONS);
    } else {
        const int64_t across = ceil_div(a->columns, LINEAR_BLOCK), most = ceil_div(a->rows, LINEAR_FEW_ROWS);
        if (cpu.row_blocks * across < 4 * threads) cpu.row_blocks = least(most, ceil_div(4 * threads, across));
        cpu.parts = least(threads, cpu.row_blocks * across);
    }
    sgk_scratch scratch;
    SGK_TRY(sgk_scratch_get(&scratch, op, few ? 0 : (size_t)cpu.parts * LINEAR_SCRATCH, device, exec));
    if (scratch.query_only) return SGK_OK;
    cpu.scratch = scratch.memory;
    /* AMX adds in another order than few rows are added in. */
    const bool       tiles  = !few && a->dtype == SGK_BF16 && !sgk_exec_batch_invariant(exec);
    const sgk_status status = sgk_cpu_run(op, tiles ? linear_tiles_cpu : linear_cpu, &cpu, cpu.parts, 1, exec);
    sgk_scratch_put(&scratch);
    return status;
}

#define COUNT(rows) (sizeof(rows) / sizeof *(rows))

static sgk_status launch(const char *op, sgk_kernel *kernel, int64_t blocks, int warps, int64_t shared_memory, const char *why,
                         int ordinal, const sgk_exec *exec, const struct linear_args *a)
{
    SGK_LOG_BUILD(exec, op, kernel, why);
    const sgk_launch shape = { .grid = { blocks }, .block = { 32u * (unsigned)warps }, .shared_memory = (unsigned)shared_memory };
    return sgk_cuda_launch(op, kernel, &shape, ordinal, exec, a, sizeof *a);
}

static struct vector_build *choose_vector(const struct linear_args *a)
{
    for (size_t i = 0; i < COUNT(vector_builds); ++i)
        if (vector_builds[i].dtype == a->dtype && a->rows <= vector_builds[i].rows) return &vector_builds[i];
    return NULL;
}

static int64_t tiles(const struct linear_args *a, int bm, int bn) { return ceil_div(a->rows, bm) * ceil_div(a->columns, bn); }

/* The tile with the least work on the busiest multiprocessor. The batch-invariant choice walks K in one chain and does not look at M. */
static struct mma_build *choose_mma(const struct linear_args *a, bool batch_invariant, int multiprocessors)
{
    struct mma_build *best       = NULL;
    double            least_time = 0;
    for (size_t i = 0; i < COUNT(mma_builds); ++i) {
        struct mma_build *b = &mma_builds[i];
        if (b->dtype != a->dtype) continue;
        if (batch_invariant) {
            if (b->bm == 64) return b;
            continue;
        }
        const double time = (double)ceil_div(tiles(a, b->bm, b->bn), multiprocessors) * b->bm * b->bn / b->efficiency;
        if (!best || time < least_time) best = b, least_time = time;
    }
    return best;
}

static sgk_status linear_on_gpu(const char *op, const struct linear_args *a, int ordinal, const sgk_exec *exec)
{
    const sgk_cuda_device *device;
    SGK_TRY(sgk_cuda_get_device(op, ordinal, &device));
    const bool           batch_invariant = sgk_exec_batch_invariant(exec);
    const bool           pieces          = sgk_in_pieces(a->input, a->input_stride, a->dtype) && sgk_in_pieces(a->weight, a->weight_stride, a->dtype) &&
                                           sgk_in_pieces(NULL, a->depth, a->dtype);
    struct vector_build *v               = pieces && !batch_invariant ? choose_vector(a) : NULL;
    if (v) return launch(op, &v->kernel, ceil_div(a->columns, 8), 4, 0, "", ordinal, exec, a);
    if (pieces && a->dtype != SGK_F32) {
        struct mma_build *b = choose_mma(a, batch_invariant, device->multiprocessors);
        return launch(op, &b->kernel, tiles(a, b->bm, b->bn), b->warps, (int64_t)b->stages * (b->bm + b->bn) * b->bk * 2,
                      batch_invariant ? " (batch invariant)" : "", ordinal, exec, a);
    }
    struct simt_build *s = simt_builds;
    while (s->dtype != a->dtype || (s->pieces && !pieces)) ++s;
    return launch(op, &s->kernel, tiles(a, 64, 64), 4, 0, pieces ? "" : " (rows of input or weight not in 16-byte pieces)", ordinal, exec, a);
}

sgk_status sgk_linear(const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *bias, const sgk_exec *exec)
{
    sgk_match m = { .op = "linear" };
    SGK_MATCH(&m, input, "*M K", SGK_ANY_FLOAT);
    SGK_MATCH(&m, weight, "N K", 1u << m.dtype);
    SGK_MATCH_OPT(&m, bias, "N", 1u << m.dtype | 1u << SGK_F32);
    SGK_MATCH_OUT(&m, out, "*M N", 1u << m.dtype | 1u << SGK_F32);
    SGK_TRY(sgk_match_done(&m));

    const struct linear_args a = {
        .out           = sgk_data(out),
        .input         = sgk_data(input),
        .weight        = sgk_data(weight),
        .bias          = sgk_data(bias),
        .rows          = SGK_DIM(&m, 'M'),
        .columns       = SGK_DIM(&m, 'N'),
        .depth         = SGK_DIM(&m, 'K'),
        .out_stride    = sgk_fold_stride(out, 1),
        .input_stride  = sgk_fold_stride(input, 1),
        .weight_stride = sgk_stride(weight, 0),
        .dtype         = m.dtype,
        .out_dtype     = sgk_dtype_at(out),
        .bias_dtype    = bias ? sgk_dtype_at(bias) : SGK_F32,
    };
    if (a.rows == 0 || a.columns == 0) {
        SGK_NO_SCRATCH(exec);
        return SGK_OK;
    }
    if (sgk_on_gpu(&m)) {
        SGK_NO_SCRATCH(exec);
        return linear_on_gpu(m.op, &a, m.device.device_id, exec);
    }
    return linear_on_cpu(m.op, &a, m.device, exec);
}
