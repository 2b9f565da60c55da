/*
 * Products with packed or plain weights on the matrix units of sm_80, the weights decoded on their way to shared memory. One block a tile of
 * 64 x 64 outputs, a warp 32 x 32 of them; slabs of 32 in K, the next one on its way through registers while one is multiplied.
 *
 *   T        f16 or bf16: input, and what weights are decoded to, exactly
 *   FORMAT   weight_format of the weight: T itself, WEIGHT_E4M3 or WEIGHT_MXFP4
 *   SCALED   1: each group of K has a scale for its sums; groups are multiples of 32
 *
 * An output is, for each group in order, its scale times one chain of products. Any strides and addresses.
 *
 * A row of a slab is 4 pieces of 16 bytes; piece p of row r lies at place p ^ (r / 2 % 4), so that the 8 rows of an ldmatrix meet every bank once.
 */
#include "cp_async.cuh"
#include "gemm_packed.cuh"
#include "launch.cuh"
#include "mma.cuh"

#define THREADS 128
#define BM      64
#define BN      64
#define BK      32

DEVICE uint32_t place(int row, int piece) { return (uint32_t)(row * 4 + (piece ^ (row >> 1 & 3))) * 16; }

/* 8 elements of a row of input, zeros outside. */
DEVICE uint4 input_piece(const packed_args *a, const T *x, int64_t m, int64_t k, bool aligned)
{
    uint4 u = make_uint4(0, 0, 0, 0);
    if (m >= a->rows || k >= a->depth) return u;
    x += m * a->input_stride + k;
    if (aligned && k + 8 <= a->depth) return *(const uint4 *)x;
    T *const e = (T *)&u;
    #pragma unroll
    for (int i = 0; i < 8; ++i)
        if (k + i < a->depth) e[i] = x[i];
    return u;
}

/* 8 elements of a row of the weight. */
DEVICE uint4 weight_piece(const packed_args *a, const uint8_t *w, int64_t n, int64_t k)
{
    uint4 u = make_uint4(0, 0, 0, 0);
    if (n >= a->columns) return u;
    T *const e = (T *)&u;
    #pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (k + i >= a->depth) continue;
        if (FORMAT == WEIGHT_E4M3 || FORMAT == WEIGHT_MXFP4) from_f32(&e[i], weight_value(a, FORMAT, w, n, k + i));
        else e[i] = *(const T *)weight_at(a, FORMAT, w, n, k + i);
    }
    return u;
}

extern "C" __global__ __launch_bounds__(THREADS) void packed_mma(const __grid_constant__ packed_args a)
{
    __shared__ __align__(128) uint8_t slabs[2][(BM + BN) * BK * 2];
    const int                         lane = threadIdx.x % 32, warp = threadIdx.x / 32, wm = warp % 2, wn = warp / 2;
    int64_t                           b, m0, n0;
    packed_tile(&a, BM, BN, &b, &m0, &n0);
    const T *const       x       = (const T *)a.input + b * a.input_batch;
    const uint8_t *const w       = (const uint8_t *)a.weight + b * a.weight_batch;
    const bool           aligned = ((uint64_t)x | (uint64_t)(a.input_stride * 2)) % 16 == 0;
    const int            row = (int)threadIdx.x / 4, piece = (int)threadIdx.x % 4;         /* of input: this row and 32 on */
    const int            column = (int)threadIdx.x % BN, half = (int)threadIdx.x / BN;     /* of the weight: two pieces of this one */
    const uint32_t       base = shared_address(slabs);

    pdl_wait();
    float d[2][4][4], all[2][4][4];
    #pragma unroll
    for (int i = 0; i < 32; ++i) d[i / 16][i / 4 % 4][i % 4] = 0, all[i / 16][i / 4 % 4][i % 4] = 0;

    uint4 fx[2], fw[2];
    #define FETCH(k0) \
    do { \
        _Pragma("unroll") for (int i_ = 0; i_ < 2; ++i_) \
        { \
            fx[i_] = input_piece(&a, x, m0 + row + 32 * i_, (k0) + piece * 8, aligned); \
            fw[i_] = weight_piece(&a, w, n0 + column, (k0) + (half * 2 + i_) * 8); \
        } \
    } while (0)
    FETCH(0);
    int stage = 0;
    for (int64_t k = 0; k < a.depth; k += BK, stage ^= 1) {
        uint8_t *const slab = slabs[stage];
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            *(uint4 *)(slab + place(row + 32 * i, piece))                = fx[i];
            *(uint4 *)(slab + BM * BK * 2 + place(column, half * 2 + i)) = fw[i];
        }
        __syncthreads();                /* one a slab: whoever writes this one again has passed the next one, so all have read it */
        FETCH(k + BK);
        const uint32_t xs = base + (uint32_t)stage * ((BM + BN) * BK * 2), ws = xs + BM * BK * 2;
        #pragma unroll
        for (int s = 0; s < BK / 16; ++s) {
            uint32_t mx[2][4], mw[2][4];
            #pragma unroll
            for (int i = 0; i < 2; ++i) ldmatrix_x4(mx[i], xs + place((wm * 2 + i) * 16 + lane % 16, 2 * s + lane / 16));
            #pragma unroll
            for (int j = 0; j < 2; ++j) ldmatrix_x4(mw[j], ws + place((wn * 2 + j) * 16 + lane % 8 + lane / 16 * 8, 2 * s + lane / 8 % 2));
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                #pragma unroll
                for (int j = 0; j < 4; ++j) mma_m16n8k16(d[i][j], mx[i], &mw[j / 2][j % 2 * 2], (const T *)0);
        }
#if SCALED
        if ((k + BK) % a.group_k == 0 || k + BK >= a.depth) {
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int64_t n  = n0 + wn * 32 + j * 8 + lane % 4 * 2;
                const float   s0 = weight_scale(&a, FORMAT, n, k), s1 = weight_scale(&a, FORMAT, n + 1, k);
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    #pragma unroll
                    for (int e = 0; e < 4; ++e) all[i][j][e] = fmaf(d[i][j][e], e % 2 ? s1 : s0, all[i][j][e]), d[i][j][e] = 0;
            }
        }
#endif
    }
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        const int64_t n  = n0 + wn * 32 + j * 8 + lane % 4 * 2;
        const float   b0 = packed_bias(&a, n), b1 = packed_bias(&a, n + 1);
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            #pragma unroll
            for (int e = 0; e < 4; ++e)
                packed_store(&a, b, m0 + wm * 32 + i * 16 + lane / 4 + e / 2 * 8, n + e % 2, (SCALED ? all[i][j][e] : d[i][j][e]) + (e % 2 ? b1 : b0));
    }
    pdl_release();
}
