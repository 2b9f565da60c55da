/*
 * out = input weight^T for many rows, on the matrix units of sm_90a: persistent blocks with tiles of 128 x BN, one warpgroup that starts the copies (TMA)
 * and two that multiply (wgmma), a ring of slabs of 64 in K between them. A tile's results are packed to 16 bits in registers and leave while products of
 * the next tile are under way.
 *
 *   T        f16 or bf16
 *   STAGES   slabs in the ring
 *   SHARES   1: K in shares (gemm.h), one after the other, whose sums are added in their order: the bits of a cluster that shares K. Up to 192 columns
 *
 * The second group begins when the first has its second slab under way, so that one packs while the other multiplies.
 *
 * Rows of input, weight and out must be 16-byte aligned, K and N multiples of 8, out in the kernel's format. M K + N K elements read, each once a tile that
 * needs it (from L2), 2 M N K operations: bound by the matrix units.
 *
 * Shared memory: slabs [STAGES] of input [128][64], weight [BN][64]; results on their way out [2][2][64][64]; barriers [STAGES], full and then empty ones.
 */
#include "barrier.cuh"
#include "cp_async.cuh"
#include "gemm.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "ring.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

#if BN == 136
#define WGMMA_NAMES_68 WGMMA_NAMES_64 ", %64, %65, %66, %67"
#define WGMMA_LIST_68  WGMMA_LIST_64, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
WGMMA_BOTH(136, 68, 68, 69, 70)
#endif

#define GROUPS       2                                  /* warpgroups that multiply */
#define ROWS         (64 * GROUPS)
#define MULTIPLIERS  (128 * GROUPS)                     /* threads */
#define INPUT_BYTES  (ROWS * 128)
#define WEIGHT_BYTES (BN * 128)
#define STAGE_BYTES  (INPUT_BYTES + WEIGHT_BYTES)
#define CHUNKS       ((BN + 63) / 64)                   /* boxes of 64 x 64 of a warpgroup's results; the last one ends with the tile, and may begin in the one before it */
#define CHUNK_BYTES  (64 * 64 * 2)
#define RESULTS      (STAGES * STAGE_BYTES)
#define BARRIERS     (RESULTS + GROUPS * 2 * CHUNK_BYTES)

struct corner { int m, n, product; };

/* Down the tiles of rows in bands, then on to the next columns: what runs at one time shares both operands in L2. */
DEVICE corner tile(const linear_wgmma_args *a, int id)
{
    int product = 0;
    if (a->l.batch > 1) product = id / (a->first_tiles * a->second_tiles), id %= a->first_tiles * a->second_tiles;
    const int in_band = a->band * a->second_tiles, top = id / in_band * a->band, rest = id % in_band;
    const int high = a->first_tiles - top < a->band ? a->first_tiles - top : a->band;
    return { (int)tma_inside((top + rest % high) * ROWS, ROWS, a->l.rows), (int)tma_inside(rest / high * BN, BN, a->l.columns), product };
}

/* One thread. */
DEVICE void copy_operands(const linear_wgmma_args *a, uint32_t base, uint32_t full, uint32_t empty, int begin, int stride)
{
    ring p = { 0, 0 };
    for (int id = begin; id < a->tiles; id += stride) {
        const corner at = tile(a, id);
        for (int k = 0; k < a->parts; ++k, advance(&p)) {
            const uint32_t input = base + p.stage * STAGE_BYTES, weight = input + INPUT_BYTES, arrived = full + p.stage * 8;
            mbarrier_wait(empty + p.stage * 8, p.lap ^ 1);
            mbarrier_expect(arrived, a->stage_bytes);
            if (a->l.batch > 1) {
                tma_load3(input, &a->first, k * 64, at.m, at.product, arrived);
                tma_load3(weight, &a->second, k * 64, at.n, at.product, arrived);
            } else {
                tma_load2(input, &a->first, k * 64, at.m, arrived);
                tma_load2(weight, &a->second, k * 64, at.n, arrived);
            }
        }
    }
    tma_prefetch_map(&a->result);
}

