/* The general forms on the GPU: any GPU from sm_80 on, every option. */
#include "attention_call.h"

/*
 * attention_mma.cu: f16 and bf16, 16-byte rows. DIM is the largest head size a build takes. WARPS_M warps share the rows of a
 * block, 16 each; WARPS_N warps share the keys of a tile of TILE keys. Many rows (prefill): 4 x 1; few (decode): 1 x 4.
 */
#define MMA(type, dtype, dim, m, n, tile) \
    { SGK_KERNEL("attention/attention_mma.cu", "attention_mma", "-DT=" type " -DDIM=" #dim " -DWARPS_M=" #m " -DWARPS_N=" #n " -DTILE=" #tile, SGK_GENERAL), \
      dtype, dim, m, n, tile }
#define MMAS(type, dtype) \
    MMA(type, dtype, 64, 1, 4, 64), MMA(type, dtype, 128, 1, 4, 64), MMA(type, dtype, 256, 1, 2, 32), \
        MMA(type, dtype, 64, 4, 1, 64), MMA(type, dtype, 96, 4, 1, 64), MMA(type, dtype, 128, 4, 1, 64), \
        MMA(type, dtype, 192, 4, 1, 32), MMA(type, dtype, 256, 4, 1, 32)

attention_mma_build attention_mma_builds[ATTENTION_MMA_BUILDS] = { MMAS("f16", SGK_F16), MMAS("bf16", SGK_BF16) };

/* attention_wide.cu: f16, bf16 and e4m3, any head sizes and alignment; attention.cu: f32, with DIM the largest head size of v. */
/* clang-format off */
attention_plain_build attention_wide_builds[ATTENTION_WIDE_BUILDS] = {
    { SGK_KERNEL("attention/attention_wide.cu", "attention_wide", "-DT=f16 -DCODE=0 -DSPARSE=0",  SGK_GENERAL), SGK_F16,  512 },
    { SGK_KERNEL("attention/attention_wide.cu", "attention_wide", "-DT=bf16 -DCODE=0 -DSPARSE=0", SGK_GENERAL), SGK_BF16, 512 },
    { SGK_KERNEL("attention/attention_wide.cu", "attention_wide", "-DT=f16 -DCODE=1 -DSPARSE=0",  SGK_GENERAL), SGK_E4M3, 512 },
};
attention_plain_build attention_plain_builds[ATTENTION_PLAIN_BUILDS] = {
    { SGK_KERNEL("attention/attention.cu", "attention", "-DDIM=128", SGK_GENERAL), SGK_F32, 128 },
    { SGK_KERNEL("attention/attention.cu", "attention", "-DDIM=512", SGK_GENERAL), SGK_F32, 512 },
};
/* clang-format on */

static int64_t plan(attention_call *c)
{
    struct attention_args *a    = &c->a;
    const int64_t          rows = (int64_t)a->max_q * a->group;
    a->row_blocks               = (int32_t)((rows + c->rows - 1) / c->rows);
    a->splits                   = attention_choose_splits(c, (int64_t)a->row_blocks * a->kv_heads * a->batch);
    return attention_partial_bytes(a);
}

static sgk_status run(attention_call *c, sgk_kernel *kernel, const char *why, void *scratch)
{
    struct attention_args *a = &c->a;
    attention_set_partials(a, scratch);
    SGK_LOG_BUILD(c->exec, c->op, kernel, why);
    const sgk_launch shape = { .grid = { (int64_t)a->row_blocks * a->kv_heads * a->batch * a->splits }, .block = { (unsigned)c->threads }, .shared_memory = c->shared_memory };
    SGK_TRY(sgk_cuda_launch(c->op, kernel, &shape, c->m.device.device_id, c->exec, a, sizeof *a));
    return attention_combine_parts(c);
}

/* ---- matrix units ------------------------------------------------------------------------------------------------ */

/* The longest sequence decides, so a batch-invariant call has no choice here. */
static const attention_mma_build *mma_build_of(const attention_call *c)
{
    const struct attention_args *a   = &c->a;
    const bool                   few = (int64_t)a->max_q * a->group <= 16 && !sgk_exec_batch_invariant(c->exec);
    for (size_t i = 0; i < ATTENTION_MMA_BUILDS; ++i) {
        const attention_mma_build *b = &attention_mma_builds[i];
        if (b->dtype == a->dtype && b->dim >= a->dim && b->dim >= a->dim_v && (b->warps_m == 1) == few) return b;
    }
    return NULL;
}

static const char *mma_passes(attention_call *c)
{
    const struct attention_args *a = &c->a;
    if (a->q_v) return "q_v";
    if (!mma_build_of(c)) return a->dtype == SGK_F32 ? "f32" : a->dtype == SGK_E4M3 ? "e4m3"
                                                                                    : "a head size above 256";
    if (a->dim % 8 || a->dim_v % 8) return "a head size that is no multiple of 8";
    if (!attention_in_pieces(a, 16) || !attention_rows_in_pieces(a->out, a->out_batch_stride, a->out_row_stride, a->out_head_stride, a->out_dtype, 16))
        return "q, k, v or out not in 16-byte pieces";
    return NULL;
}

static int64_t mma_plan(attention_call *c)
{
    const attention_mma_build *b = mma_build_of(c);
    c->build = b, c->rows = 16 * b->warps_m, c->threads = 32 * b->warps_m * b->warps_n, c->tile = b->tile;
    c->shared_memory = (unsigned)((16 * b->warps_m + 4 * b->tile) * b->dim * 2);
    return plan(c);
}

static sgk_status mma_run(attention_call *c, void *scratch) { return run(c, &((attention_mma_build *)c->build)->kernel, "", scratch); }

const attention_form attention_mma = { "mma", mma_passes, mma_plan, mma_run };

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

static const char *wide_passes(attention_call *c) { return c->a.dtype == SGK_F32 ? "f32" : NULL; }

static int64_t wide_plan(attention_call *c)
{
    const struct attention_args *a = &c->a;
    const attention_plain_build *b = attention_wide_builds;
    while (b->dtype != a->dtype) ++b;
    const int slabs = (a->dim + 63) / 64 + (a->q_v ? (a->dim_v + 63) / 64 : 0);
    c->build = b, c->rows = 32, c->threads = 256, c->tile = 64;
    c->shared_memory = (unsigned)(slabs * 32 * 128 + 2 * 64 * 128 + 32 * 128);
    return plan(c);
}

static sgk_status wide_run(attention_call *c, void *scratch) { return run(c, &((attention_plain_build *)c->build)->kernel, "", scratch); }

const attention_form attention_wide = { "wide", wide_passes, wide_plan, wide_run };

static const char *plain_passes(attention_call *c) { return c->a.dtype == SGK_F32 ? NULL : "not f32"; }

static int64_t plain_plan(attention_call *c)
{
    const attention_plain_build *b = attention_plain_builds;
    while (b->dim < c->a.dim_v) ++b;
    c->build = b, c->rows = 32, c->threads = 128, c->tile = 32;
    c->shared_memory = 0;
    return plan(c);
}

static sgk_status plain_run(attention_call *c, void *scratch) { return run(c, &((attention_plain_build *)c->build)->kernel, " (f32)", scratch); }

const attention_form attention_plain = { "plain", plain_passes, plain_plan, plain_run };
