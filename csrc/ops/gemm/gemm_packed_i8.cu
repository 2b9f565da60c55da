/*
 * Products of integers on the matrix units of sm_80: input in u8 around 128, which becomes s8 on its way to shared memory, by weights in s8, sums
 * in i32. One block a tile of 64 x 64 outputs, a warp 32 x 32 of them; slabs of 64 in K, none of two groups.
 *
 *   FORMAT   WEIGHT_I8 or WEIGHT_INT4, whose zeros are subtracted on the way
 *
 * Any strides and addresses.
 */
#include "gemm_packed.cuh"
#include "launch.cuh"

#define THREADS 128
#define BM      64
#define BN      64
#define BK      64
#define LINE    (BK / 4 + 4)        /* words of a row: 8 rows and 4 words beside each other meet every bank once */

/* For sm_100 the compiler aims at so many blocks on a multiprocessor that it spills, unless it is told a number. */
#if __CUDA_ARCH__ / 100 == 10
#define BOUNDS __launch_bounds__(THREADS, 1)
#else
#define BOUNDS __launch_bounds__(THREADS)
#endif

/* Four bytes in k each: a[0], a[1] rows g and g + 8, k 4t to 4t + 3; a[2], a[3] the same 16 on; b[0], b[1] column g, likewise. */
DEVICE void mma_m16n8k32(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Elements k to k + 3 of a row of input, around 0; zeros from `end` on. */
DEVICE uint32_t input_word(const packed_args *a, const uint8_t *x, int64_t m, int64_t k, int64_t end, bool aligned)
{
    if (m >= a->rows || k >= end) return 0;
    x += m * a->input_stride + k;
    if (aligned && k + 4 <= end) return *(const uint32_t *)x ^ 0x80808080u;
    uint32_t u = 0;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        if (k + i < end) u |= (uint32_t)(x[i] ^ 0x80) << (8 * i);
    return u;
}

DEVICE uint32_t weight_word(const packed_args *a, const uint8_t *w, int64_t n, int64_t k, int64_t end, bool aligned, int zero)
{
    if (n >= a->columns || k >= end) return 0;
    uint32_t u = 0;
    if (FORMAT == WEIGHT_I8 && aligned && k + 4 <= end) return *(const uint32_t *)weight_at(a, FORMAT, w, n, k);
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (k + i >= end) continue;
        const uint8_t code = *weight_at(a, FORMAT, w, n, k + i);
        u |= (uint32_t)(uint8_t)(FORMAT == WEIGHT_INT4 ? (code >> (packed_half(FORMAT, k + i, n % PACKED_BLOCK) * 4) & 15) - zero : code) << (8 * i);
    }
    return u;
}

extern "C" __global__ BOUNDS void packed_i8(const __grid_constant__ packed_args a)
{
    __shared__ uint32_t xs[2][BM][LINE], ws[2][BN][LINE];
    const int           lane = threadIdx.x % 32, warp = threadIdx.x / 32, wm = warp % 2, wn = warp / 2, g = lane / 4, t = lane % 4;
    int64_t             b, m0, n0;
    packed_tile(&a, BM, BN, &b, &m0, &n0);
    const uint8_t *const x = (const uint8_t *)a.input, *const w = (const uint8_t *)a.weight;
    const bool    x_aligned = ((uint64_t)x | (uint64_t)a.input_stride) % 4 == 0;
    const int     row = (int)threadIdx.x / 16, word = (int)threadIdx.x % 16;         /* of input: this word of every 8th row */
    const int     column = (int)threadIdx.x % BN, half = (int)threadIdx.x / BN;      /* of the weight: 8 words of this column */
    const int64_t width     = n0 + column < a.columns ? packed_width(a.columns, (n0 + column) / PACKED_BLOCK) : 0;
    const bool    w_aligned = a.plain ? ((uint64_t)w | (uint64_t)a.weight_stride) % 4 == 0 : ((uint64_t)w | (uint64_t)a.depth * PACKED_BLOCK) % 4 == 0 && width > 0;
    const int64_t group     = FORMAT == WEIGHT_INT4 ? a.group_k : a.depth;

    pdl_wait();
    int32_t d[2][4][4];
    float   all[2][4][4];
    #pragma unroll
    for (int i = 0; i < 32; ++i) d[i / 16][i / 4 % 4][i % 4] = 0, all[i / 16][i / 4 % 4][i % 4] = 0;

    int stage = 0;
    for (int64_t k = 0, end; k < a.depth; k = end, stage ^= 1) {
        const int64_t behind = (k / group + 1) * group;
        end                  = k + BK < behind ? k + BK : behind;
        int zero             = 0;
        if (FORMAT == WEIGHT_INT4 && n0 + column < a.columns)
            zero = a.zeros[((n0 + column) / PACKED_BLOCK * (a.depth / group) + k / group) * PACKED_BLOCK + (n0 + column) % PACKED_BLOCK];
        #pragma unroll
        for (int i = 0; i < 8; ++i) {
            xs[stage][row + 8 * i][word]    = input_word(&a, x, m0 + row + 8 * i, k + word * 4, end, x_aligned);
            ws[stage][column][half * 8 + i] = weight_word(&a, w, n0 + column, k + (half * 8 + i) * 4, end, w_aligned, zero);
        }
        __syncthreads();
        #pragma unroll
        for (int s = 0; s < BK / 32; ++s) {
            uint32_t mx[2][4], mw[4][2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                #pragma unroll
                for (int e = 0; e < 4; ++e) mx[i][e] = xs[stage][wm * 32 + i * 16 + g + e % 2 * 8][s * 8 + t + e / 2 * 4];
            #pragma unroll
            for (int j = 0; j < 4; ++j)
                #pragma unroll
                for (int e = 0; e < 2; ++e) mw[j][e] = ws[stage][wn * 32 + j * 8 + g][s * 8 + t + e * 4];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                #pragma unroll
                for (int j = 0; j < 4; ++j) mma_m16n8k32(d[i][j], mx[i], mw[j]);
        }
        if (FORMAT == WEIGHT_INT4 && end == behind) {
            #pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int64_t n  = n0 + wn * 32 + j * 8 + t * 2;
                const float   s0 = weight_scale(&a, FORMAT, n, k), s1 = weight_scale(&a, FORMAT, n + 1, k);
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    #pragma unroll
                    for (int e = 0; e < 4; ++e) all[i][j][e] = fmaf((float)d[i][j][e], e % 2 ? s1 : s0, all[i][j][e]), d[i][j][e] = 0;
            }
        }
    }
    #pragma unroll
    for (int j = 0; j < 4; ++j)
        #pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int64_t n = n0 + wn * 32 + j * 8 + t * 2 + e;
            if (n >= a.columns) continue;
            const float bias = packed_bias(&a, n), by = FORMAT == WEIGHT_I8 ? ((const float *)a.scale)[n] : 1;
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                #pragma unroll
                for (int f = 0; f < 2; ++f) {
                    const int64_t m = m0 + wm * 32 + i * 16 + g + f * 8;
                    if (m >= a.rows) continue;
                    const float v = FORMAT == WEIGHT_I8 ? (float)d[i][j][f * 2 + e] * a.input_scale[m] * by : all[i][j][f * 2 + e] * a.input_scale[m];
                    packed_store(&a, b, m, n, v + bias);
                }
        }
    pdl_release();
}
