/* The definition. Everything else in this folder is a faster way to get these numbers. */
#include "base/convert.h"
#include "cpu/cpu.h"
#include "rope.h"

static void rotate_heads(const struct rotary_embedding_args *a, const struct rope_heads *h, int64_t token, int64_t row)
{
    const int64_t half = a->rot_dim / 2;
    for (int64_t n = 0; n < h->heads; ++n) {
        const int64_t head = token / a->inner * h->outer_stride + token % a->inner * h->inner_stride + n * h->head_stride;
        for (int64_t i = 0; i < half; ++i) {
            const int64_t at_x = head + (a->is_neox ? i : 2 * i), at_y = head + (a->is_neox ? i + half : 2 * i + 1);
            const double  x = load_as_f64(h->data, at_x, a->dtype), c = load_as_f64(a->cos_sin_cache, row + i, a->dtype);
            const double  y = load_as_f64(h->data, at_y, a->dtype), s = load_as_f64(a->cos_sin_cache, row + half + i, a->dtype);
            store_f64(h->data, at_x, a->dtype, x * c - y * s);
            store_f64(h->data, at_y, a->dtype, y * c + x * s);
        }
    }
}

/* Items are tokens. */
void rotary_embedding_ref(const void *args, int64_t begin, int64_t end)
{
    const struct rotary_embedding_args *a = args;
    for (int64_t t = begin; t < end; ++t) {
        const int64_t at  = t / a->inner * a->positions_outer_stride + t % a->inner * a->positions_inner_stride;
        const int64_t row = load_index(a->positions, at, a->wide ? SGK_I64 : SGK_I32) * a->cache_stride;
        rotate_heads(a, &a->query, t, row);
        rotate_heads(a, &a->key, t, row);
    }
}
