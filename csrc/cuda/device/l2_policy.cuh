/* How long L2 keeps what a copy brings (sm_80, by TMA sm_90). */
#pragma once
#include "cuda/tma_map.h"
#include "types.cuh"

/* What is read once leaves first. */
DEVICE uint64_t l2_evict_first(void)
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

DEVICE uint64_t l2_policy(bool first)
{
    uint64_t policy;
    if (first) return l2_evict_first();
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* tma_load2 of tma.cuh, with such a policy. */
DEVICE void tma_load2_hint(uint32_t to, const sgk_tma_map *map, int x, int y, uint32_t barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(x), "r"(y), "r"(barrier), "l"(policy) : "memory");
}
