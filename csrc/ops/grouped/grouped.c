#include "grouped.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/indices.h"
#include "cuda/tensor_map.h"
#include "grouped_cpu.h"
#include "sgl_kernel/grouped.h"

SGK_CPU_DECL(grouped);
static const sgk_cpu_impl grouped_cpu[] = SGK_CPU_IMPLS(grouped);

/* Its formats are those of another generation: the reference is the only version on the CPU. */
sgk_cpu_fn                grouped_quant_ref;
static const sgk_cpu_impl quant_cpu[] = { { "ref", 0, grouped_quant_ref } };

/* Every build of the four kernels. */
/* clang-format off */
enum { F16, BF16, BLOCKS, MX };         /* FORMAT in grouped.cu */
#define MMA(format, bm, bn, wm, wn, stages, pieces, archs) \
    { SGK_KERNEL("grouped/grouped.cu", "grouped_mma", "-DFORMAT=" #format " -DBM=" #bm " -DBN=" #bn " -DWM=" #wm " -DWN=" #wn " -DSTAGES=" #stages \
                 " -DPIECES=" #pieces, archs), format, bm, bn, wm * wn, stages, pieces }
/* Of a format: large tiles, small ones, and the one that takes any addresses and strides. */
static struct mma_build { sgk_kernel kernel; int format, bm, bn, warps, stages, pieces; } mma_builds[] = {
    MMA(0, 128, 128, 2, 4, 3, 1, SGK_GENERAL), MMA(0, 64, 64, 2, 2, 3, 1, SGK_GENERAL), MMA(0, 64, 64, 2, 2, 2, 0, SGK_GENERAL),
    MMA(1, 128, 128, 2, 4, 3, 1, SGK_NOT_90A), MMA(1, 64, 64, 2, 2, 3, 1, SGK_NOT_90A), MMA(1, 64, 64, 2, 2, 2, 0, SGK_GENERAL),
    MMA(2, 128, 128, 2, 4, 3, 1, SGK_NOT_90A), MMA(2, 64, 64, 2, 2, 3, 1, SGK_NOT_90A), MMA(2, 16, 64, 1, 4, 4, 1, SGK_NOT_90A), MMA(2, 64, 64, 2, 2, 2, 0, SGK_GENERAL),
    MMA(3, 64, 64, 2, 2, 3, 1, SGK_GENERAL), MMA(3, 64, 64, 2, 2, 2, 0, SGK_GENERAL),
};

#define QUANT(type, dtype, pieces) \
    { SGK_KERNEL("grouped/grouped_quant.cu", "grouped_quant", "-DT=" type " -DPIECES=" #pieces, SGK_GENERAL), dtype, pieces }
static struct quant_build { sgk_kernel kernel; sgk_dtype dtype; int pieces; } quant_builds[] = {
    QUANT("f16", SGK_F16, 1), QUANT("f16", SGK_F16, 0), QUANT("bf16", SGK_BF16, 1), QUANT("bf16", SGK_BF16, 0),
};

/* The macros are explained in the kernel. */
#define WGMMA(scaled, swap, groups, bn, stages, slabs, chunk, buffers, slab)                                                \
    { SGK_KERNEL("grouped/grouped_wgmma.cu", "grouped_wgmma", "-DSCALED=" #scaled " -DSWAP=" #swap " -DGROUPS=" #groups " -DBN=" #bn      \
                 " -DSTAGES=" #stages " -DSLABS=" #slabs " -DCHUNK=" #chunk " -DBUFFERS=" #buffers, SGK_ARCH_90A),     \
      scaled, swap, 0, groups, 1, bn, stages, slabs, chunk, buffers, slab, 500 }
#define WIDE(blocks, bn, stages, pairs, slab, end)                                                                                                \
    { SGK_KERNEL("grouped/grouped_wide.cu", "grouped_wide", "-DWIDE=" #blocks " -DBN=" #bn " -DSTAGES=" #stages " -DPAIR=" #pairs, SGK_ARCH_90A), \
      true, false, pairs, 2, blocks, bn, stages, 1, 64, 2, slab, end }
/*
 * `slab` and `end`: nanoseconds that a tile takes for a slab of 128 bytes in K, and besides, where all multiprocessors have one and memory is no limit, measured
 * on an H200; of grouped_wide.cu (`wide`: blocks of a cluster) fitted to times of dense products. Rows one above the other must be of one group for a cluster.
 */
static struct wgmma_build { sgk_kernel kernel; bool scaled, swap; int wide, groups, blocks, bn, stages, slabs, chunk, buffers, slab, end; } wgmma_builds[] = {
    WGMMA(0, 0, 2, 256, 4, 1, 32, 3, 850),
    WGMMA(0, 0, 2, 128, 6, 1, 64, 1, 450),
    WGMMA(0, 1, 2,  64, 4, 2, 64, 1, 300),
    WGMMA(0, 1, 2,  16, 6, 2, 16, 1, 240),
    WGMMA(1, 0, 2, 160, 5, 1, 32, 2, 620),
    WGMMA(1, 0, 2, 128, 3, 2, 64, 1, 430),
    WGMMA(1, 1, 2,  64, 4, 2, 64, 1, 340),
    WGMMA(1, 1, 2,  32, 5, 2, 32, 1, 265),
    WGMMA(1, 1, 2,  16, 6, 2, 16, 1, 243),
    WGMMA(1, 1, 1,  64, 6, 2, 64, 1, 262),
    WGMMA(1, 1, 1,  16, 5, 4, 16, 1, 205),
    WGMMA(1, 0, 1,  56, 7, 2,  0, 0, 256),
    WGMMA(1, 0, 1,  48, 7, 2,  0, 0, 250),
    WGMMA(1, 0, 1,  32, 4, 4,  0, 0, 213),
    WIDE(2, 128, 4, 2, 865,  500),
    WIDE(2, 128, 4, 1, 860,  602),
    WIDE(2, 112, 4, 1, 765, 1000),
    WIDE(2,  96, 4, 1, 650,  900),
    WIDE(1, 112, 6, 1, 395, 1000),
};

#define FEW(high, bn, ways, stages, above)                                                                                                            \
    { SGK_KERNEL("grouped/grouped_few.cu", "grouped_few", "-DHIGH=" #high " -DBN=" #bn " -DWAYS=" #ways " -DSTAGES=" #stages " -DSCALERS=2", SGK_ARCH_90A), \
      64 * high, bn, high, ways, stages, 2, above }
#define FEW_WIDE(wide, bn, ways, stages, above)                                                                                                        \
    { SGK_KERNEL("grouped/grouped_few_wide.cu", "grouped_few_wide", "-DWIDE=" #wide " -DBN=" #bn " -DWAYS=" #ways " -DSTAGES=" #stages, SGK_ARCH_90A), \
      64, bn * wide, wide, ways, stages, 1, above }
/* `above`: also with tiles one above the other. */
static struct few_build { sgk_kernel kernel; int rows, columns, parts, ways, stages, scalers; bool above; } few_builds[] = {
    FEW(1,  32, 4, 16, 0),
    FEW(1,  48, 4, 12, 0),
    FEW(1,  56, 4, 12, 0),
    FEW(1,  64, 4, 12, 1),
    FEW_WIDE(2,  56, 2, 10, 0),
    FEW_WIDE(3,  64, 1,  7, 0),
    FEW(2,  32, 2, 10, 0),
    FEW(2,  48, 2,  8, 0),
    FEW(2,  64, 2,  8, 0),
    FEW_WIDE(1, 112, 2,  8, 1),
};
/* clang-format on */

const sgk_kernel_table grouped_kernels[] = { SGK_KERNEL_TABLE(mma_builds), SGK_KERNEL_TABLE(wgmma_builds), SGK_KERNEL_TABLE(few_builds), SGK_KERNEL_TABLE(quant_builds), { 0 } };

#define COUNT(rows) (sizeof(rows) / sizeof *(rows))

static int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static bool lengths_on_device(const struct grouped_args *a) { return a->form >= GROUPED_MASKED; }

/* ---- the general form -------------------------------------------------------------------------------------------------- */

static int format_of(const struct grouped_args *a)
{
    return a->scaling == GROUPED_MX ? MX : a->scaling == GROUPED_BLOCKS ? BLOCKS
                                       : a->dtype == SGK_F16            ? F16
                                                                        : BF16;
}

static sgk_status launch_mma(const char *op, struct mma_build *b, const char *why, int64_t slots, int ordinal, const sgk_exec *exec, const struct grouped_args *a)
{
    const int        words = b->format == BLOCKS ? b->bm + 4 : b->format == MX ? b->bm + b->bn
                                                                               : 0;
    const sgk_launch shape = {
        .grid          = { slots * ceil_div(a->columns, b->bn) },
        .block         = { 32u * (unsigned)b->warps },
        .shared_memory = (unsigned)(b->stages * ((b->bm + b->bn) * 128 + words * 4)),
    };
    SGK_LOG_BUILD(exec, op, &b->kernel, why);
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

/* Tiles of rows that a grid has room for: where lengths are known to the GPU alone, one more a group than rows fill. */
static int64_t slots_of(const struct grouped_args *a, int bm)
{
    const int64_t tiles = ceil_div(a->rows, bm);
    return a->form <= GROUPED_INDICES ? tiles : a->form == GROUPED_MASKED ? tiles * a->groups
                                                                          : tiles + a->groups;
}

static sgk_status run_mma(const char *op, const struct grouped_args *a, const char *why, bool pieces, int64_t expected, const sgk_cuda_device *device, bool batch_invariant,
                          const sgk_exec *exec)
{
    struct mma_build *b = mma_builds;
    for (;; ++b) {
        if (b->format != format_of(a) || b->pieces > (int)pieces || !sgk_kernel_fits(&b->kernel, device)) continue;
        if (batch_invariant) break;
        if (b->bm == 128 && (expected <= 64 || slots_of(a, 128) * ceil_div(a->columns, 128) < device->multiprocessors)) continue;
        if (b->bm == 64 && b[1].bm == 16 && expected <= 16) continue;
        break;
    }
    return launch_mma(op, b, why, slots_of(a, b->bm), device->ordinal, exec, a);
}

/* ---- sm_90a ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    struct wgmma_build *build;
    int                 split, pair_m, pair_n, band;
} wgmma_plan;

static int tile_rows(const struct wgmma_build *b) { return b->swap ? b->bn : 64 * b->groups; }
static int tile_columns(const struct wgmma_build *b) { return b->swap ? 64 * b->groups : b->bn * b->blocks; }

/* Where scales come with the slabs (SHARED in the kernel) they have room beside them. */
static int64_t fixed_bytes(const struct wgmma_build *b)
{
    const bool shared = b->scaled && (b->swap || b->groups > 1);
    const int  slabs = b->stages * b->slabs, scales = shared ? (tile_rows(b) + 4) * 4 : 0;
    return (int64_t)slabs * ((64 * b->groups + b->bn * b->blocks) * 128 + scales) +
           b->groups * b->buffers * 64 * b->chunk * 2 + b->stages * b->blocks * 16;
}
static int64_t shared_bytes(const struct wgmma_build *b, const struct grouped_args *a)
{
    return fixed_bytes(b) + (lengths_on_device(a) ? (a->groups + 1) * 12 : 0);
}

/* What the form for sm_90a reads: rows in 16-byte pieces that do not overlap, coordinates of 31 bits. The first build, and the batch-invariant
 * one with scales, which is smaller, must have room. */
static bool wgmma_takes(const struct grouped_args *a, bool pieces, const sgk_cuda_device *device)
{
    const int64_t most = INT32_MAX - 4096, far = INT64_C(1) << 38;
    return pieces && a->scaling != GROUPED_MX && a->dtype != SGK_F16 && a->depth > 0 && a->rows < most && a->columns < most && a->depth < most && a->groups < 65536 &&
           (ceil_div(a->rows, 16) + a->groups) * a->groups * ceil_div(a->columns, 64) < most && a->a_stride >= a->depth && a->b_stride >= a->depth &&
           a->a_stride < far && a->b_stride < far && a->a_group < far && a->b_group < far && a->sa_step < most && a->sb_step < most &&
           fixed_bytes(wgmma_builds) + (a->groups + 1) * 12 <= device->shared_memory_per_block;
}

/* Whether out can be written in boxes. */
static bool boxes(const struct grouped_args *a)
{
    return a->out_dtype != SGK_F32 && sgk_in_pieces(a->out, a->out_stride, a->out_dtype) && sgk_in_pieces(NULL, a->columns, a->out_dtype) &&
           sgk_in_pieces(NULL, a->out_group, a->out_dtype) && a->out_stride >= a->columns && a->out_stride < INT64_C(1) << 38 && a->out_group < INT64_C(1) << 38;
}

/* Matrices of `rows` rows, in boxes of `width` x `height` elements. */
static sgk_tensor_map map_of(sgk_dtype dtype, const void *data, int64_t columns, int64_t rows, int64_t matrices, int64_t stride, int64_t apart, int width, int height)
{
    return (sgk_tensor_map){
        .dtype     = dtype,
        .rank      = 3,
        .data      = data,
        .size      = { columns, rows, matrices },
        .stride    = { 1, stride, matrices > 1 ? apart : 0 },
        .box       = { width, height, 1 },
        .swizzle   = width * sgk_dtype_size(dtype) == 128 ? SGK_SWIZZLE_128 : SGK_SWIZZLE_64,
        .promotion = SGK_PROMOTE_256,
    };
}

enum { FEWEST_BLOCKS = 2048 };          /* up to so much K pairs are as few as need the same rounds: they stay together longer */

static sgk_status launch_wgmma(const char *op, const wgmma_plan *plan, int ordinal, int multiprocessors, const sgk_exec *exec, const struct grouped_args *a)
{
    const struct wgmma_build *b     = plan->build;
    const int                 width = 128 / sgk_dtype_size(a->dtype), rows = tile_rows(b), columns = tile_columns(b), cluster = plan->pair_m * plan->pair_n * plan->split;
    const int64_t             matrices = a->form == GROUPED_MASKED ? a->groups : 1;
    struct grouped_wgmma_args w        = {
        .g       = *a,
        .m_tiles = (int32_t)ceil_div(a->rows, rows),
        .n_tiles = (int32_t)ceil_div(a->columns, columns),
        .band    = plan->band,
        .steps   = (int32_t)ceil_div(a->depth, width * b->slabs),
        .split   = plan->split,
        .pair_m  = plan->pair_m,
        .pair_n  = plan->pair_n,
        .by_tma  = boxes(a),
    };
    /* A shared operand is read in halves: a by blocks side by side, b by blocks one above the other. */
    const sgk_tensor_map of_a   = map_of(a->dtype, a->a, a->depth, a->rows, matrices, a->a_stride, a->a_group, width, rows / plan->pair_n);
    const sgk_tensor_map of_b   = map_of(a->dtype, a->b, a->depth, a->columns, a->groups, a->b_stride, a->b_group, width, columns / b->blocks / plan->pair_m);
    const sgk_tensor_map of_out = map_of(a->out_dtype, a->out, a->columns, a->rows, matrices, a->out_stride, a->out_group, b->swap ? 64 : b->chunk, b->swap ? b->chunk : 64);
    SGK_TRY(sgk_cuda_tensor_map(op, "a", &of_a, b->swap ? &w.second : &w.first));
    SGK_TRY(sgk_cuda_tensor_map(op, "b", &of_b, b->swap ? &w.first : &w.second));
    if (w.by_tma && b->chunk) SGK_TRY(sgk_cuda_tensor_map(op, "out", &of_out, &w.result));

    const int64_t    most = slots_of(a, rows) * w.n_tiles, across = ceil_div(w.n_tiles, plan->pair_n) * ceil_div(slots_of(a, rows), plan->pair_m);
    const int64_t    room = multiprocessors / cluster, clusters = b->wide > 1 && a->depth <= FEWEST_BLOCKS ? ceil_div(across, ceil_div(across, room)) : least(across, room);
    const sgk_launch shape = {
        .grid          = { plan->split > 1 ? most * plan->split : clusters * cluster },
        .block         = { 128u * (unsigned)(b->groups + 1) },
        .shared_memory = (unsigned)shared_bytes(b, a),
        .cluster       = cluster > 1 ? (unsigned)cluster : 0,
    };
    if (sgk_log_wanted(exec))
        sgk_log(exec, "%s: cuda, %s %s %s, K in %d, pairs %dx%d, band %d", op, b->kernel.file, b->kernel.entry, b->kernel.defines, plan->split, plan->pair_m, plan->pair_n, plan->band);
    return sgk_cuda_launch(op, &plan->build->kernel, &shape, ordinal, exec, &w, sizeof w);
}

/*
 * The tile and the shares of K with the least time by a model: the busiest multiprocessor's slabs, or what memory takes; in nanoseconds. What is
 * fixed, and what shares of K cost, is measured too. `expected` rows a group. The batch-invariant choice looks at neither rows nor groups.
 */
static wgmma_plan choose_wgmma(const struct grouped_args *a, int64_t expected, bool batch_invariant, const sgk_cuda_device *device)
{
    const int     multiprocessors = device->multiprocessors;
    wgmma_plan    best            = { 0 };
    double        least_time      = 0;
    const int64_t groups          = a->form == GROUPED_ONE ? 1 : a->form == GROUPED_INDICES ? ceil_div(a->rows, GROUPED_ALIGNMENT)
                                                                                            : a->groups;
    const int64_t each            = a->form == GROUPED_INDICES ? GROUPED_ALIGNMENT : a->form == GROUPED_ONE ? a->rows
                                                                                 : expected < 1             ? 1
                                                                                                            : expected;
    const int     size            = sgk_dtype_size(a->dtype);
    const double  memory          = (double)(a->columns * a->depth * a->groups + each * groups * a->depth) * size / 4200.0;
    for (size_t i = 0; i < COUNT(wgmma_builds); ++i) {
        struct wgmma_build *b = &wgmma_builds[i];
        if (b->scaled != (a->scaling == GROUPED_BLOCKS) || shared_bytes(b, a) > device->shared_memory_per_block) continue;
        if (batch_invariant) {
            if (!b->swap && !b->wide && b->bn == (b->scaled ? 128 : 256)) return (wgmma_plan){ b, 1, 1, 1, 16 };
            continue;
        }
        if (a->form == GROUPED_INDICES && GROUPED_ALIGNMENT % tile_rows(b)) continue;
        if (b->wide && (!boxes(a) || (b->wide > 1 && a->form != GROUPED_ONE))) continue;
        const int     pair = b->wide > 1 ? b->wide : 1;
        const int64_t all = groups * ceil_div(each, tile_rows(b) * pair) * ceil_div(a->columns, tile_columns(b)), at_once = multiprocessors / pair;
        const int64_t steps = ceil_div(a->depth * size, 128 * b->slabs);
        for (int split = 1; split <= 4 && split <= steps; ++split) {
            if (split > 1 && (!b->swap || a->form != GROUPED_ONE || all * split > (split > 2 ? multiprocessors * 3 / 4 : multiprocessors))) break;
            const double busy = (double)((split > 1 ? 1 : ceil_div(all, at_once)) * (ceil_div(steps, split) * b->slabs * b->slab + b->end));
            const double time = (busy > memory ? busy + memory / 8 : memory + busy / 8) + (split > 1 ? 2100 * split - 1700 : 0);
            if (!best.build || time < least_time) best = (wgmma_plan){ b, split, pair, 1, b->swap ? 8 : 16 }, least_time = time;
        }
    }
    return best;
}

/* ---- sm_90a, few rows and one matrix ----------------------------------------------------------------------------------- */

typedef struct {
    struct few_build *build;            /* NULL: none */
    int               split;
} few_plan;

/* Rows of a that a block copies. */
static int64_t few_high(const struct few_build *b, const struct grouped_args *a) { return least(ceil_div(a->rows, 8) * 8, b->rows); }

enum { FEW_ROWS = 128 };

/* Two blocks with a tile have room for sums of half of it. */
static int64_t few_bytes(const struct few_build *b, int split)
{
    return b->stages * ((b->rows + b->columns) * 128 + (b->rows + 4) * 4 + 16) + 16 + (split > 1 ? b->rows * b->columns * 2 : 0);
}

/*
 * For few rows, and where every tile has a multiprocessor: the least time by a model, in nanoseconds, of what memory takes, a block's
 * operands and a block's slabs, and of adding up where K is in two shares. Its numbers are fitted to 90 times on an H200. A block has one tile: beyond
 * that, tiles of blocks that stay are faster (choose_wgmma).
 */
static few_plan choose_few(const struct grouped_args *a, const sgk_cuda_device *device)
{
    few_plan      best       = { 0 };
    double        least_time = 0;
    const int64_t steps      = ceil_div(a->depth, GROUPED_BLOCK);
    const double  memory     = (double)((a->columns + a->rows) * a->depth) / 4500.0;
    for (size_t i = 0; i < COUNT(few_builds); ++i) {
        struct few_build *b     = &few_builds[i];
        const int64_t     tiles = ceil_div(a->columns, b->columns) * ceil_div(a->rows, b->rows);
        if (a->rows > (b->above ? FEW_ROWS : b->rows)) continue;
        for (int split = 1; split <= (a->rows > b->rows ? 1 : 2) && split <= steps && tiles * split <= device->multiprocessors; ++split) {
            if (few_bytes(b, split) > device->shared_memory_per_block) continue;
            const int64_t share    = ceil_div(steps, split);
            const double  read     = (double)(share * GROUPED_BLOCK * (few_high(b, a) + b->columns)) / 112.0;
            const double  multiply = (double)ceil_div(share, b->ways) * 500.0, busy = read > multiply ? read : multiply;
            const double  most = busy > memory ? busy : memory;
            const double  time = most + (memory + read + multiply - most) / 8 + (split > 1 ? 400.0 + 0.1 * (double)(a->rows * b->columns) : 0) + (a->rows > b->rows ? 50 : 0);
            if (!best.build || time < least_time) best = (few_plan){ b, split }, least_time = time;
        }
    }
    return best;
}

/* Rows of 128 bytes in K at a time. */
static sgk_tensor_map slabs_of(const void *data, int64_t depth, int64_t rows, int64_t stride, int64_t high)
{
    return (sgk_tensor_map){
        .dtype     = SGK_E4M3,
        .rank      = 2,
        .data      = data,
        .size      = { depth, rows },
        .stride    = { 1, stride },
        .box       = { GROUPED_BLOCK, (int)high },
        .swizzle   = SGK_SWIZZLE_128,
        .promotion = SGK_PROMOTE_256,
    };
}

static sgk_status launch_few(const char *op, few_plan plan, int ordinal, const sgk_exec *exec, const struct grouped_args *a)
{
    struct few_build       *b     = plan.build;
    const int64_t           steps = ceil_div(a->depth, GROUPED_BLOCK), high = few_high(b, a);
    struct grouped_few_args f = {
        .g        = *a,
        .high     = (int32_t)high,
        .steps    = (int32_t)steps,
        .share    = (int32_t)ceil_div(steps, plan.split),
        .split    = plan.split,
        .in_fours = a->out_dtype != SGK_F32 && a->columns % 4 == 0 && sgk_in_pieces_of(8, a->out, a->out_stride, a->out_dtype),
        .once     = a->rows <= b->rows,
    };
    const sgk_tensor_map of_a = slabs_of(a->a, a->depth, a->rows, a->a_stride, high), of_b = slabs_of(a->b, a->depth, a->columns, a->b_stride, b->columns);
    SGK_TRY(sgk_cuda_tensor_map(op, "a", &of_a, &f.first));
    SGK_TRY(sgk_cuda_tensor_map(op, "b", &of_b, &f.second));
    const sgk_launch shape = {
        .grid          = { plan.split, ceil_div(a->rows, b->rows), ceil_div(a->columns, b->columns) },
        .block         = { 128u * (unsigned)(b->parts * b->ways) + 32u * (unsigned)(1 + b->scalers) },
        .shared_memory = (unsigned)few_bytes(b, plan.split),
        .cluster       = plan.split > 1 ? (unsigned)plan.split : 0,
    };
    if (sgk_log_wanted(exec)) sgk_log(exec, "%s: cuda, %s %s %s, K in %d", op, b->kernel.file, b->kernel.entry, b->kernel.defines, plan.split);
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, &f, sizeof f);
}

static sgk_status run_on_gpu(const char *op, const struct grouped_args *a, int64_t expected, int ordinal, const sgk_exec *exec)
{
    const sgk_cuda_device *device;
    SGK_TRY(sgk_cuda_get_device(op, ordinal, &device));
    const bool batch_invariant = sgk_exec_batch_invariant(exec);
    const bool pieces          = sgk_in_pieces(a->a, a->a_stride, a->dtype) && sgk_in_pieces(a->b, a->b_stride, a->dtype) && sgk_in_pieces(NULL, a->a_group, a->dtype) &&
                                 sgk_in_pieces(NULL, a->b_group, a->dtype);
    const bool wgmma           = sgk_kernel_fits(&wgmma_builds[0].kernel, device);
    if (wgmma && wgmma_takes(a, pieces, device)) {
        if (a->form == GROUPED_ONE && a->scaling == GROUPED_BLOCKS && !batch_invariant) {
            const few_plan few = choose_few(a, device);
            if (few.build) return launch_few(op, few, ordinal, exec, a);
        }
        const wgmma_plan plan = choose_wgmma(a, expected, batch_invariant, device);
        return launch_wgmma(op, &plan, ordinal, device->multiprocessors, exec, a);
    }
    const char *why = !pieces ? " (rows of a or b not in 16-byte pieces)" : !wgmma                 ? ""
                                                                        : a->scaling == GROUPED_MX ? " (MX)"
                                                                                                   : " (f16, rows that overlap, or too large for TMA)";
    return run_mma(op, a, why, pieces, expected, device, batch_invariant, exec);
}

/* ---- any device -------------------------------------------------------------------------------------------------------- */

enum { GRAIN_OPERATIONS = 4 * 1024 * 1024 };

static sgk_status run_on_cpu(const char *op, const struct grouped_args *a, DLDevice device, const sgk_exec *exec)
{
    struct grouped_cpu_args cpu    = { .a = *a, .across = ceil_div(a->columns, GROUPED_CPU_COLUMNS) };
    const int64_t           groups = lengths_on_device(a) ? a->groups : 1;
    int64_t                 few[2] = { 0 }, *items = few;
    sgk_scratch             scratch;
    SGK_TRY(sgk_scratch_get(&scratch, op, groups > 1 ? (size_t)(groups + 1) * sizeof(int64_t) : 0, device, exec));
    if (scratch.query_only) return SGK_OK;
    if (groups > 1) items = scratch.memory;
    items[0] = 0;
    for (int64_t g = 0; g < groups; ++g) items[g + 1] = items[g] + cpu.across * ceil_div(grouped_count(a, g), GROUPED_CPU_ROWS);
    cpu.items               = items;
    const int64_t    each   = 2 * least(a->rows, GROUPED_CPU_ROWS) * GROUPED_CPU_COLUMNS * (a->depth + 1);
    const sgk_status status = sgk_cpu_run(op, grouped_cpu, &cpu, items[groups], 1 + GRAIN_OPERATIONS / each, exec);
    sgk_scratch_put(&scratch);
    return status;
}

static sgk_status run(const sgk_match *m, const struct grouped_args *a, int64_t expected, const sgk_exec *exec)
{
    if (a->rows == 0 || a->columns == 0 || a->groups == 0) {
        SGK_NO_SCRATCH(exec);
        return SGK_OK;
    }
    if (!sgk_on_gpu(m)) return run_on_cpu(m->op, a, m->device, exec);
    SGK_NO_SCRATCH(exec);
    return run_on_gpu(m->op, a, expected, m->device.device_id, exec);
}

/* Where the host can read them: lengths are within a, and rows of a block of indices agree. */
static sgk_status check_layout(const sgk_match *m, const struct grouped_args *a, const DLTensor *layout, const DLTensor *offsets, const char *name, const sgk_exec *exec)
{
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m->op, m->device, (const DLTensor *[]){ layout, offsets }, 2, exec));
    if (!host.known) return SGK_OK;
    struct grouped_args here = *a;
    here.layout = host.data[0], here.offsets = host.data[1];
    sgk_status status = SGK_OK;
    if (a->form == GROUPED_INDICES) {
        for (int64_t i = 0; i < a->rows && !status; ++i) {
            const int32_t first = here.layout[i / GROUPED_ALIGNMENT * GROUPED_ALIGNMENT];
            if (here.layout[i] >= a->groups)
                status = sgk_error(SGK_BAD_ARG, "%s: %s[%lld] is %d, expected less than %lld", m->op, name, (long long)i, here.layout[i], (long long)a->groups);
            else if (here.layout[i] >= 0 && here.layout[i] != first)
                status = sgk_error(SGK_BAD_ARG, "%s: %s[%lld] is %d, expected %d like the first of its %d rows, or less than 0", m->op, name, (long long)i, here.layout[i], first,
                                   GROUPED_ALIGNMENT);
        }
    } else {
        for (int64_t g = 0; g < a->groups && !status; ++g) {
            const int64_t start = grouped_start(&here, g), count = grouped_count(&here, g);
            if (start < 0 || count < 0 || start > a->rows || count > a->rows - start)
                status = sgk_error(SGK_BAD_ARG, "%s: %s gives group %lld rows %lld to %lld, expected them within the %lld rows of a", m->op, name, (long long)g, (long long)start,
                                   (long long)(start + count - 1), (long long)a->rows);
            else if (a->form == GROUPED_OFFSETS && a->columns && (here.layout[3 * g + 1] != a->columns || here.layout[3 * g + 2] != a->depth))
                status = sgk_error(SGK_BAD_ARG, "%s: %s has N = %d and K = %d for group %lld, expected %lld and %lld", m->op, name, here.layout[3 * g + 1], here.layout[3 * g + 2],
                                   (long long)g, (long long)a->columns, (long long)a->depth);
        }
    }
    return sgk_indices_done(&host, status);
}

static sgk_status check_blocks(const sgk_match *m, const char *name, char letter, int64_t elements, int64_t each)
{
    SGK_REQUIRE(SGK_DIM(m, letter) == ceil_div(elements, each), SGK_BAD_ARG, "%s: %s has %lld scales for %lld elements, expected %lld", m->op, name, (long long)SGK_DIM(m, letter),
                (long long)elements, (long long)ceil_div(elements, each));
    return SGK_OK;
}

enum { OUT_FORMATS = 1 << SGK_BF16 | 1 << SGK_F16 | 1 << SGK_F32 };

/* From row to row of the last two dimensions; a row alone has any. `turned`: rows are the last dimension. */
static int64_t row_stride(const DLTensor *t, bool turned)
{
    const int row = t->ndim - (turned ? 1 : 2), inner = t->ndim - (turned ? 2 : 1);
    return t->shape[row] == 1 ? t->shape[inner] : sgk_stride(t, row);
}
static int64_t matrix_stride(const DLTensor *t) { return t->ndim == 3 && t->shape[0] > 1 ? sgk_stride(t, 0) : 0; }

/* What the tensors say, matched before. `turned`: b and its scales have K before N. */
static struct grouped_args args_of(grouped_form form, grouped_scaling scaling, const sgk_match *m, const DLTensor *out, const DLTensor *a, const DLTensor *sa,
                                   const DLTensor *b, const DLTensor *sb, bool turned)
{
    struct grouped_args g = {
        .out        = sgk_data(out),
        .a          = sgk_data(a),
        .b          = sgk_data(b),
        .sa         = sgk_data(sa),
        .sb         = sgk_data(sb),
        .rows       = SGK_DIM(m, 'M'),
        .columns    = SGK_DIM(m, 'N'),
        .depth      = SGK_DIM(m, 'K'),
        .groups     = b->ndim == 3 ? b->shape[0] : 1,
        .out_stride = row_stride(out, false),
        .a_stride   = row_stride(a, false),
        .b_stride   = row_stride(b, turned),
        .out_group  = matrix_stride(out),
        .a_group    = matrix_stride(a),
        .b_group    = matrix_stride(b),
        .dtype      = sgk_dtype_at(a),
        .out_dtype  = sgk_dtype_at(out),
        .form       = form,
        .scaling    = scaling,
    };
    if (scaling != GROUPED_BLOCKS) return g;
    g.sa_row   = sgk_stride(sa, sa->ndim - 2);
    g.sa_step  = sgk_stride(sa, sa->ndim - 1);
    g.sa_group = matrix_stride(sa);
    g.sb_block = sgk_stride(sb, sb->ndim - (turned ? 1 : 2));
    g.sb_step  = sgk_stride(sb, sb->ndim - (turned ? 2 : 1));
    g.sb_group = matrix_stride(sb);
    return g;
}

/* K is the dense dimension of a b that is seen turned. */
static sgk_status check_turned(const sgk_match *m, const DLTensor *b, const char *name)
{
    const int64_t stride = sgk_stride(b, b->ndim - 2);
    SGK_REQUIRE(SGK_DIM(m, 'K') <= 1 || stride == 1 || sgk_numel(b) == 0, SGK_BAD_ARG, "%s: %s has stride %lld in dimension %d, expected 1 (column-major)", m->op, name,
                (long long)stride, b->ndim - 2);
    return SGK_OK;
}

/* Letter B counts blocks of K, C those of N. */
static sgk_status check_scales(const sgk_match *m, const char *of_a, const char *of_b)
{
    SGK_TRY(check_blocks(m, of_a, 'B', SGK_DIM(m, 'K'), GROUPED_BLOCK));
    return check_blocks(m, of_b, 'C', SGK_DIM(m, 'N'), GROUPED_BLOCK);
}

/* ---- one matrix -------------------------------------------------------------------------------------------------------- */

sgk_status sgk_fp8_blockwise_scaled_mm(const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a, const DLTensor *scales_b, const sgk_exec *exec)
{
    sgk_match m = { .op = "fp8_blockwise_scaled_mm" };
    SGK_MATCH(&m, mat_a, "M K", 1u << SGK_E4M3);
    SGK_MATCH(&m, mat_b, "K N~", 1u << SGK_E4M3);
    SGK_MATCH(&m, scales_a, "M B~", 1u << SGK_F32);
    SGK_MATCH(&m, scales_b, "B C~", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, out, "M N", OUT_FORMATS);
    SGK_TRY(check_turned(&m, mat_b, "mat_b"));
    SGK_TRY(check_scales(&m, "scales_a", "scales_b"));
    SGK_TRY(sgk_match_done(&m));
    const struct grouped_args a = args_of(GROUPED_ONE, GROUPED_BLOCKS, &m, out, mat_a, scales_a, mat_b, scales_b, true);
    return run(&m, &a, a.rows, exec);
}

sgk_status sgk_fp8_gemm_nt(const DLTensor *d, const DLTensor *a, const DLTensor *sfa, const DLTensor *b, const DLTensor *sfb, const sgk_exec *exec)
{
    sgk_match m = { .op = "fp8_gemm_nt" };
    SGK_MATCH(&m, a, "M K", 1u << SGK_E4M3);
    SGK_MATCH(&m, sfa, "M B~", 1u << SGK_F32);
    SGK_MATCH(&m, b, "N K", 1u << SGK_E4M3);
    SGK_MATCH(&m, sfb, "C B~", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, d, "M N", OUT_FORMATS);
    SGK_TRY(check_scales(&m, "sfa", "sfb"));
    SGK_TRY(sgk_match_done(&m));
    const struct grouped_args g = args_of(GROUPED_ONE, GROUPED_BLOCKS, &m, d, a, sfa, b, sfb, false);
    return run(&m, &g, g.rows, exec);
}

/* ---- rows by an index, or by the groups' ends -------------------------------------------------------------------------- */

static sgk_status contiguous(sgk_match *m, struct grouped_args *a, const DLTensor *grouped_layout, const sgk_exec *exec)
{
    SGK_TRY(sgk_match_done(m));
    a->layout = sgk_data(grouped_layout);
    SGK_TRY(check_layout(m, a, grouped_layout, NULL, "grouped_layout", exec));
    return run(m, a, a->groups ? a->rows / a->groups : 0, exec);
}

sgk_status sgk_m_grouped_fp8_gemm_nt_contiguous(const DLTensor *d, const DLTensor *a, const DLTensor *sfa, const DLTensor *b, const DLTensor *sfb,
                                                const DLTensor *grouped_layout, bool use_psum_layout, const sgk_exec *exec)
{
    sgk_match m = { .op = "m_grouped_fp8_gemm_nt_contiguous" };
    SGK_MATCH(&m, a, "M K", 1u << SGK_E4M3);
    SGK_MATCH(&m, sfa, "M B~", 1u << SGK_F32);
    SGK_MATCH(&m, b, "G N K", 1u << SGK_E4M3);
    SGK_MATCH(&m, sfb, "G C B~", 1u << SGK_F32);
    SGK_MATCH(&m, grouped_layout, use_psum_layout ? "G" : "M", 1u << SGK_I32);
    SGK_MATCH_OUT(&m, d, "M N", OUT_FORMATS);
    SGK_TRY(check_scales(&m, "sfa", "sfb"));
    struct grouped_args g = args_of(use_psum_layout ? GROUPED_ENDS : GROUPED_INDICES, GROUPED_BLOCKS, &m, d, a, sfa, b, sfb, false);
    return contiguous(&m, &g, grouped_layout, exec);
}

sgk_status sgk_m_grouped_bf16_gemm_nt_contiguous(const DLTensor *d, const DLTensor *a, const DLTensor *b, const DLTensor *grouped_layout, bool use_psum_layout,
                                                 const sgk_exec *exec)
{
    sgk_match m = { .op = "m_grouped_bf16_gemm_nt_contiguous" };
    SGK_MATCH(&m, a, "M K", 1u << SGK_BF16 | 1u << SGK_F16);
    SGK_MATCH(&m, b, "G N K", 1u << m.dtype);
    SGK_MATCH(&m, grouped_layout, use_psum_layout ? "G" : "M", 1u << SGK_I32);
    SGK_MATCH_OUT(&m, d, "M N", 1u << m.dtype | 1u << SGK_F32);
    struct grouped_args g = args_of(use_psum_layout ? GROUPED_ENDS : GROUPED_INDICES, GROUPED_PLAIN, &m, d, a, NULL, b, NULL, false);
    return contiguous(&m, &g, grouped_layout, exec);
}

/* ---- a matrix of rows for each group ----------------------------------------------------------------------------------- */

static sgk_status masked(sgk_match *m, struct grouped_args *a, const DLTensor *masked_m, int64_t expected_m, const sgk_exec *exec)
{
    SGK_REQUIRE(expected_m > 0, SGK_BAD_ARG, "%s: expected_m is %lld, expected more than 0", m->op, (long long)expected_m);
    SGK_TRY(sgk_match_done(m));
    a->layout = sgk_data(masked_m);
    SGK_TRY(check_layout(m, a, masked_m, NULL, "masked_m", exec));
    return run(m, a, least(expected_m, a->rows), exec);
}

sgk_status sgk_m_grouped_fp8_gemm_nt_masked(const DLTensor *d, const DLTensor *a, const DLTensor *sfa, const DLTensor *b, const DLTensor *sfb,
                                            const DLTensor *masked_m, int64_t expected_m, const sgk_exec *exec)
{
    sgk_match m = { .op = "m_grouped_fp8_gemm_nt_masked" };
    SGK_MATCH(&m, a, "G M K", 1u << SGK_E4M3);
    SGK_MATCH(&m, sfa, "G M B~", 1u << SGK_F32);
    SGK_MATCH(&m, b, "G N K", 1u << SGK_E4M3);
    SGK_MATCH(&m, sfb, "G C B~", 1u << SGK_F32);
    SGK_MATCH(&m, masked_m, "G", 1u << SGK_I32);
    SGK_MATCH_OUT(&m, d, "G M N", OUT_FORMATS);
    SGK_TRY(check_scales(&m, "sfa", "sfb"));
    struct grouped_args g = args_of(GROUPED_MASKED, GROUPED_BLOCKS, &m, d, a, sfa, b, sfb, false);
    return masked(&m, &g, masked_m, expected_m, exec);
}

sgk_status sgk_m_grouped_bf16_gemm_nt_masked(const DLTensor *d, const DLTensor *a, const DLTensor *b, const DLTensor *masked_m, int64_t expected_m, const sgk_exec *exec)
{
    sgk_match m = { .op = "m_grouped_bf16_gemm_nt_masked" };
    SGK_MATCH(&m, a, "G M K", 1u << SGK_BF16 | 1u << SGK_F16);
    SGK_MATCH(&m, b, "G N K", 1u << m.dtype);
    SGK_MATCH(&m, masked_m, "G", 1u << SGK_I32);
    SGK_MATCH_OUT(&m, d, "G M N", 1u << m.dtype | 1u << SGK_F32);
    struct grouped_args g = args_of(GROUPED_MASKED, GROUPED_PLAIN, &m, d, a, NULL, b, NULL, false);
    return masked(&m, &g, masked_m, expected_m, exec);
}

/* ---- rows from an offset on -------------------------------------------------------------------------------------------- */

/* What the release works with besides has been matched, and is not used. */
static sgk_status by_offsets(sgk_match *m, const DLTensor *output, const DLTensor *a, const DLTensor *b, const DLTensor *scales_a, const DLTensor *scales_b,
                             const DLTensor *problem_sizes, const DLTensor *expert_offsets, const sgk_exec *exec)
{
    SGK_MATCH(m, a, "M K", 1u << SGK_E4M3);
    SGK_MATCH(m, b, "E K N~", 1u << SGK_E4M3);
    SGK_MATCH(m, scales_a, "M B~", 1u << SGK_F32);
    SGK_MATCH(m, scales_b, "E B C~", 1u << SGK_F32);
    SGK_MATCH(m, problem_sizes, "E 3", 1u << SGK_I32);
    SGK_MATCH(m, expert_offsets, "E", 1u << SGK_I32);
    SGK_MATCH_OUT(m, output, "M N", OUT_FORMATS);
    SGK_MATCH_DENSE(m, problem_sizes);
    SGK_TRY(check_turned(m, b, "b"));
    SGK_TRY(check_scales(m, "scales_a", "scales_b"));
    SGK_TRY(sgk_match_done(m));
    struct grouped_args g = args_of(GROUPED_OFFSETS, GROUPED_BLOCKS, m, output, a, scales_a, b, scales_b, true);
    g.layout = sgk_data(problem_sizes), g.offsets = sgk_data(expert_offsets);
    SGK_TRY(check_layout(m, &g, problem_sizes, expert_offsets, "problem_sizes", exec));
    return run(m, &g, g.groups ? g.rows / g.groups : 0, exec);
}

sgk_status sgk_fp8_blockwise_scaled_grouped_mm(const DLTensor *output, const DLTensor *a_ptrs, const DLTensor *b_ptrs, const DLTensor *out_ptrs, const DLTensor *a_scales_ptrs,
                                               const DLTensor *b_scales_ptrs, const DLTensor *a, const DLTensor *b, const DLTensor *scales_a, const DLTensor *scales_b,
                                               const DLTensor *stride_a, const DLTensor *stride_b, const DLTensor *stride_c, const DLTensor *layout_sfa, const DLTensor *layout_sfb,
                                               const DLTensor *problem_sizes, const DLTensor *expert_offsets, const DLTensor *workspace, const sgk_exec *exec)
{
    sgk_match m = { .op = "fp8_blockwise_scaled_grouped_mm" };
    SGK_MATCH(&m, a_ptrs, "E", 1u << SGK_I64);
    SGK_MATCH(&m, b_ptrs, "E", 1u << SGK_I64);
    SGK_MATCH(&m, out_ptrs, "E", 1u << SGK_I64);
    SGK_MATCH(&m, a_scales_ptrs, "E", 1u << SGK_I64);
    SGK_MATCH(&m, b_scales_ptrs, "E", 1u << SGK_I64);
    SGK_MATCH(&m, stride_a, "E", 1u << SGK_I64);
    SGK_MATCH(&m, stride_b, "E", 1u << SGK_I64);
    SGK_MATCH(&m, stride_c, "E", 1u << SGK_I64);
    SGK_MATCH(&m, layout_sfa, "E 5", 1u << SGK_I32);
    SGK_MATCH(&m, layout_sfb, "E 5", 1u << SGK_I32);
    SGK_MATCH(&m, workspace, "W", 1u << SGK_U8);
    return by_offsets(&m, output, a, b, scales_a, scales_b, problem_sizes, expert_offsets, exec);
}

sgk_status sgk_es_fp8_blockwise_scaled_grouped_mm(const DLTensor *output, const DLTensor *a, const DLTensor *b, const DLTensor *scales_a, const DLTensor *scales_b,
                                                  const DLTensor *stride_a, const DLTensor *stride_b, const DLTensor *stride_d, const DLTensor *problem_sizes,
                                                  const DLTensor *expert_offsets, const DLTensor *workspace, const sgk_exec *exec)
{
    sgk_match m = { .op = "es_fp8_blockwise_scaled_grouped_mm" };
    SGK_MATCH(&m, stride_a, "E", 1u << SGK_I64);
    SGK_MATCH(&m, stride_b, "E", 1u << SGK_I64);
    SGK_MATCH(&m, stride_d, "E", 1u << SGK_I64);
    SGK_MATCH(&m, workspace, "W", 1u << SGK_U8);
    return by_offsets(&m, output, a, b, scales_a, scales_b, problem_sizes, expert_offsets, exec);
}

/* ---- MX: powers of two for 32 elements of K ---------------------------------------------------------------------------- */

/* The rows of scales of a group are whole tiles of 128, and there. */
static sgk_status check_scale_offsets(const sgk_match *m, const DLTensor *problem_sizes, const DLTensor *blockscale_offsets, int64_t groups, int64_t scale_rows, const sgk_exec *exec)
{
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m->op, m->device, (const DLTensor *[]){ problem_sizes, blockscale_offsets }, 2, exec));
    if (!host.known) return SGK_OK;
    const int32_t *layout = host.data[0], *offsets = host.data[1];
    sgk_status     status = SGK_OK;
    for (int64_t g = 0; g < groups && !status; ++g)
        if (offsets[g] < 0 || offsets[g] % 128 || offsets[g] + ceil_div(layout[3 * g], 128) * 128 > scale_rows)
            status = sgk_error(SGK_BAD_ARG, "%s: blockscale_offsets[%lld] is %d, expected a multiple of 128 with room for %d rows, rounded up to 128, in the %lld rows of scales", m->op,
                               (long long)g, offsets[g], layout[3 * g], (long long)scale_rows);
    return sgk_indices_done(&host, status);
}

sgk_status sgk_es_sm100_mxfp8_blockscaled_grouped_mm(const DLTensor *d, const DLTensor *a, const DLTensor *b, const DLTensor *sfa, const DLTensor *sfb,
                                                     const DLTensor *problem_sizes, const DLTensor *expert_offsets, const DLTensor *blockscale_offsets, const sgk_exec *exec)
{
    sgk_match m = { .op = "es_sm100_mxfp8_blockscaled_grouped_mm" };
    SGK_MATCH(&m, a, "M K", 1u << SGK_E4M3);
    SGK_MATCH(&m, b, "E K N~", 1u << SGK_E4M3);
    SGK_MATCH(&m, sfa, "S B", 1u << SGK_U8);
    SGK_MATCH(&m, sfb, "E B N~", 1u << SGK_U8);
    SGK_MATCH(&m, problem_sizes, "E 3", 1u << SGK_I32);
    SGK_MATCH(&m, expert_offsets, "E", 1u << SGK_I32);
    SGK_MATCH(&m, blockscale_offsets, "E", 1u << SGK_I32);
    SGK_MATCH_OUT(&m, d, "M N", 1u << SGK_BF16 | 1u << SGK_F16);
    SGK_MATCH_DENSE(&m, problem_sizes);
    SGK_MATCH_DENSE(&m, sfa);
    SGK_TRY(check_turned(&m, b, "b"));
    SGK_TRY(check_blocks(&m, "sfa", 'B', SGK_DIM(&m, 'K'), GROUPED_MX_BLOCK));
    const int64_t columns = SGK_DIM(&m, 'N'), blocks = SGK_DIM(&m, 'B');
    SGK_REQUIRE(SGK_DIM(&m, 'K') % 128 == 0 && columns % 128 == 0, SGK_BAD_ARG, "%s: b has K = %lld and N = %lld, expected multiples of 128", m.op, (long long)SGK_DIM(&m, 'K'),
                (long long)columns);
    SGK_REQUIRE(sgk_numel(sfb) == 0 || (sgk_stride(sfb, 1) == 1 && sgk_stride(sfb, 2) == blocks && (sfb->shape[0] == 1 || sgk_stride(sfb, 0) == columns * blocks)), SGK_BAD_ARG,
                "%s: sfb has strides %lld, %lld, %lld, expected %lld, 1, %lld (the turned view of what is dense)", m.op, (long long)sgk_stride(sfb, 0), (long long)sgk_stride(sfb, 1),
                (long long)sgk_stride(sfb, 2), (long long)(columns * blocks), (long long)blocks);
    SGK_TRY(sgk_match_done(&m));
    struct grouped_args g = args_of(GROUPED_OFFSETS, GROUPED_MX, &m, d, a, sfa, b, sfb, true);
    g.layout = sgk_data(problem_sizes), g.offsets = sgk_data(expert_offsets), g.sa_offsets = sgk_data(blockscale_offsets);
    g.sa_row = blocks, g.sa_rows = SGK_DIM(&m, 'S'), g.sb_group = columns * blocks;
    SGK_TRY(check_layout(&m, &g, problem_sizes, expert_offsets, "problem_sizes", exec));
    SGK_TRY(check_scale_offsets(&m, problem_sizes, blockscale_offsets, g.groups, g.sa_rows, exec));
    return run(&m, &g, g.groups ? g.rows / g.groups : 0, exec);
}

sgk_status sgk_es_sm100_mxfp8_blockscaled_grouped_quant(const DLTensor *quant_output, const DLTensor *scale_factor, const DLTensor *input, const DLTensor *problem_sizes,
                                                        const DLTensor *expert_offsets, const DLTensor *blockscale_offsets, const sgk_exec *exec)
{
    sgk_match m = { .op = "es_sm100_mxfp8_blockscaled_grouped_quant" };
    SGK_MATCH(&m, input, "M K", 1u << SGK_BF16 | 1u << SGK_F16);
    SGK_MATCH(&m, problem_sizes, "E 3", 1u << SGK_I32);
    SGK_MATCH(&m, expert_offsets, "E", 1u << SGK_I32);
    SGK_MATCH(&m, blockscale_offsets, "E", 1u << SGK_I32);
    SGK_MATCH_OUT(&m, quant_output, "M K", 1u << SGK_E4M3);
    SGK_MATCH_OUT(&m, scale_factor, "S B", 1u << SGK_U8);
    SGK_MATCH_DENSE(&m, problem_sizes);
    SGK_MATCH_DENSE(&m, scale_factor);
    SGK_TRY(check_blocks(&m, "scale_factor", 'B', SGK_DIM(&m, 'K'), GROUPED_MX_BLOCK));
    SGK_REQUIRE(SGK_DIM(&m, 'K') % 128 == 0, SGK_BAD_ARG, "%s: input has size %lld in dimension 1, expected a multiple of 128", m.op, (long long)SGK_DIM(&m, 'K'));
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    const struct grouped_quant_args q = {
        .q             = sgk_data(quant_output),
        .scales        = sgk_data(scale_factor),
        .input         = sgk_data(input),
        .layout        = sgk_data(problem_sizes),
        .offsets       = sgk_data(expert_offsets),
        .scale_offsets = sgk_data(blockscale_offsets),
        .rows          = SGK_DIM(&m, 'M'),
        .columns       = SGK_DIM(&m, 'K'),
        .groups        = SGK_DIM(&m, 'E'),
        .scale_rows    = SGK_DIM(&m, 'S'),
        .q_stride      = row_stride(quant_output, false),
        .input_stride  = row_stride(input, false),
        .dtype         = m.dtype,
    };
    const struct grouped_args rows = { .form = GROUPED_OFFSETS, .rows = q.rows, .columns = 0, .groups = q.groups, .layout = q.layout, .offsets = q.offsets };
    SGK_TRY(check_layout(&m, &rows, problem_sizes, expert_offsets, "problem_sizes", exec));      /* of the sizes, rows alone */
    SGK_TRY(check_scale_offsets(&m, problem_sizes, blockscale_offsets, q.groups, q.scale_rows, exec));
    if (q.rows == 0 || q.columns == 0 || q.groups == 0) return SGK_OK;
    if (!sgk_on_gpu(&m)) return sgk_cpu_run(m.op, quant_cpu, &q, q.rows, sgk_cpu_grain(3 * q.columns), exec);
    const bool          pieces = sgk_in_pieces(q.input, q.input_stride, q.dtype) && sgk_in_pieces_of(8, q.q, q.q_stride, SGK_E4M3);
    struct quant_build *b      = quant_builds;
    while (b->dtype != q.dtype || (b->pieces && !pieces)) ++b;
    SGK_LOG_BUILD(exec, m.op, &b->kernel, pieces ? "" : " (rows of input not in 16-byte pieces, or of quant_output not in 8)");
    const sgk_launch shape = { .grid = { ceil_div(q.rows * ceil_div(q.columns, 256), 8) }, .block = { 256 } };
    return sgk_cuda_launch(m.op, &b->kernel, &shape, m.device.device_id, exec, &q, sizeof q);
}

/* ---- a list of products ------------------------------------------------------------------------------------------------ */

enum { LIST_AT_ONCE = SGK_MATCH_TENSORS / 3 };

/* Items of a list, of which none may overlap another; g[i] describes the i-th. */
static sgk_status match_items(sgk_match *m, const DLTensor *const *outputs, const DLTensor *const *inputs, const DLTensor *const *weights, int64_t count, unsigned dtypes,
                              struct grouped_args *items)
{
    for (int64_t i = 0; i < count; ++i) {
        const DLTensor *output = outputs[i], *input = inputs[i], *weight = weights[i];
        m->bound = 0;                                   /* sizes may differ from item to item */
        SGK_MATCH(m, input, "M K", m->count ? 1u << m->dtype : dtypes);
        SGK_MATCH(m, weight, "N K", 1u << m->dtype);
        SGK_MATCH_OUT(m, output, "M N", 1u << m->dtype);
        items[i] = args_of(GROUPED_ONE, GROUPED_PLAIN, m, output, input, NULL, weight, NULL, false);
    }
    return sgk_match_done(m);
}

sgk_status sgk_cublas_grouped_gemm(const DLTensor *const *outputs, int64_t outputs_count, const DLTensor *const *inputs, int64_t inputs_count, const DLTensor *const *weights,
                                   int64_t weights_count, const sgk_exec *exec)
{
    const char *op = "cublas_grouped_gemm";
    SGK_REQUIRE(outputs_count == inputs_count && weights_count == inputs_count, SGK_BAD_ARG, "%s: %lld inputs, %lld weights and %lld outputs, expected as many of each", op,
                (long long)inputs_count, (long long)weights_count, (long long)outputs_count);
    struct grouped_args items[LIST_AT_ONCE];
    DLDevice            device = { 0 };
    unsigned            dtypes = 1u << SGK_F16 | 1u << SGK_BF16;
    for (int pass = 0; pass < 2; ++pass) {              /* all are matched before the first is run */
        if (pass) SGK_NO_SCRATCH(exec);
        for (int64_t i = 0; i < inputs_count; i += LIST_AT_ONCE) {
            const int64_t count = least(LIST_AT_ONCE, inputs_count - i);
            sgk_match     m     = { .op = op };
            SGK_TRY(match_items(&m, outputs + i, inputs + i, weights + i, count, dtypes, items));
            if (i == 0) device = m.device, dtypes = 1u << m.dtype;
            SGK_REQUIRE(m.device.device_type == device.device_type && m.device.device_id == device.device_id, SGK_BAD_ARG, "%s: inputs[%lld] is on another device than inputs[0]", op,
                        (long long)i);
            for (int64_t e = 0; e < count && pass; ++e) SGK_TRY(run(&m, &items[e], items[e].rows, exec));
        }
    }
    return SGK_OK;
}
