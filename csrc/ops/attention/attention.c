#include "attention.h"
#include "attention_merge.h"
#include <math.h>
#include <string.h>
#include "attention_cpu.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/indices.h"
#include "sgl_kernel/attention.h"

SGK_CPU_DECL(attention);
static const sgk_cpu_impl attention_cpu[] = SGK_CPU_IMPLS(attention);

/* ---- builds ------------------------------------------------------------------------------------------------------ */

/*
 * attention_mma.cu: f16 and bf16, 16-byte rows. DIM is the largest head size a build takes. WARPS_M warps share the rows of a
 * block, 16 each; WARPS_N warps share the keys of a tile of TILE keys. Many rows (prefill): 4 x 1; few (decode): 1 x 4.
 */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        dim, warps_m, warps_n, tile;
} mma_build;

#define MMA(type, dtype, dim, m, n, tile) \
    { SGK_KERNEL("attention/attention_mma.cu", "attention_mma", "-DT=" type " -DDIM=" #dim " -DWARPS_M=" #m " -DWARPS_N=" #n " -DTILE=" #tile, SGK_GENERAL), \
      dtype, dim, m, n, tile }
#define MMAS(type, dtype) \
    MMA(type, dtype, 64, 1, 4, 64), MMA(type, dtype, 128, 1, 4, 64), MMA(type, dtype, 256, 1, 2, 32), \
        MMA(type, dtype, 64, 4, 1, 64), MMA(type, dtype, 96, 4, 1, 64), MMA(type, dtype, 128, 4, 1, 64), \
        MMA(type, dtype, 192, 4, 1, 32), MMA(type, dtype, 256, 4, 1, 32)

static mma_build mma_builds[] = { MMAS("f16", SGK_F16), MMAS("bf16", SGK_BF16) };

/* attention.cu: any format, any alignment, multiply-adds in f32; and the kernel that combines parts. */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        dim;
} plain_build;

#define PLAIN(type, dtype, dim) { SGK_KERNEL("attention/attention.cu", "attention", "-DT=" type " -DDIM=" #dim, SGK_GENERAL), dtype, dim }
static plain_build plain_builds[] = {
    PLAIN("f32", SGK_F32, 64),
    PLAIN("f32", SGK_F32, 128),
    PLAIN("f32", SGK_F32, 256),
    PLAIN("f16", SGK_F16, 256),
    PLAIN("bf16", SGK_BF16, 256),
};
/* clang-format off */
static plain_build combine_builds[] = {
    { SGK_KERNEL("attention/attention_combine.cu", "attention_combine", "-DT=f32",  SGK_GENERAL), SGK_F32,  256 },
    { SGK_KERNEL("attention/attention_combine.cu", "attention_combine", "-DT=f16",  SGK_GENERAL), SGK_F16,  256 },
    { SGK_KERNEL("attention/attention_combine.cu", "attention_combine", "-DT=bf16", SGK_GENERAL), SGK_BF16, 256 },
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
};
/* clang-format on */

