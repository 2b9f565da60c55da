/*
 * Products of groups of rows with a matrix each, block-scaled e4m3, for many rows, on the matrix units of sm_90a: persistent blocks with tiles of 128 x
 * BN WIDE, one warpgroup that starts the copies and two that multiply (wgmma), a ring of slabs of 128 in K between them.
 *
 *   WIDE     blocks of BN columns that each warpgroup has, with 64 rows
 *   STAGES   slabs in the ring
 *   PAIR     2: clusters of two blocks with tiles one above the other, each of which reads half of b and sends it to both; 1: lone blocks
 *
 * A warpgroup has one set of registers for the sums of a slab, and its blocks take turns with it: products of one warpgroup are under way while another one
 * adds its sums, times their scales, to f32 sums in registers. The second one begins when the first has its first sums; then each goes by itself. A tile's
 * results leave during the first products of the next tile.
 *
 * One thread starts copies of operands (TMA), one warp copies of scales, of any layout (cp.async). Each block of columns of b in the ring has barriers
 * of its own: the first one's says that a and the scales are there too, the last one's that they may go. Which tile is whose: grouped_tiles.cuh.
 *
 * Rows of a and b must be 16-byte aligned. M K + N K elements read, each once a tile that needs it (from L2), 2 M N K operations: bound by the matrix units.
 *
 * Shared memory: slabs [STAGES] of a [128][128 bytes], b [WIDE][128][128 bytes]; results on their way out [2][2][64][128 bytes]; scales [STAGES] of
 * rows, blocks of columns; barriers [STAGES][WIDE], full and then empty ones; then [groups] of first tile, first row, rows.
 */
#include "cp_async.cuh"
#include "launch.cuh"
#include "ring.cuh"
#include "tma.cuh"
#include "wgmma8.cuh"

#define GROUPS       2                                  /* warpgroups that multiply, each 64 rows of a */
#define TILE_M       (64 * GROUPS)
#define TILE_N       (BN * WIDE)
#define MULTIPLIERS  (128 * GROUPS)                     /* threads */
#define A_BYTES      (TILE_M * 128)
#define B_BYTES      (BN * 128)
#define STAGE_BYTES  (A_BYTES + WIDE * B_BYTES)
#define RESULTS      (STAGES * STAGE_BYTES)             /* where results begin, */
#define RESULT_BYTES (64 * 128 * 2)
#define SCALES       (RESULTS + GROUPS * RESULT_BYTES)  /* scales, */
#define SLAB_SCALES  (TILE_M + 4)
#define BARRIERS     (SCALES + STAGES * SLAB_SCALES * 4) /* barriers, */
#define LENGTHS      (BARRIERS + STAGES * WIDE * 16)    /* and the groups' lengths */
#define TURN         (1 + GROUPS)                       /* named barriers of the start, one for each warpgroup; those before them are a warpgroup's own */

#include "grouped_promote.cuh"
#include "grouped_tiles.cuh"

/* One thread: operands by TMA. */
DEVICE void copy_operands(const grouped_wgmma_args *a, const int *lengths, uint32_t base, uint32_t full, uint32_t empty, int begin, int tiles, int stride, int rank)
{
    ring r = { 0, 0 };
    for (int id = begin; id < tiles; id += stride) {
        const corner at = find_tile(a, lengths, id, rank);
        if (at.group < 0) continue;
        for (int k = 0; k < a->steps; ++k) {
            const uint32_t slab = base + r.stage * STAGE_BYTES, arrived = full + r.stage * (WIDE * 8);
            #pragma unroll
            for (int b = 0; b < WIDE; ++b) {
                const uint32_t to = slab + A_BYTES + b * B_BYTES;
                mbarrier_wait(empty + (r.stage * WIDE + b) * 8, r.lap ^ 1);
                mbarrier_expect(arrived + b * 8, B_BYTES + (b == 0 ? A_BYTES : 0));
                if (b == WIDE - 1) tma_load3(slab, &a->first, k * 128, at.m, at.matrix, arrived);
#if PAIR == 2
                tma_load3_multicast(to + rank * (B_BYTES / 2), &a->second, k * 128, at.n + b * BN + rank * (BN / 2), at.group, arrived + b * 8, 3);
#else
                tma_load3(to, &a->second, k * 128, at.n + b * BN, at.group, arrived + b * 8);
#endif
            }
            advance(&r);
        }
    }
    tma_prefetch_map(&a->result);
}

