/*
 * out = input weight^T for many rows whose tiles are few for the GPU, on the matrix units of sm_90a: a cluster of two blocks has two tiles of ROWS x BN,
 * side by side, so that they need the same input, or one above the other, so that they need the same weight. Each block brings half of what both need, to
 * both (multicast), and the operand that it alone needs. One warp starts the copies (TMA) and two warpgroups multiply (wgmma), a ring of slabs of 64 in K
 * between them.
 *
 *   T        f16 or bf16
 *   ROWS     of a tile. 128: each warpgroup has half of them; 64: the warpgroups have slabs in turn, and their sums are added
 *   BN       columns of a tile: a multiple of 16
 *   STAGES   slabs in the ring; an even number where ROWS is 64, so that a warpgroup meets its own stages in every lap and their barriers' phases are not ambiguous
 *   ACROSS   1: tiles side by side; 0: one above the other
 *
 * A sum is one chain over K, with the bits of gemm_wgmma.cu, where ROWS is 128; where it is 64, the chain of even slabs and that of odd ones.
 *
 * A stage is free when the warps of both blocks have read it: half of it comes from the other block.
 *
 * Rows of input, weight and out must be 16-byte aligned, K and N multiples of 8, out in the kernel's format. M K + N K elements read, each once a tile that
 * needs it, or once for both of a cluster (from L2), 2 M N K operations: bound by L2.
 *
 * Shared memory: slabs [STAGES] of input [ROWS][64], weight [BN][64]; barriers [STAGES], full and then empty ones. At last, where the slabs were, the sums
 * that go to the other warpgroup [BN / 8][128] times four.
 */
#include "barrier.cuh"
#include "cluster_push.cuh"
#include "cp_async.cuh"
#include "gemm_put.cuh"
#include "launch.cuh"
#include "ring.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

#define MULTIPLIERS 256                                 /* threads */
#define TURNS       (128 / ROWS)                        /* slabs that one warpgroup's are apart */
#define INPUT_BYTES (ROWS * 128)
#define STAGE_BYTES (INPUT_BYTES + BN * 128)
#define BARRIERS    (STAGES * STAGE_BYTES)
#define PIECES      (BN / 8)                            /* of 8 columns: a thread has four sums of one */
#define OWN         (PIECES / TURNS)                    /* that a thread stores */

#if (ROWS != 64 && ROWS != 128) || BN % 16 || STAGES < 3 || STAGES % TURNS
#error "the macros do not fit each other"
#endif

/* What a block brings of slab k: all of the operand that it alone needs, and before that says what comes altogether; */
DEVICE void bring_own(const linear_wgmma_args *a, uint32_t slab, uint32_t arrived, int k, int m, int n)
{
    mbarrier_expect(arrived, STAGE_BYTES);
    if (ACROSS) tma_load2(slab + INPUT_BYTES, &a->second, k * 64, n, arrived);
    else tma_load2(slab, &a->first, k * 64, m, arrived);
}

/* and its half of the other one, for both. */
DEVICE void bring_half(const linear_wgmma_args *a, uint32_t slab, uint32_t arrived, int k, int m, int n, int rank)
{
    if (ACROSS) tma_load2_multicast(slab + rank * (INPUT_BYTES / 2), &a->first, k * 64, m + rank * (ROWS / 2), arrived, 3);
    else tma_load2_multicast(slab + INPUT_BYTES + rank * (BN * 64), &a->second, k * 64, n + rank * (BN / 2), arrived, 3);
}

#if TURNS > 1
/* The sums of both warpgroups: columns of half `own`, a constant, stay and the others go. */
DEVICE void add_other(float (&d)[BN / 2], int own, uint32_t place)
{
    #pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int j = (1 - own) * OWN + i;
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(place + j * 2048), "f"(d[4 * j]), "f"(d[4 * j + 1]), "f"(d[4 * j + 2]), "f"(d[4 * j + 3]) : "memory");
    }
    named_sync(1, MULTIPLIERS);
    #pragma unroll
    for (int i = 0; i < OWN; ++i) {
        const int j = own * OWN + i;
        float4    v;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(place + j * 2048) : "memory");
        d[4 * j] += v.x, d[4 * j + 1] += v.y, d[4 * j + 2] += v.z, d[4 * j + 3] += v.w;
    }
}
#endif

