/*
 * RMSNorm, rotation and quantisation of keys into the paged cache. A warp does a token, which stays in its registers; eight threads hold
 * the 64 elements of one scale, and the last eight of the second pieces those that rotate. Bound by memory.
 *
 *   ALIGNED  1: everything is on 16-byte boundaries
 */
#include "dsv4.cuh"

extern "C" __global__ __launch_bounds__(THREADS) void dsv4_k(const __grid_constant__ dsv4_k_args a)
{
    const int     lane  = threadIdx.x % 32;
    const int64_t token = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (token >= a.tokens) return;
    const bf16 *x = (const bf16 *)a.kv + token * a.kv_stride, *w = (const bf16 *)a.weight;

    pdl_wait();
    pdl_release();
    const int64_t position = position_of(a.rope, token), place = load_index(a.places, token * a.place_stride, a.places_wide);
    uint4         raw[2], weights[2];
    #pragma unroll
    for (int s = 0; s < 2; ++s) {
        raw[s]     = fetch(x + 8 * (lane + 32 * s), ALIGNED);
        weights[s] = fetch(w + 8 * (lane + 32 * s), ALIGNED);
    }
    together(raw[0], position, (uint32_t)place);
    const turns t = fetch_turns(a.rope, position, lane % 8, ALIGNED);

    float v[2][8], sum = 0;
    #pragma unroll
    for (int s = 0; s < 2; ++s) {
        unpack16(v[s], raw[s], x);
        #pragma unroll
        for (int i = 0; i < 8; ++i) sum += v[s][i] * v[s][i];
    }
    sum = team_sum(sum);
    sum += __shfl_xor_sync(~0u, sum, 8);
    sum += __shfl_xor_sync(~0u, sum, 16);
    const float scale   = rsqrtf(sum / (float)DSV4_K + a.eps);
    float       amax[2] = { 0, 0 };
    #pragma unroll
    for (int s = 0; s < 2; ++s) {
        float g[8];
        unpack16(g, weights[s], w);
        #pragma unroll
        for (int i = 0; i < 8; ++i) {
            v[s][i] *= scale * g[i];
            amax[s] = fmaxf(amax[s], fabsf(v[s][i]));
        }
        amax[s] = team_max(amax[s]);
    }
    if (position < 0 || place < 0 || place >= a.slots) return;

    const int      log2 = 31 - __clz((int)a.page_size), slot = (int)(place & (a.page_size - 1));
    uint8_t *const page   = a.cache + (place >> log2) * a.page_bytes;
    uint8_t *const bytes  = page + slot * DSV4_TOKEN_BYTES;
    uint8_t *const scales = page + a.page_size * DSV4_TOKEN_BYTES + slot * DSV4_SCALE_BYTES;
    #pragma unroll
    for (int s = 0; s < 2; ++s) {
        const int piece = lane + 32 * s;
        if (piece >= DSV4_K_CODES / 8) {
            rotate8(v[s], t);
            store_bytes(bytes + DSV4_K_CODES + 16 * (piece - DSV4_K_CODES / 8), pack16(v[s], (const bf16 *)0), ALIGNED);
        } else {
            const uint32_t e = dsv4_exponent(dsv4_scale(amax[s]));
            store_scaled8(bytes + 8 * piece, v[s], dsv4_inverse(e), ALIGNED);
            if (piece % 8 == 0) scales[piece / 8] = (uint8_t)e;
        }
    }
}
