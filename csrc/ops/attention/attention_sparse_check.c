#include "attention_lightning.h"
#include "attention_slash.h"
#include "attention_sparse.h"
#include "check/check.h"

/* ---- sparse attention ------------------------------------------------------------------------------------------------- */

static double tolerance(sgk_dtype dtype) { return dtype == SGK_F32 ? 4e-5 : 1.5 * check_tolerance(dtype); }

static void check_sparse(sgk_dtype dtype, bool packed, int queries, int keys, int64_t heads, int64_t kv_heads, int64_t dim, bool causal)
{
    if (!check_case("%sfwd_sparse_%s_%dx%d_%lldto%lldx%lld%s", packed ? "varlen_" : "", check_dtype(dtype), queries, keys, (long long)heads, (long long)kv_heads, (long long)dim, causal ? "_causal" : "")) return;
    const int64_t batch = 2, blocks = (queries + 63) / 64, nnz_s = 3, nnz_v = 70;
    check_tensor *q, *k, *v, *out, *lse, *cu_q = NULL, *cu_k = NULL, *used = NULL;
    if (packed) {
        const int q1 = check_int(0, queries), k1 = check_int(0, keys);
        q   = check_input(dtype, 3, (int64_t)q1 + queries, heads, dim);
        out = check_output(dtype, 3, (int64_t)q1 + queries, heads, dim);
        lse = check_output(SGK_F32, 2, heads, (int64_t)q1 + queries);
        k = check_input(dtype, 3, (int64_t)k1 + keys, kv_heads, dim), v = check_input(dtype, 3, (int64_t)k1 + keys, kv_heads, dim);
        cu_q = check_values(SGK_I32, (double[]){ 0, q1, q1 + queries }, 1, (int64_t)3), cu_k = check_values(SGK_I32, (double[]){ 0, k1, k1 + keys }, 1, (int64_t)3);
        used = check_values(SGK_I32, (double[]){ k1, keys - keys / 4 }, 1, (int64_t)2);
        check_legal(used, CHECK_NULL);
    } else {
        q   = check_input(dtype, 4, batch, (int64_t)queries, heads, dim);
        out = check_output(dtype, 4, batch, (int64_t)queries, heads, dim);
        lse = check_output(SGK_F32, 3, batch, heads, (int64_t)queries);
        k = check_input(dtype, 4, batch, (int64_t)keys, kv_heads, dim), v = check_input(dtype, 4, batch, (int64_t)keys, kv_heads, dim);
    }
    check_tensor *block_count = check_index(SGK_I32, 0, nnz_s, 3, batch, heads, blocks), *column_count = check_index(SGK_I32, 0, nnz_v, 3, batch, heads, blocks);
    check_tensor *block_offset = check_index(SGK_I32, 0, keys + 20, 4, batch, heads, blocks, nnz_s), *column_index = check_index(SGK_I32, 0, keys + 5, 4, batch, heads, blocks, nnz_v);
    check_legal(lse, CHECK_NULL);
    sgk_sparse_attention_options o = SGK_SPARSE_ATTENTION_OPTIONS_INIT;
    o.is_causal = causal, o.max_seqlen_q = queries, o.max_seqlen_k = keys;
    CHECK_CALL((o.cu_seqlens_q = T(cu_q), o.cu_seqlens_k = T(cu_k), o.seqused_k = T(used),
                sgk_sparse_attention(T(out), T(lse), T(q), T(k), T(v), T(block_count), T(block_offset), T(column_count), T(column_index), &o, check_exec)));
    check_close(out, tolerance(dtype));
    check_close_least(lse, 5e-6, 1);
    check_done(0, 0);
}

void check_attention_sparse(void)
{
    for (int packed = 0; packed < 2; ++packed)
        for (int causal = 0; causal < 2; ++causal) {
            check_sparse(SGK_BF16, packed, 130, 200, 4, 2, 128, causal);
            check_sparse(SGK_F16, packed, 65, 70, 3, 3, 40, causal);
            if (!check_on_gpu()) check_sparse(SGK_F32, packed, 20, 90, 2, 1, 64, causal);
        }
}

/* ---- vertical and slash indices ---------------------------------------------------------------------------------------- */

