/* The forms of attention on the GPU, in their order, and what all of them share: appending, parts of the keys and their combination. */
#include "attention_call.h"
#include "attention_lightning.h"
#include "attention_merge.h"
#include "attention_metadata.h"
#include "attention_pool.h"
#include "attention_slash.h"
#include "attention_sparse.h"

/*
 * Best first: the first form that takes a call runs it. The last ones are general and take every call.
 */
static const attention_form *const attention_forms[] = { &attention_wgmma, &attention_decode, &attention_mma, &attention_wide, &attention_plain };

typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
} format_build;

/* clang-format off */
static format_build combine_builds[] = {
    { SGK_KERNEL("attention/attention_combine.cu", "attention_combine", "-DT=f32",  SGK_GENERAL), SGK_F32 },
    { SGK_KERNEL("attention/attention_combine.cu", "attention_combine", "-DT=f16",  SGK_GENERAL), SGK_F16 },
    { SGK_KERNEL("attention/attention_combine.cu", "attention_combine", "-DT=bf16", SGK_GENERAL), SGK_BF16 },
};
/* clang-format on */

/* attention_append.cu: PIECE is the unit that is copied, uint4 (16 bytes) where every row allows it. */
typedef struct {
    sgk_kernel kernel;
    int        piece;
} append_build;
/* clang-format off */
static append_build append_builds[] = {
    { SGK_KERNEL("attention/attention_append.cu", "attention_append", "-DPIECE=uint4",    SGK_GENERAL), 16 },
    { SGK_KERNEL("attention/attention_append.cu", "attention_append", "-DPIECE=uint32_t", SGK_GENERAL), 4 },
    { SGK_KERNEL("attention/attention_append.cu", "attention_append", "-DPIECE=uint16_t", SGK_GENERAL), 2 },
    { SGK_KERNEL("attention/attention_append.cu", "attention_append", "-DPIECE=uint8_t",  SGK_GENERAL), 1 },
};
/* clang-format on */

/* clang-format off */
static format_build rotate_builds[] = {
    { SGK_KERNEL("attention/attention_rotate.cu", "attention_rotate", "-DT=f32",     SGK_GENERAL), SGK_F32 },
    { SGK_KERNEL("attention/attention_rotate.cu", "attention_rotate", "-DT=f16",     SGK_GENERAL), SGK_F16 },
    { SGK_KERNEL("attention/attention_rotate.cu", "attention_rotate", "-DT=bf16",    SGK_GENERAL), SGK_BF16 },
    { SGK_KERNEL("attention/attention_rotate.cu", "attention_rotate", "-DT=uint8_t", SGK_GENERAL), SGK_E4M3 },
};
/* clang-format on */

const sgk_kernel_table attention_kernels[] = {
    SGK_KERNEL_TABLE(attention_wgmma_builds),
    SGK_KERNEL_TABLE(attention_order_builds),
    SGK_KERNEL_TABLE(attention_gather_builds),
    SGK_KERNEL_TABLE(attention_decode_builds),
    SGK_KERNEL_TABLE(attention_decode_combine_builds),
    SGK_KERNEL_TABLE(attention_mma_builds),
    SGK_KERNEL_TABLE(attention_wide_builds),
    SGK_KERNEL_TABLE(attention_plain_builds),
    SGK_KERNEL_TABLE(combine_builds),
    SGK_KERNEL_TABLE(append_builds),
    SGK_KERNEL_TABLE(rotate_builds),
    SGK_KERNEL_TABLE(merge_state_builds),
    SGK_KERNEL_TABLE(attention_metadata_builds),
    SGK_KERNEL_TABLE(attention_pool_builds),
    SGK_KERNEL_TABLE(attention_sparse_builds),
    SGK_KERNEL_TABLE(attention_slash_builds),
    SGK_KERNEL_TABLE(lightning_builds),
    { 0 },
};

bool attention_rows_in_pieces(const void *data, int64_t x, int64_t y, int64_t z, sgk_dtype dtype, int64_t bytes)
{
    const int64_t size = sgk_dtype_size(dtype);
    return ((uintptr_t)data | (uint64_t)(x * size) | (uint64_t)(y * size) | (uint64_t)(z * size)) % (uint64_t)bytes == 0;
}

