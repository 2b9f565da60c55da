#include <math.h>
#include "attention_sparse.h"
#include "base/convert.h"
#include "cpu/cpu.h"

/* Key number e of a list, in its order: the keys of its blocks, then its columns; those at and behind `sk` do not count. */
static int64_t listed(const struct attention_sparse_args *x, int64_t list, int64_t e)
{
    const int64_t blocks = x->block_count[list] * (int64_t)64;
    return e < blocks ? x->block_offset[list * x->nnz_s + e / 64] + e % 64 : x->column_index[list * x->nnz_v + e - blocks];
}

static void query(const struct attention_sparse_args *x, const struct attention_sequence *s, int32_t n, int32_t i, int32_t h)
{
    const struct attention_args *a    = &x->a;
    const int64_t                list = ((int64_t)n * a->heads + h) * x->row_blocks + i / 64, count = x->block_count[list] * (int64_t)64 + x->column_count[list];
    const int64_t                row = s->q_begin + i, q = n * a->q_batch_stride + row * a->q_row_stride + h * a->q_head_stride;
    const int64_t                out  = n * a->out_batch_stride + row * a->out_row_stride + h * a->out_head_stride;
    const struct attention_keys  sees = attention_keys_of(a, s, i);
    double                       most = -INFINITY, sum = 0, total[ATTENTION_MOST_DIM_V] = { 0 };
    for (int pass = 0; pass < 2; ++pass)
        for (int64_t e = 0; e < count; ++e) {
            const int64_t j = listed(x, list, e);
            if (j < sees.begin || j >= sees.end) continue;
            const struct attention_row at    = attention_row_of(a, s, n, h / x->group, (int32_t)j);
            double                     score = 0;
            for (int32_t d = 0; d < a->dim; ++d) score += load_as_f64(a->q, q + d, a->dtype) * load_as_f64(a->k, at.k + d, a->dtype);
            score *= a->scale;
            if (a->softcap != 0) score = a->softcap * tanh(score / a->softcap);
            if (pass == 0) {
                most = fmax(most, score);
                continue;
            }
            const double p = exp(score - most);
            sum += p;
            for (int32_t d = 0; d < a->dim_v; ++d) total[d] += p * load_as_f64(a->v, at.v + d, a->dtype);
        }
    for (int32_t d = 0; d < a->dim_v; ++d) store_f64(a->out, out + d, a->dtype, sum == 0 ? 0 : total[d] / sum);
    if (a->softmax_lse) a->softmax_lse[n * a->lse_batch_stride + h * a->lse_head_stride + row] = sum == 0 ? a->empty_lse : (float)(most + log(sum));
}

/* Items are heads of sequences: [batch][heads]. */
void attention_sparse_ref(const void *args, int64_t begin, int64_t end)
{
    const struct attention_sparse_args *x = args;
    for (int64_t item = begin; item < end; ++item) {
        const int32_t                   n = (int32_t)(item / x->a.heads), h = (int32_t)(item % x->a.heads);
        const struct attention_sequence s = attention_sequence_of(&x->a, n);
        for (int32_t i = 0; i < s.sq; ++i) query(x, &s, n, i, h);
    }
}
