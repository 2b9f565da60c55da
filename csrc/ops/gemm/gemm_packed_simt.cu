/*
 * Products with packed or plain weights by plain f32 multiply-adds: what the matrix units would shorten, f32 input and weights that are kept in
 * f32. One block a tile of 64 x 64 outputs, a thread 8 x 4 of them; slabs of 16 in K. Any format, strides and addresses.
 *
 *   T   f32, f16 or bf16: input
 *
 * An output is one chain of multiply-adds over K in order, of weights that have been scaled.
 */
#include "gemm_packed.cuh"
#include "gemm_simt.cuh"
#include "launch.cuh"

extern "C" __global__ __launch_bounds__(THREADS) void packed_simt(const __grid_constant__ packed_args a)
{
    __shared__ __align__(16) float xs[2][BK][LINE], ws[2][BK][LINE];
    int64_t                        b, m0, n0;
    packed_tile(&a, 64, 64, &b, &m0, &n0);
    const T *const       input  = (const T *)a.input + b * a.input_batch;
    const uint8_t *const weight = (const uint8_t *)a.weight + b * a.weight_batch;
    const int            row = (int)threadIdx.x / 4, k4 = (int)threadIdx.x % 4 * 4;            /* of input: 4 elements of this row, and of 32 on */
    const int            column = (int)threadIdx.x % 64, k8 = (int)threadIdx.x / 64 * 8;       /* of the weight: 8 elements */
    const int            m = (int)threadIdx.x / 16 * 8, n = (int)threadIdx.x % 16 * 4;         /* what it computes */

    pdl_wait();
    float d[8][4], x[8], w[8];
    #pragma unroll
    for (int i = 0; i < 32; ++i) d[i / 4][i % 4] = 0;

    #define FETCH(k0) \
    do { \
        const float scale_ = (k0) < a.depth ? weight_scale(&a, a.format, n0 + column, k0) : 1.0f; \
        _Pragma("unroll") for (int e_ = 0; e_ < 8; ++e_) \
        { \
            const int64_t r_ = m0 + row + e_ / 4 * 32, kx_ = (k0) + k4 + e_ % 4, kw_ = (k0) + k8 + e_; \
            x[e_] = r_ < a.rows && kx_ < a.depth ? to_f32(input[r_ * a.input_stride + kx_]) : 0.0f; \
            w[e_] = n0 + column < a.columns && kw_ < a.depth ? weight_value(&a, a.format, weight, n0 + column, kw_) * scale_ : 0.0f; \
        } \
    } while (0)
    FETCH(0);
    int stage = 0;
    for (int64_t k = 0; k < a.depth; k += BK, stage ^= 1) {
        #pragma unroll
        for (int e = 0; e < 8; ++e) xs[stage][k4 + e % 4][row + e / 4 * 32] = x[e], ws[stage][k8 + e][column] = w[e];
        __syncthreads();
        FETCH(k + BK);
        SIMT_SLAB(d, xs[stage], ws[stage], m, n);
    }
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        const float bias = packed_bias(&a, n0 + n + j);
        #pragma unroll
        for (int i = 0; i < 8; ++i) packed_store(&a, b, m0 + m + i, n0 + n + j, d[i][j] + bias);
    }
    pdl_release();
}