const sgk_kernel_table attention_kernels[] = {
    SGK_KERNEL_TABLE(mma_builds), SGK_KERNEL_TABLE(plain_builds), SGK_KERNEL_TABLE(combine_builds), SGK_KERNEL_TABLE(append_builds), SGK_KERNEL_TABLE(merge_state_builds), { 0 }
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- arguments --------------------------------------------------------------------------------------------------- */

typedef struct {
    const char            *op;
    const DLTensor        *out, *softmax_lse, *q, *k, *v;
    sgk_flash_attn_options o;
    sgk_match              m;
} call;

static sgk_status refuse_unsupported(const call *c)
{
    const sgk_flash_attn_options *o = &c->o;
    const struct {
        bool        given;
        const char *name;
    } rest[] = {
        { o->q_v, "q_v" },
        { o->rotary_cos || o->rotary_sin, "rotary embedding inside attention" },
        { o->seqlens_rotary, "seqlens_rotary" },
        { o->q_descale, "q_descale" },
        { o->k_descale, "k_descale" },
        { o->v_descale, "v_descale" },
        { o->sinks, "sinks" },
        { o->attention_chunk != 0, "attention_chunk" },
        { o->softcap != 0, "softcap" },
    };
    for (size_t i = 0; i < COUNT(rest); ++i)
        SGK_REQUIRE(!rest[i].given, SGK_UNSUPPORTED, "%s: %s is not supported yet", c->op, rest[i].name);
    return SGK_OK;
}

/* fp8 and a V of another head size are in the contract, but not here. */
static sgk_status refuse_unsupported_tensors(const call *c)
{
    const DLTensor *q = c->q, *k = c->k, *v = c->v;
    if (!q || !k || !v || k->ndim < 3 || v->ndim != k->ndim || !k->shape || !v->shape) return SGK_OK;      /* matching says it better */
    const int dtype = sgk_dtype_of(q->dtype);
    SGK_REQUIRE(dtype != SGK_E4M3 && dtype != SGK_E5M2, SGK_UNSUPPORTED, "%s: q of dtype %s is not supported yet", c->op, sgk_dtypes[dtype].name);
    SGK_REQUIRE(k->shape[k->ndim - 1] == v->shape[v->ndim - 1], SGK_UNSUPPORTED, "%s: v with head size %lld beside k with %lld is not supported yet",
                c->op, (long long)v->shape[v->ndim - 1], (long long)k->shape[k->ndim - 1]);
    return SGK_OK;
}

/* Letters: B sequences, Q queries each, T packed queries, H heads, K key heads, D head size, C cache rows or pages, S places in each,
 * P pages of a sequence, N new tokens, Z = B + 1. */
static sgk_status match_tensors(call *c)
{
    sgk_match                    *m   = &c->m;
    const sgk_flash_attn_options *o   = &c->o;
    const DLTensor               *out = c->out, *softmax_lse = c->softmax_lse, *q = c->q, *k = c->k, *v = c->v;
    const unsigned                i32 = 1u << SGK_I32;

    SGK_MATCH(m, q, o->cu_seqlens_q ? "T H D" : "B Q H D", SGK_ANY_FLOAT);
    const unsigned same  = 1u << m->dtype;
    const char    *cache = o->cu_seqlens_k ? "S K D" : "C S K D";
    SGK_TRY(sgk_match_tensor(m, k, "k", cache, same, o->k_new != NULL));
    SGK_TRY(sgk_match_tensor(m, v, "v", cache, same, o->k_new != NULL));
    SGK_MATCH_OUT(m, out, o->cu_seqlens_q ? "T H D" : "B Q H D", same);
    SGK_MATCH_OPT_OUT(m, softmax_lse, o->cu_seqlens_q ? "H T" : "B H Q", 1u << SGK_F32);

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
        SGK_MATCH(m, v_new, o->cu_seqlens_k_new ? "N K D" : "B N K D", same);
    }
    return sgk_match_done(m);
}

static sgk_status match_rules(const call *c)
{
    const sgk_match              *m   = &c->m;
    const sgk_flash_attn_options *o   = &c->o;
    const long long               dim = SGK_DIM(m, 'D'), heads = SGK_DIM(m, 'H'), kv_heads = SGK_DIM(m, 'K');
    SGK_REQUIRE(dim >= 8 && dim <= 256 && dim % 8 == 0, SGK_BAD_ARG, "%s: q has head size %lld, expected a multiple of 8 from 8 to 256", c->op, dim);
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
    SGK_REQUIRE(o->num_splits >= 0 && o->num_splits <= 256, SGK_BAD_ARG, "%s: num_splits is %lld, expected 0 to 256", c->op, (long long)o->num_splits);
    SGK_REQUIRE(isfinite(o->softmax_scale), SGK_BAD_ARG, "%s: softmax_scale is %g, expected a finite number", c->op, o->softmax_scale);
    SGK_REQUIRE(!o->k_new || !o->cu_seqlens_k, SGK_BAD_ARG, "%s: k_new is given with cu_seqlens_k, expected a cache with room", c->op);
    const int64_t sizes[] = { SGK_DIM(m, 'B'), SGK_DIM(m, 'Q'), SGK_DIM(m, 'T'), SGK_DIM(m, 'C'), SGK_DIM(m, 'S'), SGK_DIM(m, 'N'), heads };
    for (size_t i = 0; i < COUNT(sizes); ++i)
        SGK_REQUIRE(sizes[i] < ATTENTION_NO_LIMIT, SGK_BAD_ARG, "%s: a size is %lld, expected less than 2^30 sequences, tokens, pages and heads", c->op, (long long)sizes[i]);
    return SGK_OK;
}

