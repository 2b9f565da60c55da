/*
 * Numbers sent to another block's shared memory (sm_90). They arrive at an mbarrier there, which lies at the same address as this block's and expects
 * their bytes: no fence, and no block waits for what it has sent.
 *
 *     one thread: open_inbox(barrier, pieces of 16 bytes);
 *     cluster_begin(), cluster_await();                       all blocks' barriers are there
 *     cluster_push4(&x, barrier, rank, v);
 *     mbarrier_wait(barrier, 0);                              what was sent here has come
 */
#pragma once
#include "barrier.cuh"

/* The first half of cluster_sync() where nothing but mbarriers was written: without its fence of all memory. */
DEVICE void cluster_begin(void) { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }

DEVICE void open_inbox(uint32_t barrier, int pieces)
{
    mbarrier_init(barrier, 1);
    mbarrier_init_done();
    mbarrier_expect(barrier, (uint32_t)pieces * 16);
}

DEVICE void cluster_push4(uint32_t address, uint32_t barrier, uint32_t rank, float4 v)
{
    asm volatile("{\n.reg .b32 there, at;\nmapa.shared::cluster.u32 there, %0, %2;\nmapa.shared::cluster.u32 at, %1, %2;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], {%3, %4, %5, %6}, [at];\n}" ::"r"(address),
                 "r"(barrier), "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
DEVICE void cluster_push2(uint32_t address, uint32_t barrier, uint32_t rank, float x, float y)
{
    asm volatile("{\n.reg .b32 there, at;\nmapa.shared::cluster.u32 there, %0, %2;\nmapa.shared::cluster.u32 at, %1, %2;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [there], {%3, %4}, [at];\n}" ::"r"(address),
                 "r"(barrier), "r"(rank), "f"(x), "f"(y) : "memory");
}
DEVICE void cluster_push(uint32_t address, uint32_t barrier, uint32_t rank, float x)
{
    asm volatile("{\n.reg .b32 there, at;\nmapa.shared::cluster.u32 there, %0, %2;\nmapa.shared::cluster.u32 at, %1, %2;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [there], %3, [at];\n}" ::"r"(address),
                 "r"(barrier), "r"(rank), "f"(x) : "memory");
}
