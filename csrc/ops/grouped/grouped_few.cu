/*
 * out = a b^T of block-scaled e4m3 (grouped_wgmma.cu) for few rows of a and one matrix b, made to read b as fast as memory brings it: a warpgroup
 * needs longer for a slab (128 in K: four instructions, wait, add up) than memory does, so K is shared by WAYS of them, which take slabs in turn.
 * A block has one tile; with split > 1 also the blocks of a cluster share K.
 *
 *   HIGH     parts of 64 rows of a, each a warpgroup's; the tile is 64 HIGH x BN (columns: rows of b)
 *   WAYS     times HIGH warpgroups multiply
 *   STAGES   slabs in the ring, a multiple of WAYS: a part of it always has the same readers, and they miss no lap
 *   SCALERS  warps that copy scales; STAGES is a multiple, so that they miss no lap either
 *
 * One thread starts copies of operands (TMA), SCALERS warps copy scales, of any layout (cp.async), of slabs in turn: both arrive at the stage's barrier. Of a
 * only rows that there are (`high`, a multiple of 8) are copied; the rest of a part is what lies there, and nobody looks at what comes of it.
 * Sums are added in the order of the ways, then of the blocks. M K elements read for each tile (from L2), N K once, 2 M N K operations: bound by memory.
 *
 * Shared memory: slabs [STAGES] of a [64 HIGH][128 bytes], b [BN][128 bytes]; scales [STAGES] of rows, blocks of columns; barriers; with
 * split > 1 sums that the other block sends. The sums of all ways are laid over the slabs: [WAYS][64 HIGH][PITCH].
 */
#include "barrier.cuh"
#include "cluster_push.cuh"
#include "cp_async.cuh"
#include "grouped_promote.cuh"
#include "l2_policy.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "ring.cuh"
#include "tma.cuh"
#include "wgmma8.cuh"

#define ROWS        (64 * HIGH)
#define FIRST_BYTES (ROWS * 128)
#define SLAB_BYTES  ((ROWS + BN) * 128)
#define MULTIPLIERS (128 * HIGH * WAYS)                 /* threads; behind them warps that copy */
#define SLAB_SCALES (ROWS + 4)                          /* of rows, then of blocks of columns */
#define SCALES      (STAGES * SLAB_BYTES)               /* where scales begin, */
#define BARRIERS    (SCALES + STAGES * SLAB_SCALES * 4) /* barriers, */
#define INBOX       (BARRIERS + STAGES * 16 + 16)       /* and sums of the other block: [this block's items][4] */
#define PITCH       (BN % 16 ? BN : BN + 8)             /* of a row of sums: no bank is met twice */

#if STAGES % WAYS || STAGES % SCALERS || WAYS * ROWS * PITCH * 4 > STAGES * SLAB_BYTES
#error "the macros do not fit each other"
#endif

/* ---- who copies -------------------------------------------------------------------------------------------------------- */

/* One thread. */
DEVICE void copy_operands(const grouped_few_args *a, uint32_t base, uint32_t full, uint32_t empty, int m, int n, int from, int to)
{
    const uint64_t policy = l2_policy(a->once);
    int            stage  = 0;
    uint32_t       lap    = 1;
    #pragma unroll 1
    for (int k = from; k < to; ++k) {
        const uint32_t arrived = full + stage * 8, slab = base + stage * SLAB_BYTES;
        mbarrier_wait(empty + stage * 8, lap);
        mbarrier_expect(arrived, (uint32_t)(a->high + BN) * 128);
        tma_load2_hint(slab + FIRST_BYTES, &a->second, k * GROUPED_BLOCK, n, arrived, policy);
        tma_load2(slab, &a->first, k * GROUPED_BLOCK, m, arrived);
        if (++stage == STAGES) stage = 0, lap ^= 1;
    }
}

