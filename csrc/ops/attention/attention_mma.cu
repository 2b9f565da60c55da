/*
 * Attention on the matrix units, f16 and bf16. A row is a query under one of the group's heads; a block takes ROWS of them under one
 * key head, and one part of the keys. It goes over the keys in tiles, keeps a running maximum and sum for each row, and never
 * stores a score.
 *
 *     moved        q and out once; k and v once for each block of rows, for a whole group of heads together
 *     operations   4 * DIM a row and key
 *
 *   T                 f16 or bf16
 *   DIM               head sizes up to here, a multiple of 32; smaller ones are filled up with zeros
 *   WARPS_M, WARPS_N  warps along the rows, 16 each, and along the keys of a tile. With several along the keys each has sums of its own,
 *                     added in a fixed order at the end
 *   TILE              keys in a tile, a multiple of 16 * WARPS_N
 *
 * Shared memory, in rows of DIM whose 16-byte pieces are swizzled so that the 8 rows of an ldmatrix touch all banks:
 *
 *     q [ROWS] | k [2][TILE] | v [2][TILE]            tile t lies in half t % 2; afterwards the same memory holds the f32 sums
 */
#include "attention.h"
#include "attention_tile.cuh"
#include "cp_async.cuh"
#include "launch.cuh"
#include "mma.cuh"

#define THREADS   (32 * WARPS_M * WARPS_N)
#define ROWS      (16 * WARPS_M)
#define MINE      (TILE / WARPS_N)              /* keys of a tile that a warp takes */
#define PIECES    (DIM / 8)                     /* 16-byte pieces in a row */
#define ROW_BYTES (2 * DIM)
#define SUM_ROW   (DIM + 8)                     /* floats in a row of sums: 8 more spread the rows over the banks */
#define HOLD_Q    (DIM <= 128 && WARPS_M > 1)   /* q stays in registers: where out does not need them, and tiles bring more products than bytes */
#define BLOCKS    (DIM > 128 ? 1 : WARPS_M == 1 ? 3 \
                                                : 2)                /* on a multiprocessor: as many as shared memory lets in on sm_90 */

#if DIM % 64 == 0
#define SPAN         8                                  /* pieces that change places among themselves */
#define SWIZZLE(row) ((row) & 7)
#else
#define SPAN         4
#define SWIZZLE(row) ((row) >> 1 & 3)           /* rows of 192 bytes: two of them fill the banks */
#endif

extern __shared__ __align__(128) unsigned char memory[];

DEVICE uint32_t piece_at(uint32_t base, int row, int piece) { return base + row * ROW_BYTES + ((piece ^ SWIZZLE(row)) << 4); }

/* Where this lane's line of a matrix lies for 16 columns at a time: columns 16 d are at at[d % (SPAN / 2)] + STEP(d), and 16 rows further
 * 16 ROW_BYTES further, because the swizzle repeats. Few addresses then serve all products. */
#define STEP(d) ((d) / (SPAN / 2) * SPAN * 16)
DEVICE void matrix_at(uint32_t at[SPAN / 2], uint32_t base, int row, int piece)
{
    #pragma unroll
    for (int d = 0; d < SPAN / 2; ++d) at[d] = piece_at(base, row, 2 * d + piece);
}

