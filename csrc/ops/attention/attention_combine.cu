/*
 * Puts together what the parts of the keys gave: out = sum_p e^(lse_p - lse) out_p, lse = ln sum_p e^lse_p. A warp takes one query of
 * one head; parts are added in their order.
 *
 *   T  f32, f16 or bf16
 */
#include "attention.h"
#define TILE 32                                 /* nothing here is tiled */
#include "attention_tile.cuh"
#include "launch.cuh"
#include "reduce.cuh"

extern "C" __global__ __launch_bounds__(128, 8)        /* told how many blocks to fit, the assembler spills nothing to fit more */
    void attention_combine(const __grid_constant__ attention_args a)
{
    const int64_t row = (int64_t)blockIdx.x * 4 + threadIdx.x / 32, rows = (int64_t)a.batch * a.heads * a.max_q;
    const int     lane = (int)threadIdx.x % 32;
    if (row >= rows) return;
    const int i = (int)(row % a.max_q), h = (int)(row / a.max_q % a.heads), n = (int)(row / a.max_q / a.heads);

    pdl_wait();
    const attention_sequence s = attention_own_sequence(&a, n);
    if (i >= s.sq) return;
    float most = -INF, sum = 0;
    bool  some = false;                         /* a part has keys; its result may be no number */
    for (int p = lane; p < a.splits; p += 32) {
        const float lse = a.partial_lse[p * rows + row];
        most            = fmaxf(most, lse), some |= lse != -INF;
    }
    most            = warp_max(most);
    const bool none = !__any_sync(~0u, some);
    if (a.sinks && !none) most = fmaxf(most, sink_of(&a, h));
    const float base = most == -INF ? 0 : most;
    for (int p = lane; p < a.splits; p += 32) sum += expf(a.partial_lse[p * rows + row] - base);
    sum = warp_sum(sum);
    if (a.sinks && !none) sum += expf(sink_of(&a, h) - base);

    T          *out     = (T *)a.out + n * a.out_batch_stride + (s.q_begin + i) * a.out_row_stride + h * a.out_head_stride;
    const float inverse = none ? 0 : 1 / sum;
    for (int d = 4 * lane; d < a.dim_v; d += 128) {
        float total[4] = { 0, 0, 0, 0 };
        for (int p = 0; p < a.splits; ++p) {
            const float lse = a.partial_lse[p * rows + row];
            if (lse == -INF) continue;
            const float  weight = expf(lse - base) * inverse;
            const float4 x      = *(const float4 *)(a.partial_out + (p * rows + row) * attention_partial_dim(&a) + d);
            total[0] += weight * x.x, total[1] += weight * x.y, total[2] += weight * x.z, total[3] += weight * x.w;
        }
        #pragma unroll
        for (int e = 0; e < 4; ++e)
            if (d + e < a.dim_v) from_f32(&out[d + e], total[e]);
    }
    if (lane == 0 && a.softmax_lse)
        a.softmax_lse[n * a.lse_batch_stride + h * a.lse_head_stride + s.q_begin + i] = none ? a.empty_lse : most + logf(sum);
    pdl_release();
}
