/*
 * Products of groups of rows with a matrix each, on the matrix units of sm_90a: persistent blocks, one warpgroup that starts the copies and
 * GROUPS that multiply (wgmma), a ring of slabs of 128 bytes in K between them.
 *
 *   SCALED   1: e4m3, and a scale for every 128 elements of K of a row of a, and for every 128 x 128 of b. The matrix units add up one slab; that
 *            sum times its scales is added to f32 sums in registers
 *            0: bf16 without scales
 *   SWAP     0: the first operand of the instruction is a, the second b; 1: the other way round, for few rows of a
 *   GROUPS   warpgroups that multiply: the tile has 64 GROUPS rows of the first operand
 *   BN       and BN rows of the second
 *   STAGES   parts of the ring, of SLABS slabs each
 *   CHUNK    of the second operand's rows: with 64 of the first, what leaves at once, 16, 32 or 64; 0: results go straight to memory
 *   BUFFERS  pieces of 64 x CHUNK results that a warpgroup can have on their way out
 *
 * With scales and up to 128 rows of the second operand there are registers for the sums of two slabs (PIPE): a warpgroup starts the next slab of a stage before
 * it adds up the last one. With more it waits for each slab.
 *
 * One thread starts copies of operands (TMA), one warp copies of scales, of any layout (cp.async): both arrive at the stage's barrier. Threads
 * of a lone warpgroup with a as its first operand load their own scales, a stage ahead (HELD). Which tile is whose is found on the GPU from the groups'
 * lengths, counted once by every block. A pair of blocks may share an operand (pair_m, pair_n): each reads half of it and sends it to both. With split > 1 (one
 * group) a cluster has one tile, and each block a share of K; they add up through each other's shared memory, in order.
 *
 * Rows of a and b must be 16-byte aligned. M K + N K elements read, each once a tile that needs it (from L2), 2 M N K operations: bound by
 * the matrix units, or by memory when a group has few rows.
 *
 * Shared memory: slabs [STAGES][SLABS] of first [64 GROUPS][128 bytes], second [BN][128 bytes]; results on their way out; scales
 * [STAGES][SLABS] of rows, blocks of columns; barriers; then [groups] of first tile, first row, rows. The sums of a split are laid over the slabs.
 */
#include "barrier.cuh"
#include "cp_async.cuh"
#include "grouped_promote.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "ring.cuh"
#include "tma.cuh"
#include "wgmma8.cuh"

#if SCALED
typedef e4m3 T;
#else
typedef bf16 T;
#endif
#define STEP        (128 / (int)sizeof(T))              /* elements of K in a slab */
#define ROWS        (64 * GROUPS)
#define TILE_M      (SWAP ? BN : ROWS)
#define TILE_N      (SWAP ? ROWS : BN)
#define FIRST_BYTES (ROWS * 128)
#define SLAB_BYTES  ((ROWS + BN) * 128)
#define STAGE_BYTES (SLABS * SLAB_BYTES)
#define CHUNK_BYTES (64 * CHUNK * 2)
#define OUT         (STAGES * STAGE_BYTES)              /* where results begin, */
#define SCALES      (OUT + GROUPS * BUFFERS * CHUNK_BYTES)      /* scales, */
#define PIPE        (SCALED && BN <= 128)               /* two slabs' sums */
#define HELD        (SCALED && !SWAP && GROUPS == 1)    /* scales are in registers */
#define SHARED      (SCALED && !HELD)                   /* they come with the stage */
#define SLAB_SCALES (SHARED ? TILE_M + 4 : 0)           /* of rows of a, then of blocks of columns of b */
#define BARRIERS    (SCALES + STAGES * SLABS * SLAB_SCALES * 4)  /* barriers, */
#define LENGTHS     (BARRIERS + STAGES * 16)                    /* and the groups' lengths */
#define MULTIPLIERS (128 * GROUPS)                      /* threads */
#define PITCH       (ROWS + 4)                          /* of a row of sums in a split: no bank is met twice */

