/* The definition of every rotation. Everything else in this folder is a faster way to get these numbers. */
#include "base/convert.h"
#include "cpu/cpu.h"
#include "rope.h"

static int64_t place(const struct rope_heads *h, const struct rope_args *a, int64_t token, int64_t head)
{
    return token / a->inner * h->outer_stride + token % a->inner * h->inner_stride + head * h->head_stride;
}

static double angle(const struct rope_args *a, const void *row0, int64_t stride, int64_t token, int64_t pair, int64_t at)
{
    int64_t row = token;
    if (a->positions) {
        const int64_t plane = a->sections ? rope_plane(a, pair) * a->plane_stride : 0;
        row                 = load_index(a->positions, plane + token / a->inner * a->positions_outer_stride + token % a->inner * a->positions_inner_stride,
                                         a->positions_wide ? SGK_I64 : SGK_I32);
    }
    return load_as_f64(row0, row * stride + at, a->angles);
}

static void rotate(const struct rope_args *a, const struct rope_heads *from, const struct rope_heads *to, const struct rope_heads *buffer, int32_t heads,
                   int64_t token, int64_t slot)
{
    const int64_t half = a->rot_dim / 2;
    for (int64_t n = 0; n < heads; ++n) {
        const int64_t in = place(from, a, token, n), out = place(to, a, token, n), stored = slot * buffer->inner_stride + n * buffer->head_stride;
        for (int64_t i = 0; i < half; ++i) {
            const int64_t at_x = a->is_neox ? i : 2 * i, at_y = a->is_neox ? i + half : 2 * i + 1;
            const double  x = load_as_f64(from->data, in + at_x, a->dtype), y = load_as_f64(from->data, in + at_y, a->dtype);
            const double  u = x * angle(a, a->cosines, a->cosine_stride, token, i, i) - y * angle(a, a->sines, a->sine_stride, token, i, i);
            const double  v = y * angle(a, a->cosines, a->cosine_stride, token, i, a->second + i) + x * angle(a, a->sines, a->sine_stride, token, i, a->second + i);
            store_f64(to->data, out + at_x, a->dtype, u);
            store_f64(to->data, out + at_y, a->dtype, v);
            if (buffer->data) store_f64(buffer->data, stored + at_x, a->dtype, u), store_f64(buffer->data, stored + at_y, a->dtype, v);
        }
        for (int64_t i = a->rot_dim; i < a->rot_dim + a->rest; ++i) {
            const double x = load_as_f64(from->data, in + i, a->dtype);
            store_f64(to->data, out + i, a->dtype, x);
            if (buffer->data) store_f64(buffer->data, stored + i, a->dtype, x);
        }
    }
}

/* Items are tokens. */
void rope_ref(const void *args, int64_t begin, int64_t end)
{
    const struct rope_args        *a = args;
    static const struct rope_heads none;
    for (int64_t t = begin; t < end; ++t) {
        const int64_t slot = a->slots ? load_index(a->slots, t * a->slot_stride, a->slots_wide ? SGK_I64 : SGK_I32) : 0;
        rotate(a, &a->q, &a->q_out, &none, a->q_heads, t, slot);
        rotate(a, &a->k, &a->k_out, &a->k_buffer, a->k_heads, t, slot);
        for (int64_t n = 0; a->v_buffer.data && n < a->k_heads; ++n)
            for (int64_t i = 0; i < a->head_size; ++i)
                store_f64(a->v_buffer.data, slot * a->v_buffer.inner_stride + n * a->v_buffer.head_stride + i, a->dtype,
                          load_as_f64(a->v.data, place(&a->v, a, t, n) + i, a->dtype));
    }
}
