/* Among four neighbouring lanes of a warp, the quads that have the columns of a row of sums (wgmma.cuh). */
#pragma once
#include "types.cuh"

/* Word t of lane s becomes word s of lane t, t being the lane's number in its quad. */
DEVICE uint4 transpose4(uint4 w, int t)
{
    const bool     odd = t & 1, high = t & 2;
    const uint32_t p = __shfl_xor_sync(~0u, odd ? w.x : w.y, 1), q = __shfl_xor_sync(~0u, odd ? w.z : w.w, 1);
    const uint32_t a0 = odd ? p : w.x, a1 = odd ? w.y : p, b0 = odd ? q : w.z, b1 = odd ? w.w : q;
    const uint32_t r = __shfl_xor_sync(~0u, high ? a0 : b0, 2), s = __shfl_xor_sync(~0u, high ? a1 : b1, 2);
    return high ? make_uint4(r, s, b0, b1) : make_uint4(a0, a1, r, s);
}
