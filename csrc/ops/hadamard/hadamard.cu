/*
 * Hadamard transforms of rows in f32: each element is read once and written once, between the two it stays in registers and, where a row
 * is more than a warp's work, in shared memory. Bound by memory; log2 of a row's length, plus a handful for an order, additions an element.
 *
 * A step joins elements whose places in their chunk differ in one bit. A thread does the steps of the bits in which its own elements
 * differ. Shorter rows are done with by shuffles; those with LOG >= 10, with an order 7, change hands twice. The bits of each thread:
 *
 *              when it loads        in the middle                                       when it stores
 *     order 1  0 1 2, the top two   3 4 5 6 7; by shuffles 8 if LOG > 12, 9 if LOG > 13  0 1 2, END_BIT and the next
 *     others   0 and if RUN is 4 1  3 4 5 6; by a shuffle 7 if LOG is 9                  0 1 2 and the top one
 *
 *   ORDER  1, 12, 20, 28 or 40: chunks of a row
 *   LOG    a chunk is 2^LOG elements: 3 to 14, with an order 2 to 9
 *   SPLIT  1: chunks are twice as long, and a block transforms the sums of their halves, or the differences: it reads two elements for
 *          one it writes, the second time out of the L2 cache, and needs half the shared memory
 */
#include "hadamard.h"
#include "butterfly.cuh"
#include "launch.cuh"

#define CHUNK (1 << LOG)
#define ROW   (ORDER * CHUNK)
#if ORDER == 1
#define RUN  8                                         /* neighbours that a thread loads as one */
#define RUNS (1 << (LOG >= 4) << (LOG >= 7))
#define TEAM (ROW / (RUN * RUNS))                      /* threads of a row */
#define STEP (RUN * TEAM)                              /* from run to run */
#define WIDE (LOG >= 10)                               /* through shared memory */
#else
#define RUN  (ORDER < 28 ? 4 : 2)
#define RUNS ORDER
#define TEAM (CHUNK / RUN)
#define STEP (CHUNK << SPLIT)
#define WIDE (LOG >= 7)
#endif
#define COUNT   (RUN * RUNS)
#define THREADS (TEAM > 128 ? TEAM : 128)
#define TEAMS   (THREADS / TEAM)

/* Threads that a multiprocessor shall hold, from which the compiler takes how many registers each may have. */
#if ORDER == 1
#define RESIDENT (SPLIT ? 512 : 1024)
#elif SPLIT
#define RESIDENT THREADS
#elif ORDER == 12
#define RESIDENT 768
#elif ORDER == 28
#define RESIDENT 640
#else
#define RESIDENT 512
#endif

/* A run as it lies in memory, f32 or two 16-bit elements a word. */
DEVICE void load_words(uint32_t *w, const int words, const uint32_t *p)
{
    if (words == 1) w[0] = *p;
    if (words == 2) {
        const uint2 u = *(const uint2 *)p;
        w[0] = u.x, w[1] = u.y;
    }
    #pragma unroll
    for (int i = 0; words >= 4 && i < words; i += 4) {
        const uint4 u = *(const uint4 *)(p + i);
        w[i] = u.x, w[i + 1] = u.y, w[i + 2] = u.z, w[i + 3] = u.w;
    }
}

DEVICE void store_words(uint32_t *p, const uint32_t *w, const int words)
{
    if (words == 1) *p = w[0];
    if (words == 2) *(uint2 *)p = make_uint2(w[0], w[1]);
    #pragma unroll
    for (int i = 0; words >= 4 && i < words; i += 4) *(uint4 *)(p + i) = make_uint4(w[i], w[i + 1], w[i + 2], w[i + 3]);
}

/* `runs` runs of `run` elements, the first at `first`, `step` apart; zeros behind a.dim. All are loaded before the first is converted. */
DEVICE void load_runs(float *v, const int runs, const int run, const hadamard_args &a, int64_t row, int first, int step)
{
    if (a.dtype == SGK_F32) {
        const uint32_t *x = (const uint32_t *)a.x + row * a.x_stride;
        uint32_t        w[COUNT];
        #pragma unroll
        for (int i = 0; i < runs * run; ++i) w[i] = 0;
        #pragma unroll
        for (int s = 0; s < runs; ++s) {
            const int at = first + s * step;
            if (a.pieces) {
                if (at < a.dim) load_words(w + s * run, run, x + at);
            } else {
                #pragma unroll
                for (int i = 0; i < run; ++i)
                    if (at + i < a.dim) w[s * run + i] = x[at + i];
            }
        }
        #pragma unroll
        for (int i = 0; i < runs * run; ++i) v[i] = __uint_as_float(w[i]);
        return;
    }
    const uint16_t *x = (const uint16_t *)a.x + row * a.x_stride;
    uint32_t        w[COUNT / 2];
    #pragma unroll
    for (int i = 0; i < runs * run / 2; ++i) w[i] = 0;
    #pragma unroll
    for (int s = 0; s < runs; ++s) {
        const int at = first + s * step;
        if (a.pieces) {
            if (at < a.dim) load_words(w + s * run / 2, run / 2, (const uint32_t *)(x + at));
        } else {
            #pragma unroll
            for (int i = 0; i < run; ++i)
                if (at + i < a.dim) w[(s * run + i) / 2] |= (uint32_t)x[at + i] << 16 * (i % 2);
        }
    }
    if (a.dtype == SGK_BF16) {
        #pragma unroll
        for (int i = 0; i < runs * run; ++i) v[i] = __uint_as_float(i % 2 ? w[i / 2] & 0xffff0000u : w[i / 2] << 16);
    } else {
        #pragma unroll
        for (int i = 0; i < runs * run; ++i) {
            const f16 h = { (uint16_t)(i % 2 ? w[i / 2] >> 16 : w[i / 2]) };
            v[i]        = to_f32(h);
        }
    }
}

