/* The definition; beside the products it is no work, and every CPU level runs it. */
#include "base/convert.h"
#include "cpu/cpu.h"
#include "gemm_mla.h"

static void norm(const struct mla_args *a, void *out, int64_t to, int64_t from, const void *weight, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double x = load_as_f64(a->a, from + i, a->dtype);
        sum += x * x;
    }
    const double scale = 1 / sqrt(sum / (double)n + (double)a->eps);
    for (int64_t i = 0; i < n; ++i) store_f64(out, to + i, a->dtype, load_as_f64(a->a, from + i, a->dtype) * scale * load_as_f64(weight, i, a->dtype));
}

/* Neighbours are turned together. */
static void turn(const struct mla_args *a, void *out, int64_t to, const void *x, int64_t from, int64_t token)
{
    const int64_t row = a->positions[token] * a->cos_sin_stride;
    for (int64_t i = 0; i < a->rope / 2; ++i) {
        const double c = load_as_f64(a->cos_sin, row + i, a->dtype), s = load_as_f64(a->cos_sin, row + a->rope / 2 + i, a->dtype);
        const double u = load_as_f64(x, from + 2 * i, a->dtype), v = load_as_f64(x, from + 2 * i + 1, a->dtype);
        store_f64(out, to + 2 * i, a->dtype, u * c - v * s);
        store_f64(out, to + 2 * i + 1, a->dtype, v * c + u * s);
    }
}

void mla_norm_ref(const void *args, int64_t begin, int64_t end)
{
    const struct mla_args *a = args;
    for (int64_t t = begin; t < end; ++t) {
        const int64_t row = t * (a->q_rank + a->kv_rank + a->rope), k = t * a->k_token;
        norm(a, a->a, row, row, a->q_weight, a->q_rank);
        norm(a, a->k_input, k, row + a->q_rank, a->kv_weight, a->kv_rank);
        turn(a, a->k_input, k + a->kv_rank, a->a, row + a->q_rank + a->kv_rank, t);
    }
}

/* Item i is head i % heads of a token. */
void mla_rope_ref(const void *args, int64_t begin, int64_t end)
{
    const struct mla_args *a = args;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t t = i / a->heads, h = i % a->heads;
        turn(a, a->q_input, t * a->q_token + h * a->q_head + a->kv_rank, a->q, i * (a->nope + a->rope) + a->nope, t);
    }
}
