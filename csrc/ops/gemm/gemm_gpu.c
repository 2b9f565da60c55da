/* linear on the GPU: the builds, and which one runs. */
#include "gemm_gpu.h"
#include "gemm_packed_cuda.h"
#include "gemm_scaled.h"
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include "base/match.h"
#include "cuda/tensor_map.h"

/* Every build of the nine kernels. */
/* clang-format off */
#define VECTOR(type, dtype, rows, share, archs) \
    { SGK_KERNEL("gemm/gemm_vector.cu", "linear_vector", "-DT=" type " -DROWS=" #rows " -DSHARE=" #share, archs), dtype, rows, share }
/* Those for few columns are chosen by the table alone. */
#define VECTORS(type, dtype)                   \
    VECTOR(type, dtype, 1, 1, SGK_GENERAL),    \
    VECTOR(type, dtype, 4, 1, SGK_GENERAL),    \
    VECTOR(type, dtype, 1, 8, SGK_ARCH_90A),   \
    VECTOR(type, dtype, 4, 8, SGK_ARCH_90A),   \
    VECTOR(type, dtype, 8, 8, SGK_ARCH_90A)
static struct vector_build { sgk_kernel kernel; sgk_dtype dtype; int rows, share; } vector_builds[] = {
    VECTOR("f32", SGK_F32, 1, 1, SGK_GENERAL), VECTOR("f32", SGK_F32, 4, 1, SGK_GENERAL), VECTOR("f32", SGK_F32, 8, 1, SGK_GENERAL),
    VECTORS("f16", SGK_F16), VECTORS("bf16", SGK_BF16),
};

/* The macros are explained in the kernel. 16 x `tiles` columns and up to `rows` rows are a block's at a time. Other GPUs have less shared memory. */
#define STREAM(type, dtype, tiles, eights, warps, stages, archs)                                                                    \
    { SGK_KERNEL("gemm/gemm_stream.cu", "linear_stream", "-DT=" type " -DTILES=" #tiles " -DEIGHTS=" #eights " -DWARPS=" #warps " -DSTAGES=" #stages, archs), \
      dtype, 16 * tiles, 8 * eights, warps, stages, warps * stages * (4 * tiles + 2 * eights) * 512 }
#define STREAMS(type, dtype)                            \
    STREAM(type, dtype, 2, 1, 8, 5, SGK_ARCH_90A),      \
    STREAM(type, dtype, 2, 2, 8, 3, SGK_ARCH_90A),      \
    STREAM(type, dtype, 2, 1, 4, 4, SGK_ARCH_90A),      \
    STREAM(type, dtype, 1, 1, 8, 3, SGK_GENERAL),       \
    STREAM(type, dtype, 1, 2, 8, 2, SGK_GENERAL)
static struct stream_build { sgk_kernel kernel; sgk_dtype dtype; int columns, rows, warps, stages, ring; } stream_builds[] = {
    STREAMS("f16", SGK_F16), STREAMS("bf16", SGK_BF16),
};

/* The macros are explained in the kernel. */
#define FEW(type, dtype, eights, warps, ahead, resident)                                                                                  \
    { SGK_KERNEL("gemm/gemm_few.cu", "linear_few", "-DT=" type " -DEIGHTS=" #eights " -DWARPS=" #warps " -DAHEAD=" #ahead " -DRESIDENT=" #resident, SGK_ARCH_90A), \
      dtype, 8 * eights, warps, ahead, resident }
#define FEWS(type, dtype)               \
    FEW(type, dtype, 1, 32, 1, 1),      \
    FEW(type, dtype, 1,  8, 4, 2)
/* In the order in which they are looked through. */
static struct few_build { sgk_kernel kernel; sgk_dtype dtype; int rows, warps, ahead, resident; } few_builds[] = {
    FEWS("f16", SGK_F16), FEWS("bf16", SGK_BF16),
};

/* The macros are explained in the kernel. */
#define PAIR(type, dtype, eights) \
    { SGK_KERNEL("gemm/gemm_pair.cu", "linear_pair", "-DT=" type " -DEIGHTS=" #eights " -DWARPS=16 -DAHEAD=2", SGK_ARCH_90A), dtype, 8 * eights, 16, 2 }
static struct pair_build { sgk_kernel kernel; sgk_dtype dtype; int rows, warps, ahead; } pair_builds[] = {
    PAIR("f16", SGK_F16, 1), PAIR("f16", SGK_F16, 2), PAIR("bf16", SGK_BF16, 1), PAIR("bf16", SGK_BF16, 2),
};

/* `efficiency` is the share of the largest tile's speed, in percent, that a tile reaches when all multiprocessors have one. */
#define MMA(type, dtype, bm, bn, bk, wm, wn, wk, stages, efficiency, chain)                                                          \
    { SGK_KERNEL("gemm/gemm.cu", "linear_mma", "-DT=" type " -DBM=" #bm " -DBN=" #bn " -DBK=" #bk " -DWM=" #wm " -DWN=" #wn " -DWK=" #wk \
                 " -DSTAGES=" #stages " -DCHAIN=" #chain, SGK_GENERAL), dtype, bm, bn, bk, wm * wn * wk, wk, stages, efficiency, chain }
#define MMAS(type, dtype)                                       \
    MMA(type, dtype, 128, 128,  32, 2, 4, 1, 4, 100, 0),        \
    MMA(type, dtype, 128,  64,  32, 4, 2, 1, 4, 90, 0),         \
    MMA(type, dtype,  64,  64,  64, 2, 2, 1, 4, 75, 0),         \
    MMA(type, dtype,  64,  64,  64, 2, 2, 1, 4, 75, 16),        \
    MMA(type, dtype,  32,  32, 128, 1, 1, 4, 4, 45, 0),         \
    MMA(type, dtype,  16,  32, 128, 1, 1, 4, 4, 30, 0)
static struct mma_build { sgk_kernel kernel; sgk_dtype dtype; int bm, bn, bk, warps, shares, stages, efficiency, chain; } mma_builds[] = {
    MMAS("f16", SGK_F16), MMAS("bf16", SGK_BF16),
};

/* The macros are explained in the kernel. `rows` of the first operand and `bn` of the second are a tile. */
#define WGMMA_OF(type, dtype, swap, groups, bn, stages, slabs, buffers, behind, resident, lean, chain)                            \
    { SGK_KERNEL("gemm/gemm_wgmma.cu", "linear_wgmma", "-DT=" type " -DSWAP=" #swap " -DGROUPS=" #groups " -DBN=" #bn " -DSTAGES=" #stages \
                 " -DSLABS=" #slabs " -DBUFFERS=" #buffers " -DBEHIND=" #behind " -DRESIDENT=" #resident " -DLEAN=" #lean " -DCHAIN=" #chain, SGK_ARCH_90A), \
      dtype, swap, lean, behind, resident, groups, 64 * groups, bn, stages, slabs, buffers, chain }
#define WGMMA(...) WGMMA_OF(__VA_ARGS__, 0)
/* For results in f32: chains of 1024 in K. */
#define CHAINS(type, dtype)                                 \
    WGMMA_OF(type, dtype, 0, 2, 192, 4, 1, 3, 0, 1, 0, 16),  \
    WGMMA_OF(type, dtype, 1, 2, 128, 6, 1, 2, 0, 1, 0, 16),  \
    WGMMA_OF(type, dtype, 1, 2, 128, 6, 1, 2, 0, 1, 1, 16),  \
    WGMMA_OF(type, dtype, 1, 2,  64, 4, 2, 1, 0, 1, 1, 8),   \
    WGMMA_OF(type, dtype, 1, 1,  64, 6, 2, 1, 0, 1, 1, 8),   \
    WGMMA_OF(type, dtype, 1, 2,  32, 5, 2, 1, 0, 1, 1, 8),   \
    WGMMA_OF(type, dtype, 1, 2,  16, 6, 2, 1, 0, 1, 1, 8),   \
    WGMMA_OF(type, dtype, 1, 1,  32, 4, 2, 1, 0, 2, 1, 8),   \
    WGMMA_OF(type, dtype, 1, 1,  16, 4, 2, 1, 0, 2, 1, 8)
#define WGMMAS(type, dtype)                           \
    WGMMA(type, dtype, 0, 2, 256, 4, 1, 2, 2, 1, 0),  \
    WGMMA(type, dtype, 0, 2, 224, 4, 1, 6, 0, 1, 0),  \
    WGMMA(type, dtype, 0, 2, 192, 4, 1, 3, 0, 1, 0),  \
    WGMMA(type, dtype, 0, 2, 192, 5, 1, 1, 2, 1, 0),  \
    WGMMA(type, dtype, 0, 2, 160, 5, 1, 5, 0, 1, 0),  \
    WGMMA(type, dtype, 0, 2,  96, 7, 1, 3, 0, 1, 0),  \
    WGMMA(type, dtype, 0, 2,  64, 4, 2, 1, 0, 1, 0),  \
    WGMMA(type, dtype, 0, 1,  96, 5, 2, 3, 0, 1, 0),  \
    WGMMA(type, dtype, 1, 2, 128, 6, 1, 2, 0, 1, 0),  \
    WGMMA(type, dtype, 1, 1, 128, 4, 2, 2, 0, 1, 0),  \
    WGMMA(type, dtype, 0, 2,  96, 7, 1, 3, 0, 1, 1),  \
    WGMMA(type, dtype, 1, 2, 128, 6, 1, 2, 0, 1, 1),  \
    WGMMA(type, dtype, 1, 1, 128, 4, 2, 2, 0, 1, 1),  \
    WGMMA(type, dtype, 1, 2,  64, 4, 2, 1, 0, 1, 1),  \
    WGMMA(type, dtype, 1, 1,  64, 6, 2, 1, 0, 1, 1),  \
    WGMMA(type, dtype, 1, 2,  32, 5, 2, 1, 0, 1, 1),  \
    WGMMA(type, dtype, 1, 2,  16, 6, 2, 1, 0, 1, 1),  \
    WGMMA(type, dtype, 1, 1,  16, 5, 4, 1, 0, 1, 1),  \
    WGMMA(type, dtype, 1, 1,  32, 4, 2, 1, 0, 2, 1),  \
    WGMMA(type, dtype, 1, 1,  16, 4, 2, 1, 0, 2, 1)
static struct wgmma_build { sgk_kernel kernel; sgk_dtype dtype; bool swap, lean; int behind, resident, groups, rows, bn, stages, slabs, buffers, chain; } wgmma_builds[] = {
    WGMMAS("f16", SGK_F16), WGMMAS("bf16", SGK_BF16), CHAINS("f16", SGK_F16), CHAINS("bf16", SGK_BF16),
};

/* The macros are explained in the kernel. WIDE_ROWS rows of input and `bn` of the weight are a tile. */
enum { WIDE_ROWS = 128 };
#define WIDE(type, dtype, bn, stages, shares) \
    { SGK_KERNEL("gemm/gemm_wide.cu", "linear_wide", "-DT=" type " -DBN=" #bn " -DSTAGES=" #stages " -DSHARES=" #shares, SGK_ARCH_90A), dtype, bn, stages, shares }
#define WIDES(type, dtype)          \
    WIDE(type, dtype, 256, 4, 0),   \
    WIDE(type, dtype, 224, 4, 0),   \
    WIDE(type, dtype, 192, 4, 0),   \
    WIDE(type, dtype, 176, 5, 0),   \
    WIDE(type, dtype, 160, 5, 0),   \
    WIDE(type, dtype, 136, 5, 0),   \
    WIDE(type, dtype, 192, 4, 1),   \
    WIDE(type, dtype, 160, 5, 1),   \
    WIDE(type, dtype, 128, 6, 1)
static struct wide_build { sgk_kernel kernel; sgk_dtype dtype; int bn, stages, shares; } wide_builds[] = {
    WIDES("f16", SGK_F16), WIDES("bf16", SGK_BF16),
};

/* The macros are explained in the kernel. A cluster of `split` blocks has a tile of `rows` rows of input and `bn` of the weight. */
#define SHARE(type, dtype, rows, bn, stages, slabs, split) \
    { SGK_KERNEL("gemm/gemm_share.cu", "linear_share", "-DT=" type " -DROWS=" #rows " -DBN=" #bn " -DSTAGES=" #stages " -DSLABS=" #slabs " -DSPLIT=" #split, SGK_ARCH_90A), \
      dtype, rows, bn, stages, slabs, split }
#define SHARES(type, dtype)                \
    SHARE(type, dtype, 128, 192, 4, 1, 2), \
    SHARE(type, dtype, 128, 160, 5, 1, 2), \
    SHARE(type, dtype, 128, 128, 6, 1, 2), \
    SHARE(type, dtype, 128,  96, 7, 1, 2), \
    SHARE(type, dtype, 128,  64, 8, 1, 2), \
    SHARE(type, dtype, 128, 128, 5, 1, 3), \
    SHARE(type, dtype, 128,  64, 8, 1, 3), \
    SHARE(type, dtype, 128,  96, 6, 1, 4), \
    SHARE(type, dtype, 128,  64, 8, 1, 4), \
    SHARE(type, dtype, 128, 144, 6, 1, 1), \
    SHARE(type, dtype, 128, 128, 7, 1, 1), \
    SHARE(type, dtype, 128, 112, 7, 1, 1), \
    SHARE(type, dtype, 128,  96, 8, 1, 1), \
    SHARE(type, dtype, 128,  80, 8, 1, 1), \
    SHARE(type, dtype,  64, 128, 9, 1, 1), \
    SHARE(type, dtype,  64,  96, 5, 2, 1), \
    SHARE(type, dtype,  64,  64, 7, 2, 1)
static struct share_build { sgk_kernel kernel; sgk_dtype dtype; int rows, bn, stages, slabs, split; } share_builds[] = {
    SHARES("f16", SGK_F16), SHARES("bf16", SGK_BF16),
};

/* The last row of a format takes any strides, addresses and K. */
#define SIMT(type, dtype, pieces) \
    { SGK_KERNEL("gemm/gemm_simt.cu", "linear_simt", "-DT=" type " -DPIECES=" #pieces, SGK_GENERAL), dtype, pieces }
static struct simt_build { sgk_kernel kernel; sgk_dtype dtype; int pieces; } simt_builds[] = {
    SIMT("f32", SGK_F32, 1), SIMT("f32", SGK_F32, 0), SIMT("f16", SGK_F16, 0), SIMT("bf16", SGK_BF16, 0),
};
/* clang-format on */

const sgk_kernel_table gemm_kernels[] = {
    SGK_KERNEL_TABLE(vector_builds),
    SGK_KERNEL_TABLE(stream_builds),
    SGK_KERNEL_TABLE(few_builds),
    SGK_KERNEL_TABLE(pair_builds),
    SGK_KERNEL_TABLE(mma_builds),
    SGK_KERNEL_TABLE(wgmma_builds),
    SGK_KERNEL_TABLE(wide_builds),
    SGK_KERNEL_TABLE(share_builds),
    SGK_KERNEL_TABLE(simt_builds),
    SGK_KERNEL_TABLE(scaled_mma_builds),
    SGK_KERNEL_TABLE(scaled_wgmma_builds),
    SGK_KERNEL_TABLE(scaled_few_builds),
    SGK_KERNEL_TABLE(packed_mma_builds),
    SGK_KERNEL_TABLE(packed_simt_builds),
    SGK_KERNEL_TABLE(packed_i8_builds),
    SGK_KERNEL_TABLE(packed_quant_builds),
    SGK_KERNEL_TABLE(packed_sigmoid_builds),
    SGK_KERNEL_TABLE(pack_builds),
    SGK_KERNEL_TABLE(mla_builds),
    { 0 },
};

#define COUNT(rows) (sizeof(rows) / sizeof *(rows))

static int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t tiles(const struct linear_args *a, int bm, int bn) { return ceil_div(a->rows, bm) * ceil_div(a->columns, bn); }

/* ---- what each kernel takes, and how it is launched ------------------------------------------------------------------------------- */

typedef struct {
    const char            *op, *why;            /* why nothing better runs, or "" */
    int                    ordinal;
    const sgk_cuda_device *device;
    const sgk_exec        *exec;
    bool                   pieces;              /* rows of input and weight lie in 16-byte pieces */
} linear_call;

/* Blocks of one tile, or clusters of `split` blocks. The batch lies along y, in as many launches as that takes. */
static sgk_status launch(const linear_call *c, linear_choice choice, int64_t blocks, int warps, int64_t shared_memory, const struct linear_args *a)
{
    if (sgk_log_wanted(c->exec)) {
        char parts[32] = "";
        if (choice.split > 1) snprintf(parts, sizeof parts, ", K in %d", choice.split);
        sgk_log(c->exec, "%s: cuda, %s %s %s%s%s", c->op, choice.kernel->file, choice.kernel->entry, choice.kernel->defines, parts, c->why);
    }
    enum { MOST = 65535 };
    for (int64_t first = 0; first < a->batch; first += MOST) {
        const sgk_launch shape = {
            .grid          = { blocks * choice.split, least(MOST, a->batch - first) },
            .block         = { 32u * (unsigned)warps },
            .shared_memory = (unsigned)shared_memory,
            .cluster       = choice.split > 1 ? (unsigned)choice.split : 0,
            .alone         = !a->early,
        };
        struct linear_args part = *a;
        part.input              = (const char *)a->input + first * a->input_batch * sgk_dtype_size(a->dtype);
        part.weight             = (const char *)a->weight + first * a->weight_batch * sgk_dtype_size(a->dtype);
        part.out                = (char *)a->out + first * a->out_batch * sgk_dtype_size(a->out_dtype);
        if (a->bias) part.bias = (const char *)a->bias + first * a->bias_batch * sgk_dtype_size(a->bias_dtype);
        SGK_TRY(sgk_cuda_launch(c->op, choice.kernel, &shape, c->ordinal, c->exec, &part, sizeof part));
    }
    return SGK_OK;
}

/* Clusters need code for the device: what the driver compiles as a last resort has none. */
static bool simt_takes(const struct simt_build *b, const linear_call *c, const struct linear_args *a, int split)
{
    return (split == 1 || (split <= 8 && c->device->major >= 9 && c->device->arch)) && b->dtype == a->dtype && (c->pieces || !b->pieces);
}

static bool vector_takes(const struct vector_build *b, const linear_call *c, const struct linear_args *a, int split)
{
    return split == 1 && b->dtype == a->dtype && c->pieces && a->rows <= b->rows;
}

static bool mma_takes(const struct mma_build *b, const linear_call *c, const struct linear_args *a, int split)
{
    return split == 1 && b->dtype == a->dtype && c->pieces;
}

/* Shares of K are whole pairs of slabs in most kernels that have any. */
static int64_t pairs(const struct linear_args *a) { return ceil_div(a->depth, 2 * LINEAR_WGMMA_DEPTH); }

/* A cluster that shares K has one group of columns; lone blocks walk through theirs. */
static bool stream_takes(const struct stream_build *b, const linear_call *c, const struct linear_args *a, int split)
{
    const int64_t most = INT32_MAX - 4096;
    return b->dtype == a->dtype && c->pieces && a->rows <= b->rows && a->depth > 0 && a->depth < most / 16 && a->columns < most && sgk_kernel_fits(&b->kernel, c->device) &&
           (split == 1 || (split <= 8 && c->device->major >= 9 && ceil_div(a->columns, b->columns) * split < most && split <= ceil_div(a->depth, 64)));
}

static bool few_takes(const struct few_build *b, const linear_call *c, const struct linear_args *a, int split)
{
    const int64_t most = INT32_MAX - 4096;
    return split == 1 && b->dtype == a->dtype && c->pieces && a->rows <= b->rows && a->batch == 1 && a->columns < most && a->depth < most && sgk_kernel_fits(&b->kernel, c->device);
}

/* Of input, which lies in shared memory beside the sums. */
static int pair_pitch(const struct linear_args *a) { return (int)(ceil_div(a->depth, 64) + 1) / 2 * 128 + 64; }

static bool pair_takes(const struct pair_build *b, const linear_call *c, const struct linear_args *a, int split)
{
    return split == 1 && b->dtype == a->dtype && c->pieces && a->rows <= b->rows && a->batch == 1 && a->columns < INT32_MAX - 4096 && a->depth >= 128 && a->depth <= 10240 &&
           sgk_kernel_fits(&b->kernel, c->device);
}

/* Pieces of 8 columns of a tile whose sums a block adds; bytes for these sums of all shares; and for them and the ring together. */
static int wgmma_pieces(const struct wgmma_build *b, int split) { return (b->bn / 8 + split - 1) / split; }
static int wgmma_inbox(const struct wgmma_build *b, int split) { return split * wgmma_pieces(b, split) * b->groups * 128 * 16; }
static int wgmma_shared(const struct wgmma_build *b) { return (b->resident == 1 ? 232448 : 233472 / 2 - 1024) - 1024 - 512; }

/* Rows in 16-byte pieces that do not overlap, coordinates of 31 bits. */
static bool operands_in_boxes(const linear_call *c, const struct linear_args *a)
{
    const int64_t most = INT32_MAX - 4096, far = INT64_C(1) << 38;
    return c->pieces && a->depth > 0 && a->columns % 8 == 0 &&
           a->rows < most && a->columns < most && a->depth < most && a->batch < most &&
           ceil_div(a->rows, 16) <= most / (ceil_div(a->columns, 16) * a->batch) &&
           (a->rows == 1 || (a->input_stride >= a->depth && a->input_stride < far)) && a->weight_stride >= a->depth && a->weight_stride < far &&
           (a->batch == 1 || (a->input_batch > 0 && a->input_batch < far && a->weight_batch > 0 && a->weight_batch < far));
}

static bool wgmma_takes(const struct wgmma_build *b, const linear_call *c, const struct linear_args *a, int split)
{
    const int64_t steps = b->slabs > 2 ? ceil_div(a->depth, LINEAR_WGMMA_DEPTH * b->slabs) : pairs(a);
    return b->dtype == a->dtype && sgk_kernel_fits(&b->kernel, c->device) && operands_in_boxes(c, a) &&
           (!b->lean || ceil_div(a->rows, b->swap ? b->bn : b->rows) <= 65535) &&
           (split == 1 || (split <= 8 && split <= steps && wgmma_shared(b) - wgmma_inbox(b, split) >= 2 * b->slabs * (b->rows + b->bn) * 128));
}

/* Whether out can be written in boxes. */
static bool out_in_boxes(const struct linear_args *a)
{
    return a->out_dtype == a->dtype && sgk_in_pieces(a->out, a->rows == 1 ? a->columns : a->out_stride, a->dtype) &&
           (a->rows == 1 || (a->out_stride >= a->columns && a->out_stride < INT64_C(1) << 38)) &&
           (a->batch == 1 || (sgk_in_pieces(NULL, a->out_batch, a->dtype) && a->out_batch < INT64_C(1) << 38));
}

static bool wide_takes(const struct wide_build *b, const linear_call *c, const struct linear_args *a, int split)
{
    return (b->shares ? split > 1 && split <= pairs(a) : split == 1) && b->dtype == a->dtype && sgk_kernel_fits(&b->kernel, c->device) && operands_in_boxes(c, a) && out_in_boxes(a);
}

static bool share_takes(const struct share_build *b, const linear_call *c, const struct linear_args *a, int split)
{
    return split == 1 && b->dtype == a->dtype && sgk_kernel_fits(&b->kernel, c->device) && a->batch == 1 && operands_in_boxes(c, a) && out_in_boxes(a) &&
           ceil_div(a->depth, LINEAR_WGMMA_DEPTH) >= b->split;
}

/* Clusters of so many blocks that run at one time, as was measured on an H200: they do not fill every part of the GPU. */
static int clusters_at_once(int blocks, int multiprocessors)
{
    static const int of_132[] = { 0, 132, 66, 39, 30, 22, 16, 14, 14 };
    const int        fit      = of_132[blocks] * multiprocessors / 132;
    return fit > 0 ? fit : 1;
}

/* Whether all its clusters run at once. */
static bool share_fits(const struct share_build *b, int multiprocessors, int64_t rows, int64_t columns)
{
    return ceil_div(rows, b->rows) * ceil_div(columns, b->bn) <= clusters_at_once(b->split, multiprocessors);
}

/* The row of a table that this kernel is, or NULL. */
#define ROW(builds, choice) \
    ((uintptr_t)(choice).kernel - (uintptr_t)(builds) < sizeof(builds) ? (void *)(choice).kernel : NULL)

/* A build's tile, the blocks of a cluster, and what a multiprocessor has of them at a time. */
typedef struct { int rows, columns, slabs, cluster, resident; } linear_tile;

static linear_tile tile_of(linear_choice choice)
{
    const struct wgmma_build *w = ROW(wgmma_builds, choice);
    const struct wide_build  *x = ROW(wide_builds, choice);
    const struct share_build *q = ROW(share_builds, choice);
    if (w) return (linear_tile){ w->swap ? w->bn : w->rows, w->swap ? w->rows : w->bn, w->slabs, choice.split, w->resident };
    if (x) return (linear_tile){ WIDE_ROWS, x->bn, 1, 1, 1 };
    if (q) return (linear_tile){ q->rows, q->bn, q->slabs, q->split, 1 };
    return (linear_tile){ 0, 0, 0, 0, 0 };
}

/*
 * The parts of the GPU (GPCs). An H200 gives each as many blocks as the others: blocks in the order of their numbers, clusters in turn. What the blocks of a part
 * read at about the same time comes to it once.
 */
enum { GPU_PARTS = 8 };

/* How many rows of both operands the parts read in all while the first clusters run, where tiles go down in bands of so many. */
static int64_t rows_read(const linear_tile *t, int64_t down, int64_t across, int64_t clusters, int64_t band)
{
    int64_t sum = 0;
    for (int part = 0; part < GPU_PARTS; ++part) {
        int64_t       downs[160], acrosses[160], rows = 0, columns = 0;
        const bool    in_turn = t->cluster > 1;
        const int64_t end     = in_turn ? clusters : clusters * (part + 1) / GPU_PARTS;
        for (int64_t id = in_turn ? part : clusters * part / GPU_PARTS; id < end; id += in_turn ? GPU_PARTS : 1) {
            const int64_t top = id / (band * across) * band, rest = id % (band * across), high = least(band, down - top), y = top + rest % high, x = rest / high;
            int64_t       i = 0;
            while (i < rows && downs[i] != y) ++i;
            if (i == rows) downs[rows++] = y;
            for (i = 0; i < columns && acrosses[i] != x;) ++i;
            if (i == columns) acrosses[columns++] = x;
        }
        sum += rows * t->rows + columns * t->columns;
    }
    return sum * t->cluster;                    /* its blocks have each another part of K */
}

/* The band of tiles of input with the least to read; of those the weight's where that is the first operand. */
static int band_of(const linear_tile *t, int64_t rows, int64_t columns, int multiprocessors)
{
    const int64_t down = ceil_div(rows, t->rows), across = ceil_div(columns, t->columns), clusters = least(down * across, least(160, (int64_t)clusters_at_once(t->cluster, multiprocessors) * t->resident));
    int           best   = 1;
    int64_t       fewest = INT64_MAX;
    for (int band = 1; band <= 16 && band <= down; ++band) {
        const int64_t read = rows_read(t, down, across, clusters, band);
        if (read < fewest) best = band, fewest = read;
    }
    return best;
}

/* `batch` matrices of `rows` rows, in boxes of `width` x `height` elements; a row or a matrix alone has any stride. */
static sgk_tensor_map boxes(const struct linear_args *a, const void *data, int64_t columns, int64_t rows, int64_t stride, int64_t batch, int width, int height)
{
    return (sgk_tensor_map){
        .dtype     = a->dtype,
        .rank      = a->batch > 1 ? 3 : 2,
        .data      = data,
        .size      = { columns, rows, a->batch },
        .stride    = { 1, rows == 1 ? columns : stride, a->batch == 1 ? columns : batch },
        .box       = { width, height, 1 },
        .swizzle   = width == 64 ? SGK_SWIZZLE_128 : SGK_SWIZZLE_64,
        .promotion = SGK_PROMOTE_256,
    };
}

/* Rows of a box for tiles of so many: no more than there are. And the bytes of two such boxes, LINEAR_WGMMA_DEPTH wide. */
static int box_rows(int tile, int64_t rows) { return (int)least(tile, rows); }
static int slab_bytes(const struct linear_args *a, int rows, int columns) { return (box_rows(rows, a->rows) + box_rows(columns, a->columns)) * LINEAR_WGMMA_DEPTH * 2; }

/* Pieces of a column to L2 in advance: a quarter of 7168. */
enum { FEW_AHEAD = 224 };

static sgk_status launch_few(const struct few_build *b, const linear_call *c, linear_choice choice, const struct linear_args *a)
{
    struct linear_few_args few   = { .l = *a };
    const sgk_launch       shape = { .grid = { ceil_div(a->columns, LINEAR_FEW_COLUMNS) }, .block = { 32u * (unsigned)b->warps }, .alone = !a->early };
    if (a->early && b->resident == 1) {
        /* The next kernel's blocks find no room before these end: it is launched with their last slabs. */
        const int each = (int)(ceil_div(a->depth, 64) / b->warps);
        few.ahead      = FEW_AHEAD;
        few.release    = each > b->ahead ? each - b->ahead : 1;
    }
    if (sgk_log_wanted(c->exec)) sgk_log(c->exec, "%s: cuda, %s %s %s%s", c->op, b->kernel.file, b->kernel.entry, b->kernel.defines, c->why);
    return sgk_cuda_launch(c->op, choice.kernel, &shape, c->ordinal, c->exec, &few, sizeof few);
}

static sgk_status launch_pair(const struct pair_build *b, const linear_call *c, linear_choice choice, const struct linear_args *a)
{
    struct linear_few_args few   = { .l = *a };
    const sgk_launch       shape = {
        .grid          = { 2 * ceil_div(a->columns, LINEAR_PAIR_COLUMNS) },
        .block         = { 32u * (unsigned)b->warps },
        .shared_memory = (unsigned)(b->rows * pair_pitch(a)),
        .cluster       = 2,
        .alone         = !a->early,
    };
    if (a->early) {
        const int each = (int)(ceil_div(a->depth, 64) + 1) / 2 / b->warps;
        few.ahead      = FEW_AHEAD;
        few.release    = each > b->ahead ? each - b->ahead : 1;
    }
    if (sgk_log_wanted(c->exec)) sgk_log(c->exec, "%s: cuda, %s %s %s%s", c->op, b->kernel.file, b->kernel.entry, b->kernel.defines, c->why);
    return sgk_cuda_launch(c->op, choice.kernel, &shape, c->ordinal, c->exec, &few, sizeof few);
}

static sgk_status launch_wgmma(const struct wgmma_build *b, const linear_call *c, linear_choice choice, const struct linear_args *a)
{
    const int chunk = b->bn % 64 == 0 ? 64 : b->bn % 32 == 0 ? 32
                                                             : 16,
              split = choice.split;
    /* Parts of the ring in K, tiles of rows of input and of the weight. */
    const int                parts = (int)ceil_div(a->depth, LINEAR_WGMMA_DEPTH * b->slabs), steps = b->slabs > 2 ? parts : (int)pairs(a), down = (int)ceil_div(a->rows, b->swap ? b->bn : b->rows), across = (int)ceil_div(a->columns, b->swap ? b->rows : b->bn);
    struct linear_wgmma_args w = {
        .l            = *a,
        .first_tiles  = b->swap || b->lean ? across : down,
        .second_tiles = b->swap ? down : across,
        .tiles        = (int32_t)(across * (b->lean ? 1 : down) * a->batch),
        .band         = choice.band,
        .parts        = parts,
        .share        = steps / split,
        .rest         = steps % split,
        .split        = split,
        .pieces       = wgmma_pieces(b, split),
        .by_tma       = out_in_boxes(a),
        .stage_bytes  = b->slabs * (b->swap ? slab_bytes(a, b->bn, b->rows) : slab_bytes(a, b->rows, b->bn)),
    };
    const sgk_tensor_map input  = boxes(a, a->input, a->depth, a->rows, a->input_stride, a->input_batch, LINEAR_WGMMA_DEPTH, box_rows(b->swap ? b->bn : b->rows, a->rows));
    const sgk_tensor_map weight = boxes(a, a->weight, a->depth, a->columns, a->weight_stride, a->weight_batch, LINEAR_WGMMA_DEPTH, box_rows(b->swap ? b->rows : b->bn, a->columns));
    const sgk_tensor_map out    = boxes(a, a->out, a->columns, a->rows, a->out_stride, a->out_batch, b->swap ? 64 : chunk, b->swap ? chunk : 64);
    SGK_TRY(sgk_cuda_tensor_map(c->op, "input", &input, b->swap ? &w.second : &w.first));
    SGK_TRY(sgk_cuda_tensor_map(c->op, "weight", &weight, b->swap ? &w.first : &w.second));
    if (w.by_tma) SGK_TRY(sgk_cuda_tensor_map(c->op, "out", &out, &w.result));

    /* Behind the ring: results on their way out, or one sum of each share. The last KiB aligns the slabs. */
    const int stage  = b->slabs * (b->rows + b->bn) * 128;
    const int behind = split > 1 ? wgmma_inbox(b, split) : b->groups * b->buffers * 64 * chunk * 2;
    w.stages         = (int32_t)least(b->stages, (wgmma_shared(b) - behind) / stage);

    /* A cluster that splits K has one tile; lone blocks walk through theirs. */
    const sgk_launch shape = {
        .grid          = { split > 1 ? (int64_t)w.tiles * split : least(w.tiles, b->resident * c->device->multiprocessors), b->lean ? down : 1 },
        .block         = { 128u * (unsigned)(b->groups + 1) },
        .shared_memory = (unsigned)(w.stages * stage + behind + 1024),
        .cluster       = split > 1 ? (unsigned)split : 0,
        .alone         = !a->early,
    };
    if (sgk_log_wanted(c->exec))
        sgk_log(c->exec, "%s: cuda, %s %s %s, K in %d%s", c->op, b->kernel.file, b->kernel.entry, b->kernel.defines, split, c->why);
    return sgk_cuda_launch(c->op, choice.kernel, &shape, c->ordinal, c->exec, &w, sizeof w);
}

static sgk_status launch_wide(const struct wide_build *b, const linear_call *c, linear_choice choice, const struct linear_args *a)
{
    struct linear_wgmma_args w = {
        .l            = *a,
        .first_tiles  = (int32_t)ceil_div(a->rows, WIDE_ROWS),
        .second_tiles = (int32_t)ceil_div(a->columns, b->bn),
        .band         = choice.band,
        .parts        = (int32_t)ceil_div(a->depth, LINEAR_WGMMA_DEPTH),
        .share        = (int32_t)pairs(a) / choice.split,
        .rest         = (int32_t)pairs(a) % choice.split,
        .split        = choice.split,
        .stage_bytes  = slab_bytes(a, WIDE_ROWS, b->bn),
    };
    w.tiles                     = (int32_t)(w.first_tiles * w.second_tiles * a->batch);
    const sgk_tensor_map input  = boxes(a, a->input, a->depth, a->rows, a->input_stride, a->input_batch, LINEAR_WGMMA_DEPTH, box_rows(WIDE_ROWS, a->rows));
    const sgk_tensor_map weight = boxes(a, a->weight, a->depth, a->columns, a->weight_stride, a->weight_batch, LINEAR_WGMMA_DEPTH, box_rows(b->bn, a->columns));
    const sgk_tensor_map out    = boxes(a, a->out, a->columns, a->rows, a->out_stride, a->out_batch, 64, 64);
    SGK_TRY(sgk_cuda_tensor_map(c->op, "input", &input, &w.first));
    SGK_TRY(sgk_cuda_tensor_map(c->op, "weight", &weight, &w.second));
    SGK_TRY(sgk_cuda_tensor_map(c->op, "out", &out, &w.result));
    const sgk_launch shape = {
        .grid          = { least(w.tiles, c->device->multiprocessors) },
        .block         = { 384 },
        .shared_memory = (unsigned)(b->stages * ((WIDE_ROWS + b->bn) * 128 + 16) + 4 * 64 * 64 * 2),
        .alone         = !a->early,
    };
    if (sgk_log_wanted(c->exec)) sgk_log(c->exec, "%s: cuda, %s %s %s, K in %d%s", c->op, b->kernel.file, b->kernel.entry, b->kernel.defines, choice.split, c->why);
    return sgk_cuda_launch(c->op, choice.kernel, &shape, c->ordinal, c->exec, &w, sizeof w);
}

static sgk_status launch_share(const struct share_build *b, const linear_call *c, linear_choice choice, const struct linear_args *a)
{
    const int                steps = (int)ceil_div(a->depth, LINEAR_WGMMA_DEPTH * b->slabs), most = (b->bn / 8 + b->split - 1) / b->split;
    struct linear_wgmma_args w = {
        .l            = *a,
        .first_tiles  = (int32_t)ceil_div(a->rows, b->rows),
        .second_tiles = (int32_t)ceil_div(a->columns, b->bn),
        .band         = choice.band,
        .share        = steps / b->split,
        .rest         = steps % b->split,
        .stage_bytes  = b->slabs * slab_bytes(a, b->rows, b->bn),
    };
    const sgk_tensor_map input  = boxes(a, a->input, a->depth, a->rows, a->input_stride, a->input_batch, LINEAR_WGMMA_DEPTH, box_rows(b->rows, a->rows));
    const sgk_tensor_map weight = boxes(a, a->weight, a->depth, a->columns, a->weight_stride, a->weight_batch, LINEAR_WGMMA_DEPTH, box_rows(b->bn, a->columns));
    SGK_TRY(sgk_cuda_tensor_map(c->op, "input", &input, &w.first));
    SGK_TRY(sgk_cuda_tensor_map(c->op, "weight", &weight, &w.second));
    const sgk_launch shape = {
        .grid          = { w.first_tiles * ceil_div(a->columns, b->bn) * b->split },
        .block         = { 2 * b->rows + 128 },
        .shared_memory = (unsigned)(b->stages * (b->slabs * (b->rows + b->bn) * 128 + 16) + (b->split - 1) * most * 2 * b->rows * 16 + 8),
        .cluster       = b->split > 1 ? (unsigned)b->split : 0,
        .alone         = !a->early,
    };
    if (sgk_log_wanted(c->exec)) sgk_log(c->exec, "%s: cuda, %s %s %s%s", c->op, b->kernel.file, b->kernel.entry, b->kernel.defines, c->why);
    return sgk_cuda_launch(c->op, choice.kernel, &shape, c->ordinal, c->exec, &w, sizeof w);
}

/* Whether the build takes the shape; if so, and `run`, it runs. */
static bool takes(const linear_call *c, linear_choice choice, const struct linear_args *a, bool run, sgk_status *status)
{
    const struct vector_build *v     = ROW(vector_builds, choice);
    const struct stream_build *s     = ROW(stream_builds, choice);
    const struct few_build    *h     = ROW(few_builds, choice);
    const struct pair_build   *p     = ROW(pair_builds, choice);
    const struct mma_build    *m     = ROW(mma_builds, choice);
    const struct wgmma_build  *w     = ROW(wgmma_builds, choice);
    const struct wide_build   *x     = ROW(wide_builds, choice);
    const struct share_build  *q     = ROW(share_builds, choice);
    const struct simt_build   *f     = ROW(simt_builds, choice);
    const bool                 legal = v ? vector_takes(v, c, a, choice.split) : s ? stream_takes(s, c, a, choice.split)
                                                                             : h   ? few_takes(h, c, a, choice.split)
                                                                             : p   ? pair_takes(p, c, a, choice.split)
                                                                             : m   ? mma_takes(m, c, a, choice.split)
                                                                             : w   ? wgmma_takes(w, c, a, choice.split)
                                                                             : x   ? wide_takes(x, c, a, choice.split)
                                                                             : q   ? share_takes(q, c, a, choice.split)
                                                                                   : f && simt_takes(f, c, a, choice.split);
    if (!legal || !run) return legal;
    if (v) *status = launch(c, choice, ceil_div(a->columns, v->share > 1 ? 2 : 8), v->share > 1 ? v->share : 4, 0, a);
    if (s) {
        const int64_t groups = ceil_div(a->columns, s->columns);
        *status              = launch(c, choice, choice.split > 1 ? groups : least(groups, c->device->multiprocessors), s->warps, s->ring, a);
    }
    if (h) *status = launch_few(h, c, choice, a);
    if (p) *status = launch_pair(p, c, choice, a);
    if (m) *status = launch(c, choice, tiles(a, m->bm, m->bn), m->warps, (int64_t)m->stages * (m->bm + m->bn) * m->bk * 2, a);
    if (w) *status = launch_wgmma(w, c, choice, a);
    if (x) *status = launch_wide(x, c, choice, a);
    if (q) *status = launch_share(q, c, choice, a);
    if (f) *status = launch(c, choice, tiles(a, 64, 64), 4, 0, a);
    return true;
}

/* ---- the choice ---------------------------------------------------------------------------------------------------------------------- */

linear_choice linear_forced;

/* K in as many shares as give every multiprocessor four blocks, each with 256 and more of K; the batch-invariant choice does not look at M. */
static linear_choice choose_simt(const linear_call *c, const struct linear_args *a, bool batch_invariant)
{
    struct simt_build *s = simt_builds;
    while (!simt_takes(s, c, a, 1)) ++s;
    const int64_t blocks = batch_invariant ? ceil_div(a->columns, 64) : tiles(a, 64, 64) * a->batch;
    int           split  = 1;
    while (simt_takes(s, c, a, 2 * split) && 2 * split * blocks <= 4 * c->device->multiprocessors && a->depth >= 512 * split) split *= 2;
    return (linear_choice){ .kernel = &s->kernel, .split = split };
}

/* Results in f32 of long sums: chains on the matrix units, which cut what they add, are no longer than 1024. To 8192 cuBLASLt has one chain, too. */
static bool in_chains(const struct linear_args *a) { return a->out_dtype == SGK_F32 && a->dtype != SGK_F32 && a->depth > 8192; }

/*
 * Whether a build gives the bits of a sum in so many shares of K, added in their order, each one chain (or chains of 1024, see in_chains()): all that do,
 * whatever their tiles, give the same. Shares end with the same pair of slabs.
 */
static bool in_shares(linear_choice choice, const struct linear_args *a, int shares)
{
    const struct wgmma_build *w = ROW(wgmma_builds, choice);
    const struct share_build *q = ROW(share_builds, choice);
    if (q) return q->split == shares && !in_chains(a) && (shares == 1 || ceil_div(a->depth, LINEAR_WGMMA_DEPTH) % (2 * shares) == 0);
    if (ROW(wide_builds, choice)) return choice.split == shares && !in_chains(a);
    return w && choice.split == shares && (w->chain > 0) == in_chains(a) && (w->slabs <= 2 || shares == 1 || pairs(a) % (2 * shares) == 0);
}

static linear_choice choose_vector(const linear_call *c, const struct linear_args *a)
{
    for (size_t i = 0; i < COUNT(vector_builds); ++i)
        if (vector_builds[i].share == 1 && vector_takes(&vector_builds[i], c, a, 1)) return (linear_choice){ .kernel = &vector_builds[i].kernel, .split = 1 };
    return (linear_choice){ .split = 1 };
}

/*
 * For few rows, the build and the shares of K with the least time: what a block reads of weight and input, at the rate of one multiprocessor,
 * but no less than all of it takes; in nanoseconds.
 */
static linear_choice choose_stream(const linear_call *c, const struct linear_args *a)
{
    linear_choice best       = { .split = 1 };
    double        least_time = 0;
    for (size_t i = 0; i < COUNT(stream_builds); ++i) {
        struct stream_build *b = &stream_builds[i];
        for (int split = 1; split <= 8; ++split) {
            const int64_t groups = ceil_div(a->columns, b->columns), blocks = groups * split * a->batch;
            if (!stream_takes(b, c, a, split) || (split > 1 && blocks > c->device->multiprocessors)) continue;
            const double slabs = (double)ceil_div(ceil_div(a->depth, 64), split) * (double)ceil_div(blocks, c->device->multiprocessors);
            const double block = slabs * 128 * (double)(b->columns + least(a->rows, b->rows)) / 40, all = 2.0 * (double)(a->batch * a->columns * a->depth) / 4300;
            const double time = (block > all ? block + all / 8 : all + block / 8) + (split > 1 ? 400 : 0);
            if (!best.kernel || time < least_time) best = (linear_choice){ .kernel = &b->kernel, .split = split }, least_time = time;
        }
    }
    return best;
}

/* Where blocks are no more than fit at a time, or, where two fit a multiprocessor, twice that for up to 4 rows and one and a half times for more. */
static bool few_fits(const struct few_build *b, const linear_call *c, const struct linear_args *a)
{
    const int64_t blocks = ceil_div(a->columns, LINEAR_FEW_COLUMNS), round = (int64_t)b->resident * c->device->multiprocessors;
    return blocks <= (b->resident == 1 ? round : a->rows <= 4 ? 2 * round
                                                              : round + round / 2);
}

static bool pair_fits(const linear_call *c, const struct linear_args *a) { return 2 * ceil_div(a->columns, LINEAR_PAIR_COLUMNS) <= c->device->multiprocessors; }

/* For columns that fill a third of the multiprocessors at least: with fewer, blocks that share K read more at a time. */
static linear_choice choose_few(const linear_call *c, const struct linear_args *a)
{
    if (3 * ceil_div(a->columns, LINEAR_FEW_COLUMNS) >= c->device->multiprocessors && a->depth >= 2048) {
        for (size_t i = 0; i < COUNT(few_builds); ++i)
            if (few_takes(&few_builds[i], c, a, 1) && few_fits(&few_builds[i], c, a)) return (linear_choice){ .kernel = &few_builds[i].kernel, .split = 1 };
        for (size_t i = 0; i < COUNT(pair_builds); ++i)
            if (pair_takes(&pair_builds[i], c, a, 1) && pair_fits(c, a)) return (linear_choice){ .kernel = &pair_builds[i].kernel, .split = 1 };
    }
    return (linear_choice){ .split = 1 };
}

/* The tile with the least work on the busiest multiprocessor. The batch-invariant choice is among those that walk K in one chain, or in equal ones. */
static linear_choice choose_mma(const linear_call *c, const struct linear_args *a, bool batch_invariant)
{
    linear_choice best       = { .split = 1 };
    double        least_time = 0;
    for (size_t i = 0; i < COUNT(mma_builds); ++i) {
        struct mma_build *b = &mma_builds[i];
        if (!mma_takes(b, c, a, 1) || (batch_invariant && b->shares > 1) || (b->chain > 0) != in_chains(a)) continue;
        const double time = (double)ceil_div(tiles(a, b->bm, b->bn) * a->batch, c->device->multiprocessors) * b->bm * b->bn / b->efficiency;
        if (!best.kernel || time < least_time) best.kernel = &b->kernel, least_time = time;
    }
    return best;
}

/* Builds by what distinguishes them, whatever their order. */
#define S(columns, rows, stages, split) (UINT32_C(1) << 28 | (uint32_t)(columns) << 20 | (uint32_t)(rows) << 14 | (uint32_t)(stages) << 8 | (uint32_t)(split))
#define V(rows, share)                  (UINT32_C(2) << 28 | (uint32_t)(rows) << 8 | (uint32_t)(share))
#define M(bm, bn)                       (UINT32_C(3) << 28 | (uint32_t)(bm) << 10 | (uint32_t)(bn))
#define W(swap, behind, resident, rows, bn, split) \
    (UINT32_C(4) << 28 | (uint32_t)(swap) << 27 | (uint32_t)(behind) << 25 | (uint32_t)(rows) << 16 | (uint32_t)(bn) << 7 | (uint32_t)(resident) << 5 | (uint32_t)(split))
#define F(rows, warps)               (UINT32_C(5) << 28 | (uint32_t)(rows) << 8 | (uint32_t)(warps))
#define L(resident, rows, bn, split) (UINT32_C(6) << 28 | (uint32_t)(rows) << 16 | (uint32_t)(bn) << 7 | (uint32_t)(resident) << 5 | (uint32_t)(split))
#define P(rows)                      (UINT32_C(7) << 28 | (uint32_t)(rows))
#define X(bn, split)                 (UINT32_C(8) << 28 | (uint32_t)(bn) << 8 | (uint32_t)(split))
#define H(bn, split)                 (UINT32_C(9) << 28 | (uint32_t)(bn) << 8 | (uint32_t)(split))
#define O(rows, bn)                  (UINT32_C(10) << 28 | (uint32_t)(rows) << 16 | (uint32_t)(bn))

static uint32_t token_of(linear_choice choice)
{
    const struct vector_build *v = ROW(vector_builds, choice);
    const struct stream_build *s = ROW(stream_builds, choice);
    const struct few_build    *h = ROW(few_builds, choice);
    const struct pair_build   *p = ROW(pair_builds, choice);
    const struct mma_build    *m = ROW(mma_builds, choice);
    const struct wgmma_build  *w = ROW(wgmma_builds, choice);
    const struct wide_build   *x = ROW(wide_builds, choice);
    const struct share_build  *q = ROW(share_builds, choice);
    return v   ? V(v->rows, v->share)
           : s ? S(s->columns, s->rows, s->stages, choice.split)
           : h ? F(h->rows, h->warps)
           : p ? P(p->rows)
           : m ? M(m->bm, m->bn)
           : w ? w->lean ? L(w->resident, w->rows, w->bn, choice.split) : W(w->swap, w->behind, w->resident, w->rows, w->bn, choice.split)
           : x ? X(x->bn, choice.split)
           : q ? q->split == 1 ? O(q->rows, q->bn) : H(q->bn, q->split)
               : 0;
}

/*
 * Whether hardly any of a tile would be empty, and the GPU has room for what must run at one time. A call whose K is in shares whatever its rows (`fixed`)
 * may have several rounds of them.
 */
static bool sensible(linear_choice choice, int64_t rows, int64_t columns, int64_t depth, int multiprocessors, bool fixed)
{
    const struct wgmma_build *w = ROW(wgmma_builds, choice);
    const struct share_build *q = ROW(share_builds, choice);
    if (ROW(wide_builds, choice)) return 2 * rows > WIDE_ROWS;
    if (q) return 2 * rows > q->rows && share_fits(q, multiprocessors, rows, columns);
    if (!w) return false;
    const int64_t down = ceil_div(w->swap ? columns : rows, w->rows), across = ceil_div(w->swap ? rows : columns, w->bn);
    if (w->swap ? w->bn >= 2 * rows && w->bn > 16 : 2 * rows <= w->rows) return false;
    if (w->lean && (w->swap ? across : down) > (w->bn < 128 ? 4 : 1)) return false;
    return fixed || choice.split == 1 || (down * across * choice.split <= (int64_t)w->resident * multiprocessors && depth >= (int64_t)choice.split * 256);
}

/* Near what rows_read() gives of the best band, for one part. */
static double part_rows(const linear_tile *t, int64_t rows, int64_t columns, int64_t clusters)
{
    const double down = (double)ceil_div(rows, t->rows), across = (double)ceil_div(columns, t->columns), each = (double)clusters / GPU_PARTS;
    double       fewest = INFINITY;
    for (int band = 1; band <= 16 && band <= down; ++band) {
        const double wide = each / band < 1 ? 1 : each / band < across ? each / band
                                                                       : across,
                     high = each / wide, read = high * t->rows + wide * t->columns;
        if (read < fewest) fewest = read;
    }
    return fewest * t->cluster;
}

bool linear_work(linear_choice choice, int64_t rows, int64_t columns, int64_t depth, int64_t batch, int multiprocessors, double work[LINEAR_WORK])
{
    const linear_tile t = tile_of(choice);
    if (!t.rows) return false;
    const int     shares   = t.cluster;
    const int64_t clusters = ceil_div(rows, t.rows) * ceil_div(columns, t.columns) * batch, room = (int64_t)clusters_at_once(t.cluster, multiprocessors) * t.resident;
    const int64_t rounds = ceil_div(clusters, room), slabs = ceil_div(ceil_div(depth, LINEAR_WGMMA_DEPTH * t.slabs), shares) * t.slabs;
    work[0] = 1;
    work[1] = (double)(rounds - 1);
    work[2] = (double)(rounds * slabs);
    work[3] = work[2] * part_rows(&t, rows, columns, least(clusters, room)) / 1000;
    work[4] = 2.0 * (double)batch * ((double)(rows + columns) * (double)depth + (double)rows * (double)columns) / 4000;
    return true;
}

static bool several_rounds(linear_choice choice, const struct linear_args *a, int multiprocessors)
{
    double work[LINEAR_WORK];
    return linear_work(choice, a->rows, a->columns, a->depth, a->batch, multiprocessors, work) && work[1] > 0;
}

static const struct cost {
    uint32_t token;
    int32_t  begin, round, slab, rows, memory, error;   /* nanoseconds; the last two in thousandths */
} costs[] = {
#include "gemm_costs.def"
};

static const struct cost *cost_of(linear_choice choice)
{
    if (choice.split > 2) choice.split = 2;     /* several */
    const uint32_t token = token_of(choice);
    for (size_t i = 0; i < COUNT(costs); ++i)
        if (costs[i].token == token) return &costs[i];
    return NULL;
}

bool linear_has_cost(linear_choice choice) { return !tile_of(choice).rows || cost_of(choice); }

/*
 * Nanoseconds that the build takes by what was measured of it, but no less than memory, and in a single round as much more as such times are wrong by: of two
 * that seem alike, the one that is known better. The costs are those of short runs. In long ones power limits calls of several rounds: there wide tiles, which
 * read less, gain, and 136 and 176 columns are worth it only where they save a round.
 */
static double expected(linear_choice choice, const struct linear_args *a, int multiprocessors)
{
    const struct cost *cost = cost_of(choice);
    double             w[LINEAR_WORK];
    if (!cost) return INFINITY;
    linear_work(choice, a->rows, a->columns, a->depth, a->batch, multiprocessors, w);
    const double busy   = cost->begin + w[1] * cost->round + w[2] * cost->slab + w[3] * cost->rows + w[4] * cost->memory / 1000;
    const double memory = w[4] + 2200, less = busy < memory ? busy : memory, more = busy < memory ? memory : busy, part = less / more;
    const double time = more * (1 + part * part * part * part * part * part / 6);          /* near the root of the sum of sixth powers */
    if (w[1] == 0) return time * (1 + cost->error * 1e-3);
    const int columns = tile_of(choice).columns;
    return time * (1 + (256 - columns) / 12800.0 + (columns % 32 ? 0.03 : 0));
}

/*
 * The tile and the shares of K with the least time by costs that sgk-check --costs measured. `shares`: only what gives the bits of so many shares of K; 0:
 * any. Where gemm_wide.cu takes a call of several rounds, the same tiles of gemm_wgmma.cu need not be looked at.
 */
static linear_choice choose_wgmma(const linear_call *c, const struct linear_args *a, int shares)
{
    static const struct {
        void  *rows;
        size_t count, row_size;
    } tables[] = {
        { wide_builds, COUNT(wide_builds), sizeof *wide_builds },
        { share_builds, COUNT(share_builds), sizeof *share_builds },
        { wgmma_builds, COUNT(wgmma_builds), sizeof *wgmma_builds },
    };
    linear_choice best       = { .split = 1 };
    double        least_time = 0;
    for (size_t t = 0; t < COUNT(tables); ++t)
        for (size_t i = 0; i < tables[t].count; ++i)
            for (int split = 1; split <= 8; ++split) {
                if (split > 1 && tables[t].rows == share_builds) break;
                const linear_choice       choice = { .kernel = (sgk_kernel *)((char *)tables[t].rows + i * tables[t].row_size), .split = split };
                const struct wgmma_build *w      = ROW(wgmma_builds, choice);
                if (!takes(c, choice, a, false, NULL) || !sensible(choice, a->rows, a->columns, a->depth, c->device->multiprocessors, shares > 0)) continue;
                if (shares ? !in_shares(choice, a, shares) : (w && (w->chain > 0) != in_chains(a)) || (ROW(wide_builds, choice) && split > 1)) continue;
                if (w && !w->lean && w->rows * w->bn >= 128 * 128 && ROW(wide_builds, best) && several_rounds(choice, a, c->device->multiprocessors)) continue;
                const double time = expected(choice, a, c->device->multiprocessors);
                if (!best.kernel || time < least_time) best = choice, least_time = time;
            }
    return best;
}

/*
 * The shares of K of batch-invariant calls, by N and K alone: one, or, where tiles of 64 columns are so few that with few rows their blocks do not take
 * what memory gives, as many as have a third of the multiprocessors at work. With many rows a block has all of them one after the other.
 */
static int invariant_shares(const linear_call *c, const struct linear_args *a)
{
    const int64_t across = ceil_div(a->columns, 64);
    int           shares = 1;
    while (shares < 8 && 3 * across * shares < c->device->multiprocessors && a->depth >= 1024 * shares) shares *= 2;
    return shares;
}

/* ---- what was measured: gemm_table.def ---------------------------------------------------------------------------------------- */

const char *linear_token(linear_choice choice, char *text, size_t size)
{
    const struct vector_build *v = ROW(vector_builds, choice);
    const struct stream_build *s = ROW(stream_builds, choice);
    const struct few_build    *h = ROW(few_builds, choice);
    const struct pair_build   *p = ROW(pair_builds, choice);
    const struct mma_build    *m = ROW(mma_builds, choice);
    const struct wgmma_build  *w = ROW(wgmma_builds, choice);
    const struct wide_build   *x = ROW(wide_builds, choice);
    const struct share_build  *q = ROW(share_builds, choice);
    if (v) snprintf(text, size, "V(%d, %d)", v->rows, v->share);
    else if (s) snprintf(text, size, "S(%d, %d, %d, %d)", s->columns, s->rows, s->stages, choice.split);
    else if (h) snprintf(text, size, "F(%d, %d)", h->rows, h->warps);
    else if (m) snprintf(text, size, "M(%d, %d)", m->bm, m->bn);
    else if (p) snprintf(text, size, "P(%d)", p->rows);
    else if (w && w->lean) snprintf(text, size, "L(%d, %d, %d, %d)", w->resident, w->rows, w->bn, choice.split);
    else if (w) snprintf(text, size, "W(%d, %d, %d, %d, %d, %d)", w->swap, w->behind, w->resident, w->rows, w->bn, choice.split);
    else if (x) snprintf(text, size, "X(%d, %d)", x->bn, choice.split);
    else if (q) snprintf(text, size, q->split == 1 ? "O(%d, %d)" : "H(%d, %d)", q->split == 1 ? q->rows : q->bn, q->split == 1 ? q->bn : q->split);
    else snprintf(text, size, "0");
    return text;
}

/* The kernel of a token of the table, and its shares of K. */
static linear_choice choice_of(uint32_t token, sgk_dtype dtype)
{
    static const struct {
        void  *rows;
        size_t count, row_size, dtype;
    } tables[] = {
#define TABLE(builds) { builds, COUNT(builds), sizeof *builds, offsetof(__typeof__(*builds), dtype) }
        TABLE(stream_builds),
        TABLE(wgmma_builds),
        TABLE(vector_builds),
        TABLE(few_builds),
        TABLE(pair_builds),
        TABLE(mma_builds),
#undef TABLE
    };
    const uint32_t kind  = token >> 28;
    const int      split = kind == 1 || kind == 4 || kind == 6 ? (int)(token & 31) : 1;
    for (size_t t = 0; t < COUNT(tables); ++t)
        for (size_t i = 0; i < tables[t].count; ++i) {
            char *const               row    = (char *)tables[t].rows + i * tables[t].row_size;
            const linear_choice       choice = { .kernel = (sgk_kernel *)row, .split = split };
            const struct wgmma_build *w      = ROW(wgmma_builds, choice);
            const struct mma_build   *m      = ROW(mma_builds, choice);
            if (*(sgk_dtype *)(row + tables[t].dtype) == dtype && token_of(choice) == token && !(w && w->chain) && !(m && m->chain)) return choice;
        }
    return (linear_choice){ .split = 1 };
}

static const int table_rows[] = LINEAR_TABLE_ROWS;
static const struct {
    int32_t  columns, depth;
    uint32_t choice[COUNT(table_rows)];
} measured[] = {
#include "gemm_table.def"
};

static double apart(int64_t a, int64_t b) { return a > b ? (double)a / (double)b : (double)b / (double)a; }

/* The build with short chains that has this one's tile and shares of K, or none. */
static linear_choice with_chains(linear_choice choice)
{
    const struct wgmma_build *w = ROW(wgmma_builds, choice);
    for (size_t i = 0; i < COUNT(wgmma_builds) && w; ++i) {
        struct wgmma_build *b = &wgmma_builds[i];
        if (b->chain > 0 && b->dtype == w->dtype && b->swap == w->swap && b->lean == w->lean && b->resident == w->resident && b->rows == w->rows && b->bn == w->bn)
            return (linear_choice){ .kernel = &b->kernel, .split = choice.split };
    }
    return (linear_choice){ .split = 1 };
}

/*
 * For few rows, what was fastest at the next larger M of the table, for the same N and K or those that are together less than a fifth away. NULL: the table does
 * not know.
 */
static linear_choice choose_measured(const linear_call *c, const struct linear_args *a)
{
    linear_choice choice = { .split = 1 };
    if (a->dtype == SGK_F32 || a->batch != 1 || c->device->arch != SGK_ARCH_90A || c->device->multiprocessors != 132) return choice;
    size_t r = 0;
    while (r < COUNT(table_rows) && table_rows[r] < a->rows) ++r;
    if (r == COUNT(table_rows)) return choice;
    double   nearest = 1.2;
    uint32_t token   = 0;
    for (size_t i = 0; i < COUNT(measured); ++i) {
        const double by = apart(measured[i].columns, a->columns) * apart(measured[i].depth, a->depth);
        if (by <= nearest && measured[i].choice[r]) nearest = by, token = measured[i].choice[r];
    }
    if (token) choice = choice_of(token, a->dtype);
    const struct few_build *few = ROW(few_builds, choice);
    if ((few && !few_fits(few, c, a)) || (ROW(pair_builds, choice) && !pair_fits(c, a))) {          /* it is for the neighbour's columns, not for these */
        choice = choose_few(c, a);
        if (!choice.kernel) choice = choose_wgmma(c, a, 0);
    }
    if (in_chains(a) && (ROW(mma_builds, choice) || (ROW(wgmma_builds, choice) && !in_shares(choice, a, choice.split)))) choice = with_chains(choice);
    if (choice.kernel && !takes(c, choice, a, false, NULL)) choice.kernel = NULL;
    return choice;
}

bool linear_sensible(linear_choice choice, int64_t rows, int64_t columns, int64_t depth)
{
    enum { MULTIPROCESSORS = 132 };
    const struct vector_build *v = ROW(vector_builds, choice);
    const struct stream_build *s = ROW(stream_builds, choice);
    const struct few_build    *h = ROW(few_builds, choice);
    const struct pair_build   *p = ROW(pair_builds, choice);
    const struct mma_build    *m = ROW(mma_builds, choice);
    const struct wgmma_build  *w = ROW(wgmma_builds, choice);
    if ((m && m->chain > 0) || (w && w->chain > 0)) return false;
    if (v) return rows > v->rows / 2 && columns < 100000;
    if (h) return (h->rows < 2 * rows || h->rows == 8) && ceil_div(columns, LINEAR_FEW_COLUMNS) <= 4 * MULTIPROCESSORS;
    if (p) return (p->rows < 2 * rows || p->rows == 8) && ceil_div(columns, LINEAR_PAIR_COLUMNS) <= 4 * MULTIPROCESSORS;
    if (s) return (s->rows < 2 * rows || s->rows == 8) && (choice.split == 1 || ceil_div(columns, s->columns) * choice.split <= MULTIPROCESSORS);
    if (m) return rows > m->bm / 2 && rows <= 2 * m->bm && rows <= 64;
    return sensible(choice, rows, columns, depth, MULTIPROCESSORS, false);
}

bool linear_same_bits(linear_choice choice, sgk_dtype dtype, sgk_dtype out_dtype, int64_t depth, int shares)
{
    const struct linear_args a = { .depth = depth, .dtype = dtype, .out_dtype = out_dtype };
    return in_shares(choice, &a, shares);
}

bool linear_takes(linear_choice choice, sgk_dtype dtype, sgk_dtype out_dtype, int64_t rows, int64_t columns, int64_t depth)
{
    const sgk_cuda_device *device;
    if (sgk_cuda_get_device("linear", 0, &device) != SGK_OK || !sgk_kernel_fits(choice.kernel, device)) return false;
    const struct linear_args a = { .rows = rows, .columns = columns, .depth = depth, .out_stride = columns, .input_stride = depth, .weight_stride = depth, .dtype = dtype, .out_dtype = out_dtype, .batch = 1 };
    const linear_call        c = { .op = "linear", .why = "", .device = device, .pieces = sgk_in_pieces(NULL, depth, dtype) };
    return takes(&c, choice, &a, false, NULL);
}

/* Of the first operand of the kernel's instructions, which its bands are of. */
static void set_band(linear_choice *choice, const struct linear_args *a, int multiprocessors)
{
    const struct wgmma_build *w = ROW(wgmma_builds, *choice);
    linear_tile               t = tile_of(*choice);
    if (!t.rows) return;
    if (w && w->swap) {
        const int rows = t.rows;
        t.rows = t.columns, t.columns = rows;
        choice->band = band_of(&t, a->columns, a->rows, multiprocessors);
    } else {
        choice->band = band_of(&t, a->rows, a->columns, multiprocessors);
    }
}

/* All that a choice depends on. */
typedef struct {
    int64_t rows, columns, depth, batch, input_stride, weight_stride, input_batch, weight_batch;
    int32_t dtype, ordinal, layout, batch_invariant;
} linear_shape;
_Static_assert(sizeof(linear_shape) == 80, "linear_shape has gaps");

/* This thread's last choices: a model has few shapes, and to choose takes longer than all checks together. */
static linear_choice *remembered(const linear_shape *shape)
{
    enum { PLACES = 64 };
    static _Thread_local struct {
        linear_shape  shape;
        linear_choice choice;
    } memory[PLACES];
    const uint64_t hash = (uint64_t)(shape->rows + 257 * shape->columns + 65537 * shape->depth) * UINT64_C(0x9e3779b97f4a7c15);
    const size_t   i    = hash >> 58;
    if (memcmp(&memory[i].shape, shape, sizeof *shape)) {
        memory[i].shape  = *shape;
        memory[i].choice = (linear_choice){ .split = 1 };
    }
    return &memory[i].choice;
}

sgk_status linear_on_gpu(const char *op, const struct linear_args *a, int ordinal, const sgk_exec *exec)
{
    const sgk_cuda_device *device;
    SGK_TRY(sgk_cuda_get_device(op, ordinal, &device));
    const bool  batch_invariant = sgk_exec_batch_invariant(exec);
    linear_call c               = { op, batch_invariant ? " (batch invariant)" : "", ordinal, device, exec, false };
    c.pieces                    = sgk_in_pieces(a->input, a->input_stride, a->dtype) && sgk_in_pieces(a->weight, a->weight_stride, a->dtype) && sgk_in_pieces(NULL, a->depth, a->dtype) &&
                                  (a->batch == 1 || (sgk_in_pieces(NULL, a->input_batch, a->dtype) && sgk_in_pieces(NULL, a->weight_batch, a->dtype)));
    sgk_status status           = SGK_OK;
    if (linear_forced.kernel) {
        linear_choice forced = linear_forced;
        set_band(&forced, a, device->multiprocessors);
        SGK_REQUIRE(takes(&c, forced, a, true, &status), SGK_UNSUPPORTED, "%s: the build asked for does not take this shape", op);
        return status;
    }
    const linear_shape shape  = { a->rows, a->columns, a->depth, a->batch, a->input_stride, a->weight_stride, a->input_batch, a->weight_batch,
                                  a->dtype, ordinal, c.pieces + 2 * out_in_boxes(a) + 4 * (a->out_dtype == SGK_F32), batch_invariant };
    linear_choice     *memory = remembered(&shape), choice = *memory;
    if (sgk_log_wanted(exec)) choice.kernel = NULL;         /* the reason is told too */
    const int shares = !choice.kernel && batch_invariant ? invariant_shares(&c, a) : 0;
    if (!choice.kernel) choice = choose_measured(&c, a);
    if (shares && choice.kernel && !in_shares(choice, a, shares)) choice.kernel = NULL;
    if (!choice.kernel && !batch_invariant) choice = choose_few(&c, a);
    if (!choice.kernel && !batch_invariant && sgk_kernel_fits(&wgmma_builds[0].kernel, device)) choice = choose_stream(&c, a);
    if (!choice.kernel) choice = choose_wgmma(&c, a, shares);
    if (!choice.kernel) {
        if (!c.pieces) c.why = " (rows of input or weight not in 16-byte pieces)";
        else if (a->dtype != SGK_F32 && sgk_kernel_fits(&wgmma_builds[0].kernel, device)) c.why = " (columns not a multiple of 8, rows that overlap, or too large for TMA)";
        if (!batch_invariant) choice = choose_vector(&c, a);
        if (!choice.kernel && !batch_invariant) choice = choose_stream(&c, a);
        if (!choice.kernel) choice = choose_mma(&c, a, batch_invariant);
        if (!choice.kernel) choice = choose_simt(&c, a, batch_invariant);
    }
    set_band(&choice, a, device->multiprocessors);
    *memory = choice;
    SGK_REQUIRE(takes(&c, choice, a, true, &status), SGK_FAILED, "%s: the build chosen does not take this shape", op);
    return status;
}
