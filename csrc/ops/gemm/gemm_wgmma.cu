/*
 * out = input weight^T on the matrix units of sm_90a: persistent blocks, one warpgroup that starts the copies (TMA) and GROUPS that
 * multiply (wgmma), a ring of slabs of 64 in K between them, f32 sums in registers.
 *
 *   T        f16 or bf16
 *   SWAP     0: the first operand of the instruction is input, the second weight; 1: the other way round, for few rows of input
 *   GROUPS   warpgroups that multiply, BLOCKS  instructions of 64 rows in each: the tile has 64 GROUPS BLOCKS rows of the first operand
 *   BN       and BN rows of the second
 *   BEHIND   slabs that the second group stays behind the first: they do not end a tile, and store it, at the same time
 *   RESIDENT blocks on a multiprocessor: with 2, a block's copies are on their way while another one stores
 *   STAGES   parts of the ring, of SLABS slabs each; fewer are used where sums of shares need room
 *   BUFFERS  pieces of 64 x 16, 32 or 64 results that a warpgroup can have on their way out
 *
 * With split > 1 (gemm.h) a cluster of that many blocks has one tile and each block a share of K and, of the tile, every split-th part of
 * 16 rows or more: a warp sends its sums to the block whose they are, which adds the shares in their order. Rows of input and weight must be 16-byte aligned, K and N multiples of 8.
 * M K + N K elements read, each once a tile that needs it (from L2), 2 M N K operations: bound by the matrix units, or by memory when M is
 * small.
 *
 * Shared memory: slabs [stages][SLABS] of first [64 GROUPS BLOCKS][64], second [BN][64], then results on their way out, or the sums of
 * all shares.
 */
#include "barrier.cuh"
#include "cp_async.cuh"
#include "gemm.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

#define ROWS        (64 * GROUPS * BLOCKS)
#define FIRST_BYTES (ROWS * 128)
#define SLAB_BYTES  ((ROWS + BN) * 128)
#define STAGE_BYTES (SLABS * SLAB_BYTES)
#define CHUNK       (BN % 64 == 0 ? 64 : BN % 32 == 0 ? 32 \
                                                      : 16) /* of the second operand's rows: with 64 of the first, what leaves at once */
#define CHUNK_BYTES (64 * CHUNK * 2)
#define MULTIPLIERS (128 * GROUPS)                     /* threads */
#define UNITS       (ROWS / 16)                        /* of the tile's rows: what one warp has */

#if BN % (SWAP ? 16 : 32)
#error "the macros do not fit each other"
#endif

struct corner {
    int64_t m, n;
    int     product;
};

/* Down the first tiles in bands: what runs at one time shares both operands in L2. */
DEVICE corner tile(const linear_wgmma_args *a, int id)
{
    int product = 0;
    if (a->l.batch > 1) product = id / (a->first_tiles * a->second_tiles), id %= a->first_tiles * a->second_tiles;
    const int     in_band = a->band * a->second_tiles, top = id / in_band * a->band, rest = id % in_band;
    const int     high  = a->first_tiles - top < a->band ? a->first_tiles - top : a->band;
    const int64_t first = (int64_t)(top + rest % high) * ROWS, second = (int64_t)(rest / high) * BN;
    return SWAP ? corner{ second, first, product } : corner{ first, second, product };
}

/* The next part of the ring. */
DEVICE void advance(int stages, int *stage, uint32_t *lap)
{
    if (++*stage == stages) *stage = 0, *lap ^= 1;
}

/* ---- results of one warpgroup, the sums in its registers --------------------------------------------------------------- */

/* Element by element: f32, or an out that TMA cannot write. */
DEVICE void put_directly(const linear_args *batch, float (&d)[BN / 2], int64_t m, int64_t n, int product, int t)
{
    const linear_args l = linear_batch(batch, product), *a = &l;
    const int         r = t / 32 * 16 + t % 32 / 4, c = t % 4 * 2;
#if SWAP
    const float low = linear_bias(a, n + r), high = linear_bias(a, n + r + 8);
    #pragma unroll
    for (int i = 0; i < BN / 2; ++i)
        linear_store(a, m + i / 4 * 8 + c + i % 2, n + r + i % 4 / 2 * 8, d[i] + (i % 4 / 2 ? high : low));
#else
    const bool pairs = linear_pairs(a);
    #pragma unroll
    for (int j = 0; j < BN / 8; ++j) {
        const int64_t k  = n + j * 8 + c;
        const float   b0 = linear_bias(a, k), b1 = linear_bias(a, k + 1);
        linear_store2(a, m + r, k, d[4 * j] + b0, d[4 * j + 1] + b1, pairs);
        linear_store2(a, m + r + 8, k, d[4 * j + 2] + b0, d[4 * j + 3] + b1, pairs);
    }
#endif
}