static void check_slash(bool counts, bool causal, int m, int n, int queries, int keys)
{
    if (!check_case("convert_vertical_slash_indexes%s_%dx%d_%dx%d%s", counts ? "_mergehead" : "", m, n, queries, keys, causal ? "_causal" : "")) return;
    const int64_t batch = 2, heads = 3, verticals = 9, slashes = 7, blocks = (queries + m - 1) / m;
    check_tensor *vertical = check_index(SGK_I32, 0, 0, 3, batch, heads, verticals), *slash = check_index(SGK_I32, 0, 0, 3, batch, heads, slashes);
    for (int64_t bh = 0; bh < batch * heads; ++bh) {
        int at = check_int(0, 3);
        for (int64_t i = 0; i < verticals; ++i, at += check_int(1, keys / 8 + 1)) check_set(vertical, bh * verticals + i, at);
        at = keys + check_int(0, 5);
        for (int64_t i = 0; i < slashes; ++i) {
            check_set(slash, bh * slashes + i, at > 0 ? at : 0);
            at -= check_int(1, keys / 5 + 1);
        }
    }
    check_tensor *q_seqlens = check_values(SGK_I32, (double[]){ queries, queries / 2 }, 1, batch), *kv_seqlens = check_values(SGK_I32, (double[]){ keys, keys - 1 }, 1, batch);
    check_tensor *vertical_count = counts ? check_index(SGK_I32, 0, verticals, 1, heads) : NULL, *slash_count = counts ? check_index(SGK_I32, 0, slashes, 1, heads) : NULL;
    check_tensor *block_count = check_inout_dense(SGK_I32, 3, batch, heads, blocks), *block_offset = check_inout_dense(SGK_I32, 4, batch, heads, blocks, slashes);
    check_tensor *column_count = check_inout_dense(SGK_I32, 3, batch, heads, blocks), *column_index = check_inout_dense(SGK_I32, 4, batch, heads, blocks, verticals);
    CHECK_CALL(sgk_convert_vertical_slash_indexes(T(block_count), T(block_offset), T(column_count), T(column_index), T(q_seqlens), T(kv_seqlens), T(vertical), T(slash), T(vertical_count),
                                                  T(slash_count), queries, m, n, causal, check_exec));
    check_equal(block_count);
    check_equal(block_offset);
    check_equal(column_count);
    check_equal(column_index);
    check_done(0, 0);
}

void check_attention_slash(void)
{
    for (int i = 0; i < 4; ++i) {
        check_slash(i & 1, i >> 1, 2, 2, 9, 12);
        check_slash(i & 1, i >> 1, 64, 64, 300, 1000);
        check_slash(i & 1, i >> 1, 64, 32, 129, 129);
    }
}

/* ---- lightning attention ------------------------------------------------------------------------------------------------ */

static void check_lightning(sgk_dtype dtype, int64_t batch, int64_t heads, int64_t dim, int64_t dim_v, bool in_place)
{
    if (!check_case("lightning_attention_decode_%s_%lldx%lldx%lldx%lld%s", check_dtype(dtype), (long long)batch, (long long)heads, (long long)dim, (long long)dim_v, in_place ? "_inplace" : "")) return;
    check_tensor *q = check_input_dense(dtype, 4, batch, heads, (int64_t)1, dim), *k = check_input_dense(dtype, 4, batch, heads, (int64_t)1, dim), *v = check_input_dense(dtype, 4, batch, heads, (int64_t)1, dim_v);
    check_tensor *slope = check_input_dense(SGK_F32, 3, heads, (int64_t)1, (int64_t)1);
    for (int64_t h = 0; h < heads; ++h) check_set(slope, h, 0.1 * check_int(0, 20));
    check_tensor *new_kv  = in_place ? check_inout_dense(SGK_F32, 4, batch, heads, dim, dim_v) : check_output_dense(SGK_F32, 4, batch, heads, dim, dim_v);
    check_tensor *past_kv = in_place ? new_kv : check_input_dense(SGK_F32, 4, batch, heads, dim, dim_v), *output = check_output_dense(dtype, 4, batch, heads, (int64_t)1, dim_v);
    check_switches.keep_arguments = in_place;
    CHECK_CALL(sgk_lightning_attention_decode(T(output), T(new_kv), T(q), T(k), T(v), T(past_kv), T(slope), check_exec));
    check_close(output, 2 * check_tolerance(dtype));
    check_close(new_kv, 1e-6);
    const double state = (double)(batch * heads * dim * dim_v);
    check_done(8 * state, 5 * state);
}

void check_attention_lightning(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (int f = 0; f < 3; ++f) {
        check_lightning(formats[f], 2, 3, 32, 64, false);
        check_lightning(formats[f], 1, 2, 96, 97, true);
        check_lightning(formats[f], 0, 4, 64, 64, false);
        if (check_benching) check_lightning(formats[f], 64, 64, 96, 96, false);
    }
}
