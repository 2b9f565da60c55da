/* The ring of a kernel whose operands come by TMA. Macro: STAGES. */
#pragma once
#include "barrier.cuh"
#include "tma.cuh"

/* By one thread. `arrivals` fill a stage, `readers` empty it. */
DEVICE void open_ring(const sgk_tma_map *first, const sgk_tma_map *second, uint32_t full, uint32_t empty, uint32_t arrivals, uint32_t readers)
{
    tma_prefetch_map(second);
    tma_prefetch_map(first);
    #pragma unroll
    for (int s = 0; s < STAGES; ++s) {
        mbarrier_init(full + s * 8, arrivals);
        mbarrier_init(empty + s * 8, readers);
    }
    mbarrier_init_done();
}
