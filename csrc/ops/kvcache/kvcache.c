#include "kvcache.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/indices.h"
#include "sgl_kernel/kvcache.h"

SGK_CPU_DECL(store_kv_cache);
static const sgk_cpu_impl store_kv_cache_cpu[] = SGK_CPU_IMPLS(store_kv_cache);

/* PIECE is the unit that is copied, uint4 (16 bytes) where every address and stride allows it. */
typedef struct {
    sgk_kernel kernel;
    int        piece;
} store_build;
#define BUILD(type, bytes) { SGK_KERNEL("kvcache/kvcache.cu", "store_kv_cache", "-DPIECE=" type, SGK_GENERAL), bytes }
static store_build store_builds[] = { BUILD("uint4", 16), BUILD("uint32_t", 4), BUILD("uint16_t", 2), BUILD("uint8_t", 1) };

const sgk_kernel_table kvcache_kernels[] = { SGK_KERNEL_TABLE(store_builds), { 0 } };

/* ---- shapes ------------------------------------------------------------------------------------------------------ */

/* A tensor as [rows, heads, dim]: itself with three dimensions, otherwise with all but the first folded into one that must be dense. */
typedef struct {
    DLTensor t;
    int64_t  shape[3], strides[3];
} view3;

static sgk_status dense_behind_rows(const DLTensor *t, bool *dense)
{
    int64_t expected = 1;
    *dense           = true;
    for (int d = t->ndim - 1; d > 0; --d) {
        if (t->shape[d] != 1 && sgk_stride(t, d) != expected) *dense = false;
        if (__builtin_mul_overflow(expected, t->shape[d], &expected)) return SGK_BAD_ARG;
    }
    return SGK_OK;
}

/* `like`: a tensor whose heads are apart, by which a dense row is cut in the same way. */
static sgk_status fold(const char *op, const char *name, const DLTensor *t, const DLTensor *like, view3 *view)
{
    SGK_REQUIRE(t, SGK_BAD_ARG, "%s: %s is null, expected a tensor [rows, ...]", op, name);
    SGK_REQUIRE(t->ndim >= 2 && t->shape, SGK_BAD_ARG, "%s: %s has %d dimensions, expected at least 2: [rows, ...]", op, name, t->ndim);
    bool dense;
    SGK_REQUIRE(dense_behind_rows(t, &dense) == SGK_OK, SGK_BAD_ARG, "%s: %s has more elements than 64 bits count, expected fewer", op, name);
    SGK_REQUIRE(dense || t->ndim <= 3, SGK_BAD_ARG, "%s: %s has gaps inside a row of %d dimensions, expected dense rows, or [rows, heads, head size]",
                op, name, t->ndim - 1);
    int64_t size = 1;
    for (int d = 1; d < t->ndim; ++d) size *= t->shape[d];
    *view = (view3){ .t = *t, .shape = { t->shape[0], 1, size }, .strides = { sgk_stride(t, 0), size, 1 } };
    if (!dense && t->ndim == 3) {
        view->shape[1] = t->shape[1], view->shape[2] = t->shape[2];
        view->strides[1] = sgk_stride(t, 1), view->strides[2] = sgk_stride(t, 2);
    } else if (!dense) {
        view->strides[2] = sgk_stride(t, 1);                            /* matching refuses it */
    } else if (like && like->ndim == 3 && like->shape[1] > 0 && size % like->shape[1] == 0) {
        view->shape[1] = like->shape[1], view->shape[2] = view->strides[1] = size / like->shape[1];
    }
    view->t.ndim    = 3;
    view->t.shape   = view->shape;
    view->t.strides = view->strides;
    return SGK_OK;
}

/* The tensor of a pair by whose heads the other is cut: one whose heads are apart. */
static const DLTensor *with_gaps(const DLTensor *a, const DLTensor *b)
{
    const DLTensor *pair[] = { a, b };
    for (int i = 0; i < 2; ++i) {
        bool dense = true;
        if (pair[i] && pair[i]->ndim == 3 && pair[i]->shape && dense_behind_rows(pair[i], &dense) == SGK_OK && !dense) return pair[i];
    }
    return NULL;
}

static struct store_rows rows_of(const view3 *cache, const view3 *fresh, int64_t size)
{
    return (struct store_rows){
        .cache      = sgk_data(&cache->t),
        .fresh      = sgk_data(&fresh->t),
        .heads      = cache->shape[1],
        .head_bytes = cache->shape[2] * size,
        .cache_row  = cache->strides[0] * size,
        .cache_head = cache->strides[1] * size,
        .fresh_row  = fresh->strides[0] * size,
        .fresh_head = fresh->strides[1] * size,
    };
}

static bool in_pieces(const struct store_rows *r, int64_t piece)
{
    return ((uintptr_t)r->cache | (uintptr_t)r->fresh | (uint64_t)r->head_bytes | (uint64_t)r->cache_row | (uint64_t)r->cache_head |
            (uint64_t)r->fresh_row | (uint64_t)r->fresh_head) %
               (uint64_t)piece ==
           0;
}

