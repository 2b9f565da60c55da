/*
 * Attention of f32 tensors with multiply-adds in f32 (no TF32), any head sizes and alignment. The same plan as attention_mma.cu: a block
 * takes 32 rows under one key head and goes over its part of the keys in tiles of 32.
 *
 *   DIM  head sizes of v up to here, a multiple of 64
 *
 * Queries, keys and values come to shared memory in slabs of 64 columns, so that no head size needs more of it; queries come again for
 * each tile. Thread (y, x) of 8 x 16 has rows 4 y .. 4 y + 3; of a tile's scores keys x and x + 16, of out columns x, x + 16, ...
 */
#define TILE 32                                 /* keys in a tile */
#include "attention.h"
#include "attention_tile.cuh"
#include "launch.cuh"

#define THREADS 128
#define ROWS    32
#define SLAB    64                              /* columns */
#define ROW     (SLAB + 4)                      /* floats in a row: 4 more spread rows over the banks, and keep 16-byte reads aligned */

/* Columns [column, column + SLAB) of 32 rows, zeros behind the head size and where there is no row. */
DEVICE void load_slab(float *to, const float *from, const int64_t *at, int column, int dim)
{
    #pragma unroll 4
    for (int i = (int)threadIdx.x; i < TILE * SLAB; i += THREADS) {
        const int row = i / SLAB, d = column + i % SLAB;
        to[row * ROW + i % SLAB] = at[row] != ATTENTION_NOWHERE && d < dim ? from[at[row] + d] : 0;
    }
}

/* score += queries of a slab times its keys. */
DEVICE void multiply(float score[4][2], const float *queries, const float *rows, int x, int y)
{
    #pragma unroll 4
    for (int d = 0; d < SLAB; d += 4) {
        float4 key[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) key[j] = *(const float4 *)&rows[(x + 16 * j) * ROW + d];
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float4 query = *(const float4 *)&queries[(4 * y + i) * ROW + d];
            #pragma unroll
            for (int j = 0; j < 2; ++j)
                score[i][j] = fmaf(query.x, key[j].x, fmaf(query.y, key[j].y, fmaf(query.z, key[j].z, fmaf(query.w, key[j].w, score[i][j]))));
        }
    }
}

extern "C" __global__ __launch_bounds__(THREADS, 2)        /* told how many blocks to fit, the assembler spills nothing to fit more */
    void attention(const __grid_constant__ attention_args a)
{
    __shared__ __align__(16) float queries[ROWS * ROW], rows_of_tile[TILE * ROW];
    __shared__ float               scores[ROWS][TILE + 1];
    __shared__ int64_t             key_at[TILE], value_at[TILE], query_at[ROWS], query_v_at[ROWS];
    const int                      x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;

    const tile_part part  = tile_part_of(&a, blockIdx.x);
    const int       split = part.split, kv_head = part.kv_head, n = part.n;

    pdl_wait();
    const attention_sequence s    = attention_own_sequence(&a, n);
    const int                rows = s.sq * a.group, row0 = part.row_block * ROWS;
    if (row0 >= rows) return;
    const int            row_end = row0 + ROWS < rows ? row0 + ROWS : rows;
    const attention_keys keys    = attention_part_of(&a, &s, row0 / a.group, (row_end - 1) / a.group, split);
    const float         *k = (const float *)a.k, *v = (const float *)a.v;

    if ((int)threadIdx.x < ROWS) {
        const int r = row0 + (int)threadIdx.x, query = s.q_begin + r / a.group, h = kv_head * a.group + r % a.group;
        query_at[threadIdx.x]   = r < rows ? n * a.q_batch_stride + query * a.q_row_stride + h * a.q_head_stride : ATTENTION_NOWHERE;
        query_v_at[threadIdx.x] = r < rows ? n * a.q_v_batch_stride + query * a.q_v_row_stride + h * a.q_v_head_stride : ATTENTION_NOWHERE;
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
        tile_rows(&a, &s, n, kv_head, key_at, value_at, tile_page(&a, &s, n, first, keys.end), first, keys.end);
        float score[4][2] = { { 0, 0 }, { 0, 0 }, { 0, 0 }, { 0, 0 } };
        for (int pass = 0; pass < (a.q_v ? 2 : 1); ++pass) {            /* q with k, and q_v with v */
            const int dim = pass ? a.dim_v : a.dim;
            for (int d = 0; d < dim; d += SLAB) {
                __syncthreads();                                        /* rows are looked up, and all are done with the slab before this one */
                load_slab(queries, (const float *)(pass ? a.q_v : a.q), pass ? query_v_at : query_at, d, dim);
                load_slab(rows_of_tile, pass ? v : k, pass ? value_at : key_at, d, dim);
                __syncthreads();
                multiply(score, queries, rows_of_tile, x, y);
            }
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            float now = most[i];
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int key = first + x + 16 * j;
                score[i][j] *= a.scale;
                if (a.softcap != 0) score[i][j] = a.softcap * tanhf(score[i][j] / a.softcap);
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
                scores[4 * y + i][x + 16 * j] = p;
            }
        }
        #pragma unroll
        for (int c = 0; c < DIM / SLAB; ++c) {
            if (c * SLAB >= a.dim_v) break;
            __syncthreads();                                            /* scores are there, and all are done with the slab before this one */
            load_slab(rows_of_tile, v, value_at, c * SLAB, a.dim_v);
            __syncthreads();
            #pragma unroll 2
            for (int j = 0; j < TILE; ++j) {
                float p[4];
                #pragma unroll
                for (int i = 0; i < 4; ++i) p[i] = scores[4 * y + i][j];
                #pragma unroll
                for (int e = 0; e < SLAB / 16; ++e) {
                    const float value = rows_of_tile[j * ROW + x + 16 * e];
                    #pragma unroll
                    for (int i = 0; i < 4; ++i) out[i][c * (SLAB / 16) + e] = fmaf(p[i], value, out[i][c * (SLAB / 16) + e]);
                }
            }
        }
        __syncthreads();                                                /* nobody needs this tile's rows any more */
    }

    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        #pragma unroll
        for (int o = 8; o; o >>= 1) sum[i] += __shfl_xor_sync(~0u, sum[i], o);
        const int r = row0 + 4 * y + i;
        if (r >= rows) continue;
        const int        query = r / a.group, h = kv_head * a.group + r % a.group;
        const row_result end = end_of_row(&a, h, most[i], sum[i]);
        const int64_t    at  = (((int64_t)split * a.batch + n) * a.heads + h) * a.max_q + query;
        float           *to  = a.splits > 1 ? a.partial_out + at * attention_partial_dim(&a) : (float *)a.out + n * a.out_batch_stride + (s.q_begin + query) * a.out_row_stride + h * a.out_head_stride;
        #pragma unroll
        for (int c = 0; c < DIM / 16; ++c)
            if (x + 16 * c < a.dim_v) to[x + 16 * c] = out[i][c] * end.scale;
        if (x == 0 && a.splits > 1) a.partial_lse[at] = end.lse;
        else if (x == 0 && a.softmax_lse) a.softmax_lse[n * a.lse_batch_stride + h * a.lse_head_stride + s.q_begin + query] = end.lse;
    }
    pdl_release();
}
