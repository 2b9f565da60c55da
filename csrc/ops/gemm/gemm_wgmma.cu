/*
 * out = input weight^T on the matrix units of sm_90a: persistent blocks, one warpgroup that starts the copies (TMA) and GROUPS that
 * multiply (wgmma), a ring of slabs of 64 in K between them, f32 sums in registers.
 *
 *   T        f16 or bf16
 *   SWAP     0: the first operand of the instruction is input, the second weight; 1: the other way round, for few rows of input
 *   GROUPS   warpgroups that multiply: the tile has 64 GROUPS rows of the first operand
 *   BN       and BN rows of the second
 *   BEHIND   slabs that the second group stays behind the first: they do not end a tile, and store it, at the same time
 *   RESIDENT blocks on a multiprocessor: with 2, a block's copies are on their way while another one stores
 *   STAGES   parts of the ring, of SLABS slabs each; fewer are used where sums of shares need room
 *   BUFFERS  pieces of 64 x 16, 32 or 64 results that a warpgroup can have on their way out
 *   LEAN     for few rows of input: its tiles of rows lie along y of the grid, so that a block does no division before its first copy, and weights
 *            are the first to leave L2
 *   CHAIN    parts of the ring whose products are one chain of sums; the sums of chains are added in their order, in f32 that rounds. 0: a share of K is one
 *            chain, as long as it is. The matrix units cut what they add: for results in f32, chains are short
 *
 * With split > 1 (gemm.h) a cluster of that many blocks has one tile and each block a share of K and, of the tile, some pieces of 8 columns:
 * threads send their sums to the thread with the same number of the block whose they are, which adds the shares in their order. Rows of input and weight must be 16-byte aligned, K and N multiples of 8.
 * M K + N K elements read, each once a tile that needs it (from L2), 2 M N K operations: bound by the matrix units, or by memory when M is
 * small.
 *
 * Shared memory: slabs [stages][SLABS] of first [64 GROUPS][64], second [BN][64], then results on their way out, or the sums of
 * all shares.
 */
#include "cluster_push.cuh"
#include "cp_async.cuh"
#include "gemm.cuh"
#include "l2_policy.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

#define ROWS        (64 * GROUPS)
#define FIRST_BYTES (ROWS * 128)
#define SLAB_BYTES  ((ROWS + BN) * 128)
#define STAGE_BYTES (SLABS * SLAB_BYTES)
#define CHUNK       (BN % 64 == 0 ? 64 : BN % 32 == 0 ? 32 \
                                                      : 16) /* of the second operand's rows: with 64 of the first, what leaves at once */
#define CHUNK_BYTES (64 * CHUNK * 2)
#define MULTIPLIERS (128 * GROUPS)                     /* threads */
#define PIECES      (BN / 8)                           /* of the tile's columns: a thread has two sums of each of its two rows in one */
#define DIRECT      (LEAN && BN <= 32)                 /* results leave from registers */

#if BN % (SWAP ? 16 : 32)
#error "the macros do not fit each other"
#endif

struct corner {
    int64_t m, n;
    int     product;
};

DEVICE int cluster_number(void)
{
    int number;
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(number));
    return number;
}

/* Down the first tiles in bands: what runs at one time shares both operands in L2. LEAN: `first_tiles` are those of the weight. */
DEVICE corner tile(const linear_wgmma_args *a, int id)
{
    int product = 0;
#if LEAN
    if (a->l.batch > 1) product = id / a->first_tiles, id %= a->first_tiles;
    const int64_t n = tma_inside((int64_t)id * (SWAP ? ROWS : BN), SWAP ? ROWS : BN, a->l.columns), m = tma_inside((int64_t)blockIdx.y * (SWAP ? BN : ROWS), SWAP ? BN : ROWS, a->l.rows);
    return corner{ m, n, product };
#else
    if (a->l.batch > 1) product = id / (a->first_tiles * a->second_tiles), id %= a->first_tiles * a->second_tiles;
    const int     in_band = a->band * a->second_tiles, top = id / in_band * a->band, rest = id % in_band;
    const int     high   = a->first_tiles - top < a->band ? a->first_tiles - top : a->band;
    const int64_t first  = tma_inside((int64_t)(top + rest % high) * ROWS, ROWS, SWAP ? a->l.columns : a->l.rows);
    const int64_t second = tma_inside((int64_t)(rest / high) * BN, BN, SWAP ? a->l.rows : a->l.columns);
    return SWAP ? corner{ second, first, product } : corner{ first, second, product };
#endif
}