#if PIPE && SLABS % 2 || SWAP && SCALED && !PIPE
#error "the macros do not fit each other"
#endif

#include "grouped_tiles.cuh"

/* ---- results of one warpgroup, the sums in its registers --------------------------------------------------------------- */

/* Element by element: f32, or an out that is not in pieces; where it is (`pairs`), two columns at a time. `first`: of the warpgroup. */
DEVICE void put_directly(const grouped_args *g, float (&d)[BN / 2], corner at, int first, int t, bool pairs)
{
    const int r = first + t / 32 * 16 + t % 32 / 4, c = t % 4 * 2;
#if !SWAP
    if (pairs) {
        const bool half = g->out_dtype == SGK_F16;
        #pragma unroll
        for (int e = 0; e < 4; e += 2) {
            uint16_t *to = (uint16_t *)g->out + out_place(g, at, r + e * 4, at.n + c);
            if (!wanted(g, at, r + e * 4)) continue;
            #pragma unroll
            for (int j = 0; j < BN / 8; ++j)
                if (at.n + c + 8 * j < g->columns) *(uint32_t *)(to + 8 * j) = pack(half, d[4 * j + e], d[4 * j + e + 1]);
        }
        return;
    }
#endif
    #pragma unroll
    for (int i = 0; i < BN / 2; ++i) {
        const int along = r + i % 4 / 2 * 8, across = c + i / 4 * 8 + i % 2;
        const int row = SWAP ? across : along, column = at.n + (SWAP ? along : across);
        if (column < g->columns && wanted(g, at, row)) put(g, out_place(g, at, row, column), d[i]);
    }
}

#if CHUNK
/* Through shared memory, in chunks: as boxes where all rows of a chunk are the group's, else row by row. `place` has room for BUFFERS. */
DEVICE void put_in_pieces(const grouped_wgmma_args *a, float (&d)[BN / 2], corner at, int first, int t, int group, uint32_t place, int *turn, bool whole)
{
    const grouped_args *g    = &a->g;
    const bool          half = g->out_dtype == SGK_F16;
    const int           lane = t % 32, warp = t / 32;
    #pragma unroll
    for (int c = 0; c < BN / CHUNK; ++c, *turn = *turn + 1 == BUFFERS ? 0 : *turn + 1) {
        const uint32_t to = place + *turn * CHUNK_BYTES;
        if (t == 0) tma_store_wait_read(BUFFERS - 1);
        named_sync(1 + group, 128);
        #pragma unroll
        for (int j = 0; j < CHUNK / 16; ++j) {
            const float *x = d + c * (CHUNK / 2) + 8 * j;
#if SWAP                                                        /* [CHUNK rows of out][64] */
            const int row = 16 * j + lane / 16 * 8 + lane % 8, piece = 2 * warp + lane / 8 % 2;
            stmatrix_x4_trans(to + row * 128 + (piece ^ (row & 7)) * 16, pack(half, x[0], x[1]), pack(half, x[2], x[3]), pack(half, x[4], x[5]), pack(half, x[6], x[7]));
#else                                                           /* [64 rows of out][CHUNK] */
            const int row = 16 * warp + lane % 16, piece = 2 * j + lane / 16;
            stmatrix_x4(to + (CHUNK == 64 ? row * 128 + (piece ^ (row & 7)) * 16 : row * 64 + (piece ^ (row >> 1 & 3)) * 16),
                        pack(half, x[0], x[1]), pack(half, x[2], x[3]), pack(half, x[4], x[5]), pack(half, x[6], x[7]));
#endif
        }
        if (whole) async_fence();
        named_sync(1 + group, 128);
        const int row0 = SWAP ? c * CHUNK : first, column0 = at.n + (SWAP ? first : c * CHUNK);
        if (whole) {
            if (t == 0) {
                tma_store3(&a->result, column0, at.m + row0, at.matrix, to);
                tma_store_commit();
            }
        } else {
            const int wide = SWAP ? 8 : CHUNK / 8, high = SWAP ? CHUNK : 64;         /* pieces of 16 bytes in a row, and rows */
            #pragma unroll
            for (int i = t; i < wide * high; i += 128) {
                const int      row = i / wide, piece = i % wide;
                const uint32_t from = to + (wide == 8 ? row * 128 + (piece ^ (row & 7)) * 16 : row * 64 + (piece ^ (row >> 1 & 3)) * 16);
                if (column0 + piece * 8 < g->columns && wanted(g, at, row0 + row))
                    *(uint4 *)((uint16_t *)g->out + out_place(g, at, row0 + row, column0 + piece * 8)) = shared_load16(from);
            }
        }
    }
}