DEVICE void store_runs(const float *v, const int runs, const int run, const hadamard_args &a, int64_t row, int first, int step)
{
    #pragma unroll
    for (int s = 0; s < runs; ++s) {
        const int at = first + s * step;
        uint32_t  w[8];
        if (a.dtype == SGK_F32) {
            uint32_t *y = (uint32_t *)a.out + row * a.out_stride + at;
            #pragma unroll
            for (int i = 0; i < run; ++i) w[i] = __float_as_uint(v[s * run + i] * a.scale);
            if (a.pieces) {
                if (at < a.dim) store_words(y, w, run);
            } else {
                #pragma unroll
                for (int i = 0; i < run; ++i)
                    if (at + i < a.dim) y[i] = w[i];
            }
            continue;
        }
        uint16_t *y = (uint16_t *)a.out + row * a.out_stride + at;
        #pragma unroll
        for (int i = 0; i < run; i += 2) {
            const float lo = v[s * run + i] * a.scale, hi = v[s * run + i + 1] * a.scale;
            w[i / 2] = a.dtype == SGK_BF16 ? pack_bf16x2(lo, hi) : pack_f16x2(lo, hi);
        }
        if (a.pieces) {
            if (at < a.dim) store_words((uint32_t *)y, w, run / 2);
        } else {
            #pragma unroll
            for (int i = 0; i < run; ++i)
                if (at + i < a.dim) y[i] = (uint16_t)(w[i / 2] >> 16 * (i % 2));
        }
    }
}

#if ORDER > 1
#define CORE (ORDER == 40 ? 20 : ORDER)

/* Multiplies CORE elements, v[0], v[RUN], ..., by the matrix of that order. All sums +-a +-b +-c +-d of four neighbours are made once, as
 * (a +- b) +- (c +- d) up to their sign; a result adds one of each four in order. */
DEVICE void multiply(float *v)
{
    float out[CORE];
    #pragma unroll
    for (int g = 0; g < CORE / 4; ++g) {
        const float *const x          = v + 4 * g * RUN;
        const float        pair[2][2] = { { x[0] + x[RUN], x[2 * RUN] + x[3 * RUN] }, { x[0] - x[RUN], x[2 * RUN] - x[3 * RUN] } };
        float              sums[2][2][2];
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            sums[i / 2][i % 2][0] = pair[i / 2][0] + pair[i % 2][1];
            sums[i / 2][i % 2][1] = pair[i / 2][0] - pair[i % 2][1];
        }
        #pragma unroll
        for (int i = 0; i < CORE; ++i) {
            const int   s0 = hadamard_negative(ORDER, i, 4 * g), s1 = hadamard_negative(ORDER, i, 4 * g + 1);
            const int   s2 = hadamard_negative(ORDER, i, 4 * g + 2), s3 = hadamard_negative(ORDER, i, 4 * g + 3);
            const float sum = sums[s0 ^ s1][s2 ^ s3][s0 ^ s2];
            out[i]          = g == 0 ? (s0 ? -sum : sum) : s0 ? out[i] - sum
                                                              : out[i] + sum;
        }
    }
    #pragma unroll
    for (int i = 0; i < CORE; ++i) v[i * RUN] = out[i];
}

DEVICE void multiply_runs(float *v)
{
    #pragma unroll
    for (int i = 0; ORDER == 40 && i < 20 * RUN; ++i) {
        const float a = v[i], b = v[i + 20 * RUN];
        v[i]            = a + b;
        v[i + 20 * RUN] = a - b;
    }
    #pragma unroll
    for (int j = 0; j < RUN; ++j) {
        multiply(v + j);
        if (ORDER == 40) multiply(v + 20 * RUN + j);
    }
}
#endif

#if WIDE
extern __shared__ __align__(16) float memory[];

