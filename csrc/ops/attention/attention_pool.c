#include "attention_pool.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "attention_call.h"
#include "cuda/indices.h"

/* clang-format off */
struct pool_build attention_pool_builds[POOL_BUILDS] = {
    { SGK_KERNEL("attention/attention_pool.cu", "attention_pool", "-DELEMENT=uint16_t", SGK_GENERAL), 2 },
    { SGK_KERNEL("attention/attention_pool.cu", "attention_pool", "-DELEMENT=uint32_t", SGK_GENERAL), 4 },
};
/* clang-format on */

enum { PLACES = 4096 };                                 /* as in attention_pool.cu */

/* ---- index tensors ------------------------------------------------------------------------------------------------ */

static sgk_status check_within(const char *op, const char *name, int32_t b, int64_t found, int64_t least, int64_t most)
{
    SGK_REQUIRE(found >= least && found <= most, SGK_BAD_ARG, "%s: %s[%d] is %lld, expected %lld to %lld", op, name, b, (long long)found, (long long)least, (long long)most);
    return SGK_OK;
}

/* Each number is bounded before another is added to it. */
static sgk_status check_sequence(const char *op, const struct attention_pool_args *a, int64_t max_len_extend, int32_t b)
{
    const int64_t fresh = a->extend_seq_lens ? pool_index(a->extend_seq_lens, b, a->wide) : 0;
    SGK_TRY(check_within(op, "req_pool_indices", b, a->req_pool_indices[b], 0, a->rows - 1));
    if (a->encoder_lens) SGK_TRY(check_within(op, "encoder_lens", b, a->encoder_lens[b], 0, a->width));
    if (a->extend_seq_lens) SGK_TRY(check_within(op, "extend_seq_lens", b, fresh, 0, max_len_extend < a->total ? max_len_extend : a->total));
    if (!a->cross) SGK_TRY(check_within(op, "seq_lens", b, a->seq_lens[b], fresh, fresh + (a->unread ? 0 : a->width - (a->encoder_lens ? a->encoder_lens[b] : 0))));
    if (a->extend_seq_lens) {
        const int64_t start = pool_index(a->extend_start_loc, b, a->wide);
        SGK_TRY(check_within(op, "extend_start_loc", b, start, 0, a->total - fresh));
        const int64_t end = start + fresh, after = b + 1 < a->batch ? pool_index(a->extend_start_loc, b + 1, a->wide) : end;
        SGK_REQUIRE(end == after, SGK_BAD_ARG, "%s: extend_start_loc[%d] is %lld, expected %lld, where the rows of sequence %d end", op, b + 1, (long long)after, (long long)end, b);
    }
    const struct pool_sequence s = pool_sequence_of(a, b);
    for (int64_t j = 0; j < s.keys; ++j)
        SGK_REQUIRE(pool_slot(a, &s, j) >= 0, SGK_BAD_ARG, "%s: req_to_token[%lld, %lld] is %lld, expected 0 to %lld", op, (long long)s.row, (long long)(s.first + j),
                    (long long)pool_index(a->req_to_token, s.row * a->req_stride + s.first + j, a->wide), (long long)a->slots - 1);
    if (a->key) SGK_TRY(check_within(op, "loc", b, a->loc[b], 0, a->slots - 1));
    return SGK_OK;
}

static sgk_status check_sequences(const char *op, const struct attention_pool_args *a, int64_t max_len_extend)
{
    for (int32_t b = 0; b < a->batch; ++b) SGK_TRY(check_sequence(op, a, max_len_extend, b));
    return SGK_OK;
}

/* ---- running ------------------------------------------------------------------------------------------------------ */

/* The parts of the memory that `a` fills, all 256-byte multiples; returns their bytes. */
static int64_t place(struct attention_pool_args *a, void *memory)
{
    const int64_t starts = ((int64_t)a->batch + 1 + 63) / 64 * 64, lengths = ((int64_t)a->batch + 63) / 64 * 64, table = ((int64_t)a->batch * a->width + 63) / 64 * 64;
    a->starts  = memory;
    a->lengths = memory ? a->starts + starts : NULL;
    a->table   = memory ? a->lengths + lengths : NULL;
    return (starts + lengths + table) * 4;
}

