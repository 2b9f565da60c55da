#include "attention.h"
#include <math.h>
#include <string.h>
#include "attention_call.h"
#include "cuda/indices.h"

/* ---- arguments --------------------------------------------------------------------------------------------------- */

/* Letters: B sequences, Q queries each, T packed queries, H heads, K key heads, D and E head sizes of keys and values, C cache rows or
 * pages, S places in each, P pages of a sequence, N new tokens, Z = B + 1, R positions, W pairs that rotate. */
static sgk_status match_tensors(attention_call *c)
{
    sgk_match                    *m   = &c->m;
    const sgk_flash_attn_options *o   = &c->o;
    const DLTensor               *out = c->out, *softmax_lse = c->softmax_lse, *q = c->q, *k = c->k, *v = c->v, *q_v = o->q_v;
    const unsigned                i32 = 1u << SGK_I32;

    SGK_MATCH(m, q, o->cu_seqlens_q ? "T H D" : "B Q H D", SGK_ANY_FLOAT | 1u << SGK_E4M3);
    const unsigned same = 1u << m->dtype;
    SGK_TRY(sgk_match_tensor(m, k, "k", o->cu_seqlens_k ? "S K D" : "C S K D", same, o->k_new != NULL));
    SGK_TRY(sgk_match_tensor(m, v, "v", o->cu_seqlens_k ? "S K E" : "C S K E", same, o->k_new != NULL));
    SGK_MATCH_OUT(m, out, o->cu_seqlens_q ? "T H E" : "B Q H E", m->dtype == SGK_E4M3 ? 1u << SGK_BF16 : same);
    SGK_MATCH_OPT_OUT(m, softmax_lse, o->cu_seqlens_q ? "H T" : "B H Q", 1u << SGK_F32);
    SGK_MATCH_OPT(m, q_v, o->cu_seqlens_q ? "T H E" : "B Q H E", same & SGK_ANY_FLOAT);

    if (o->cu_seqlens_q) {
        const DLTensor *cu_seqlens_q = o->cu_seqlens_q;
        SGK_MATCH(m, cu_seqlens_q, "Z", i32);
        SGK_REQUIRE(SGK_DIM(m, 'Z') >= 1, SGK_BAD_ARG, "%s: cu_seqlens_q has size 0 in dimension 0, expected at least 1", c->op);
        SGK_DIM(m, 'B') = SGK_DIM(m, 'Z') - 1;
        m->bound |= 1u << ('B' - 'A');
    } else {
        SGK_DIM(m, 'Z') = SGK_DIM(m, 'B') + 1;
        m->bound |= 1u << ('Z' - 'A');
    }
    const struct {
        const DLTensor *tensor;
        const char     *name, *shape;
    } indices[] = {
        { o->cu_seqlens_k, "cu_seqlens_k", "Z" },
        { o->k_new ? o->cu_seqlens_k_new : NULL, "cu_seqlens_k_new", "Z" },
        { o->seqused_q, "seqused_q", "B" },
        { o->seqused_k, "seqused_k", "B" },
        { o->page_table, "page_table", "B P" },
        { o->kv_batch_idx, "kv_batch_idx", "B" },
        { o->leftpad_k, "leftpad_k", "B" },
    };
    for (size_t i = 0; i < COUNT(indices); ++i)
        if (indices[i].tensor) SGK_TRY(sgk_match_tensor(m, indices[i].tensor, indices[i].name, indices[i].shape, i32, false));
    if (o->k_new) {
        const DLTensor *k_new = o->k_new, *v_new = o->v_new;
        SGK_MATCH(m, k_new, o->cu_seqlens_k_new ? "N K D" : "B N K D", same);
        SGK_MATCH(m, v_new, o->cu_seqlens_k_new ? "N K E" : "B N K E", same);
    }
    if (o->rotary_cos) {
        const DLTensor *rotary_cos = o->rotary_cos, *rotary_sin = o->rotary_sin, *seqlens_rotary = o->seqlens_rotary;
        SGK_MATCH(m, rotary_cos, "R W", same);
        SGK_MATCH(m, rotary_sin, "R W", same);
        SGK_MATCH_OPT(m, seqlens_rotary, "B", i32);
    }
    const DLTensor *q_descale = o->q_descale, *k_descale = o->k_descale, *v_descale = o->v_descale, *sinks = o->sinks;
    SGK_MATCH_OPT(m, q_descale, "B K~", 1u << SGK_F32);
    SGK_MATCH_OPT(m, k_descale, "B K~", 1u << SGK_F32);
    SGK_MATCH_OPT(m, v_descale, "B K~", 1u << SGK_F32);
    SGK_MATCH_OPT(m, sinks, "H", SGK_ANY_FLOAT);
    return sgk_match_done(m);
}

