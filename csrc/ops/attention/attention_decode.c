/* The form for few queries a sequence: see attention_decode.h. */
#include "attention_decode.h"
#include "attention_call.h"

/* Two blocks of each fit a multiprocessor of sm_90, and one of sm_86 but for the largest head size. */
/* clang-format off */
#define DECODE(type, eight, dtype, archs, dim, warps, stages)                                                                                  \
    { SGK_KERNEL("attention/attention_decode.cu", "attention_decode",                                                                  \
                 "-DT=" #type " -DEIGHT=" #eight " -DDIM=" #dim " -DWARPS=" #warps " -DSTAGES=" #stages, archs), dtype, dim, warps, stages }
#define DECODES(type, dtype)                          \
    DECODE(type, 0, dtype, SGK_GENERAL,  64, 4, 6),   \
    DECODE(type, 0, dtype, SGK_GENERAL, 128, 4, 3),   \
    DECODE(type, 0, dtype, SGK_GENERAL, 256, 2, 3)
#define E4M3_ARCHS (SGK_GENERAL & ~SGK_ARCH_80)     /* those with an instruction that widens e4m3 */
attention_decode_build attention_decode_builds[ATTENTION_DECODE_BUILDS] = {
    DECODES(f16, SGK_F16), DECODES(bf16, SGK_BF16),
    DECODE(e4m3, 1, SGK_E4M3, E4M3_ARCHS,  64, 4, 8),
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

static attention_decode_build *build_of(const attention_call *c)
{
    for (size_t i = 0; i < ATTENTION_DECODE_BUILDS; ++i) {
        attention_decode_build *b = &attention_decode_builds[i];
        if (b->dtype == c->a.dtype && b->dim >= c->a.dim && sgk_kernel_fits(&b->kernel, c->device) && shared_memory(b) + RESERVED <= c->device->shared_memory_per_block) return b;
    }
    return NULL;
}

static const char *passes(const attention_call *c)
{
    const struct attention_args *a = &c->a;
    if (a->dtype == SGK_F32) return "f32";
    if ((int64_t)a->max_q * a->group > 16) return "more than 16 rows a sequence";
    if (a->dim != a->dim_v || a->q_v) return "head sizes differ";
    if (a->apart) return "new keys apart";
    if (sgk_exec_batch_invariant(c->exec)) return "batch invariant";
    if (c->o.num_splits) return "num_splits given";
    if (!attention_in_pieces(a, 16) || !attention_rows_in_pieces(a->out, a->out_batch_stride, a->out_row_stride, a->out_head_stride, a->out_dtype, 16)) return "q, k, v or out not in 16-byte pieces";
    if ((int64_t)a->batch * a->kv_heads * (a->max_k / 16 + 1) > INT32_MAX / 4) return "too many keys";
    return build_of(c) ? NULL : "no build for this head size on this device";
}

static int64_t piece_bytes(const struct attention_decode_args *d, int64_t width) { return (2 * (int64_t)d->blocks * d->head_warps * d->rows * width * 4 + 255) / 256 * 256; }

/*
 * Sequences of one length shall fall into whole units a block, or whole blocks a unit, because each unit that a block begins costs time. Of the
 * numbers of heads in a block that keep enough blocks at work, the largest: neighbouring heads' rows lie side by side in memory. But a unit in
 * many pieces is slow to put together.
 */
static struct attention_decode_args fill(const attention_call *c, const attention_decode_build *b)
{
    struct attention_decode_args d          = { .a = c->a, .rows = c->a.max_q * c->a.group };
    const int64_t                per_device = c->device->shared_memory_per_multiprocessor / (shared_memory(b) + RESERVED);
    const int64_t                most       = c->device->multiprocessors * (per_device < 1 ? 1 : per_device > 2 ? 2
                                                                                                                : per_device);
    for (d.head_warps = b->warps; d.head_warps >= 1; d.head_warps /= 2) {
        if (c->a.kv_heads % d.head_warps) continue;
        const int64_t units = (int64_t)c->a.batch * c->a.kv_heads / d.head_warps, each = units ? most / units : 0;
        if (units == 0) break;
        d.blocks = (int32_t)(each ? units * each : (units + (units + most - 1) / most - 1) / ((units + most - 1) / most));
        if (d.head_warps == 1 || (each <= MOST_PIECES && d.blocks * 10 >= most * 9)) break;
    }
    if (d.head_warps < 1) d.head_warps = 1;
    if (d.blocks < 1) d.blocks = 1;
    d.key_warps = b->warps / d.head_warps;
    d.units     = c->a.kv_heads / d.head_warps;
    return d;
}

static int64_t plan(attention_call *c)
{
    const attention_decode_build      *b = build_of(c);
    const struct attention_decode_args d = fill(c, b);
    c->build                             = b;
    return piece_bytes(&d, c->a.dim) + piece_bytes(&d, 1);
}

static sgk_status run(attention_call *c, void *scratch)
{
    attention_decode_build      *b = (attention_decode_build *)c->build;
    struct attention_decode_args d = fill(c, b);
    d.partial_out                  = scratch;
    d.partial_lse                  = (float *)((char *)d.partial_out + piece_bytes(&d, c->a.dim));
    SGK_LOG_BUILD(c->exec, c->op, &b->kernel, "");
    const sgk_launch shape = { .grid = { d.blocks }, .block = { 32u * (unsigned)b->warps }, .shared_memory = (unsigned)shared_memory(b) };
    SGK_TRY(sgk_cuda_launch(c->op, &b->kernel, &shape, c->m.device.device_id, c->exec, &d, sizeof d));

    /* The second kernel waits for the first within itself, so it may be on its way early. */
    attention_decode_combine_build *combine = attention_decode_combine_builds;
    while (combine->dtype != c->a.out_dtype) ++combine;
    const sgk_launch second = { .grid = { (int64_t)c->a.batch * c->a.heads * c->a.max_q }, .block = { 128 }, .overlap = true };
    return sgk_cuda_launch(c->op, &combine->kernel, &second, c->m.device.device_id, c->exec, &d, sizeof d);
}

const attention_form attention_decode = { "decode", passes, plan, run };
