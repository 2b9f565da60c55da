/*
 * out = input weight^T for many rows whose tiles are few for the GPU, on the matrix units of sm_90a: a cluster of SPLIT blocks has one tile of ROWS x BN, and
 * each block a share of K and, of the tile's columns, its own. Of a block alone a warpgroup starts the copies (TMA) and one for 64 rows multiplies (wgmma), a
 * ring of slabs of 64 in K between them.
 *
 *   T        f16 or bf16
 *   ROWS     of a tile: 64 or 128
 *   BN       columns of a tile: a multiple of 16
 *   STAGES   parts of the ring, of SLABS slabs each
 *   SPLIT    blocks of a cluster; 1: a block has a tile to itself, and all of K
 *
 * Threads send their sums to the thread with the same number of the block whose columns they are; own sums stay in registers. Shares are added in their
 * order.
 *
 * Rows of input, weight and out must be 16-byte aligned, K and N multiples of 8, out in the kernel's format. M K + N K elements read, each once a tile that
 * needs it (from L2), 2 M N K operations: bound by the matrix units, or by L2 where tiles are small.
 *
 * Shared memory: slabs [STAGES][SLABS] of input [ROWS][64], weight [BN][64]; sums from other blocks [SPLIT - 1][MOST][2 ROWS] times four; barriers [STAGES], full
 * and then empty ones, and the one of the sums.
 */
#include "barrier.cuh"
#include "cluster_push.cuh"
#include "cp_async.cuh"
#include "gemm_put.cuh"
#include "launch.cuh"
#include "ring.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

#define GROUPS      (ROWS / 64)                        /* warpgroups that multiply */
#define MULTIPLIERS (128 * GROUPS)                     /* threads */
#define INPUT_BYTES (ROWS * 128)
#define SLAB_BYTES  (INPUT_BYTES + BN * 128)
#define STAGE_BYTES (SLABS * SLAB_BYTES)
#define PIECES      (BN / 8)                           /* of 8 columns: a thread has four sums of one */
#define MOST        ((PIECES + SPLIT - 1) / SPLIT)     /* that a block owns; the last one may have fewer */
#define INBOX       (STAGES * STAGE_BYTES)
#define BARRIERS    (INBOX + (SPLIT - 1) * MOST * MULTIPLIERS * 16)

#if ROWS % 64 || BN % 16 || SPLIT < 1 || PIECES <= (SPLIT - 1) * MOST
#error "the macros do not fit each other"
#endif

DEVICE int cluster_number(void)
{
    int number;
    asm("mov.u32 %0, %%clusterid.x;" : "=r"(number));
    return number;
}

/* An address of this block's shared memory, in block `rank`. */
DEVICE uint32_t address_in(uint32_t address, int rank)
{
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

/* This thread's sums of the columns of others; `rank` is a constant. */
DEVICE void send(float (&d)[BN / 2], int rank, uint32_t inbox, uint32_t received)
{
    #pragma unroll
    for (int owner = 0; owner < SPLIT; ++owner) {
        if (owner == rank) continue;
        const uint32_t to = address_in(inbox + (rank < owner ? rank : rank - 1) * (MOST * MULTIPLIERS * 16), owner), barrier = address_in(received, owner);
        #pragma unroll
        for (int i = 0; i < MOST; ++i) {
            const int j = owner * MOST + i;
            if (j >= PIECES) continue;
            asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to + i * (MULTIPLIERS * 16)), "f"(d[4 * j]),
                         "f"(d[4 * j + 1]), "f"(d[4 * j + 2]), "f"(d[4 * j + 3]), "r"(barrier) : "memory");
        }
    }
}

DEVICE float4 load4(uint32_t from)
{
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(from) : "memory");
    return v;
}

/* All shares of this block's columns, and out; `rank` is a constant. */
DEVICE void add_and_put(const linear_args *l, float (&d)[BN / 2], int rank, uint32_t inbox, int m, int n)
{
    #pragma unroll
    for (int i = 0; i < MOST; ++i) {
        const int j = rank * MOST + i;
        if (j >= PIECES) continue;
        float4 sum = make_float4(0, 0, 0, 0);
        #pragma unroll
        for (int s = 0; s < SPLIT; ++s) {
            const float4 v = s == rank ? make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3])
                                       : load4(inbox + ((s < rank ? s : s - 1) * MOST + i) * (MULTIPLIERS * 16));
            sum            = s == 0 ? v : make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
        }
        d[4 * j] = sum.x, d[4 * j + 1] = sum.y, d[4 * j + 2] = sum.z, d[4 * j + 3] = sum.w;
    }
    linear_put(l, d, rank * MOST, (rank + 1) * MOST < PIECES ? (rank + 1) * MOST : PIECES, m + (int)threadIdx.x / 32 * 16, n);
}