static void point(attention_call *c, const struct attention_pool_args *a)
{
    c->a.seqused_k  = a->lengths;
    c->a.page_table = a->table;
    if (a->extend_seq_lens) c->a.cu_seqlens_q = c->a.cu_seqlens_k_new = a->starts;
}

static sgk_status prepare_cuda(attention_call *c, void *scratch)
{
    struct attention_pool_args a = *(const struct attention_pool_args *)c->prepare_args;
    place(&a, scratch);
    point(c, &a);
    a.blocks             = (a.width + PLACES - 1) / PLACES > 0 ? (a.width + PLACES - 1) / PLACES : 1;
    struct pool_build *b = attention_pool_builds;
    while (b->size != a.size) ++b;
    const sgk_launch shape = { .grid = { (int64_t)a.blocks * a.batch }, .block = { 256 } };
    return sgk_cuda_launch(c->op, &b->kernel, &shape, c->m.device.device_id, c->exec, &a, sizeof a);
}

static void store_row(const struct attention_pool_args *a, int32_t b)
{
    const int64_t slot = a->loc[b], size = a->size;
    for (int32_t h = 0; h < a->kv_heads; ++h) {
        memcpy((char *)a->k_cache + (slot * a->k_stride + h * a->k_head_stride) * size, (const char *)a->key + (b * a->key_stride + h * a->key_head_stride) * size, (size_t)(a->dim * size));
        if (a->value)
            memcpy((char *)a->v_cache + (slot * a->v_stride + h * a->v_head_stride) * size, (const char *)a->value + (b * a->value_stride + h * a->value_head_stride) * size, (size_t)(a->dim_v * size));
    }
}

static sgk_status store_rows(attention_call *c, void *scratch)
{
    (void)scratch;
    const struct attention_pool_args *a = c->prepare_args;
    for (int32_t b = 0; b < a->batch; ++b) store_row(a, b);
    return SGK_OK;
}

/* The plan on the CPU reads lengths, so they are made before it. */
static sgk_status run_on_cpu(attention_call *c, struct attention_pool_args *a)
{
    void *memory = malloc((size_t)place(a, NULL));
    SGK_REQUIRE(memory, SGK_FAILED, "%s: no memory for the slots of %d sequences", c->op, a->batch);
    place(a, memory);
    point(c, a);
    for (int32_t b = 0; b < a->batch; ++b) {
        const struct pool_sequence s = pool_sequence_of(a, b);
        a->lengths[b]                = (int32_t)s.keys;
        for (int64_t j = 0; j < s.keys; ++j) a->table[(int64_t)b * a->width + j] = pool_slot(a, &s, j);
        if (a->extend_seq_lens) {
            a->starts[b]     = (int32_t)pool_index(a->extend_start_loc, b, a->wide);
            a->starts[b + 1] = a->starts[b] + (int32_t)pool_index(a->extend_seq_lens, b, a->wide);
        }
    }
    if (a->batch == 0) a->starts[0] = 0;
    if (a->key) c->prepare = store_rows, c->prepare_args = a;
    const sgk_status status = attention_run_cpu(c);
    free(memory);
    return status;
}