/*
 * The part of the ring in K that a share begins with. Shares of K are whole pairs of slabs, so that they are the same for all builds of one slab or two a
 * part; the last one may be a slab short.
 */
DEVICE int first_part(const linear_wgmma_args *a, int slice)
{
    const int part = slice * a->share + (slice < a->rest ? slice : a->rest);
#if SLABS == 1
    return 2 * part < a->parts ? 2 * part : a->parts;
#else
    return part;
#endif
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

#if SWAP
/* A matrix of 8 x 8 elements in pairs along its rows, row lane / 4, becomes its transpose. */
DEVICE uint32_t transpose8(uint32_t x)
{
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
#endif

/* Where a thread's sums of a tile go: of rows `row` + lane / 4 and 8 more of the first operand. */
struct edge {
    linear_args l;
    corner      at;
    int         row;
    float       low, high;                      /* bias */
    bool        pairs;
};

DEVICE edge edge_of(const linear_wgmma_args *a, corner at)
{
    const int row = (int)threadIdx.x / 32 * 16;
    edge      e   = { linear_batch(&a->l, at.product), at, row, 0, 0, false };
    e.pairs       = linear_pairs(&e.l);
#if SWAP
    const int64_t n = at.n + row + threadIdx.x % 32 / 4;
    e.low = linear_bias(&e.l, n), e.high = linear_bias(&e.l, n + 8);
#endif
    return e;
}

/* 8 columns of the second operand. */
DEVICE void put_piece(const edge &e, int column, float4 sum)
{
    const linear_args *l    = &e.l;
    const int          lane = (int)threadIdx.x % 32;
#if SWAP
    sum.x += e.low, sum.y += e.low, sum.z += e.high, sum.w += e.high;
    if (e.pairs && l->out_dtype != SGK_F32) {           /* rows of out: [8][8] becomes its transpose */
        const int64_t  m = e.at.m + column + lane / 4, n = e.at.n + e.row + lane % 4 * 2;
        const uint32_t x = transpose8(pack2(sum.x, sum.y, (const T *)0)), y = transpose8(pack2(sum.z, sum.w, (const T *)0));
        T             *to = (T *)l->out + m * l->out_stride + n;
        if (m < l->rows && n < l->columns) *(uint32_t *)to = x;
        if (m < l->rows && n + 8 < l->columns) *(uint32_t *)(to + 8) = y;
    } else {
        const int64_t m = e.at.m + column + lane % 4 * 2, n = e.at.n + e.row + lane / 4;
        linear_store(l, m, n, sum.x), linear_store(l, m + 1, n, sum.y);
        linear_store(l, m, n + 8, sum.z), linear_store(l, m + 1, n + 8, sum.w);
    }
#else
    const int64_t m = e.at.m + e.row + lane / 4, n = e.at.n + column + lane % 4 * 2;
    const float   b0 = linear_bias(l, n), b1 = linear_bias(l, n + 1);
    linear_store2(l, m, n, sum.x + b0, sum.y + b1, e.pairs);
    linear_store2(l, m + 8, n, sum.z + b0, sum.w + b1, e.pairs);
#endif
}

/* How many pieces of the tile's columns a block of a cluster adds up. */
DEVICE int pieces_of(const linear_wgmma_args *a, int rank)
{
    const int left = PIECES - rank * a->pieces;
    return left < 0 ? 0 : left < a->pieces ? left
                                           : a->pieces;
}

/*
 * A thread's sums to the blocks whose they are. An inbox is [split][most pieces of a block][MULTIPLIERS] times four sums; those of other blocks
 * arrive at the barrier by themselves.
 */
DEVICE void send_pieces(const linear_wgmma_args *a, float (&d)[BN / 2], int slice, uint32_t inbox, uint32_t received)
{
    const uint32_t first = inbox + (uint32_t)(slice * a->pieces * MULTIPLIERS + (int)threadIdx.x) * 16;
    uint32_t       to    = first;
    int            owner = 0, i = 0;
    #pragma unroll
    for (int j = 0; j < PIECES; ++j, ++i, to += MULTIPLIERS * 16) {
        if (i == a->pieces) ++owner, i = 0, to = first;
        if (owner == slice) asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(d[4 * j]), "f"(d[4 * j + 1]), "f"(d[4 * j + 2]), "f"(d[4 * j + 3]) : "memory");      /* this thread reads it */
        else cluster_push4(to, received, (uint32_t)owner, make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]));
    }
}

