/* n / by for n and by under 2^31: an index must not cost a division. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_DIVISOR_H
#define SGK_DIVISOR_H
#include "base/types.h"

struct sgk_divisor {
    uint32_t by, factor, shift;
};

#ifdef __CUDACC__
static __device__ __forceinline__ uint32_t divide(uint32_t n, const sgk_divisor &d) { return (__umulhi(n, d.factor) + n) >> d.shift; }
#else
static inline struct sgk_divisor sgk_divisor_of(int64_t by)
{
    struct sgk_divisor d = { (uint32_t)by, 0, 0 };
    while ((int64_t)1 << d.shift < by) ++d.shift;
    d.factor = (uint32_t)(((((uint64_t)1 << d.shift) - (uint64_t)by) << 32) / (uint64_t)by + 1);
    return d;
}
#endif

#endif
