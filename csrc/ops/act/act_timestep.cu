/*
 * Timestep embedding: a thread has one frequency and up to TIMESTEP_ROWS rows. Angles reach thousands of turns, which f32 has no digits
 * for: frequency and angle are f64, and what is left of the last turn, within half a turn, goes on in f32. Bound by memory, or by the
 * launch: a call makes a few thousand numbers.
 *
 *   T  f32, f16 or bf16, of output
 */
#include "act_timestep.h"
#include "launch.cuh"
#include "types.cuh"

DEVICE double load_number(const void *p, int64_t i, sgk_dtype dtype)
{
    switch (dtype) {
    case SGK_F64:  return ((const double *)p)[i];
    case SGK_F16:  return to_f32(((const f16 *)p)[i]);
    case SGK_BF16: return to_f32(((const bf16 *)p)[i]);
    case SGK_I32:  return ((const int32_t *)p)[i];
    case SGK_I64:  return (double)((const int64_t *)p)[i];
    default:       return ((const float *)p)[i];
    }
}

extern "C" __global__ __launch_bounds__(TIMESTEP_COLUMNS) void timestep(const __grid_constant__ timestep_args a)
{
    const unsigned chunks = (unsigned)((a.half + TIMESTEP_COLUMNS - 1) / TIMESTEP_COLUMNS);
    const int64_t  i = (int64_t)(blockIdx.x % chunks) * TIMESTEP_COLUMNS + threadIdx.x, first = (int64_t)(blockIdx.x / chunks) * TIMESTEP_ROWS;
    if (i >= a.half) return;
    const int64_t last      = min(first + TIMESTEP_ROWS, a.rows);
    const double  frequency = exp(a.step * (double)i) * a.scale * 0.31830988618379067;     /* in half turns */
    const int64_t sine = a.cos_first ? a.half + i : i, cosine = a.cos_first ? i : a.half + i;

    pdl_wait();
    pdl_release();
    #pragma unroll 1
    for (int64_t r = first; r < last; ++r) {
        const double angle = load_number(a.input, r * a.input_stride, a.input_dtype) * frequency;
        const float  part  = (float)(angle - 2 * rint(angle / 2));
        T           *out   = (T *)a.output + r * a.output_stride;
        from_f32(&out[sine], sinpif(part));
        from_f32(&out[cosine], cospif(part));
    }
}
