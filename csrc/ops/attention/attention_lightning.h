/* What one step of lightning attention is given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ATTENTION_LIGHTNING_H
#define SGK_ATTENTION_LIGHTNING_H
#include "base/types.h"

struct lightning_args {
    void        *output;                                    /* [batch][heads][dim_v], like q, k, v of `dtype`, dense */
    float       *new_kv;                                    /* [batch][heads][dim][dim_v] */
    const void  *q, *k, *v;
    const float *past_kv, *slope;                           /* slope: [heads] */
    int64_t      items;                                     /* batch * heads */
    int32_t      heads, dim, dim_v;
    sgk_dtype    dtype;
};

#ifndef __CUDACC__
#include "cuda/kernel.h"
enum { LIGHTNING_BUILDS = 3 };
extern struct lightning_build {
    sgk_kernel kernel;
    sgk_dtype  dtype;
} lightning_builds[LIGHTNING_BUILDS];

void check_attention_lightning(void);
#endif

#endif
