#include "rope_apply.h"
#include "base/convert.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/rope.h"

SGK_CPU_DECL(apply_rope);
static const sgk_cpu_impl apply_rope_cpu[] = SGK_CPU_IMPLS(apply_rope);

/* The last of a format takes any heads. */
enum { EITHER,
       HALVES,
       NEIGHBOURS };                    /* as in rope_apply.cu */

#define BUILD(type, dtype, pairing) \
    { SGK_KERNEL("rope/rope_apply.cu", "apply_rope", "-DT=" type " -DPAIRING=" #pairing, SGK_GENERAL), dtype, pairing }
#define BUILDS(type, dtype) BUILD(type, dtype, HALVES), BUILD(type, dtype, NEIGHBOURS), BUILD(type, dtype, EITHER)

apply_build apply_rope_builds[APPLY_BUILDS] = { BUILDS("f32", SGK_F32), BUILDS("f16", SGK_F16), BUILDS("bf16", SGK_BF16) };

enum { THREADS = 128 };                                 /* as in rope_apply.cu */

static bool heads_in_pieces(const struct apply_rope_heads *h, int64_t piece)
{
    return (uintptr_t)h->data % 16 == 0 && h->row_stride % piece == 0 && h->head_stride % piece == 0;
}

static apply_build *choose(const struct apply_rope_args *a)
{
    const int64_t                        piece = 16 / sgk_dtype_size(a->dtype);
    const struct apply_rope_heads *const all[] = { &a->q, &a->k, &a->v, &a->q_rope, &a->k_rope, &a->k_buffer, &a->v_buffer };
    /* Of cosines and sines pieces are read that lie half a row apart. */
    bool vectors = (uintptr_t)a->cos_sin_cache % 16 == 0 && a->cache_stride % 4 == 0 && a->rot_dim % 8 == 0 && a->head_size % piece == 0 &&
                   (a->interleave ? a->rot_dim : a->rot_dim / 2) % piece == 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) vectors = vectors && heads_in_pieces(all[i], piece);
    const int    wanted = !vectors ? EITHER : a->interleave ? NEIGHBOURS
                                                            : HALVES;
    apply_build *b      = apply_rope_builds;
    while (b->dtype != a->dtype || b->pairing != wanted) ++b;
    return b;
}

static sgk_status apply_rope_on_gpu(const struct apply_rope_args *a, const char *op, int ordinal, const sgk_exec *exec)
{
    apply_build  *b     = choose(a);
    const int64_t piece = b->pairing == EITHER ? 1 : 16 / sgk_dtype_size(a->dtype);
    const int64_t turns = (b->pairing == NEIGHBOURS ? a->rot_dim : a->rot_dim / 2) / piece;
    const int64_t items = ((int64_t)a->q_heads + a->k_heads) * (turns + a->rest / piece) + (a->k_buffer.data ? a->k_heads * (a->head_size / piece) : 0);
    if (items == 0) return SGK_OK;

    SGK_LOG_BUILD(exec, op, &b->kernel, b->pairing != EITHER ? "" : " (heads or the cache are not in 16-byte pieces)");
    const sgk_launch shape = { .grid = { a->tokens, (items + THREADS - 1) / THREADS }, .block = { THREADS } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

static struct apply_rope_heads heads_of(const DLTensor *t)
{
    if (!t) return (struct apply_rope_heads){ 0 };
    return (struct apply_rope_heads){ sgk_data(t), sgk_stride(t, 0), sgk_stride(t, 1) };
}

static sgk_status check_indices(const char *op, const char *name, const void *indices, int64_t count, int64_t stride, bool wide, int64_t limit, const char *what)
{
    for (int64_t i = 0; i < count; ++i) {
        const int64_t index = load_index(indices, i * stride, wide ? SGK_I64 : SGK_I32);
        SGK_REQUIRE(index >= 0 && index < limit, SGK_BAD_ARG, "%s: %s has %lld for token %lld, expected 0 to %lld, the rows of %s", op, name,
                    (long long)index, (long long)i, (long long)limit - 1, what);
    }
    return SGK_OK;
}

sgk_status sgk_apply_rope_pos_ids_cos_sin_cache(const DLTensor *q_rope, const DLTensor *k_rope, const DLTensor *k_buffer, const DLTensor *v_buffer,
                                                const DLTensor *q, const DLTensor *k, const DLTensor *v, const DLTensor *cos_sin_cache,
                                                const DLTensor *pos_ids, const DLTensor *kv_cache_loc, bool interleave, const sgk_exec *exec)
{
    sgk_match m = { .op = "apply_rope_pos_ids_cos_sin_cache" };
    SGK_MATCH(&m, q, "T H D", SGK_ANY_FLOAT);
    const unsigned same = 1u << m.dtype;
    SGK_MATCH(&m, k, "T K D", same);
    SGK_MATCH_OUT(&m, q_rope, "T H D", same);
    SGK_MATCH_OUT(&m, k_rope, "T K D", same);
    SGK_MATCH(&m, cos_sin_cache, "P R", 1u << SGK_F32);
    SGK_MATCH(&m, pos_ids, "T~", SGK_ANY_INDEX);
    SGK_MATCH_OPT(&m, v, "T K D", same);
    SGK_MATCH_OPT_OUT(&m, k_buffer, "S K D", same);
    SGK_MATCH_OPT_OUT(&m, v_buffer, "S K D", same);
    SGK_MATCH_OPT(&m, kv_cache_loc, "T~", SGK_ANY_INDEX);
    const DLTensor *const    fused[] = { v, k_buffer, v_buffer, kv_cache_loc };
    static const char *const names[] = { "v", "k_buffer", "v_buffer", "kv_cache_loc" };
    for (int i = 0; i < 4; ++i)
        SGK_REQUIRE(!fused[i] == !fused[(i + 1) % 4], SGK_BAD_ARG, "%s: %s is null and %s is not, expected v, k_buffer, v_buffer and kv_cache_loc, or none of them",
                    m.op, names[fused[i] ? (i + 1) % 4 : i], names[fused[i] ? i : (i + 1) % 4]);
    const int64_t rot_dim = SGK_DIM(&m, 'R'), head_size = SGK_DIM(&m, 'D'), tokens = SGK_DIM(&m, 'T');
    SGK_REQUIRE(rot_dim % 2 == 0 && rot_dim <= head_size, SGK_BAD_ARG, "%s: cos_sin_cache has size %lld in dimension 1, expected an even number up to %lld, the size of a head",
                m.op, (long long)rot_dim, (long long)head_size);
    const int64_t most = head_size > 0 ? INT32_MAX / 4 / head_size : INT32_MAX / 4;
    SGK_REQUIRE(SGK_DIM(&m, 'H') <= most && SGK_DIM(&m, 'K') <= most, SGK_BAD_ARG, "%s: q has %lld heads and k has %lld, expected at most %lld", m.op,
                (long long)SGK_DIM(&m, 'H'), (long long)SGK_DIM(&m, 'K'), (long long)most);
    sgk_match_same(&m, q_rope, q);
    sgk_match_same(&m, k_rope, k);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    struct apply_rope_args a = {
        .q             = heads_of(q),
        .k             = heads_of(k),
        .v             = heads_of(v),
        .q_rope        = heads_of(q_rope),
        .k_rope        = heads_of(k_rope),
        .k_buffer      = heads_of(k_buffer),
        .v_buffer      = heads_of(v_buffer),
        .cos_sin_cache = sgk_data(cos_sin_cache),
        .pos_ids       = sgk_data(pos_ids),
        .kv_cache_loc  = sgk_data(kv_cache_loc),
        .tokens        = tokens,
        .head_size     = head_size,
        .cache_stride  = sgk_stride(cos_sin_cache, 0),
        .pos_stride    = sgk_stride(pos_ids, 0),
        .loc_stride    = kv_cache_loc ? sgk_stride(kv_cache_loc, 0) : 0,
        .max_position  = SGK_DIM(&m, 'P'),
        .slots         = k_buffer ? SGK_DIM(&m, 'S') : 0,
        .q_heads       = (int32_t)SGK_DIM(&m, 'H'),
        .k_heads       = (int32_t)SGK_DIM(&m, 'K'),
        .rot_dim       = (int32_t)rot_dim,
        .interleave    = interleave,
        .pos_wide      = sgk_dtype_at(pos_ids) == SGK_I64,
        .loc_wide      = kv_cache_loc && sgk_dtype_at(kv_cache_loc) == SGK_I64,
        .dtype         = m.dtype,
    };
    const bool in_place = a.q.data == a.q_rope.data && a.k.data == a.k_rope.data && !k_buffer;
    a.rest              = in_place ? 0 : (int32_t)(head_size - rot_dim);
    if (tokens == 0 || head_size == 0 || a.q_heads + a.k_heads == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return apply_rope_on_gpu(&a, m.op, m.device.device_id, exec);
    SGK_TRY(check_indices(m.op, "pos_ids", a.pos_ids, tokens, a.pos_stride, a.pos_wide, a.max_position, "cos_sin_cache"));
    if (k_buffer) SGK_TRY(check_indices(m.op, "kv_cache_loc", a.kv_cache_loc, tokens, a.loc_stride, a.loc_wide, a.slots, "k_buffer"));
    const int64_t bytes = 2 * ((int64_t)a.q_heads + 2 * a.k_heads) * head_size * sgk_dtype_size(a.dtype);
    return sgk_cpu_run(m.op, apply_rope_cpu, &a, tokens, sgk_cpu_grain(bytes), exec);
}
