/*
 * Packs weights of four bits: a thread a byte of the result, which is two columns of one row of K, or what belongs to a group.
 */
#include "gemm_packed.cuh"
#include "launch.cuh"

#define THREADS 256

extern "C" __global__ __launch_bounds__(THREADS) void pack_int4(const __grid_constant__ pack_int4_args a)
{
    pdl_wait();
    const int64_t blocks = a.columns / PACKED_BLOCK, groups = a.depth / a.group, part = int4_part(a.group), id = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int64_t c = id % 16, k = id / 16 % a.depth, block = id / 16 / a.depth, e = block / blocks, n = block % blocks * PACKED_BLOCK + c;
    if (block < a.batch * blocks) {
        uint8_t *const to                                                        = a.packed + block * (a.depth / part) * int4_part_bytes(a.group);
        to[packed_element_at(WEIGHT_INT4, k, c, PACKED_BLOCK, a.depth, a.group)] = (uint8_t)(int4_weight(&a, e, k, n) | int4_weight(&a, e, k, n + 16) << 4);
        for (int64_t h = 0; h < 32; h += 16) {
            const int64_t g    = k / a.group;
            const int     zero = int4_zero(&a, e, g, n + h);
            if (k % a.group == 0) {
                const int64_t at = (block * groups + g) * PACKED_BLOCK + c + h, from = (e * groups + g) * a.columns + n + h;
                a.packed_zeros[at]  = (int8_t)zero;
                a.packed_scales[at] = a.scales_dtype == SGK_F32 ? ((const float *)a.scales)[from] : a.scales_dtype == SGK_F16 ? to_f32(((const f16 *)a.scales)[from])
                                                                                                                              : to_f32(((const bf16 *)a.scales)[from]);
            }
            if (k % part == 0) {
                int32_t sum = 0;
                for (int64_t i = 0; i < part; ++i) sum += int4_weight(&a, e, k + i, n + h) - zero;
                uint8_t *const at = to + k / part * int4_part_bytes(a.group) + 16 * part + (c + h) * 4;
                for (int i = 0; i < 4; ++i) at[i] = (uint8_t)((uint32_t)sum >> (8 * i));
            }
        }
    }
    pdl_release();
}