static sgk_status match_rules(const attention_call *c)
{
    const sgk_match              *m   = &c->m;
    const sgk_flash_attn_options *o   = &c->o;
    const long long               dim = SGK_DIM(m, 'D'), dim_v = SGK_DIM(m, 'E'), heads = SGK_DIM(m, 'H'), kv_heads = SGK_DIM(m, 'K');
    SGK_REQUIRE(dim >= 1 && dim <= ATTENTION_MOST_DIM, SGK_BAD_ARG, "%s: q has head size %lld, expected 1 to 576", c->op, dim);
    SGK_REQUIRE(dim_v >= 1 && dim_v <= ATTENTION_MOST_DIM_V, SGK_BAD_ARG, "%s: v has head size %lld, expected 1 to 512", c->op, dim_v);
    SGK_REQUIRE(kv_heads ? heads % kv_heads == 0 : heads == 0, SGK_BAD_ARG, "%s: q has %lld heads, expected a multiple of k's %lld", c->op, heads, kv_heads);
    SGK_REQUIRE(!o->cu_seqlens_q || o->max_seqlen_q >= 0, SGK_BAD_ARG, "%s: max_seqlen_q is not given, expected it with cu_seqlens_q", c->op);
    SGK_REQUIRE(!o->cu_seqlens_k || o->max_seqlen_k >= 0, SGK_BAD_ARG, "%s: max_seqlen_k is not given, expected it with cu_seqlens_k", c->op);
    SGK_REQUIRE(!o->cu_seqlens_k || (!o->page_table && !o->kv_batch_idx), SGK_BAD_ARG, "%s: cu_seqlens_k is given with %s, expected one of them",
                c->op, o->page_table ? "page_table" : "kv_batch_idx");
    SGK_REQUIRE(!o->page_table || !o->kv_batch_idx, SGK_BAD_ARG, "%s: page_table is given with kv_batch_idx, expected one of them", c->op);
    SGK_REQUIRE(o->cu_seqlens_k || o->page_table || o->kv_batch_idx || SGK_DIM(m, 'C') == SGK_DIM(m, 'B'), SGK_BAD_ARG,
                "%s: k has size %lld in dimension 0, expected %lld sequences", c->op, (long long)SGK_DIM(m, 'C'), (long long)SGK_DIM(m, 'B'));
    SGK_REQUIRE(o->window_size_left >= -1, SGK_BAD_ARG, "%s: window_size_left is %lld, expected -1 or more", c->op, (long long)o->window_size_left);
    SGK_REQUIRE(o->window_size_right >= -1, SGK_BAD_ARG, "%s: window_size_right is %lld, expected -1 or more", c->op, (long long)o->window_size_right);
    SGK_REQUIRE(o->attention_chunk >= 0, SGK_BAD_ARG, "%s: attention_chunk is %lld, expected 0 or more", c->op, (long long)o->attention_chunk);
    SGK_REQUIRE(o->softcap >= 0 && isfinite(o->softcap), SGK_BAD_ARG, "%s: softcap is %g, expected a finite number that is not negative", c->op, o->softcap);
    SGK_REQUIRE(o->sm_margin >= 0, SGK_BAD_ARG, "%s: sm_margin is %lld, expected 0 or more", c->op, (long long)o->sm_margin);
    SGK_REQUIRE(o->num_splits >= 0 && o->num_splits <= 256, SGK_BAD_ARG, "%s: num_splits is %lld, expected 0 to 256", c->op, (long long)o->num_splits);
    SGK_REQUIRE(isfinite(o->softmax_scale), SGK_BAD_ARG, "%s: softmax_scale is %g, expected a finite number", c->op, o->softmax_scale);
    SGK_REQUIRE(!o->k_new || !o->cu_seqlens_k, SGK_BAD_ARG, "%s: k_new is given with cu_seqlens_k, expected a cache with room", c->op);
    if (o->rotary_cos) {
        const long long pairs = SGK_DIM(m, 'W'), positions = SGK_DIM(m, 'R');
        SGK_REQUIRE(pairs % 8 == 0 && pairs > 0 && 2 * pairs <= dim, SGK_BAD_ARG, "%s: rotary_cos has size %lld in dimension 1, expected a multiple of 8 up to half of head size %lld",
                    c->op, pairs, dim);
        SGK_REQUIRE(positions > 0 || SGK_DIM(m, 'N') == 0, SGK_BAD_ARG, "%s: rotary_cos has no positions, expected some", c->op);
        SGK_REQUIRE(o->page_table || positions >= SGK_DIM(m, 'S'), SGK_BAD_ARG, "%s: rotary_cos has %lld positions, expected %lld, as many as k has places", c->op, positions, (long long)SGK_DIM(m, 'S'));
    }
    const int64_t sizes[] = { SGK_DIM(m, 'B'), SGK_DIM(m, 'Q'), SGK_DIM(m, 'T'), SGK_DIM(m, 'C'), SGK_DIM(m, 'S'), SGK_DIM(m, 'N'), SGK_DIM(m, 'R'), heads };
    for (size_t i = 0; i < COUNT(sizes); ++i)
        SGK_REQUIRE(sizes[i] < ATTENTION_NO_LIMIT, SGK_BAD_ARG, "%s: a size is %lld, expected less than 2^30 sequences, tokens, pages and heads", c->op, (long long)sizes[i]);
    return SGK_OK;
}

