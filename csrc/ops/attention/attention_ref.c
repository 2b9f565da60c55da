/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include <math.h>
#include "attention_call.h"
#include "attention_cpu.h"
#include "base/convert.h"
#include "cpu/cpu.h"

/* dtype is a constant at every call. */
SGK_INLINE double dot_of(sgk_dtype dtype, const void *x, int64_t i, const void *y, int64_t j, int32_t dim)
{
    double sum = 0;
    for (int32_t d = 0; d < dim; ++d) sum += load_as_f64(x, i + d, dtype) * load_as_f64(y, j + d, dtype);
    return sum;
}

static double dot(const void *x, int64_t i, const void *y, int64_t j, int32_t dim, sgk_dtype dtype)
{
    if (dtype == SGK_F32) return dot_of(SGK_F32, x, i, y, j, dim);
    if (dtype == SGK_F16) return dot_of(SGK_F16, x, i, y, j, dim);
    return dtype == SGK_BF16 ? dot_of(SGK_BF16, x, i, y, j, dim) : dot_of(SGK_E4M3, x, i, y, j, dim);
}

/* One query under one head: where q and q_v of it lie, and what its products are multiplied by. */
typedef struct {
    int64_t q, q_v;
    double  scale;
} asked;

static double score(const struct attention_args *a, const asked *i, struct attention_row j)
{
    double s = dot(a->q, i->q, a->k, j.k, a->dim, a->dtype);
    if (a->q_v) s += dot(a->q_v, i->q_v, a->v, j.v, a->dim_v, a->dtype);
    s *= i->scale;
    return a->softcap != 0 ? a->softcap * tanh(s / a->softcap) : s;
}

static void query(const struct attention_args *a, const struct attention_sequence *s, int32_t n, int32_t i, int32_t h)
{
    const int32_t               kv_head = h / a->group, row = s->q_begin + i;
    const asked                 q    = { .q     = n * a->q_batch_stride + row * a->q_row_stride + h * a->q_head_stride,
                                         .q_v   = n * a->q_v_batch_stride + row * a->q_v_row_stride + h * a->q_v_head_stride,
                                         .scale = attention_score_scale(a, n, kv_head) };
    const int64_t               out  = n * a->out_batch_stride + row * a->out_row_stride + h * a->out_head_stride;
    const struct attention_keys keys = attention_keys_of(a, s, i);

    double most = -INFINITY, sum = 0, total[ATTENTION_MOST_DIM_V] = { 0 };
    for (int32_t j = keys.begin; j < keys.end; ++j)
        most = fmax(most, score(a, &q, attention_row_of(a, s, n, kv_head, s->leftpad + j)));
    const bool   sees_none = keys.end <= keys.begin;
    const double sink      = a->sinks && !sees_none ? load_as_f64(a->sinks, h, a->sinks_dtype) : -INFINITY;
    most                   = fmax(most, sink);
    for (int32_t j = keys.begin; j < keys.end; ++j) {
        const struct attention_row at = attention_row_of(a, s, n, kv_head, s->leftpad + j);
        const double               e  = exp(score(a, &q, at) - most);
        sum += e;
        for (int32_t d = 0; d < a->dim_v; ++d) total[d] += e * load_as_f64(a->v, at.v + d, a->dtype);
    }
    if (sink > -INFINITY) sum += exp(sink - most);
    for (int32_t d = 0; d < a->dim_v; ++d)
        store_f64(a->out, out + d, a->out_dtype, sees_none ? 0 : total[d] / sum * attention_value_scale(a, n, kv_head));
    if (a->softmax_lse)
        a->softmax_lse[n * a->lse_batch_stride + h * a->lse_head_stride + row] = sees_none ? a->empty_lse : (float)(most + log(sum));
}

/* Items are heads of sequences: [batch][heads]. */
void attention_ref(const void *args, int64_t begin, int64_t end)
{
    const struct attention_args *a = &((const struct attention_work *)args)->a;
    for (int64_t item = begin; item < end; ++item) {
        const int32_t                   n = (int32_t)(item / a->heads), h = (int32_t)(item % a->heads);
        const struct attention_sequence s = attention_sequence_of(a, n);
        for (int32_t i = 0; i < s.sq; ++i) query(a, &s, n, i, h);
    }
}

/* ---- before attention: rotation and the new keys ------------------------------------------------------------------ */

/* What lies beyond e4m3 becomes its largest number. */
static void store_within(void *to, int64_t i, sgk_dtype t, double v) { store_f64(to, i, t, t == SGK_E4M3 ? fmin(fmax(v, -448), 448) : v); }

static void rotate(const struct attention_append_args *b, void *to, int64_t out, const void *from, int64_t in, int64_t position)
{
    const sgk_dtype t     = b->a.dtype;
    const int32_t   pairs = b->rotary_cos ? b->rotary_dim / 2 : 0;
    for (int32_t i = 0; i < pairs; ++i) {
        const int32_t x = b->interleaved ? 2 * i : i, y = b->interleaved ? 2 * i + 1 : i + pairs;
        const double  c = load_as_f64(b->rotary_cos, position * b->cos_stride + i, t), s = load_as_f64(b->rotary_sin, position * b->sin_stride + i, t);
        const double  u = load_as_f64(from, in + x, t), v = load_as_f64(from, in + y, t);
        store_within(to, out + x, t, u * c - v * s);
        store_within(to, out + y, t, u * s + v * c);
    }
    const int64_t size = sgk_dtype_size(t);
    memcpy((char *)to + (out + 2 * pairs) * size, (const char *)from + (in + 2 * pairs) * size, (size_t)((b->a.dim - 2 * pairs) * size));
}

void attention_append_rows(const struct attention_append_args *b, int32_t n)
{
    const struct attention_args    *a     = &b->a;
    const struct attention_sequence s     = attention_sequence_of(a, n);
    const int64_t                   first = b->seqlens_rotary ? b->seqlens_rotary[n] : s.used, size = sgk_dtype_size(a->dtype);
    for (int32_t t = 0; t < s.fresh; ++t)
        for (int32_t h = 0; h < a->kv_heads; ++h) {
            const struct attention_row to  = attention_row_of(a, &s, n, h, s.used + t);
            const int64_t              row = s.fresh_begin + t, v_new = n * a->v_new_batch_stride + row * a->v_new_row_stride + h * a->v_new_head_stride;
            rotate(b, a->k, to.k, a->k_new, n * a->k_new_batch_stride + row * a->k_new_row_stride + h * a->k_new_head_stride, first + t);
            memcpy((char *)a->v + to.v * size, (const char *)a->v_new + v_new * size, (size_t)(a->dim_v * size));
        }
    for (int32_t i = 0; b->rotary_cos && i < s.sq; ++i)
        for (int32_t h = 0; h < a->heads; ++h)
            rotate(b, (void *)(uintptr_t)a->q, n * a->q_batch_stride + (s.q_begin + i) * a->q_row_stride + h * a->q_head_stride, b->q,
                   n * b->q_batch_stride + (s.q_begin + i) * b->q_row_stride + h * b->q_head_stride, b->q_moves ? first + i : first);
}
