/*
 * Quantises rows to u8 around 128, each by its largest magnitude: as sgk_per_token_quant_int8, in dense rows. One block a row, which is read twice.
 *
 *   T   f32, f16 or bf16
 */
#include "gemm_packed.cuh"
#include "launch.cuh"
#include "reduce.cuh"

#define THREADS 256

extern "C" __global__ __launch_bounds__(THREADS) void packed_quant(const __grid_constant__ packed_quant_args a)
{
    __shared__ float scratch[THREADS / 32];
    const int64_t    row  = blockIdx.x;
    const T         *x    = (const T *)a.input + row * a.input_stride;
    float            amax = 0;
    pdl_wait();
    for (int64_t k = threadIdx.x; k < a.depth; k += THREADS) amax = fmaxf(amax, fabsf(to_f32(x[k])));      /* leaves NaN out */
    amax           = fmaxf(block_max(amax, scratch, THREADS / 32), 1e-7f);
    const float by = __fdiv_rn(127.0f, amax);
    if (threadIdx.x == 0) a.s[row] = __fdiv_rn(amax, 127.0f);
    for (int64_t k = threadIdx.x; k < a.depth; k += THREADS) {
        const float v          = __fmul_rn(to_f32(x[k]), by);
        a.q[row * a.depth + k] = (uint8_t)((v != v ? 0 : __float2int_rn(fminf(fmaxf(v, -127.0f), 127.0f))) + 128);
    }
    pdl_release();
}
