/*
 * The ceilings of this machine, and the number formats on their own.
 *
 *   probe_empty  nothing: what a launch costs
 *   probe_copy   reads and writes each byte once
 *   probe_read   reads each byte once and writes 1 byte in 4096
 *   probe_load, probe_store   T to f32 and back, an element a thread
 *
 *   T  f32, f16 or bf16 (copy and read move 32-bit words and take f32)
 */
#include "probe.h"
#include "launch.cuh"

#define THREADS 256
#define PIECES  (PROBE_BLOCK / 4 / THREADS)     /* 16-byte pieces a thread, all in flight at once */

extern "C" __global__ __launch_bounds__(THREADS) void probe_empty(const __grid_constant__ probe_args a)
{
    pdl_wait();
    pdl_release();
}

extern "C" __global__ __launch_bounds__(THREADS) void probe_copy(const __grid_constant__ probe_args a)
{
    const uint32_t *x     = (const uint32_t *)a.input;
    uint32_t       *y     = (uint32_t *)a.output;
    const int64_t   first = (int64_t)blockIdx.x * PROBE_BLOCK;

    pdl_wait();
    if (first + PROBE_BLOCK <= a.count) {
        const uint4 *from = (const uint4 *)(x + first) + threadIdx.x;
        uint4       *to   = (uint4 *)(y + first) + threadIdx.x;
        uint4        piece[PIECES];
        #pragma unroll
        for (int i = 0; i < PIECES; ++i) piece[i] = from[i * THREADS];
        #pragma unroll
        for (int i = 0; i < PIECES; ++i) to[i * THREADS] = piece[i];
    } else {
        for (int64_t i = first + threadIdx.x; i < a.count; i += THREADS) y[i] = x[i];
    }
    pdl_release();
}

extern "C" __global__ __launch_bounds__(THREADS) void probe_read(const __grid_constant__ probe_args a)
{
    __shared__ uint32_t warps[THREADS / 32];
    const uint4        *from = (const uint4 *)((const uint32_t *)a.input + (int64_t)blockIdx.x * PROBE_BLOCK) + threadIdx.x;

    pdl_wait();
    uint4 piece[PIECES];
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) piece[i] = from[i * THREADS];
    uint32_t all = 0;
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) all ^= piece[i].x ^ piece[i].y ^ piece[i].z ^ piece[i].w;
    #pragma unroll
    for (int o = 16; o; o >>= 1) all ^= __shfl_xor_sync(~0u, all, o);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = all;
    __syncthreads();
    if (threadIdx.x == 0) {
        all = 0;
        for (int i = 0; i < THREADS / 32; ++i) all ^= warps[i];
        ((uint32_t *)a.output)[blockIdx.x] = all;
    }
    pdl_release();
}

extern "C" __global__ __launch_bounds__(THREADS) void probe_load(const __grid_constant__ probe_args a)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    pdl_wait();
    if (i < a.count) ((float *)a.output)[i] = to_f32(((const T *)a.input)[i]);
    pdl_release();
}

extern "C" __global__ __launch_bounds__(THREADS) void probe_store(const __grid_constant__ probe_args a)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    pdl_wait();
    if (i < a.count) from_f32((T *)a.output + i, ((const float *)a.input)[i]);
    pdl_release();
}
