#include "gemm_scaled.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/tensor_map.h"
#include "sgl_kernel/gemm.h"

SGK_CPU_DECL(scaled_mm);
static const sgk_cpu_impl scaled_mm_cpu[] = SGK_CPU_IMPLS(scaled_mm);

/* Every build of the four kernels. */
/* clang-format off */
enum { E4M3, FLOATS, INTEGERS };        /* as in gemm_scaled.cu */

/* `efficiency` is the share of the largest tile's speed, in percent, that a tile reaches when all multiprocessors have one. */
#define MMA(kind, bm, bn, bk, wm, wn, wk, stages, pieces, archs, efficiency)                                                                 \
    { SGK_KERNEL("gemm/gemm_scaled.cu", "scaled_mma", "-DKIND=" #kind " -DBM=" #bm " -DBN=" #bn " -DBK=" #bk " -DWM=" #wm " -DWN=" #wn       \
                 " -DWK=" #wk " -DSTAGES=" #stages " -DPIECES=" #pieces, archs), kind, bm, bn, bk, wm * wn * wk, stages, efficiency, pieces }
/* The last row of integers and that of floats take any strides and addresses; on sm_90a what its own form does not take, such as rows that overlap. */
scaled_mma_build scaled_mma_builds[SCALED_MMA_BUILDS] = {
    MMA(E4M3,     128, 128,  64, 2, 4, 1, 4, 1, SGK_NOT_90A, 100),
    MMA(E4M3,      64,  64,  64, 2, 2, 1, 4, 1, SGK_NOT_90A, 75),
    MMA(E4M3,      32,  32, 128, 1, 1, 4, 4, 1, SGK_NOT_90A, 45),
    MMA(E4M3,      16,  32, 128, 1, 1, 4, 4, 1, SGK_NOT_90A, 30),
    MMA(FLOATS,    64,  64,  64, 2, 2, 1, 4, 1, SGK_GENERAL, 75),
    MMA(FLOATS,    64,  64,  64, 2, 2, 1, 3, 0, SGK_GENERAL, 50),
    MMA(INTEGERS, 128, 128,  64, 2, 4, 1, 4, 1, SGK_NOT_90A, 100),
    MMA(INTEGERS,  64,  64,  64, 2, 2, 1, 4, 1, SGK_NOT_90A, 75),
    MMA(INTEGERS,  32,  32, 128, 1, 1, 4, 4, 1, SGK_NOT_90A, 45),
    MMA(INTEGERS,  16,  32, 128, 1, 1, 4, 4, 1, SGK_NOT_90A, 30),
    MMA(INTEGERS,  64,  64,  64, 2, 2, 1, 3, 0, SGK_GENERAL, 50),
};

/*
 * `slab` and `end` are what a multiprocessor takes, in nanoseconds, for a slab of a tile and for what a tile takes besides: fitted to times of all
 * builds over a grid of shapes on an H200.
 */
/* The macros are explained in the kernel. 64 x `groups` x `blocks` rows are the first operand's side of the tile, `bn` the second's. */
#define WGMMA(first, second, input, weight, swap, groups, blocks, bn, part, sets, turns, lag, stages, slabs, chunk, buffers, slab, end)                                    \
    { SGK_KERNEL("gemm/gemm_scaled_wgmma.cu", "scaled_wgmma", "-DFIRST=" #first " -DSECOND=" #second " -DSWAP=" #swap " -DGROUPS=" #groups  \
                 " -DBLOCKS=" #blocks " -DBN=" #bn " -DPART=" #part " -DSETS=" #sets " -DTURNS=" #turns " -DLAG=" #lag " -DSTAGES=" #stages " -DSLABS=" #slabs " -DCHUNK=" #chunk \
                 " -DBUFFERS=" #buffers, SGK_ARCH_90A), input, weight, swap, turns, groups, 64 * (turns ? 1 : groups) * blocks, bn, stages, slabs, chunk, buffers, slab, end, false, SGK_F32 }
#define CHAINS(f16, out_dtype, slab_time, end_time)                                                                                                                      \
    { SGK_KERNEL("gemm/gemm_scaled_chains.cu", "scaled_chains", "-DF16=" #f16, SGK_ARCH_90A), .input = SGK_E4M3, .weight = SGK_E4M3, .groups = 2, .rows = CHAINS_ROWS,    \
      .bn = CHAINS_COLUMNS, .slabs = 1, .chunk = 64, .slab = slab_time, .end = end_time, .chains = true, .out = out_dtype }
#define FP8(...)  WGMMA(e4m3, e4m3, SGK_E4M3, SGK_E4M3, __VA_ARGS__)
#define INT8(...) WGMMA(s8, s8, SGK_I8, SGK_I8, __VA_ARGS__)
scaled_wgmma_build scaled_wgmma_builds[SCALED_WGMMA_BUILDS] = {
    FP8(0, 3, 1, 128, 128, 1, 0, 0, 4, 1, 64, 2, 570, 1300),
    FP8(0, 2, 1, 128, 128, 2, 0, 0, 3, 2, 64, 2, 380, 1200),
    FP8(0, 2, 1,  96,  96, 1, 0, 1, 6, 1, 32, 3, 370, 1000),
    FP8(1, 2, 1, 128, 128, 1, 0, 1, 6, 1, 64, 2, 340, 3200),
    FP8(1, 1, 1, 128, 128, 1, 0, 0, 4, 2, 64, 2, 270, 1700),
    FP8(1, 1, 1,  64,  64, 2, 0, 0, 6, 2, 64, 1, 140, 2200),
    FP8(1, 1, 1,  32,  32, 2, 0, 0, 4, 4, 32, 1, 125, 2300),
    FP8(1, 1, 1,  16,  16, 2, 0, 0, 5, 4, 16, 1, 110, 2400),
    INT8(0, 2, 1, 224, 224, 0, 0, 0, 4, 1, 32, 4, 570, 3200),
    INT8(0, 2, 1, 160, 160, 0, 0, 0, 5, 1, 32, 5, 410, 1900),
    INT8(0, 2, 2, 128, 128, 0, 1, 0, 6, 1, 32, 3, 330, 800),
    INT8(1, 2, 1, 128, 128, 0, 0, 0, 6, 1, 64, 2, 340, 3200),
    INT8(1, 1, 1, 128, 128, 0, 0, 0, 4, 2, 64, 2, 270, 1700),
    INT8(1, 1, 1,  64,  64, 0, 0, 0, 6, 2, 64, 1, 140, 2200),
    INT8(1, 1, 1,  32,  32, 0, 0, 0, 4, 4, 32, 1, 125, 2300),
    INT8(1, 1, 1,  16,  16, 0, 0, 0, 5, 4, 16, 1, 110, 2400),
    WGMMA(e4m3, e5m2, SGK_E4M3, SGK_E5M2, 0, 2, 1, 128, 128, 1, 0, 1, 6, 1, 64, 2, 380, 1200),
    WGMMA(e5m2, e4m3, SGK_E4M3, SGK_E5M2, 1, 1, 1,  64,  64, 2, 0, 0, 6, 2, 64, 1, 140, 2200),
    WGMMA(e5m2, e4m3, SGK_E5M2, SGK_E4M3, 0, 2, 1, 128, 128, 1, 0, 1, 6, 1, 64, 2, 380, 1200),
    WGMMA(e4m3, e5m2, SGK_E5M2, SGK_E4M3, 1, 1, 1,  64,  64, 2, 0, 0, 6, 2, 64, 1, 140, 2200),
    CHAINS(0, SGK_BF16, 755, 1350),
    CHAINS(1, SGK_F16, 755, 1350),
};
#define FEW(integers, type, high, wide, bn, ways, stages) \
    { SGK_KERNEL("gemm/gemm_scaled_few.cu", "scaled_few", "-DINTEGERS=" #integers " -DHIGH=" #high " -DWIDE=" #wide " -DBN=" #bn " -DWAYS=" #ways " -DSTAGES=" #stages, SGK_ARCH_90A), \
      type, 64 * high, bn * wide, high * wide, ways, stages }
scaled_few_build scaled_few_builds[SCALED_FEW_BUILDS] = {
    FEW(0, SGK_E4M3, 1, 1,  32, 4, 16),
    FEW(0, SGK_E4M3, 1, 1,  48, 4, 12),
    FEW(0, SGK_E4M3, 1, 1,  56, 4, 12),
    FEW(0, SGK_E4M3, 1, 1,  64, 4, 12),
    FEW(0, SGK_E4M3, 1, 1,  96, 2, 10),
    FEW(0, SGK_E4M3, 1, 2,  56, 2, 10),
    FEW(0, SGK_E4M3, 2, 1,  64, 2,  8),
    FEW(0, SGK_E4M3, 2, 2,  56, 1,  6),
    FEW(1, SGK_I8, 1, 1,  32, 4, 16),
    FEW(1, SGK_I8, 1, 1,  48, 4, 12),
    FEW(1, SGK_I8, 1, 1,  64, 4, 12),
    FEW(1, SGK_I8, 1, 1, 112, 2,  8),
    FEW(1, SGK_I8, 2, 1,  64, 2,  8),
    FEW(1, SGK_I8, 2, 1, 112, 2,  6),
};
/* clang-format on */

static int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* So many operations are worth waking a thread for (see sgk_cpu_grain). */
enum { SCALED_GRAIN_OPERATIONS = 4 * 1024 * 1024 };

static sgk_status scaled_on_cpu(const char *op, const struct scaled_args *a, DLDevice device, const sgk_exec *exec)
{
    struct scaled_cpu_args cpu     = { .a = *a, .row_blocks = ceil_div(a->rows, SCALED_BLOCK_ROWS) };
    const int64_t          threads = sgk_num_threads(exec), blocks = a->batch * cpu.row_blocks * ceil_div(a->columns, SCALED_BLOCK);
    const double           work  = 2.0 * (double)a->batch * (double)a->rows * (double)a->columns * (double)(a->depth + 1);
    const int64_t          worth = work > 64.0 * SCALED_GRAIN_OPERATIONS ? 64 : 1 + (int64_t)work / SCALED_GRAIN_OPERATIONS;
    cpu.parts                    = least(least(threads, blocks), worth > 64 ? threads : worth);
    sgk_scratch scratch;
    SGK_TRY(sgk_scratch_get(&scratch, op, a->rows <= SCALED_FEW_ROWS ? 0 : (size_t)cpu.parts * SCALED_SCRATCH, device, exec));
    if (scratch.query_only) return SGK_OK;
    cpu.scratch             = scratch.memory;
    const sgk_status status = sgk_cpu_run(op, scaled_mm_cpu, &cpu, cpu.parts, 1, exec);
    sgk_scratch_put(&scratch);
    return status;
}

static int64_t tiles(const struct scaled_args *a, int64_t bm, int64_t bn) { return a->batch * ceil_div(a->rows, bm) * ceil_div(a->columns, bn); }

/* ---- any GPU ----------------------------------------------------------------------------------------------------------- */

/* The tile with the least work on the busiest multiprocessor. The batch-invariant choice walks K in one chain and does not look at M. */
static scaled_mma_build *choose_mma(const struct scaled_args *a, bool pieces, bool batch_invariant, const sgk_cuda_device *device)
{
    const bool        e4m3       = pieces && a->input_dtype == SGK_E4M3 && a->weight_dtype == SGK_E4M3 && sgk_kernel_fits(&scaled_mma_builds[0].kernel, device);
    const int         kind       = a->input_dtype == SGK_I8 ? INTEGERS : e4m3 ? E4M3
                                                                              : FLOATS;
    scaled_mma_build *best       = NULL;
    double            least_time = 0;
    for (int i = 0; i < SCALED_MMA_BUILDS; ++i) {
        scaled_mma_build *b = &scaled_mma_builds[i];
        if (b->kind != kind || b->pieces > pieces || !sgk_kernel_fits(&b->kernel, device) || (batch_invariant && b->bm != 64)) continue;
        const double time = (double)ceil_div(tiles(a, b->bm, b->bn), device->multiprocessors) * b->bm * b->bn / b->efficiency;
        if (!best || time < least_time) best = b, least_time = time;
    }
    return best;
}

/* ---- sm_90a ------------------------------------------------------------------------------------------------------------ */

enum { SPLIT_TIME    = 6000,       /* what a share of K adds, nanoseconds */
       HALF_TIME     = 370,        /* by so much a slab half of a tile of chains is faster */
       FEWEST_BLOCKS = 2048 };     /* up to so much K tiles of chains go to as few blocks as need the same rounds: these stay together longer */
typedef struct {
    scaled_wgmma_build *build;
    int                 split;
} wgmma_plan;

static bool pieces16(const void *data, int64_t count, int64_t stride) { return (uintptr_t)data % 16 == 0 && (count <= 1 || stride % 16 == 0); }

/* Rows that begin at multiples of 16 bytes. */
static bool in_pieces(const struct scaled_args *a)
{
    return pieces16(a->input, a->rows, a->input_stride) && pieces16(a->input, a->batch, a->input_batch) &&
           pieces16(a->weight, a->columns, a->weight_stride) && pieces16(a->weight, a->batch, a->weight_batch);
}

/* What TMA takes: rows and matrices that do not overlap, coordinates of 31 bits. */
static bool takes(int64_t count, int64_t stride, int64_t inside) { return count <= 1 || (stride >= inside && stride < INT64_C(1) << 38); }
static bool wgmma_takes(const struct scaled_args *a)
{
    const int64_t most = INT32_MAX - 4096;
    return a->depth > 0 && a->rows < most && a->columns < most && a->depth < most && a->batch < most &&
           (double)tiles(a, 16, 64) < most && (double)tiles(a, 64, 16) < most &&
           takes(a->rows, a->input_stride, a->depth) && takes(a->columns, a->weight_stride, a->depth) &&
           takes(a->batch, a->input_batch, 1) && takes(a->batch, a->weight_batch, 1);
}

/* Whether out can be written in boxes: a row's last piece of 16 bytes would be written whole. */
static bool wgmma_boxes(const struct scaled_args *a)
{
    return a->out_dtype != SGK_F32 && a->columns % 8 == 0 && (uintptr_t)a->out % 16 == 0 && (a->rows <= 1 || a->out_stride % 8 == 0) && (a->batch <= 1 || a->out_batch % 8 == 0) &&
           takes(a->rows, a->out_stride, a->columns) && takes(a->batch, a->out_batch, 1);
}

/* Matrices of `rows` rows, in boxes of `width` x `height` elements. The stride of what is alone does not matter, but must be one. */
static sgk_tensor_map wgmma_map(sgk_dtype dtype, const void *data, const int64_t size[3], int64_t row_stride, int64_t batch_stride, int width, int height)
{
    const int64_t unit = 16 / sgk_dtype_size(dtype), alone = ceil_div(size[0], unit) * unit, row = size[1] > 1 ? row_stride : alone;
    const int     bytes = width * sgk_dtype_size(dtype);
    return (sgk_tensor_map){
        .dtype     = dtype,
        .rank      = 3,
        .data      = data,
        .size      = { size[0], size[1], size[2] },
        .stride    = { 1, row, size[2] > 1 ? batch_stride : row },
        .box       = { width, height, 1 },
        .swizzle   = bytes == 128 ? SGK_SWIZZLE_128 : bytes == 64 ? SGK_SWIZZLE_64
                                                                  : SGK_SWIZZLE_NONE,
        .promotion = SGK_PROMOTE_256,
    };
}

/* Of K; a tile of chains begins with two. */
static int64_t steps_of(const scaled_wgmma_build *b, const struct scaled_args *a)
{
    const int64_t steps = ceil_div(a->depth, SCALED_WGMMA_DEPTH * b->slabs);
    return b->chains && steps < 2 ? 2 : steps;
}

/* Tiles of chains that would leave half of the multiprocessors idle in the last round: their halves are shared out. */
static int64_t rest_in_halves(const scaled_wgmma_build *b, int64_t all, int multiprocessors)
{
    const int64_t rest = all % multiprocessors;
    return b->chains && 2 * rest <= multiprocessors ? rest : 0;
}

static sgk_status launch_wgmma(const char *op, const wgmma_plan *plan, const char *why, int ordinal, int multiprocessors, const sgk_exec *exec,
                               const struct scaled_args *a)
{
    const scaled_wgmma_build *b     = plan->build;
    const int                 split = plan->split, chunk = b->chunk, box = b->chains ? 128 : b->rows;
    const int64_t             first = b->swap ? a->columns : a->rows, second = b->swap ? a->rows : a->columns;
    struct scaled_wgmma_args  w = {
        .s            = *a,
        .first_tiles  = (int32_t)ceil_div(first, b->rows),
        .second_tiles = (int32_t)ceil_div(second, b->bn),
        .band         = 8,
        .steps        = (int32_t)steps_of(b, a),
        .split        = split,
        .by_tma       = wgmma_boxes(a),
    };
    const int64_t        input_size[] = { a->depth, a->rows, a->batch }, weight_size[] = { a->depth, a->columns, a->batch }, out_size[] = { a->columns, a->rows, a->batch };
    const sgk_tensor_map input  = wgmma_map(a->input_dtype, a->input, input_size, a->input_stride, a->input_batch, SCALED_WGMMA_DEPTH, b->swap ? b->bn : box);
    const sgk_tensor_map weight = wgmma_map(a->weight_dtype, a->weight, weight_size, a->weight_stride, a->weight_batch, SCALED_WGMMA_DEPTH, b->swap ? box : b->bn);
    const sgk_tensor_map out    = wgmma_map(a->out_dtype, a->out, out_size, a->out_stride, a->out_batch, b->swap ? 64 : chunk, b->swap ? chunk : 64);
    SGK_TRY(sgk_cuda_tensor_map(op, "mat_a", &input, b->swap ? &w.second : &w.first));
    SGK_TRY(sgk_cuda_tensor_map(op, "mat_b", &weight, b->swap ? &w.first : &w.second));
    if (w.by_tma) SGK_TRY(sgk_cuda_tensor_map(op, "out", &out, &w.result));

    /* A cluster that splits K has one tile; lone blocks walk through theirs. The last KiB aligns the slabs. */
    const int64_t all = (int64_t)w.first_tiles * w.second_tiles * a->batch, rest = rest_in_halves(b, all, multiprocessors);
    const bool    fewest = b->chains && a->depth <= FEWEST_BLOCKS;
    w.whole = (int32_t)(all - rest), w.halves = (int32_t)(2 * rest);
    const int        memory = b->stages * b->slabs * (b->rows + b->bn) * 128 + b->groups * b->buffers * 64 * chunk * 2 + 1024;
    const sgk_launch shape  = {
        .grid          = { split > 1 ? all * split : rest ? least(w.whole + w.halves, multiprocessors)
                                                 : fewest ? ceil_div(all, ceil_div(all, multiprocessors))
                                                          : least(all, multiprocessors) },
        .block         = { 128u * (unsigned)(b->groups + 1) },
        .shared_memory = (unsigned)(b->chains ? CHAINS_MEMORY : memory),
        .cluster       = split > 1 ? (unsigned)split : 0,
    };
    if (sgk_log_wanted(exec))
        sgk_log(exec, "%s: cuda, %s %s %s, K in %d%s", op, b->kernel.file, b->kernel.entry, b->kernel.defines, split, why);
    return sgk_cuda_launch(op, &plan->build->kernel, &shape, ordinal, exec, &w, sizeof w);
}

/* The batch-invariant choice does not look at M: always the same tile, and K in one share. */
static scaled_wgmma_build *invariant_build(const struct scaled_args *a)
{
    for (int i = 0; i < SCALED_WGMMA_BUILDS; ++i) {
        scaled_wgmma_build *b = &scaled_wgmma_builds[i];
        if (b->input == a->input_dtype && b->weight == a->weight_dtype && b->swap) return b;
    }
    return NULL;
}

/*
 * The tile and the shares of K with the least time: what the busiest multiprocessor does, by the times measured of the build, against the
 * time that memory takes; in nanoseconds. Up to 64 rows are the second operand, of the least tile that holds them. More than two shares were never
 * faster.
 */
static wgmma_plan choose_wgmma(const struct scaled_args *a, bool batch_invariant, int multiprocessors)
{
    if (batch_invariant) return (wgmma_plan){ invariant_build(a), 1 };
    wgmma_plan    best       = { NULL, 1 };
    double        least_time = 0;
    const int64_t rows       = a->rows;
    const double  memory     = (double)a->batch * ((double)rows * (double)a->depth + (double)a->columns * (double)(a->depth + 2 * rows)) / 4100;
    for (int i = 0; i < SCALED_WGMMA_BUILDS; ++i) {
        scaled_wgmma_build *b = &scaled_wgmma_builds[i];
        if (b->input != a->input_dtype || b->weight != a->weight_dtype) continue;
        if (b->input != b->weight ? b->swap != (rows <= 64) : b->swap ? (b->bn >= 2 * rows && b->bn > 16) || b->bn < rows
                                                                      : rows <= 64) continue;
        if (b->chains && (b->out != a->out_dtype || !wgmma_boxes(a))) continue;
        const int64_t all   = a->batch * ceil_div(b->swap ? a->columns : rows, b->rows) * ceil_div(b->swap ? rows : a->columns, b->bn);
        const int64_t steps = steps_of(b, a);
        for (int split = 1; split <= 2 && split <= steps; ++split) {
            if (split > 1 && (b->turns || b->chains || all * split > multiprocessors)) break;
            const int64_t rounds = split > 1 ? 1 : ceil_div(all, multiprocessors);
            const double  halves = rest_in_halves(b, all, multiprocessors) ? (double)steps * HALF_TIME : 0;
            const double  busy   = (double)rounds * ((double)(ceil_div(steps, split) * b->slabs) * b->slab + b->end) + (split > 1 ? SPLIT_TIME : 0) - halves;
            const double  time   = busy > memory ? busy + memory / 8 : memory + busy / 8;
            if (!best.build || time < least_time) best = (wgmma_plan){ b, split }, least_time = time;
        }
    }
    return best;
}

/* ---- sm_90a, few rows ------------------------------------------------------------------------------------------------- */

typedef struct {
    scaled_few_build *build;            /* NULL: none */
    int               split;
} few_plan;

enum { MOST_FEW = 128 };
static int64_t few_high(const scaled_few_build *b, const struct scaled_args *a) { return least(ceil_div(a->rows, 8) * 8, b->rows); }

/* Two blocks with a tile have room for sums of half of it. */
static int64_t few_bytes(const scaled_few_build *b, int split)
{
    return b->stages * ((b->rows + b->columns) * 128 + 16) + (b->rows + b->columns) * 4 + 16 + (split > 1 ? b->rows * b->columns * 2 : 0);
}

/* Where that form is the faster one, of the rows, depths and tiles that were timed beside the others. */
static bool few_wins(const struct scaled_args *a, const few_plan *plan, int64_t steps)
{
    const scaled_few_build *b        = plan->build;
    const bool              integers = b->dtype == SGK_I8;
    if (b->rows > 64) return steps >= 16;
    if (a->rows > b->rows) return steps >= (integers && b->columns > 64 ? 128 : 32);
    if (b->columns == 32 && plan->split == 1 && a->rows <= 16) return steps >= 96;
    return !(integers && b->columns == 64 && a->rows > 16);
}

/*
 * For few rows, and where every tile has a multiprocessor: the least time by a model, in nanoseconds, of what memory takes, a block's operands and a block's
 * slabs, and of adding up where K is in two shares, or of tiles one above the other. Its numbers are fitted to times of 8 shapes on an H200.
 */
static few_plan choose_few(const struct scaled_args *a, const sgk_cuda_device *device)
{
    few_plan      best       = { 0 };
    double        least_time = 0;
    const int64_t steps      = ceil_div(a->depth, SCALED_WGMMA_DEPTH);
    const double  memory     = (double)((a->columns + a->rows) * a->depth) / 4500.0;
    if (a->batch != 1 || a->rows > MOST_FEW || a->input_dtype != a->weight_dtype) return best;
    for (int i = 0; i < SCALED_FEW_BUILDS; ++i) {
        scaled_few_build *b     = &scaled_few_builds[i];
        const int64_t     tiles = ceil_div(a->columns, b->columns) * ceil_div(a->rows, b->rows);
        if (b->dtype != a->input_dtype || (b->rows > 64 && a->rows <= 64)) continue;
        for (int split = 1; split <= (a->rows > b->rows ? 1 : 2) && split <= steps && tiles * split <= device->multiprocessors; ++split) {
            if (few_bytes(b, split) > device->shared_memory_per_block) continue;
            const int64_t share    = ceil_div(steps, split);
            const double  read     = (double)(share * SCALED_WGMMA_DEPTH * (few_high(b, a) + b->columns)) / 112.0;
            const double  multiply = (double)ceil_div(share, b->ways) * (b->ways > 1 ? 480.0 : 420.0), busy = read > multiply ? read : multiply;
            const double  most = busy > memory ? busy : memory;
            const double  time = most + (memory + read + multiply - most) / 8 + (split > 1 ? 800.0 + 0.2 * (double)(a->rows * b->columns) : 0) + (a->rows > b->rows ? 1000 : 0);
            if (!best.build || time < least_time) best = (few_plan){ b, split }, least_time = time;
        }
    }
    return best.build && few_wins(a, &best, steps) ? best : (few_plan){ 0 };
}

/* By times of 8 shapes on an H200. More delays the first copies, and what the kernel before still reads. */
static int32_t few_ahead(int split, int64_t steps) { return split == 1 && steps >= 64 ? 8 : 4; }

static sgk_tensor_map slabs_of(sgk_dtype dtype, const void *data, int64_t depth, int64_t rows, int64_t stride, int64_t high)
{
    return (sgk_tensor_map){
        .dtype     = dtype,
        .rank      = 2,
        .data      = data,
        .size      = { depth, rows },
        .stride    = { 1, rows > 1 ? stride : ceil_div(depth, 16) * 16 },
        .box       = { SCALED_WGMMA_DEPTH, (int)high },
        .swizzle   = SGK_SWIZZLE_128,
        .promotion = SGK_PROMOTE_256,
    };
}

static sgk_status launch_few(const char *op, scaled_few_build *b, int split, int ordinal, const sgk_exec *exec, const struct scaled_args *a)
{
    const int64_t          steps = ceil_div(a->depth, SCALED_WGMMA_DEPTH), high = few_high(b, a);
    struct scaled_few_args f = {
        .s        = *a,
        .high     = (int32_t)high,
        .steps    = (int32_t)steps,
        .share    = (int32_t)ceil_div(steps, split),
        .split    = split,
        .in_fours = a->out_dtype != SGK_F32 && a->columns % 4 == 0 && (uintptr_t)a->out % 8 == 0 && (a->rows <= 1 || a->out_stride % 4 == 0),
        .once     = a->rows <= b->rows,
        .ahead    = sgk_exec_pdl(exec) ? few_ahead(split, steps) : 0,
    };
    const sgk_tensor_map input = slabs_of(a->input_dtype, a->input, a->depth, a->rows, a->input_stride, high), weight = slabs_of(a->weight_dtype, a->weight, a->depth, a->columns, a->weight_stride, b->columns);
    SGK_TRY(sgk_cuda_tensor_map(op, "mat_a", &input, &f.first));
    SGK_TRY(sgk_cuda_tensor_map(op, "mat_b", &weight, &f.second));
    const sgk_launch shape = {
        .grid          = { split, ceil_div(a->rows, b->rows), ceil_div(a->columns, b->columns) },
        .block         = { 128u * (unsigned)(b->parts * b->ways) + 32 },
        .shared_memory = (unsigned)few_bytes(b, split),
        .cluster       = split > 1 ? (unsigned)split : 0,
    };
    if (sgk_log_wanted(exec)) sgk_log(exec, "%s: cuda, %s %s %s, K in %d", op, b->kernel.file, b->kernel.entry, b->kernel.defines, split);
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, &f, sizeof f);
}

static sgk_status scaled_on_gpu(const char *op, const struct scaled_args *a, int ordinal, const sgk_exec *exec)
{
    const sgk_cuda_device *device;
    SGK_TRY(sgk_cuda_get_device(op, ordinal, &device));
    const bool batch_invariant = sgk_exec_batch_invariant(exec), pieces = in_pieces(a), wgmma = sgk_kernel_fits(&scaled_wgmma_builds[0].kernel, device);
    if (wgmma && pieces && wgmma_takes(a)) {
        const few_plan few = batch_invariant ? (few_plan){ 0 } : choose_few(a, device);
        if (few.build) return launch_few(op, few.build, few.split, ordinal, exec, a);
        const wgmma_plan plan = choose_wgmma(a, batch_invariant, device->multiprocessors);
        if (plan.build) return launch_wgmma(op, &plan, batch_invariant ? " (batch invariant)" : "", ordinal, device->multiprocessors, exec, a);
    }
    scaled_mma_build *b = choose_mma(a, pieces, batch_invariant, device);
    SGK_LOG_BUILD(exec, op, &b->kernel, !pieces ? " (rows of mat_a or mat_b not in 16-byte pieces)" : batch_invariant ? " (batch invariant)"
                                                                                                                      : "");
    const sgk_launch shape = { .grid = { tiles(a, b->bm, b->bn) }, .block = { 32u * (unsigned)b->warps }, .shared_memory = (unsigned)(b->stages * (b->bm + b->bn) * b->bk) };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

/* ---- public functions -------------------------------------------------------------------------------------------------- */

static sgk_status run(const sgk_match *m, const struct scaled_args *a, const sgk_exec *exec)
{
    if (a->batch == 0 || a->rows == 0 || a->columns == 0) {
        SGK_NO_SCRATCH(exec);
        return SGK_OK;
    }
    if (sgk_on_gpu(m)) {
        SGK_NO_SCRATCH(exec);
        return scaled_on_gpu(m->op, a, m->device.device_id, exec);
    }
    return scaled_on_cpu(m->op, a, m->device, exec);
}

/* Dimension `dim` of a matrix has stride 1. */
static sgk_status match_column_major(const sgk_match *m, const DLTensor *t, const char *name, int dim)
{
    SGK_REQUIRE(sgk_numel(t) == 0 || t->shape[dim] == 1 || sgk_stride(t, dim) == 1, SGK_BAD_ARG, "%s: %s has stride %lld in dimension %d, expected 1 (column-major)",
                m->op, name, (long long)sgk_stride(t, dim), dim);
    return SGK_OK;
}

/* One scale for each of `rows` rows, or one for all; gives the distance between two. */
static sgk_status match_scales(const sgk_match *m, const DLTensor *t, const char *name, int64_t rows, int64_t *step)
{
    const int64_t count = sgk_numel(t);
    SGK_REQUIRE(count == rows || count == 1, SGK_BAD_ARG, "%s: %s has %lld elements, expected %lld or 1", m->op, name, (long long)count, (long long)rows);
    *step = count == 1 ? 0 : sgk_fold_stride(t, 0);
    return SGK_OK;
}

static sgk_status scaled_mm(const char *op, sgk_dtype dtype, const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a,
                            const DLTensor *scales_b, const DLTensor *bias, const sgk_exec *exec)
{
    sgk_match          m = { .op = op };
    struct scaled_args a = { .batch = 1 };
    SGK_MATCH(&m, mat_a, "M K", 1u << dtype);
    SGK_MATCH(&m, mat_b, "K N~", 1u << dtype);
    SGK_TRY(match_column_major(&m, mat_b, "mat_b", 0));
    SGK_MATCH(&m, scales_a, "*S", 1u << SGK_F32);
    SGK_TRY(match_scales(&m, scales_a, "scales_a", SGK_DIM(&m, 'M'), &a.input_scale_step));
    SGK_MATCH(&m, scales_b, "*T", 1u << SGK_F32);
    SGK_TRY(match_scales(&m, scales_b, "scales_b", SGK_DIM(&m, 'N'), &a.weight_scale_step));
    SGK_MATCH_OUT(&m, out, "M N", SGK_ANY_FLOAT);
    SGK_MATCH_OPT(&m, bias, "N", 1u << sgk_dtype_at(out));
    SGK_TRY(sgk_match_done(&m));

    a.out           = sgk_data(out);
    a.input         = sgk_data(mat_a);
    a.weight        = sgk_data(mat_b);
    a.bias          = sgk_data(bias);
    a.input_scales  = sgk_data(scales_a);
    a.weight_scales = sgk_data(scales_b);
    a.rows          = SGK_DIM(&m, 'M');
    a.columns       = SGK_DIM(&m, 'N');
    a.depth         = SGK_DIM(&m, 'K');
    a.out_stride    = sgk_stride(out, 0);
    a.input_stride  = sgk_stride(mat_a, 0);
    a.weight_stride = sgk_stride(mat_b, 1);
    a.input_dtype = a.weight_dtype = dtype;
    a.out_dtype                    = sgk_dtype_at(out);
    return run(&m, &a, exec);
}

sgk_status sgk_fp8_scaled_mm(const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a, const DLTensor *scales_b,
                             const DLTensor *bias, const sgk_exec *exec)
{
    return scaled_mm("fp8_scaled_mm", SGK_E4M3, out, mat_a, mat_b, scales_a, scales_b, bias, exec);
}

sgk_status sgk_int8_scaled_mm(const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a, const DLTensor *scales_b,
                              const DLTensor *bias, const sgk_exec *exec)
{
    return scaled_mm("int8_scaled_mm", SGK_I8, out, mat_a, mat_b, scales_a, scales_b, bias, exec);
}

sgk_status sgk_bmm_fp8(const DLTensor *D, const DLTensor *A, const DLTensor *B, const DLTensor *A_scale, const DLTensor *B_scale,
                       const DLTensor *workspace_buffer, const sgk_exec *exec)
{
    sgk_match          m = { .op = "bmm_fp8" };
    struct scaled_args a = { .bias = NULL };
    SGK_MATCH(&m, A, "B M K", 1u << SGK_E4M3 | 1u << SGK_E5M2);
    SGK_MATCH(&m, B, "B K N~", 1u << SGK_E4M3 | 1u << SGK_E5M2);
    SGK_TRY(match_column_major(&m, B, "B", 1));
    SGK_MATCH(&m, A_scale, "*S", 1u << SGK_F32);
    SGK_TRY(match_scales(&m, A_scale, "A_scale", 1, &a.input_scale_step));
    SGK_MATCH(&m, B_scale, "*T", 1u << SGK_F32);
    SGK_TRY(match_scales(&m, B_scale, "B_scale", 1, &a.weight_scale_step));
    SGK_MATCH_OUT(&m, D, "B M N", SGK_ANY_FLOAT);
    SGK_MATCH_OPT(&m, workspace_buffer, "*W", 1u << SGK_U8);
    SGK_TRY(sgk_match_done(&m));

    a.out           = sgk_data(D);
    a.input         = sgk_data(A);
    a.weight        = sgk_data(B);
    a.input_scales  = sgk_data(A_scale);
    a.weight_scales = sgk_data(B_scale);
    a.batch         = SGK_DIM(&m, 'B');
    a.rows          = SGK_DIM(&m, 'M');
    a.columns       = SGK_DIM(&m, 'N');
    a.depth         = SGK_DIM(&m, 'K');
    a.out_batch     = sgk_stride(D, 0);
    a.input_batch   = sgk_stride(A, 0);
    a.weight_batch  = sgk_stride(B, 0);
    a.out_stride    = sgk_stride(D, 1);
    a.input_stride  = sgk_stride(A, 1);
    a.weight_stride = sgk_stride(B, 2);
    a.input_dtype   = sgk_dtype_at(A);
    a.weight_dtype  = sgk_dtype_at(B);
    a.out_dtype     = sgk_dtype_at(D);
    return run(&m, &a, exec);
}