static int32_t at_most(int64_t x, int64_t most) { return (int32_t)(x < most ? x : most); }

static int32_t window(int64_t size) { return size < 0 ? ATTENTION_NO_LIMIT : at_most(size, ATTENTION_NO_LIMIT); }

static struct attention_args fill(const call *c)
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
        .max_q            = packed_q ? at_most(o->max_seqlen_q, SGK_DIM(m, 'T')) : (int32_t)SGK_DIM(m, 'Q'),
        .max_k            = packed_k ? at_most(o->max_seqlen_k, SGK_DIM(m, 'S')) : (int32_t)SGK_DIM(m, 'S'),
        .total_q          = (int32_t)SGK_DIM(m, 'T'),
        .total_k          = (int32_t)SGK_DIM(m, 'S'),
        .kv_batches       = packed_k ? 1 : (int32_t)SGK_DIM(m, 'C'),
        .window_left      = window(o->window_size_left),
        .window_right     = o->causal ? 0 : window(o->window_size_right),
        .scale            = (float)(o->softmax_scale != 0 ? o->softmax_scale : 1 / sqrt((double)SGK_DIM(m, 'D'))),
        .dtype            = m->dtype,
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
        a.max_k             = at_most((int64_t)a.page_size * SGK_DIM(m, 'P'), ATTENTION_NO_LIMIT - 1);
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
    /* No key anywhere, known without looking at lengths: the released library says +inf there, and -inf in every other empty row. */
    a.empty_lse = a.max_k == 0 ? INFINITY : -INFINITY;
    return a;
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

static sgk_status check_tensors(const char *op, const struct attention_args *a, const sgk_flash_attn_options *o)
{
    if (a->cu_seqlens_q) SGK_TRY(check_cumulative(op, "cu_seqlens_q", a->cu_seqlens_q, a->batch, a->total_q));
    if (a->cu_seqlens_k) SGK_TRY(check_cumulative(op, "cu_seqlens_k", a->cu_seqlens_k, a->batch, a->total_k));
    if (a->cu_seqlens_k_new) SGK_TRY(check_cumulative(op, "cu_seqlens_k_new", a->cu_seqlens_k_new, a->batch, a->total_new));
    for (int32_t n = 0; n < a->batch; ++n) SGK_TRY(check_sequence(op, a, o, n));
    return SGK_OK;
}

static sgk_status check_indices(const call *c, const struct attention_args *a, const sgk_exec *exec)
{
    const sgk_flash_attn_options *o         = &c->o;
    const DLTensor *const         tensors[] = { o->cu_seqlens_q, o->cu_seqlens_k, o->k_new ? o->cu_seqlens_k_new : NULL, o->seqused_q, o->seqused_k,
                                                o->page_table, o->kv_batch_idx, o->leftpad_k };
    sgk_indices                   host;
    SGK_TRY(sgk_indices_read(&host, c->op, c->m.device, tensors, COUNT(tensors), exec));
    if (!host.known) return SGK_OK;
    struct attention_args here = *a;
    here.cu_seqlens_q = host.data[0], here.cu_seqlens_k = host.data[1], here.cu_seqlens_k_new = host.data[2];
    here.seqused_q = host.data[3], here.seqused_k = host.data[4];
    here.page_table = host.data[5], here.kv_batch_idx = host.data[6], here.leftpad_k = host.data[7];
    return sgk_indices_done(&host, check_tensors(c->op, &here, o));
}

/* ---- the CPU ----------------------------------------------------------------------------------------------------- */