static sgk_status run(attention_call *c, struct attention_pool_args *a, const DLTensor *const tensors[7], int64_t max_len_extend, const DLTensor *k, const DLTensor *v)
{
    const sgk_match *m       = &c->m;
    const int64_t    sizes[] = { SGK_DIM(m, 'B'), SGK_DIM(m, 'T'), SGK_DIM(m, 'H'), SGK_DIM(m, 'R'), SGK_DIM(m, 'C'), a->slots };
    for (size_t i = 0; i < COUNT(sizes); ++i)
        SGK_REQUIRE(sizes[i] < ATTENTION_NO_LIMIT, SGK_BAD_ARG, "%s: a size is %lld, expected less than 2^30 sequences, tokens, slots and heads", c->op, (long long)sizes[i]);
    const long long heads = SGK_DIM(m, 'H'), kv_heads = SGK_DIM(m, 'K'), dim = SGK_DIM(m, 'D'), dim_v = SGK_DIM(m, 'E');
    SGK_REQUIRE(kv_heads ? heads % kv_heads == 0 : heads == 0, SGK_BAD_ARG, "%s: the queries have %lld heads, expected a multiple of the keys' %lld", c->op, heads, kv_heads);
    SGK_REQUIRE(dim >= 1 && dim <= ATTENTION_MOST_DIM, SGK_BAD_ARG, "%s: the queries have head size %lld, expected 1 to %d", c->op, dim, ATTENTION_MOST_DIM);
    SGK_REQUIRE(dim_v >= 1 && dim_v <= ATTENTION_MOST_DIM_V, SGK_BAD_ARG, "%s: the values have head size %lld, expected 1 to %d", c->op, dim_v, ATTENTION_MOST_DIM_V);

    a->batch = (int32_t)SGK_DIM(m, 'B'), a->size = (int32_t)sgk_dtype_size(m->dtype);
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, c->op, m->device, tensors, 7, c->exec));
    if (host.known) {
        struct attention_pool_args here = *a;
        here.req_to_token = host.data[0], here.req_pool_indices = host.data[1], here.seq_lens = host.data[2];
        here.extend_seq_lens = host.data[3], here.extend_start_loc = host.data[4], here.encoder_lens = host.data[5], here.loc = host.data[6];
        SGK_TRY(sgk_indices_done(&host, check_sequences(c->op, &here, max_len_extend)));
    }

    struct attention_args *x = &c->a;
    x->k = sgk_data(k), x->v = sgk_data(v);
    x->k_batch_stride = x->k_row_stride = sgk_stride(k, 0), x->k_head_stride = sgk_stride(k, 1);
    x->v_batch_stride = x->v_row_stride = sgk_stride(v, 0), x->v_head_stride = sgk_stride(v, 1);
    x->batch = a->batch, x->heads = (int32_t)heads, x->kv_heads = (int32_t)kv_heads, x->group = kv_heads ? (int32_t)(heads / kv_heads) : 0;
    x->dim = (int32_t)dim, x->dim_v = (int32_t)dim_v;
    x->kv_batches = (int32_t)a->slots, x->page_size = 1, x->page_table_stride = a->width, x->max_k = a->width;
    x->chunk = 0, x->dtype = x->out_dtype = m->dtype, x->empty_lse = -INFINITY, x->splits = 1;
    if (!sgk_on_gpu(m)) return run_on_cpu(c, a);
    c->prepare = prepare_cuda, c->prepare_args = a, c->prepare_bytes = x->batch ? place(a, NULL) : 0;
    if (!x->batch) c->prepare = NULL;
    return attention_run_cuda(c);
}

static sgk_status read_options(attention_call *c, const sgk_attention_pool_options *given, sgk_attention_pool_options *o)
{
    *o = (sgk_attention_pool_options)SGK_ATTENTION_POOL_OPTIONS_INIT;
    if (given) memcpy(o, given, given->size < sizeof *o ? given->size : sizeof *o);
    SGK_REQUIRE(isfinite(o->sm_scale), SGK_BAD_ARG, "%s: sm_scale is %g, expected a finite number", c->op, o->sm_scale);
    SGK_REQUIRE(o->logit_cap >= 0 && isfinite(o->logit_cap), SGK_BAD_ARG, "%s: logit_cap is %g, expected a finite number that is not negative", c->op, o->logit_cap);
    SGK_REQUIRE(!o->is_cross_attn || o->encoder_lens, SGK_BAD_ARG, "%s: encoder_lens is not given, expected it with is_cross_attn", c->op);
    const int64_t window = o->sliding_window_size;
    c->a.scale = (float)o->sm_scale, c->a.softcap = (float)o->logit_cap;
    c->a.window_left  = o->is_cross_attn || window <= 0 ? ATTENTION_NO_LIMIT : attention_at_most(window - 1, ATTENTION_NO_LIMIT);
    c->a.window_right = o->is_cross_attn ? ATTENTION_NO_LIMIT : 0;
    if (o->sinks) c->a.sinks = sgk_data(o->sinks), c->a.sinks_dtype = sgk_dtype_at(o->sinks);
    return SGK_OK;
}

