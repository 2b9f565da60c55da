/*
 * Softmax. A row is read twice, the second time from a cache: first for its maximum m and the sum of e^((x - m) / t), rescaled whenever m
 * grows (M. Milakov, N. Gimelshein: Online normalizer calculation for softmax, 2018); then to write. At temperature 0 the first pass
 * looks for the first maximum instead. Bound by memory, and by exponentials where rows are few.
 *
 * On sm_90 the blocks of a cluster share a row and tell each other their maxima and sums; their number depends on the row's length
 * alone, and so does the order of the sum. At temperature 0 the first of them does the whole row.
 *
 *   T      f32, f16 or bf16
 *   PIECE  elements a load takes: 16 bytes of them; 1 takes any length and alignment
 *   WARPS  warps in a block
 */
#include "sampling.h"
#include "cluster.cuh"
#include "launch.cuh"
#include "reduce.cuh"

#define THREADS      (32 * WARPS)
#define STEPS        4                                      /* loads in flight in a thread */
#define MOST         3.402823466e+38f                       /* the largest f32 */
#define INFINITE     __uint_as_float(0x7f800000)
#define NOT_A_NUMBER __uint_as_float(0x7fffffff)

#if PIECE == 1
typedef T piece_t;
DEVICE void unpack(float *v, piece_t p) { v[0] = to_f32(p); }
DEVICE void write(float *out, const float *v) { out[0] = v[0]; }
#else
typedef uint4 piece_t;
DEVICE void unpack(float *v, piece_t p) { unpack16(v, p, (const T *)0); }
DEVICE void write(float *out, const float *v)
{
    #pragma unroll
    for (int i = 0; i < PIECE; i += 4) *(uint4 *)(out + i) = pack16(v + i, (const f32 *)0);
}
#endif

DEVICE void write_all(float *out, int64_t pieces, float value)
{
    float v[PIECE];
    #pragma unroll
    for (int j = 0; j < PIECE; ++j) v[j] = value;
    for (int64_t c = threadIdx.x; c < pieces; c += THREADS) write(out + c * PIECE, v);
}

/* What a thread makes of the row on the three ways of going over it. */
enum { FIND,            /* the first maximum, and whether there is a NaN */
       SUM,             /* the maximum, and the sum of e^((x - most) * factor) */
       WRITE };         /* e^((x - most) * factor) * scale */

typedef struct {
    float  *out;
    float   factor, most, sum, scale;
    int64_t at;
    bool    nan;
} softmax_way;

DEVICE void take_piece(int way, softmax_way *w, float *v, int64_t first)
{
    if (way == FIND) {
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) {
            w->nan |= v[j] != v[j];
            if (v[j] > w->most) w->most = v[j], w->at = first + j;
        }
    }
    if (way == SUM) {
        float most = w->most;
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) most = fmaxf(most, v[j]);       /* passes NaN over; the sum has it */
        w->sum *= expf((w->most - most) * w->factor);
        w->most = most;
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) w->sum += expf((v[j] - most) * w->factor);
    }
    if (way == WRITE) {
        #pragma unroll
        for (int j = 0; j < PIECE; ++j) v[j] = expf((v[j] - w->most) * w->factor) * w->scale;
        write(w->out + first, v);
    }
}

DEVICE void go_over(int way, softmax_way *w, const piece_t *x, int64_t begin, int64_t end)
{
    for (int64_t c = begin + threadIdx.x; c < end; c += STEPS * THREADS) {
        piece_t p[STEPS];
        #pragma unroll
        for (int i = 0; i < STEPS; ++i)
            if (c + i * THREADS < end) p[i] = x[c + i * THREADS];
        #pragma unroll
        for (int i = 0; i < STEPS; ++i) {
            if (c + i * THREADS >= end) continue;
            float v[PIECE];
            unpack(v, p[i]);
            take_piece(way, w, v, (c + i * THREADS) * PIECE);
        }
    }
}

/* 1 at the first maximum. */
DEVICE void softmax_cold(float *out, const piece_t *x, int64_t pieces, float *scratch)
{
    __shared__ unsigned long long first;
    if (threadIdx.x == 0) first = ~0ull;

    softmax_way w = { out, 0, -INFINITE, 0, 0, 0, false };
    go_over(FIND, &w, x, 0, pieces);
    const bool  nan  = __syncthreads_or(w.nan);           /* also orders the store to `first` */
    const float most = block_max(w.most, scratch, WARPS);
    if (w.most == most && most > -INFINITE) atomicMin(&first, (unsigned long long)w.at);
    __syncthreads();                                    /* all reads are done: out may be x */
    write_all(out, pieces, nan ? NOT_A_NUMBER : 0);
    __syncthreads();
    if (threadIdx.x == 0 && !nan && first != ~0ull) out[first] = 1;
}

extern "C" __global__ __launch_bounds__(THREADS) void softmax(const __grid_constant__ softmax_args a)
{
    __shared__ float scratch[WARPS], scratch2[WARPS];
    __shared__ float maxima[CLUSTER_MOST], sums[CLUSTER_MOST];
    const unsigned   rank = cluster_rank(), blocks = cluster_blocks();
    const int64_t    row = blockIdx.x / blocks, pieces = a.dim / PIECE, share = (pieces + blocks - 1) / blocks;
    const int64_t    begin = min(rank * share, pieces), end = min(begin + share, pieces);
    const piece_t   *x   = (const piece_t *)((const T *)a.logits + row * a.logits_stride);
    float           *out = a.out + row * a.out_stride;

    pdl_wait();
    const float temperature = a.temperature_arr ? a.temperature_arr[row] : a.temperature;
    if (!(temperature >= 0 && temperature <= MOST)) {
        if (rank == 0) write_all(out, pieces, NOT_A_NUMBER);
        return;
    }
    if (temperature == 0) {
        if (rank == 0) softmax_cold(out, x, pieces, scratch);
        return;
    }
    if (blocks > 1) cluster_arrive();                   /* waited for before another block's memory is written */

    /* Finite, so that -infinity less the maximum is no NaN, and 0 times the factor is 0. */
    softmax_way w = { out, fminf(1 / temperature, MOST), -MOST, 0, 0, 0, false };
    go_over(SUM, &w, x, begin, end);
    float most = block_max(w.most, scratch, WARPS);
    float sum  = block_sum(w.sum * expf((w.most - most) * w.factor), scratch2, WARPS);
    if (blocks > 1) {
        cluster_wait();
        if (threadIdx.x < blocks) cluster_store(&maxima[rank], threadIdx.x, most), cluster_store(&sums[rank], threadIdx.x, sum);
        cluster_arrive();
        cluster_wait();
        most = maxima[0], sum = 0;
        for (unsigned b = 1; b < blocks; ++b) most = fmaxf(most, maxima[b]);
        for (unsigned b = 0; b < blocks; ++b) sum += sums[b] * expf((maxima[b] - most) * w.factor);
    }
    w.most = most, w.scale = sum == 0 ? 0 : 1 / sum;
    __syncthreads();                                    /* all reads of the first pass are done: out may be x */
    go_over(WRITE, &w, x, begin, end);
    pdl_release();
}
