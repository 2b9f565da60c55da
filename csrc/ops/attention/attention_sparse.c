#include "attention_sparse.h"
#include <math.h>
#include <string.h>
#include "attention_call.h"
#include "cpu/cpu.h"
#include "cuda/indices.h"

/* A niche: on the CPU the reference runs, its heads in parallel. */
sgk_cpu_fn                attention_sparse_ref;
static const sgk_cpu_impl attention_sparse_cpu[] = { { "ref", 0, attention_sparse_ref } };

/* clang-format off */
struct sparse_build attention_sparse_builds[SPARSE_BUILDS] = {
    { SGK_KERNEL("attention/attention_wide.cu", "attention_sparse", "-DT=f16 -DCODE=0 -DSPARSE=1",  SGK_GENERAL), SGK_F16 },
    { SGK_KERNEL("attention/attention_wide.cu", "attention_sparse", "-DT=bf16 -DCODE=0 -DSPARSE=1", SGK_GENERAL), SGK_BF16 },
};
/* clang-format on */

static sgk_status check_lists(const char *op, const struct attention_sparse_args *x)
{
    const struct attention_args *a = &x->a;
    for (int64_t list = 0; list < (int64_t)a->batch * a->heads * x->row_blocks; ++list) {
        const struct attention_sequence s = attention_sequence_of(a, (int32_t)(list / x->row_blocks / a->heads));
        if (list % x->row_blocks * 64 >= s.sq) continue;                /* of no query */
        SGK_REQUIRE(x->block_count[list] >= 0 && x->block_count[list] <= x->nnz_s, SGK_BAD_ARG, "%s: block_count of list %lld is %d, expected 0 to %d", op, (long long)list, x->block_count[list], x->nnz_s);
        SGK_REQUIRE(x->column_count[list] >= 0 && x->column_count[list] <= x->nnz_v, SGK_BAD_ARG, "%s: column_count of list %lld is %d, expected 0 to %d", op, (long long)list, x->column_count[list], x->nnz_v);
        for (int32_t e = 0; e < x->block_count[list]; ++e)
            SGK_REQUIRE(x->block_offset[list * x->nnz_s + e] >= 0, SGK_BAD_ARG, "%s: block_offset %d of list %lld is %d, expected a key", op, e, (long long)list, x->block_offset[list * x->nnz_s + e]);
        for (int32_t e = 0; e < x->column_count[list]; ++e)
            SGK_REQUIRE(x->column_index[list * x->nnz_v + e] >= 0, SGK_BAD_ARG, "%s: column_index %d of list %lld is %d, expected a key", op, e, (long long)list, x->column_index[list * x->nnz_v + e]);
    }
    return SGK_OK;
}

static sgk_status check_cumulative(const char *op, const char *name, const int32_t *cu, int32_t batch, int64_t total, int64_t longest)
{
    SGK_REQUIRE(cu[0] == 0, SGK_BAD_ARG, "%s: %s[0] is %d, expected 0", op, name, cu[0]);
    for (int32_t n = 0; n < batch; ++n)
        SGK_REQUIRE(cu[n] <= cu[n + 1] && cu[n + 1] - cu[n] <= longest && cu[n + 1] <= total, SGK_BAD_ARG, "%s: %s gives sequence %d rows %d to %d, expected at most %lld rows of %lld", op, name, n, cu[n],
                    cu[n + 1] - 1, (long long)longest, (long long)total);
    return SGK_OK;
}

static sgk_status run_cuda(attention_call *c, struct attention_sparse_args *x)
{
    SGK_REQUIRE(x->a.dtype != SGK_F32, SGK_UNSUPPORTED, "%s: q has dtype f32, expected f16 or bf16 on the GPU", c->op);
    struct sparse_build *b = attention_sparse_builds;
    while (b->dtype != x->a.dtype) ++b;
    x->group      = x->a.group;
    x->a.kv_heads = x->a.heads, x->a.group = 1;
    x->a.row_blocks = (x->a.max_q + 31) / 32;
    SGK_LOG_BUILD(c->exec, c->op, &b->kernel, "");
    const sgk_launch shape = { .grid = { (int64_t)x->a.row_blocks * x->a.heads * x->a.batch }, .block = { 256 }, .shared_memory = (unsigned)((x->a.dim + 63) / 64 * 32 * 128 + 2 * 64 * 128 + 32 * 128) };
    return sgk_cuda_launch(c->op, &b->kernel, &shape, c->m.device.device_id, c->exec, x, sizeof *x);
}