#endif

#if SWAP
/* Into the block's share of a split: rows of out, PITCH apart. */
DEVICE void put_share(float *share, float (&d)[BN / 2], int row, int t)
{
    const int r = row + t / 32 * 16 + t % 32 / 4, c = t % 4 * 2;
    #pragma unroll
    for (int i = 0; i < BN / 2; ++i) share[(i / 4 * 8 + c + i % 2) * PITCH + r + i % 4 / 2 * 8] = d[i];
}

/* This block's columns of the tile, four at a time: the sum of all shares, in order. Reads from other blocks are slow, hence several at once. */
DEVICE void add_shares(const grouped_wgmma_args *a, corner at, int slice, uint32_t shares, int t)
{
    const grouped_args *g      = &a->g;
    const int           across = ROWS / 4, left = across * slice / a->split, wide = across * (slice + 1) / a->split - left;
    const int           high = at.left < TILE_M ? at.left : TILE_M, count = high * wide;
    for (int i = t; i < count; i += 4 * MULTIPLIERS) {
        float4   sum[4];
        uint32_t from[4];
        #pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int p = i + e * MULTIPLIERS < count ? i + e * MULTIPLIERS : i;
            from[e]     = shares + (uint32_t)(p / wide * PITCH + (left + p % wide) * 4) * 4;
            sum[e]      = cluster_load4(from[e], 0);
        }
        for (int s = 1; s < a->split; ++s) {
            float4 v[4];
            #pragma unroll
            for (int e = 0; e < 4; ++e) v[e] = cluster_load4(from[e], (uint32_t)s);
            #pragma unroll
            for (int e = 0; e < 4; ++e) sum[e].x += v[e].x, sum[e].y += v[e].y, sum[e].z += v[e].z, sum[e].w += v[e].w;
        }
        #pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int p = i + e * MULTIPLIERS, n = at.n + (left + p % wide) * 4;
            if (p >= count || n >= g->columns) continue;
            const int64_t to   = out_place(g, at, p / wide, n);
            const bool    half = g->out_dtype == SGK_F16;
            if (a->by_tma) {
                *(uint2 *)((uint16_t *)g->out + to) = make_uint2(pack(half, sum[e].x, sum[e].y), pack(half, sum[e].z, sum[e].w));
            } else {
                const float v[4] = { sum[e].x, sum[e].y, sum[e].z, sum[e].w };
                #pragma unroll
                for (int k = 0; k < 4; ++k)
                    if (n + k < g->columns) put(g, to + k, v[k]);
            }
        }
    }
}
#endif

/* ---- the roles --------------------------------------------------------------------------------------------------------- */

