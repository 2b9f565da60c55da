/* The form for few queries a sequence: see attention_decode.h. */
#include "attention_decode.h"
#include "attention_call.h"

/* Two blocks of four warps fit a multiprocessor of sm_90, and one of sm_86; of eight, one of sm_90. */
/* clang-format off */
#define DECODE(type, eight, dtype, archs, dim, warps, stages)                                                                                  \
    { SGK_KERNEL("attention/attention_decode.cu", "attention_decode",                                                                  \
                 "-DT=" #type " -DEIGHT=" #eight " -DDIM=" #dim " -DWARPS=" #warps " -DSTAGES=" #stages, archs), dtype, dim, warps, stages }
#define DECODES(type, dtype)                          \
    DECODE(type, 0, dtype, SGK_ARCH_90A, 64, 8, 6),   \
    DECODE(type, 0, dtype, SGK_GENERAL,  64, 4, 6),   \
    DECODE(type, 0, dtype, SGK_ARCH_90A, 128, 8, 3),  \
    DECODE(type, 0, dtype, SGK_GENERAL, 128, 4, 3),   \
    DECODE(type, 0, dtype, SGK_GENERAL, 256, 2, 3)
#define E4M3_ARCHS (SGK_GENERAL & ~SGK_ARCH_80)     /* those with an instruction that widens e4m3 */
attention_decode_build attention_decode_builds[ATTENTION_DECODE_BUILDS] = {
    DECODES(f16, SGK_F16), DECODES(bf16, SGK_BF16),
    DECODE(e4m3, 1, SGK_E4M3, E4M3_ARCHS,  64, 4, 8),
    DECODE(e4m3, 1, SGK_E4M3, SGK_ARCH_90A, 128, 8, 6),
    DECODE(e4m3, 1, SGK_E4M3, E4M3_ARCHS, 128, 4, 6),
};

attention_decode_combine_build attention_decode_combine_builds[ATTENTION_DECODE_COMBINE_BUILDS] = {
    { SGK_KERNEL("attention/attention_decode_combine.cu", "attention_decode_combine", "-DT=f16",  SGK_GENERAL), SGK_F16 },
    { SGK_KERNEL("attention/attention_decode_combine.cu", "attention_decode_combine", "-DT=bf16", SGK_GENERAL), SGK_BF16 },
};
/* clang-format on */

enum { RESERVED    = 2048,         /* static shared memory and what the driver keeps of a block's */
       MOST_PIECES = 8 };

static int64_t shared_memory(const attention_decode_build *b)
{
    const int64_t rings = (int64_t)b->warps * b->stages * 32 * b->dim * sgk_dtype_size(b->dtype);
    return b->dim > 128 ? rings + (int64_t)b->warps * 32 * b->dim : rings;
}

/* The next build for this head size after `last` (NULL: the first) that the device can run. */
static attention_decode_build *build_after(const attention_call *c, attention_decode_build *last)
{
    for (attention_decode_build *b = last ? last + 1 : attention_decode_builds; b < attention_decode_builds + ATTENTION_DECODE_BUILDS; ++b)
        if (b->dtype == c->a.dtype && b->dim >= c->a.dim && (!last || b->dim == last->dim) && sgk_kernel_fits(&b->kernel, c->device) && shared_memory(b) + RESERVED <= c->device->shared_memory_per_block) return b;
    return NULL;
}

static const char *passes(const attention_call *c)
{
    const struct attention_args *a = &c->a;
    if (a->dtype == SGK_F32) return "f32";
    if ((int64_t)a->max_q * a->group > 16) return "more than 16 rows a sequence";
    if (a->dim != a->dim_v || a->q_v) return "head sizes differ";
    if (a->dim % 8) return "a head size that is no multiple of 8";
    if (a->apart) return "new keys apart";
    if (sgk_exec_batch_invariant(c->exec)) return "batch invariant";
    if (c->o.num_splits) return "num_splits given";
    if (!attention_in_pieces(a, 16) || !attention_rows_in_pieces(a->out, a->out_batch_stride, a->out_row_stride, a->out_head_stride, a->out_dtype, 16)) return "q, k, v or out not in 16-byte pieces";
    if ((int64_t)a->batch * a->kv_heads * (a->max_k / 16 + 1) > INT32_MAX / 4) return "too many keys";
    return build_after(c, NULL) ? NULL : "no build for this head size on this device";
}

static int64_t piece_bytes(const struct attention_decode_args *d, int64_t width) { return (2 * (int64_t)d->blocks * d->head_warps * d->rows * width * 4 + 255) / 256 * 256; }

/*
 * Blocks for so many heads in each, and in how many pieces they cut a unit when all sequences are equally long: 1 where units stay whole, 0 where that
 * leaves too much of the GPU idle. Each unit that a block begins costs time, and so does putting pieces together.
 */
static int64_t deal_out(const attention_call *c, const attention_decode_build *b, int head_warps, struct attention_decode_args *d)
{
    const int64_t fit = c->device->shared_memory_per_multiprocessor / (shared_memory(b) + RESERVED), most = c->device->multiprocessors * (fit < 1 ? 1 : fit > 2 ? 2
                                                                                                                                                                : fit);
    const int64_t units = (int64_t)c->a.batch * c->a.kv_heads / head_warps, pieces = units ? most / units : most, rounds = (units + most - 1) / most;
    *d        = (struct attention_decode_args){ .a = c->a, .rows = c->a.max_q * c->a.group, .head_warps = head_warps, .key_warps = b->warps / head_warps, .units = c->a.kv_heads / head_warps };
    d->blocks = (int32_t)(units == 0 ? 1 : pieces ? units * pieces
                                                  : (units + rounds - 1) / rounds);

    const int64_t rows = (int64_t)c->a.heads * c->a.max_q, wanted = c->a.batch ? 4 * c->device->multiprocessors / c->a.batch : 1;
    d->second_blocks = (int32_t)(wanted < 1 ? 1 : wanted > rows ? rows
                                                                : wanted);
    return d->blocks * 10 < most * 9 ? 0 : pieces < 1 ? 1
                                                      : pieces;
}

/* Whole units where that can be, else few pieces; then the larger block, and as many heads in it as can be, because neighbouring heads' rows lie side by
 * side in memory. */
static attention_decode_build *choose(const attention_call *c, struct attention_decode_args *d)
{
    static const int64_t pieces[] = { 1, 4, 32 };
    for (size_t i = 0; i < COUNT(pieces); ++i)
        for (attention_decode_build *b = build_after(c, NULL); b; b = build_after(c, b))
            for (int head_warps = b->warps; head_warps >= 1; head_warps /= 2) {
                if (c->a.kv_heads % head_warps) continue;
                const int64_t cut = deal_out(c, b, head_warps, d);
                if (cut > 0 && cut <= pieces[i]) return b;
            }
    attention_decode_build *b = build_after(c, NULL);
    while (build_after(c, b)) b = build_after(c, b);
    deal_out(c, b, 1, d);
    return b;
}

static int64_t plan(attention_call *c)
{
    struct attention_decode_args d;
    c->build = choose(c, &d);
    return piece_bytes(&d, c->a.dim) + piece_bytes(&d, 1);
}

static sgk_status run(attention_call *c, void *scratch)
{
    struct attention_decode_args d;
    attention_decode_build      *b = choose(c, &d);
    d.partial_out                  = scratch;
    d.partial_lse                  = (float *)((char *)d.partial_out + piece_bytes(&d, c->a.dim));
    SGK_LOG_BUILD(c->exec, c->op, &b->kernel, "");
    const sgk_launch shape = { .grid = { d.blocks }, .block = { 32u * (unsigned)b->warps }, .shared_memory = (unsigned)shared_memory(b) };
    SGK_TRY(sgk_cuda_launch(c->op, &b->kernel, &shape, c->m.device.device_id, c->exec, &d, sizeof d));

    /* The second kernel waits for the first within itself, so it may be on its way early. */
    attention_decode_combine_build *combine = attention_decode_combine_builds;
    while (combine->dtype != c->a.out_dtype) ++combine;
    const sgk_launch second = { .grid = { (int64_t)c->a.batch * d.second_blocks }, .block = { 128 }, .overlap = true };
    return sgk_cuda_launch(c->op, &combine->kernel, &second, c->m.device.device_id, c->exec, &d, sizeof d);
}

const attention_form attention_decode = { "decode", passes, plan, run };