extern "C" __global__ __launch_bounds__(MULTIPLIERS + 32, 1) void linear_multicast(const __grid_constant__ linear_wgmma_args a)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t                            base = uniform(shared_address(memory)), full = base + BARRIERS, empty = full + STAGES * 8;
    const int                                 group = (int)uniform(threadIdx.x / 128), t = threadIdx.x % 128, rank = (int)cluster_rank(), number = (int)blockIdx.x / 2;
    const int                                 down = number % a.first_tiles, across = number / a.first_tiles;
    const int                                 m = (ACROSS ? down : down * 2 + rank) * ROWS, n = (ACROSS ? across * 2 + rank : across) * BN;

    if (threadIdx.x == MULTIPLIERS) open_ring(&a.first, &a.second, full, empty, 1, 2 * 8 / TURNS);
    __syncwarp();
    cluster_begin();                            /* its barriers are there */

    if (group == 2) {
        int k = 0;
        if (t == 0) {
            pdl_wait();
            pdl_release();
            for (; k < STAGES && k < a.parts; ++k) bring_own(&a, base + k * STAGE_BYTES, full + k * 8, k, m, n);        /* need not wait for the other block */
        }
        __syncwarp();
        cluster_await();
        if (t == 0) {
            ring p = { 0, 0 };
            for (k = 0; k < a.parts; ++k, advance(&p)) {
                const uint32_t slab = base + p.stage * STAGE_BYTES, arrived = full + p.stage * 8;
                if (k >= STAGES) {
                    mbarrier_wait(empty + p.stage * 8, p.lap ^ 1);
                    bring_own(&a, slab, arrived, k, m, n);
                }
                bring_half(&a, slab, arrived, k, m, n, rank);
            }
        }
        __syncwarp();
        cluster_begin();
    } else {
        pdl_wait();
        cluster_await();                        /* both blocks' barriers are there */
        const int      first = TURNS > 1 ? group : 0;
        const uint32_t input = (uint32_t)wgmma_operand(base + (TURNS > 1 ? 0 : group * 8192)), weight = (uint32_t)wgmma_operand(base + INPUT_BYTES);
        float          d[BN / 2];
        ring           next = { first, 0 };
        int            last = 0;
        if (first >= a.parts) {                 /* no slab for the second warpgroup */
            #pragma unroll
            for (int i = 0; i < BN / 2; ++i) d[i] = 0;
        }
        for (int k = first; k < a.parts; k += TURNS) {
            const uint32_t offset = next.stage * (STAGE_BYTES / 16);
            const uint64_t x = wgmma_operand_of(input + offset), y = wgmma_operand_of(weight + offset);
            mbarrier_wait(full + next.stage * 8, next.lap);
            wgmma_fence();
            #pragma unroll
            for (int i = 0; i < 4; ++i) wgmma(d, x + i * WGMMA_STEP, y + i * WGMMA_STEP, k > first || i > 0, (const T *)0);
            wgmma_commit();
            if (k > first) {
                wgmma_wait(1);
                if (t % 32 < 2 && k - TURNS + STAGES < a.parts) mbarrier_arrive_at(empty + last * 8, t % 32);       /* to both blocks; nobody waits for stages that are not filled again */
            }
            last = next.stage;
            #pragma unroll
            for (int i = 0; i < TURNS; ++i) advance(&next);
        }
        wgmma_wait(0);
        wgmma_pin(d);
        __syncwarp();
        cluster_begin();                        /* neither block needs the other one any more, once both are here */

        const int rows = m + (int)threadIdx.x / 32 % (ROWS / 16) * 16;       /* of this warp */
#if TURNS > 1
        named_sync(1, MULTIPLIERS);             /* nobody reads slabs any more */
        if (group == 0) {
            add_other(d, 0, base + t * 16);
            linear_put(&a.l, d, 0, OWN, rows, n);
        } else {
            add_other(d, 1, base + t * 16);
            linear_put(&a.l, d, OWN, PIECES, rows, n);
        }
#else
        linear_put(&a.l, d, 0, PIECES, rows, n);
#endif
    }
    cluster_await();                            /* a block does not end before */
}
