#include "base/convert.h"
#include "base/match.h"
#include "cuda/indices.h"
#include "rope.h"
#include "sgl_kernel/rope.h"

typedef struct {
    const DLTensor *query_out, *key_out, *query, *key, *positions, *cos_sin_cache;
    int64_t         head_size;
    bool            is_neox, in_place;
    const int64_t  *section;            /* of three planes of positions; NULL: there is one */
    bool            interleaved;
} rotary_call;

/* Matches a tensor of heads and describes them. `lead` is positions' rank; behind it come heads and elements, or both in one. */
static sgk_status match_heads(sgk_match *m, const DLTensor *t, const char *name, bool is_key, bool written, int lead, unsigned dtypes, int64_t head_size,
                              struct rope_heads *h, int32_t *count)
{
    static const char *const shapes[2][2][2] = { { { "T X", "T H D" }, { "B S X", "B S H D" } }, { { "T Y", "T K E" }, { "B S Y", "B S K E" } } };
    const bool               split           = t && t->ndim == lead + 2;
    SGK_TRY(sgk_match_tensor(m, t, name, shapes[is_key][lead - 1][split], dtypes, written));
    const int64_t last = t->shape[t->ndim - 1];
    if (split)
        SGK_REQUIRE(last == head_size, SGK_BAD_ARG, "%s: %s has size %lld in dimension %d, expected head_size, %lld", m->op, name, (long long)last, lead + 1,
                    (long long)head_size);
    else
        SGK_REQUIRE(last % head_size == 0, SGK_BAD_ARG, "%s: %s has size %lld in dimension %d, expected a multiple of head_size, %lld", m->op, name,
                    (long long)last, lead, (long long)head_size);
    const int64_t heads = split ? t->shape[lead] : last / head_size;
    SGK_REQUIRE(heads <= INT32_MAX / 4 / head_size, SGK_BAD_ARG, "%s: %s has %lld heads, expected at most %lld", m->op, name, (long long)heads,
                (long long)(INT32_MAX / 4 / head_size));
    *count = (int32_t)heads;
    *h     = (struct rope_heads){
            .data         = sgk_data(t),
            .outer_stride = lead == 2 ? sgk_stride(t, 0) : 0,
            .inner_stride = sgk_stride(t, lead - 1),
            .head_stride  = split ? sgk_stride(t, lead) : head_size,
    };
    return SGK_OK;
}

/* The result's heads are those of its source. */
static sgk_status match_result(sgk_match *m, const DLTensor *t, const char *name, const DLTensor *source, bool is_key, int lead, const struct rope_args *a,
                               struct rope_heads *h)
{
    int32_t count;
    SGK_REQUIRE(!t || t->ndim == source->ndim, SGK_BAD_ARG, "%s: %s has %d dimensions, expected %d, as the tensor it is the result of", m->op, name, t->ndim,
                source->ndim);
    SGK_TRY(match_heads(m, t, name, is_key, true, lead, 1u << a->dtype, a->head_size, h, &count));
    sgk_match_same(m, t, source);
    return SGK_OK;
}

static sgk_status check_sections(const char *op, const rotary_call *c, struct rope_args *a)
{
    for (int i = 0; i < 3; ++i) {
        SGK_REQUIRE(c->section[i] >= 0 && c->section[i] <= INT32_MAX, SGK_BAD_ARG, "%s: mrope_section has %lld at [%d], expected 0 to %d", op,
                    (long long)c->section[i], i, INT32_MAX);
        a->section[i] = (int32_t)c->section[i];
    }
    a->sections = c->interleaved ? ROPE_INTERLEAVED : ROPE_IN_ORDER;
    return SGK_OK;
}

/* Positions in one dimension for a query that has its tokens in two. */
static sgk_status split_positions(const char *op, const DLTensor *query, DLTensor *positions, int64_t *shape, int64_t *strides)
{
    int64_t tokens;
    SGK_REQUIRE(!__builtin_mul_overflow(query->shape[0], query->shape[1], &tokens) && positions->shape[0] == tokens, SGK_BAD_ARG,
                "%s: positions has size %lld in dimension 0, expected %lld x %lld, the tokens of query", op, (long long)positions->shape[0],
                (long long)query->shape[0], (long long)query->shape[1]);
    const int64_t step = sgk_stride(positions, 0);
    shape[0] = query->shape[0], shape[1] = query->shape[1];
    strides[0] = query->shape[1] * step, strides[1] = step;
    positions->ndim = 2, positions->shape = shape, positions->strides = strides;
    return SGK_OK;
}

