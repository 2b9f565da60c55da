/*
 * Products of groups of rows with a matrix each, on the matrix units of sm_80: one block a tile of BM x BN outputs, slabs of 128 bytes in K through a ring
 * of STAGES pieces of shared memory. Codes of 8 bits become f16 on their way to the matrix units, which is exact; their sums, of as many elements of K as have one scale, are
 * scaled and added in f32. Which group a tile is of, the block finds from the groups' lengths. 2 M N K operations.
 *
 *   FORMAT   0: f16, 1: bf16, 2: e4m3 with a scale for 1 x 128 and 128 x 128 elements, 3: e4m3 with powers of two for 1 x 32 (MX)
 *   BM, BN   the tile, at most 128 each, WM, WN  warps along it
 *   STAGES   slabs in shared memory
 *   PIECES   1: rows of a and b are 16-byte aligned, copied by cp.async; 0: any
 *
 * A row of a slab is 8 pieces of 16 bytes; piece p of row r lies at place p ^ (r & 7). A step is 32 bytes of K. Of codes, a thread has bytes 4t .. 4t+3 of both halves of a
 * step where an instruction wants elements 2t, 2t+1 and 2t+8, 2t+9: the same elements of a and b meet, in another order.
 */
#include "cp_async.cuh"
#include "decode.cuh"
#include "grouped.cuh"
#include "launch.cuh"
#include "mma.cuh"

#if FORMAT == 0
typedef f16 T;
#elif FORMAT == 1
typedef bf16 T;
#else
struct e4m3 { uint8_t bits; };
typedef e4m3 T;
#endif
#define SIZE    (FORMAT >= 2 ? 1 : 2)
#define STEP    (128 / SIZE)                    /* elements of K in a slab */
#define THREADS (32 * WM * WN)
#define STAGE   ((BM + BN) * 128)
#define SCALES  (FORMAT == 2 ? BM + 4 : FORMAT == 3 ? BM + BN \
                                                    : 0)     /* words in a stage: of rows, of columns */
#define MT      (BM / WM / 16)
#define NT      (BN / WN / 8)

struct tile { int64_t m, n, group, matrix, left; };

/* Slot `slot` of tiles of rows; group -1 where there is none. */
DEVICE tile find_tile(const grouped_args *a, int64_t slot, int64_t n)
{
    if (a->form <= GROUPED_INDICES) {
        int64_t group = 0;
        if (a->form == GROUPED_INDICES) group = a->layout[slot * BM / GROUPED_ALIGNMENT * GROUPED_ALIGNMENT];
        return { slot * BM, n, group < a->groups ? group : -1, 0, a->rows - slot * BM };
    }
    if (a->form == GROUPED_MASKED) {
        const int64_t each = (a->rows + BM - 1) / BM, g = slot / each, m = slot % each * BM;
        const int64_t left = grouped_rows_of(a, g).count - m;
        return { m, n, left > 0 ? g : -1, g, left };
    }
    const int lane = threadIdx.x % 32;
    for (int64_t g = 0; g < a->groups; g += 32) {
        const grouped_rows r   = g + lane < a->groups ? grouped_rows_of(a, g + lane) : grouped_rows{ 0, 0 };
        const int64_t      own = (r.count + BM - 1) / BM;
        int64_t            sum = own;
        #pragma unroll
        for (int o = 1; o < 32; o *= 2) {
            const int64_t other = __shfl_up_sync(~0u, sum, o);
            if (lane >= o) sum += other;
        }
        const uint32_t behind = __ballot_sync(~0u, sum > slot);
        if (behind) {
            const int     it    = __ffs((int)behind) - 1;
            const int64_t local = slot - __shfl_sync(~0u, sum - own, it), start = __shfl_sync(~0u, r.start, it), count = __shfl_sync(~0u, r.count, it);
            return { start + local * BM, n, g + it, 0, count - local * BM };
        }
        slot -= __shfl_sync(~0u, sum, 31);
    }
    return { 0, 0, -1, 0, 0 };
}

DEVICE uint32_t place(int row, int piece) { return (uint32_t)(row * 128 + (piece ^ (row & 7)) * 16); }

/* A slab of `rows` rows, of which `valid` exist, from byte k on of `bytes`. */
DEVICE void copy_slab(uint32_t to, const uint8_t *from, int64_t stride, int rows, int64_t valid, int64_t k, int64_t bytes)
{
    #pragma unroll 1
    for (int i = (int)threadIdx.x; i < rows * 8; i += THREADS) {
        const int     row = i / 8, piece = i % 8;
        const int64_t at = k + piece * 16, left = row < valid ? bytes - at : 0;
        const int     some = left <= 0 ? 0 : left > 16 ? 16
                                                       : (int)left;
#if PIECES
        cp_async16_part(to + place(row, piece), some ? from + row * stride + at : from, some);
#else
        uint32_t w[4] = { 0, 0, 0, 0 };
        #pragma unroll
        for (int e = 0; e < 16; e += SIZE)
            if (e < some) {
                const uint8_t *p = from + row * stride + at + e;
                w[e / 4] |= (SIZE == 2 ? (uint32_t)*(const uint16_t *)p : (uint32_t)*p) << e % 4 * 8;
            }
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to + place(row, piece)), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
#endif
    }
}