/* The sums of all shares of this block's pieces, in order, and out. */
DEVICE void add_pieces(const linear_wgmma_args *a, corner at, int slice, const float4 *inbox)
{
    const int     pieces = pieces_of(a, slice);
    const edge    e      = edge_of(a, at);
    const float4 *from   = inbox + threadIdx.x;
    #pragma unroll 2                            /* little code: every instruction of a short kernel comes from memory */
    for (int i = 0; i < pieces; ++i, from += MULTIPLIERS) {
        float4 sum = from[0];
        #pragma unroll 1
        for (int s = 1; s < a->split; ++s) {
            const float4 v = from[s * a->pieces * MULTIPLIERS];
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        put_piece(e, (slice * a->pieces + i) * 8, sum);
    }
}

/* A box of either operand. The maps of a product that is alone have two dimensions. */
DEVICE void load(const linear_wgmma_args *a, const sgk_tma_map *map, int x, int64_t y, int product, uint32_t to, uint32_t arrived)
{
    if (a->l.batch > 1) tma_load3(to, map, x, (int)y, product, arrived);
    else tma_load2(to, map, x, (int)y, arrived);
}

#if LEAN
/* Of the weight alone, which leaves L2 before what other blocks read again. */
DEVICE void load_weight(const linear_wgmma_args *a, int x, corner at, uint32_t to, uint32_t arrived, uint64_t policy)
{
    const sgk_tma_map *weight = SWAP ? &a->first : &a->second;
    if (a->l.batch > 1) tma_load3(to, weight, x, (int)at.n, at.product, arrived);
    else tma_load2_hint(to, weight, x, (int)at.n, arrived, policy);
}
#endif

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
    const int                 from = first_part(&a, slice), to = first_part(&a, slice + 1);
    const int                 begin = a.split > 1 ? cluster_number() : (int)blockIdx.x, stride = a.split > 1 ? a.tiles : (int)gridDim.x;
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
        mbarrier_init(shared_address(&received), 1);
        mbarrier_expect(shared_address(&received), (uint32_t)((a.split - 1) * pieces_of(&a, slice) * MULTIPLIERS * 16));
        mbarrier_init_done();
    }
    __syncwarp();
    if (a.split > 1) cluster_begin();           /* its barriers are there */
    if (group < GROUPS) {
        named_sync(1 + GROUPS, MULTIPLIERS + 32);
    } else if (t < 32) {                        /* the first copies need not wait for anybody */
        __threadfence_block();
        __syncwarp();
        named_announce(1 + GROUPS, MULTIPLIERS + 32);
    }

    if (group == GROUPS) {
#if BN > 128
        registers_give(40);
#endif
        if (t == 0) {
            if (a.l.early && begin < a.tiles) prefetch_weights(&a, tile(&a, begin), from, to);
            pdl_wait();
            pdl_release();
#if LEAN
            const uint64_t once = l2_evict_first();
#endif
            for (int id = begin; id < a.tiles; id += stride) {
                const corner at = tile(&a, id);
                for (int k = from; k < to; ++k, advance(a.stages, &stage, &lap)) {
                    const uint32_t arrived = shared_address(&full[stage]);
                    mbarrier_wait(shared_address(&empty[stage]), lap ^ 1);
                    mbarrier_expect(arrived, a.stage_bytes);
                    #pragma unroll
                    for (int s = 0; s < SLABS; ++s) {
                        const uint32_t slab = base + stage * STAGE_BYTES + s * SLAB_BYTES;
                        const int      x    = (k * SLABS + s) * 64;
#if LEAN
                        load_weight(&a, x, at, slab + (SWAP ? 0 : FIRST_BYTES), arrived, once);
                        load(&a, SWAP ? &a.second : &a.first, x, at.m, at.product, slab + (SWAP ? FIRST_BYTES : 0), arrived);
#else
                        load(&a, &a.first, x, SWAP ? at.n : at.m, at.product, slab, arrived);
                        load(&a, &a.second, x, SWAP ? at.m : at.n, at.product, slab + FIRST_BYTES, arrived);
#endif
                    }
                }
            }
            if (a.split == 1 && a.by_tma) tma_prefetch_map(&a.result);
        }
    } else {
#if BN > 128
        registers_take(232);
#endif
        pdl_wait();
        float d[BN / 2];
        int   turn = 0;
#if CHAIN
        float total[BN / 2];
#endif
        if (BEHIND && group > 0) named_sync(2 + GROUPS, MULTIPLIERS);
        for (int id = begin; id < a.tiles; id += stride) {
            const corner at   = tile(&a, id);
            int          last = 0;
#if CHAIN
            int begun = from;
            #pragma unroll
            for (int i = 0; i < BN / 2; ++i) total[i] = 0;
#else
            const int begun = from;
#endif
            for (int k = from; k < to; ++k) {
                mbarrier_wait(shared_address(&full[stage]), lap);
#if CHAIN
                if (k == begun + CHAIN) {
                    wgmma_wait(0);
                    wgmma_pin(d);
                    #pragma unroll
                    for (int i = 0; i < BN / 2; ++i) total[i] += d[i];
                    begun = k;
                }
#endif
                wgmma_fence();
                #pragma unroll
                for (int s = 0; s < SLABS; ++s) {
                    const uint32_t slab = base + stage * STAGE_BYTES + s * SLAB_BYTES;
                    const uint64_t x = wgmma_operand(slab + group * 8192), y = wgmma_operand(slab + FIRST_BYTES);
                    #pragma unroll
                    for (int i = 0; i < 4; ++i) wgmma(d, x + i * WGMMA_STEP, y + i * WGMMA_STEP, k > begun || s > 0 || i > 0, (const T *)0);
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
            wgmma_pin(d);
#if CHAIN
            #pragma unroll
            for (int i = 0; i < BN / 2; ++i) d[i] += total[i];
#endif

            if (a.split > 1) {
                cluster_await();
                uint32_t sums_come = shared_address(&received);
                asm volatile("" : "+r"(sums_come));     /* it stays in a register */
                send_pieces(&a, d, slice, results, sums_come);
                mbarrier_wait_published(sums_come, 0);
                add_pieces(&a, at, slice, (const float4 *)(memory + (results - unaligned)));
                continue;
            }
#if DIRECT
            const edge e = edge_of(&a, at);
            #pragma unroll
            for (int j = 0; j < PIECES; ++j) put_piece(e, j * 8, make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]));
#else
            const int64_t m = at.m + (SWAP ? 0 : group * 64), n = at.n + (SWAP ? group * 64 : 0);
            if (a.by_tma) put_by_tma(&a, d, m, n, at.product, t, group, results + group * BUFFERS * CHUNK_BYTES, &turn);
            else put_directly(&a.l, d, m, n, at.product, t);
#endif
        }
        if (t == 0) tma_store_wait_read(0);
    }
}