/* Through shared memory, in chunks: `place` has room for BUFFERS, `turn` says which one is next. */
DEVICE void put_by_tma(const linear_wgmma_args *a, float (&d)[BN / 2], int64_t m, int64_t n, int product, int t, int group, uint32_t place, int *turn)
{
    const linear_args one = linear_batch(&a->l, product), *l = &one;
    const int         lane = t % 32, warp = t / 32;
#if SWAP
    const float low = linear_bias(l, n + warp * 16 + lane / 4), high = linear_bias(l, n + warp * 16 + lane / 4 + 8);
#endif
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
            stmatrix_x4_trans(to + row * 128 + (piece ^ (row & 7)) * 16,
                              pack2(x[0] + low, x[1] + low, (const T *)0), pack2(x[2] + high, x[3] + high, (const T *)0),
                              pack2(x[4] + low, x[5] + low, (const T *)0), pack2(x[6] + high, x[7] + high, (const T *)0));
#else                                                           /* [64 rows of out][CHUNK] */
            const int     row = 16 * warp + lane % 16, piece = 2 * j + lane / 16;
            const int64_t k    = n + c * CHUNK + 16 * j + lane % 4 * 2;
            float         b[4] = { 0, 0, 0, 0 };
            if (l->bias) b[0] = linear_bias(l, k), b[1] = linear_bias(l, k + 1), b[2] = linear_bias(l, k + 8), b[3] = linear_bias(l, k + 9);
            stmatrix_x4(to + (CHUNK == 64 ? row * 128 + (piece ^ (row & 7)) * 16 : row * 64 + (piece ^ (row >> 1 & 3)) * 16),
                        pack2(x[0] + b[0], x[1] + b[1], (const T *)0), pack2(x[2] + b[0], x[3] + b[1], (const T *)0),
                        pack2(x[4] + b[2], x[5] + b[3], (const T *)0), pack2(x[6] + b[2], x[7] + b[3], (const T *)0));
#endif
        }
        async_fence();
        named_sync(1 + group, 128);
        if (t == 0) {
            const int x = (int)n + (SWAP ? 0 : c * CHUNK), y = (int)m + (SWAP ? c * CHUNK : 0);
            if (l->batch > 1) tma_store3(&a->result, x, y, product, to);
            else tma_store2(&a->result, x, y, to);
            tma_store_commit();
        }
    }
}

/* The first unit of the tile that belongs to block `rank` of a cluster. */
DEVICE int unit_of(int split, int rank) { return (UNITS * rank + split - 1) / split; }

/*
 * A warp's sums, 16 rows of the first operand, to the block whose they are. An inbox is [split][most units of a block][BN / 8][32] times four
 * sums, as the lanes of the instruction have them.
 */
DEVICE void send_share(const linear_wgmma_args *a, float (&d)[BN / 2], int unit, int slice, uint32_t inbox, uint32_t received, int lane)
{
    const int      owner = unit * a->split / UNITS, most = (UNITS + a->split - 1) / a->split;
    const uint32_t to = inbox + (uint32_t)((slice * most + unit - unit_of(a->split, owner)) * (BN / 8) * 32 + lane) * 16;
    #pragma unroll
    for (int j = 0; j < BN / 8; ++j) cluster_store4(to + j * 512, (uint32_t)owner, d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]);
    __syncwarp();
    if (lane == 0) mbarrier_publish_at(received, (uint32_t)owner);
}

