/* Attention over many queries on the matrix units of sm_90a. */
#include "attention_wgmma.h"
#include "attention_call.h"
#include "attention_gather.h"
#include "cuda/tensor_map.h"

/* The macros are explained in the kernel. A build takes head sizes up to its own; the first that does runs. */
/* clang-format off */
#define WGMMA(type, dtype, dim, dim_v, groups, keys, stages, q_places, pages, speculate, turns, give, take)                                         \
    { SGK_KERNEL("attention/attention_wgmma.cu", "attention_wgmma", "-DT=" type " -DDIM=" #dim " -DDIM_V=" #dim_v " -DGROUPS=" #groups              \
                 " -DKEYS=" #keys " -DSTAGES=" #stages " -DQ_PLACES=" #q_places " -DPAGES=" #pages " -DSPECULATE=" #speculate " -DTURNS=" #turns    \
                 " -DGIVE=" #give " -DTAKE=" #take, SGK_ARCH_90A), dtype, dim, dim_v, groups, keys, stages, q_places, pages, stages }
#define WGMMAS(type, dtype)                                          \
    WGMMA(type, dtype,  64,  64, 3,  96, 4, 2, 0, 1, 1, 32, 160),    \
    WGMMA(type, dtype,  96,  96, 2, 128, 2, 2, 0, 1, 1, 24, 240),    \
    WGMMA(type, dtype, 128, 128, 2, 128, 2, 2, 0, 1, 1, 24, 240),    \
    WGMMA(type, dtype, 192, 128, 2, 128, 2, 1, 0, 0, 1, 24, 240),    \
    WGMMA(type, dtype, 256, 256, 2,  80, 2, 1, 0, 0, 0, 24, 240),    \
    WGMMA(type, dtype,  64,  64, 3,  96, 4, 2, 1, 1, 1, 32, 160),    \
    WGMMA(type, dtype,  96,  96, 2, 128, 2, 2, 1, 1, 1, 24, 240),    \
    WGMMA(type, dtype, 128, 128, 2, 128, 2, 2, 1, 1, 1, 24, 240),    \
    WGMMA(type, dtype, 192, 128, 2, 128, 2, 1, 1, 0, 1, 24, 240),    \
    WGMMA(type, dtype, 256, 256, 2,  80, 2, 1, 1, 0, 0, 24, 240),    \
    WGMMA(type, dtype,  64,  64, 2, 128, 4, 2, 3, 1, 1, 56, 224),    \
    WGMMA(type, dtype, 128, 128, 2, 128, 2, 2, 2, 1, 1, 56, 224),    \
    WGMMA(type, dtype, 192, 128, 2, 128, 2, 1, 2, 0, 1, 56, 224),    \
    WGMMA(type, dtype, 256, 256, 2,  64, 2, 1, 3, 0, 1, 56, 224)
#define E4M3(dim, dim_v, keys, stages, v_stages, early)                                                                                             \
    { SGK_KERNEL("attention/attention_wgmma_e4m3.cu", "attention_wgmma_e4m3", "-DT=bf16 -DE4M3=1 -DDIM=" #dim " -DDIM_V=" #dim_v " -DGROUPS=2"      \
                 " -DKEYS=" #keys " -DSTAGES=" #stages " -DV_STAGES=" #v_stages " -DQ_PLACES=1 -DOFFSET=4 -DSHARE=16 -DEARLY=" #early               \
                 " -DGIVE=56 -DTAKE=224", SGK_ARCH_90A), SGK_E4M3, dim, dim_v, 2, keys, stages, 1, 0, v_stages }
attention_wgmma_build attention_wgmma_builds[ATTENTION_WGMMA_BUILDS] = { WGMMAS("f16", SGK_F16), WGMMAS("bf16", SGK_BF16),
    E4M3( 64,  64, 192, 4, 2, 1),
    E4M3(128, 128, 128, 4, 4, 1),
    E4M3(192, 128, 128, 2, 2, 0),
};

attention_order_build attention_order_builds[1] = { { SGK_KERNEL("attention/attention_order.cu", "attention_order", "-DORDER=1", SGK_ARCH_90A) } };
attention_gather_build attention_gather_builds[1] = { { SGK_KERNEL("attention/attention_gather.cu", "attention_gather", "-DGATHER=1", SGK_ARCH_90A) } };
/* clang-format on */

/* Whether keys lie too scattered for boxes of at least 8 rows: in pages of other sizes, or moved by a left pad to anywhere in a page. */
static bool scattered(const struct attention_args *a) { return a->page_size && (a->leftpad_k || a->page_size % 8); }

/* Whether a build's PAGES suit a call. Those of e4m3 take calls with and without a page table. */
static bool suits(int pages, const struct attention_args *a)
{
    if (scattered(a)) return pages > 1;
    return pages == (a->page_size && a->dtype != SGK_E4M3);
}

static const attention_wgmma_build *build_of(const struct attention_args *a)
{
    for (size_t i = 0; i < COUNT(attention_wgmma_builds); ++i) {
        const attention_wgmma_build *b = &attention_wgmma_builds[i];
        if (b->dtype == a->dtype && a->dim <= b->dim && a->dim_v <= b->dim_v && suits(b->pages, a)) return b;
    }
    return NULL;
}

/* Keys that one box brings: all of a tile, or as many as lie in one page. */
static int box_rows(const struct attention_args *a, int keys)
{
    if (!a->page_size || a->page_size % keys == 0) return keys;
    int rows = 1;
    while (a->page_size % (2 * rows) == 0 && keys % (2 * rows) == 0) rows *= 2;
    return rows;
}

static int64_t most_blocks(const attention_call *c) { return c->device->multiprocessors > c->o.sm_margin ? c->device->multiprocessors - c->o.sm_margin : 1; }

/* ---- keys and values copied out of their pages first ----------------------------------------------------------------- */

/* Of all places that the page table has room for. */
static int64_t gathered_bytes(const struct attention_args *a, int dim) { return ((int64_t)a->batch * a->max_k * a->kv_heads * dim * sgk_dtype_size(a->dtype) + 255) / 256 * 256; }

/*
 * Whether that is faster with build b, by what was measured of both: boxes and rows of small pages keep up with the products less well than boxes of
 * whole tiles. From sizes alone: lengths are on the device, so each sequence is taken to fill its row of the page table. Where it has fewer keys, both
 * what copying costs and what it saves are less.
 */
static bool gathering_pays(const attention_call *c, const attention_wgmma_build *b)
{
    static const struct {
        int    dim;
        bool   e4m3;
        double operations;                      /* without pages, a multiprocessor and us */
        double longer[6];                       /* by how much pages make that: row by row, in boxes of 8, 16, 32, 64 and 128 keys */
    } speeds[] = {
        { 64, false, 3.6e6, { 0.20, 0.10, 0.01 } },
        { 128, false, 5.0e6, { 0.24, 0.40, 0.10 } },
        { 192, false, 4.9e6, { 0.16, 0.35, 0.06 } },
        { 256, false, 4.9e6, { 0.10, 0.30, 0.02 } },
        { 64, true, 4.0e6, { 24, 1, 0.57, 0.30, 0.17 } }, /* row by row: the general form */
        { 128, true, 6.2e6, { 24, 1, 0.45, 0.30, 0.16, 0.12 } },
        { 192, true, 6.5e6, { 24, 1, 0.57, 0.30, 0.17 } },
    };
    const struct attention_args *a     = &c->a;
    const int                    box   = box_rows(a, b->keys);
    size_t                       speed = 0, form = 1;
    while (speeds[speed].e4m3 != (a->dtype == SGK_E4M3) || speeds[speed].dim < b->dim) ++speed;
    while (form < COUNT(speeds->longer) && box != 4 << form) ++form;
    if (scattered(a)) form = 0;
    if (form == COUNT(speeds->longer)) return false;
    const double queries = a->cu_seqlens_q ? (double)a->total_q / a->batch : a->max_q;
    double       reach = (double)a->window_left + a->window_right + 1, keys = a->max_k;
    if (a->chunk && reach > a->chunk) reach = a->chunk;
    if (keys > queries + reach) keys = queries + reach;
    double seen = keys;                         /* by a query, on the average */
    if (a->window_right < queries) seen = keys > queries ? keys - queries / 2 : keys / 2;
    if (seen > reach) seen = reach;
    const double each = a->dim + a->dim_v, products = a->batch * queries * (seen + b->keys) * a->heads * 2 * each;
    const double bytes = a->batch * keys * a->kv_heads * each * (double)sgk_dtype_size(a->dtype);
    return products / (speeds[speed].operations * (double)most_blocks(c)) * speeds[speed].longer[form] > 2 * bytes / ATTENTION_GATHER_SPEED + ATTENTION_GATHER_START;
}

/* The call as it is when they are copied, but for where they lie. */
static struct attention_args gathered(const struct attention_args *a)
{
    struct attention_args d = *a;
    d.page_table = NULL, d.page_size = 0, d.kv_batches = a->batch;
    d.k_head_stride = a->dim, d.k_row_stride = (int64_t)a->kv_heads * a->dim, d.k_batch_stride = a->max_k * d.k_row_stride;
    d.v_head_stride = a->dim_v, d.v_row_stride = (int64_t)a->kv_heads * a->dim_v, d.v_batch_stride = a->max_k * d.v_row_stride;
    return d;
}

/* The build that would read the copies; NULL: none are made. A batch-invariant call is copied only where that changes no bits: the tiles are the same. */
static const attention_wgmma_build *gathering_build(const attention_call *c)
{
    const struct attention_args *a    = &c->a;
    const int64_t                size = sgk_dtype_size(a->dtype);
    if (!a->page_size || a->dim * size % 16 || a->dim_v * size % 16) return NULL;
    if ((double)a->batch * a->max_k * a->kv_heads * (a->dim + a->dim_v) * (double)size > ATTENTION_GATHER_MOST) return NULL;
    const struct attention_args  dense = gathered(a);
    const attention_wgmma_build *b = build_of(&dense), *paged = build_of(a);
    if (!b || !gathering_pays(c, b)) return NULL;
    return a->only_above && (!paged || paged->keys != b->keys || paged->groups != b->groups) ? NULL : b;
}

static struct attention_gather_rows rows_of(const struct attention_args *a, const void *from, void *to, int dim, int64_t page, int64_t row, int64_t head)
{
    const int64_t                      size = sgk_dtype_size(a->dtype), to_row = a->kv_heads * dim * size;
    const bool                         one = a->kv_heads == 1 || head == dim;
    const struct attention_gather_rows r   = { from, to, page * size, row * size, head * size, a->max_k * to_row, to_row, one ? 1 : a->kv_heads,
                                               (int32_t)(one ? to_row : dim * size) / 16 };
    return r;
}

static sgk_status gather(const attention_call *c, const struct attention_args *a, const struct attention_args *d, bool overlap)
{
    attention_gather_build            *b = &attention_gather_builds[0];
    const struct attention_gather_args g = {
        .a         = *a,
        .rows      = { rows_of(a, a->k, d->k, a->dim, a->k_batch_stride, a->k_row_stride, a->k_head_stride),
                       rows_of(a, a->v, d->v, a->dim_v, a->v_batch_stride, a->v_row_stride, a->v_head_stride) },
        .blocks    = (a->max_k + ATTENTION_GATHER_ROWS - 1) / ATTENTION_GATHER_ROWS,
        .tile_keys = c->tile,
    };
    SGK_LOG_BUILD(c->exec, c->op, &b->kernel, "");
    const sgk_launch shape = { .grid = { (int64_t)g.blocks * a->batch * 2 }, .block = { ATTENTION_GATHER_THREADS }, .overlap = overlap };
    return sgk_cuda_launch(c->op, &b->kernel, &shape, c->m.device.device_id, c->exec, &g, sizeof g);
}

/* Distances that the copy engine can have between rows, heads and batches. */
static bool within_reach(int64_t x, int64_t y, int64_t z)
{
    const int64_t far = INT64_C(1) << 38;
    return x >= 0 && y >= 0 && z >= 0 && x < far && y < far && z < far;
}

static const char *wgmma_passes(attention_call *c)
{
    const struct attention_args *a = &c->a;
    if (!sgk_kernel_fits(&attention_wgmma_builds[0].kernel, c->device)) return "not sm_90a";
    if (a->dtype == SGK_F32) return "f32";
    if (a->only_up_to || (a->dtype == SGK_E4M3 ? a->max_q < ATTENTION_WGMMA_QUERIES_E4M3 : a->max_q * a->group < ATTENTION_WGMMA_QUERIES)) return "few queries";
    if (a->q_v) return "q_v";
    if (a->apart) return "new keys apart";
    const attention_wgmma_build *copied = gathering_build(c), *b = copied ? copied : build_of(a);
    c->copies = copied, c->build = b;
    if (!b) return "head sizes, or such in scattered pages";
    if (b->pages == 3 && !(attention_places_fit(a, a->k_batch_stride, a->k_row_stride) && attention_places_fit(a, a->v_batch_stride, a->v_row_stride)))
        return "a cache of more than 64 GB in scattered pages";
    if (a->dim % 8 || a->dim_v % 8) return "a head size that is no multiple of 8";       /* results leave in pieces of 8, which would pass a row's end */
    if (!(a->scale > 0)) return "softmax_scale not positive";
    if (a->max_k == 0 || a->kv_batches == 0 || (a->cu_seqlens_q && a->total_q == 0)) return "no keys or no queries";
    if (!attention_in_pieces(a, 16) || !attention_rows_in_pieces(a->out, a->out_batch_stride, a->out_row_stride, a->out_head_stride, a->out_dtype, 16))
        return "q, k, v or out not in 16-byte pieces";
    if (!within_reach(a->q_batch_stride, a->q_row_stride, a->q_head_stride) || !within_reach(a->k_batch_stride, a->k_row_stride, a->k_head_stride) ||
        !within_reach(a->v_batch_stride, a->v_row_stride, a->v_head_stride))
        return "strides too large for TMA";
    if ((int64_t)a->batch * a->heads * (a->max_q / 64 + 1) * (c->o.num_splits > 1 ? c->o.num_splits : 1) >= INT32_MAX / 2) return "too many tiles";
    return NULL;
}

/* Or may be less than the longest, which decides nothing in batch-invariant calls. */
static bool lengths_differ(const struct attention_args *a)
{
    const bool queries = a->cu_seqlens_q || a->seqused_q;
    return a->batch > 1 ? queries || a->cu_seqlens_k || a->seqused_k || a->leftpad_k || a->cu_seqlens_k_new : a->only_above && queries;
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
static int64_t works(const attention_call *c) { return (int64_t)c->a.batch * (all_joined(c) ? c->a.kv_heads : c->a.heads) * row_tiles(c) * c->a.splits; }
static int64_t blocks(const attention_call *c)
{
    const int64_t most = most_blocks(c);
    return works(c) < most ? works(c) : most;
}

/* Pieces of work as long as keys are whole, at most: nearer than works(), as sequences that all have few queries are joined, and packed ones share rows. */
static int64_t whole_works(const attention_call *c)
{
    const struct attention_args *a       = &c->a;
    const bool                   joined  = attention_joins(a, a->max_q, c->rows);
    const int32_t                queries = joined ? c->rows / a->group : c->rows;
    const int64_t                each = (int64_t)a->batch * ((a->max_q + queries - 1) / queries), packed = a->total_q / queries + a->batch;
    return (a->cu_seqlens_q && packed < each ? packed : each) * (joined ? a->kv_heads : a->heads);
}

/* Tiles of keys that a tile of queries sees, at most. */
static int64_t key_tiles(const attention_call *c)
{
    const struct attention_args *a    = &c->a;
    int64_t                      keys = (int64_t)a->window_left + a->window_right + c->rows;
    if (a->chunk && keys > a->chunk + c->rows) keys = a->chunk + c->rows;
    if (keys > a->max_k) keys = a->max_k;
    return (keys + c->tile - 1) / c->tile;
}

/*
 * In how many parts to cut keys where there are fewer tiles of queries than multiprocessors: as many as one, two, ... rounds of blocks take up. Time in
 * tiles of keys: a piece of work costs two besides, the second kernel three and one for 64 pieces. From sizes alone, as attention_choose_splits.
 */
static int32_t choose_splits(const attention_call *c)
{
    const int64_t most = most_blocks(c), pieces = whole_works(c), keys = key_tiles(c), limit = keys < 256 ? keys : 256;
    if (c->a.only_above) return c->o.num_splits > 1 ? (int32_t)c->o.num_splits : 1;         /* also those that only longer sequences have */
    if (c->o.num_splits) return attention_at_most(c->o.num_splits, keys);
    if (pieces == 0 || pieces >= most) return 1;
    int64_t best = 1, least = keys + 2;
    for (int64_t rounds = 1; rounds <= 8; ++rounds) {
        const int64_t fit = rounds * most / pieces, parts = fit < limit ? fit : limit;
        const int64_t cost = rounds * ((keys + parts - 1) / parts + 2) + 3 + parts * pieces / 64;
        if (parts > 1 && cost < least) best = parts, least = cost;
    }
    return (int32_t)best;
}

/* Work is given out as blocks ask for it where pieces differ and there is more than one for a block. */
static bool asks(const attention_call *c)
{
    const struct attention_args *a = &c->a;
    return lengths_differ(a) || (works(c) > blocks(c) && (a->window_right != ATTENTION_NO_LIMIT || a->window_left != ATTENTION_NO_LIMIT || a->chunk));
}

/* The counters, and the list where lengths differ. */
static int64_t list_bytes(const attention_call *c)
{
    const struct attention_args *a = &c->a;
    if (!lengths_differ(a)) return asks(c) ? 256 : 0;
    const int64_t each = (int64_t)a->batch * row_tiles(c), packed = a->total_q / c->rows + a->batch;
    return 256 + ((a->cu_seqlens_q && packed < each ? packed : each) * a->group * (int64_t)sizeof(struct attention_tile) + 255) / 256 * 256;
}

static int64_t wgmma_plan(attention_call *c)
{
    const struct attention_args *a = &c->a;
    const attention_wgmma_build *b = c->build;
    c->rows = 64 * b->groups, c->threads = 128 * (b->groups + 1), c->tile = b->keys;
    const int across = 128 / (int)sgk_dtype_size(a->dtype), slabs = (b->dim + across - 1) / across, slabs_v = (b->dim_v + across - 1) / across;
    const int rows   = (b->q_places * c->rows + b->stages * b->keys) * slabs + b->v_stages * b->keys * slabs_v;
    const int turned = a->dtype == SGK_E4M3 ? b->stages * b->dim_v * b->keys : 0;       /* bytes of transposed values */
    c->shared_memory = (unsigned)(rows * 128 + turned + 1024);
    c->a.splits      = choose_splits(c);
    return (c->copies ? gathered_bytes(a, a->dim) + gathered_bytes(a, a->dim_v) : 0) + list_bytes(c) + attention_partial_bytes(a);
}

/* Boxes of 128 bytes of columns, so many rows and so many heads; the other way round rows and heads change places. A dimension of one element has any stride. */
static sgk_status map_of(const attention_call *c, const char *name, const void *data, int64_t dim, int64_t rows, int64_t heads, int64_t batches,
                         int64_t row_stride, int64_t head_stride, int64_t batch_stride, int box_rows, int box_heads, sgk_tma_map *map)
{
    const int64_t        any   = (dim + 15) / 16 * 16;
    const sgk_tensor_map shape = {
        .dtype     = c->a.dtype,
        .rank      = 4,
        .data      = data,
        .size      = { dim, rows, heads, batches },
        .stride    = { 1, rows > 1 ? row_stride : any, heads > 1 ? head_stride : any, batches > 1 ? batch_stride : any },
        .box       = { 128 / (int)sgk_dtype_size(c->a.dtype), box_rows, box_heads, 1 },
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
    if (w->stores)
        SGK_TRY(map_of(c, "out", a->out, a->dim_v, q_rows, a->heads, q_batches, a->out_row_stride, a->out_head_stride, a->out_batch_stride, c->rows, 1, &w->out));
    for (size_t i = 0; i < COUNT(maps); ++i)
        SGK_TRY(map_of(c, "v", a->v, a->dim_v, kv_rows, a->kv_heads, a->kv_batches, a->v_row_stride, a->v_head_stride, a->v_batch_stride, boxes[i], 1, maps[i]));
    return SGK_OK;
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
    /* The last units must have two pieces of work for each block, or blocks run out of work while others have the longest. */
    const int64_t whole = ordered || all_joined(c) ? 1 : a->group, tiles = (int64_t)row_tiles(c) * a->splits * (ordered ? (int64_t)a->batch * a->group : 1);
    const int64_t fit = (share > 0 ? share : 1) * whole, least = (2 * blocks(c) + tiles - 1) / tiles, rest = units(c) % fit;
    if (rest == 0 || rest >= least) return attention_at_most(fit, units(c));
    const int64_t most = fit > least ? fit : least, parts = (units(c) + most - 1) / most, each = (units(c) + parts - 1) / parts;
    return attention_at_most((each + whole - 1) / whole * whole, units(c));
}

static sgk_status wgmma_run(attention_call *c, void *scratch)
{
    const attention_wgmma_build *b     = c->build;
    const struct attention_args *a     = &c->a;
    const float                  log2e = 1.4426950408889634f;
    const struct attention_args  paged = *a;
    if (c->copies) {
        c->a   = gathered(&paged);
        c->a.k = scratch, c->a.v = (char *)scratch + gathered_bytes(a, a->dim);
        scratch = (char *)c->a.v + gathered_bytes(a, a->dim_v);
    }
    attention_set_partials(&c->a, (char *)scratch + list_bytes(c));
    struct attention_wgmma_args w = {
        .a         = *a,
        .row_tiles = row_tiles(c),
        .joined    = all_joined(c),
        .units     = units(c),
        .blocks    = (int32_t)blocks(c),
        .box_rows  = box_rows(a, b->keys),
        .tile_rows = c->rows,
        .tile_keys = b->keys,
        .stores    = b->q_places == 2 && a->splits == 1 && a->max_q >= c->rows && within_reach(a->out_batch_stride, a->out_row_stride, a->out_head_stride),
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
    if (c->copies) SGK_TRY(gather(c, &paged, a, asks(c)));
    SGK_LOG_BUILD(c->exec, c->op, &b->kernel, "");
    const sgk_launch shape = { .grid = { blocks(c) }, .block = { (unsigned)c->threads }, .shared_memory = c->shared_memory, .overlap = asks(c) || c->copies };
    SGK_TRY(sgk_cuda_launch(c->op, &((attention_wgmma_build *)b)->kernel, &shape, c->m.device.device_id, c->exec, &w, sizeof w));
    return attention_combine_parts(c);
}

const attention_form attention_wgmma = { "wgmma", wgmma_passes, wgmma_plan, wgmma_run };