/* One thread: operands by TMA. */
DEVICE void copy_operands(const grouped_wgmma_args *a, const int *lengths, uint32_t base, uint32_t full, uint32_t empty, int begin, int tiles, int stride, int from, int to, int rank)
{
    ring       r            = { 0, 0 };
    const bool first_shared = (SWAP ? a->pair_m : a->pair_n) > 1, second_shared = (SWAP ? a->pair_n : a->pair_m) > 1;
    for (int id = begin; id < tiles; id += stride) {
        const corner at = find_tile(a, lengths, id, rank);
        if (at.group < 0) continue;
        const int first = SWAP ? at.n : at.m, second = SWAP ? at.m : at.n, first_z = SWAP ? at.group : at.matrix, second_z = SWAP ? at.matrix : at.group;
        for (int k = from; k < to; ++k) {
            const uint32_t arrived = full + r.stage * 8;
            mbarrier_wait(empty + r.stage * 8, r.lap ^ 1);
            mbarrier_expect(arrived, STAGE_BYTES);
            #pragma unroll
            for (int s = 0; s < SLABS; ++s) {
                const uint32_t slab = base + r.stage * STAGE_BYTES + s * SLAB_BYTES;
                const int      x    = (k * SLABS + s) * STEP;
                if (first_shared) tma_load3_multicast(slab + rank * (FIRST_BYTES / 2), &a->first, x, first + rank * (ROWS / 2), first_z, arrived, 3);
                else tma_load3(slab, &a->first, x, first, first_z, arrived);
                if (second_shared) tma_load3_multicast(slab + FIRST_BYTES + rank * (BN * 64), &a->second, x, second + rank * (BN / 2), second_z, arrived, 3);
                else tma_load3(slab + FIRST_BYTES, &a->second, x, second, second_z, arrived);
            }
            advance(&r);
        }
    }
#if CHUNK
    if (a->by_tma) tma_prefetch_map(&a->result);
#endif
}

#if SHARED
/* One warp: scales, wherever they lie. Rows and columns that there are not have somebody else's: nobody looks at what comes of them. */
DEVICE void copy_scales(const grouped_wgmma_args *a, const int *lengths, uint32_t base, uint32_t full, uint32_t empty, int begin, int tiles, int stride, int from, int to, int rank)
{
    const grouped_args *g    = &a->g;
    const int           lane = threadIdx.x % 32, blocks = (int)((g->depth + GROUPED_BLOCK - 1) / GROUPED_BLOCK);
    const int64_t       last = (g->columns - 1) / GROUPED_BLOCK;
    ring                r    = { 0, 0 };
    for (int id = begin; id < tiles; id += stride) {
        const corner at = find_tile(a, lengths, id, rank);
        if (at.group < 0) continue;
        const int64_t column = SWAP ? (at.n + lane * 64) / GROUPED_BLOCK : at.n / GROUPED_BLOCK + lane;
        const float  *sb     = (const float *)g->sb + at.group * g->sb_group + (column < last ? column : last) * g->sb_block + (int64_t)from * SLABS * g->sb_step;
        const float  *sa[(TILE_M + 31) / 32];
        #pragma unroll
        for (int i = 0; i < TILE_M; i += 32) {
            const int64_t row = lane + i < at.left ? at.m + lane + i : 0;
            sa[i / 32]        = (const float *)g->sa + at.matrix * g->sa_group + row * g->sa_row + (int64_t)from * SLABS * g->sa_step;
        }
        for (int k = from; k < to; ++k) {
            mbarrier_wait(empty + r.stage * 8, r.lap ^ 1);
            #pragma unroll
            for (int s = 0; s < SLABS; ++s) {
                const bool     there = k * SLABS + s < blocks;
                const uint32_t rows  = base + SCALES + (r.stage * SLABS + s) * SLAB_SCALES * 4 + lane * 4;
                #pragma unroll
                for (int i = 0; i < TILE_M; i += 32) {
                    if (TILE_M >= 32 || lane < TILE_M) cp_async4(rows + i * 4, sa[i / 32], there);
                    sa[i / 32] += g->sa_step;
                }
                if (lane < (SWAP ? GROUPS : 2)) cp_async4(rows + TILE_M * 4, sb, there);
                sb += g->sb_step;
            }
            cp_async_arrive(full + r.stage * 8);
            advance(&r);
        }
    }
}
#endif

