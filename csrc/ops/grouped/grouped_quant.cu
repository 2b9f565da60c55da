/*
 * Rows of groups to e4m3 codes with a power of two for every 32 neighbours (MX). Four lanes share 32 elements; a warp takes 256 of a row, and finds
 * the row's group from the groups' lengths. Each element is read and written once.
 *
 *   T       f16 or bf16
 *   PIECES  1: rows of input in pieces of 16 bytes, of codes in 8; 0: any
 */
#include "grouped.cuh"
#include "launch.cuh"
#include "quantise.cuh"

#define THREADS 256

/* The group that has row r, and where it begins; -1: none. By a warp. */
DEVICE int64_t group_of(const grouped_quant_args *a, int64_t r, int64_t *start)
{
    const int lane = threadIdx.x % 32;
    for (int64_t g = 0; g < a->groups; g += 32) {
        const int64_t  begin = g + lane < a->groups ? a->offsets[g + lane] : 0, count = g + lane < a->groups ? a->layout[3 * (g + lane)] : 0;
        const uint32_t here = __ballot_sync(~0u, begin <= r && r < begin + count);
        if (here) {
            const int it = __ffs((int)here) - 1;
            *start       = __shfl_sync(~0u, begin, it);
            return g + it;
        }
    }
    return -1;
}

extern "C" __global__ __launch_bounds__(THREADS) void grouped_quant(const __grid_constant__ grouped_quant_args a)
{
    const int     lane   = threadIdx.x % 32;
    const int64_t across = (a.columns + 255) / 256, n = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32, row = n / across, column = n % across * 256 + lane * 8;
    int64_t       start = 0;
    pdl_wait();
    if (row < a.rows) {
        const int64_t group = group_of(&a, row, &start), local = row - start, first = group < 0 ? 0 : a.scale_offsets[group];
        const bool    there = group >= 0 && first >= 0 && first % 128 == 0 && first + (local / 128 + 1) * 128 <= a.scale_rows && column < a.columns;
        float         v[8], most = 0;
        const T      *x = (const T *)a.input + row * a.input_stride + column;
#if PIECES
        unpack16(v, there ? *(const uint4 *)x : make_uint4(0, 0, 0, 0), (const T *)0);
#else
        #pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = there ? to_f32(x[i]) : 0.0f;
#endif
        #pragma unroll
        for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(v[i]));
        most                = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most                = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        const uint32_t bits = __float_as_uint(__fdiv_rn(most, 448.0f)), code = min(254u, (bits >> 23) + ((bits & 0x7fffff) != 0));
        const float    inverse = code == 254 ? __uint_as_float(0x00400000) : __uint_as_float((254 - code) << 23);
        #pragma unroll
        for (int i = 0; i < 8; ++i) v[i] *= inverse;
        if (there) {
            uint8_t       *q        = (uint8_t *)a.q + row * a.q_stride + column;
            const uint32_t codes[2] = { e4m3x4(v), e4m3x4(v + 4) };
#if PIECES
            store_codes(q, codes, 8);
#else
            #pragma unroll
            for (int i = 0; i < 8; ++i) q[i] = (uint8_t)(codes[i / 4] >> i % 4 * 8);
#endif
            if (lane % 4 == 0) ((uint8_t *)a.scales)[first * (a.columns / GROUPED_MX_BLOCK) + grouped_mx_place(local, column / GROUPED_MX_BLOCK, a.columns / GROUPED_MX_BLOCK)] = (uint8_t)code;
        }
    }
    pdl_release();
}
