/* What rope_norm's kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ROPE_NORM_H
#define SGK_ROPE_NORM_H
#include "base/types.h"

struct qk_norm_rope_args {
    void          *qkv;                                 /* bf16: heads of q, of k, of v */
    const void    *q_weight, *k_weight;                 /* bf16 */
    const int32_t *position_ids;
    int64_t        tokens, qkv_stride, position_stride;        /* in elements */
    int32_t        q_heads, k_heads;
    int32_t        head_dim, rot_dim;                          /* rot_dim is even */
    int32_t        is_neox;                                    /* pairs are (i, i + rot_dim / 2), otherwise (2i, 2i + 1) */
    int32_t        scaled;                                     /* by YaRN: frequencies go from f to f / factor between pair low and pair high */
    float          eps, base, factor, low, high, attention_factor;
    float          step, slope, gain;                          /* the kernels': log2 of f_(i + 1) / f_i, 1 / (high - low), 1 / factor - 1 */
};

#ifndef __CUDACC__
#include <stdbool.h>
#include "cuda/kernel.h"
/* Every build of rope_norm.cu and rope_norm_any.cu, for rope_kernels[]. */
enum { NORM_BUILDS = 12 };
typedef struct {
    sgk_kernel kernel;
    int        dim, lanes, heads;       /* lanes 0: rope_norm_any.cu */
    int64_t    most;                    /* heads of all tokens for which it is good */
} norm_build;
extern norm_build qk_norm_rope_builds[NORM_BUILDS];

void check_qk_norm_rope(void);
#endif

enum { QK_NORM_ROPE_MOST = 256 };                       /* elements of a head */

#endif
