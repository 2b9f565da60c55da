/* What rope_apply's kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ROPE_APPLY_H
#define SGK_ROPE_APPLY_H
#include "base/types.h"

/* Heads of one tensor; data is NULL where there is none. Strides in elements. */
struct apply_rope_heads {
    void   *data;
    int64_t row_stride, head_stride;
};

struct apply_rope_args {
    struct apply_rope_heads q, k, v, q_rope, k_rope, k_buffer, v_buffer;
    const float            *cos_sin_cache;
    const void             *pos_ids, *kv_cache_loc;
    int64_t                 tokens, head_size;
    int64_t                 cache_stride, pos_stride, loc_stride;  /* in elements */
    int64_t                 max_position, slots;                   /* rows of the cache, and of k_buffer and v_buffer */
    int32_t                 q_heads, k_heads;                      /* v has as many as k */
    int32_t                 rot_dim;                               /* even; the cache has rot_dim / 2 cosines, then as many sines */
    int32_t                 rest;                                  /* elements behind them that are copied; 0 where they already are in their place */
    int32_t                 interleave;                            /* pairs are (2i, 2i + 1), otherwise (i, i + rot_dim / 2) */
    int32_t                 pos_wide, loc_wide;                    /* i64, otherwise i32 */
    sgk_dtype               dtype;
};

#ifndef __CUDACC__
#include "cuda/kernel.h"
/* Every build of rope_apply.cu, for rope_kernels[]. */
enum { APPLY_BUILDS = 9 };
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        pairing;
} apply_build;
extern apply_build apply_rope_builds[APPLY_BUILDS];

void check_apply_rope(void);
#endif

#endif
