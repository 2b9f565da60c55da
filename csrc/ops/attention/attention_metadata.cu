/* Copies the sequences' lengths, and num_splits behind them.
 *
 *   THREADS  threads in a block
 */
#include "attention_metadata.h"
#include "launch.cuh"

extern "C" __global__ __launch_bounds__(THREADS) void attention_metadata(const __grid_constant__ attention_metadata_args a)
{
    const int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    pdl_wait();
    if (i < a.batch) a.metadata[i] = a.seqused_k[i];
    if (i == a.batch) a.metadata[i] = a.num_splits;
    pdl_release();
}
