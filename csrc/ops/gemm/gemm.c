#include "gemm.h"
#include "gemm_scaled.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/tensor_map.h"
#include "sgl_kernel/gemm.h"

SGK_CPU_DECL(linear);
SGK_CPU_DECL_AMX(linear);
static const sgk_cpu_impl linear_cpu[] = SGK_CPU_IMPLS(linear), linear_tiles_cpu[] = SGK_CPU_IMPLS_AMX(linear);

/* Every build of the four kernels. */
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

/* The macros are explained in the kernel. 64 x `groups` x `blocks` rows are the first operand's side of the tile, `bn` the second's. */
#define WGMMA(type, dtype, swap, groups, blocks, bn, stages, slabs, buffers)                                                      \
    { SGK_KERNEL("gemm/gemm_wgmma.cu", "linear_wgmma", "-DT=" type " -DSWAP=" #swap " -DGROUPS=" #groups " -DBLOCKS=" #blocks    \
                 " -DBN=" #bn " -DSTAGES=" #stages " -DSLABS=" #slabs " -DBUFFERS=" #buffers, SGK_ARCH_90A),                      \
      dtype, swap, groups, 64 * groups * blocks, bn, stages, slabs, buffers }
#define WGMMAS(type, dtype)                      \
    WGMMA(type, dtype, 0, 2, 1, 256, 3, 1, 4),   \
    WGMMA(type, dtype, 0, 2, 1, 224, 4, 1, 6),   \
    WGMMA(type, dtype, 0, 2, 1, 192, 4, 1, 3),   \
    WGMMA(type, dtype, 0, 2, 1, 160, 5, 1, 5),   \
    WGMMA(type, dtype, 1, 2, 1, 128, 6, 1, 2),   \
    WGMMA(type, dtype, 1, 1, 1, 128, 4, 2, 2),   \
    WGMMA(type, dtype, 1, 2, 1,  64, 4, 2, 1),   \
    WGMMA(type, dtype, 1, 1, 1,  64, 6, 2, 1),   \
    WGMMA(type, dtype, 1, 2, 1,  32, 5, 2, 1),   \
    WGMMA(type, dtype, 1, 1, 1,  32, 4, 4, 1),   \
    WGMMA(type, dtype, 1, 2, 1,  16, 6, 2, 1),   \
    WGMMA(type, dtype, 1, 1, 1,  16, 5, 4, 1)
static struct wgmma_build { sgk_kernel kernel; sgk_dtype dtype; bool swap; int groups, rows, bn, stages, slabs, buffers; } wgmma_builds[] = {
    WGMMAS("f16", SGK_F16), WGMMAS("bf16", SGK_BF16),
};

/* The last row of a format takes any strides, addresses and K. */
#define SIMT(type, dtype, pieces) \
    { SGK_KERNEL("gemm/gemm_simt.cu", "linear_simt", "-DT=" type " -DPIECES=" #pieces, SGK_GENERAL), dtype, pieces }
static struct simt_build { sgk_kernel kernel; sgk_dtype dtype; int pieces; } simt_builds[] = {
    SIMT("f32", SGK_F32, 1), SIMT("f32", SGK_F32, 0), SIMT("f16", SGK_F16, 0), SIMT("bf16", SGK_BF16, 0),
};
/* clang-format on */

const sgk_kernel_table gemm_kernels[] = { SGK_KERNEL_TABLE(vector_builds), SGK_KERNEL_TABLE(mma_builds), SGK_KERNEL_TABLE(wgmma_builds), SGK_KERNEL_TABLE(simt_builds),
    SGK_KERNEL_TABLE(scaled_mma_builds), SGK_KERNEL_TABLE(scaled_wgmma_builds), { 0 } };

static int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Reading this many bytes of weights from the cache, or so many operations, is worth waking a thread for (see sgk_cpu_grain). */
enum { LINEAR_GRAIN_BYTES      = 384 * 1024,
       LINEAR_GRAIN_OPERATIONS = 4 * 1024 * 1024 };

static sgk_status linear_on_cpu(const char *op, const struct linear_args *a, DLDevice device, const sgk_exec *exec)
{
    struct linear_cpu_args cpu     = { .a = *a, .row_blocks = ceil_div(a->rows, LINEAR_BLOCK_ROWS) };
    const int64_t          threads = sgk_num_threads(exec), weights = a->columns * (a->depth + 1);
    /* AMX adds in another order than few rows are added in. */
    const bool    tiles = a->dtype == SGK_BF16 && a->rows > LINEAR_FEW_TILES && sgk_cpu_has_amx() && !sgk_exec_batch_invariant(exec);
    const bool    few   = a->rows <= LINEAR_FEW_ROWS && !tiles;
    const int64_t worth = 1 + weights * sgk_dtype_size(a->dtype) / LINEAR_GRAIN_BYTES;
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
    cpu.scratch             = scratch.memory;
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

/* ---- sm_90a ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    struct wgmma_build *build;
    int                 split;
} wgmma_plan;

/* What the form for sm_90a reads: rows in 16-byte pieces that do not overlap, coordinates of 31 bits. */
static bool wgmma_takes(const struct linear_args *a)
{
    const int64_t most = INT32_MAX - 4096, far = INT64_C(1) << 38;
    return a->dtype != SGK_F32 && a->depth > 0 && a->columns % 8 == 0 && a->rows < most && a->columns < most && a->depth < most &&
           ceil_div(a->rows, 64) * ceil_div(a->columns, 16) < most && ceil_div(a->rows, 16) * ceil_div(a->columns, 64) < most &&
           (a->rows == 1 || (a->input_stride >= a->depth && a->input_stride < far)) && a->weight_stride >= a->depth && a->weight_stride < far;
}

/* Whether out can be written in boxes. */
static bool wgmma_boxes(const struct linear_args *a)
{
    return a->out_dtype == a->dtype && sgk_in_pieces(a->out, a->rows == 1 ? a->columns : a->out_stride, a->dtype) &&
           (a->rows == 1 || (a->out_stride >= a->columns && a->out_stride < INT64_C(1) << 38));
}

/* The tensor of `rows` rows, in boxes of `width` x `height` elements; a row alone has any stride. */
static sgk_tensor_map wgmma_map(sgk_dtype dtype, const void *data, int64_t columns, int64_t rows, int64_t stride, int width, int height)
{
    return (sgk_tensor_map){
        .dtype     = dtype,
        .rank      = 2,
        .data      = data,
        .size      = { columns, rows },
        .stride    = { 1, rows == 1 ? columns : stride },
        .box       = { width, height },
        .swizzle   = width == 64 ? SGK_SWIZZLE_128 : SGK_SWIZZLE_64,
        .promotion = SGK_PROMOTE_256,
    };
}

static sgk_status launch_wgmma(const char *op, const wgmma_plan *plan, const char *why, int ordinal, int multiprocessors, const sgk_exec *exec,
                               const struct linear_args *a)
{
    const struct wgmma_build *b     = plan->build;
    const int                 split = plan->split, chunk = b->bn % 64 == 0 ? 64 : b->bn % 32 == 0 ? 32
                                                                                                  : 16;
    const int64_t             first = b->swap ? a->columns : a->rows, second = b->swap ? a->rows : a->columns;
    struct linear_wgmma_args  w = {
        .l            = *a,
        .first_tiles  = (int32_t)ceil_div(first, b->rows),
        .second_tiles = (int32_t)ceil_div(second, b->bn),
        .band         = 8,
        .steps        = (int32_t)ceil_div(a->depth, LINEAR_WGMMA_DEPTH * b->slabs),
        .split        = split,
        .by_tma       = wgmma_boxes(a),
    };
    const sgk_tensor_map input  = wgmma_map(a->dtype, a->input, a->depth, a->rows, a->input_stride, LINEAR_WGMMA_DEPTH, b->swap ? b->bn : b->rows);
    const sgk_tensor_map weight = wgmma_map(a->dtype, a->weight, a->depth, a->columns, a->weight_stride, LINEAR_WGMMA_DEPTH, b->swap ? b->rows : b->bn);
    const sgk_tensor_map out    = wgmma_map(a->dtype, a->out, a->columns, a->rows, a->out_stride, b->swap ? 64 : chunk, b->swap ? chunk : 64);
    SGK_TRY(sgk_cuda_tensor_map(op, "input", &input, b->swap ? &w.second : &w.first));
    SGK_TRY(sgk_cuda_tensor_map(op, "weight", &weight, b->swap ? &w.first : &w.second));
    if (w.by_tma) SGK_TRY(sgk_cuda_tensor_map(op, "out", &out, &w.result));

    /* A cluster that splits K has one tile; lone blocks walk through theirs. The last KiB aligns the slabs. */
    const int64_t    all   = (int64_t)w.first_tiles * w.second_tiles;
    const sgk_launch shape = {
        .grid          = { split > 1 ? all * split : least(all, multiprocessors) },
        .block         = { 128u * (unsigned)(b->groups + 1) },
        .shared_memory = (unsigned)(b->stages * b->slabs * (b->rows + b->bn) * 128 + b->groups * b->buffers * 64 * chunk * 2 + 1024),
        .cluster       = split > 1 ? (unsigned)split : 0,
    };
    if (sgk_log_wanted(exec))
        sgk_log(exec, "%s: cuda, %s %s %s, K in %d%s", op, b->kernel.file, b->kernel.entry, b->kernel.defines, split, why);
    return sgk_cuda_launch(op, &plan->build->kernel, &shape, ordinal, exec, &w, sizeof w);
}

/*
 * The tile and the shares of K with the least time by a model fitted to measurements on an H200: the busiest multiprocessor's slabs, each as
 * long as the matrix units or its reads from L2 take, against the time that memory takes; in nanoseconds. Clusters of 3 and more blocks do
 * not fill every part of the GPU. The batch-invariant choice does not look at M, and its tile is always the same.
 */
static wgmma_plan choose_wgmma(const struct linear_args *a, bool batch_invariant, int multiprocessors)
{
    wgmma_plan    best       = { NULL, 1 };
    double        least_time = 0;
    const int64_t rows       = batch_invariant ? 1 : a->rows;
    const double  memory     = 2.0 * ((double)rows * (double)a->depth + (double)a->columns * (double)(a->depth + rows)) / 4100;
    for (size_t i = 0; i < COUNT(wgmma_builds); ++i) {
        struct wgmma_build *b = &wgmma_builds[i];
        if (b->dtype != a->dtype || (batch_invariant && !(b->swap && b->bn == 128 && b->rows == 128))) continue;
        if (!batch_invariant && (b->swap ? (b->bn >= 2 * rows && b->bn > 16) || (b->bn < rows && b->bn < 128) : rows <= 64)) continue;
        const int64_t all      = ceil_div(b->swap ? a->columns : rows, b->rows) * ceil_div(b->swap ? rows : a->columns, b->bn);
        const int64_t steps    = ceil_div(a->depth, LINEAR_WGMMA_DEPTH * b->slabs);
        const double  multiply = b->rows * b->bn / 32 / 1.4, read = (b->rows + b->bn) * 128 / 95.0, slab = multiply > read ? multiply : read;
        for (int split = 1; split <= 4 && split <= steps; ++split) {
            if (split > 1 && all * split > (split > 2 ? multiprocessors * 3 / 4 : multiprocessors)) break;
            const int64_t rounds = split > 1 ? 1 : ceil_div(all, multiprocessors);
            const double  busy   = (double)rounds * ((double)(ceil_div(steps, split) * b->slabs) * slab + 800);
            const double  time   = (busy > memory ? busy + memory / 8 : memory + busy / 8) + (split > 1 ? 500 + b->rows * b->bn / 6 : 0);
            if (!best.build || time < least_time) best = (wgmma_plan){ b, split }, least_time = time;
        }
    }
    return best;
}

static sgk_status linear_on_gpu(const char *op, const struct linear_args *a, int ordinal, const sgk_exec *exec)
{
    const sgk_cuda_device *device;
    SGK_TRY(sgk_cuda_get_device(op, ordinal, &device));
    const bool batch_invariant = sgk_exec_batch_invariant(exec);
    const bool pieces          = sgk_in_pieces(a->input, a->input_stride, a->dtype) && sgk_in_pieces(a->weight, a->weight_stride, a->dtype) &&
                                 sgk_in_pieces(NULL, a->depth, a->dtype);
    const bool wgmma           = pieces && a->dtype != SGK_F32 && sgk_kernel_fits(&wgmma_builds[0].kernel, device);
    if (wgmma && wgmma_takes(a)) {
        const wgmma_plan plan = choose_wgmma(a, batch_invariant, device->multiprocessors);
        return launch_wgmma(op, &plan, batch_invariant ? " (batch invariant)" : "", ordinal, device->multiprocessors, exec, a);
    }
    const char          *why = wgmma ? " (columns not a multiple of 8, rows that overlap, or too large for TMA)" : batch_invariant ? " (batch invariant)"
                                                                                                                                   : "";
    struct vector_build *v   = pieces && !batch_invariant ? choose_vector(a) : NULL;
    if (v) return launch(op, &v->kernel, ceil_div(a->columns, 8), 4, 0, why, ordinal, exec, a);
    if (pieces && a->dtype != SGK_F32) {
        struct mma_build *b = choose_mma(a, batch_invariant, device->multiprocessors);
        return launch(op, &b->kernel, tiles(a, b->bm, b->bn), b->warps, (int64_t)b->stages * (b->bm + b->bn) * b->bk * 2, why, ordinal, exec, a);
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
