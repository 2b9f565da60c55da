/*
 * grouped_few.cu for tiles of 112 and 192 columns, which are faster this way: one warp copies scales, weights stay in L2, loops are
 * unrolled, and blocks that share K read each other's sums. A tile is 64 x BN WIDE, and a part of BN columns is a warpgroup's.
 *
 * Shared memory: slabs [STAGES] of a [64][128 bytes], b [BN WIDE][128 bytes]; scales [STAGES] of rows, blocks of columns; barriers. The sums
 * of all ways are laid over the slabs: [WAYS][64][PITCH].
 */
#include "barrier.cuh"
#include "cp_async.cuh"
#include "grouped_promote.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "ring.cuh"
#include "tma.cuh"
#include "wgmma8.cuh"

#define ROWS        64
#define COLUMNS     (BN * WIDE)
#define FIRST_BYTES (ROWS * 128)
#define SLAB_BYTES  ((ROWS + COLUMNS) * 128)
#define MULTIPLIERS (128 * WIDE * WAYS)                 /* threads; behind them a warp for each kind of copy */
#define SLAB_SCALES (ROWS + 4)                          /* of rows, then of blocks of columns */
#define SCALES      (STAGES * SLAB_BYTES)               /* where scales begin, */
#define BARRIERS    (SCALES + STAGES * SLAB_SCALES * 4) /* and barriers */
#define PITCH       (COLUMNS % 16 ? COLUMNS : COLUMNS + 8)      /* of a row of sums: no bank is met twice */

#if STAGES % WAYS || WAYS * ROWS * PITCH * 4 > STAGES * SLAB_BYTES
#error "the macros do not fit each other"
#endif

/* ---- who copies -------------------------------------------------------------------------------------------------------- */

/* One thread. */
DEVICE void copy_operands(const grouped_few_args *a, uint32_t base, uint32_t full, uint32_t empty, int m, int n, int from, int to)
{
    int      stage = 0;
    uint32_t lap   = 0;
    for (int k = from; k < to; ++k) {
        const uint32_t arrived = full + stage * 8, slab = base + stage * SLAB_BYTES;
        mbarrier_wait(empty + stage * 8, lap ^ 1);
        mbarrier_expect(arrived, (uint32_t)(a->high + COLUMNS) * 128);
        tma_load2(slab + FIRST_BYTES, &a->second, k * GROUPED_BLOCK, n, arrived);
        tma_load2(slab, &a->first, k * GROUPED_BLOCK, m, arrived);
        if (++stage == STAGES) stage = 0, lap ^= 1;
    }
}

/* One warp. Rows and columns that there are not have somebody else's. */
DEVICE void copy_scales(const grouped_few_args *a, uint32_t base, uint32_t full, uint32_t empty, int m, int n, int from, int to)
{
    const grouped_args *g    = &a->g;
    const int           lane = threadIdx.x % 32;
    const int64_t       last = (g->columns - 1) / GROUPED_BLOCK, column = n / GROUPED_BLOCK + lane;
    const float        *sb = (const float *)g->sb + (column < last ? column : last) * g->sb_block + from * g->sb_step, *sa[ROWS / 32];
    #pragma unroll
    for (int i = 0; i < ROWS / 32; ++i) {
        const int64_t row = m + 32 * i + lane < g->rows ? m + 32 * i + lane : 0;
        sa[i]             = (const float *)g->sa + row * g->sa_row + from * g->sa_step;
    }
    int      stage = 0;
    uint32_t lap   = 0;
    for (int k = from; k < to; ++k) {
        const uint32_t rows = base + SCALES + stage * (SLAB_SCALES * 4) + lane * 4;
        mbarrier_wait(empty + stage * 8, lap ^ 1);
        #pragma unroll
        for (int i = 0; i < ROWS / 32; ++i) {
            cp_async4(rows + i * 128, sa[i], true);
            sa[i] += g->sa_step;
        }
        if (lane < 4) cp_async4(rows + ROWS * 4, sb, true);
        sb += g->sb_step;
        cp_async_arrive(full + stage * 8);
        if (++stage == STAGES) stage = 0, lap ^= 1;
    }
}

/* ---- who multiplies ---------------------------------------------------------------------------------------------------- */

/* Four columns of a row, the first a multiple of 4. */
DEVICE void put4(const grouped_few_args *a, int64_t m, int64_t n, float4 v)
{
    const grouped_args *g  = &a->g;
    const int64_t       to = m * g->out_stride + n;
    if (n >= g->columns) return;
    if (a->in_fours) {
        const bool half                     = g->out_dtype == SGK_F16;
        *(uint2 *)((uint16_t *)g->out + to) = half ? make_uint2(pack_f16x2(v.x, v.y), pack_f16x2(v.z, v.w)) : make_uint2(pack_bf16x2(v.x, v.y), pack_bf16x2(v.z, v.w));
        return;
    }
    const float values[4] = { v.x, v.y, v.z, v.w };
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (n + i >= g->columns) break;
        if (g->out_dtype == SGK_F32) ((float *)g->out)[to + i] = values[i];
        else if (g->out_dtype == SGK_F16) from_f32((f16 *)g->out + to + i, values[i]);
        else from_f32((bf16 *)g->out + to + i, values[i]);
    }
}

