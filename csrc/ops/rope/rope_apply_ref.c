/* The definition of apply_rope_pos_ids_cos_sin_cache. */
#include "base/convert.h"
#include "cpu/cpu.h"
#include "rope_apply.h"

static void put(const struct apply_rope_heads *to, int64_t row, int64_t head, int64_t i, sgk_dtype t, double value)
{
    if (to->data) store_f64(to->data, row * to->row_stride + head * to->head_stride + i, t, value);
}

static double get(const struct apply_rope_heads *from, int64_t row, int64_t head, int64_t i, sgk_dtype t)
{
    return load_as_f64(from->data, row * from->row_stride + head * from->head_stride + i, t);
}

static void rotate(const struct apply_rope_args *a, const struct apply_rope_heads *from, const struct apply_rope_heads *to,
                   const struct apply_rope_heads *buffer, int32_t heads, int64_t token, int64_t slot, const float *row)
{
    const int64_t half = a->rot_dim / 2;
    for (int64_t n = 0; n < heads; ++n) {
        for (int64_t i = 0; i < half; ++i) {
            const int64_t at_x = a->interleave ? 2 * i : i, at_y = a->interleave ? 2 * i + 1 : i + half;
            const double  x = get(from, token, n, at_x, a->dtype), y = get(from, token, n, at_y, a->dtype), c = row[i], s = row[half + i];
            put(to, token, n, at_x, a->dtype, x * c - y * s);
            put(to, token, n, at_y, a->dtype, y * c + x * s);
            put(buffer, slot, n, at_x, a->dtype, x * c - y * s);
            put(buffer, slot, n, at_y, a->dtype, y * c + x * s);
        }
        for (int64_t i = a->rot_dim; i < a->rot_dim + a->rest; ++i) {
            const double x = get(from, token, n, i, a->dtype);
            put(to, token, n, i, a->dtype, x);
            put(buffer, slot, n, i, a->dtype, x);
        }
    }
}

/* Items are tokens. */
void apply_rope_ref(const void *args, int64_t begin, int64_t end)
{
    const struct apply_rope_args        *a = args;
    static const struct apply_rope_heads none;
    for (int64_t t = begin; t < end; ++t) {
        const float  *row  = a->cos_sin_cache + load_index(a->pos_ids, t * a->pos_stride, a->pos_wide ? SGK_I64 : SGK_I32) * a->cache_stride;
        const int64_t slot = a->kv_cache_loc ? load_index(a->kv_cache_loc, t * a->loc_stride, a->loc_wide ? SGK_I64 : SGK_I32) : 0;
        rotate(a, &a->q, &a->q_rope, &none, a->q_heads, t, slot, row);
        rotate(a, &a->k, &a->k_rope, &a->k_buffer, a->k_heads, t, slot, row);
        if (!a->v_buffer.data) continue;
        for (int64_t n = 0; n < a->k_heads; ++n)
            for (int64_t i = 0; i < a->head_size; ++i) put(&a->v_buffer, slot, n, i, a->dtype, get(&a->v, t, n, i, a->dtype));
    }
}
