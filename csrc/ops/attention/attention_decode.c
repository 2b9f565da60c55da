/* The form for few queries a sequence: see attention_decode.h. */
#include "attention_decode.h"
#include "attention_call.h"

/* Best first for a head size; a device takes the first whose shared memory it has. */
/* clang-format off */
#define DECODE(type, eight, dtype, archs, dim, warps, stages)                                                                                  \
    { SGK_KERNEL("attention/attention_decode.cu", "attention_decode",                                                                  \
                 "-DT=" #type " -DEIGHT=" #eight " -DDIM=" #dim " -DWARPS=" #warps " -DSTAGES=" #stages, archs), dtype, dim, warps, stages }
#define DECODES(type, dtype)                             \
    DECODE(type, 0, dtype, SGK_GENERAL,  64, 8, 6),         \
    DECODE(type, 0, dtype, SGK_GENERAL,  64, 4, 6),         \
    DECODE(type, 0, dtype, SGK_GENERAL, 128, 8, 3),         \
    DECODE(type, 0, dtype, SGK_GENERAL, 128, 4, 3),         \
    DECODE(type, 0, dtype, SGK_GENERAL, 256, 4, 2)
#define E4M3_ARCHS (SGK_GENERAL & ~SGK_ARCH_80)     /* those with an instruction that widens e4m3 */
attention_decode_build attention_decode_builds[ATTENTION_DECODE_BUILDS] = {
    DECODES(f16, SGK_F16), DECODES(bf16, SGK_BF16),
    DECODE(e4m3, 1, SGK_E4M3, E4M3_ARCHS,  64, 8, 8),
    DECODE(e4m3, 1, SGK_E4M3, E4M3_ARCHS, 128, 8, 6),
    DECODE(e4m3, 1, SGK_E4M3, E4M3_ARCHS, 128, 4, 6),
};

attention_decode_combine_build attention_decode_combine_builds[ATTENTION_DECODE_COMBINE_BUILDS] = {
    { SGK_KERNEL("attention/attention_decode_combine.cu", "attention_decode_combine", "-DT=f16",  SGK_GENERAL), SGK_F16 },
    { SGK_KERNEL("attention/attention_decode_combine.cu", "attention_decode_combine", "-DT=bf16", SGK_GENERAL), SGK_BF16 },
};
/* clang-format on */

enum { RESERVED = 2048 };       /* static shared memory and what the driver keeps of a block's */

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

static int64_t piece_bytes(const struct attention_decode_args *d, int64_t width) { return 2 * (int64_t)d->blocks * d->head_warps * d->rows * width * 4; }
static int64_t plan_bytes(const struct attention_decode_args *d) { return ((int64_t)d->a.batch + 1 + 63) / 64 * 256; }

/* As many key heads in a block as leave each sequence in few pieces: neighbouring heads' rows lie side by side in memory. */
static struct attention_decode_args fill(const attention_call *c, const attention_decode_build *b)
{
    struct attention_decode_args d          = { .a = c->a, .rows = c->a.max_q * c->a.group };
    const int64_t                per_device = c->device->shared_memory_per_multiprocessor / (shared_memory(b) + RESERVED);
    d.blocks                                = (int32_t)(c->device->multiprocessors * (per_device < 1 ? 1 : per_device > 2 ? 2
                                                                                                                          : per_device));
    d.head_warps                            = 1;
    while (d.head_warps < b->warps && c->a.kv_heads % (2 * d.head_warps) == 0 && (int64_t)c->a.batch * c->a.kv_heads / (2 * d.head_warps) * 16 >= d.blocks) d.head_warps *= 2;
    d.key_warps = b->warps / d.head_warps;
    d.units     = c->a.kv_heads / d.head_warps;
    return d;
}

static int64_t plan(attention_call *c)
{
    const attention_decode_build      *b = build_of(c);
    const struct attention_decode_args d = fill(c, b);
    c->build                             = b;
    return plan_bytes(&d) + piece_bytes(&d, c->a.dim) + piece_bytes(&d, 1);
}

static sgk_status run(attention_call *c, void *scratch)
{
    attention_decode_build      *b = (attention_decode_build *)c->build;
    struct attention_decode_args d = fill(c, b);
    d.plan                         = scratch;
    d.partial_out                  = (float *)((char *)scratch + plan_bytes(&d));
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