/* What a warpgroup knows of the block's shared memory, and where it is in the ring. */
struct places {
    uint32_t full, empty, input, weight;        /* operands as low words of descriptors, of the ring's first stage */
    int      group, t;
    ring     next, old;                         /* what is multiplied next, what is given back next */
};

/* d = or += the products of the next slab; `first`, a constant: of a tile. */
DEVICE void multiply(float (&d)[BN / 2], places *p, bool first)
{
    const uint32_t offset = p->next.stage * (STAGE_BYTES / 16);
    const uint64_t x = wgmma_operand_of(p->input + offset), y = wgmma_operand_of(p->weight + offset);
    mbarrier_wait(p->full + p->next.stage * 8, p->next.lap);
    wgmma_pin(d);
    wgmma_fence();
    #pragma unroll
    for (int i = 0; i < 4; ++i) wgmma(d, x + i * WGMMA_STEP, y + i * WGMMA_STEP, !first || i > 0, (const T *)0);
    wgmma_commit();
    advance(&p->next);
}

#if SHARES
/* The slab that a share begins with: shares are whole pairs of slabs, as in gemm_wgmma.cu. */
DEVICE int first_slab(const linear_wgmma_args *a, int share)
{
    const int slab = 2 * (share * a->share + (share < a->rest ? share : a->rest));
    return slab < a->parts ? slab : a->parts;
}
#endif

/* The oldest slab has been read. */
DEVICE void give_back(places *p)
{
    if (p->t % 32 == 0) mbarrier_arrive(p->empty + p->old.stage * 8);
    advance(&p->old);
}

/* The rest of so many slabs, of which the first two (or the only one) are under way, and the end of their products. */
DEVICE void multiply_rest(float (&d)[BN / 2], places *p, int slabs)
{
    #pragma unroll 1
    for (int k = 2; k < slabs; ++k) {
        wgmma_wait(1);
        give_back(p);
        multiply(d, p, false);
    }
    if (slabs > 1) {
        wgmma_wait(1);
        give_back(p);
    }
    wgmma_wait(0);
    give_back(p);
    wgmma_pin(d);
}

/* A tile's sums of this warpgroup, in the order of its registers. */
DEVICE void pack(const linear_wgmma_args *a, uint32_t (&packed)[BN / 4], float (&d)[BN / 2], corner at, int t)
{
    if (a->l.bias) {
        const linear_args l = linear_batch(&a->l, at.product);
        #pragma unroll
        for (int i = 0; i < BN / 8; ++i) {
            const int64_t n  = at.n + 8 * i + t % 4 * 2;
            const float   b0 = linear_bias(&l, n), b1 = linear_bias(&l, n + 1);
            d[4 * i] += b0, d[4 * i + 1] += b1, d[4 * i + 2] += b0, d[4 * i + 3] += b1;
        }
    }
    #pragma unroll
    for (int i = 0; i < BN / 4; ++i) packed[i] = pack2(d[2 * i], d[2 * i + 1], (const T *)0);
}

/* Two chunks of results, by way of shared memory. */
DEVICE void put(const linear_wgmma_args *a, const uint32_t (&packed)[BN / 4], int half, corner at, const places *p, uint32_t results)
{
    const int t = p->t, row = t / 32 * 16 + t % 16;
    if (t == 0) tma_store_wait_read(0);
    named_sync(1 + p->group, 128);
    #pragma unroll
    for (int c = 0; c < 2; ++c) {
        if (2 * half + c >= CHUNKS) continue;
        const int column = 2 * half + c < CHUNKS - 1 ? 64 * (2 * half + c) : BN - 64;
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint32_t *x = packed + column / 4 + 4 * j;
            stmatrix_x4(results + c * CHUNK_BYTES + row * 128 + ((2 * j + t % 32 / 16) ^ (row & 7)) * 16, x[0], x[1], x[2], x[3]);
        }
    }
    async_fence();
    named_sync(1 + p->group, 128);
    if (t == 0) {
        #pragma unroll
        for (int c = 0; c < 2; ++c) {
            if (2 * half + c >= CHUNKS) continue;
            const int column = 2 * half + c < CHUNKS - 1 ? 64 * (2 * half + c) : BN - 64;
            if (a->l.batch > 1) tma_store3(&a->result, at.n + column, at.m + p->group * 64, at.product, results + c * CHUNK_BYTES);
            else tma_store2(&a->result, at.n + column, at.m + p->group * 64, results + c * CHUNK_BYTES);
        }
        tma_store_commit();
    }
}

