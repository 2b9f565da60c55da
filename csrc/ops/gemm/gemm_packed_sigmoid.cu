/*
 * out[m, j] = sigmoid(input[m] . weight + bias) * by[m, j]. One block a row; each element is read once.
 *
 *   T   f32, f16 or bf16
 */
#include "gemm_packed.cuh"
#include "launch.cuh"
#include "reduce.cuh"

#define THREADS 256

extern "C" __global__ __launch_bounds__(THREADS) void linear_sigmoid(const __grid_constant__ linear_sigmoid_args a)
{
    __shared__ float scratch[THREADS / 32];
    const int64_t    m = blockIdx.x;
    const T         *x = (const T *)a.input + m * a.input_stride, *by = (const T *)a.by + m * a.by_stride;
    float            sum = 0;
    pdl_wait();
    for (int64_t k = threadIdx.x; k < a.depth; k += THREADS) sum = fmaf(to_f32(x[k]), a.weight[k * a.weight_stride], sum);
    sum                = block_sum(sum, scratch, THREADS / 32) + (a.bias ? *a.bias : 0);
    const float factor = 1 / (1 + expf(-sum));
    for (int64_t j = threadIdx.x; j < a.columns; j += THREADS) from_f32((T *)a.out + m * a.out_stride + j, factor * to_f32(by[j]));
    pdl_release();
}