static int32_t window(int64_t size) { return size < 0 ? ATTENTION_NO_LIMIT : attention_at_most(size, ATTENTION_NO_LIMIT); }

static void descale(const DLTensor *t, const float **data, int64_t *batch_stride, int64_t *head_stride)
{
    if (!t) return;
    *data         = sgk_data(t);
    *batch_stride = sgk_stride(t, 0), *head_stride = sgk_stride(t, 1);
}

static struct attention_args fill(const attention_call *c)
{
    const sgk_match              *m        = &c->m;
    const sgk_flash_attn_options *o        = &c->o;
    const bool                    packed_q = o->cu_seqlens_q, packed_k = o->cu_seqlens_k, packed_new = o->cu_seqlens_k_new;
    struct attention_args         a = {
        .out              = sgk_data(c->out),
        .softmax_lse      = sgk_data(c->softmax_lse),
        .q                = sgk_data(c->q),
        .k                = sgk_data(c->k),
        .v                = sgk_data(c->v),
        .cu_seqlens_q     = sgk_data(o->cu_seqlens_q),
        .cu_seqlens_k     = sgk_data(o->cu_seqlens_k),
        .seqused_q        = sgk_data(o->seqused_q),
        .seqused_k        = sgk_data(o->seqused_k),
        .page_table       = sgk_data(o->page_table),
        .kv_batch_idx     = sgk_data(o->kv_batch_idx),
        .leftpad_k        = sgk_data(o->leftpad_k),
        .out_batch_stride = packed_q ? 0 : sgk_stride(c->out, 0),
        .out_row_stride   = sgk_stride(c->out, -3),
        .out_head_stride  = sgk_stride(c->out, -2),
        .q_batch_stride   = packed_q ? 0 : sgk_stride(c->q, 0),
        .q_row_stride     = sgk_stride(c->q, -3),
        .q_head_stride    = sgk_stride(c->q, -2),
        .k_batch_stride   = packed_k ? 0 : sgk_stride(c->k, 0),
        .k_row_stride     = sgk_stride(c->k, -3),
        .k_head_stride    = sgk_stride(c->k, -2),
        .v_batch_stride   = packed_k ? 0 : sgk_stride(c->v, 0),
        .v_row_stride     = sgk_stride(c->v, -3),
        .v_head_stride    = sgk_stride(c->v, -2),
        .batch            = (int32_t)SGK_DIM(m, 'B'),
        .heads            = (int32_t)SGK_DIM(m, 'H'),
        .kv_heads         = (int32_t)SGK_DIM(m, 'K'),
        .dim              = (int32_t)SGK_DIM(m, 'D'),
        .dim_v            = (int32_t)SGK_DIM(m, 'E'),
        .max_q            = packed_q ? attention_at_most(o->max_seqlen_q, SGK_DIM(m, 'T')) : (int32_t)SGK_DIM(m, 'Q'),
        .max_k            = packed_k ? attention_at_most(o->max_seqlen_k, SGK_DIM(m, 'S')) : (int32_t)SGK_DIM(m, 'S'),
        .total_q          = (int32_t)SGK_DIM(m, 'T'),
        .total_k          = (int32_t)SGK_DIM(m, 'S'),
        .kv_batches       = packed_k ? 1 : (int32_t)SGK_DIM(m, 'C'),
        .window_left      = window(o->window_size_left),
        .window_right     = o->causal ? 0 : window(o->window_size_right),
        .chunk            = attention_at_most(o->attention_chunk, ATTENTION_NO_LIMIT),
        .top_left         = o->top_left,
        .scale            = (float)(o->softmax_scale != 0 ? o->softmax_scale : 1 / sqrt((double)(SGK_DIM(m, 'D') + (o->q_v ? SGK_DIM(m, 'E') : 0)))),
        .softcap          = (float)o->softcap,
        .dtype            = m->dtype,
        .out_dtype        = m->dtype == SGK_E4M3 ? SGK_BF16 : m->dtype,
        .splits           = 1,
    };
    a.group = a.kv_heads ? a.heads / a.kv_heads : 0;
    if (c->softmax_lse) {
        a.lse_batch_stride = packed_q ? 0 : sgk_stride(c->softmax_lse, 0);
        a.lse_head_stride  = sgk_stride(c->softmax_lse, -2);
    }
    if (o->page_table) {
        a.page_table_stride = sgk_stride(o->page_table, 0);
        a.page_size         = a.max_k;
        a.max_k             = attention_at_most((int64_t)a.page_size * SGK_DIM(m, 'P'), ATTENTION_NO_LIMIT - 1);
    }
    if (o->k_new) {
        a.k_new = sgk_data(o->k_new), a.v_new = sgk_data(o->v_new);
        a.cu_seqlens_k_new   = sgk_data(o->cu_seqlens_k_new);
        a.k_new_batch_stride = packed_new ? 0 : sgk_stride(o->k_new, 0);
        a.v_new_batch_stride = packed_new ? 0 : sgk_stride(o->v_new, 0);
        a.k_new_row_stride = sgk_stride(o->k_new, -3), a.k_new_head_stride = sgk_stride(o->k_new, -2);
        a.v_new_row_stride = sgk_stride(o->v_new, -3), a.v_new_head_stride = sgk_stride(o->v_new, -2);
        a.max_new = a.total_new = (int32_t)SGK_DIM(m, 'N');
    }
    if (o->q_v) {
        a.q_v              = sgk_data(o->q_v);
        a.q_v_batch_stride = packed_q ? 0 : sgk_stride(o->q_v, 0);
        a.q_v_row_stride = sgk_stride(o->q_v, -3), a.q_v_head_stride = sgk_stride(o->q_v, -2);
    }
    if (o->sinks) a.sinks = sgk_data(o->sinks), a.sinks_dtype = sgk_dtype_at(o->sinks);
    if (m->dtype == SGK_E4M3) {
        descale(o->q_descale, &a.q_descale, &a.q_descale_batch_stride, &a.q_descale_head_stride);
        descale(o->k_descale, &a.k_descale, &a.k_descale_batch_stride, &a.k_descale_head_stride);
        descale(o->v_descale, &a.v_descale, &a.v_descale_batch_stride, &a.v_descale_head_stride);
    }
    /* No key anywhere, known without looking at lengths: the released library says +inf there, and -inf in every other empty row. */
    a.empty_lse = a.max_k == 0 ? INFINITY : -INFINITY;
    return a;
}

