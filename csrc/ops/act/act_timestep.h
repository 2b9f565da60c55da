/* What the timestep embedding is given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ACT_TIMESTEP_H
#define SGK_ACT_TIMESTEP_H
#include "base/types.h"

struct timestep_args {
    void       *output;
    const void *input;
    int64_t     rows, half;                             /* frequencies: half of output's columns */
    int64_t     output_stride, input_stride;            /* in elements */
    double      step, scale;                            /* frequency i is e^(step i) */
    sgk_dtype   dtype, input_dtype;
    int32_t     cos_first;
};

/* A block of the kernel has so many frequencies and rows. */
enum { TIMESTEP_COLUMNS = 128,
       TIMESTEP_ROWS    = 8 };

#ifndef __CUDACC__
#include "cuda/kernel.h"
/* Every build of act_timestep.cu, for act_kernels[]. */
enum { TIMESTEP_BUILDS = 3 };
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
} timestep_build;
extern timestep_build timestep_builds[TIMESTEP_BUILDS];

void check_timestep(void);
#endif

#endif
