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

/* attention.cu: any format, any alignment, multiply-adds in f32; and the kernel that combines parts. */
#define PLAIN(type, dtype, dim) { SGK_KERNEL("attention/attention.cu", "attention", "-DT=" type " -DDIM=" #dim, SGK_GENERAL), dtype, dim }
attention_plain_build attention_plain_builds[ATTENTION_PLAIN_BUILDS] = {
    PLAIN("f32", SGK_F32, 64),
    PLAIN("f32", SGK_F32, 128),
    PLAIN("f32", SGK_F32, 256),
    PLAIN("f16", SGK_F16, 256),
    PLAIN("bf16", SGK_BF16, 256),
};

static const char *general(const struct attention_args *a)
{
    return a->q_v ? "q_v" : a->sinks           ? "sinks"
                        : a->softcap != 0      ? "softcap"
                        : a->dim != a->dim_v   ? "head sizes differ"
                        : a->dim > 256         ? "head size above 256"
                        : a->dtype == SGK_E4M3 ? "e4m3"
                        : a->apart             ? "new keys apart"
                                               : NULL;
}

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

static const char *mma_passes(const attention_call *c)
{
    const struct attention_args *a = &c->a;
    if (general(a)) return general(a);
    if (a->dtype == SGK_F32) return "f32";
    return attention_in_pieces(a, 16) && attention_rows_in_pieces(a->out, a->out_batch_stride, a->out_row_stride, a->out_head_stride, a->out_dtype, 16) ? NULL : "q, k, v or out not in 16-byte pieces";
}

static int64_t mma_plan(attention_call *c)
{
    const struct attention_args *a = &c->a;
    /* The longest sequence decides, so a batch-invariant call has no choice here. */
    const bool                 few = (int64_t)a->max_q * a->group <= 16 && !sgk_exec_batch_invariant(c->exec);
    const attention_mma_build *b   = attention_mma_builds;
    while (b->dtype != a->dtype || b->dim < a->dim || (b->warps_m == 1) != few) ++b;
    c->build = b, c->rows = 16 * b->warps_m, c->threads = 32 * b->warps_m * b->warps_n, c->tile = b->tile;
    c->shared_memory = (unsigned)((16 * b->warps_m + 4 * b->tile) * b->dim * 2);
    return plan(c);
}

static sgk_status mma_run(attention_call *c, void *scratch) { return run(c, &((attention_mma_build *)c->build)->kernel, "", scratch); }

const attention_form attention_mma = { "mma", mma_passes, mma_plan, mma_run };

/* ---- multiply-adds ----------------------------------------------------------------------------------------------- */

enum { PLAIN_ROWS    = 32,
       PLAIN_TILE    = 32,
       PLAIN_THREADS = 128 };

static const char *plain_passes(const attention_call *c) { return general(&c->a); }

static int64_t plain_plan(attention_call *c)
{
    const struct attention_args *a = &c->a;
    const attention_plain_build *b = attention_plain_builds;
    while (b->dtype != a->dtype || b->dim < a->dim) ++b;
    c->build = b, c->rows = PLAIN_ROWS, c->threads = PLAIN_THREADS, c->tile = PLAIN_TILE;
    c->shared_memory = (unsigned)(((PLAIN_ROWS + PLAIN_TILE) * (b->dim + 4) + PLAIN_ROWS * (PLAIN_TILE + 1)) * 4);
    return plan(c);
}

static sgk_status plain_run(attention_call *c, void *scratch)
{
    return run(c, &((attention_plain_build *)c->build)->kernel, c->a.dtype == SGK_F32 ? " (f32)" : " (q, k, v or out not in 16-byte pieces: slow)", scratch);
}

const attention_form attention_plain = { "plain", plain_passes, plain_plan, plain_run };