bool attention_in_pieces(const struct attention_args *a, int64_t bytes)
{
    return attention_rows_in_pieces(a->q, a->q_batch_stride, a->q_row_stride, a->q_head_stride, a->dtype, bytes) &&
           attention_rows_in_pieces(a->q_v, a->q_v_batch_stride, a->q_v_row_stride, a->q_v_head_stride, a->dtype, bytes) &&
           attention_rows_in_pieces(a->k, a->k_batch_stride, a->k_row_stride, a->k_head_stride, a->dtype, bytes) &&
           attention_rows_in_pieces(a->v, a->v_batch_stride, a->v_row_stride, a->v_head_stride, a->dtype, bytes) &&
           (!a->apart || (attention_rows_in_pieces(a->k_new, a->k_new_batch_stride, a->k_new_row_stride, a->k_new_head_stride, a->dtype, bytes) &&
                          attention_rows_in_pieces(a->v_new, a->v_new_batch_stride, a->v_new_row_stride, a->v_new_head_stride, a->dtype, bytes)));
}

/* ---- appending --------------------------------------------------------------------------------------------------- */

static bool appends_in(const struct attention_args *a, int64_t bytes)
{
    return attention_rows_in_pieces(a->k, a->k_batch_stride, a->k_row_stride, a->k_head_stride, a->dtype, bytes) &&
           attention_rows_in_pieces(a->v, a->v_batch_stride, a->v_row_stride, a->v_head_stride, a->dtype, bytes) &&
           attention_rows_in_pieces(a->k_new, a->k_new_batch_stride, a->k_new_row_stride, a->k_new_head_stride, a->dtype, bytes) &&
           attention_rows_in_pieces(a->v_new, a->v_new_batch_stride, a->v_new_row_stride, a->v_new_head_stride, a->dtype, bytes) &&
           a->dim * sgk_dtype_size(a->dtype) % bytes == 0 && a->dim_v * sgk_dtype_size(a->dtype) % bytes == 0;
}

static sgk_status append(attention_call *c)
{
    if (c->before.rotary_cos) {
        format_build *b = rotate_builds;
        while (b->dtype != c->a.dtype) ++b;
        c->before.a            = c->a;
        const sgk_launch shape = { .grid = { (int64_t)(c->a.max_new + c->a.max_q) * c->a.batch }, .block = { 128 } };
        return sgk_cuda_launch(c->op, &b->kernel, &shape, c->m.device.device_id, c->exec, &c->before, sizeof c->before);
    }
    append_build *b = append_builds;
    while (!appends_in(&c->a, b->piece)) ++b;
    SGK_LOG_BUILD(c->exec, c->op, &b->kernel, b->piece == 16 ? "" : " (k, v, k_new or v_new not in 16-byte pieces)");
    const sgk_launch shape = { .grid = { (int64_t)c->a.max_new * c->a.batch }, .block = { 128 } };
    return sgk_cuda_launch(c->op, &b->kernel, &shape, c->m.device.device_id, c->exec, &c->a, sizeof c->a);
}

/* ---- parts ------------------------------------------------------------------------------------------------------- */

/*
 * In how many parts to cut the keys of every sequence. It follows from sizes alone, never from lengths, which are on the device and
 * may change between two replays of a graph.
 */
int32_t attention_choose_splits(attention_call *c, int64_t blocks)
{
    struct attention_args *a    = &c->a;
    const int64_t          keys = a->max_k + (a->apart ? a->max_new : 0), tiles = (keys + c->tile - 1) / c->tile;
    int64_t                wanted = c->o.num_splits;
    if (sgk_exec_batch_invariant(c->exec)) {
        /* Fewer than `most` where the longest sequence has so few keys that no part of any is longer than the least. Combining a single part changes
         * nothing, but what a sink adds is then rounded elsewhere. */
        const int64_t most = 16, least = 1024;
        wanted        = (keys + least - 1) / least;
        a->split_keys = (int32_t)least;
        return attention_at_most(wanted > 1 ? wanted : a->sinks ? 2
                                                                : 1,
                                 most);
    }
    if (wanted == 0) {
        const int64_t per_multiprocessor = c->device->shared_memory_per_multiprocessor / (c->shared_memory + 4096);
        const int64_t room               = c->device->multiprocessors * (per_multiprocessor > 0 ? per_multiprocessor : 1);
        wanted                           = attention_at_most(room / (blocks ? blocks : 1), tiles / 4);
    }
    return attention_at_most(wanted > 1 ? wanted : 1, tiles > 1 ? tiles : 1);
}

static int64_t partial_rows(const struct attention_args *a) { return (int64_t)a->splits * a->batch * a->heads * a->max_q; }

int64_t attention_partial_bytes(const struct attention_args *a)
{
    return a->splits > 1 ? (partial_rows(a) * attention_partial_dim(a) * 4 + 255) / 256 * 256 + partial_rows(a) * 4 : 0;
}