/* One warp: scales, wherever they lie. Rows and columns that there are not have somebody else's: nobody looks at what comes of them. */
DEVICE void copy_scales(const grouped_wgmma_args *a, const int *lengths, uint32_t base, uint32_t full, uint32_t empty, int begin, int tiles, int stride, int rank)
{
    const grouped_args *g    = &a->g;
    const int           lane = threadIdx.x % 32;
    const int64_t       last = (g->columns - 1) / GROUPED_BLOCK;
    ring                r    = { 0, 0 };
    for (int id = begin; id < tiles; id += stride) {
        const corner at = find_tile(a, lengths, id, rank);
        if (at.group < 0) continue;
        const int64_t column = at.n / GROUPED_BLOCK + lane;
        const float  *sb     = (const float *)g->sb + at.group * g->sb_group + (column < last ? column : last) * g->sb_block;
        const float  *sa[TILE_M / 32];
        #pragma unroll
        for (int i = 0; i < TILE_M / 32; ++i) {
            const int64_t row = lane + 32 * i < at.left ? at.m + lane + 32 * i : 0;
            sa[i]             = (const float *)g->sa + at.matrix * g->sa_group + row * g->sa_row;
        }
        for (int k = 0; k < a->steps; ++k) {
            const uint32_t rows = base + SCALES + r.stage * (SLAB_SCALES * 4) + lane * 4;
            mbarrier_wait(empty + (r.stage * WIDE + WIDE - 1) * 8, r.lap ^ 1);
            #pragma unroll
            for (int i = 0; i < TILE_M / 32; ++i) {
                cp_async4(rows + i * 128, sa[i], true);
                sa[i] += g->sa_step;
            }
            if (lane < 4) cp_async4(rows + TILE_M * 4, sb, true);
            sb += g->sb_step;
            cp_async_arrive(full + r.stage * (WIDE * 8));
            advance(&r);
        }
    }
}

/* ---- who multiplies ---------------------------------------------------------------------------------------------------- */

/* Results of the warpgroup's rows of a block of columns that begins at at.n: by way of shared memory as boxes where all rows are the group's, else row by row. */
DEVICE void store(const grouped_wgmma_args *a, const float (&d)[BN / 2], corner at, int group, int t, uint32_t place)
{
    const grouped_args *g     = &a->g;
    const int           first = group * 64, lane = t % 32, row = t / 32 * 16 + lane % 16;
    const bool          half  = g->out_dtype == SGK_F16;
    bool                whole = g->form == GROUPED_ONE || at.left >= first + 64;
    if (g->form == GROUPED_INDICES) whole = named_all(1 + group, 128, t >= 64 || first + t >= at.left || g->layout[at.m + first + t] == at.group);
    if (t == 0) tma_store_wait_read(0);
    named_sync(1 + group, 128);
    #pragma unroll
    for (int j = 0; j < 8; ++j) {
        const int    from = j < 4 ? j : BN / 16 - 8 + j;                       /* sixteen columns */
        const float *x    = d + 8 * from;
        stmatrix_x4(place + j / 4 * 8192 + row * 128 + ((2 * (j % 4) + lane / 16) ^ (row & 7)) * 16,
                    pack(half, x[0], x[1]), pack(half, x[2], x[3]), pack(half, x[4], x[5]), pack(half, x[6], x[7]));
    }
    if (whole) async_fence();
    named_sync(1 + group, 128);
    if (whole) {
        if (t == 0) {
            tma_store3(&a->result, at.n, at.m + first, at.matrix, place);
            tma_store3(&a->result, at.n + BN - 64, at.m + first, at.matrix, place + 8192);
            tma_store_commit();
        }
    } else {
        #pragma unroll 1
        for (int i = t; i < 64 * 16; i += 128) {
            const int      r = i / 16, piece = i % 16, column = at.n + (piece < 8 ? 0 : BN - 128) + piece * 8;
            const uint32_t from = place + piece / 8 * 8192 + r * 128 + ((piece % 8) ^ (r & 7)) * 16;
            if (column < g->columns && wanted(g, at, first + r))
                *(uint4 *)((uint16_t *)g->out + out_place(g, at, first + r, column)) = shared_load16(from);
        }
    }
}

/* What a warpgroup knows of the block's shared memory, and where it is in the ring. */
struct places {
    const uint8_t *memory;
    uint32_t       full, empty, first, second, offset;  /* operands as low words of descriptors, of the ring's first stage; from there to this stage */
    int            group, t;
    ring           r;
    bool           ready;                               /* what comes next has been seen to be there */
};

DEVICE bool mbarrier_ended(uint32_t barrier, uint32_t parity)
{
    uint32_t ended;
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(ended) : "r"(barrier), "r"(parity) : "memory");
    return ended;
}

/*
 * The next slab: d = or += its products, times scales. `begins`, a constant: of a tile; then results of the tile before it leave meanwhile, if there is one
 * (`pending`).
 */
