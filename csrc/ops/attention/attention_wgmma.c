/* Attention over many queries on the matrix units of sm_90a. */
#include "attention_wgmma.h"
#include "attention_call.h"
#include "cuda/tensor_map.h"
#include <stdlib.h>

/* The macros are explained in the kernel. A build takes head sizes up to its own; the first that does runs. */
/* clang-format off */
#define WGMMA(more, dim, dim_v, groups, keys, hold_q, q_places, gather, give, take)                                                              \
    { SGK_KERNEL("attention/attention_wgmma.cu", "attention_wgmma", "-DT=bf16 -DDIM=" #dim " -DDIM_V=" #dim_v " -DGROUPS=" #groups               \
                 " -DKEYS=" #keys " -DHOLD_Q=" #hold_q " -DSTAGES=2 -DQ_PLACES=" #q_places " -DGATHER=" #gather " -DGIVE=" #give " -DTAKE=" #take more, \
                 SGK_ARCH_90A), SGK_BF16, dim, dim_v, groups, keys, 2, q_places, gather }
#define TWO(more, dim, dim_v, keys, hold_q, q_places) WGMMA(more, dim, dim_v, 2, keys, hold_q, q_places, 0, 24, 240)
#define THREE(more, keys) WGMMA(more, 64, 64, 3, keys, 0, 2, 0, 32, 160)
#define GATHER(more, q_places) WGMMA(more, 128, 128, 2, 128, 0, q_places, 1, 56, 224)
attention_wgmma_build attention_wgmma_builds[ATTENTION_WGMMA_BUILDS] = {
    TWO("", 128, 128, 128, 1, 1), /* 0: main */
    TWO(" -DLOOP=1", 128, 128, 128, 0, 1), /* 1: loop, q one place */
    TWO(" -DLOOP=1 -DMASK=1", 128, 128, 128, 1, 1), /* 2: loop, q in registers */
    TWO(" -DLOOP=1 -DMASK=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=32", 128, 128, 128, 1, 1), /* 3: loop, q in registers, AHEAD, LAZY */
    TWO(" -DLOOP=1", 128, 128, 128, 0, 2), /* 4: loop, q two places */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1", 128, 128, 128, 0, 2), /* 5: q two places, MASK, PUT */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DBEFORE_WAIT=32", 128, 128, 128, 0, 2), /* 6: the same, 32 weights before the wait */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DBEFORE_WAIT=64", 128, 128, 128, 0, 2), /* 7: the same, 64 weights before the wait */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DBEFORE_WAIT=32 -DAHEAD=1", 128, 128, 128, 0, 2), /* 8: 6 and AHEAD */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DLAZY=30", 128, 128, 128, 0, 2), /* 9: 5 and AHEAD, LAZY */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=32", 128, 128, 128, 0, 2), /* 10: 6 and AHEAD, LAZY */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=64", 128, 128, 128, 0, 2), /* 11: 7 and AHEAD, LAZY */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=32", 128, 128, 128, 1, 2), /* 12: 10, q in registers */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DSPECULATE=1099511627776 -DODD=1", 128, 128, 128, 0, 2), /* 13: 5 and SPECULATE */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1", 128, 128, 128, 0, 2), /* 14: 5 and AHEAD, SPECULATE */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1 -DEXP_FMA=8", 128, 128, 128, 0, 2), /* 15: 14 and EXP_FMA=8 */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1 -DTURNS=0", 128, 128, 128, 0, 2), /* 16: 14 without turns */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776", 128, 128, 128, 0, 2), /* 17: 14 without ODD */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1", 128, 128, 112, 1, 2), /* 18: 14 with q in registers, 112 keys */
    TWO(" -DLOOP=1 -DMASK=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1", 128, 128, 128, 0, 1), /* 19: 14 with one place for q, results from lane to lane */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1", 128, 128, 144, 0, 2), /* 20: 14, 144 keys */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=40", 128, 128, 160, 0, 2), /* 21: 10, 160 keys */
    TWO(" -DLOOP=1 -DMASK=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=44", 128, 128, 176, 0, 1), /* 22: 3 with q in one place, 176 keys */
    TWO(" -DLOOP=1 -DMASK=1 -DBEFORE_WAIT=44", 128, 128, 176, 0, 1), /* 23: the same without AHEAD, LAZY */
    TWO("", 64, 64, 128, 0, 1), /* 24: main */
    THREE(" -DLOOP=1 -DMASK=1 -DPUT=1", 128), /* 25: three warpgroups, loop, two places, MASK, PUT */
    THREE(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=32", 128), /* 26: the same, AHEAD, LAZY */
    THREE(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=32 -DEXP_FMA=4", 128), /* 27: the same, EXP_FMA=4 */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1", 64, 64, 128, 0, 2), /* 28: two warpgroups, SPECULATE */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1 -DEXP_FMA=4", 64, 64, 128, 0, 2), /* 29: the same, EXP_FMA=4 */
    THREE(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1", 96), /* 30: three, 96 keys, SPECULATE */
    THREE(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1 -DEXP_FMA=8", 96), /* 31: the same, EXP_FMA=8 */
    THREE(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1 -DEXP_FMA=4", 96), /* 32: the same, EXP_FMA=4 */
    THREE(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1 -DEXP_FMA=4 -DTURNS=0", 96), /* 33: the same without turns */
    TWO("", 192, 128, 128, 0, 1), /* 34: main */
    TWO(" -DLOOP=1 -DMASK=1", 192, 128, 128, 0, 1), /* 35: loop, MASK */
    TWO(" -DLOOP=1 -DMASK=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=32", 192, 128, 128, 0, 1), /* 36: the same, AHEAD, LAZY */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1", 192, 128, 96, 0, 2), /* 37: 96 keys, q two places, PUT, SPECULATE */
    TWO(" -DLOOP=1 -DMASK=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1", 192, 128, 112, 0, 1), /* 38: 112 keys, SPECULATE */
    TWO("", 256, 256, 80, 0, 1), /* 39: main */
    TWO(" -DLOOP=1 -DMASK=1", 256, 256, 80, 0, 1), /* 40: loop, MASK */
    TWO(" -DLOOP=1 -DMASK=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=20", 256, 256, 80, 0, 1), /* 41: the same, AHEAD, LAZY */
    TWO(" -DLOOP=1 -DMASK=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=20 -DTURNS=0", 256, 256, 80, 0, 1), /* 42: the same without turns */
    GATHER("", 1), /* 43: main, rows */
    GATHER(" -DLOOP=1 -DMASK=1", 1), /* 44: loop, MASK */
    GATHER(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=32", 2), /* 45: 10 for rows */
    GATHER(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1", 2), /* 46: 14 for rows */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DTRACE=1", 128, 128, 128, 0, 2), /* 47: trace of 5 */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DLAZY=30 -DBEFORE_WAIT=32 -DTRACE=1", 128, 128, 128, 0, 2), /* 48: trace of 10 */
    TWO(" -DLOOP=1 -DMASK=1 -DPUT=1 -DAHEAD=1 -DSPECULATE=1099511627776 -DODD=1 -DTRACE=1", 128, 128, 128, 0, 2), /* 49: trace of 14 */
};
#undef GATHER

attention_order_build attention_order_builds[1] = { { SGK_KERNEL("attention/attention_order.cu", "attention_order", "-DORDER=1", SGK_ARCH_90A) } };
/* clang-format on */

/* Whether keys lie too scattered for boxes of at least 8 rows: in pages of other sizes, or moved by a left pad to anywhere in a page. */
static bool scattered(const struct attention_args *a) { return a->page_size && (a->leftpad_k || a->page_size % 8); }

static const attention_wgmma_build *build_of(const struct attention_args *a)
{
    for (size_t i = 0; i < COUNT(attention_wgmma_builds); ++i) {
        const attention_wgmma_build *b = &attention_wgmma_builds[i];
        if (getenv("SGK_VARIANT") && atoi(getenv("SGK_VARIANT")) != (int)i) continue;
        if (b->dtype == a->dtype && a->dim <= b->dim && a->dim_v <= b->dim_v && b->gather == scattered(a)) return b;
    }
    return NULL;
}

/* Distances that the copy engine can have between rows, heads and batches. */
static bool within_reach(int64_t x, int64_t y, int64_t z)
{
    const int64_t far = INT64_C(1) << 38;
    return x >= 0 && y >= 0 && z >= 0 && x < far && y < far && z < far;
}

static const char *wgmma_passes(const attention_call *c)
{
    const struct attention_args *a = &c->a;
    if (!sgk_kernel_fits(&attention_wgmma_builds[0].kernel, c->device)) return "not sm_90a";
    if (a->dtype != SGK_F16 && a->dtype != SGK_BF16) return "neither f16 nor bf16";
    if (a->max_q < ATTENTION_WGMMA_QUERIES) return "few queries";
    if (sgk_exec_batch_invariant(c->exec)) return "batch invariant";
    if (c->o.num_splits > 1) return "num_splits given";
    if (a->q_v) return "q_v";
    if (a->apart) return "new keys apart";
    if (!build_of(a)) return "head sizes, or such in scattered pages";
    if (!(a->scale > 0)) return "softmax_scale not positive";
    if (a->max_k == 0 || a->kv_batches == 0 || (a->cu_seqlens_q && a->total_q == 0)) return "no keys or no queries";
    if (!attention_in_pieces(a, 16) || !attention_rows_in_pieces(a->out, a->out_batch_stride, a->out_row_stride, a->out_head_stride, a->dtype, 16))
        return "q, k, v or out not in 16-byte pieces";
    if (!within_reach(a->q_batch_stride, a->q_row_stride, a->q_head_stride) || !within_reach(a->k_batch_stride, a->k_row_stride, a->k_head_stride) ||
        !within_reach(a->v_batch_stride, a->v_row_stride, a->v_head_stride))
        return "strides too large for TMA";
    if ((int64_t)a->batch * a->heads * (a->max_q / 64 + 1) >= INT32_MAX / 2) return "too many tiles";
    return NULL;
}

static bool lengths_differ(const struct attention_args *a)
{
    return a->batch > 1 && (a->cu_seqlens_q || a->cu_seqlens_k || a->seqused_q || a->seqused_k || a->leftpad_k || a->cu_seqlens_k_new);
}

/* Whether all tiles have the heads joined that share a key head. Where lengths differ, attention_order.cu decides for each sequence. */
static bool all_joined(const attention_call *c) { return !lengths_differ(&c->a) && attention_joins(&c->a, c->a.max_q, c->rows); }

/* Units that each have as many tiles: of the longest sequence, or all of the list. */
static int32_t units(const attention_call *c) { return lengths_differ(&c->a) ? c->a.kv_heads : c->a.batch * (all_joined(c) ? c->a.kv_heads : c->a.heads); }
static int32_t row_tiles(const attention_call *c)
{
    const int32_t queries = all_joined(c) ? c->rows / c->a.group : c->rows;
    return (c->a.max_q + queries - 1) / queries;
}

/* At most so many pieces of work, and how many run at a time. */
static int64_t works(const attention_call *c) { return (int64_t)c->a.batch * (all_joined(c) ? c->a.kv_heads : c->a.heads) * row_tiles(c); }
static int64_t blocks(const attention_call *c)
{
    const int64_t most = c->device->multiprocessors > c->o.sm_margin ? c->device->multiprocessors - c->o.sm_margin : 1;
    return works(c) < most ? works(c) : most;
}

/* Work is given out as blocks ask for it where pieces differ and there is more than one for a block. */
static bool asks(const attention_call *c)
{
    const struct attention_args *a = &c->a;
    return lengths_differ(a) || (works(c) > blocks(c) && (a->window_right != ATTENTION_NO_LIMIT || a->window_left != ATTENTION_NO_LIMIT || a->chunk));
}

static int64_t wgmma_plan(attention_call *c)
{
    const struct attention_args *a = &c->a;
    const attention_wgmma_build *b = build_of(a);
    c->build = b, c->rows = 64 * b->groups, c->threads = 128 * (b->groups + 1), c->tile = b->keys;
    c->shared_memory = (unsigned)(((b->q_places * c->rows + b->stages * b->keys) * ((b->dim + 63) / 64 * 64) + b->stages * b->keys * ((b->dim_v + 63) / 64 * 64)) * 2 + 1024);
    if (!lengths_differ(a)) return asks(c) ? 256 : 0;
    const int64_t each = (int64_t)a->batch * row_tiles(c), packed = a->total_q / c->rows + a->batch;
    return 256 + (a->cu_seqlens_q && packed < each ? packed : each) * a->group * (int64_t)sizeof(struct attention_tile);
}

/* Boxes of 64 columns, so many rows and so many heads; the other way round rows and heads change places. A dimension of one element has any stride. */
static sgk_status map_of(const attention_call *c, const char *name, const void *data, int64_t dim, int64_t rows, int64_t heads, int64_t batches,
                         int64_t row_stride, int64_t head_stride, int64_t batch_stride, int box_rows, int box_heads, sgk_tma_map *map)
{
    const sgk_tensor_map shape = {
        .dtype     = c->a.dtype,
        .rank      = 4,
        .data      = data,
        .size      = { dim, rows, heads, batches },
        .stride    = { 1, rows > 1 ? row_stride : dim, heads > 1 ? head_stride : dim, batches > 1 ? batch_stride : dim },
        .box       = { 64, box_rows, box_heads, 1 },
        .swizzle   = SGK_SWIZZLE_128,
        .promotion = SGK_PROMOTE_256,
    };
    return sgk_cuda_tensor_map(c->op, name, &shape, map);
}

static sgk_status make_maps(const attention_call *c, struct attention_wgmma_args *w)
{
    const struct attention_args *a      = &c->a;
    const int64_t                q_rows = a->cu_seqlens_q ? a->total_q : a->max_q, kv_rows = a->cu_seqlens_k ? a->total_k : a->page_size ? a->page_size
                                                                                                                                         : a->max_k;
    const int                    boxes[]   = { w->box_rows, 8, 1 };
    sgk_tma_map *const           maps[]    = { &w->v, &w->v8, &w->v1 };
    const int64_t                q_batches = a->cu_seqlens_q ? 1 : a->batch;
    SGK_TRY(map_of(c, "q", a->q, a->dim, q_rows, a->heads, q_batches, a->q_row_stride, a->q_head_stride, a->q_batch_stride, c->rows, 1, &w->q));
    if (attention_joins(a, 1, c->rows))
        SGK_TRY(map_of(c, "q", a->q, a->dim, a->heads, q_rows, q_batches, a->q_head_stride, a->q_row_stride, a->q_batch_stride, a->group, c->rows / a->group, &w->q_joined));
    SGK_TRY(map_of(c, "k", a->k, a->dim, kv_rows, a->kv_heads, a->kv_batches, a->k_row_stride, a->k_head_stride, a->k_batch_stride, w->box_rows, 1, &w->k));
    for (size_t i = 0; i < COUNT(maps); ++i)
        SGK_TRY(map_of(c, "v", a->v, a->dim_v, kv_rows, a->kv_heads, a->kv_batches, a->v_row_stride, a->v_head_stride, a->v_batch_stride, boxes[i], 1, maps[i]));
    return SGK_OK;
}

/* Keys that one box brings: all of a tile, or as many as lie in one page. */
static int box_rows(const struct attention_args *a, int keys)
{
    if (!a->page_size || a->page_size % keys == 0) return keys;
    int rows = 1;
    while (a->page_size % (2 * rows) == 0 && keys % (2 * rows) == 0) rows *= 2;
    return rows;
}

/* Units whose keys and values share L2. */
static int32_t at_once(const attention_call *c)
{
    const struct attention_args *a       = &c->a;
    const bool                   ordered = lengths_differ(a);
    int64_t                      places  = a->cu_seqlens_k ? a->total_k : (int64_t)a->batch * a->max_k;
    if (a->page_size && places > (int64_t)a->kv_batches * a->page_size) places = (int64_t)a->kv_batches * a->page_size;
    if (!ordered) places = places / (a->batch ? a->batch : 1) + 1;
    const int64_t bytes = places * (a->dim + a->dim_v) * sgk_dtype_size(a->dtype) + 1, share = (int64_t)c->device->l2_bytes / 100 * ATTENTION_L2_SHARE / bytes;
    return attention_at_most((share > 0 ? share : 1) * (ordered || all_joined(c) ? 1 : a->group), units(c));
}

static sgk_status wgmma_run(attention_call *c, void *scratch)
{
    const attention_wgmma_build *b     = c->build;
    const struct attention_args *a     = &c->a;
    const float                  log2e = 1.4426950408889634f;
    struct attention_wgmma_args  w     = {
        .a         = *a,
        .row_tiles = row_tiles(c),
        .joined    = all_joined(c),
        .units     = units(c),
        .blocks    = (int32_t)blocks(c),
        .box_rows  = box_rows(a, b->keys),
        .tile_rows = c->rows,
        .tile_keys = b->keys,
        .scale     = a->softcap > 0 ? 1 : a->scale * log2e,
        .cap_inner = a->softcap > 0 ? 2 * a->scale * log2e / a->softcap : 0,
        .cap_outer = a->softcap * log2e,
    };
    SGK_TRY(make_maps(c, &w));
    w.at_once       = at_once(c);
    w.joined_blocks = w.blocks / 2;
    if (asks(c)) {
        w.next = scratch;
        if (lengths_differ(a)) w.order_count = w.next + 2, w.order = (struct attention_tile *)((char *)scratch + 256);
        const sgk_launch one = { .grid = { 1 }, .block = { 1024 } };
        SGK_TRY(sgk_cuda_launch(c->op, &attention_order_builds[0].kernel, &one, c->m.device.device_id, c->exec, &w, sizeof w));
    }
    SGK_LOG_BUILD(c->exec, c->op, &b->kernel, "");
    const sgk_launch shape = { .grid = { blocks(c) }, .block = { (unsigned)c->threads }, .shared_memory = c->shared_memory, .overlap = asks(c) };
    return sgk_cuda_launch(c->op, &((attention_wgmma_build *)b)->kernel, &shape, c->m.device.device_id, c->exec, &w, sizeof w);
}

const attention_form attention_wgmma = { "wgmma", wgmma_passes, wgmma_plan, wgmma_run };