/* A warp of SCALERS. Rows and columns that there are not have somebody else's. */
DEVICE void copy_scales(const grouped_few_args *a, uint32_t base, uint32_t full, uint32_t empty, int m, int n, int from, int to, int warp)
{
    const grouped_args *g    = &a->g;
    const int           lane = threadIdx.x % 32;
    const int64_t       last = (g->columns - 1) / GROUPED_BLOCK, column = n / GROUPED_BLOCK + lane;
    const float        *sb = (const float *)g->sb + (column < last ? column : last) * g->sb_block + (from + warp) * g->sb_step, *sa[ROWS / 32];
    #pragma unroll
    for (int i = 0; i < ROWS / 32; ++i) {
        const int64_t row = m + 32 * i + lane < g->rows ? m + 32 * i + lane : 0;
        sa[i]             = (const float *)g->sa + row * g->sa_row + (from + warp) * g->sa_step;
    }
    int      stage = warp;
    uint32_t lap   = 0;
    for (int k = from + warp; k < to; k += SCALERS) {
        const uint32_t rows = base + SCALES + stage * (SLAB_SCALES * 4) + lane * 4;
        mbarrier_wait(empty + stage * 8, lap ^ 1);
        #pragma unroll
        for (int i = 0; i < ROWS / 32; ++i) {
            cp_async4(rows + i * 128, sa[i], true);
            sa[i] += SCALERS * g->sa_step;
        }
        if (lane < 4) cp_async4(rows + ROWS * 4, sb, true);
        sb += SCALERS * g->sb_step;
        cp_async_arrive(full + stage * 8);
        stage += SCALERS;
        if (stage >= STAGES) stage -= STAGES, lap ^= 1;
    }
}

/* ---- who multiplies ---------------------------------------------------------------------------------------------------- */

/* Four columns of a row, the first a multiple of 4. */
DEVICE void put4(const grouped_few_args *a, int64_t m, int64_t n, float4 v)
{
    const grouped_args *g  = &a->g;
    const int64_t       to = m * g->out_stride + n;
    if (n >= g->columns) return;
    if (__builtin_expect(a->in_fours, 1)) {
        const bool half                     = g->out_dtype == SGK_F16;
        *(uint2 *)((uint16_t *)g->out + to) = half ? make_uint2(pack_f16x2(v.x, v.y), pack_f16x2(v.z, v.w)) : make_uint2(pack_bf16x2(v.x, v.y), pack_bf16x2(v.z, v.w));
        return;
    }
    #pragma unroll 1
    for (int i = 0; i < 4; ++i) {
        const float x = i == 0 ? v.x : i == 1 ? v.y
                                   : i == 2   ? v.z
                                              : v.w;
        if (n + i >= g->columns) break;
        if (g->out_dtype == SGK_F32) ((float *)g->out)[to + i] = x;
        else if (g->out_dtype == SGK_F16) from_f32((f16 *)g->out + to + i, x);
        else from_f32((bf16 *)g->out + to + i, x);
    }
}

DEVICE void add(float4 *sum, float4 v) { sum->x += v.x, sum->y += v.y, sum->z += v.z, sum->w += v.w; }

/* An item: four columns of a row, of the sums of all ways. */
DEVICE float4 item(const float *shares, int r, int c)
{
    float4 total = *(const float4 *)(shares + r * PITCH + c);
    #pragma unroll
    for (int w = 1; w < WAYS; ++w) add(&total, *(const float4 *)(shares + (w * ROWS + r) * PITCH + c));
    return total;
}

