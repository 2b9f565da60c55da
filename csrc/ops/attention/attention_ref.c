/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include <math.h>
#include "attention_cpu.h"
#include "base/convert.h"
#include "cpu/cpu.h"

static double score(const struct attention_args *a, int64_t q, int64_t k)
{
    double sum = 0;
    for (int32_t d = 0; d < a->dim; ++d) sum += load_as_f64(a->q, q + d, a->dtype) * load_as_f64(a->k, k + d, a->dtype);
    return sum * a->scale;
}

static void query(const struct attention_args *a, const struct attention_sequence *s, int32_t n, int32_t i, int32_t h)
{
    const int32_t               kv_head = h / a->group;
    const int64_t               q       = n * a->q_batch_stride + (s->q_begin + i) * a->q_row_stride + h * a->q_head_stride;
    const int64_t               out     = n * a->out_batch_stride + (s->q_begin + i) * a->out_row_stride + h * a->out_head_stride;
    const struct attention_keys keys    = attention_keys_of(a, s, i);

    double most = -INFINITY, sum = 0, total[256] = { 0 };
    for (int32_t j = keys.begin; j < keys.end; ++j) {
        const struct attention_place p = attention_place_of(a, s, n, s->leftpad + j);
        most                           = fmax(most, score(a, q, p.batch * a->k_batch_stride + p.row * a->k_row_stride + kv_head * a->k_head_stride));
    }
    for (int32_t j = keys.begin; j < keys.end; ++j) {
        const struct attention_place p = attention_place_of(a, s, n, s->leftpad + j);
        const double                 e = exp(score(a, q, p.batch * a->k_batch_stride + p.row * a->k_row_stride + kv_head * a->k_head_stride) - most);
        const int64_t                v = p.batch * a->v_batch_stride + p.row * a->v_row_stride + kv_head * a->v_head_stride;
        sum += e;
        for (int32_t d = 0; d < a->dim; ++d) total[d] += e * load_as_f64(a->v, v + d, a->dtype);
    }
    const bool sees_none = keys.end <= keys.begin;
    for (int32_t d = 0; d < a->dim; ++d) store_f64(a->out, out + d, a->dtype, sees_none ? 0 : total[d] / sum);
    if (a->softmax_lse)
        a->softmax_lse[n * a->lse_batch_stride + h * a->lse_head_stride + s->q_begin + i] = sees_none ? a->empty_lse : (float)(most + log(sum));
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
