/*
 * out = input weight^T of 8-bit numbers, with scales, for few rows, on the matrix units of sm_90a, made to read weight as fast as memory brings it: a warpgroup
 * needs longer for a slab (128 in K) than memory does, so K is shared by WAYS of them, which take slabs in turn. A block has one tile; with split > 1 also
 * the blocks of a cluster share K.
 *
 *   INTEGERS 1: s8, summed in 32 bits over all of K; 0: e4m3, whose sums of every slab are added to f32 sums in registers (wgmma8.cuh)
 *   HIGH     parts of 64 rows of input, WIDE  parts of BN columns (rows of weight): the tile is 64 HIGH x BN WIDE, and a part of either is a warpgroup's
 *   WAYS     times HIGH x WIDE warpgroups multiply
 *   STAGES   slabs in the ring, a multiple of WAYS: a part of it always has the same readers, and they miss no lap
 *
 * One thread starts copies (TMA). Of input only rows that there are (`high`, a multiple of 8) are copied; the rest of a part is what lies there, and nobody looks
 * at what comes of it. Sums are added in the order of the ways, then of the blocks. M K elements read for each tile (from L2), N K once for 64 rows, 2 M N K
 * operations: bound by memory.
 *
 * Shared memory: slabs [STAGES] of input [64 HIGH][128], weight [BN WIDE][128]; scales of rows and columns; barriers; with split > 1 sums that other blocks
 * send. The sums of all ways are laid over the slabs: [WAYS][64 HIGH][PITCH].
 */
#include "barrier.cuh"
#include "cluster_push.cuh"
#include "cp_async.cuh"
#include "gemm_scaled.cuh"
#include "l2_policy.cuh"
#include "launch.cuh"
#include "ring.cuh"
#include "tma.cuh"
#include "wgmma8.cuh"

#if INTEGERS
typedef s8  T;
typedef int sum;
#else
typedef e4m3  T;
typedef float sum;
#endif
#define ROWS        (64 * HIGH)
#define COLUMNS     (BN * WIDE)
#define FIRST_BYTES (ROWS * 128)
#define SLAB_BYTES  ((ROWS + COLUMNS) * 128)
#define PARTS       (HIGH * WIDE)
#define MULTIPLIERS (128 * PARTS * WAYS)                /* threads; behind them a warp that copies */
#define SCALES      (STAGES * SLAB_BYTES)               /* where scales begin, */
#define BARRIERS    (SCALES + (ROWS + COLUMNS) * 4)     /* barriers, */
#define INBOX       (BARRIERS + STAGES * 16 + 16)       /* and sums from other blocks: [split - 1][this block's items][4] */
#define PITCH       (COLUMNS % 16 ? COLUMNS : COLUMNS + 8)      /* of a row of sums: no bank is met twice */

#if STAGES % WAYS || WAYS * ROWS * PITCH * 4 > STAGES * SLAB_BYTES
#error "the macros do not fit each other"
#endif

struct sums { sum v[4]; };              /* of four columns */
DEVICE sums sums_at(float4 f)
{
#if INTEGERS
    return { __float_as_int(f.x), __float_as_int(f.y), __float_as_int(f.z), __float_as_int(f.w) };
#else
    return { f.x, f.y, f.z, f.w };
#endif
}
DEVICE float4 floats_of(sums s)
{
#if INTEGERS
    return make_float4(__int_as_float(s.v[0]), __int_as_float(s.v[1]), __int_as_float(s.v[2]), __int_as_float(s.v[3]));
#else
    return make_float4(s.v[0], s.v[1], s.v[2], s.v[3]);
#endif
}
DEVICE void add(sums *a, sums b)
{
    #pragma unroll
    for (int i = 0; i < 4; ++i) a->v[i] += b.v[i];
}