/* What is rotated before attention; where nothing is, q is read as it lies. */
static struct attention_append_args fill_before(const attention_call *c)
{
    const sgk_flash_attn_options *o = &c->o;
    if (!o->rotary_cos) return (struct attention_append_args){ 0 };
    return (struct attention_append_args){
        .q              = c->a.q,
        .rotary_cos     = sgk_data(o->rotary_cos),
        .rotary_sin     = sgk_data(o->rotary_sin),
        .seqlens_rotary = sgk_data(o->seqlens_rotary),
        .q_batch_stride = c->a.q_batch_stride,
        .q_row_stride   = c->a.q_row_stride,
        .q_head_stride  = c->a.q_head_stride,
        .cos_stride     = sgk_stride(o->rotary_cos, 0),
        .sin_stride     = sgk_stride(o->rotary_sin, 0),
        .rotary_dim     = 2 * (int32_t)SGK_DIM(&c->m, 'W'),
        .rotary_rows    = (int32_t)SGK_DIM(&c->m, 'R'),
        .interleaved    = o->rotary_interleaved,
        .q_moves        = o->causal || o->window_size_left >= 0 || o->window_size_right >= 0 || o->attention_chunk > 0,
    };
}

int64_t attention_rotate_queries(attention_call *c)
{
    struct attention_args *a = &c->a;
    if (!c->before.rotary_cos) return 0;
    const int64_t rows = a->cu_seqlens_q ? a->total_q : (int64_t)a->batch * a->max_q;
    a->q               = NULL;
    a->q_head_stride = a->dim, a->q_row_stride = (int64_t)a->heads * a->dim;
    a->q_batch_stride = a->cu_seqlens_q ? 0 : a->max_q * a->q_row_stride;
    return rows * a->q_row_stride * sgk_dtype_size(a->dtype);
}