static void append_rows(int64_t begin, int64_t end, void *context)
{
    const struct attention_args *a    = context;
    const size_t                 size = (size_t)sgk_dtype_size(a->dtype), bytes = (size_t)a->dim * size;
    for (int64_t n = begin; n < end; ++n) {
        const struct attention_sequence s = attention_sequence_of(a, (int32_t)n);
        for (int32_t t = 0; t < s.fresh; ++t) {
            const struct attention_place p = attention_place_of(a, &s, (int32_t)n, s.used + t);
            for (int32_t h = 0; h < a->kv_heads; ++h) {
                const int64_t k     = p.batch * a->k_batch_stride + p.row * a->k_row_stride + h * a->k_head_stride;
                const int64_t v     = p.batch * a->v_batch_stride + p.row * a->v_row_stride + h * a->v_head_stride;
                const int64_t k_new = n * a->k_new_batch_stride + (s.fresh_begin + t) * a->k_new_row_stride + h * a->k_new_head_stride;
                const int64_t v_new = n * a->v_new_batch_stride + (s.fresh_begin + t) * a->v_new_row_stride + h * a->v_new_head_stride;
                memcpy((char *)a->k + k * (int64_t)size, (const char *)a->k_new + k_new * (int64_t)size, bytes);
                memcpy((char *)a->v + v * (int64_t)size, (const char *)a->v_new + v_new * (int64_t)size, bytes);
            }
        }
    }
}

/* The most key heads that an item takes: their rows fit a block, and a block of their keys and values the second-level cache. */
static int32_t most_heads(const struct attention_args *a, int64_t rows)
{
    if (rows < 1 || rows > ATTENTION_FEW_ROWS) return 1;
    const int64_t bytes = 2 * (int64_t)ATTENTION_KEYS * a->dim * sgk_dtype_size(a->dtype);
    int64_t       heads = ATTENTION_ROWS / rows;
    if (heads > 262144 / bytes) heads = 262144 / bytes;
    if (heads > a->kv_heads) heads = a->kv_heads;
    return heads > 1 ? (int32_t)heads : 1;
}

/* Cuts the call into items of at most `heads` key heads, and counts what they need. `plan` may be NULL to count alone. */
typedef struct {
    int64_t items, partials, units, bytes;
    int32_t max_rows;
} plan_size;

static plan_size make_plan(const struct attention_args *a, int32_t padded_dim, int32_t heads, struct attention_plan *plan)
{
    plan_size size = { 0 };
    for (int32_t n = 0; n < a->batch; ++n) {
        const struct attention_sequence s    = attention_sequence_of(a, n);
        const int64_t                   rows = (int64_t)s.sq * a->group;
        struct attention_plan           p    = { .sequence = s, .blocks = (int32_t)((rows + ATTENTION_ROWS - 1) / ATTENTION_ROWS), .spans = 1, .heads = at_most(most_heads(a, rows), heads), .first_item = size.items, .partials = size.partials, .first_unit = size.units };
        if (p.blocks == 1) {
            const int32_t keys = attention_keys_of(a, &s, s.sq - 1).end - attention_keys_of(a, &s, 0).begin;
            if (keys > ATTENTION_SPAN) p.spans = (keys + ATTENTION_SPAN - 1) / ATTENTION_SPAN;
        }
        const int64_t units = (a->kv_heads + p.heads - 1) / p.heads, most = p.heads * (rows < ATTENTION_ROWS ? rows : ATTENTION_ROWS);
        size.items += units * p.blocks * p.spans;
        size.bytes += (int64_t)a->kv_heads * p.blocks * s.sk * a->dim * 2 * sgk_dtype_size(a->dtype);
        if (p.spans > 1) {
            size.partials += (int64_t)a->kv_heads * p.spans * rows * (padded_dim + 2);
            size.units += units;
        }
        if (most > size.max_rows) size.max_rows = (int32_t)most;
        if (plan) plan[n] = p;
    }
    return size;
}