DEVICE void multiply(const grouped_wgmma_args *a, float (&d)[WIDE][BN / 2], float (&part)[BN / 2], places *p, int at_n, bool begins, bool pending, corner before)
{
    const float *scales = (const float *)(p->memory + SCALES) + p->r.stage * SLAB_SCALES, *rows = scales + p->group * 64 + p->t / 32 * 16 + p->t % 32 / 4;
    float        upper = 0, lower = 0;
    #pragma unroll
    for (int b = 0; b < WIDE; ++b) {
        const uint32_t barrier = (p->r.stage * WIDE + b) * 8;
        const uint64_t x = wgmma_operand_of(p->first + p->offset), y = wgmma_operand_of(p->second + p->offset + b * (B_BYTES / 16));
        if (!p->ready) mbarrier_wait(p->full + barrier, p->r.lap);
        wgmma_pin(part);
        wgmma_fence();
        #pragma unroll
        for (int i = 0; i < 4; ++i) wgmma(part, x + i * WGMMA_STEP, y + i * WGMMA_STEP, i > 0, (const e4m3 *)0, (const e4m3 *)0);
        wgmma_commit();
        const int block = at_n % GROUPED_BLOCK + b * BN, cut = GROUPED_BLOCK - block % GROUPED_BLOCK;       /* columns of the left one of two blocks of scales */
        if (b == WIDE - 1) {
            p->offset += STAGE_BYTES / 16;
            advance(&p->r);
            if (p->r.stage == 0) p->offset = 0;
        }
        p->ready = mbarrier_ended(p->full + (p->r.stage * WIDE + (b + 1) % WIDE) * 8, p->r.lap);
        if (b == 0) upper = rows[0], lower = rows[8];                       /* before the test of the barrier they would be read, and waited for, between products */
        const float left = scales[TILE_M + block / GROUPED_BLOCK], right = BN == GROUPED_BLOCK ? left : scales[TILE_M + block / GROUPED_BLOCK + 1];
        if (begins && pending) {
            corner at = before;
            at.n += b * BN;
            store(a, d[b], at, p->group, p->t, shared_address(p->memory) + RESULTS + p->group * RESULT_BYTES);
        }
        const slab_scales own = { upper, lower, left, right };
        wgmma_wait(0);
        wgmma_pin(part);
        release(p->empty + barrier, PAIR, p->t % 32);
        if (begins && b == 0 && !pending && p->group + 1 < GROUPS) named_announce(TURN + p->group + 1, 256);
        if (begins) {
            #pragma unroll
            for (int i = 0; i < BN / 2; ++i) d[b][i] = 0;
        }
        promote(d[b], part, &own, cut);
    }
}

extern "C" __global__ __launch_bounds__(MULTIPLIERS + 128, 1) void grouped_wide(const __grid_constant__ grouped_wgmma_args a)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t                            base = uniform(shared_address(memory)), full = base + BARRIERS, empty = full + STAGES * WIDE * 8;
    int *const                                lengths = (int *)(memory + LENGTHS);
    const int                                 group = (int)uniform(threadIdx.x / 128), t = threadIdx.x % 128, rank = PAIR > 1 ? (int)cluster_rank() : 0;

    if (threadIdx.x == MULTIPLIERS) {
        tma_prefetch_map(&a.first);
        tma_prefetch_map(&a.second);
        #pragma unroll
        for (int s = 0; s < STAGES * WIDE; ++s) {
            mbarrier_init(full + s * 8, s % WIDE == 0 ? 33 : 1);
            mbarrier_init(empty + s * 8, 4 * GROUPS * PAIR);
        }
        mbarrier_init_done();
    }
    pdl_wait();
    if (a.g.form >= GROUPED_MASKED) count_tiles(&a, lengths);
    else __syncthreads();
    if (PAIR > 1) cluster_sync();

    const int down  = a.g.form >= GROUPED_MASKED ? lengths[3 * (int)a.g.groups] : (a.m_tiles + PAIR - 1) / PAIR;
    const int tiles = down * a.n_tiles, begin = (int)blockIdx.x / PAIR, stride = (int)gridDim.x / PAIR;

    if (group == GROUPS) {
        registers_give(40);
        if (t == 0) copy_operands(&a, lengths, base, full, empty, begin, tiles, stride, rank);
        if (t / 32 == 1) copy_scales(&a, lengths, base, full, empty, begin, tiles, stride, rank);
        if (t == 0 && PAIR == 1) pdl_release();
        __syncwarp();
    } else {
        registers_take(232);
        float  d[WIDE][BN / 2], part[BN / 2];
        places p       = { memory, full, empty, (uint32_t)wgmma_operand(base + group * 8192), (uint32_t)wgmma_operand(base + A_BYTES), 0, group, t, { 0, 0 }, false };
        corner at      = { 0, 0, 0, 0, 0 };
        bool   pending = false;
        if (group > 0 && begin < tiles) named_sync(TURN + group, 256);
        for (int id = begin; id < tiles; id += stride) {
            const corner next = find_tile(&a, lengths, id, rank);
            if (next.group < 0) continue;
            multiply(&a, d, part, &p, BN == GROUPED_BLOCK ? 0 : next.n, true, pending, at);
            at = next, pending = true;
            #pragma unroll 1
            for (int k = 1; k < a.steps; ++k) multiply(&a, d, part, &p, BN == GROUPED_BLOCK ? 0 : at.n, false, false, at);
        }
        if (pending) {
            #pragma unroll
            for (int b = 0; b < WIDE; ++b) {
                store(&a, d[b], at, group, t, base + RESULTS + group * RESULT_BYTES);
                at.n += BN;
            }
        }
        if (!pending && begin < tiles && group + 1 < GROUPS) named_announce(TURN + group + 1, 256);
        if (t == 0) tma_store_wait_read(0);
    }
    if (PAIR > 1) {
        cluster_sync();                         /* a block's shared memory is the cluster's until all are done */
        pdl_release();
    }
}