/* ---- index tensors, where the host can read them: all are checked before anything is written ---------------------- */

static sgk_status check_cumulative(const char *op, const char *name, const int32_t *cu, int32_t batch, int64_t total)
{
    SGK_REQUIRE(cu[0] == 0, SGK_BAD_ARG, "%s: %s[0] is %d, expected 0", op, name, cu[0]);
    for (int32_t n = 0; n < batch; ++n)
        SGK_REQUIRE(cu[n] <= cu[n + 1], SGK_BAD_ARG, "%s: %s[%d] is %d after %d, expected lengths of at least 0", op, name, n + 1, cu[n + 1], cu[n]);
    SGK_REQUIRE(cu[batch] <= total, SGK_BAD_ARG, "%s: %s ends at %d, expected at most %lld rows", op, name, cu[batch], (long long)total);
    return SGK_OK;
}

static sgk_status check_length(const char *op, const char *name, int32_t n, int64_t length, int64_t most)
{
    SGK_REQUIRE(length >= 0 && length <= most, SGK_BAD_ARG, "%s: %s gives sequence %d a length of %lld, expected 0 to %lld", op, name, n, (long long)length, (long long)most);
    return SGK_OK;
}

static sgk_status check_sequence(const char *op, const struct attention_args *a, const sgk_flash_attn_options *o, int32_t n)
{
    int64_t queries = a->max_q, used = a->max_k, fresh = a->max_new;
    if (a->cu_seqlens_q) SGK_TRY(check_length(op, "cu_seqlens_q", n, queries = a->cu_seqlens_q[n + 1] - a->cu_seqlens_q[n], o->max_seqlen_q));
    if (a->seqused_q) SGK_TRY(check_length(op, "seqused_q", n, a->seqused_q[n], queries));
    if (a->cu_seqlens_k) SGK_TRY(check_length(op, "cu_seqlens_k", n, used = a->cu_seqlens_k[n + 1] - a->cu_seqlens_k[n], o->max_seqlen_k));
    const int64_t used_most = used;
    if (a->seqused_k) SGK_TRY(check_length(op, "seqused_k", n, used = a->seqused_k[n], used_most));
    if (a->cu_seqlens_k_new) fresh = a->cu_seqlens_k_new[n + 1] - a->cu_seqlens_k_new[n];
    SGK_REQUIRE(used + fresh <= a->max_k, SGK_BAD_ARG, "%s: k_new adds %lld to the %lld keys of sequence %d, expected at most %d together",
                op, (long long)fresh, (long long)used, n, a->max_k);
    if (a->leftpad_k) SGK_TRY(check_length(op, "leftpad_k", n, a->leftpad_k[n], used + fresh));
    if (a->kv_batch_idx)
        SGK_REQUIRE(a->kv_batch_idx[n] >= 0 && a->kv_batch_idx[n] < a->kv_batches, SGK_BAD_ARG, "%s: kv_batch_idx[%d] is %d, expected 0 to %d",
                    op, n, a->kv_batch_idx[n], a->kv_batches - 1);
    if (a->page_size) {
        const int64_t  pages = (used + fresh + a->page_size - 1) / a->page_size, first = a->leftpad_k ? a->leftpad_k[n] / a->page_size : 0;
        const int32_t *page = a->page_table + n * a->page_table_stride;
        for (int64_t p = first; p < pages; ++p)
            SGK_REQUIRE(page[p] >= 0 && page[p] < a->kv_batches, SGK_BAD_ARG, "%s: page_table[%d, %lld] is %d, expected a page from 0 to %d",
                        op, n, (long long)p, page[p], a->kv_batches - 1);
    }
    return SGK_OK;
}