extern "C" __global__ __launch_bounds__(MULTIPLIERS + 128, 1) void linear_wide(const __grid_constant__ linear_wgmma_args a)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t                            base = uniform(shared_address(memory)), full = base + BARRIERS, empty = full + STAGES * 8;
    const int                                 group = (int)uniform(threadIdx.x / 128), t = threadIdx.x % 128;
    const int                                 begin = (int)blockIdx.x, stride = (int)gridDim.x;

    if (threadIdx.x == MULTIPLIERS) {
        tma_prefetch_map(&a.first);
        tma_prefetch_map(&a.second);
        #pragma unroll
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(full + s * 8, 1);
            mbarrier_init(empty + s * 8, 4 * GROUPS);
        }
        mbarrier_init_done();
    }
    if (group < GROUPS) {
        named_sync(2 + GROUPS, MULTIPLIERS + 32);
    } else if (t < 32) {                        /* the first copies need not wait for anybody */
        __threadfence_block();
        __syncwarp();
        named_announce(2 + GROUPS, MULTIPLIERS + 32);
    }

    if (group == GROUPS) {
        registers_give(40);
        if (t == 0) {
            pdl_wait();
            pdl_release();
            copy_operands(&a, base, full, empty, begin, stride);
        }
        __syncwarp();
    } else {
        registers_take(232);
        pdl_wait();
        const uint32_t results = base + RESULTS + group * (2 * CHUNK_BYTES);
        float          d[BN / 2];
        uint32_t       packed[BN / 4];
        places         p       = { full, empty, (uint32_t)wgmma_operand(base + group * 8192), (uint32_t)wgmma_operand(base + INPUT_BYTES), group, t, { 0, 0 }, { 0, 0 } };
        corner         at      = { 0, 0, 0 };
        bool           pending = false;
        if (group > 0) named_sync(1 + GROUPS, MULTIPLIERS);
        for (int id = begin; id < a.tiles; id += stride) {
            multiply(d, &p, true);
            if (pending) put(&a, packed, 0, at, &p, results);
            if (a.parts > 1) multiply(d, &p, false);
            if (group == 0 && !pending) named_announce(1 + GROUPS, MULTIPLIERS);
            if (pending && CHUNKS > 2) put(&a, packed, 1, at, &p, results);
            at = tile(&a, id);
#if SHARES
            multiply_rest(d, &p, first_slab(&a, 1));
            float total[BN / 2];
            #pragma unroll
            for (int i = 0; i < BN / 2; ++i) total[i] = d[i];
            #pragma unroll 1
            for (int share = 1; share < a.split; ++share) {
                const int slabs = first_slab(&a, share + 1) - first_slab(&a, share);
                multiply(d, &p, true);
                if (slabs > 1) multiply(d, &p, false);
                multiply_rest(d, &p, slabs);
                #pragma unroll
                for (int i = 0; i < BN / 2; ++i) total[i] += d[i];
            }
            #pragma unroll
            for (int i = 0; i < BN / 2; ++i) d[i] = total[i];
#else
            multiply_rest(d, &p, a.parts);
#endif
            pack(&a, packed, d, at, t);
            pending = true;
        }
        put(&a, packed, 0, at, &p, results);
        if (CHUNKS > 2) put(&a, packed, 1, at, &p, results);
        if (t == 0) tma_store_wait_read(0);
    }
}