static sgk_status rotary(const char *op, const rotary_call *c, const sgk_exec *exec)
{
    sgk_match  m         = { .op = op };
    const bool planes    = c->section && c->positions && c->positions->ndim == 2;
    DLTensor   positions = c->positions ? *c->positions : (DLTensor){ 0 };
    int64_t    shape[2], strides[2];
    if (!c->section && c->positions && c->positions->shape && c->positions->ndim == 1 && c->query && c->query->shape && c->query->ndim == 4)
        SGK_TRY(split_positions(op, c->query, &positions, shape, strides));
    const int lead = !c->section && positions.ndim == 2 ? 2 : 1;
    SGK_TRY(sgk_match_tensor(&m, c->positions ? &positions : NULL, "positions", planes ? "3 T~" : lead == 2 ? "B S~"
                                                                                                            : "T~",
                             SGK_ANY_INDEX, false));
    SGK_REQUIRE(c->head_size >= 1 && c->head_size <= INT32_MAX / 4, SGK_BAD_ARG, "%s: head_size is %lld, expected 1 to %d", op, (long long)c->head_size, INT32_MAX / 4);

    struct rope_args a = { .head_size = (int32_t)c->head_size, .is_neox = c->is_neox };
    SGK_TRY(match_heads(&m, c->query, "query", false, c->in_place, lead, SGK_ANY_FLOAT, c->head_size, &a.q, &a.q_heads));
    a.dtype = a.angles = sgk_dtype_at(c->query);
    if (c->key) SGK_TRY(match_heads(&m, c->key, "key", true, c->in_place, lead, 1u << a.dtype, c->head_size, &a.k, &a.k_heads));
    a.q_out = a.q, a.k_out = a.k;
    if (!c->in_place) {
        SGK_REQUIRE(!c->key == !c->key_out, SGK_BAD_ARG, "%s: %s is null and %s is not, expected both or none", op, c->key ? "key_out" : "key", c->key ? "key" : "key_out");
        SGK_TRY(match_result(&m, c->query_out, "query_out", c->query, false, lead, &a, &a.q_out));
        if (c->key) SGK_TRY(match_result(&m, c->key_out, "key_out", c->key, true, lead, &a, &a.k_out));
    }
    SGK_REQUIRE(a.k_heads == 0 || a.q_heads % a.k_heads == 0, SGK_BAD_ARG, "%s: query has %d heads, expected a multiple of the %d of key", op, a.q_heads, a.k_heads);
    SGK_TRY(sgk_match_tensor(&m, c->cos_sin_cache, "cos_sin_cache", "P R", 1u << a.dtype, false));
    SGK_REQUIRE(SGK_DIM(&m, 'R') % 2 == 0 && SGK_DIM(&m, 'R') <= c->head_size, SGK_BAD_ARG,
                "%s: cos_sin_cache has size %lld in dimension 1, expected an even number up to head_size, %lld", op, (long long)SGK_DIM(&m, 'R'),
                (long long)c->head_size);
    if (planes) SGK_TRY(check_sections(op, c, &a));
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const int64_t half = SGK_DIM(&m, 'R') / 2;
    a.rot_dim          = (int32_t)(2 * half);
    a.rest             = a.q_out.data == a.q.data && a.k_out.data == a.k.data ? 0 : a.head_size - a.rot_dim;
    a.cosines = sgk_data(c->cos_sin_cache), a.sines = (const char *)a.cosines + half * sgk_dtype_size(a.dtype);
    a.cosine_stride = a.sine_stride = sgk_stride(c->cos_sin_cache, 0), a.max_position = SGK_DIM(&m, 'P');
    a.positions = sgk_data(&positions), a.positions_wide = sgk_dtype_at(&positions) == SGK_I64;
    a.tokens = lead == 2 ? positions.shape[0] * positions.shape[1] : SGK_DIM(&m, 'T'), a.inner = lead == 2 ? positions.shape[1] : a.tokens;
    a.positions_inner_stride = sgk_stride(&positions, positions.ndim - 1);
    a.positions_outer_stride = lead == 2 ? sgk_stride(&positions, 0) : 0;
    a.plane_stride           = planes ? sgk_stride(&positions, 0) : 0;
    if (a.tokens == 0 || a.rot_dim + a.rest == 0 || a.q_heads + a.k_heads == 0) return SGK_OK;
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, op, m.device, (const DLTensor *[]){ &positions }, 1, exec));
    SGK_TRY(sgk_indices_done(&host, host.known ? rope_check_positions(&a, op, "positions", "cos_sin_cache", host.data[0], planes ? 3 : 1) : SGK_OK));
    return rope_run(&a, op, m.device, exec);
}

sgk_status sgk_rotary_embedding(const DLTensor *query, const DLTensor *key, const DLTensor *positions, const DLTensor *cos_sin_cache,
                                int64_t head_size, bool is_neox, const sgk_exec *exec)
{
    return rotary("rotary_embedding",
                  &(rotary_call){ .query = query, .key = key, .positions = positions, .cos_sin_cache = cos_sin_cache, .head_size = head_size, .is_neox = is_neox, .in_place = true },
                  exec);
}

sgk_status sgk_rotary_embedding_out(const DLTensor *query_out, const DLTensor *key_out, const DLTensor *query, const DLTensor *key, const DLTensor *positions,
                                    const DLTensor *cos_sin_cache, int64_t head_size, bool is_neox, const sgk_exec *exec)
{
    return rotary("rotary_embedding_cpu",
                  &(rotary_call){ .query_out = query_out, .key_out = key_out, .query = query, .key = key, .positions = positions, .cos_sin_cache = cos_sin_cache, .head_size = head_size, .is_neox = is_neox },
                  exec);
}

sgk_status sgk_multimodal_rotary_embedding(const DLTensor *query, const DLTensor *key, const DLTensor *positions, const DLTensor *cos_sin_cache,
                                           int64_t head_size, const int64_t *mrope_section, size_t sections, bool mrope_interleaved, bool is_neox, const sgk_exec *exec)
{
    static const char    op[]   = "multimodal_rotary_embedding";
    static const int64_t none[] = { 0, 0, 0 };
    const bool           planes = positions && positions->ndim == 2;
    SGK_REQUIRE(!planes || (mrope_section && sections == 3), SGK_BAD_ARG, "%s: mrope_section has %lld numbers, expected 3 for positions of 2 dimensions", op,
                mrope_section ? (long long)sections : 0);
    return rotary(op,
                  &(rotary_call){ .query = query, .key = key, .positions = positions, .cos_sin_cache = cos_sin_cache, .head_size = head_size, .is_neox = is_neox, .in_place = true, .section = planes ? mrope_section : none, .interleaved = mrope_interleaved },
                  exec);
}