#if FORMAT == 3
/* The bytes of four blocks of K of each of these rows, or columns. */
DEVICE void copy_mx(uint32_t to, const uint8_t *scales, int64_t row, int rows, int64_t valid, int64_t slab, int64_t blocks)
{
    #pragma unroll 1
    for (int i = (int)threadIdx.x; i < rows; i += THREADS) {
        const bool there = i < valid && 4 * slab < blocks;
        cp_async4(to + i * 4, there ? scales + grouped_mx_place(row + i, 4 * slab, blocks) : scales, there);
    }
}
DEVICE float power_of_two(uint32_t word, int byte)
{
    const uint32_t code = word >> byte * 8 & 0xff;
    return __uint_as_float(code == 0 ? 0x00400000 : code == 255 ? 0x7fc00000
                                                                : code << 23);
}
#endif

DEVICE void store(const grouped_args *a, int64_t to, float v)
{
    if (a->out_dtype == SGK_F32) ((float *)a->out)[to] = v;
    else if (a->out_dtype == SGK_F16) from_f32((f16 *)a->out + to, v);
    else from_f32((bf16 *)a->out + to, v);
}

extern "C" __global__ __launch_bounds__(THREADS) void grouped_mma(const __grid_constant__ grouped_args a)
{
    extern __shared__ __align__(128) uint8_t slabs[];           /* [STAGES] of a [BM][128], b [BN][128]; [STAGES] of scales */
    const int                                lane = threadIdx.x % 32, warp = threadIdx.x / 32, wm = warp % WM, wn = warp / WM;
    const uint32_t                           base = shared_address(slabs), scales = base + STAGES * STAGE;
    const int64_t                            across = (a.columns + BN - 1) / BN;
    int                                      slot, column;
    pdl_wait();
    grouped_walk((int)blockIdx.x, (int)(gridDim.x / across), (int)across, 8, &slot, &column);
    const tile at = find_tile(&a, slot, (int64_t)column * BN);
#if FORMAT == 3
    const int64_t first = at.group < 0 ? 0 : at.m - grouped_rows_of(&a, at.group).start, begin = at.group < 0 ? 0 : a.sa_offsets[at.group];
    const bool    none = at.group < 0 || begin < 0 || begin % 128 || begin + (first / 128 + 1) * 128 > a.sa_rows;      /* of the scales */
#else
    const bool none = at.group < 0;
#endif
    if (none) {
        pdl_release();
        return;
    }
    const uint8_t *x = (const uint8_t *)a.a + (at.matrix * a.a_group + at.m * a.a_stride) * SIZE, *w = (const uint8_t *)a.b + (at.group * a.b_group + at.n * a.b_stride) * SIZE;
    const int64_t  slabs_of_k = (a.depth + STEP - 1) / STEP, columns = a.columns - at.n;
#if FORMAT == 2
    const float *sa = (const float *)a.sa + at.matrix * a.sa_group + at.m * a.sa_row, *sb = (const float *)a.sb + at.group * a.sb_group + at.n / GROUPED_BLOCK * a.sb_block;
#elif FORMAT == 3
    const uint8_t *sa = (const uint8_t *)a.sa + begin * a.sa_row, *sb = (const uint8_t *)a.sb + at.group * a.sb_group;
#endif

    #define COPY(stage, slab) \
    do { \
        if ((slab) < slabs_of_k) { \
            const uint32_t to_ = base + (uint32_t)(stage) * STAGE; \
            copy_slab(to_, x, a.a_stride * SIZE, BM, at.left, (slab) * 128, a.depth * SIZE); \
            copy_slab(to_ + BM * 128, w, a.b_stride * SIZE, BN, columns, (slab) * 128, a.depth * SIZE); \
            COPY_SCALES(scales + (uint32_t)(stage) * SCALES * 4, slab); \
        } \
        cp_async_commit(); \
    } while (0)
#if FORMAT == 2
    #define COPY_SCALES(to, slab) \
    do { \
        for (int i_ = (int)threadIdx.x; i_ < BM; i_ += THREADS) cp_async4((to) + i_ * 4, i_ < at.left ? sa + i_ * a.sa_row + (slab) * a.sa_step : sa, i_ < at.left); \
        if (threadIdx.x == 0) cp_async4((to) + BM * 4, sb + (slab) * a.sb_step, true); \
    } while (0)
#elif FORMAT == 3
    #define COPY_SCALES(to, slab) copy_mx(to, sa, first, BM, at.left, slab, a.sa_row), copy_mx((to) + BM * 4, sb, at.n, BN, columns, slab, a.sa_row)
#else
    #define COPY_SCALES(to, slab)
#endif

    float sum[MT][NT][4];
    #pragma unroll
    for (int i = 0; i < MT * NT * 4; ++i) sum[i / 4 / NT][i / 4 % NT][i % 4] = 0;
    #pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) COPY(s, (int64_t)s);
    int stage = 0, free_stage = STAGES - 1;
    for (int64_t slab = 0; slab < slabs_of_k; ++slab) {
        cp_async_wait(STAGES - 2);
        __syncthreads();                        /* the slab is there for all, and all have left the one that is filled next */
        COPY(free_stage, slab + STAGES - 1);
        const uint32_t xs = base + (uint32_t)stage * STAGE, ws = xs + BM * 128;
#if FORMAT >= 2
        const uint32_t *own = (const uint32_t *)(slabs + STAGES * STAGE) + stage * SCALES;
        float           part[MT][NT][4];
#else
        float (*part)[NT][4] = sum;
#endif
        #pragma unroll
        for (int s = 0; s < 4; ++s) {
#if FORMAT >= 2
            if (FORMAT == 3 || s == 0) {
                #pragma unroll
                for (int i = 0; i < MT * NT * 4; ++i) part[i / 4 / NT][i / 4 % NT][i % 4] = 0;
            }
#endif
            uint32_t fx[MT][4], fw[NT / 2][4];
            #pragma unroll
            for (int i = 0; i < MT; ++i) ldmatrix_x4(fx[i], xs + place((wm * MT + i) * 16 + lane % 16, 2 * s + lane / 16));
            #pragma unroll
            for (int j = 0; j < NT / 2; ++j) ldmatrix_x4(fw[j], ws + place((wn * NT / 2 + j) * 16 + lane % 8 + lane / 16 * 8, 2 * s + lane / 8 % 2));
#if FORMAT >= 2
            uint32_t hx[MT][8];
            #pragma unroll
            for (int i = 0; i < MT; ++i)
                #pragma unroll
                for (int e = 0; e < 4; ++e) {           /* e: rows, rows + 8, then the second half of the step */
                    uint32_t pairs[2];
                    e4m3x4_to_f16(pairs, fx[i][e]);
                    hx[i][e / 2 * 4 + e % 2] = pairs[0], hx[i][e / 2 * 4 + e % 2 + 2] = pairs[1];
                }
            #pragma unroll
            for (int j = 0; j < NT; ++j)
                #pragma unroll
                for (int e = 0; e < 2; ++e) {
                    uint32_t pairs[2];
                    e4m3x4_to_f16(pairs, fw[j / 2][j % 2 * 2 + e]);
                    #pragma unroll
                    for (int i = 0; i < MT; ++i) mma_m16n8k16(part[i][j], &hx[i][e * 4], pairs, (const f16 *)0);
                }
            if (FORMAT == 2 && s < 3) continue;
            #pragma unroll
            for (int i = 0; i < MT; ++i) {
                const int row = (wm * MT + i) * 16 + lane / 4;
#if FORMAT == 2
                const float block = __uint_as_float(own[BM]), upper = __uint_as_float(own[row]) * block, lower = __uint_as_float(own[row + 8]) * block;
#else
                const float upper = power_of_two(own[row], s), lower = power_of_two(own[row + 8], s);
#endif
                #pragma unroll
                for (int j = 0; j < NT; ++j) {
#if FORMAT == 2
                    const float left = 1, right = 1;
#else
                    const int   c    = BM + (wn * NT + j) * 8 + lane % 4 * 2;
                    const float left = power_of_two(own[c], s), right = power_of_two(own[c + 1], s);
#endif
                    sum[i][j][0] = fmaf(part[i][j][0] * left, upper, sum[i][j][0]);
                    sum[i][j][1] = fmaf(part[i][j][1] * right, upper, sum[i][j][1]);
                    sum[i][j][2] = fmaf(part[i][j][2] * left, lower, sum[i][j][2]);
                    sum[i][j][3] = fmaf(part[i][j][3] * right, lower, sum[i][j][3]);
                }
            }
#else
            #pragma unroll
            for (int i = 0; i < MT; ++i)
                #pragma unroll
                for (int j = 0; j < NT; ++j) mma_m16n8k16(part[i][j], fx[i], &fw[j / 2][j % 2 * 2], (const T *)0);
#endif
        }
        stage      = stage + 1 == STAGES ? 0 : stage + 1;
        free_stage = free_stage + 1 == STAGES ? 0 : free_stage + 1;
    }

    #pragma unroll
    for (int i = 0; i < MT; ++i)
        #pragma unroll
        for (int e = 0; e < 4; e += 2) {
            const int64_t row = (wm * MT + i) * 16 + lane / 4 + e / 2 * 8;
            if (row >= at.left || (a.form == GROUPED_INDICES && a.layout[at.m + row] != at.group)) continue;
            const int64_t to = at.matrix * a.out_group + (at.m + row) * a.out_stride + at.n;
            #pragma unroll
            for (int j = 0; j < NT; ++j) {
                const int64_t n = (wn * NT + j) * 8 + lane % 4 * 2;
                if (n < columns) store(&a, to + n, sum[i][j][e]);
                if (n + 1 < columns) store(&a, to + n + 1, sum[i][j][e + 1]);
            }
        }
    pdl_release();
}
