/*
 * A block a token, and one for each of k and v: its row, in e4m3, goes to the place that loc names. 2 bytes are read and 1 is written.
 *
 *   T      f16 or bf16
 *   PIECE  elements at a time: 8, where rows are in 16-byte pieces; 1 takes any length and alignment
 */
#include "copy.h"
#include "launch.cuh"
#include "types.cuh"

/* To nearest even, |x| kept within 448; in whole numbers, as devices before sm_89 have no instruction for it. */
DEVICE uint32_t e4m3_code(float x)
{
    const uint32_t u = __float_as_uint(x), sign = u >> 24 & 0x80, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7f;                                                /* NaN */
    if (magnitude >= 0x43e00000) return sign | 0x7e;                                        /* 448 and more */
    if (magnitude < 0x3c800000) return sign | (uint32_t)__float2int_rn(fabsf(x) * 512.0f);  /* under 2^-6: steps of 2^-9 */
    return sign | (magnitude - (120u << 23) + 0x7ffff + (magnitude >> 20 & 1)) >> 20;
}

DEVICE float rounded(float x)
{
    T y;
    from_f32(&y, x);
    return to_f32(y);
}

extern "C" __global__ __launch_bounds__(256) void downcast_fp8(const __grid_constant__ downcast_args a)
{
    const struct downcast_rows *r     = &a.rows[blockIdx.y];
    const int64_t               token = blockIdx.x;
    const T                    *x     = (const T *)r->x + token * r->stride;
    pdl_wait();
    const int64_t at = load_index(a.loc, token, a.wide_loc), place = at * a.mult + a.offset;
    if (at != (int32_t)at || place < 0 || place >= a.places) return;       /* beyond 32 bits the product could come back into range */
    uint8_t    *out = (uint8_t *)r->out + place * r->out_stride;
    const float inv = rounded(__fdiv_rn(1.0f, rounded(*r->scale)));
#if PIECE == 8
    for (int64_t i = threadIdx.x; i < a.dim / 8; i += blockDim.x) {
        float v[8];
        unpack16(v, ((const uint4 *)x)[i], (const T *)0);
        uint32_t code[8];
        #pragma unroll
        for (int e = 0; e < 8; ++e) code[e] = e4m3_code(rounded(v[e] * inv));
        ((uint2 *)out)[i] = make_uint2(code[0] | code[1] << 8 | code[2] << 16 | code[3] << 24, code[4] | code[5] << 8 | code[6] << 16 | code[7] << 24);
    }
#else
    for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) out[i] = (uint8_t)e4m3_code(rounded(to_f32(x[i]) * inv));
#endif
    pdl_release();
}
