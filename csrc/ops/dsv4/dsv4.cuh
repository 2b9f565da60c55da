/* What DeepSeek-V4's kernels share: pieces of 8 elements, and the rotation of one. */
#pragma once
#include "dsv4.h"
#include "launch.cuh"
#include "quantise.cuh"
#include "types.cuh"

#define THREADS 128

/* 16 bytes as they lie in memory: eight bf16, or four f32. Nothing waits for them before they are unpacked. */
DEVICE uint4 fetch(const bf16 *p, bool pieces)
{
    if (pieces) return *(const uint4 *)p;
    uint32_t w[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = p[2 * i].bits | (uint32_t)p[2 * i + 1].bits << 16;
    return make_uint4(w[0], w[1], w[2], w[3]);
}

DEVICE uint4 fetch(const float *p, bool pieces)
{
    if (pieces) return *(const uint4 *)p;
    return make_uint4(__float_as_uint(p[0]), __float_as_uint(p[1]), __float_as_uint(p[2]), __float_as_uint(p[3]));
}

DEVICE void store8(bf16 *p, const float v[8], bool pieces)
{
    if (pieces) {
        *(uint4 *)p = pack16(v, p);
        return;
    }
    #pragma unroll
    for (int i = 0; i < 8; ++i) from_f32(&p[i], v[i]);
}

DEVICE void store_bytes(uint8_t *p, uint4 u, bool pieces)
{
    if (pieces) {
        *(uint4 *)p = u;
        return;
    }
    const uint32_t w[4] = { u.x, u.y, u.z, u.w };
    #pragma unroll
    for (int i = 0; i < 16; ++i) p[i] = (uint8_t)(w[i / 4] >> 8 * (i % 4));
}

/* The token's position, or -1 where freqs has no row for it. */
DEVICE int64_t position_of(const dsv4_rope &r, int64_t token)
{
    const int64_t position = load_index(r.positions, token * r.position_stride, r.wide);
    return position >= 0 && position < r.max_position ? position : -1;
}

/*
 * A head without a position is not stored, so its elements may be anything. That they depend on the position, and on what else was
 * loaded, keeps the compiler from asking for those only after it has waited for the elements.
 */
DEVICE void together(uint4 &elements, int64_t position, uint32_t other)
{
    if (position < 0) elements.x = other;
}

/* What piece `lane` of the eight that rotate is multiplied by. */
struct turns { uint4 lo, hi; };

DEVICE turns fetch_turns(const dsv4_rope &r, int64_t position, int lane, bool pieces)
{
    const float *p = r.freqs + (position < 0 ? 0 : position) * r.freqs_stride + 8 * lane;
    return { fetch(p, pieces), fetch(p + 4, pieces) };
}

DEVICE void rotate8(float v[8], turns t)
{
    float f[8];
    unpack16(f, t.lo, (const f32 *)0);
    unpack16(f + 4, t.hi, (const f32 *)0);
    #pragma unroll
    for (int i = 0; i < 8; i += 2) {
        const float re = v[i], im = v[i + 1];
        v[i]     = re * f[i] - im * f[i + 1];
        v[i + 1] = re * f[i + 1] + im * f[i];
    }
}

struct token_head { uint32_t token, head; };

DEVICE token_head split_item(uint32_t item, const sgk_divisor &heads)
{
    const uint32_t token = divide(item, heads);
    return { token, item - token * heads.by };
}

/* Over eight threads: the threads of a head, or of a group of 64 elements. */
DEVICE float team_sum(float v)
{
    #pragma unroll
    for (int o = 4; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}

DEVICE float team_max(float v)
{
    #pragma unroll
    for (int o = 4; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

/* Eight codes of v * by, at most the largest. */
DEVICE void store_scaled8(uint8_t *q, const float v[8], float by, bool pieces)
{
    float c[8];
    #pragma unroll
    for (int i = 0; i < 8; ++i) c[i] = v[i] * by;
    const uint2 codes = make_uint2(e4m3x4(c), e4m3x4(c + 4));
    if (pieces) {
        *(uint2 *)q = codes;
        return;
    }
    #pragma unroll
    for (int i = 0; i < 8; ++i) q[i] = (uint8_t)((i < 4 ? codes.x : codes.y) >> 8 * (i % 4));
}
