/*
 * Values that came with the launch itself go to memory. One block.
 *
 *   VALUES  the most values of a launch
 */
#include "copy.h"
#include "launch.cuh"

extern "C" __global__ void copy_values(const __grid_constant__ copy_values_args a)
{
    pdl_wait();                                 /* the kernel before may still read what is overwritten here */
    pdl_release();
    for (int i = threadIdx.x; i < a.count; i += blockDim.x) a.output[i] = a.values[i];
}