static int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static sgk_status run_cpu(const call *c, const struct attention_args *a, const sgk_exec *exec)
{
    struct attention_work w     = { .a = *a, .padded_dim = (a->dim + 15) / 16 * 16 };
    int32_t               heads = ATTENTION_ROWS;
    plan_size             size  = make_plan(a, w.padded_dim, heads, NULL);
    int64_t               slots = size.bytes / 262144 + 1;         /* fewer threads where a piece would be over before another thread has woken up */
    if (slots > sgk_num_threads(exec)) slots = sgk_num_threads(exec);
    while (slots > 1 && heads > 1 && size.items < 4 * slots) size = make_plan(a, w.padded_dim, heads /= 2, NULL);
    if (slots > size.items) slots = size.items;
    w.items        = size.items;
    w.max_rows     = size.max_rows;
    w.buffer_bytes = attention_buffer_floats(w.padded_dim, w.max_rows) * (int64_t)sizeof(float);

    const int64_t plan_bytes = rounded(a->batch * (int64_t)sizeof(struct attention_plan)), unit_bytes = rounded(size.units * 4);
    const int64_t partial_bytes = rounded(size.partials * 4);
    sgk_scratch   scratch;
    SGK_TRY(sgk_scratch_get(&scratch, c->op, (size_t)(64 + plan_bytes + unit_bytes + partial_bytes + slots * w.buffer_bytes), c->m.device, exec));
    if (scratch.query_only) return SGK_OK;

    char *memory                = scratch.memory;
    w.next                      = (int64_t *)memory, memory += 64;
    struct attention_plan *plan = (struct attention_plan *)memory;
    w.plan                      = plan, memory += plan_bytes;
    w.left                      = (int32_t *)memory, memory += unit_bytes;
    w.partials                  = (float *)memory, memory += partial_bytes;
    w.buffers                   = memory;
    *w.next                     = 0;
    make_plan(a, w.padded_dim, heads, plan);
    for (int32_t n = 0; n < a->batch; ++n)
        if (plan[n].spans > 1)
            for (int32_t h = 0; h < a->kv_heads; h += plan[n].heads) w.left[plan[n].first_unit + h / plan[n].heads] = plan[n].spans;

    if (a->max_new) {
        struct attention_args appending = *a;
        sgk_parallel_for(exec, 0, a->batch, sgk_cpu_grain(4 * (int64_t)a->max_new * a->kv_heads * a->dim * sgk_dtype_size(a->dtype)), append_rows, &appending);
    }
    /* The fast versions deal items out as threads ask for them, one buffer a thread; the reference takes heads. */
    const bool       reference = sgk_cpu_pick(attention_cpu)->needs == 0;
    const sgk_status status    = sgk_cpu_run(c->op, attention_cpu, &w, reference ? (int64_t)a->batch * a->heads : slots, 1, exec);
    sgk_scratch_put(&scratch);
    return status;
}

/* ---- the GPU ----------------------------------------------------------------------------------------------------- */

static bool in_pieces(const void *data, int64_t x, int64_t y, int64_t z, int64_t size, int64_t piece)
{
    return ((uintptr_t)data | (uint64_t)(x * size) | (uint64_t)(y * size) | (uint64_t)(z * size)) % (uint64_t)piece == 0;
}

static bool appends_in(const struct attention_args *a, int64_t piece)
{
    const int64_t size = sgk_dtype_size(a->dtype);
    return in_pieces(a->k, a->k_batch_stride, a->k_row_stride, a->k_head_stride, size, piece) &&
           in_pieces(a->v, a->v_batch_stride, a->v_row_stride, a->v_head_stride, size, piece) &&
           in_pieces(a->k_new, a->k_new_batch_stride, a->k_new_row_stride, a->k_new_head_stride, size, piece) &&
           in_pieces(a->v_new, a->v_new_batch_stride, a->v_new_row_stride, a->v_new_head_stride, size, piece);
}

static sgk_status append_cuda(const call *c, const struct attention_args *a, const sgk_exec *exec)
{
    append_build *b = append_builds;
    while (!appends_in(a, b->piece)) ++b;
    SGK_LOG_BUILD(exec, c->op, &b->kernel, b->piece == 16 ? "" : " (k, v, k_new or v_new not in 16-byte pieces)");
    const sgk_launch shape = { .grid = { (int64_t)a->max_new * a->batch }, .block = { 128 } };
    return sgk_cuda_launch(c->op, &b->kernel, &shape, c->m.device.device_id, exec, a, sizeof *a);
}

