/*
 * Puts together the units that attention_decode left in pieces: out = sum_p e^(lse_p - lse) out_p, lse = ln sum_p e^lse_p, over the blocks that
 * have a piece, in their order. A block has some of the rows (a query under a head) of one sequence; its warps share a row's pieces. Where the pieces
 * are is worked out while the first kernel still runs: it has waited for whatever wrote the lengths.
 *
 *   T      f16 or bf16
 *   PARTS  1: pieces are the parts of attention_decode's builds of that name, of which a sequence knows its own
 */
#include "attention_decode.h"
#include "attention_score.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "reduce.cuh"

#define WARPS   4
#define THREADS (32 * WARPS)
#define EARLY   4                               /* pieces that a warp asks for before their weights are known */

DEVICE int block_total(int v, int *scratch)
{
    v = __reduce_add_sync(~0u, v);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    return scratch[0] + scratch[1] + scratch[2] + scratch[3];
}

/* The result of query i under head h, which lies in `pieces` pieces: row `row` of partial results and those that AT says behind it. All threads of the block. */
#if PARTS
#define AT(p) ((p) * each)
#else
#define AT(p) ((p) == 0 ? each : 2 * (p) * each)        /* in slot 2 * block, but for the first one, which its block began */
#endif
DEVICE void combine(const attention_decode_args *d, const attention_sequence *s, int n, int h, int i, int64_t row, int64_t each, int pieces, float4 (*sums)[64])
{
    const attention_args *a    = &d->a;
    const int             warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const float          *lse = d->partial_lse + row, *values = d->partial_out + row * a->dim;

    float4 early[EARLY];
    #pragma unroll
    for (int e = 0; e < EARLY; ++e) {
        const int p = warp + e * WARPS;
        early[e]    = p < pieces && 4 * lane < a->dim ? *(const float4 *)(values + AT(p) * a->dim + 4 * lane) : make_float4(0, 0, 0, 0);
    }
    const float mine = lane < pieces ? lse[AT(lane)] : -INF;
    float       most = mine;
    for (int p = lane + 32; p < pieces; p += 32) most = fmaxf(most, lse[AT(p)]);
    most             = warp_max(most);
    const bool  sunk = a->sinks && most != -INF;                                /* a sink counts where any key is seen */
    const float sink = sunk ? sink_of(a, h) : -INF;
    most             = fmaxf(most, sink);
    const float base = most == -INF ? 0 : most;
    float       sum  = expf(mine - base);
    for (int p = lane + 32; p < pieces; p += 32) sum += expf(lse[AT(p)] - base);
    sum = warp_sum(sum);
    if (sunk) sum += expf(sink - base);
    const float inverse = sum == 0 ? 0 : 1 / sum, weight_here = expf(mine - base) * inverse;

    for (int c = 4 * lane; c < (a->dim + 127) / 128 * 128; c += 128) {          /* all lanes, for the exchange of weights */
        float4 total = make_float4(0, 0, 0, 0);
        #pragma unroll 4
        for (int e = 0; warp + e * WARPS < pieces; ++e) {
            const int   p      = warp + e * WARPS;
            const float weight = p < 32 ? __shfl_sync(~0u, weight_here, p) : expf(lse[AT(p)] - base) * inverse;
            if (c >= a->dim) continue;
            const float4 x = e < EARLY && c < 128 ? (e == 0 ? early[0] : e == 1 ? early[1]
                                                                     : e == 2   ? early[2]
                                                                                : early[3])
                                                  : *(const float4 *)(values + AT(p) * a->dim + c);
            total.x += weight * x.x, total.y += weight * x.y, total.z += weight * x.z, total.w += weight * x.w;
        }
        if (c < a->dim) sums[warp][c / 4] = total;
    }
    __syncthreads();
    T *out = (T *)a->out + n * a->out_batch_stride + (s->q_begin + i) * a->out_row_stride + h * a->out_head_stride;
    for (int c = 4 * (int)threadIdx.x; c < a->dim; c += 4 * THREADS) {
        float4 total = sums[0][c / 4];
        #pragma unroll
        for (int w = 1; w < WARPS; ++w) {
            const float4 x = sums[w][c / 4];
            total.x += x.x, total.y += x.y, total.z += x.z, total.w += x.w;
        }
        *(uint2 *)(out + c) = make_uint2(pack2(total.x, total.y, (const T *)0), pack2(total.z, total.w, (const T *)0));
    }
    if (threadIdx.x == 0 && a->softmax_lse)
        a->softmax_lse[n * a->lse_batch_stride + h * a->lse_head_stride + s->q_begin + i] = sum == 0 ? a->empty_lse : most + logf(sum);
    __syncthreads();
}

extern "C" __global__ __launch_bounds__(THREADS, PARTS ? 4 : 6)       /* told how many blocks to fit, the assembler spills nothing to fit more */
    void attention_decode_combine(const __grid_constant__ attention_decode_args d)
{
    __shared__ float4     sums[WARPS][64];
    const attention_args &a = d.a;
    const int             n = (int)(blockIdx.x / d.second_blocks);

    pdl_release();                              /* the next kernel waits, in its turn, for this one */
#if PARTS
    const attention_sequence   s   = attention_own_sequence(&a, n);
    const attention_decode_cut cut = attention_decode_cut_of(&d, &s);
    pdl_wait();
    if (cut.parts < 2) return;
    for (int r = (int)(blockIdx.x % d.second_blocks); r < s.sq * a.heads; r += d.second_blocks) {
        const int h = r % a.heads, i = r / a.heads, row = i * a.group + h % a.group, first = h / a.group * cut.parts * cut.blocks + row / ATTENTION_DECODE_ROWS;
        combine(&d, &s, n, h, i, ((int64_t)n * d.slots + first) * d.rows + row % ATTENTION_DECODE_ROWS, (int64_t)cut.blocks * d.rows, cut.parts, sums);
    }
#else
    __shared__ int totals[2][WARPS];
    int            mine = 0, earlier = 0;
    for (int m = (int)threadIdx.x; m < a.batch; m += THREADS) {
        const int granules = attention_decode_granules_of(&d, m);
        mine += granules;
        if (m < n) earlier += granules;
    }
    const int                all = block_total(mine, totals[0]), before = block_total(earlier, totals[1]);
    const attention_sequence s        = attention_sequence_of(&a, n);
    const int                granules = attention_decode_granules(&d, &s), rows = granules ? s.sq * a.heads : 0;
    bool                     cut = false;       /* any unit of this sequence */
    for (int u = (int)threadIdx.x; u < d.units; u += THREADS)
        cut |= granules > 0 && attention_decode_owner(&d, all, before + (u + 1) * granules - 1) > attention_decode_owner(&d, all, before + u * granules);
    if (!__syncthreads_or(cut)) {
        pdl_wait();                             /* what follows this kernel waits for it alone */
        return;
    }
    bool waited = false;
    for (int r = (int)(blockIdx.x % d.second_blocks); r < rows; r += d.second_blocks) {
        const int h = r % a.heads, begin = before + h / a.group / d.head_warps * granules;
        const int first = attention_decode_owner(&d, all, begin), last = attention_decode_owner(&d, all, begin + granules - 1);
        if (!waited) pdl_wait();
        waited             = true;
        const int64_t each = (int64_t)d.head_warps * d.rows;
        if (last > first) combine(&d, &s, n, h, r / a.heads, 2 * first * each + (int64_t)(h / a.group % d.head_warps) * d.rows + r / a.heads * a.group + h % a.group, each, last - first + 1, sums);
    }
    if (!waited) pdl_wait();
#endif
}
