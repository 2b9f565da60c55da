#include "vision.h"
#include "cpu/simd.h"

enum { CHUNK = 512,                                 /* pixels of a row whose sums stay in the first-level cache */
       ROWS  = 16,                                  /* that are resampled together, a lane each */
       TILE  = 1024 };                              /* columns of them */

typedef uint8_t bytes __attribute__((vector_size(ROWS)));
typedef int32_t lanes __attribute__((vector_size(4 * ROWS)));

SGK_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SGK_INLINE int32_t byte_of(int32_t sum, int32_t shift)
{
    sum >>= shift;
    sum = sum < 0 ? 0 : sum;
    return sum > 255 ? 255 : sum;
}

/* Taps lie beside each other in a row, so rows are turned: pixel x of all of them is one vector. */
SGK_INLINE void sixteen_rows(const struct image_side *s, const uint8_t *const rows[ROWS], uint8_t *const to[ROWS])
{
    const int32_t shift = *s->shift, half = 1 << shift >> 1;
    bytes         tile[TILE];
    int64_t       base = 0, filled = 0;             /* the columns of the tile */
    for (int64_t x = 0; x < s->out; ++x) {
        const int16_t *weight = s->weight + x * s->taps;
        lanes          sums   = (lanes){ 0 } + half;
        for (int64_t j = 0, part; j < s->taps; j += part) {
            const int64_t at = s->first[x] + j;
            part             = least(TILE, s->taps - j);
            if (at < base || at + part > base + filled) {
                base = at, filled = least(TILE, s->in - at);
                for (int r = 0; r < ROWS; ++r)
                    for (int64_t k = 0; k < filled; ++k) tile[k][r] = rows[r][base + k];
            }
            for (int64_t k = 0; k < part; ++k) sums += weight[j + k] * __builtin_convertvector(tile[at - base + k], lanes);
        }
        sums >>= shift;
        const lanes above  = sums > 255;
        const bytes result = __builtin_convertvector((sums & (sums > 0) & ~above) | (255 & above), bytes);
        for (int r = 0; r < ROWS; ++r) to[r][x] = result[r];
    }
}

void SGK_CPU_FN(image_rows)(const void *args, int64_t begin, int64_t end)
{
    const struct image_args *a = args;
    for (int64_t i = begin; i < end; i += ROWS) {
        const uint8_t *rows[ROWS];
        uint8_t       *to[ROWS];
        for (int64_t r = 0; r < ROWS; ++r) {
            const int64_t line = least(i + r, end - 1);             /* the last one again where there are fewer */
            rows[r]            = a->image + line / a->y.in * a->channel_stride + line % a->y.in * a->row_stride;
            to[r]              = a->wide + line * a->x.out;
        }
        sixteen_rows(&a->x, rows, to);
    }
}

/* [x0, x0 + n) of a row: the pixels in f32, still to be cut into patches. */
SGK_INLINE void column_sums(const struct image_args *a, int64_t channel, int64_t y, int64_t x0, int64_t n, float *to)
{
    const struct image_side *s     = &a->y;
    const int32_t            shift = *s->shift, half = 1 << shift >> 1;
    const float              mean = a->mean[channel], scale = a->scale[channel];
    int32_t                  sums[CHUNK];
    for (int64_t x = 0; x < n; ++x) sums[x] = half;
    for (int64_t j = 0; j < s->taps; ++j) {
        const int32_t  weight = s->weight[y * s->taps + j];
        const uint8_t *row    = a->wide + (channel * s->in + s->first[y] + j) * a->x.out + x0;
        for (int64_t x = 0; x < n; ++x) sums[x] += weight * row[x];
    }
    for (int64_t x = 0; x < n; ++x) to[x] = ((float)byte_of(sums[x], shift) - mean) * scale;
}

SGK_INLINE void store_run(sgk_dtype t, void *to, int64_t at, const float *from, int64_t n)
{
    int64_t x = 0;
    for (; x + VF <= n; x += VF) vf_store(t, to, at + x, vf_load_f32(from + x));
    for (; x < n; ++x) store_f32(t, to, at + x, from[x]);
}

SGK_INLINE void patches(sgk_dtype t, const struct image_args *a, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; ++i) {
        const int64_t channel = i / a->y.out, y = i % a->y.out;
        for (int64_t x0 = 0; x0 < a->x.out; x0 += CHUNK) {
            const int64_t n = least(CHUNK, a->x.out - x0);
            float         values[CHUNK];
            column_sums(a, channel, y, x0, n, values);
            for (int64_t x = 0, run; x < n; x += run) {
                run = least(a->patch - (x0 + x) % a->patch, n - x);
                int64_t       step;
                const int64_t to = image_place(a, (int32_t)channel, (int32_t)y, (int32_t)(x0 + x), &step);
                for (int64_t k = 0; k < a->temporal; ++k) store_run(t, a->pixels, to + k * step, values + x, run);
            }
        }
    }
}

void SGK_CPU_FN(image_patches)(const void *args, int64_t begin, int64_t end)
{
    const struct image_args *a = args;
    if (a->dtype == SGK_F32) patches(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) patches(SGK_F16, a, begin, end);
    else patches(SGK_BF16, a, begin, end);
}