/* A piece of 2, 4 or 8 neighbours at `at`, a multiple of their number. */
DEVICE void to_memory(float *row, int at, const float *v, const int count)
{
    float *p = row + HADAMARD_PLACE(at);
    if (count == 2) *(float2 *)p = make_float2(v[0], v[1]);
    #pragma unroll
    for (int i = 0; count >= 4 && i < count; i += 4) *(float4 *)(p + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
}

DEVICE void from_memory(float *v, const float *row, int at)
{
    const float *p = row + HADAMARD_PLACE(at);
    #pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const float4 u = *(const float4 *)(p + i);
        v[i] = u.x, v[i + 1] = u.y, v[i + 2] = u.z, v[i + 3] = u.w;
    }
}

/* What a thread holds in the middle: MIDS elements, 8 apart. */
#define MIDS (ORDER == 1 ? 32 : 16)
/* Threads whose place differs in bit 3 differ in the bit of the element's place behind the middle's, and so on. */
#if ORDER == 1
#define SHUFFLED (LOG > 12 ? LOG - 12 : 0)
#define ENDS     4                                      /* runs of a thread in the end */
#define END_BIT  (8 + SHUFFLED)                         /* they differ in this bit of the place and those above */
#define END_FROM 8                                      /* the steps that are left, as bits of the place in a thread's runs */
#define END_TO   (8 << (LOG >= 11) << (LOG >= 12))
#else
#define SHUFFLED (LOG > 8)
#define ENDS     2
#define END_BIT  (LOG - 1)
#define END_FROM RUN
#define END_TO   (LOG > 7 ? 16 : 8)
#endif

DEVICE void middle(float *row, int lane)
{
    #pragma unroll 1
    for (int task = lane; task < ROW / MIDS; task += TEAM) {
        float *const p = row + HADAMARD_PLACE(task % 8 + task / 8 * (8 * MIDS));
        float        v[MIDS];
        #pragma unroll
        for (int i = 0; i < MIDS; ++i) v[i] = p[HADAMARD_PLACE(8 * i)];
        butterflies(v, MIDS, 1, MIDS);
        lane_butterflies(v, MIDS, 8, 8 << SHUFFLED);
        #pragma unroll
        for (int i = 0; i < MIDS; ++i) p[HADAMARD_PLACE(8 * i)] = v[i];
    }
}
#endif

extern "C" __global__ __launch_bounds__(THREADS, RESIDENT / THREADS) void hadamard(const __grid_constant__ hadamard_args a)
{
    const int     lane = (int)threadIdx.x % TEAM;
    const int64_t row  = SPLIT ? blockIdx.x / 2 : (int64_t)blockIdx.x * TEAMS + threadIdx.x / TEAM;
    const bool    live = row < a.rows;                  /* behind the last row: nothing, but its threads join the shuffles */
    float         v[COUNT];
    #pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] = 0;

    pdl_wait();
    pdl_release();
    if (live) load_runs(v, RUNS, RUN, a, row, lane * RUN, STEP);
#if SPLIT
    const int half = blockIdx.x % 2;
    float     u[COUNT];
    load_runs(u, RUNS, RUN, a, row, lane * RUN + CHUNK, STEP);
    #pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] = fmaf(half ? -1.0f : 1.0f, u[i], v[i]);
#endif
#if ORDER > 1
    multiply_runs(v);
    butterflies(v, COUNT, 1, RUN);
#else
    butterflies(v, COUNT, 1, COUNT);
#endif
#if !WIDE
    lane_butterflies(v, COUNT, 1, TEAM);
    if (live) store_runs(v, RUNS, RUN, a, row, lane * RUN, STEP);
#else
    float *const mine = memory + threadIdx.x / TEAM * HADAMARD_PLACE(ROW);
    #pragma unroll
    for (int s = 0; s < RUNS; ++s) to_memory(mine, lane * RUN + s * (ORDER == 1 ? RUN * TEAM : CHUNK), v + s * RUN, RUN);
    __syncthreads();
    middle(mine, lane);
    __syncthreads();
    #pragma unroll 1
    for (int task = lane; task < ROW / (8 * ENDS); task += TEAM) {
        const int low = task % (1 << (END_BIT - 3)), high = task / (1 << (END_BIT - 3));
        const int first = 8 * low + high * (ENDS << END_BIT);
        float     w[8 * ENDS];
        #pragma unroll
        for (int s = 0; s < ENDS; ++s) from_memory(w + 8 * s, mine, first + (s << END_BIT));
        butterflies(w, 8 * ENDS, END_FROM, END_TO);
#if SPLIT
        const int at = first + (first / CHUNK + half) * CHUNK;
#else
        const int at = first;
#endif
        if (live) store_runs(w, ENDS, 8, a, row, at, 1 << END_BIT);
    }
#endif
}