/* What runs: one of the two. */
typedef struct {
    mma_build   *mma;
    plain_build *plain;
    int          rows, threads, tile;
    unsigned     shared_memory;
} choice;

enum { PLAIN_ROWS    = 32,
       PLAIN_TILE    = 32,
       PLAIN_THREADS = 128 };

static choice choose(const struct attention_args *a, const sgk_exec *exec)
{
    const int64_t size    = sgk_dtype_size(a->dtype);
    const bool    vectors = in_pieces(a->q, a->q_batch_stride, a->q_row_stride, a->q_head_stride, size, 16) &&
                            in_pieces(a->k, a->k_batch_stride, a->k_row_stride, a->k_head_stride, size, 16) &&
                            in_pieces(a->v, a->v_batch_stride, a->v_row_stride, a->v_head_stride, size, 16) &&
                            in_pieces(a->out, a->out_batch_stride, a->out_row_stride, a->out_head_stride, size, 16);
    /* The longest sequence decides, so a batch-invariant call has no choice here. */
    const bool few = (int64_t)a->max_q * a->group <= 16 && !sgk_exec_batch_invariant(exec);
    for (size_t i = 0; vectors && i < COUNT(mma_builds); ++i) {
        mma_build *b = &mma_builds[i];
        if (b->dtype != a->dtype || b->dim < a->dim || (b->warps_m == 1) != few) continue;
        return (choice){ .mma = b, .rows = 16 * b->warps_m, .threads = 32 * b->warps_m * b->warps_n, .tile = b->tile, .shared_memory = (unsigned)((16 * b->warps_m + 4 * b->tile) * b->dim * 2) };
    }
    plain_build *b = plain_builds;
    while (b->dtype != a->dtype || b->dim < a->dim) ++b;
    return (choice){ .plain = b, .rows = PLAIN_ROWS, .threads = PLAIN_THREADS, .tile = PLAIN_TILE, .shared_memory = (unsigned)(((PLAIN_ROWS + PLAIN_TILE) * (b->dim + 4) + PLAIN_ROWS * (PLAIN_TILE + 1)) * 4) };
}

/*
 * In how many parts to cut the keys of every sequence. It follows from sizes alone, never from lengths, which are on the device and
 * may change between two replays of a graph.
 */
static int32_t choose_splits(struct attention_args *a, const choice *best, int64_t blocks, int64_t wanted, const sgk_cuda_device *device, const sgk_exec *exec)
{
    const int64_t tiles = (a->max_k + best->tile - 1) / best->tile;
    if (sgk_exec_batch_invariant(exec)) {
        const int64_t parts = 16, least = 1024;
        const int64_t keys = (tiles + parts - 1) / parts * best->tile;
        a->split_keys      = (int32_t)(keys > least ? keys : least);
        return at_most((a->max_k + a->split_keys - 1) / a->split_keys, parts);
    }
    if (wanted == 0) {
        const int64_t per_multiprocessor = device->shared_memory_per_multiprocessor / (best->shared_memory + 4096);
        const int64_t room               = device->multiprocessors * (per_multiprocessor > 0 ? per_multiprocessor : 1);
        wanted                           = at_most(room / (blocks ? blocks : 1), tiles / 4);
    }
    return at_most(wanted > 1 ? wanted : 1, tiles > 1 ? tiles : 1);
}

