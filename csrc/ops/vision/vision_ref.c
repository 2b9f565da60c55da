#include "base/convert.h"
#include "cpu/cpu.h"
#include "vision.h"

sgk_cpu_fn image_rows_ref, image_patches_ref;

static uint8_t resampled(const struct image_side *s, int64_t i, const uint8_t *pixels, int64_t stride)
{
    int32_t sum = 1 << *s->shift >> 1;
    for (int64_t j = 0; j < s->taps; ++j) sum += s->weight[i * s->taps + j] * pixels[(s->first[i] + j) * stride];
    sum >>= *s->shift;
    if (sum < 0) return 0;
    return sum > 255 ? 255 : (uint8_t)sum;
}

/* Item: a row of a channel of the image. */
void image_rows_ref(const void *args, int64_t begin, int64_t end)
{
    const struct image_args *a = args;
    for (int64_t i = begin; i < end; ++i) {
        const uint8_t *row = a->image + i / a->y.in * a->channel_stride + i % a->y.in * a->row_stride;
        for (int64_t x = 0; x < a->x.out; ++x) a->wide[i * a->x.out + x] = resampled(&a->x, x, row, 1);
    }
}

/* Item: a row of a channel of the result. */
void image_patches_ref(const void *args, int64_t begin, int64_t end)
{
    const struct image_args *a = args;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t channel = i / a->y.out, y = i % a->y.out;
        for (int64_t x = 0; x < a->x.out; ++x) {
            const double  byte = resampled(&a->y, y, a->wide + channel * a->y.in * a->x.out + x, a->x.out);
            int64_t       step;
            const int64_t to = image_place(a, (int32_t)channel, (int32_t)y, (int32_t)x, &step);
            for (int64_t t = 0; t < a->temporal; ++t)
                store_f64(a->pixels, to + t * step, a->dtype, (byte - a->mean[channel]) * a->scale[channel]);
        }
    }
}