static bool same_memory(const DLTensor *x, const DLTensor *y) { return x && y && sgk_data(x) && sgk_data(x) == sgk_data(y); }

/* Values that are part of the keys: a matcher of its own, because k_cache is written and they are the same memory. */
static sgk_status match_latent(attention_call *c, const DLTensor *v_cache)
{
    sgk_match v      = { .op = c->op, .bound = 1u << ('S' - 'A') | 1u << ('K' - 'A') };
    SGK_DIM(&v, 'S') = SGK_DIM(&c->m, 'S'), SGK_DIM(&v, 'K') = SGK_DIM(&c->m, 'K');
    SGK_MATCH(&v, v_cache, "S K E", 1u << c->m.dtype);
    SGK_REQUIRE(SGK_DIM(&v, 'E') <= SGK_DIM(&c->m, 'D') && sgk_stride(v_cache, 0) == c->a.k_row_stride && sgk_stride(v_cache, 1) == c->a.k_head_stride, SGK_BAD_ARG,
                "%s: v_cache begins where k_cache does, expected the first elements of its rows", c->op);
    return sgk_match_done(&v);
}

sgk_status sgk_decode_attention(const DLTensor *output, const DLTensor *query, const DLTensor *k_cache, const DLTensor *v_cache, const DLTensor *key, const DLTensor *value,
                                const DLTensor *loc, const DLTensor *attn_logits, const DLTensor *req_to_token, const DLTensor *req_pool_indices, const DLTensor *seq_lens,
                                const sgk_attention_pool_options *options, const sgk_exec *exec)
{
    attention_call             c = { .op = "decode_attention", .m = { .op = "decode_attention" }, .exec = exec, .o = SGK_FLASH_ATTN_OPTIONS_INIT };
    sgk_attention_pool_options o;
    SGK_TRY(read_options(&c, options, &o));
    const DLTensor *encoder_lens = o.encoder_lens, *sinks = o.sinks;
    const bool      latent = same_memory(k_cache, v_cache);
    SGK_REQUIRE(!key == !value, SGK_BAD_ARG, "%s: %s is given alone, expected key and value together", c.op, key ? "key" : "value");
    sgk_match *m = &c.m;
    SGK_MATCH(m, query, "B H D", SGK_ANY_FLOAT);
    const unsigned same = 1u << m->dtype;
    SGK_TRY(sgk_match_tensor(m, k_cache, "k_cache", "S K D", same, key != NULL));
    if (!latent) SGK_TRY(sgk_match_tensor(m, v_cache, "v_cahce", "S K E", same, key != NULL));      /* as the released schema spells it */
    SGK_MATCH_OUT(m, output, "B H E", same);
    SGK_MATCH_OPT(m, key, "B K D", same);
    SGK_MATCH_OPT(m, value, "B K E", same);
    SGK_MATCH(m, loc, "B", 1u << SGK_I64);
    SGK_MATCH_OPT(m, attn_logits, "B H P Y", 1u << SGK_F32);
    SGK_MATCH(m, req_to_token, "R C", SGK_ANY_INDEX);
    SGK_MATCH(m, req_pool_indices, "B", 1u << SGK_I64);
    SGK_MATCH(m, seq_lens, "B", 1u << SGK_I64);
    SGK_MATCH_OPT(m, encoder_lens, "B", 1u << SGK_I64);
    SGK_MATCH_OPT(m, sinks, "H", SGK_ANY_FLOAT);
    SGK_TRY(sgk_match_done(m));
    if (latent) {
        c.a.k_row_stride = sgk_stride(k_cache, 0), c.a.k_head_stride = sgk_stride(k_cache, 1);
        SGK_TRY(match_latent(&c, v_cache));
        SGK_REQUIRE(v_cache->shape[2] == SGK_DIM(m, 'E'), SGK_BAD_ARG, "%s: v_cache has size %lld in dimension 2, expected %lld from [E]", c.op, (long long)v_cache->shape[2], (long long)SGK_DIM(m, 'E'));
    }
    struct attention_pool_args a = {
        .req_to_token      = sgk_data(req_to_token),
        .req_pool_indices  = sgk_data(req_pool_indices),
        .seq_lens          = sgk_data(seq_lens),
        .encoder_lens      = sgk_data(encoder_lens),
        .req_stride        = sgk_stride(req_to_token, 0),
        .key               = sgk_data(key),
        .value             = latent ? NULL : sgk_data(value),
        .k_cache           = sgk_data(k_cache),
        .v_cache           = sgk_data(v_cache),
        .loc               = sgk_data(loc),
        .key_stride        = key ? sgk_stride(key, 0) : 0,
        .key_head_stride   = key ? sgk_stride(key, 1) : 0,
        .value_stride      = value ? sgk_stride(value, 0) : 0,
        .value_head_stride = value ? sgk_stride(value, 1) : 0,
        .k_stride          = sgk_stride(k_cache, 0),
        .k_head_stride     = sgk_stride(k_cache, 1),
        .v_stride          = sgk_stride(v_cache, 0),
        .v_head_stride     = sgk_stride(v_cache, 1),
        .slots             = SGK_DIM(m, 'S'),
        .rows              = attention_at_most(SGK_DIM(m, 'R'), ATTENTION_NO_LIMIT),
        .width             = attention_at_most(SGK_DIM(m, 'C'), ATTENTION_NO_LIMIT),
        .kv_heads          = (int32_t)SGK_DIM(m, 'K'),
        .dim               = (int32_t)SGK_DIM(m, 'D'),
        .dim_v             = (int32_t)SGK_DIM(m, 'E'),
        .wide              = sgk_dtype_at(req_to_token) == SGK_I64,
        .cross             = o.is_cross_attn,
    };
    struct attention_args *x = &c.a;
    x->out = sgk_data(output), x->q = sgk_data(query), x->max_q = 1;
    x->out_batch_stride = sgk_stride(output, 0), x->out_head_stride = sgk_stride(output, 1);
    x->q_batch_stride = sgk_stride(query, 0), x->q_head_stride = sgk_stride(query, 1);
    return run(&c, &a, (const DLTensor *[]){ req_to_token, req_pool_indices, seq_lens, NULL, NULL, encoder_lens, key ? loc : NULL }, 0, k_cache, v_cache);
}

