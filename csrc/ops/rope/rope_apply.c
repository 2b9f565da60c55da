#include "base/match.h"
#include "cuda/indices.h"
#include "rope.h"
#include "sgl_kernel/rope.h"

/* [T, H, D], or rows of a buffer. */
static struct rope_heads heads_of(const DLTensor *t)
{
    if (!t) return (struct rope_heads){ 0 };
    return (struct rope_heads){ .data = sgk_data(t), .inner_stride = sgk_stride(t, 0), .head_stride = sgk_stride(t, 1) };
}

static sgk_status check_heads(const sgk_match *m, const char *q, const char *k, int64_t head_size)
{
    const int64_t most = head_size > 0 ? INT32_MAX / 4 / head_size : INT32_MAX / 4;
    SGK_REQUIRE(SGK_DIM(m, 'H') <= most && SGK_DIM(m, 'K') <= most && head_size <= INT32_MAX / 4, SGK_BAD_ARG,
                "%s: %s has %lld heads and %s has %lld, of %lld elements, expected at most %d elements of a row", m->op, q, (long long)SGK_DIM(m, 'H'), k,
                (long long)SGK_DIM(m, 'K'), (long long)head_size, INT32_MAX / 4);
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
    SGK_TRY(check_heads(&m, "q", "k", head_size));
    sgk_match_same(&m, q_rope, q);
    sgk_match_same(&m, k_rope, k);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    struct rope_args a = {
        .q                      = heads_of(q),
        .k                      = heads_of(k),
        .v                      = heads_of(v),
        .q_out                  = heads_of(q_rope),
        .k_out                  = heads_of(k_rope),
        .k_buffer               = heads_of(k_buffer),
        .v_buffer               = heads_of(v_buffer),
        .cosines                = sgk_data(cos_sin_cache),
        .sines                  = (const float *)sgk_data(cos_sin_cache) + rot_dim / 2,
        .positions              = sgk_data(pos_ids),
        .slots                  = sgk_data(kv_cache_loc),
        .tokens                 = tokens,
        .inner                  = tokens,
        .cosine_stride          = sgk_stride(cos_sin_cache, 0),
        .sine_stride            = sgk_stride(cos_sin_cache, 0),
        .positions_inner_stride = sgk_stride(pos_ids, 0),
        .slot_stride            = kv_cache_loc ? sgk_stride(kv_cache_loc, 0) : 0,
        .max_position           = SGK_DIM(&m, 'P'),
        .max_slot               = k_buffer ? SGK_DIM(&m, 'S') : 0,
        .q_heads                = (int32_t)SGK_DIM(&m, 'H'),
        .k_heads                = (int32_t)SGK_DIM(&m, 'K'),
        .head_size              = (int32_t)head_size,
        .rot_dim                = (int32_t)rot_dim,
        .is_neox                = !interleave,
        .positions_wide         = sgk_dtype_at(pos_ids) == SGK_I64,
        .slots_wide             = kv_cache_loc && sgk_dtype_at(kv_cache_loc) == SGK_I64,
        .dtype                  = m.dtype,
        .angles                 = SGK_F32,
    };
    const bool in_place = a.q.data == a.q_out.data && a.k.data == a.k_out.data && !k_buffer;
    a.rest              = in_place ? 0 : (int32_t)(head_size - rot_dim);
    if (tokens == 0 || head_size == 0 || a.rot_dim + a.rest == 0 || a.q_heads + a.k_heads == 0) return SGK_OK;
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m.op, m.device, (const DLTensor *[]){ pos_ids, kv_cache_loc }, 2, exec));
    sgk_status verdict = SGK_OK;
    if (host.known) verdict = rope_check_positions(&a, m.op, "pos_ids", "cos_sin_cache", host.data[0], 1);
    if (host.known && kv_cache_loc && verdict == SGK_OK)
        verdict = sgk_indices_within(m.op, "kv_cache_loc", host.data[1], a.slot_stride, sgk_dtype_at(kv_cache_loc), tokens, a.max_slot, "the rows of k_buffer");
    SGK_TRY(sgk_indices_done(&host, verdict));
    return rope_run(&a, m.op, m.device, exec);
}

sgk_status sgk_apply_rotary_pos_emb(const DLTensor *query, const DLTensor *key, const DLTensor *cos, const DLTensor *sin, const sgk_exec *exec)
{
    sgk_match m = { .op = "apply_rotary_pos_emb" };
    SGK_MATCH_OUT(&m, query, "T H D", SGK_ANY_FLOAT);
    SGK_MATCH_OUT(&m, key, "T K D", 1u << m.dtype);
    SGK_MATCH(&m, cos, "T D", 1u << m.dtype | 1u << SGK_F32);
    SGK_MATCH(&m, sin, "T D", 1u << sgk_dtype_at(cos));
    const int64_t head_size = SGK_DIM(&m, 'D');
    SGK_REQUIRE(head_size % 2 == 0, SGK_BAD_ARG, "%s: query has size %lld in dimension 2, expected an even number", m.op, (long long)head_size);
    SGK_TRY(check_heads(&m, "query", "key", head_size));
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    struct rope_args a = {
        .q             = heads_of(query),
        .k             = heads_of(key),
        .q_out         = heads_of(query),
        .k_out         = heads_of(key),
        .cosines       = sgk_data(cos),
        .sines         = sgk_data(sin),
        .tokens        = SGK_DIM(&m, 'T'),
        .inner         = SGK_DIM(&m, 'T'),
        .cosine_stride = sgk_stride(cos, 0),
        .sine_stride   = sgk_stride(sin, 0),
        .max_position  = SGK_DIM(&m, 'T'),
        .q_heads       = (int32_t)SGK_DIM(&m, 'H'),
        .k_heads       = (int32_t)SGK_DIM(&m, 'K'),
        .head_size     = (int32_t)head_size,
        .rot_dim       = (int32_t)head_size,
        .second        = (int32_t)(head_size / 2),
        .is_neox       = true,
        .dtype         = m.dtype,
        .angles        = sgk_dtype_at(cos),
    };
    if (a.tokens == 0 || head_size == 0 || a.q_heads + a.k_heads == 0) return SGK_OK;
    return rope_run(&a, m.op, m.device, exec);
}
