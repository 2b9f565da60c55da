/*
 * RMSNorm without a weight and rotation of query heads. Eight threads do a head, which stays in their registers: each element is read
 * once and written once. Bound by memory.
 *
 *   DIM      elements of a head, a multiple of 64
 *   ALIGNED  1: everything is on 16-byte boundaries
 */
#include "dsv4.cuh"

#define PIECES (DIM / 64)

extern "C" __global__ __launch_bounds__(THREADS) void dsv4_q(const __grid_constant__ dsv4_q_args a)
{
    const int        lane = threadIdx.x % 8;
    const uint32_t   item = blockIdx.x * (THREADS / 8) + threadIdx.x / 8;
    const bool       live = item < a.tokens * a.heads;
    const token_head at   = split_item(live ? item : 0, a.by_heads);
    const bf16      *x    = (const bf16 *)a.input + at.token * a.input_token + at.head * a.input_head;

    pdl_wait();
    pdl_release();
    const int64_t position = position_of(a.rope, at.token);
    uint4         raw[PIECES];
    #pragma unroll
    for (int s = 0; s < PIECES; ++s) raw[s] = fetch(x + 8 * (lane + 8 * s), ALIGNED);
    together(raw[0], position, 0);
    const turns t = fetch_turns(a.rope, position, lane, ALIGNED);

    float v[PIECES][8], sum = 0;
    #pragma unroll
    for (int s = 0; s < PIECES; ++s) {
        unpack16(v[s], raw[s], x);
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
    if (live && position >= 0) {
        bf16 *y = (bf16 *)a.output + at.token * a.output_token + at.head * a.output_head;
        #pragma unroll
        for (int s = 0; s < PIECES; ++s) store8(y + 8 * (lane + 8 * s), v[s], ALIGNED);
    }
}