static sgk_status run_cuda(const call *c, struct attention_args *a, const sgk_exec *exec)
{
    const sgk_cuda_device *device;
    SGK_TRY(sgk_cuda_get_device(c->op, c->m.device.device_id, &device));
    const choice  best   = choose(a, exec);
    const int64_t rows   = (int64_t)a->max_q * a->group;
    a->row_blocks        = (int32_t)((rows + best.rows - 1) / best.rows);
    const int64_t blocks = (int64_t)a->row_blocks * a->kv_heads * a->batch;
    a->splits            = choose_splits(a, &best, blocks, c->o.num_splits, device, exec);
    if (a->splits < 1) a->splits = 1;

    const int64_t queries   = (int64_t)a->batch * a->heads * a->max_q;
    const int64_t out_bytes = a->splits > 1 ? (a->splits * queries * a->dim * 4 + 255) / 256 * 256 : 0;
    const int64_t lse_bytes = a->splits > 1 ? a->splits * queries * 4 : 0;
    sgk_scratch   scratch;
    SGK_TRY(sgk_scratch_get(&scratch, c->op, (size_t)(out_bytes + lse_bytes), c->m.device, exec));
    if (scratch.query_only) return SGK_OK;
    a->partial_out = scratch.memory;
    if (scratch.memory) a->partial_lse = (float *)((char *)scratch.memory + out_bytes);

    sgk_status status = a->max_new && a->batch && a->kv_heads ? append_cuda(c, a, exec) : SGK_OK;
    if (status == SGK_OK && blocks) {
        sgk_kernel *kernel = best.mma ? &best.mma->kernel : &best.plain->kernel;
        SGK_LOG_BUILD(exec, c->op, kernel, best.mma ? "" : a->dtype == SGK_F32 ? " (f32)"
                                                                               : " (q, k, v or out not in 16-byte pieces: slow)");
        const sgk_launch shape = { .grid = { blocks * a->splits }, .block = { (unsigned)best.threads }, .shared_memory = best.shared_memory };
        status                 = sgk_cuda_launch(c->op, kernel, &shape, c->m.device.device_id, exec, a, sizeof *a);
    }
    if (status == SGK_OK && blocks && a->splits > 1) {
        plain_build *b = combine_builds;
        while (b->dtype != a->dtype) ++b;
        const sgk_launch shape = { .grid = { (queries + 3) / 4 }, .block = { 128 } };
        status                 = sgk_cuda_launch(c->op, &b->kernel, &shape, c->m.device.device_id, exec, a, sizeof *a);
    }
    sgk_scratch_put(&scratch);
    return status;
}

sgk_status sgk_flash_attn(const DLTensor *out, const DLTensor *softmax_lse, const DLTensor *q, const DLTensor *k, const DLTensor *v,
                          const sgk_flash_attn_options *options, const sgk_exec *exec)
{
    call c = { .out = out, .softmax_lse = softmax_lse, .q = q, .k = k, .v = v, .o = SGK_FLASH_ATTN_OPTIONS_INIT };
    if (options) memcpy(&c.o, options, options->size < sizeof c.o ? options->size : sizeof c.o);
    const sgk_flash_attn_options *o = &c.o;
    c.op = c.m.op = o->k_new || o->v_new ? "flash_attn_append" : "flash_attn";
    SGK_TRY(refuse_unsupported(&c));
    SGK_TRY(refuse_unsupported_tensors(&c));
    SGK_REQUIRE(!o->k_new == !o->v_new, SGK_BAD_ARG, "%s: %s is given alone, expected k_new and v_new together", c.op, o->k_new ? "k_new" : "v_new");
    SGK_REQUIRE(!o->k_new || o->seqused_k, SGK_BAD_ARG, "%s: k_new is given without seqused_k, expected the lengths to append to", c.op);
    SGK_TRY(match_tensors(&c));
    SGK_TRY(match_rules(&c));

    struct attention_args a = fill(&c);
    SGK_REQUIRE(!o->k_new || a.max_q <= a.max_k, SGK_BAD_ARG, "%s: q has %d rows a sequence and the cache has room for %d, expected no more queries than keys when k_new is appended",
                c.op, a.max_q, a.max_k);
    SGK_REQUIRE((int64_t)a.max_q * a.group < ATTENTION_NO_LIMIT, SGK_BAD_ARG, "%s: a sequence has %d queries of %d heads a key head, expected fewer than 2^30 together",
                c.op, a.max_q, a.group);
    SGK_TRY(check_indices(&c, &a, exec));
    return sgk_on_gpu(&c.m) ? run_cuda(&c, &a, exec) : run_cpu(&c, &a, exec);
}