extern "C" __global__ __launch_bounds__(MULTIPLIERS + 128, 1) void linear_share(const __grid_constant__ linear_wgmma_args a)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t                            base = uniform(shared_address(memory)), full = base + BARRIERS, empty = full + STAGES * 8, received = empty + STAGES * 8;
    const int                                 group = (int)uniform(threadIdx.x / 128), t = threadIdx.x % 128, rank = SPLIT > 1 ? (int)cluster_rank() : 0;
    const int                                 number  = SPLIT > 1 ? cluster_number() : (int)blockIdx.x;
    const int                                 in_band = a.band * a.second_tiles, top = number / in_band * a.band, rest = number % in_band, high = a.first_tiles - top < a.band ? a.first_tiles - top : a.band;
    const int                                 m = (int)tma_inside((top + rest % high) * ROWS, ROWS, a.l.rows), n = (int)tma_inside(rest / high * BN, BN, a.l.columns);
    const int                                 from = rank * a.share + (rank < a.rest ? rank : a.rest), to = from + a.share + (rank < a.rest);

    if (threadIdx.x == MULTIPLIERS) {
        const int own = PIECES - rank * MOST < MOST ? PIECES - rank * MOST : MOST;
        mbarrier_init(received, 1);
        open_ring(&a.first, &a.second, full, empty, 1, 4 * GROUPS);
        mbarrier_expect(received, (uint32_t)((SPLIT - 1) * own * MULTIPLIERS * 16));
    }
    __syncwarp();
    if (SPLIT > 1) cluster_begin();             /* its barriers are there */
    if (group < GROUPS) {
        named_sync(1, MULTIPLIERS + 32);
    } else if (t < 32) {                        /* the first copies need not wait for anybody */
        __threadfence_block();
        __syncwarp();
        named_announce(1, MULTIPLIERS + 32);
    }

    if (group == GROUPS) {
#if BN > 128
        registers_give(40);
#endif
        if (t == 0) {
            pdl_wait();
            pdl_release();
            ring p = { 0, 0 };
            for (int k = from; k < to; ++k, advance(&p)) {
                const uint32_t input = base + p.stage * STAGE_BYTES, arrived = full + p.stage * 8;
                mbarrier_wait(empty + p.stage * 8, p.lap ^ 1);
                mbarrier_expect(arrived, a.stage_bytes);
                #pragma unroll
                for (int s = 0; s < SLABS; ++s) {
                    const int x = (k * SLABS + s) * 64;
                    tma_load2(input + s * SLAB_BYTES, &a.first, x, m, arrived);
                    tma_load2(input + s * SLAB_BYTES + INPUT_BYTES, &a.second, x, n, arrived);
                }
            }
        }
    } else {
#if BN > 128
        registers_take(232);
#endif
        pdl_wait();
        float          d[BN / 2];
        ring           next  = { 0, 0 };
        const uint32_t input = (uint32_t)wgmma_operand(base + group * 8192), weight = (uint32_t)wgmma_operand(base + INPUT_BYTES);
        int            last = 0;
        for (int k = from; k < to; ++k) {
            const uint32_t offset = next.stage * (STAGE_BYTES / 16);
            const uint64_t x = wgmma_operand_of(input + offset), y = wgmma_operand_of(weight + offset);
            mbarrier_wait(full + next.stage * 8, next.lap);
            wgmma_fence();
            #pragma unroll
            for (int i = 0; i < 4 * SLABS; ++i) {
                const int step = i / 4 * (SLAB_BYTES / 16) + i % 4 * WGMMA_STEP;
                wgmma(d, x + step, y + step, k > from || i > 0, (const T *)0);
            }
            wgmma_commit();
            if (k > from) {
                wgmma_wait(1);
                if (t % 32 == 0) mbarrier_arrive(empty + last * 8);
            }
            last = next.stage;
            advance(&next);
        }
        wgmma_wait(0);
        wgmma_pin(d);

        const uint32_t inbox = base + INBOX + threadIdx.x * 16;
        if (SPLIT > 1) {
            cluster_await();
            #pragma unroll
            for (int r = 0; r < SPLIT; ++r)
                if (rank == r) send(d, r, inbox, received);
            mbarrier_wait_published(received, 0);
        }
        #pragma unroll
        for (int r = 0; r < SPLIT; ++r)
            if (rank == r) add_and_put(&a.l, d, r, inbox, m, n);
    }
}
