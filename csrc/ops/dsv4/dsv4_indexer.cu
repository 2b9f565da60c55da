/*
 * Rotation, Hadamard transform of order 128 and quantisation of the indexer's queries. Eight threads do a head, which stays in their
 * registers: each element is read once and written once. Bound by memory.
 *
 *   ALIGNED  1: everything is on 16-byte boundaries
 */
#include "dsv4.cuh"
#include "butterfly.cuh"

extern "C" __global__ __launch_bounds__(THREADS) void dsv4_indexer(const __grid_constant__ dsv4_indexer_args a)
{
    const int        lane = threadIdx.x % 8;
    const uint32_t   item = blockIdx.x * (THREADS / 8) + threadIdx.x / 8;
    const bool       live = item < a.tokens * a.heads;
    const token_head at   = split_item(live ? item : 0, a.by_heads);
    const bf16      *x    = (const bf16 *)a.input + at.token * a.input_token + at.head * a.input_head;

    pdl_wait();
    pdl_release();
    const int64_t position = position_of(a.rope, at.token);
    const bf16    weight   = ((const bf16 *)a.weight)[at.token * a.weight_token + at.head * a.weight_head];
    uint4         lo = fetch(x + 8 * lane, ALIGNED), hi = fetch(x + 64 + 8 * lane, ALIGNED);
    together(lo, position, weight.bits);
    const turns t = fetch_turns(a.rope, position, lane, ALIGNED);

    float v[16], amax = 0;
    unpack16(v, lo, x);
    unpack16(v + 8, hi, x);
    rotate8(v + 8, t);
    butterflies(v, 16, 1, 16);
    lane_butterflies(v, 16, 1, 8);
    #pragma unroll
    for (int i = 0; i < 16; ++i) {
        v[i] *= 0.08838834764831845f;                   /* 128^-0.5 */
        amax = fmaxf(amax, fabsf(v[i]));
    }
    const float s = dsv4_scale(team_max(amax)), inverse = 1.0f / s;
    if (live && position >= 0) {
        uint8_t *q = a.codes + at.token * a.codes_token + at.head * a.codes_head;
        store_scaled8(q + 8 * lane, v, inverse, ALIGNED);
        store_scaled8(q + 64 + 8 * lane, v + 8, inverse, ALIGNED);
        if (lane == 0) a.weights_out[at.token * a.out_token + at.head * a.out_head] = to_f32(weight) * a.weight_scale * s;
    }
}