#if SCALED && SWAP
/* sum += the sum of slab `slab` of the ring, times its scales: of the warpgroup's columns of b, and of rows of a. */
DEVICE void promote(const uint8_t *memory, float (&sum)[BN / 2], const float (&part)[BN / 2], int slab, int group, int t)
{
    const float *rows = (const float *)(memory + SCALES) + slab * SLAB_SCALES, own = rows[TILE_M + group];
    #pragma unroll
    for (int j = 0; j < BN / 8; ++j) {
        const float2 x   = *(const float2 *)(rows + 8 * j + t % 4 * 2);
        const float  low = x.x * own, high = x.y * own;
        sum[4 * j]     = fmaf(low, part[4 * j], sum[4 * j]);
        sum[4 * j + 1] = fmaf(high, part[4 * j + 1], sum[4 * j + 1]);
        sum[4 * j + 2] = fmaf(low, part[4 * j + 2], sum[4 * j + 2]);
        sum[4 * j + 3] = fmaf(high, part[4 * j + 3], sum[4 * j + 3]);
    }
}
#elif SCALED
#if HELD
/* Where they lie; `cut` columns are of the first block. */
struct scale_places {
    const float *upper, *lower, *left, *right;
    int64_t      a_step, b_step;
    int          cut;
};

/* Rows and columns that there are not have somebody else's: nobody looks at what comes of them. */
DEVICE scale_places places_of(const grouped_args *g, corner at, int row)
{
    const int64_t last = (g->columns - 1) / GROUPED_BLOCK, block = at.n / GROUPED_BLOCK < last ? at.n / GROUPED_BLOCK : last;
    const int     upper = row < at.left ? at.m + row : 0, lower = row + 8 < at.left ? at.m + row + 8 : 0;
    const float  *sa = (const float *)g->sa + at.matrix * g->sa_group, *sb = (const float *)g->sb + at.group * g->sb_group + block * g->sb_block;
    return { sa + upper * g->sa_row, sa + lower * g->sa_row, sb, block < last ? sb + g->sb_block : sb, g->sa_step, g->sb_step, GROUPED_BLOCK - at.n % GROUPED_BLOCK };
}
DEVICE slab_scales scales_of(const scale_places *p, int block, int blocks)
{
    if (block >= blocks) return { 0, 0, 0, 0 };
    return { p->upper[block * p->a_step], p->lower[block * p->a_step], p->left[block * p->b_step], p->right[block * p->b_step] };
}
#else
/* From slab `slab` of the ring. */
DEVICE slab_scales scales_of(const uint8_t *memory, int slab, int row)
{
    const float *rows = (const float *)(memory + SCALES) + slab * SLAB_SCALES, *columns = rows + TILE_M;
    return { rows[row], rows[row + 8], columns[0], columns[BN == GROUPED_BLOCK ? 0 : 1] };
}
#endif
#endif

#if SWAP
#define PROMOTE(part, s) promote(memory, sum, part, r.stage *SLABS + (s), group, t)
#else
#define PROMOTE(part, s) promote(sum, part, &own[s], cut)
#endif
#if SHARED && !SWAP
#define READ_SCALES(s) own[s] = scales_of(memory, r.stage * SLABS + (s), row)
#else
#define READ_SCALES(s)
#endif