/* `at` has the rows' offsets in elements; negative ones, and pieces behind the head size, become zeros. */
DEVICE void load_tile(uint32_t to, const T *from, const int64_t *at, int dim)
{
    #pragma unroll
    for (int i = 0; i < TILE * PIECES / THREADS; ++i) {
        const int  row = (i * THREADS + (int)threadIdx.x) / PIECES, piece = (i * THREADS + (int)threadIdx.x) % PIECES;
        const bool inside = at[row] != ATTENTION_NOWHERE && piece * 8 < dim;
        cp_async16(piece_at(to, row, piece), inside ? from + at[row] + piece * 8 : from, inside);
    }
}

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void attention_mma(const __grid_constant__ attention_args a)
{
    __shared__ int64_t key_at[2][TILE], value_at[2][TILE];
    __shared__ int     least_of[ROWS], behind_of[ROWS];                 /* the keys a row sees */
    __shared__ float   warp_most[WARPS_N][ROWS], warp_sum_of[WARPS_N][ROWS];

    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int warp_m = warp % WARPS_M, warp_n = warp / WARPS_M;
    const int g = lane / 4, t = lane % 4;                               /* as in mma.cuh */

    const tile_part part  = tile_part_of(&a, blockIdx.x);
    const int       split = part.split, kv_head = part.kv_head, n = part.n;

    pdl_wait();
    const attention_sequence s    = attention_own_sequence(&a, n);
    const int                rows = s.sq * a.group, row0 = part.row_block * ROWS;
    if (row0 >= rows) return;
    const int            row_end = row0 + ROWS < rows ? row0 + ROWS : rows;
    const attention_keys keys    = attention_part_of(&a, &s, row0 / a.group, (row_end - 1) / a.group, split);
    const int            tiles   = keys.end > keys.begin ? (keys.end - keys.begin + TILE - 1) / TILE : 0;

    const T       *k = (const T *)a.k, *v = (const T *)a.v;
    const uint32_t q_base = shared_address(memory), k_base = q_base + ROWS * ROW_BYTES, v_base = k_base + 2 * TILE * ROW_BYTES;

    /* Threads below TILE look up where the rows of tile 0 and tile 1 are. */
    tile_rows(&a, &s, n, kv_head, key_at[0], value_at[0], tile_page(&a, &s, n, keys.begin, keys.end), keys.begin, keys.end);
    tile_rows(&a, &s, n, kv_head, key_at[1], value_at[1], tile_page(&a, &s, n, keys.begin + TILE, keys.end), keys.begin + TILE, keys.end);

    for (int i = (int)threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        const int     row = i / PIECES, piece = i % PIECES, r = row0 + row;
        const bool    inside = r < rows && piece * 8 < a.dim;
        const int64_t at     = n * a.q_batch_stride + (s.q_begin + r / a.group) * a.q_row_stride + (kv_head * a.group + r % a.group) * a.q_head_stride;
        cp_async16(piece_at(q_base, row, piece), inside ? (const T *)a.q + at + piece * 8 : (const T *)a.q, inside);
    }
    __syncthreads();
    if (tiles > 0) load_tile(k_base, k, key_at[0], a.dim);
    cp_async_commit();
    if (tiles > 0) load_tile(v_base, v, value_at[0], a.dim_v);
    cp_async_commit();

    for (int row = (int)threadIdx.x; row < ROWS; row += THREADS) {
        const int            r    = row0 + row;
        const attention_keys sees = attention_keys_of(&a, &s, r / a.group);
        least_of[row] = sees.begin, behind_of[row] = r >= rows ? 0 : sees.end < keys.end ? sees.end
                                                                                         : keys.end;
    }
    const float scale = a.softcap != 0 ? a.scale : a.scale * LOG2_E;     /* scores in powers of two, in the end */

    float out[DIM / 8][4], most[2] = { -INF, -INF }, sum[2] = { 0, 0 };
    #pragma unroll
    for (int d = 0; d < DIM / 8; ++d) out[d][0] = out[d][1] = out[d][2] = out[d][3] = 0;

    const int matrix = lane / 8, line = lane % 8;                       /* of an ldmatrix: whose address this lane gives */
    uint32_t  q_at[SPAN / 2], k_at[SPAN / 2], v_at[SPAN / 2];
    matrix_at(q_at, q_base, 16 * warp_m + (matrix & 1) * 8 + line, matrix >> 1);
    matrix_at(k_at, k_base, MINE * warp_n + (matrix >> 1) * 8 + line, matrix & 1);
    matrix_at(v_at, v_base, MINE * warp_n + (matrix & 1) * 8 + line, matrix >> 1);
#if HOLD_Q
    uint32_t held[DIM / 16][4];
#endif

    for (int tile = 0; tile < tiles; ++tile) {
        const uint32_t half = (tile & 1) * TILE * ROW_BYTES, other = TILE * ROW_BYTES - half;
        __syncthreads();                                                /* all are done with the tile before this one */
        if (tile + 1 < tiles) load_tile(k_base + other, k, key_at[(tile + 1) & 1], a.dim);
        cp_async_commit();
        if (tile + 1 < tiles) load_tile(v_base + other, v, value_at[(tile + 1) & 1], a.dim_v);
        cp_async_commit();
        const int after = keys.begin + (tile + 2) * TILE, page = tile_page(&a, &s, n, after, keys.end);

        cp_async_wait(3);
        __syncthreads();                                                /* the keys are there */
#if HOLD_Q
        if (tile == 0) {
            #pragma unroll
            for (int d = 0; d < DIM / 16; ++d) ldmatrix_x4(held[d], q_at[d % (SPAN / 2)] + STEP(d));
        }
#endif
        float score[MINE / 8][4];
        #pragma unroll
        for (int j = 0; j < MINE / 8; ++j) score[j][0] = score[j][1] = score[j][2] = score[j][3] = 0;
        #pragma unroll
        for (int d = 0; d < DIM / 16; ++d) {
#if HOLD_Q
            const uint32_t *q = held[d];
#else
            uint32_t q[4];
            ldmatrix_x4(q, q_at[d % (SPAN / 2)] + STEP(d));
#endif
            #pragma unroll
            for (int j = 0; j < MINE / 16; ++j) {
                uint32_t b[4];
                ldmatrix_x4(b, k_at[d % (SPAN / 2)] + half + STEP(d) + 16 * j * ROW_BYTES);
                mma_m16n8k16(score[2 * j], q, b, (const T *)0);
                mma_m16n8k16(score[2 * j + 1], q, b + 2, (const T *)0);
            }
        }

        const int  first = keys.begin + tile * TILE + MINE * warp_n;     /* this warp's first key */
        const int  row = 16 * warp_m + g, least[2] = { least_of[row], least_of[row + 8] }, behind[2] = { behind_of[row], behind_of[row + 8] };    /* this thread's two */
        const bool partial = first < max(least[0], least[1]) || first + MINE > min(behind[0], behind[1]);
        float      now[2]  = { most[0], most[1] };
        #pragma unroll
        for (int j = 0; j < MINE / 8; ++j) {
            #pragma unroll
            for (int e = 0; e < 4; ++e) {
                score[j][e] *= scale;
                if (a.softcap != 0) score[j][e] = soft_capped(score[j][e], a.softcap) * LOG2_E;
            }
        }
        #pragma unroll
        for (int j = 0; j < MINE / 8; ++j) {
            #pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int key = first + 8 * j + 2 * t + (e & 1);
                if (partial && (key < least[e >> 1] || key >= behind[e >> 1])) score[j][e] = -INF;
                now[e >> 1] = fmaxf(now[e >> 1], score[j][e]);
            }
        }
        float base[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            now[i]            = fmaxf(now[i], __shfl_xor_sync(~0u, now[i], 1));
            now[i]            = fmaxf(now[i], __shfl_xor_sync(~0u, now[i], 2));
            base[i]           = now[i] == -INF ? 0 : now[i];                 /* no key seen so far: -inf - -inf is no number */
            const float alpha = exp2_approx(most[i] - base[i]);
            most[i]           = now[i];
            sum[i] *= alpha;
            #pragma unroll
            for (int d = 0; d < DIM / 8; ++d) out[d][2 * i] *= alpha, out[d][2 * i + 1] *= alpha;
        }
        uint32_t p[MINE / 8][2];                                        /* two of them are A of a product with 16 keys */
        #pragma unroll
        for (int j = 0; j < MINE / 8; ++j) {
            #pragma unroll
            for (int e = 0; e < 4; ++e) {
                score[j][e] = exp2_approx(score[j][e] - base[e >> 1]);
                sum[e >> 1] += score[j][e];
            }
            p[j][0] = pack2(score[j][0], score[j][1], (const T *)0);
            p[j][1] = pack2(score[j][2], score[j][3], (const T *)0);
        }

        cp_async_wait(2);
        __syncthreads();                                                /* the values are there */
        #pragma unroll
        for (int j = 0; j < MINE / 16; ++j) {
            const uint32_t weight[4] = { p[2 * j][0], p[2 * j][1], p[2 * j + 1][0], p[2 * j + 1][1] };
            #pragma unroll
            for (int d = 0; d < DIM / 16; ++d) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, v_at[d % (SPAN / 2)] + half + STEP(d) + 16 * j * ROW_BYTES);
                mma_m16n8k16(out[2 * d], weight, b, (const T *)0);
                mma_m16n8k16(out[2 * d + 1], weight, b + 2, (const T *)0);
            }
        }
        tile_rows(&a, &s, n, kv_head, key_at[tile & 1], value_at[tile & 1], page, after, keys.end);      /* nobody reads this half any more */
    }
    cp_async_wait(0);
    __syncthreads();

    /* Sums to shared memory; then each thread takes 8 columns of a row, over all warps that have a share in it. */
    float *sums = (float *)memory;
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = 16 * warp_m + g + 8 * i;
        sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
        sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
        if (t == 0) warp_most[warp_n][row] = most[i], warp_sum_of[warp_n][row] = sum[i];
        #pragma unroll
        for (int d = 0; d < DIM / 8; ++d)
            *(float2 *)&sums[(warp_n * ROWS + row) * SUM_ROW + 8 * d + 2 * t] = make_float2(out[d][2 * i], out[d][2 * i + 1]);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        const int row = i / PIECES, column = i % PIECES * 8, r = row0 + row;
        if (r >= rows || column >= a.dim_v) continue;
        float all_most = warp_most[0][row], all_sum = 0, total[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
        #pragma unroll
        for (int w = 1; w < WARPS_N; ++w) all_most = fmaxf(all_most, warp_most[w][row]);
        #pragma unroll
        for (int w = 0; w < WARPS_N; ++w) {
            const float   weight = warp_most[w][row] == -INF ? 0 : exp2_approx(warp_most[w][row] - all_most);
            const float4 *from   = (const float4 *)&sums[(w * ROWS + row) * SUM_ROW + column];
            const float4  x = from[0], y = from[1];
            all_sum += weight * warp_sum_of[w][row];
            total[0] += weight * x.x, total[1] += weight * x.y, total[2] += weight * x.z, total[3] += weight * x.w;
            total[4] += weight * y.x, total[5] += weight * y.y, total[6] += weight * y.z, total[7] += weight * y.w;
        }
        const int        query = r / a.group, h = kv_head * a.group + r % a.group;
        const row_result end = end_of_row(&a, h, all_most * 0.6931471805599453f, all_sum);
        #pragma unroll
        for (int e = 0; e < 8; ++e) total[e] *= end.scale;
        if (a.splits == 1) {
            T *to        = (T *)a.out + n * a.out_batch_stride + (s.q_begin + query) * a.out_row_stride + h * a.out_head_stride + column;
            *(uint4 *)to = pack16(total, (const T *)0);
            if (column == 0 && a.softmax_lse) a.softmax_lse[n * a.lse_batch_stride + h * a.lse_head_stride + s.q_begin + query] = end.lse;
        } else {
            const int64_t at = (((int64_t)split * a.batch + n) * a.heads + h) * a.max_q + query;
            float4       *to = (float4 *)(a.partial_out + at * attention_partial_dim(&a) + column);
            to[0]            = make_float4(total[0], total[1], total[2], total[3]);
            to[1]            = make_float4(total[4], total[5], total[6], total[7]);
            if (column == 0) a.partial_lse[at] = end.lse;
        }
    }
    pdl_release();
}
