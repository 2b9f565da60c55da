/*
 * Images to patches, three kernels for each image: the weights of both directions, the rows resampled along x, and the rest of the way.
 * A thread makes one pixel of the result; the bytes it reads come from the caches.
 *
 *   T  f32, f16 or bf16: the format of the patches
 */
#include "vision.h"
#include "launch.cuh"

#define THREADS 256

/* Block 0 makes the weights of x, block 1 those of y. */
extern "C" __global__ __launch_bounds__(THREADS) void image_weights(const __grid_constant__ image_args a)
{
    __shared__ double largest[THREADS];
    const image_side  s = blockIdx.x ? a.y : a.x;
    pdl_wait();
    double mine = 0;
    for (int64_t i = threadIdx.x; i < s.out; i += THREADS) {
        const image_taps t = image_taps_of(&s, i);
        for (int64_t j = 0; j < t.count; ++j) mine = fmax(mine, image_weight(&t, j) / t.total);
    }
    largest[threadIdx.x] = mine;
    __syncthreads();
    for (int n = THREADS / 2; n; n /= 2) {
        if ((int)threadIdx.x < n) largest[threadIdx.x] = fmax(largest[threadIdx.x], largest[threadIdx.x + n]);
        __syncthreads();
    }
    const int32_t shift = image_shift(largest[0]);
    for (int64_t i = threadIdx.x; i < s.out; i += THREADS) image_put_weights(&s, i, shift);
    if (threadIdx.x == 0) *s.shift = shift;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        a.grid[0] = 1;
        a.grid[1] = a.y.out / a.patch;
        a.grid[2] = a.x.out / a.patch;
    }
    pdl_release();
}

DEVICE int32_t resampled(const image_side *s, int64_t i, const uint8_t *pixels, int64_t stride)
{
    const int32_t  shift  = *s->shift;
    const int16_t *weight = s->weight + i * s->taps;
    int32_t        sum    = 1 << shift >> 1;
    pixels += s->first[i] * stride;
    for (int64_t j = 0; j < s->taps; ++j) sum += weight[j] * pixels[j * stride];
    return min(max(sum >> shift, 0), 255);
}

/* Blocks go along a row of the result, then to the next row. False behind a row's end. */
DEVICE bool place_of(const image_args *a, uint32_t *line, uint32_t *x)
{
    const uint32_t across = ((uint32_t)a->x.out + THREADS - 1) / THREADS;
    *line                 = blockIdx.x / across;
    *x                    = blockIdx.x % across * THREADS + threadIdx.x;
    return *x < (uint32_t)a->x.out;
}

extern "C" __global__ __launch_bounds__(THREADS) void image_rows(const __grid_constant__ image_args a)
{
    uint32_t line, x;
    pdl_wait();
    if (place_of(&a, &line, &x)) {
        const uint32_t channel = line / (uint32_t)a.y.in, y = line % (uint32_t)a.y.in;
        a.wide[line * a.x.out + x] = (uint8_t)resampled(&a.x, x, a.image + channel * a.channel_stride + y * a.row_stride, 1);
    }
    pdl_release();
}

extern "C" __global__ __launch_bounds__(THREADS) void image_patches(const __grid_constant__ image_args a)
{
    uint32_t line, x;
    pdl_wait();
    if (place_of(&a, &line, &x)) {
        const uint32_t channel = line / (uint32_t)a.y.out, y = line % (uint32_t)a.y.out;
        const float    byte  = (float)resampled(&a.y, y, a.wide + channel * a.y.in * a.x.out + x, a.x.out);
        const float    mean  = channel == 0 ? a.mean[0] : channel == 1 ? a.mean[1]
                                                                       : a.mean[2];
        const float    scale = channel == 0 ? a.scale[0] : channel == 1 ? a.scale[1]
                                                                        : a.scale[2];
        int64_t        step;
        T             *to = (T *)a.pixels + image_place(&a, (int32_t)channel, (int32_t)y, (int32_t)x, &step);
        T              value;
        from_f32(&value, (byte - mean) * scale);
        for (int64_t t = 0; t < a.temporal; ++t) to[t * step] = value;
    }
    pdl_release();
}