/* Every position that is asked for has a row of rotary_cos. */
static sgk_status check_rotation(const attention_call *c, const struct attention_args *a, const int32_t *seqlens_rotary)
{
    const int64_t rows = c->before.rotary_rows;
    for (int32_t n = 0; n < a->batch; ++n) {
        const struct attention_sequence s     = attention_sequence_of(a, n);
        const int64_t                   first = seqlens_rotary ? seqlens_rotary[n] : s.used, moves = c->before.q_moves ? s.sq : s.sq > 0;
        SGK_REQUIRE(first >= 0 && first + s.fresh <= rows && first + moves <= rows, SGK_BAD_ARG, "%s: sequence %d asks for positions %lld to %lld, expected 0 to %lld, as many as rotary_cos has",
                    c->op, n, (long long)first, (long long)(first + (s.fresh > moves ? s.fresh : moves) - 1), (long long)rows - 1);
    }
    return SGK_OK;
}

static sgk_status check_tensors(const attention_call *c, const struct attention_args *a, const int32_t *seqlens_rotary)
{
    const char                   *op = c->op;
    const sgk_flash_attn_options *o  = &c->o;
    if (a->cu_seqlens_q) SGK_TRY(check_cumulative(op, "cu_seqlens_q", a->cu_seqlens_q, a->batch, a->total_q));
    if (a->cu_seqlens_k) SGK_TRY(check_cumulative(op, "cu_seqlens_k", a->cu_seqlens_k, a->batch, a->total_k));
    if (a->cu_seqlens_k_new) SGK_TRY(check_cumulative(op, "cu_seqlens_k_new", a->cu_seqlens_k_new, a->batch, a->total_new));
    for (int32_t n = 0; n < a->batch; ++n) SGK_TRY(check_sequence(op, a, o, n));
    return c->before.rotary_cos ? check_rotation(c, a, seqlens_rotary) : SGK_OK;
}