DEVICE void add(float4 *sum, float4 v) { sum->x += v.x, sum->y += v.y, sum->z += v.z, sum->w += v.w; }

extern "C" __global__ __launch_bounds__(MULTIPLIERS + 64, 1) void grouped_few_wide(const __grid_constant__ grouped_few_args a)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t                            base = uniform(shared_address(memory)), full = base + BARRIERS, empty = full + STAGES * 8;
    const int                                 group = (int)uniform(threadIdx.x / 128), t = threadIdx.x % 128, lane = t % 32;
    const int                                 slice = (int)blockIdx.x, m = (int)blockIdx.y * ROWS, n = (int)blockIdx.z * COLUMNS;
    const int                                 from = slice * a.share, to = from + a.share < a.steps ? from + a.share : a.steps;

    if (threadIdx.x / 32 == MULTIPLIERS / 32) {         /* the first copies need not wait for anybody */
        if (lane == 0) open_ring(&a.first, &a.second, full, empty, 33, 128 * WIDE);
        __threadfence_block();
        __syncwarp();
        named_announce(2, MULTIPLIERS + 64);
    } else {
        named_sync(2, MULTIPLIERS + 64);
    }
    pdl_wait();

    if (threadIdx.x >= MULTIPLIERS) {
        if (t == 0) copy_operands(&a, base, full, empty, m, n, from, to);
        if (t >= 32) copy_scales(&a, base, full, empty, m, n, from, to);
        if (t == 0 && a.split == 1) pdl_release();
        __syncwarp();
        if (a.split > 1) {
            cluster_sync();
            cluster_sync();
        }
        return;
    }

    const int    way = group / WIDE, wide = group % WIDE;
    const int    row = t / 32 * 16 + lane / 4, left = n + wide * BN, block = left / GROUPED_BLOCK - n / GROUPED_BLOCK, cut = GROUPED_BLOCK - left % GROUPED_BLOCK;
    const float *scales = (const float *)(memory + SCALES);
    float        sum[BN / 2], part[BN / 2] = { 0 };
    #pragma unroll
    for (int i = 0; i < BN / 2; ++i) sum[i] = 0;
    int      stage = way;
    uint32_t lap   = 0;
    for (int k = from + way; k < to; k += WAYS) {
        const uint32_t slab = base + stage * SLAB_BYTES;
        const uint64_t x = wgmma_operand(slab), y = wgmma_operand(slab + FIRST_BYTES + wide * (BN * 128));
        mbarrier_wait(full + stage * 8, lap);
        wgmma_pin(part);
        wgmma_fence();
        #pragma unroll
        for (int i = 0; i < 4; ++i) wgmma(part, x + i * WGMMA_STEP, y + i * WGMMA_STEP, i > 0, (const e4m3 *)0, (const e4m3 *)0);
        wgmma_commit();
        const float      *rows = scales + stage * SLAB_SCALES, *columns = rows + ROWS + block;
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
    float *const own = shares + (way * ROWS + row) * PITCH + wide * BN + lane % 4 * 2;
    #pragma unroll
    for (int j = 0; j < BN / 8; ++j) {
        *(float2 *)(own + 8 * j)             = make_float2(sum[4 * j], sum[4 * j + 1]);
        *(float2 *)(own + 8 * j + 8 * PITCH) = make_float2(sum[4 * j + 2], sum[4 * j + 3]);
    }
    named_sync(1, MULTIPLIERS);

    const int rows = (int)a.g.rows - m < ROWS ? (int)a.g.rows - m : ROWS, count = rows * (COLUMNS / 4);
    #pragma unroll 1
    for (int i = (int)threadIdx.x; i < count; i += MULTIPLIERS) {
        const int r = i / (COLUMNS / 4), c = i % (COLUMNS / 4) * 4;
        float4   *place = (float4 *)(shares + r * PITCH + c), total = *place;
        #pragma unroll
        for (int w = 1; w < WAYS; ++w) add(&total, *(const float4 *)(shares + (w * ROWS + r) * PITCH + c));
        if (a.split > 1) *place = total;
        else put4(&a, m + r, n + c, total);
    }
    if (a.split == 1) return;
    cluster_sync();
    #pragma unroll 1
    for (int i = slice + (int)threadIdx.x * a.split; i < count; i += MULTIPLIERS * a.split) {
        const int      r = i / (COLUMNS / 4), c = i % (COLUMNS / 4) * 4;
        const uint32_t place = base + (uint32_t)(r * PITCH + c) * 4;
        float4         total = cluster_load4(place, 0);
        for (int s = 1; s < a.split; ++s) add(&total, cluster_load4(place, (uint32_t)s));
        put4(&a, m + r, n + c, total);
    }
    cluster_sync();                                     /* a block's shared memory is the cluster's until all are done */
    pdl_release();
}