/* The sums of all shares of this block's units, in order, and out. */
DEVICE void add_shares(const linear_wgmma_args *a, corner at, int slice, const float4 *inbox, int warp, int lane)
{
    const linear_args l     = linear_batch(&a->l, at.product);
    const int         first = unit_of(a->split, slice), units = unit_of(a->split, slice + 1) - first, most = (UNITS + a->split - 1) / a->split;
    const bool        pairs = linear_pairs(&l);
    #pragma unroll 1                            /* little code: every instruction of a short kernel comes from memory */
    for (int i = warp; i < units * (BN / 8); i += MULTIPLIERS / 32) {
        float4 sum = inbox[i * 32 + lane];
        #pragma unroll 1
        for (int s = 1; s < a->split; ++s) {
            const float4 v = inbox[(s * most * (BN / 8) + i) * 32 + lane];
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        const int row = (first + i / (BN / 8)) * 16 + lane / 4, column = i % (BN / 8) * 8 + lane % 4 * 2;
#if SWAP
        const int64_t m = at.m + column, n = at.n + row;
        const float   low = linear_bias(&l, n), high = linear_bias(&l, n + 8);
        linear_store(&l, m, n, sum.x + low), linear_store(&l, m + 1, n, sum.y + low);
        linear_store(&l, m, n + 8, sum.z + high), linear_store(&l, m + 1, n + 8, sum.w + high);
#else
        const int64_t m = at.m + row, n = at.n + column;
        const float   b0 = linear_bias(&l, n), b1 = linear_bias(&l, n + 1);
        linear_store2(&l, m, n, sum.x + b0, sum.y + b1, pairs);
        linear_store2(&l, m + 8, n, sum.z + b0, sum.w + b1, pairs);
#endif
    }
}

/* ---- the kernel -------------------------------------------------------------------------------------------------------- */

/* A box of either operand. The maps of a product that is alone have two dimensions. */
DEVICE void load(const linear_wgmma_args *a, const sgk_tma_map *map, int x, int64_t y, int product, uint32_t to, uint32_t arrived)
{
    if (a->l.batch > 1) tma_load3(to, map, x, (int)y, product, arrived);
    else tma_load2(to, map, x, (int)y, arrived);
}

/* The weights of the first slabs to L2, while the kernel before this one may still run. */
DEVICE void prefetch_weights(const linear_wgmma_args *a, corner at, int from, int to)
{
    const sgk_tma_map *weight = SWAP ? &a->first : &a->second;
    for (int k = from * SLABS; k < to * SLABS && k < (from + a->stages) * SLABS; ++k) {
        if (a->l.batch > 1) tma_prefetch3(weight, k * 64, (int)at.n, at.product);
        else tma_prefetch2(weight, k * 64, (int)at.n);
    }
}

extern "C" __global__ __launch_bounds__(MULTIPLIERS + 128, RESIDENT) void linear_wgmma(const __grid_constant__ linear_wgmma_args a)
{
    extern __shared__ uint8_t memory[];
    __shared__ uint64_t       full[STAGES], empty[STAGES], received;        /* the sums of all shares */
    const uint32_t            unaligned = shared_address(memory), base = (unaligned + 1023) & ~1023u, results = base + (uint32_t)a.stages * STAGE_BYTES;
    const int                 group = __shfl_sync(~0u, threadIdx.x / 128, 0), t = threadIdx.x % 128;
    const int                 slice = (int)cluster_rank(), lane = t % 32;
    const int                 from = (int)((int64_t)a.steps * slice / a.split), to = (int)((int64_t)a.steps * (slice + 1) / a.split);
    const int                 begin = (int)blockIdx.x / a.split, stride = (int)gridDim.x / a.split;
    int                       stage = 0;
    uint32_t                  lap   = 0;

    if (threadIdx.x == MULTIPLIERS) {
        tma_prefetch_map(&a.first);
        tma_prefetch_map(&a.second);
        #pragma unroll
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(shared_address(&full[s]), 1);
            mbarrier_init(shared_address(&empty[s]), 4 * GROUPS);
        }
        const int units = unit_of(a.split, slice + 1) - unit_of(a.split, slice);
        mbarrier_init(shared_address(&received), units ? (uint32_t)(a.split * units) : 1);
        mbarrier_init_done();
    }
    if (a.split > 1) cluster_announce();        /* its barriers are there */
    if (group < GROUPS) {
        named_sync(1 + GROUPS, MULTIPLIERS + 32);
    } else if (t < 32) {                        /* the first copies need not wait for anybody */
        __threadfence_block();
        __syncwarp();
        named_announce(1 + GROUPS, MULTIPLIERS + 32);
    }

    if (group == GROUPS) {
#if BLOCKS * BN > 128
        registers_give(40);
#endif
        if (t == 0) {
            if (a.l.early && begin < a.tiles) prefetch_weights(&a, tile(&a, begin), from, to);
            pdl_wait();
            pdl_release();
            for (int id = begin; id < a.tiles; id += stride) {
                const corner at = tile(&a, id);
                for (int k = from; k < to; ++k, advance(a.stages, &stage, &lap)) {
                    const uint32_t arrived = shared_address(&full[stage]);
                    mbarrier_wait(shared_address(&empty[stage]), lap ^ 1);
                    mbarrier_expect(arrived, STAGE_BYTES);
                    #pragma unroll
                    for (int s = 0; s < SLABS; ++s) {
                        const uint32_t slab = base + stage * STAGE_BYTES + s * SLAB_BYTES;
                        const int      x    = (k * SLABS + s) * 64;
                        load(&a, &a.first, x, SWAP ? at.n : at.m, at.product, slab, arrived);
                        load(&a, &a.second, x, SWAP ? at.m : at.n, at.product, slab + FIRST_BYTES, arrived);
                    }
                }
            }
            if (a.split == 1 && a.by_tma) tma_prefetch_map(&a.result);
        }
    } else {
#if BLOCKS * BN > 128
        registers_take(232);
#endif
        pdl_wait();
        float d[BLOCKS][BN / 2];
        int   turn = 0;
        if (BEHIND && group > 0) named_sync(2 + GROUPS, MULTIPLIERS);
        for (int id = begin; id < a.tiles; id += stride) {
            const corner at   = tile(&a, id);
            int          last = 0;
            for (int k = from; k < to; ++k) {
                mbarrier_wait(shared_address(&full[stage]), lap);
                wgmma_fence();
                #pragma unroll
                for (int s = 0; s < SLABS; ++s) {
                    const uint32_t slab = base + stage * STAGE_BYTES + s * SLAB_BYTES;
                    const uint64_t x = wgmma_operand(slab + group * BLOCKS * 8192), y = wgmma_operand(slab + FIRST_BYTES);
                    #pragma unroll
                    for (int i = 0; i < 4; ++i)
                        #pragma unroll
                        for (int b = 0; b < BLOCKS; ++b)
                            wgmma(d[b], x + i * WGMMA_STEP + b * (8192 / 16), y + i * WGMMA_STEP, k > from || s > 0 || i > 0, (const T *)0);
                }
                wgmma_commit();
                if (BEHIND && group == 0 && id == begin && k - from == (to - from < BEHIND ? to - from : BEHIND) - 1) named_announce(2 + GROUPS, MULTIPLIERS);
                if (k > from) {                                             /* the stage before this one has been read */
                    wgmma_wait(1);
                    if (lane == 0) mbarrier_arrive(shared_address(&empty[last]));
                }
                last = stage;
                advance(a.stages, &stage, &lap);
            }
            wgmma_wait(0);
            if (lane == 0) mbarrier_arrive(shared_address(&empty[last]));
            #pragma unroll
            for (int b = 0; b < BLOCKS; ++b) wgmma_pin(d[b]);

            if (a.split > 1) {
                cluster_await();
                #pragma unroll
                for (int b = 0; b < BLOCKS; ++b) send_share(&a, d[b], (group * BLOCKS + b) * 4 + t / 32, slice, results, shared_address(&received), lane);
                if (unit_of(a.split, slice) < unit_of(a.split, slice + 1)) {
                    mbarrier_wait_published(shared_address(&received), 0);
                    add_shares(&a, at, slice, (const float4 *)(memory + (results - unaligned)), (int)threadIdx.x / 32, lane);
                }
                continue;
            }
            #pragma unroll
            for (int b = 0; b < BLOCKS; ++b) {
                const int64_t row = (group * BLOCKS + b) * 64, m = at.m + (SWAP ? 0 : row), n = at.n + (SWAP ? row : 0);
                if (a.by_tma) put_by_tma(&a, d[b], m, n, at.product, t, group, results + group * BUFFERS * CHUNK_BYTES, &turn);
                else put_directly(&a.l, d[b], m, n, at.product, t);
            }
        }
        if (t == 0) tma_store_wait_read(0);
    }
}
