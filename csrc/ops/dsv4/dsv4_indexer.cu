/*
 * Rotation, Hadamard transform of order 128 and quantisation of the indexer's queries. Eight threads do a head, which stays in their
 * registers: each element is read once and written once. Bound by memory.
 */
#include "dsv4.cuh"
#include "butterfly.cuh"

extern "C" __global__ __launch_bounds__(THREADS) void dsv4_indexer(const __grid_constant__ dsv4_indexer_args a)
{
    const int        lane  = threadIdx.x % 8;
    const token_head at    = split_item((int64_t)blockIdx.x * (THREADS / 8) + threadIdx.x / 8, a.heads);
    const bool       live  = at.token < a.tokens;
    const int64_t    token = live ? at.token : 0;
    const bf16      *x     = (const bf16 *)a.input + token * a.input_token + at.head * a.input_head;
    const bf16      *w     = (const bf16 *)a.weight + token * a.weight_token + at.head * a.weight_head;
    const uint4      zero  = make_uint4(0, 0, 0, 0);

    pdl_wait();
    const int64_t position = position_of(a.rope, token);
    bool          mine[HEADS];
    uint4         raw[HEADS][2];
    float         weight[HEADS];
    #pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        mine[h] = live && at.head + h < a.heads;
        #pragma unroll
        for (int s = 0; s < 2; ++s) raw[h][s] = mine[h] ? fetch(x + h * a.input_head + 8 * (lane + 8 * s), a.pieces) : zero;
        weight[h] = mine[h] ? to_f32(w[h * a.weight_head]) : 0;
    }
    const turns t = fetch_turns(a.rope, position, lane, a.pieces);

    #pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        float v[16], amax = 0;
        unpack16(v, raw[h][0], x);
        unpack16(v + 8, raw[h][1], x);
        rotate8(v + 8, t);
        butterflies(v, 16, 1, 16);
        lane_butterflies(v, 16, 1, 8);
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            v[i] *= 0.08838834764831845f;               /* 128^-0.5 */
            amax = fmaxf(amax, fabsf(v[i]));
        }
        const float s = dsv4_scale(team_max(amax));
        if (!mine[h] || position < 0) continue;
        uint8_t *q = a.codes + token * a.codes_token + (at.head + h) * a.codes_head;
        store_scaled8(q + 8 * lane, v, 1.0f / s, a.pieces);
        store_scaled8(q + 64 + 8 * lane, v + 8, 1.0f / s, a.pieces);
        if (lane == 0) a.weights_out[token * a.out_token + (at.head + h) * a.out_head] = weight[h] * a.weight_scale * s;
    }
    pdl_release();
}
