/* Vertical and slash indices to lists of blocks and columns: a thread a list.
 *
 *   THREADS  threads in a block
 */
#include "attention_slash.h"
#include "launch.cuh"

extern "C" __global__ __launch_bounds__(THREADS, 8) void attention_slash(const __grid_constant__ attention_slash_args a)
{
    const int64_t item = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    pdl_wait();
    if (item < a.items) slash_convert(&a, item);
    pdl_release();
}
