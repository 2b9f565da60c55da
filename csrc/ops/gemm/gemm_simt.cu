/*
 * out = input weight^T by plain f32 multiply-adds: true f32 where the matrix units would shorten it, and the general kernel of all
 * formats. One block a tile of 64 x 64 outputs, a thread 8 x 4 of them; slabs of 16 in K are turned on their way to shared memory so
 * that both operands run along the tile. 2 M N K operations: bound by the multiply-adders.
 *
 *   T       f32, f16 or bf16
 *   PIECES  1: loads of 16 bytes (f32 only; rows of input and weight 16-byte aligned, K a multiple of 4); 0: any
 *
 * An output is the sum, in order, of chains of multiply-adds over pieces of K, in both forms. On sm_90 a cluster shares K where tiles are few: its blocks
 * have a part of K each, and their sums are added in order.
 */
#include "cluster.cuh"
#include "gemm.cuh"
#include "gemm_simt.cuh"
#include "launch.cuh"

/* This thread's share of a slab: 4 elements along K of rows r and r + 32 of the tile. Zeros outside. */
DEVICE void fetch(float v[2][4], const void *from, int64_t stride, int64_t row, int64_t rows, int64_t k, int64_t depth)
{
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int64_t r = row + 32 * i;
        const T      *p = (const T *)from + r * stride + k;
#if PIECES
        const uint4 u = r < rows && k < depth ? *(const uint4 *)p : make_uint4(0, 0, 0, 0);
        unpack16(v[i], u, (const T *)0);
#else
        #pragma unroll
        for (int e = 0; e < 4; ++e) v[i][e] = r < rows && k + e < depth ? to_f32(p[e]) : 0.0f;
#endif
    }
}

DEVICE void put(float to[BK][LINE], const float v[2][4], int row, int k)
{
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        #pragma unroll
        for (int e = 0; e < 4; ++e) to[k + e][row + 32 * i] = v[i][e];
}

/* Slabs of a chain: a power of two, so that chains are no more than they are long. */
DEVICE int chain_of(int64_t depth)
{
    int slabs = 1;
    while ((int64_t)slabs * slabs * (BK * BK) < depth) slabs *= 2;
    return slabs;
}

/* Four sums of the block `rank` of the cluster. */
DEVICE float4 sums_of(const float *sums, int rank)
{
    float4 v = *(const float4 *)sums;
#if __CUDA_ARCH__ >= 900
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"((uint32_t)__cvta_generic_to_shared(sums)), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(there) : "memory");
#endif
    return v;
}

/* Blocks that a multiprocessor is to hold: one more spills, of pieces from 10.0 on. */
#if PIECES && __CUDA_ARCH__ < 1000
#define BLOCKS 4
#else
#define BLOCKS 3
#endif

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void linear_simt(const __grid_constant__ linear_args batch)
{
    const linear_args a = linear_batch(&batch, blockIdx.y);
    __shared__ __align__(16) union {
        struct { float x[2][BK][LINE], w[2][BK][LINE]; } slab;
        float sums[64][64];
    } s;
    const int     rank = (int)cluster_rank(), parts = (int)cluster_blocks();
    const int64_t slabs = (a.depth + BK - 1) / BK, from = slabs * rank / parts * BK, to = slabs * (rank + 1) / parts * BK;
    int64_t       m0, n0;
    linear_tile(&a, 64, 64, blockIdx.x / parts, &m0, &n0);
    const int row = (int)threadIdx.x / 4, k4 = (int)threadIdx.x % 4 * 4;        /* what it copies */
    const int m = (int)threadIdx.x / 16 * 8, n = (int)threadIdx.x % 16 * 4;     /* what it computes */

    pdl_wait();
    float x[2][4], w[2][4], d[8][4], total[8][4];
    #pragma unroll
    for (int i = 0; i < 8; ++i)
        #pragma unroll
        for (int j = 0; j < 4; ++j) d[i][j] = total[i][j] = 0;

    fetch(x, a.input, a.input_stride, m0 + row, a.rows, from + k4, a.depth);
    fetch(w, a.weight, a.weight_stride, n0 + row, a.columns, from + k4, a.depth);
    const int chain = chain_of(to - from);
    int       half = 0, left = chain;
    for (int64_t k = from; k < to; k += BK, half ^= 1) {
        put(s.slab.x[half], x, row, k4);
        put(s.slab.w[half], w, row, k4);
        __syncthreads();                /* one a slab: whoever writes this half again has passed the next one, so all have read it */
        fetch(x, a.input, a.input_stride, m0 + row, a.rows, k + BK + k4, a.depth);
        fetch(w, a.weight, a.weight_stride, n0 + row, a.columns, k + BK + k4, a.depth);
        SIMT_SLAB(d, s.slab.x[half], s.slab.w[half], m, n);
        if (--left == 0) {
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                #pragma unroll
                for (int j = 0; j < 4; ++j) total[i][j] += d[i][j], d[i][j] = 0;
            left = chain;
        }
    }
    #pragma unroll
    for (int i = 0; i < 8; ++i)
        #pragma unroll
        for (int j = 0; j < 4; ++j) total[i][j] += d[i][j];

    if (parts > 1) {
        __syncthreads();                /* all have read the last slab */
        #pragma unroll
        for (int i = 0; i < 8; ++i) *(float4 *)&s.sums[m + i][n] = make_float4(total[i][0], total[i][1], total[i][2], total[i][3]);
        cluster_arrive(), cluster_wait();
        for (int o = rank * THREADS + (int)threadIdx.x; o < 64 * 16; o += parts * THREADS) {
            const int r = o / 16, c = o % 16 * 4;
            float4    v = sums_of(&s.sums[r][c], 0);
            for (int p = 1; p < parts; ++p) {
                const float4 u = sums_of(&s.sums[r][c], p);
                v.x += u.x, v.y += u.y, v.z += u.z, v.w += u.w;
            }
            linear_store(&a, m0 + r, n0 + c, v.x + linear_bias(&a, n0 + c));
            linear_store(&a, m0 + r, n0 + c + 1, v.y + linear_bias(&a, n0 + c + 1));
            linear_store(&a, m0 + r, n0 + c + 2, v.z + linear_bias(&a, n0 + c + 2));
            linear_store(&a, m0 + r, n0 + c + 3, v.w + linear_bias(&a, n0 + c + 3));
        }
        cluster_arrive(), cluster_wait();       /* nobody reads the memory of a block that has ended */
    } else {
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float bias = linear_bias(&a, n0 + n + j);
            #pragma unroll
            for (int i = 0; i < 8; ++i) linear_store(&a, m0 + m + i, n0 + n + j, total[i][j] + bias);
        }
    }
    pdl_release();
}
