/*
 * Blocks of a cluster (sm_90). Before sm_90 every block is alone, and the barrier nothing.
 *
 *     cluster_arrive();                   early: this block has begun
 *     cluster_wait();                     and so have the others: their shared memory may be written
 *     cluster_store(&x, rank, v);
 *     cluster_arrive(), cluster_wait();   everybody sees what was stored, and nobody writes to a block that has ended
 */
#pragma once
#include "types.cuh"

#define CLUSTER_MOST 8                                  /* blocks that every device allows */

DEVICE unsigned cluster_rank(void)
{
    unsigned r = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
#endif
    return r;
}

DEVICE unsigned cluster_blocks(void)
{
    unsigned n = 1;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
#endif
    return n;
}

DEVICE void cluster_arrive(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

DEVICE void cluster_wait(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* To the place that `to` is in this block's shared memory, but in the memory of block `rank`. */
DEVICE void cluster_store(float *to, unsigned rank, float v)
{
#if __CUDA_ARCH__ >= 900
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"((uint32_t)__cvta_generic_to_shared(to)), "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
#else
    *to = v;
#endif
}