/* Four columns of a row, the first a multiple of 4; `row` and `columns`: their scales. Little code: every instruction of a short kernel comes from memory. */
DEVICE void put4(const scaled_few_args *a, int64_t m, int64_t n, sums v, float row, const float *columns)
{
    const scaled_args *s = &a->s;
    if (n >= s->columns) return;
    float y[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = (float)v.v[i] * columns[i] * row;
    if (__builtin_expect(s->bias != NULL, 0)) {
        #pragma unroll 1
        for (int i = 0; i < 4; ++i) {
            const float b = scaled_bias(s, n + i);
            #pragma unroll
            for (int j = 0; j < 4; ++j) y[j] += j == i ? b : 0;
        }
    }
    if (__builtin_expect(a->in_fours, 1)) {
        *(uint2 *)((uint16_t *)s->out + m * s->out_stride + n) = make_uint2(scaled_pack(s, y[0], y[1]), scaled_pack(s, y[2], y[3]));
    } else {
        #pragma unroll 1
        for (int i = 0; i < 4; ++i) scaled_store(s, s->out, m, n + i, i == 0 ? y[0] : i == 1 ? y[1]
                                                                                  : i == 2   ? y[2]
                                                                                             : y[3]);
    }
}

/* The first slabs of weight come to L2, and a share of input. One thread, before the kernel before this one has ended. */
DEVICE void fetch_ahead(const scaled_few_args *a, int m, int n, int from, int to)
{
    const int most = from + a->ahead < to ? from + a->ahead : to;
    #pragma unroll 1
    for (int k = from; k < most; ++k) tma_prefetch2(&a->second, k * 128, n);
    if (a->ahead)
        for (int k = from + (int)blockIdx.z; k < to; k += (int)gridDim.z) tma_prefetch2(&a->first, k * 128, m);
}

/* An item: four columns of a row, of the sums of all ways. */
DEVICE sums item(const float *shares, int r, int c)
{
    sums total = sums_at(*(const float4 *)(shares + r * PITCH + c));
    #pragma unroll
    for (int w = 1; w < WAYS; ++w) add(&total, sums_at(*(const float4 *)(shares + (w * ROWS + r) * PITCH + c)));
    return total;
}

extern "C" __global__ __launch_bounds__(MULTIPLIERS + 32, 1) void scaled_few(const __grid_constant__ scaled_few_args a)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t                            base = uniform(shared_address(memory)), full = base + BARRIERS, empty = full + STAGES * 8, received = empty + STAGES * 8;
    const int                                 group = (int)uniform(threadIdx.x / 128), t = threadIdx.x % 128, lane = t % 32;
    const int                                 slice = (int)blockIdx.x, m = (int)blockIdx.y * ROWS, n = (int)blockIdx.z * COLUMNS;
    const int                                 from = slice * a.share, to = from + a.share < a.steps ? from + a.share : a.steps;
    const int                                 rows = (int)a.s.rows - m < ROWS ? (int)a.s.rows - m : ROWS, count = rows * (COLUMNS / 4);

    if (__builtin_expect(threadIdx.x >= MULTIPLIERS, 1)) { /* the first copies need not wait for anybody */
        if (lane == 0) {
            open_ring(&a.first, &a.second, full, empty, 1, 4 * PARTS);
            if (a.split > 1) open_inbox(received, (count - slice + 1) / 2);
        }
        __threadfence_block();
        __syncwarp();
        if (a.split > 1) cluster_begin();
        named_announce(2, MULTIPLIERS + 32);
        pdl_wait();
        if (lane == 0) {
            const uint64_t policy = l2_policy(a.once);
            int            stage  = 0;
            uint32_t       lap    = 1;
            #pragma unroll 1
            for (int k = from; k < to; ++k) {
                const uint32_t arrived = full + stage * 8, slab = base + stage * SLAB_BYTES;
                mbarrier_wait(empty + stage * 8, lap);
                mbarrier_expect(arrived, (uint32_t)(a.high + COLUMNS) * 128);
                tma_load2_hint(slab + FIRST_BYTES, &a.second, k * 128, n, arrived, policy);
                tma_load2(slab, &a.first, k * 128, m, arrived);
                if (++stage == STAGES) stage = 0, lap ^= 1;
            }
            pdl_release();
        }
        return;
    }
    if (a.split > 1) cluster_begin();
    if (threadIdx.x == 0) fetch_ahead(&a, m, n, from, to);
    named_sync(2, MULTIPLIERS + 32);
    pdl_wait();

    for (int i = (int)threadIdx.x; i < ROWS + COLUMNS; i += MULTIPLIERS) {
        const int64_t at = i < ROWS ? m + i : n + i - ROWS, all = i < ROWS ? a.s.rows : a.s.columns;
        const float  *from_ = i < ROWS ? a.s.input_scales : a.s.weight_scales;
        cp_async4(base + SCALES + i * 4, from_ + (at < all ? at : 0) * (i < ROWS ? a.s.input_scale_step : a.s.weight_scale_step), true);
    }

    const int way = group / PARTS, high = group % HIGH, wide = group / HIGH % WIDE, row = high * 64 + t / 32 * 16 + lane / 4;
    sum       part[BN / 2] = { 0 };
#if !INTEGERS
    sum d[BN / 2];
    #pragma unroll
    for (int i = 0; i < BN / 2; ++i) d[i] = 0;
#endif
    int      stage = way;
    uint32_t lap   = 0;
    for (int k = from + way; k < to; k += WAYS) {
        const uint32_t slab = base + stage * SLAB_BYTES;
        const uint64_t x = wgmma_operand(slab + high * 8192), y = wgmma_operand(slab + FIRST_BYTES + wide * (BN * 128));
        mbarrier_wait(full + stage * 8, lap);
        wgmma_pin(part);
        wgmma_fence();
        #pragma unroll
        for (int i = 0; i < 4; ++i) wgmma(part, x + i * WGMMA_STEP, y + i * WGMMA_STEP, INTEGERS || i > 0, (const T *)0, (const T *)0);
        wgmma_commit();
        wgmma_wait(0);
        wgmma_pin(part);
        if (lane == 0) mbarrier_arrive(empty + stage * 8);
#if !INTEGERS
        #pragma unroll
        for (int i = 0; i < BN / 2; ++i) d[i] += part[i];
#endif
        stage += WAYS;
        if (stage >= STAGES) stage = way, lap ^= 1;
    }
#if INTEGERS
#define SUM(i) __int_as_float(part[i])
#else
#define SUM(i) d[i]
#endif

    float *const shares = (float *)memory, *const scales = (float *)(memory + SCALES);
    cp_async_wait_all();
    named_sync(1, MULTIPLIERS);                         /* nobody reads slabs any more, and none is on its way */
    float *const own = shares + (way * ROWS + row) * PITCH + wide * BN + lane % 4 * 2;
    #pragma unroll
    for (int j = 0; j < BN / 8; ++j) {
        *(float2 *)(own + 8 * j)             = make_float2(SUM(4 * j), SUM(4 * j + 1));
        *(float2 *)(own + 8 * j + 8 * PITCH) = make_float2(SUM(4 * j + 2), SUM(4 * j + 3));
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
            const int r = i / (COLUMNS / 4), c = i % (COLUMNS / 4) * 4;
            sums      total = item(shares, r, c);
            if (rest) {
                cluster_push4(base + INBOX + i / 2 * 16, received, (uint32_t)(1 - slice), floats_of(total));
                continue;
            }
            if (step > 1) add(&total, sums_at(*(const float4 *)(memory + INBOX + i / 2 * 16)));
            put4(&a, m + r, n + c, total, scales[r], scales + ROWS + c);
        }
    }
}