extern "C" __global__ __launch_bounds__(MULTIPLIERS + 128, 1) void grouped_wgmma(const __grid_constant__ grouped_wgmma_args a)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t                            base = uniform(shared_address(memory)), full = base + BARRIERS, empty = full + STAGES * 8;
    int *const                                lengths = (int *)(memory + LENGTHS);
    const int                                 group = __shfl_sync(~0u, threadIdx.x / 128, 0), t = threadIdx.x % 128, lane = t % 32, rank = (int)cluster_rank();
    const int                                 pair = a.pair_m * a.pair_n, cluster = pair * a.split, slice = a.split > 1 ? rank : 0;
    const int                                 from = (int)((int64_t)a.steps * slice / a.split), to = (int)((int64_t)a.steps * (slice + 1) / a.split);

    if (threadIdx.x == MULTIPLIERS) {
        tma_prefetch_map(&a.first);
        tma_prefetch_map(&a.second);
        #pragma unroll
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(full + s * 8, SHARED ? 33 : 1);
            mbarrier_init(empty + s * 8, (uint32_t)(4 * GROUPS * pair));
        }
        mbarrier_init_done();
    }
    pdl_wait();
    if (a.g.form >= GROUPED_MASKED) count_tiles(&a, lengths);
    else __syncthreads();
    if (cluster > 1) cluster_sync();

    const int down  = a.g.form >= GROUPED_MASKED ? lengths[3 * (int)a.g.groups] : (a.m_tiles + a.pair_m - 1) / a.pair_m;
    const int tiles = down * ((a.n_tiles + a.pair_n - 1) / a.pair_n), begin = (int)blockIdx.x / cluster, stride = (int)gridDim.x / cluster;

    if (group == GROUPS) {
#if BN / 2 * (1 + SCALED + PIPE) > 128
        registers_give(40);
#endif
        if (t == 0) copy_operands(&a, lengths, base, full, empty, begin, tiles, stride, from, to, rank);
#if SHARED
        if (t / 32 == 1) copy_scales(&a, lengths, base, full, empty, begin, tiles, stride, from, to, rank);
#endif
        if (t == 0 && cluster == 1) pdl_release();
        __syncwarp();
        if (a.split > 1) cluster_sync();
    } else {
#if BN / 2 * (1 + SCALED + PIPE) > 128
        registers_take(232);
#endif
        ring r = { 0, 0 };
#if CHUNK
        int turn = 0;
#endif
        float sum[BN / 2];
#if SCALED
        float parts[1 + PIPE][BN / 2] = { 0 };                              /* sums of slabs */
#endif
        for (int id = begin; id < tiles; id += stride) {
            const corner at = find_tile(&a, lengths, id, rank);
            if (at.group < 0) continue;
            #pragma unroll
            for (int i = 0; i < BN / 2; ++i) sum[i] = 0;
#if !SCALED
            int last = 0;
#endif
#if HELD
            const scale_places places = places_of(&a.g, at, group * 64 + t / 32 * 16 + lane / 4);
            const int          cut = places.cut, blocks = (int)((a.g.depth + GROUPED_BLOCK - 1) / GROUPED_BLOCK);
            slab_scales        own[SLABS], next[SLABS];                     /* of this stage and, on their way, of the next one */
            #pragma unroll
            for (int s = 0; s < SLABS; ++s) next[s] = scales_of(&places, s, blocks);
#elif SCALED && !SWAP
            const int   row = group * 64 + t / 32 * 16 + lane / 4, cut = GROUPED_BLOCK - at.n % GROUPED_BLOCK;
            slab_scales own[SLABS];
#endif
            for (int k = from; k < to; ++k) {
#if HELD
                #pragma unroll
                for (int s = 0; s < SLABS; ++s) {
                    own[s]  = next[s];
                    next[s] = scales_of(&places, (k + 1) * SLABS + s, blocks);
                }
#endif
                mbarrier_wait(full + r.stage * 8, r.lap);
#if PIPE
                #pragma unroll
                for (int s = 0; s < SLABS; ++s) {
                    const uint32_t slab = base + r.stage * STAGE_BYTES + s * SLAB_BYTES;
                    const uint64_t x = wgmma_operand(slab + group * 8192), y = wgmma_operand(slab + FIRST_BYTES);
                    wgmma_pin(parts[s % 2]);
                    wgmma_fence();
                    #pragma unroll
                    for (int i = 0; i < 4; ++i) wgmma(parts[s % 2], x + i * WGMMA_STEP, y + i * WGMMA_STEP, i > 0, (const T *)0, (const T *)0);
                    wgmma_commit();
                    if (!SWAP && GROUPS > 1) __syncwarp();                  /* no scale is read, and waited for, between products */
                    READ_SCALES(s);
                    if (s > 0) {                                            /* the slab before this one */
                        wgmma_wait(1);
                        wgmma_pin(parts[(s + 1) % 2]);
                        PROMOTE(parts[(s + 1) % 2], s - 1);
                    }
                }
                wgmma_wait(0);
                wgmma_pin(parts[1]);
                if (!SWAP) release(empty + r.stage * 8, pair, lane);
                PROMOTE(parts[1], SLABS - 1);
                if (SWAP) release(empty + r.stage * 8, pair, lane);         /* its scales have been read */
#elif SCALED
                #pragma unroll
                for (int s = 0; s < SLABS; ++s) {
                    const uint32_t slab = base + r.stage * STAGE_BYTES + s * SLAB_BYTES;
                    const uint64_t x = wgmma_operand(slab + group * 8192), y = wgmma_operand(slab + FIRST_BYTES);
                    wgmma_pin(parts[0]);
                    wgmma_fence();
                    #pragma unroll
                    for (int i = 0; i < 4; ++i) wgmma(parts[0], x + i * WGMMA_STEP, y + i * WGMMA_STEP, i > 0, (const T *)0, (const T *)0);
                    wgmma_commit();
                    if (!SWAP && GROUPS > 1) __syncwarp();                  /* no scale is read, and waited for, between products */
                    READ_SCALES(s);
                    wgmma_wait(0);
                    wgmma_pin(parts[0]);
                    if (s == SLABS - 1) release(empty + r.stage * 8, pair, lane);
                    PROMOTE(parts[0], s);
                }
#else
                wgmma_pin(sum);
                wgmma_fence();
                #pragma unroll
                for (int s = 0; s < SLABS; ++s) {
                    const uint32_t slab = base + r.stage * STAGE_BYTES + s * SLAB_BYTES;
                    const uint64_t x = wgmma_operand(slab + group * 8192), y = wgmma_operand(slab + FIRST_BYTES);
                    #pragma unroll
                    for (int i = 0; i < 4; ++i) wgmma(sum, x + i * WGMMA_STEP, y + i * WGMMA_STEP, true, (const T *)0);
                }
                wgmma_commit();
                if (k > from) {                                             /* the stage before this one has been read */
                    wgmma_wait(1);
                    release(empty + last * 8, pair, lane);
                }
                last = r.stage;
#endif
                advance(&r);
            }
#if !SCALED
            wgmma_wait(0);
            if (to > from) release(empty + last * 8, pair, lane);
            wgmma_pin(sum);
#endif

#if SWAP
            if (a.split > 1) {
                float *share = (float *)memory;
                named_sync(1 + GROUPS, MULTIPLIERS);                        /* nobody reads slabs any more */
                put_share(share, sum, group * 64, t);
                cluster_sync();
                add_shares(&a, at, slice, base, (int)threadIdx.x);
                continue;
            }
#endif
            const int first = group * 64;
#if CHUNK
            const int high  = SWAP ? BN : 64;
            bool      whole = a.g.form == GROUPED_ONE || at.left >= (SWAP ? BN : first + 64);
            if (a.g.form == GROUPED_INDICES) {
                const int row = (SWAP ? 0 : first) + t;
                whole         = named_all(1 + group, 128, t >= high || row >= at.left || a.g.layout[at.m + row] == at.group);
            }
            if (a.by_tma) put_in_pieces(&a, sum, at, first, t, group, base + OUT + group * BUFFERS * CHUNK_BYTES, &turn, whole);
            else put_directly(&a.g, sum, at, first, t, false);
#else
            put_directly(&a.g, sum, at, first, t, a.by_tma);
#endif
        }
        if (t == 0) tma_store_wait_read(0);
    }
    if (cluster > 1) {
        cluster_sync();                         /* a block's shared memory is the cluster's until all are done */
        pdl_release();
    }
}
