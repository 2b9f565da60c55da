/*
 * One step of lightning attention: a block of 32 x 8 threads takes 32 columns of a head's state, thread (x, y) rows y, y + 8, ... of column
 * x; the eight sums are added in their order. Bound by memory: the state is read and written once.
 *
 *   T  f32, f16 or bf16
 */
#include "attention_lightning.h"
#include "launch.cuh"

extern "C" __global__ __launch_bounds__(256, 4) void lightning_decode(const __grid_constant__ lightning_args a)
{
    __shared__ float sums[8][32];
    const int        x = (int)threadIdx.x % 32, y = (int)threadIdx.x / 32, parts = (a.dim_v + 31) / 32;
    const int64_t    i = blockIdx.x / (unsigned)parts;
    const int        e = (int)(blockIdx.x % (unsigned)parts) * 32 + x;
    pdl_wait();
    float sum = 0;
    if (e < a.dim_v) {
        const float decay = expf(-a.slope[i % a.heads]), v = to_f32(((const T *)a.v)[i * a.dim_v + e]);
        #pragma unroll 4
        for (int d = y; d < a.dim; d += 8) {
            const int64_t at = (i * a.dim + d) * a.dim_v + e;
            const float   kv = fmaf(decay, a.past_kv[at], to_f32(((const T *)a.k)[i * a.dim + d]) * v);
            a.new_kv[at]     = kv;
            sum              = fmaf(to_f32(((const T *)a.q)[i * a.dim + d]), kv, sum);
        }
    }
    sums[y][x] = sum;
    __syncthreads();
    if (y == 0 && e < a.dim_v) {
        #pragma unroll
        for (int w = 1; w < 8; ++w) sum += sums[w][x];
        from_f32((T *)a.output + i * a.dim_v + e, sum);
    }
    pdl_release();
}