sgk_status sgk_extend_attention(const DLTensor *o_extend, const DLTensor *q_extend, const DLTensor *k_extend, const DLTensor *v_extend, const DLTensor *k_buffer,
                                const DLTensor *v_buffer, const DLTensor *req_to_token, const DLTensor *req_pool_indices, const DLTensor *seq_lens,
                                const DLTensor *extend_seq_lens, const DLTensor *extend_start_loc, int64_t max_len_extend, const sgk_attention_pool_options *options,
                                const sgk_exec *exec)
{
    attention_call             c = { .op = "extend_attention", .m = { .op = "extend_attention" }, .exec = exec, .o = SGK_FLASH_ATTN_OPTIONS_INIT };
    sgk_attention_pool_options o;
    SGK_TRY(read_options(&c, options, &o));
    const DLTensor *encoder_lens = o.encoder_lens, *sinks = o.sinks;
    SGK_REQUIRE(!k_extend == !v_extend, SGK_BAD_ARG, "%s: %s is given alone, expected k_extend and v_extend together", c.op, k_extend ? "k_extend" : "v_extend");
    SGK_REQUIRE(k_extend || o.is_cross_attn, SGK_BAD_ARG, "%s: k_extend is not given, expected it without is_cross_attn", c.op);
    SGK_REQUIRE(max_len_extend >= 0, SGK_BAD_ARG, "%s: max_len_extend is %lld, expected 0 or more", c.op, (long long)max_len_extend);
    sgk_match *m = &c.m;
    SGK_MATCH(m, q_extend, "T H D", SGK_ANY_FLOAT);
    const unsigned same = 1u << m->dtype;
    SGK_MATCH_OUT(m, o_extend, "T H E", same);
    const bool fresh = k_extend && !o.is_cross_attn;
    if (k_extend) {
        SGK_MATCH(m, k_extend, "T K D", same);
        SGK_MATCH(m, v_extend, "T K E", same);
    }
    const bool unread = fresh && k_buffer && k_buffer->ndim == 3 && k_buffer->shape && k_buffer->shape[1] != SGK_DIM(m, 'K');
    SGK_MATCH(m, k_buffer, unread ? "S L M" : o.is_cross_attn && k_extend ? "S K D"
                                                                          : "S K D",
              same);
    SGK_MATCH(m, v_buffer, unread ? "S L N" : "S K E", same);
    SGK_MATCH(m, req_to_token, "R C", SGK_ANY_INDEX);
    const unsigned index = 1u << sgk_dtype_at(req_to_token);
    SGK_MATCH(m, req_pool_indices, "B", 1u << SGK_I64);
    SGK_MATCH(m, seq_lens, "B", 1u << SGK_I64);
    SGK_MATCH(m, extend_seq_lens, "B", index);
    SGK_MATCH(m, extend_start_loc, "B", index);
    SGK_MATCH_OPT(m, encoder_lens, "B", 1u << SGK_I64);
    SGK_MATCH_OPT(m, sinks, "H", SGK_ANY_FLOAT);
    SGK_TRY(sgk_match_done(m));
    const DLTensor *k = unread ? k_extend : k_buffer, *v = unread ? v_extend : v_buffer;

    struct attention_pool_args a = {
        .req_to_token     = sgk_data(req_to_token),
        .req_pool_indices = sgk_data(req_pool_indices),
        .seq_lens         = sgk_data(seq_lens),
        .encoder_lens     = sgk_data(encoder_lens),
        .extend_seq_lens  = sgk_data(extend_seq_lens),
        .extend_start_loc = sgk_data(extend_start_loc),
        .req_stride       = sgk_stride(req_to_token, 0),
        .slots            = unread ? SGK_DIM(m, 'T') : SGK_DIM(m, 'S'),
        .rows             = attention_at_most(SGK_DIM(m, 'R'), ATTENTION_NO_LIMIT),
        .width            = attention_at_most(SGK_DIM(m, 'C'), ATTENTION_NO_LIMIT),
        .total            = attention_at_most(SGK_DIM(m, 'T'), ATTENTION_NO_LIMIT),
        .wide             = sgk_dtype_at(req_to_token) == SGK_I64,
        .cross            = o.is_cross_attn,
        .unread           = unread,
    };
    struct attention_args *x = &c.a;
    x->out = sgk_data(o_extend), x->q = sgk_data(q_extend);
    x->out_row_stride = sgk_stride(o_extend, 0), x->out_head_stride = sgk_stride(o_extend, 1);
    x->q_row_stride = sgk_stride(q_extend, 0), x->q_head_stride = sgk_stride(q_extend, 1);
    x->max_q = attention_at_most(max_len_extend, SGK_DIM(m, 'T')), x->total_q = a.total;
    x->cu_seqlens_q = &(int32_t){ 0 };                                  /* there will be one: starts */
    if (fresh) {
        const int64_t size = sgk_dtype_size(m->dtype);
        x->k_new = sgk_data(k_extend), x->v_new = sgk_data(v_extend), x->apart = 1;
        x->k_apart = ((intptr_t)x->k_new - (intptr_t)sgk_data(k)) / size, x->v_apart = ((intptr_t)x->v_new - (intptr_t)sgk_data(v)) / size;
        x->k_new_row_stride = sgk_stride(k_extend, 0), x->k_new_head_stride = sgk_stride(k_extend, 1);
        x->v_new_row_stride = sgk_stride(v_extend, 0), x->v_new_head_stride = sgk_stride(v_extend, 1);
        x->max_new = x->max_q, x->total_new = a.total;
    }
    return run(&c, &a, (const DLTensor *[]){ req_to_token, req_pool_indices, seq_lens, extend_seq_lens, extend_start_loc, encoder_lens, NULL }, max_len_extend, k, v);
}
