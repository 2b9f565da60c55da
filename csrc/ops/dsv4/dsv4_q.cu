/*
 * RMSNorm without a weight and rotation of query heads. Eight threads do a head, which stays in their registers: each element is read
 * once and written once. Bound by memory.
 *
 *   DIM  elements of a head, a multiple of 64
 */
#include "dsv4.cuh"

#define PIECES (DIM / 64)

extern "C" __global__ __launch_bounds__(THREADS) void dsv4_q(const __grid_constant__ dsv4_q_args a)
{
    const int        lane  = threadIdx.x % 8;
    const token_head at    = split_item((int64_t)blockIdx.x * (THREADS / 8) + threadIdx.x / 8, a.heads);
    const bool       live  = at.token < a.tokens;
    const int64_t    token = live ? at.token : 0;
    const bf16      *x     = (const bf16 *)a.input + token * a.input_token + at.head * a.input_head;
    const uint4      zero  = make_uint4(0, 0, 0, 0);

    pdl_wait();
    const int64_t position = position_of(a.rope, token);
    bool          mine[HEADS];
    uint4         raw[HEADS][PIECES];
    #pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        mine[h] = live && at.head + h < a.heads;
        #pragma unroll
        for (int s = 0; s < PIECES; ++s) raw[h][s] = mine[h] ? fetch(x + h * a.input_head + 8 * (lane + 8 * s), a.pieces) : zero;
    }
    const turns t = fetch_turns(a.rope, position, lane, a.pieces);

    #pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        float v[PIECES][8], sum = 0;
        #pragma unroll
        for (int s = 0; s < PIECES; ++s) {
            unpack16(v[s], raw[h][s], x);
            #pragma unroll
            for (int i = 0; i < 8; ++i) sum += v[s][i] * v[s][i];
        }
        const float scale = rsqrtf(team_sum(sum) / (float)DIM + a.eps);
        #pragma unroll
        for (int s = 0; s < PIECES; ++s)
            #pragma unroll
            for (int i = 0; i < 8; ++i) v[s][i] *= scale;

        unpack16(v[PIECES - 1], pack16(v[PIECES - 1], x), x);   /* the contract rounds before it rotates */
        rotate8(v[PIECES - 1], t);
        if (!mine[h] || position < 0) continue;
        bf16 *y = (bf16 *)a.output + token * a.output_token + (at.head + h) * a.output_head;
        #pragma unroll
        for (int s = 0; s < PIECES; ++s) store8(y + 8 * (lane + 8 * s), v[s], a.pieces);
    }
    pdl_release();
}