sgk_status sgk_sparse_attention(const DLTensor *out, const DLTensor *softmax_lse, const DLTensor *q, const DLTensor *k, const DLTensor *v, const DLTensor *block_count,
                                const DLTensor *block_offset, const DLTensor *column_count, const DLTensor *column_index, const sgk_sparse_attention_options *options, const sgk_exec *exec)
{
    sgk_sparse_attention_options o = SGK_SPARSE_ATTENTION_OPTIONS_INIT;
    if (options) memcpy(&o, options, options->size < sizeof o ? options->size : sizeof o);
    const DLTensor *cu_seqlens_q = o.cu_seqlens_q, *cu_seqlens_k = o.cu_seqlens_k, *seqused_k = o.seqused_k, *alibi_slopes = o.alibi_slopes;
    const bool      packed = cu_seqlens_q || cu_seqlens_k;
    attention_call  c      = { .op = packed ? "varlen_fwd_sparse" : "fwd_sparse", .exec = exec };
    sgk_match      *m      = &c.m;
    m->op                  = c.op;
    SGK_REQUIRE(!cu_seqlens_q == !cu_seqlens_k, SGK_BAD_ARG, "%s: %s is given alone, expected cu_seqlens_q and cu_seqlens_k together", c.op, packed ? "cu_seqlens_q" : "cu_seqlens_k");
    SGK_REQUIRE(!alibi_slopes, SGK_UNSUPPORTED, "%s: alibi_slopes is given, expected None", c.op);
    SGK_REQUIRE(o.p_dropout == 0, SGK_UNSUPPORTED, "%s: p_dropout is %g, expected 0", c.op, o.p_dropout);
    SGK_REQUIRE(isfinite(o.softmax_scale), SGK_BAD_ARG, "%s: softmax_scale is %g, expected a finite number", c.op, o.softmax_scale);
    SGK_REQUIRE(o.softcap >= 0 && isfinite(o.softcap), SGK_BAD_ARG, "%s: softcap is %g, expected a finite number that is not negative", c.op, o.softcap);
    SGK_REQUIRE(!packed || (o.max_seqlen_q >= 0 && o.max_seqlen_k >= 0), SGK_BAD_ARG, "%s: max_seqlen_q is %lld and max_seqlen_k %lld, expected 0 or more", c.op, (long long)o.max_seqlen_q, (long long)o.max_seqlen_k);

    SGK_MATCH(m, q, packed ? "T H D" : "B Q H D", SGK_ANY_FLOAT);
    const unsigned same = 1u << m->dtype, i32 = 1u << SGK_I32;
    SGK_MATCH(m, k, packed ? "S K D" : "B S K D", same);
    SGK_MATCH(m, v, packed ? "S K E" : "B S K E", same);
    SGK_MATCH_OUT(m, out, packed ? "T H E" : "B Q H E", same);
    SGK_MATCH_OPT_OUT(m, softmax_lse, packed ? "H T" : "B H Q", 1u << SGK_F32);
    if (packed) {
        SGK_MATCH(m, cu_seqlens_q, "Z", i32);
        SGK_MATCH(m, cu_seqlens_k, "Z", i32);
        SGK_REQUIRE(SGK_DIM(m, 'Z') >= 1, SGK_BAD_ARG, "%s: cu_seqlens_q has size 0 in dimension 0, expected at least 1", c.op);
        SGK_DIM(m, 'B') = SGK_DIM(m, 'Z') - 1;
        m->bound |= 1u << ('B' - 'A');
    }
    SGK_MATCH_OPT(m, seqused_k, "B", i32);
    const DLTensor *lists[] = { block_count, block_offset, column_count, column_index };
    SGK_MATCH(m, block_count, "B H R", i32);
    SGK_MATCH(m, block_offset, "B H R N", i32);
    SGK_MATCH(m, column_count, "B H R", i32);
    SGK_MATCH(m, column_index, "B H R V", i32);
    SGK_TRY(sgk_match_done(m));
    static const char *const names[] = { "block_count", "block_offset", "column_count", "column_index" };
    for (int i = 0; i < 4; ++i) SGK_TRY(sgk_match_dense(m, lists[i], names[i]));
    const long long heads = SGK_DIM(m, 'H'), kv_heads = SGK_DIM(m, 'K'), dim = SGK_DIM(m, 'D'), dim_v = SGK_DIM(m, 'E');
    SGK_REQUIRE(dim >= 1 && dim <= ATTENTION_MOST_DIM && dim_v >= 1 && dim_v <= ATTENTION_MOST_DIM_V, SGK_BAD_ARG, "%s: head sizes are %lld and %lld, expected 1 to %d and 1 to %d", c.op, dim, dim_v, ATTENTION_MOST_DIM, ATTENTION_MOST_DIM_V);
    SGK_REQUIRE(kv_heads ? heads % kv_heads == 0 : heads == 0, SGK_BAD_ARG, "%s: q has %lld heads, expected a multiple of k's %lld", c.op, heads, kv_heads);
    const int64_t sizes[] = { SGK_DIM(m, 'B'), SGK_DIM(m, 'Q'), SGK_DIM(m, 'T'), SGK_DIM(m, 'S'), heads, SGK_DIM(m, 'R'), SGK_DIM(m, 'N'), SGK_DIM(m, 'V') };
    for (size_t i = 0; i < COUNT(sizes); ++i)
        SGK_REQUIRE(sizes[i] < ATTENTION_NO_LIMIT / 64, SGK_BAD_ARG, "%s: a size is %lld, expected less than 2^24 sequences, tokens, heads and list entries", c.op, (long long)sizes[i]);

    struct attention_sparse_args x = {
        .block_count  = sgk_data(block_count),
        .column_count = sgk_data(column_count),
        .block_offset = sgk_data(block_offset),
        .column_index = sgk_data(column_index),
        .row_blocks   = (int32_t)SGK_DIM(m, 'R'),
        .nnz_s        = (int32_t)SGK_DIM(m, 'N'),
        .nnz_v        = (int32_t)SGK_DIM(m, 'V'),
        .a            = {
            .out              = sgk_data(out),
            .softmax_lse      = sgk_data(softmax_lse),
            .q                = sgk_data(q),
            .k                = sgk_data(k),
            .v                = sgk_data(v),
            .cu_seqlens_q     = sgk_data(cu_seqlens_q),
            .cu_seqlens_k     = sgk_data(cu_seqlens_k),
            .seqused_k        = sgk_data(seqused_k),
            .out_batch_stride = packed ? 0 : sgk_stride(out, 0),
            .out_row_stride   = sgk_stride(out, -3),
            .out_head_stride  = sgk_stride(out, -2),
            .q_batch_stride   = packed ? 0 : sgk_stride(q, 0),
            .q_row_stride     = sgk_stride(q, -3),
            .q_head_stride    = sgk_stride(q, -2),
            .k_batch_stride   = packed ? 0 : sgk_stride(k, 0),
            .k_row_stride     = sgk_stride(k, -3),
            .k_head_stride    = sgk_stride(k, -2),
            .v_batch_stride   = packed ? 0 : sgk_stride(v, 0),
            .v_row_stride     = sgk_stride(v, -3),
            .v_head_stride    = sgk_stride(v, -2),
            .lse_batch_stride = softmax_lse && !packed ? sgk_stride(softmax_lse, 0) : 0,
            .lse_head_stride  = softmax_lse ? sgk_stride(softmax_lse, -2) : 0,
            .batch            = (int32_t)SGK_DIM(m, 'B'),
            .heads            = (int32_t)heads,
            .kv_heads         = (int32_t)kv_heads,
            .group            = kv_heads ? (int32_t)(heads / kv_heads) : 0,
            .dim              = (int32_t)dim,
            .dim_v            = (int32_t)dim_v,
            .max_q            = packed ? attention_at_most(o.max_seqlen_q, SGK_DIM(m, 'T')) : (int32_t)SGK_DIM(m, 'Q'),
            .max_k            = packed ? attention_at_most(o.max_seqlen_k, SGK_DIM(m, 'S')) : (int32_t)SGK_DIM(m, 'S'),
            .total_q          = (int32_t)SGK_DIM(m, 'T'),
            .total_k          = (int32_t)SGK_DIM(m, 'S'),
            .kv_batches       = packed ? 1 : (int32_t)SGK_DIM(m, 'B'),
            .window_left      = ATTENTION_NO_LIMIT,
            .window_right     = o.is_causal ? 0 : ATTENTION_NO_LIMIT,
            .scale            = (float)(o.softmax_scale != 0 ? o.softmax_scale : 1 / sqrt((double)dim)),
            .softcap          = (float)o.softcap,
            .empty_lse        = -INFINITY,
            .dtype            = m->dtype,
            .out_dtype        = m->dtype,
            .splits           = 1,
        },
    };
    x.group = x.a.group;
    SGK_REQUIRE(x.a.max_q <= (int64_t)x.row_blocks * 64, SGK_BAD_ARG, "%s: block_count has size %d in dimension 2, expected %lld, one for 64 queries", c.op, x.row_blocks, ((long long)x.a.max_q + 63) / 64);

    const DLTensor *const tensors[] = { cu_seqlens_q, cu_seqlens_k, seqused_k, block_count, block_offset, column_count, column_index };
    sgk_indices           host;
    SGK_TRY(sgk_indices_read(&host, c.op, m->device, tensors, COUNT(tensors), exec));
    if (host.known) {
        struct attention_sparse_args here = x;
        here.a.cu_seqlens_q = host.data[0], here.a.cu_seqlens_k = host.data[1], here.a.seqused_k = host.data[2];
        here.block_count = host.data[3], here.block_offset = host.data[4], here.column_count = host.data[5], here.column_index = host.data[6];
        sgk_status verdict = packed ? check_cumulative(c.op, "cu_seqlens_q", here.a.cu_seqlens_q, x.a.batch, x.a.total_q, o.max_seqlen_q) : SGK_OK;
        if (verdict == SGK_OK && packed) verdict = check_cumulative(c.op, "cu_seqlens_k", here.a.cu_seqlens_k, x.a.batch, x.a.total_k, o.max_seqlen_k);
        if (verdict == SGK_OK) verdict = check_lists(c.op, &here);
        SGK_TRY(sgk_indices_done(&host, verdict));
    }
    SGK_NO_SCRATCH(exec);
    if (!x.a.batch || !x.a.heads || !x.a.max_q) return SGK_OK;
    return sgk_on_gpu(m) ? run_cuda(&c, &x) : sgk_cpu_run(c.op, attention_sparse_cpu, &x, (int64_t)x.a.batch * x.a.heads, 1, exec);
}
