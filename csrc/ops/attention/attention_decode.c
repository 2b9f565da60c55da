/* The form for few queries a sequence: see attention_decode.h. */
#include "attention_decode.h"
#include "attention_call.h"

/* Two blocks of four warps fit a multiprocessor of sm_90, and one of sm_86; of eight, one of sm_90. Those in parts are two where
 * that can be: one reads while the other begins a part or ends one. On one device those in parts of a head size and format have as many warps, whatever their rows:
 * how keys are shared among warps is seen in the bits. Rows are not, as long as q is in registers. */
/* clang-format off */
#define BUILD(type, eight, dtype, archs, dim, warps, stages, rows, plain, parts) \
    { SGK_KERNEL("attention/attention_decode.cu", "attention_decode",            \
                 "-DT=" #type " -DEIGHT=" #eight " -DDIM=" #dim " -DWARPS=" #warps " -DSTAGES=" #stages " -DROWS=" #rows " -DPLAIN=" #plain " -DPARTS=" #parts, archs), dtype, dim, warps, stages, rows, plain, parts }
#define DECODE(type, eight, dtype, archs, dim, warps, stages, rows, plain) BUILD(type, eight, dtype, archs, dim, warps, stages, rows, plain, 0)
#define IN_PARTS(type, eight, dtype, archs, dim, warps, stages, rows) BUILD(type, eight, dtype, archs, dim, warps, stages, rows, 0, 1)
#define DECODES(type, dtype)                                \
    DECODE(type, 0, dtype, SGK_ARCH_90A, 64, 8, 6, 8, 0),   \
    DECODE(type, 0, dtype, SGK_ARCH_90A, 64, 8, 6, 16, 0),  \
    DECODE(type, 0, dtype, SGK_NOT_90A,  64, 4, 6, 16, 0),  \
    DECODE(type, 0, dtype, SGK_ARCH_90A, 128, 8, 3, 8, 0),  \
    DECODE(type, 0, dtype, SGK_ARCH_90A, 128, 8, 3, 16, 0), \
    DECODE(type, 0, dtype, SGK_NOT_90A, 128, 4, 3, 16, 0),  \
    DECODE(type, 0, dtype, SGK_GENERAL, 256, 2, 3, 16, 0),  \
    DECODE(type, 0, dtype, SGK_ARCH_90A, 128, 4, 3, 8, 1),  \
    DECODE(type, 0, dtype, SGK_ARCH_90A, 128, 8, 3, 8, 1),  \
    DECODE(type, 0, dtype, SGK_ARCH_90A, 128, 8, 3, 8, 2),  \
    DECODE(type, 0, dtype, SGK_ARCH_90A, 256, 2, 3, 8, 1),  \
    IN_PARTS(type, 0, dtype, SGK_ARCH_90A, 64, 4, 6, 8),    \
    IN_PARTS(type, 0, dtype, SGK_GENERAL, 64, 4, 6, 16),    \
    IN_PARTS(type, 0, dtype, SGK_ARCH_90A, 128, 4, 3, 8),   \
    IN_PARTS(type, 0, dtype, SGK_GENERAL, 128, 4, 3, 16),   \
    IN_PARTS(type, 0, dtype, SGK_GENERAL, 256, 2, 3, 16)
#define E4M3_ARCHS (SGK_GENERAL & ~SGK_ARCH_80)     /* those with an instruction that widens e4m3 */
attention_decode_build attention_decode_builds[ATTENTION_DECODE_BUILDS] = {
    DECODES(f16, SGK_F16), DECODES(bf16, SGK_BF16),
    DECODE(e4m3, 1, SGK_E4M3, E4M3_ARCHS,  64, 4, 8, 16, 0),
    DECODE(e4m3, 1, SGK_E4M3, SGK_ARCH_90A, 128, 16, 3, 8, 0),
    DECODE(e4m3, 1, SGK_E4M3, SGK_ARCH_90A, 128, 8, 6, 16, 0),
    DECODE(e4m3, 1, SGK_E4M3, E4M3_ARCHS & ~SGK_ARCH_90A, 128, 4, 6, 16, 0),
    IN_PARTS(e4m3, 1, SGK_E4M3, SGK_ARCH_90A, 64, 4, 8, 8),
    IN_PARTS(e4m3, 1, SGK_E4M3, E4M3_ARCHS,   64, 4, 8, 16),
    IN_PARTS(e4m3, 1, SGK_E4M3, SGK_ARCH_90A, 128, 8, 3, 8),
    IN_PARTS(e4m3, 1, SGK_E4M3, SGK_ARCH_90A, 128, 8, 6, 16),
    IN_PARTS(e4m3, 1, SGK_E4M3, E4M3_ARCHS & ~SGK_ARCH_90A, 128, 4, 6, 16),
};

attention_decode_combine_build attention_decode_combine_builds[ATTENTION_DECODE_COMBINE_BUILDS] = {
    { SGK_KERNEL("attention/attention_decode_combine.cu", "attention_decode_combine", "-DT=f16 -DPARTS=0",  SGK_GENERAL), SGK_F16, 0 },
    { SGK_KERNEL("attention/attention_decode_combine.cu", "attention_decode_combine", "-DT=bf16 -DPARTS=0", SGK_GENERAL), SGK_BF16, 0 },
    { SGK_KERNEL("attention/attention_decode_combine.cu", "attention_decode_combine", "-DT=f16 -DPARTS=1",  SGK_GENERAL), SGK_F16, 1 },
    { SGK_KERNEL("attention/attention_decode_combine.cu", "attention_decode_combine", "-DT=bf16 -DPARTS=1", SGK_GENERAL), SGK_BF16, 1 },
};
/* clang-format on */

enum { RESERVED          = 2048,         /* static shared memory and what the driver keeps of a block's */
       MOST_PIECES       = 32,
       MOST_JOINED       = 8,            /* blocks of a cluster that have a unit of a lone sequence: more are not all there at a time */
       MOST_JOINED_BYTES = 600 << 10 };  /* of keys and values that such a block reads, where the clusters leave much of the GPU idle */

static int64_t shared_memory(const attention_decode_build *b)
{
    const int64_t rings = (int64_t)b->warps * b->stages * 32 * b->dim * sgk_dtype_size(b->dtype);
    if (b->dim > 128 && b->rows > 8) return rings + (int64_t)b->warps * 32 * b->dim;        /* queries */
    return b->kernel.archs == SGK_ARCH_90A && b->plain != 1 && !b->parts ? rings + (int64_t)b->rows * b->dim * 4 : rings;     /* sums of a cluster */
}

/* Rows of the longest sequence that is this form's. */
static int64_t rows_of(const struct attention_args *a) { return (int64_t)(a->only_up_to && a->max_q > a->only_up_to ? a->only_up_to : a->max_q) * a->group; }

/* Of those of this kind that the device can run, the smallest head size and the fewest rows that hold this call, or a unit of it; behind `after` where that is given. */
static attention_decode_build *build_of(const attention_call *c, int plain, attention_decode_build *after)
{
    for (attention_decode_build *b = after ? after + 1 : attention_decode_builds; b < attention_decode_builds + ATTENTION_DECODE_BUILDS; ++b)
        if (b->dtype == c->a.dtype && b->plain == plain && b->parts == (c->a.only_up_to > 0) && (plain ? b->dim == c->a.dim : b->dim >= c->a.dim) && (b->rows >= rows_of(&c->a) || (b->parts && b->rows == ATTENTION_DECODE_ROWS)) &&
            sgk_kernel_fits(&b->kernel, c->device) && shared_memory(b) + RESERVED <= c->device->shared_memory_per_block) return b;
    return NULL;
}

/* Units of a key head, and chunks of keys, at most. */
static int64_t most_units(const struct attention_args *a) { return (rows_of(a) + ATTENTION_DECODE_ROWS - 1) / ATTENTION_DECODE_ROWS; }

/* One query a sequence that sees all keys, in pages whose size is a power of two: has builds of its own. */
static bool plain(const struct attention_args *a)
{
    return a->max_q == 1 && a->page_size && (a->page_size & (a->page_size - 1)) == 0 && !a->seqused_q && !a->cu_seqlens_k && !a->cu_seqlens_k_new && !a->kv_batch_idx && !a->leftpad_k &&
           !a->max_new && a->window_left >= ATTENTION_NO_LIMIT && a->window_right >= 0 && !a->chunk && !a->top_left && a->softcap == 0;
}

static const char *passes(attention_call *c)
{
    const struct attention_args *a = &c->a;
    if (a->dtype == SGK_F32) return "f32";
    if (!a->only_up_to && (int64_t)a->max_q * a->group > 16) return "more than 16 rows a sequence";
    if (a->dim != a->dim_v || a->q_v) return "head sizes differ";
    if (a->dim % 8) return "a head size that is no multiple of 8";
    if (a->apart) return "new keys apart";
    if (c->o.num_splits && !a->only_up_to) return "num_splits given";
    if (!attention_in_pieces(a, 16) || !attention_rows_in_pieces(a->out, a->out_batch_stride, a->out_row_stride, a->out_head_stride, a->out_dtype, 16)) return "q, k, v or out not in 16-byte pieces";
    if (a->only_up_to ? (int64_t)a->batch * a->kv_heads * most_units(a) * attention_decode_chunks(a->max_k) > INT32_MAX / 4 : (int64_t)a->batch * a->kv_heads * (a->max_k / 16 + 1) > INT32_MAX / 4) return "too many keys";
    if (!attention_places_fit(a, a->k_batch_stride, a->k_row_stride) || !attention_places_fit(a, a->v_batch_stride, a->v_row_stride)) return "a cache of more than 64 GB";
    return build_of(c, 0, NULL) ? NULL : "no build for this head size on this device";
}

static int64_t piece_bytes(const struct attention_decode_args *d, int64_t width)
{
    const int64_t slots = d->slots ? (int64_t)d->a.batch * d->slots : 2 * (int64_t)d->blocks;
    return (slots * d->head_warps * d->rows * width * 4 + 255) / 256 * 256;
}

/* Blocks that the device holds at once. */
static int64_t blocks_at_once(const attention_call *c, const attention_decode_build *b)
{
    const int64_t fit = c->device->shared_memory_per_multiprocessor / (shared_memory(b) + RESERVED);
    return c->device->multiprocessors * (fit > 1 ? 2 : 1);
}

/*
 * Blocks for so many heads in each, and in how many pieces they cut a unit when all sequences are equally long: 1 where units stay whole, 0 where that
 * leaves too much of the GPU idle. Each unit that a block begins costs time, and so does putting pieces together.
 */
static int64_t deal_out(const attention_call *c, const attention_decode_build *b, int head_warps, struct attention_decode_args *d)
{
    const int64_t most  = blocks_at_once(c, b);
    const int64_t units = (int64_t)c->a.batch * c->a.kv_heads / head_warps, pieces = units ? most / units : most, rounds = (units + most - 1) / most;
    *d        = (struct attention_decode_args){ .a = c->a, .rows = c->a.max_q * c->a.group, .head_warps = head_warps, .key_warps = b->warps / head_warps, .units = c->a.kv_heads / head_warps };
    d->blocks = (int32_t)(units == 0 ? 1 : pieces ? units * pieces
                                                  : (units + rounds - 1) / rounds);

    const int64_t in_pieces = 16 / sgk_dtype_size(c->a.dtype);
    d->k_batch = (uint32_t)(c->a.k_batch_stride / in_pieces), d->k_row = (uint32_t)(c->a.k_row_stride / in_pieces);
    d->v_batch = (uint32_t)(c->a.v_batch_stride / in_pieces), d->v_row = (uint32_t)(c->a.v_row_stride / in_pieces);
    d->page_shift = -1;
    if (c->a.page_size > 0 && (c->a.page_size & (c->a.page_size - 1)) == 0)
        while (c->a.page_size >> ++d->page_shift > 1) continue;

    const int64_t rows = (int64_t)c->a.heads * c->a.max_q, wanted = c->a.batch ? 4 * c->device->multiprocessors / c->a.batch : 1;
    d->second_blocks = (int32_t)(wanted < 1 ? 1 : wanted > rows ? rows
                                                                : wanted);
    return d->blocks * 10 < most * 9 ? 0 : pieces < 1 ? 1
                                                      : pieces;
}

/* A lone sequence: the largest clusters whose blocks are no more than multiprocessors, if they are two fifths of these. They need no second kernel, which
 * is worth more than the multiprocessors that they leave idle until there is much to read. */
static bool join(const attention_call *c, const attention_decode_build *b, struct attention_decode_args *d)
{
    if (c->a.batch != 1 || b->kernel.archs != SGK_ARCH_90A) return false;
    const int64_t multiprocessors = c->device->multiprocessors, keys = c->a.max_k < (int64_t)c->a.window_left + c->a.max_q ? c->a.max_k : (int64_t)c->a.window_left + c->a.max_q;
    int           blocks = MOST_JOINED;
    while (blocks > 1 && c->a.kv_heads * blocks > multiprocessors) blocks /= 2;
    if (blocks == 1 || c->a.kv_heads * blocks * 10 < multiprocessors * 4) return false;
    if (c->a.kv_heads * blocks * 4 < multiprocessors * 3 && keys * 2 * c->a.dim * (int64_t)sgk_dtype_size(c->a.dtype) > (int64_t)blocks * MOST_JOINED_BYTES) return false;
    deal_out(c, b, 1, d);
    d->join   = blocks;
    d->blocks = c->a.kv_heads * blocks;
    for (int apart = 16 * b->warps * blocks; apart > 1; apart /= 2) ++d->join_shift;
    return true;
}

/* Whole units where that can be, else few pieces; of these the build that comes first; and as many heads in a block as can be, because neighbouring heads'
 * rows lie side by side in memory. Where no such cut keeps the GPU busy, as many blocks as there can be, and units are cut wherever an equal share ends. */
static attention_decode_build *choose(const attention_call *c, struct attention_decode_args *d)
{
    static const int64_t    pieces[] = { 1, 4, MOST_PIECES };
    const bool              simple   = plain(&c->a);
    attention_decode_build *joined = simple ? build_of(c, 2, NULL) : NULL, *dealt = simple ? build_of(c, 1, NULL) : NULL, *general = build_of(c, 0, NULL);
    if (!joined) joined = general;
    if (join(c, joined, d)) return joined;
    if (!dealt) dealt = general;
    for (size_t i = 0; i < COUNT(pieces); ++i)
        for (attention_decode_build *b = dealt; b; b = b->plain ? build_of(c, b->plain, b) : NULL)
            for (int head_warps = b->warps; head_warps >= 1; head_warps /= 2) {
                if (c->a.kv_heads % head_warps) continue;
                const int64_t cut = deal_out(c, b, head_warps, d);
                if (cut > 0 && cut <= pieces[i]) return b;
            }
    const int64_t most       = blocks_at_once(c, dealt);
    int           head_warps = dealt->warps;
    while (head_warps > 1 && (c->a.kv_heads % head_warps || (int64_t)c->a.batch * c->a.kv_heads / head_warps * MOST_PIECES < most)) head_warps /= 2;
    deal_out(c, dealt, head_warps, d);
    if ((int64_t)c->a.batch * c->a.kv_heads / head_warps * MOST_PIECES >= most) d->blocks = (int32_t)most;
    return dealt;
}

/* Parts of units: as many blocks as there can be, which changes no numbers. */
static attention_decode_build *choose_parts(const attention_call *c, struct attention_decode_args *d)
{
    attention_decode_build *b = build_of(c, 0, NULL);
    deal_out(c, b, 1, d);
    const int64_t rows = rows_of(&c->a), chunks = attention_decode_chunks(c->a.max_k), parts = attention_at_most(chunks, ATTENTION_DECODE_PARTS);
    d->rows   = attention_at_most(rows, ATTENTION_DECODE_ROWS);
    d->slots  = (int32_t)(c->a.kv_heads * most_units(&c->a) * parts);
    d->blocks = attention_at_most(c->a.batch * (int64_t)d->slots, blocks_at_once(c, b));
    return b;
}

static bool any_pieces(const struct attention_decode_args *d) { return !d->join && !(d->slots && attention_decode_chunks(d->a.max_k) == 1); }

static attention_decode_build *choose_for(const attention_call *c, struct attention_decode_args *d) { return c->a.only_up_to ? choose_parts(c, d) : choose(c, d); }

static int64_t plan(attention_call *c)
{
    struct attention_decode_args d;
    c->build = choose_for(c, &d);
    return any_pieces(&d) ? piece_bytes(&d, c->a.dim) + piece_bytes(&d, 1) : 0;
}

static sgk_status run(attention_call *c, void *scratch)
{
    struct attention_decode_args d;
    attention_decode_build      *b = choose_for(c, &d);
    if (any_pieces(&d)) {
        d.partial_out = scratch;
        d.partial_lse = (float *)((char *)scratch + piece_bytes(&d, c->a.dim));
    }
    SGK_LOG_BUILD(c->exec, c->op, &b->kernel, "");
    const sgk_launch shape = { .grid = { d.blocks }, .block = { 32u * (unsigned)b->warps }, .shared_memory = (unsigned)shared_memory(b), .cluster = (unsigned)d.join };
    SGK_TRY(sgk_cuda_launch(c->op, &b->kernel, &shape, c->m.device.device_id, c->exec, &d, sizeof d));

    if (!any_pieces(&d)) return SGK_OK;
    /* The second kernel waits for the first within itself, so it may be on its way early. */
    attention_decode_combine_build *combine = attention_decode_combine_builds;
    while (combine->dtype != c->a.out_dtype || combine->parts != b->parts) ++combine;
    const sgk_launch second = { .grid = { (int64_t)c->a.batch * d.second_blocks }, .block = { 128 }, .overlap = true };
    return sgk_cuda_launch(c->op, &combine->kernel, &second, c->m.device.device_id, c->exec, &d, sizeof d);
}

const attention_form attention_decode = { "decode", passes, plan, run };
