/* What the kernel behind sgk_attention_scheduler_metadata is given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ATTENTION_METADATA_H
#define SGK_ATTENTION_METADATA_H
#include "base/types.h"

struct attention_metadata_args {
    int32_t       *metadata;                                /* [batch + 1] */
    const int32_t *seqused_k;
    int32_t        batch, num_splits;
};

#ifndef __CUDACC__
#include "cuda/kernel.h"
enum { METADATA_BUILDS = 1 };
extern struct metadata_build { sgk_kernel kernel; } attention_metadata_builds[METADATA_BUILDS];

void check_attention_metadata(void);
#endif

#endif