static sgk_status store_cuda(struct store_kv_cache_args *a, const char *op, int ordinal, const sgk_exec *exec)
{
    store_build *b = store_builds;
    while (!in_pieces(&a->rows[0], b->piece) || !in_pieces(&a->rows[1], b->piece)) ++b;
    SGK_LOG_BUILD(exec, op, &b->kernel, b->piece == 16 ? "" : " (rows not in 16-byte pieces)");
    int64_t bytes = 0;
    for (int i = 0; i < 2; ++i) bytes += a->rows[i].heads * a->rows[i].head_bytes;
    SGK_REQUIRE(bytes / b->piece <= INT32_MAX, SGK_UNSUPPORTED, "%s: a row of k and one of v have %lld bytes, expected at most %lld on a GPU", op,
                (long long)bytes, (long long)INT32_MAX * b->piece);
    for (int i = 0; i < 2; ++i) a->rows[i].pieces = (uint32_t)(a->rows[i].heads * a->rows[i].head_bytes / b->piece);
    const int64_t    pieces = bytes / b->piece, x = pieces < 256 ? pieces : 256, y = 256 / x;
    const sgk_launch shape = { .grid = { (a->tokens + y - 1) / y, (pieces + x - 1) / x }, .block = { (unsigned)x, (unsigned)y } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

static sgk_status store(const char *op, const char *places_name, const DLTensor *k_cache, const DLTensor *v_cache, const DLTensor *places, const DLTensor *k,
                        const DLTensor *v, int64_t row_dim, const sgk_exec *exec)
{
    view3 k_cache3, v_cache3, k3, v3;
    SGK_TRY(fold(op, "k_cache", k_cache, with_gaps(k_cache, k), &k_cache3));
    SGK_TRY(fold(op, "v_cache", v_cache, with_gaps(v_cache, v), &v_cache3));
    SGK_TRY(fold(op, "k", k, with_gaps(k_cache, k), &k3));
    SGK_TRY(fold(op, "v", v, with_gaps(v_cache, v), &v3));
    sgk_match      m   = { .op = op };
    const unsigned any = (1u << SGK_DTYPES) - 1;
    SGK_TRY(sgk_match_tensor(&m, &k_cache3.t, "k_cache", "S H D", any, true));
    const unsigned same = 1u << m.dtype;
    SGK_TRY(sgk_match_tensor(&m, &v_cache3.t, "v_cache", "S G E", same, true));
    SGK_TRY(sgk_match_tensor(&m, places, places_name, "N", SGK_ANY_INDEX, false));
    SGK_TRY(sgk_match_tensor(&m, &k3.t, "k", "N H D", same, false));
    SGK_TRY(sgk_match_tensor(&m, &v3.t, "v", "N G E", same, false));
    SGK_REQUIRE(row_dim == -1 || row_dim == SGK_DIM(&m, 'H') * SGK_DIM(&m, 'D'), SGK_BAD_ARG, "%s: row_dim is %lld, expected %lld, the elements of a row of k", op,
                (long long)row_dim, (long long)(SGK_DIM(&m, 'H') * SGK_DIM(&m, 'D')));
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const int64_t              size = sgk_dtype_size(m.dtype);
    struct store_kv_cache_args a    = {
        .rows    = { rows_of(&k_cache3, &k3, size), rows_of(&v_cache3, &v3, size) },
        .out_loc = sgk_data(places),
        .index   = sgk_dtype_at(places),
        .tokens  = SGK_DIM(&m, 'N'),
        .slots   = SGK_DIM(&m, 'S'),
    };
    const int64_t bytes = a.rows[0].heads * a.rows[0].head_bytes + a.rows[1].heads * a.rows[1].head_bytes;
    if (a.tokens == 0 || bytes == 0) return SGK_OK;
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, op, m.device, (const DLTensor *[]){ places }, 1, exec));
    SGK_TRY(sgk_indices_done(&host, host.known ? sgk_indices_within(op, places_name, host.data[0], 1, a.index, a.tokens, a.slots, NULL) : SGK_OK));
    if (sgk_on_gpu(&m)) return store_cuda(&a, op, m.device.device_id, exec);
    return sgk_cpu_run(op, store_kv_cache_cpu, &a, a.tokens, sgk_cpu_grain(bytes), exec);
}

sgk_status sgk_store_kv_cache(const DLTensor *k_cache, const DLTensor *v_cache, const DLTensor *out_loc, const DLTensor *k, const DLTensor *v,
                              const sgk_exec *exec)
{
    return store("store_kv_cache", "out_loc", k_cache, v_cache, out_loc, k, v, -1, exec);
}

sgk_status sgk_store_cache(const DLTensor *k_cache, const DLTensor *v_cache, const DLTensor *indices, const DLTensor *k, const DLTensor *v, int64_t row_dim,
                           const sgk_exec *exec)
{
    return store("store_cache_cpu", "indices", k_cache, v_cache, indices, k, v, row_dim, exec);
}