static sgk_status check_indices(const attention_call *c)
{
    const struct attention_args  *a         = &c->a;
    const sgk_flash_attn_options *o         = &c->o;
    const DLTensor *const         tensors[] = { o->cu_seqlens_q, o->cu_seqlens_k, o->k_new ? o->cu_seqlens_k_new : NULL, o->seqused_q, o->seqused_k,
                                                o->page_table, o->kv_batch_idx, o->leftpad_k, o->rotary_cos ? o->seqlens_rotary : NULL };
    sgk_indices                   host;
    SGK_TRY(sgk_indices_read(&host, c->op, c->m.device, tensors, COUNT(tensors), c->exec));
    if (!host.known) return SGK_OK;
    struct attention_args here = *a;
    here.cu_seqlens_q = host.data[0], here.cu_seqlens_k = host.data[1], here.cu_seqlens_k_new = host.data[2];
    here.seqused_q = host.data[3], here.seqused_k = host.data[4];
    here.page_table = host.data[5], here.kv_batch_idx = host.data[6], here.leftpad_k = host.data[7];
    return sgk_indices_done(&host, check_tensors(c, &here, host.data[8]));
}

sgk_status sgk_flash_attn(const DLTensor *out, const DLTensor *softmax_lse, const DLTensor *q, const DLTensor *k, const DLTensor *v,
                          const sgk_flash_attn_options *options, const sgk_exec *exec)
{
    attention_call c = { .out = out, .softmax_lse = softmax_lse, .q = q, .k = k, .v = v, .o = SGK_FLASH_ATTN_OPTIONS_INIT, .exec = exec };
    if (options) memcpy(&c.o, options, options->size < sizeof c.o ? options->size : sizeof c.o);
    const sgk_flash_attn_options *o = &c.o;
    c.op = c.m.op = o->k_new || o->v_new || o->rotary_cos || o->rotary_sin ? "flash_attn_append" : "flash_attn";
    SGK_REQUIRE(!o->k_new == !o->v_new, SGK_BAD_ARG, "%s: %s is given alone, expected k_new and v_new together", c.op, o->k_new ? "k_new" : "v_new");
    SGK_REQUIRE(!o->k_new || o->seqused_k, SGK_BAD_ARG, "%s: k_new is given without seqused_k, expected the lengths to append to", c.op);
    SGK_REQUIRE(!o->rotary_cos == !o->rotary_sin, SGK_BAD_ARG, "%s: %s is given alone, expected rotary_cos and rotary_sin together", c.op, o->rotary_cos ? "rotary_cos" : "rotary_sin");
    SGK_REQUIRE(!o->rotary_cos || o->k_new, SGK_BAD_ARG, "%s: rotary_cos is given without k_new, expected keys to rotate", c.op);
    SGK_TRY(match_tensors(&c));
    SGK_TRY(match_rules(&c));

    c.a      = fill(&c);
    c.before = fill_before(&c);
    SGK_REQUIRE(!o->k_new || c.a.max_q <= c.a.max_k, SGK_BAD_ARG, "%s: q has %d rows a sequence and the cache has room for %d, expected no more queries than keys when k_new is appended",
                c.op, c.a.max_q, c.a.max_k);
    SGK_REQUIRE((int64_t)c.a.max_q * c.a.group < ATTENTION_NO_LIMIT, SGK_BAD_ARG, "%s: a sequence has %d queries of %d heads a key head, expected fewer than 2^30 together",
                c.op, c.a.max_q, c.a.group);
    SGK_TRY(check_indices(&c));
    return sgk_on_gpu(&c.m) ? attention_run_cuda(&c) : attention_run_cpu(&c);
}
