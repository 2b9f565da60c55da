/* The ring of a kernel whose operands come by TMA. Macro: STAGES. */
#pragma once
#include "barrier.cuh"
#include "tma.cuh"

/* A place in the ring, and the parity of its lap. */
struct ring {
    int      stage;
    uint32_t lap;
};
DEVICE void advance(ring *r)
{
    if (++r->stage == STAGES) r->stage = 0, r->lap ^= 1;
}

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