extern "C" __global__ __launch_bounds__(MULTIPLIERS + 32 + 32 * SCALERS, 1) void grouped_few(const __grid_constant__ grouped_few_args a)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t                            base = uniform(shared_address(memory)), full = base + BARRIERS, empty = full + STAGES * 8, received = empty + STAGES * 8;
    const int                                 group = (int)uniform(threadIdx.x / 128), t = threadIdx.x % 128, lane = t % 32;
    const int                                 slice = (int)blockIdx.x, m = (int)blockIdx.y * ROWS, n = (int)blockIdx.z * BN;
    const int                                 from = slice * a.share, to = from + a.share < a.steps ? from + a.share : a.steps;
    const int                                 rows = (int)a.g.rows - m < ROWS ? (int)a.g.rows - m : ROWS, count = rows * (BN / 4);

    if (threadIdx.x / 32 == MULTIPLIERS / 32) {         /* the first copies need not wait for anybody */
        if (lane == 0) {
            open_ring(&a.first, &a.second, full, empty, 33, 128 * HIGH);
            if (a.split > 1) open_inbox(received, (count - slice + 1) / 2);
        }
        __threadfence_block();
        __syncwarp();
        if (a.split > 1) cluster_begin();
        named_announce(2, MULTIPLIERS + 32 + 32 * SCALERS);
    } else {
        if (a.split > 1) cluster_begin();
        named_sync(2, MULTIPLIERS + 32 + 32 * SCALERS);
    }
    pdl_wait();

    if (threadIdx.x >= MULTIPLIERS) {
        if (t == 0) copy_operands(&a, base, full, empty, m, n, from, to);
        if (t >= 32) copy_scales(&a, base, full, empty, m, n, from, to, t / 32 - 1);
        if (t == 0) pdl_release();
        return;
    }

    const int    way = group / HIGH, high = group % HIGH;
    const int    row = high * 64 + t / 32 * 16 + lane / 4, cut = GROUPED_BLOCK - n % GROUPED_BLOCK;
    const float *scales = (const float *)(memory + SCALES);
    float        sum[BN / 2], part[BN / 2] = { 0 };
    #pragma unroll
    for (int i = 0; i < BN / 2; ++i) sum[i] = 0;
    int      stage = way;
    uint32_t lap   = 0;
    for (int k = from + way; k < to; k += WAYS) {
        const uint32_t slab = base + stage * SLAB_BYTES;
        const uint64_t x = wgmma_operand(slab + high * 8192), y = wgmma_operand(slab + FIRST_BYTES);
        mbarrier_wait(full + stage * 8, lap);
        wgmma_pin(part);
        wgmma_fence();
        #pragma unroll
        for (int i = 0; i < 4; ++i) wgmma(part, x + i * WGMMA_STEP, y + i * WGMMA_STEP, i > 0, (const e4m3 *)0, (const e4m3 *)0);
        wgmma_commit();
        const float      *rows = scales + stage * SLAB_SCALES, *columns = rows + ROWS;
        const slab_scales own = { rows[row], rows[row + 8], columns[0], columns[SEGMENT == BN ? 0 : 1] };
        wgmma_wait(0);
        wgmma_pin(part);
        mbarrier_arrive(empty + stage * 8);             /* every lane: each has read its scales */
        promote(sum, part, &own, cut);
        stage += WAYS;
        if (stage >= STAGES) stage = way, lap ^= 1;
    }

    float *const shares = (float *)memory;
    named_sync(1, MULTIPLIERS);                         /* nobody reads slabs any more, and none is on its way */
    float *const own = shares + (way * ROWS + row) * PITCH + lane % 4 * 2;
    #pragma unroll
    for (int j = 0; j < BN / 8; ++j) {
        *(float2 *)(own + 8 * j)             = make_float2(sum[4 * j], sum[4 * j + 1]);
        *(float2 *)(own + 8 * j + 8 * PITCH) = make_float2(sum[4 * j + 2], sum[4 * j + 3]);
    }
    named_sync(1, MULTIPLIERS);

    #pragma unroll 1
    for (int rest = a.split - 1; rest >= 0; --rest) {   /* with two blocks every second item is the other one's, and is sent */
        const int step = a.split, first = (step - 1) * (rest ? 1 - slice : slice);
        if (step > 1) {
            if (rest) cluster_await();
            else mbarrier_wait_published(received, 0);
        }
        #pragma unroll 1
        for (int i = first + step * (int)threadIdx.x; i < count; i += step * MULTIPLIERS) {
            const int r = i / (BN / 4), c = i % (BN / 4) * 4;
            float4    total = item(shares, r, c);
            if (rest) {
                cluster_push4(base + INBOX + i / 2 * 16, received, (uint32_t)(1 - slice), total);
                continue;
            }
            if (step > 1) add(&total, *(const float4 *)(memory + INBOX + i / 2 * 16));
            put4(&a, m + r, n + c, total);
        }
    }
}
