/*
 * Barriers of sm_90: mbarriers in shared memory, which count arrivals and bytes of copies; clusters; named barriers; the division of
 * registers between warpgroups.
 *
 * An mbarrier has a phase, which ends when all arrivals of its count and all expected bytes have come; the next one begins at once.
 * mbarrier_wait(b, p) returns when the newest phase of parity p has ended; of a fresh barrier that is so for p = 1. A ring of stages
 * therefore waits for `full` with parity 0 in its first lap, for `empty` with parity 1, and turns both when it starts a new lap.
 *
 * Barriers are named by their shared-memory address (shared_address() of cp_async.cuh). Arrivals and waits carry no cluster scope: what they order is
 * copies by TMA and reads by wgmma, and the scope would cost a fence of all memory each time.
 */
#pragma once
#include "types.cuh"

/* By one thread; mbarrier_init_done() after the last one, then a barrier of all who use it: cluster_sync() where that is a cluster. */
DEVICE void mbarrier_init(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
DEVICE void mbarrier_init_done(void) { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void mbarrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives, and the phase also waits for that many bytes; below 2^20 in a phase. Parts of a copy that lie outside of the tensor count. */
DEVICE void mbarrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/* Arrives at the barrier that lies at this address in block `rank` of the cluster. */
DEVICE void mbarrier_arrive_at(uint32_t barrier, uint32_t rank)
{
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier), "r"(rank) : "memory");
}

DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity)
{
    uint32_t ended;
    do {        /* each try sleeps for a while */
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(ended) : "r"(barrier), "r"(parity) : "memory");
    } while (!ended);
}

/* The same, and what blocks of the cluster sent to this one's shared memory is seen (cluster_push.cuh). */
DEVICE void mbarrier_wait_published(uint32_t barrier, uint32_t parity)
{
    uint32_t ended;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(ended) : "r"(barrier), "r"(parity) : "memory");
    } while (!ended);
}

/* The block's number in its cluster; 0 without clusters. */
DEVICE uint32_t cluster_rank(void)
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* All threads of all blocks of the cluster; orders their reads and writes of each other's shared memory. Roles may call it apart. */
DEVICE void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/* Its second half; cluster_begin() in cluster_push.cuh is a first one. */
DEVICE void cluster_await(void) { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

/* 16 bytes at this address of the shared memory of block `rank`. */
DEVICE float4 cluster_load4(uint32_t address, uint32_t rank)
{
    float4 v;
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %4, %5;\nld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n}"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address), "r"(rank) : "memory");
    return v;
}

/* A barrier of `threads` threads, whole warps; id 1 to 15 (0 is __syncthreads). The ones that only announce do not wait. */
DEVICE void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void named_announce(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
/* Of the same kind: whether p holds in all of them. */
DEVICE bool named_all(int id, int threads, bool p)
{
    uint32_t all;
    asm volatile("{\n.reg .pred p, q;\nsetp.ne.u32 p, %1, 0;\nbar.red.and.pred q, %2, %3, p;\nselp.u32 %0, 1, 0, q;\n}"
                 : "=r"(all) : "r"((uint32_t)p), "r"(id), "r"(threads) : "memory");
    return all;
}

/* All warps of a warpgroup: give registers back, or wait for more; a multiple of 8 from 24 to 256. The kernel needs __launch_bounds__
 * with both numbers. */
#define registers_give(n) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n))
#define registers_take(n) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n))
