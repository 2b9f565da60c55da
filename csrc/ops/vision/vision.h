/*
 * What the kernels of one image are given, and the weights of its resampling. Read by the host compiler and by NVRTC alike; the
 * weights are f64 in single roundings, so that every device rounds them to the same 16 bits.
 */
#ifndef SGK_VISION_H
#define SGK_VISION_H
#include "base/types.h"

#ifdef __CUDACC__
#define VISION_FN        static __device__ __forceinline__
#define VISION_MUL(a, b) __dmul_rn(a, b)
#else
#include <math.h>
#define VISION_FN        static inline
#define VISION_MUL(a, b) ((a) * (b))
#endif

/* One direction: pixel i of `out` is the sum over j < taps of weight[i * taps + j] * pixel[first[i] + j], shifted right by *shift. */
struct image_side {
    int64_t  in, out, taps;
    int32_t *first, *shift;
    int16_t *weight;
};

struct image_args {
    void             *pixels;                       /* of this image */
    int64_t          *grid;
    const uint8_t    *image;                        /* [3, y.in, x.in] */
    int64_t           channel_stride, row_stride;
    uint8_t          *wide;                         /* [3, y.in, x.out]: resized along x */
    struct image_side x, y;
    int32_t           patch, temporal, merge;
    float             mean[3], scale[3];            /* of a byte */
    sgk_dtype         dtype;
};

enum { IMAGE_SHIFT = 22 };                          /* at most */

/* The taps of pixel i before normalising: `count` weights from pixel `first` on. */
struct image_taps {
    double  center, inverse, total;
    int64_t first, count;
};

/* Keys' cubic with a = -1/2. */
VISION_FN double image_cubic(double x)
{
    const double a = -0.5;
    x              = x < 0 ? -x : x;
    if (x < 1) return VISION_MUL(VISION_MUL(VISION_MUL(a + 2, x) - (a + 3), x), x) + 1;
    if (x < 2) return VISION_MUL(VISION_MUL(VISION_MUL(a, x) - 5 * a, x) + 8 * a, x) - 4 * a;
    return 0;
}

/* Of tap j, before it is divided by the total. */
VISION_FN double image_weight(const struct image_taps *t, int64_t j)
{
    return image_cubic(VISION_MUL((double)(j + t->first) - t->center + 0.5, t->inverse));
}

/* Going smaller, the cubic is stretched over the pixels that one of the result covers. */
VISION_FN double image_support(const struct image_side *s)
{
    const double scale = (double)s->in / (double)s->out;
    return scale > 1 ? VISION_MUL(2.0, scale) : 2.0;
}

VISION_FN struct image_taps image_taps_of(const struct image_side *s, int64_t i)
{
    const double      scale = (double)s->in / (double)s->out, support = image_support(s);
    struct image_taps t;
    t.center         = VISION_MUL(scale, (double)i + 0.5);
    t.inverse        = scale > 1 ? 1 / scale : 1;
    const int64_t lo = (int64_t)(t.center - support + 0.5), hi = (int64_t)(t.center + support + 0.5);
    t.first = lo > 0 ? lo : 0;
    t.count = (hi < s->in ? hi : s->in) - t.first;
    t.total = 0;
    for (int64_t j = 0; j < t.count; ++j) t.total += image_weight(&t, j);
    return t;
}

/* The most bits behind the point with which the largest weight is still a 16-bit number. */
VISION_FN int32_t image_shift(double largest)
{
    int32_t shift = 0;
    while (shift < IMAGE_SHIFT && (int32_t)(0.5 + VISION_MUL(largest, (double)(1 << (shift + 1)))) < 1 << 15) ++shift;
    return shift;
}

/* Row i of the tables. The taps are moved away from the image's end where they would reach beyond it, behind weights of 0. */
VISION_FN void image_put_weights(const struct image_side *s, int64_t i, int32_t shift)
{
    const struct image_taps t     = image_taps_of(s, i);
    const int64_t           first = t.first < s->in - s->taps ? t.first : s->in - s->taps;
    s->first[i]                   = (int32_t)first;
    for (int64_t j = 0; j < s->taps; ++j) {
        const int64_t k            = j - (t.first - first);
        const double  w            = k < 0 || k >= t.count ? 0 : VISION_MUL(image_weight(&t, k) / t.total, (double)(1 << shift));
        s->weight[i * s->taps + j] = (int16_t)(w < 0 ? w - 0.5 : w + 0.5);
    }
}

/* Where the pixel of the resized image, in its first repetition, goes in pixels; `step` is the distance to the next repetition. */
VISION_FN int64_t image_place(const struct image_args *a, int32_t channel, int32_t y, int32_t x, int64_t *step)
{
    const int32_t p = a->patch, m = a->merge, py = y / p, px = x / p;
    const int64_t across = (int32_t)a->x.out / p / m;           /* blocks */
    const int64_t row    = ((py / m * across + px / m) * m + py % m) * m + px % m;
    *step                = (int64_t)p * p;
    return ((row * 3 + channel) * a->temporal * p + y % p) * p + x % p;
}

#endif
