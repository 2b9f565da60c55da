/* What lies between the products of qkv_proj_with_rope. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_GEMM_MLA_H
#define SGK_GEMM_MLA_H
#include "base/types.h"

/*
 * The first product's row of a token is [q_rank | kv_rank | rope]. The first part is normalised where it lies, the second on its way to k_input,
 * whose row is [kv_rank | rope]; the third is turned by the token's position on its way there. The second product's row has [nope | rope] for
 * each head, and the rope of each is turned on its way to q_input, whose rows are [kv_rank | rope] for each head.
 */
struct mla_args {
    void          *a;
    const void    *q;
    void          *q_input, *k_input;
    const void    *q_weight, *kv_weight, *cos_sin;      /* cos_sin: a row has rope / 2 cosines, then as many sines */
    const int64_t *positions;
    int64_t        tokens, heads, q_rank, kv_rank, nope, rope;
    int64_t        q_token, q_head, k_token, cos_sin_stride;        /* in elements */
    float          eps;
    sgk_dtype      dtype;
};

#endif
