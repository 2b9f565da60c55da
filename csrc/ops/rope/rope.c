#include "rope.h"
#include "base/convert.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/indices.h"
#include "rope_apply.h"
#include "rope_norm.h"
#include "sgl_kernel/rope.h"

SGK_CPU_DECL(rotary_embedding);
static const sgk_cpu_impl rotary_embedding_cpu[] = SGK_CPU_IMPLS(rotary_embedding);

/* Every build of rope.cu. The last of a format takes any heads. */
enum { EITHER,
       NEOX,
       NEIGHBOURS };                      /* as in rope.cu */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        pairing;
} rope_build;

#define BUILD(type, dtype, pairing) \
    { SGK_KERNEL("rope/rope.cu", "rotary_embedding", "-DT=" type " -DPAIRING=" #pairing, SGK_GENERAL), dtype, pairing }
#define BUILDS(type, dtype) BUILD(type, dtype, NEOX), BUILD(type, dtype, NEIGHBOURS), BUILD(type, dtype, EITHER)

static rope_build rotary_embedding_builds[] = { BUILDS("f32", SGK_F32), BUILDS("f16", SGK_F16), BUILDS("bf16", SGK_BF16) };

const sgk_kernel_table rope_kernels[] = { SGK_KERNEL_TABLE(rotary_embedding_builds), SGK_KERNEL_TABLE(apply_rope_builds), SGK_KERNEL_TABLE(qk_norm_rope_builds), { 0 } };

enum { THREADS = 128 };                                 /* as in rope.cu */

static bool heads_in_pieces(const struct rope_heads *h, sgk_dtype dtype)
{
    return h->heads == 0 || (sgk_in_pieces(h->data, h->outer_stride, dtype) && sgk_in_pieces(NULL, h->inner_stride, dtype) && sgk_in_pieces(NULL, h->head_stride, dtype));
}

static rope_build *choose(const struct rotary_embedding_args *a)
{
    const bool  vectors = sgk_in_pieces(a->cos_sin_cache, a->cache_stride, a->dtype) && heads_in_pieces(&a->query, a->dtype) &&
                          heads_in_pieces(&a->key, a->dtype) && sgk_in_pieces(NULL, a->is_neox ? a->rot_dim / 2 : a->rot_dim, a->dtype);
    const int   wanted  = !vectors ? EITHER : a->is_neox ? NEOX
                                                         : NEIGHBOURS;
    rope_build *b       = rotary_embedding_builds;
    while (b->dtype != a->dtype || b->pairing != wanted) ++b;
    return b;
}

static sgk_status rotary_embedding_cuda(const struct rotary_embedding_args *a, int ordinal, const sgk_exec *exec)
{
    rope_build   *b     = choose(a);
    const int     piece = 16 / sgk_dtype_size(a->dtype);
    const int64_t each  = b->pairing == NEIGHBOURS ? a->rot_dim / piece : a->rot_dim / 2 / (b->pairing == NEOX ? piece : 1);
    const int64_t items = each * ((int64_t)a->query.heads + a->key.heads);

    SGK_LOG_BUILD(exec, "rotary_embedding", &b->kernel, b->pairing != EITHER ? "" : " (heads or the cache are not in 16-byte pieces)");
    const sgk_launch shape = { .grid = { a->tokens, (items + THREADS - 1) / THREADS }, .block = { THREADS } };
    return sgk_cuda_launch("rotary_embedding", &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

/* Matches query or key and describes its heads. `lead` is positions' rank; behind it come heads and elements, or both in one. */
static sgk_status match_heads(sgk_match *m, const DLTensor *t, bool is_key, int lead, unsigned dtypes, int64_t head_size, struct rope_heads *h)
{
    static const char *const shapes[2][2][2] = { { { "T X", "T H D" }, { "B S X", "B S H D" } }, { { "T Y", "T K E" }, { "B S Y", "B S K E" } } };
    const char              *name            = is_key ? "key" : "query";
    const bool               split           = t && t->ndim == lead + 2;
    SGK_TRY(sgk_match_tensor(m, t, name, shapes[is_key][lead - 1][split], dtypes, true));
    const int64_t last = t->shape[t->ndim - 1];
    if (split)
        SGK_REQUIRE(last == head_size, SGK_BAD_ARG, "rotary_embedding: %s has size %lld in dimension %d, expected head_size, %lld",
                    name, (long long)last, lead + 1, (long long)head_size);
    else
        SGK_REQUIRE(last % head_size == 0, SGK_BAD_ARG, "rotary_embedding: %s has size %lld in dimension %d, expected a multiple of head_size, %lld",
                    name, (long long)last, lead, (long long)head_size);
    const int64_t heads = split ? t->shape[lead] : last / head_size;
    SGK_REQUIRE(heads <= INT32_MAX / 4 / head_size, SGK_BAD_ARG, "rotary_embedding: %s has %lld heads, expected at most %lld",
                name, (long long)heads, (long long)(INT32_MAX / 4 / head_size));
    *h = (struct rope_heads){
        .data         = sgk_data(t),
        .heads        = (int32_t)heads,
        .outer_stride = lead == 2 ? sgk_stride(t, 0) : 0,
        .inner_stride = sgk_stride(t, lead - 1),
        .head_stride  = split ? sgk_stride(t, lead) : head_size,
    };
    return SGK_OK;
}

static sgk_status check_positions(const struct rotary_embedding_args *a, const void *positions)
{
    for (int64_t t = 0; t < a->tokens; ++t) {
        const int64_t at       = t / a->inner * a->positions_outer_stride + t % a->inner * a->positions_inner_stride;
        const int64_t position = load_index(positions, at, a->wide ? SGK_I64 : SGK_I32);
        SGK_REQUIRE(position >= 0 && position < a->max_position, SGK_BAD_ARG,
                    "rotary_embedding: positions has %lld for token %lld, expected 0 to %lld, the rows of cos_sin_cache",
                    (long long)position, (long long)t, (long long)a->max_position - 1);
    }
    return SGK_OK;
}

sgk_status sgk_rotary_embedding(const DLTensor *query, const DLTensor *key, const DLTensor *positions, const DLTensor *cos_sin_cache,
                                int64_t head_size, bool is_neox, const sgk_exec *exec)
{
    sgk_match m    = { .op = "rotary_embedding" };
    const int lead = positions && positions->ndim == 2 ? 2 : 1;
    SGK_MATCH(&m, positions, lead == 2 ? "B S~" : "T~", SGK_ANY_INDEX);
    SGK_REQUIRE(head_size >= 1 && head_size <= INT32_MAX / 4, SGK_BAD_ARG, "rotary_embedding: head_size is %lld, expected 1 to %d", (long long)head_size, INT32_MAX / 4);

    struct rotary_embedding_args a = { 0 };
    SGK_TRY(match_heads(&m, query, false, lead, SGK_ANY_FLOAT, head_size, &a.query));
    a.dtype = sgk_dtype_at(query);
    if (key) SGK_TRY(match_heads(&m, key, true, lead, 1u << a.dtype, head_size, &a.key));
    SGK_REQUIRE(a.key.heads == 0 || a.query.heads % a.key.heads == 0, SGK_BAD_ARG, "rotary_embedding: query has %d heads, expected a multiple of the %d of key",
                a.query.heads, a.key.heads);
    SGK_MATCH(&m, cos_sin_cache, "P R", 1u << a.dtype);
    SGK_REQUIRE(SGK_DIM(&m, 'R') % 2 == 0 && SGK_DIM(&m, 'R') <= head_size, SGK_BAD_ARG,
                "rotary_embedding: cos_sin_cache has size %lld in dimension 1, expected an even number up to head_size, %lld",
                (long long)SGK_DIM(&m, 'R'), (long long)head_size);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    a.positions = sgk_data(positions), a.cos_sin_cache = sgk_data(cos_sin_cache);
    a.tokens = sgk_numel(positions), a.inner = positions->shape[lead - 1];
    a.positions_outer_stride = lead == 2 ? sgk_stride(positions, 0) : 0, a.positions_inner_stride = sgk_stride(positions, lead - 1);
    a.cache_stride = sgk_stride(cos_sin_cache, 0), a.max_position = SGK_DIM(&m, 'P');
    a.rot_dim = (int32_t)SGK_DIM(&m, 'R'), a.is_neox = is_neox, a.wide = sgk_dtype_at(positions) == SGK_I64;
    const int64_t heads = (int64_t)a.query.heads + a.key.heads;
    if (a.tokens == 0 || a.rot_dim == 0 || heads == 0) return SGK_OK;
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m.op, m.device, (const DLTensor *[]){ positions }, 1, exec));
    SGK_TRY(sgk_indices_done(&host, host.known ? check_positions(&a, host.data[0]) : SGK_OK));
    if (sgk_on_gpu(&m)) return rotary_embedding_cuda(&a, m.device.device_id, exec);
    return sgk_cpu_run(m.op, rotary_embedding_cpu, &a, a.tokens, sgk_cpu_grain(2 * heads * a.rot_dim * sgk_dtype_size(a.dtype)), exec);
}
