/*
 * Attention with plain multiply-adds in f32: f32 tensors (no TF32), and f16 and bf16 whose rows are not in 16-byte pieces. The same
 * plan as attention_mma.cu: a block takes 32 rows under one key head and goes over its part of the keys in tiles of 32.
 *
 *   T    f32, f16 or bf16
 *   DIM  head sizes up to here, a multiple of 64
 *
 * Thread (y, x) of 8 x 16 has rows 4 y .. 4 y + 3; of a tile's scores keys x and x + 16, of out columns x, x + 16, x + 32, ...
 * Keys and values take turns in one buffer.
 */
#define TILE 32                                 /* keys in a tile */
#include "attention.h"
#include "attention_tile.cuh"
#include "launch.cuh"

#define THREADS 128
#define ROWS    32
#define ROW     (DIM + 4)                       /* floats in a row of q and k: 4 more spread rows over the banks, and keep 16-byte reads aligned */

extern __shared__ __align__(16) float memory[];

DEVICE void load_tile(float *to, const T *from, const int64_t *at, int dim)
{
    for (int i = (int)threadIdx.x; i < TILE * dim; i += THREADS) {
        const int row = i / dim, d = i - row * dim;
        to[row * ROW + d] = at[row] >= 0 ? to_f32(from[at[row] + d]) : 0;
    }
}

extern "C" __global__ __launch_bounds__(THREADS, 2)        /* told how many blocks to fit, the assembler spills nothing to fit more */
    void attention(const __grid_constant__ attention_args a)
{
    __shared__ int64_t key_at[TILE], value_at[TILE];
    float             *queries = memory, *rows_of_tile = memory + ROWS * ROW, *scores = rows_of_tile + TILE * ROW;     /* scores [ROWS][TILE + 1] */
    const int          x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;

    unsigned  block     = blockIdx.x;
    const int row_block = a.row_blocks - 1 - (int)(block % a.row_blocks);
    block /= a.row_blocks;
    const int split = (int)(block % a.splits);
    block /= a.splits;
    const int kv_head = (int)(block % a.kv_heads), n = (int)(block / a.kv_heads);

    pdl_wait();
    const attention_sequence s    = attention_sequence_of(&a, n);
    const int                rows = s.sq * a.group, row0 = row_block * ROWS;
    if (row0 >= rows) return;
    const int            row_end = row0 + ROWS < rows ? row0 + ROWS : rows;
    const attention_keys keys    = attention_part_of(&a, &s, row0 / a.group, (row_end - 1) / a.group, split);
    const T             *k = (const T *)a.k + kv_head * a.k_head_stride, *v = (const T *)a.v + kv_head * a.v_head_stride;

    for (int i = (int)threadIdx.x; i < ROWS * a.dim; i += THREADS) {
        const int     row = i / a.dim, d = i - row * a.dim, r = row0 + row;
        const int64_t at       = n * a.q_batch_stride + (s.q_begin + r / a.group) * a.q_row_stride + (kv_head * a.group + r % a.group) * a.q_head_stride;
        queries[row * ROW + d] = r < rows ? to_f32(((const T *)a.q)[at + d]) * a.scale : 0;
    }

    int   least[4], behind[4];
    float out[4][DIM / 16], most[4], sum[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int            r    = row0 + 4 * y + i;
        const attention_keys sees = attention_keys_of(&a, &s, r / a.group);
        least[i] = sees.begin, behind[i] = r >= rows ? 0 : sees.end < keys.end ? sees.end
                                                                               : keys.end;
        most[i] = -INF, sum[i] = 0;
        #pragma unroll
        for (int c = 0; c < DIM / 16; ++c) out[i][c] = 0;
    }

    for (int first = keys.begin; first < keys.end; first += TILE) {
        __syncthreads();                                                /* all are done with the tile before this one */
        tile_rows(&a, &s, key_at, value_at, tile_page(&a, &s, n, first, keys.end), first, keys.end);
        __syncthreads();
        load_tile(rows_of_tile, k, key_at, a.dim);
        __syncthreads();

        float score[4][2] = { { 0, 0 }, { 0, 0 }, { 0, 0 }, { 0, 0 } };
        for (int d = 0; d < a.dim; d += 4) {
            float4 key[2];
            #pragma unroll
            for (int j = 0; j < 2; ++j) key[j] = *(const float4 *)&rows_of_tile[(x + 16 * j) * ROW + d];
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float4 query = *(const float4 *)&queries[(4 * y + i) * ROW + d];
                #pragma unroll
                for (int j = 0; j < 2; ++j)
                    score[i][j] = fmaf(query.x, key[j].x, fmaf(query.y, key[j].y, fmaf(query.z, key[j].z, fmaf(query.w, key[j].w, score[i][j]))));
            }
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            float now = most[i];
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int key = first + x + 16 * j;
                if (key < least[i] || key >= behind[i]) score[i][j] = -INF;
                now = fmaxf(now, score[i][j]);
            }
            #pragma unroll
            for (int o = 8; o; o >>= 1) now = fmaxf(now, __shfl_xor_sync(~0u, now, o));
            const float base = now == -INF ? 0 : now, alpha = expf(most[i] - base);
            most[i] = now;
            sum[i] *= alpha;
            #pragma unroll
            for (int c = 0; c < DIM / 16; ++c) out[i][c] *= alpha;
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float p = expf(score[i][j] - base);
                sum[i] += p;
                scores[(4 * y + i) * (TILE + 1) + x + 16 * j] = p;
            }
        }
        __syncthreads();                                                /* all are done with the keys */
        load_tile(rows_of_tile, v, value_at, a.dim);
        __syncthreads();
        for (int j = 0; j < TILE; ++j) {
            float p[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i) p[i] = scores[(4 * y + i) * (TILE + 1) + j];
            #pragma unroll
            for (int c = 0; c < DIM / 16; ++c) {
                if (16 * c >= a.dim) break;
                const float value = rows_of_tile[j * ROW + x + 16 * c];  /* columns behind the head size hold anything, and are not stored */
                #pragma unroll
                for (int i = 0; i < 4; ++i) out[i][c] = fmaf(p[i], value, out[i][c]);
            }
        }
    }

    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        #pragma unroll
        for (int o = 8; o; o >>= 1) sum[i] += __shfl_xor_sync(~0u, sum[i], o);
        const int r = row0 + 4 * y + i;
        if (r >= rows) continue;
        const int     query = r / a.group, h = kv_head * a.group + r % a.group;
        const float   inverse = sum[i] == 0 ? 0 : 1 / sum[i], lse = most[i] + logf(sum[i]);
        const int64_t at = (((int64_t)split * a.batch + n) * a.heads + h) * a.max_q + query;
        T            *to = (T *)a.out + n * a.out_batch_stride + (s.q_begin + query) * a.out_row_stride + h * a.out_head_stride;
        #pragma unroll
        for (int c = 0; c < DIM / 16; ++c) {
            const int d = x + 16 * c;
            if (d >= a.dim) break;
            if (a.splits == 1) from_f32(&to[d], out[i][c] * inverse);
            else a.partial_out[at * a.dim + d] = out[i][c] * inverse;
        }
        if (x == 0 && a.splits > 1) a.partial_lse[at] = sum[i] == 0 ? -INF : lse;
        else if (x == 0 && a.softmax_lse)
            a.softmax_lse[n * a.lse_batch_stride + h * a.lse_head_stride + s.q_begin + query] = sum[i] == 0 ? a.empty_lse : lse;
    }
    pdl_release();
}
