/*
 * Puts together the units that attention_decode left in pieces: out = sum_p e^(lse_p - lse) out_p, lse = ln sum_p e^lse_p, over the blocks that
 * have a piece, in their order. A block takes one query of one head; its warps share the pieces.
 *
 *   T  f16 or bf16
 */
#include "attention_decode.h"
#include "attention_score.cuh"
#include "launch.cuh"
#include "reduce.cuh"

#define WARPS 4

/* The block that has granule `at`. */
DEVICE int owner(const attention_decode_args *d, int at, int all) { return (int)(((int64_t)(at + 1) * d->blocks - 1) / all); }

extern "C" __global__ __launch_bounds__(32 * WARPS) void attention_decode_combine(const __grid_constant__ attention_decode_args d)
{
    __shared__ float4     sums[WARPS][64];
    const attention_args &a    = d.a;
    const int             warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int             i = (int)(blockIdx.x % a.max_q), h = (int)(blockIdx.x / a.max_q % a.heads), n = (int)(blockIdx.x / a.max_q / a.heads);

    pdl_wait();
    const int all = d.plan[a.batch], before = d.plan[n], granules = (d.plan[n + 1] - before) / d.units;
    if (granules == 0) return;
    const int                kv_head = h / a.group, begin = before + kv_head / d.head_warps * granules;
    const int                first = owner(&d, begin, all), last = owner(&d, begin + granules - 1, all), pieces = last - first + 1;
    const attention_sequence s = attention_sequence_of(&a, n);
    if (pieces == 1 || i >= s.sq) return;

    const int row = i * a.group + h % a.group;
    #define PLACE(p) (((int64_t)(2 * (first + (p)) + ((p) == 0)) * d.head_warps + kv_head % d.head_warps) * d.rows + row)
    float most = -INF, sum = 0;
    for (int p = lane; p < pieces; p += 32) most = fmaxf(most, d.partial_lse[PLACE(p)]);
    most             = warp_max(most);
    const bool  sunk = a.sinks && most != -INF;                                 /* a sink counts where any key is seen */
    const float sink = sunk ? attention_sink(&a, h) : -INF;
    most             = fmaxf(most, sink);
    const float base = most == -INF ? 0 : most;
    for (int p = lane; p < pieces; p += 32) sum += expf(d.partial_lse[PLACE(p)] - base);
    sum = warp_sum(sum);
    if (sunk) sum += expf(sink - base);
    const float inverse = sum == 0 ? 0 : 1 / sum;

    T *out = (T *)a.out + n * a.out_batch_stride + (s.q_begin + i) * a.out_row_stride + h * a.out_head_stride;
    for (int c = 4 * lane; c < a.dim; c += 128) {
        float4 total = make_float4(0, 0, 0, 0);
        #pragma unroll 4
        for (int p = warp; p < pieces; p += WARPS) {
            const int64_t place  = PLACE(p);
            const float   weight = expf(d.partial_lse[place] - base) * inverse;
            const float4  x      = *(const float4 *)(d.partial_out + place * a.dim + c);
            total.x += weight * x.x, total.y += weight * x.y, total.z += weight * x.z, total.w += weight * x.w;
        }
        sums[warp][c / 4] = total;
    }
    __syncthreads();
    for (int c = 4 * (int)threadIdx.x; c < a.dim; c += 128 * WARPS) {
        float4 total = sums[0][c / 4];
        #pragma unroll
        for (int w = 1; w < WARPS; ++w) {
            const float4 x = sums[w][c / 4];
            total.x += x.x, total.y += x.y, total.z += x.z, total.w += x.w;
        }
        from_f32(&out[c], total.x), from_f32(&out[c + 1], total.y), from_f32(&out[c + 2], total.z), from_f32(&out[c + 3], total.w);
    }
    if (threadIdx.x == 0 && a.softmax_lse)
        a.softmax_lse[n * a.lse_batch_stride + h * a.lse_head_stride + s.q_begin + i] = sum == 0 ? a.empty_lse : most + logf(sum);
}