void attention_set_partials(struct attention_args *a, void *scratch)
{
    if (a->splits == 1) return;
    a->partial_out = scratch;
    a->partial_lse = (float *)((char *)scratch + (partial_rows(a) * attention_partial_dim(a) * 4 + 255) / 256 * 256);
}

sgk_status attention_combine_parts(const attention_call *c)
{
    if (c->a.splits == 1) return SGK_OK;
    format_build *b = combine_builds;
    while (b->dtype != c->a.out_dtype) ++b;
    const int64_t    queries = (int64_t)c->a.batch * c->a.heads * c->a.max_q;
    const sgk_launch shape   = { .grid = { (queries + 3) / 4 }, .block = { 128 }, .overlap = true };       /* it waits within itself */
    return sgk_cuda_launch(c->op, &b->kernel, &shape, c->m.device.device_id, c->exec, &c->a, sizeof c->a);
}

/* ---- a call ------------------------------------------------------------------------------------------------------ */

static sgk_status choose_form(attention_call *c, const attention_form **form)
{
    for (size_t i = 0; i < COUNT(attention_forms); ++i) {
        *form           = attention_forms[i];
        const char *why = (*form)->passes(c);
        if (!why) return SGK_OK;
        if (sgk_log_wanted(c->exec)) sgk_log(c->exec, "%s: cuda, not %s: %s", c->op, (*form)->name, why);
    }
    return sgk_error(SGK_UNSUPPORTED, "%s: no form takes this call", c->op);
}

/* A batch-invariant call is two, one over each kind of sequence: with few queries, or with more. Which form has a sequence follows from its own queries alone. */
typedef enum { FEW,
               MORE } share;

/* Of e4m3 as many as have weights of f16. */
static int32_t most_few(const struct attention_args *a)
{
    if (a->dtype == SGK_E4M3) return ATTENTION_WGMMA_QUERIES_E4M3 - 1;
    return a->group && a->group < ATTENTION_INVARIANT_FEW ? ATTENTION_INVARIANT_FEW / a->group : 1;
}

/* Whether there can be such sequences: all are as long where the call has no lengths. */
static bool has_share(const struct attention_args *a, share which)
{
    return which == MORE ? a->max_q > most_few(a) : a->max_q <= most_few(a) || a->cu_seqlens_q || a->seqused_q;
}

static attention_call share_of(const attention_call *c, share which)
{
    attention_call own = *c;
    if (which == FEW) own.a.only_up_to = most_few(&c->a), own.a.max_q = attention_at_most(c->a.max_q, most_few(&c->a) + 1);         /* one more tells the others */
    else own.a.only_above = most_few(&c->a);
    return own;
}

/* Scratch memory where `run` is false. */
static sgk_status run_shares(const attention_call *c, char *memory, bool run, int64_t *bytes)
{
    *bytes = 0;
    for (share which = FEW; which <= MORE; ++which) {
        if (!has_share(&c->a, which)) continue;
        attention_call        own = share_of(c, which);
        const attention_form *form;
        SGK_TRY(choose_form(&own, &form));
        const int64_t each = form->plan(&own);
        if (run) SGK_TRY(form->run(&own, memory));
        if (each > *bytes) *bytes = each;               /* one after the other, in the same memory */
    }
    return SGK_OK;
}

sgk_status attention_run_cuda(attention_call *c)
{
    struct attention_args *a = &c->a;
    SGK_TRY(sgk_cuda_get_device(c->op, c->m.device.device_id, &c->device));
    const int64_t         rotated = (attention_rotate_queries(c) + 255) / 256 * 256;
    const bool            shares  = sgk_exec_batch_invariant(c->exec);
    const attention_form *form    = NULL;
    int64_t               bytes;
    a->splits = 1;
    if (shares) SGK_TRY(run_shares(c, NULL, false, &bytes));
    else {
        SGK_TRY(choose_form(c, &form));
        bytes = form->plan(c);
    }
    sgk_scratch scratch;
    SGK_TRY(sgk_scratch_get(&scratch, c->op, (size_t)(c->prepare_bytes + rotated + bytes), c->m.device, c->exec));
    if (scratch.query_only) return SGK_OK;
    char      *memory = (char *)scratch.memory + c->prepare_bytes;
    sgk_status status = c->prepare ? c->prepare(c, scratch.memory) : SGK_OK;
    if (rotated) a->q = memory;

    if (status == SGK_OK) status = (a->max_new || rotated) && !a->apart && a->batch && a->kv_heads ? append(c) : SGK_OK;
    if (status == SGK_OK && a->batch && a->heads && a->max_q)
        status = shares ? run_shares(c, memory + rotated, true, &bytes) : form->run(c, memory + rotated);
    sgk_scratch_put(&scratch);
    return status;
}
