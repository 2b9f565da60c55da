#include "check/check.h"
#include "rope_norm.h"

static void check_case_of(int64_t tokens, int64_t q_heads, int64_t k_heads, int64_t v_heads, int64_t head_dim, int64_t rotary_dim, bool neox, double factor, bool aligned)
{
    if (!check_case("fused_qk_norm_rope_%lldx%lld+%lld+%lldx%lld_%lld%s%s%s", (long long)tokens, (long long)q_heads, (long long)k_heads, (long long)v_heads,
                    (long long)head_dim, (long long)rotary_dim, neox ? "_neox" : "", factor == 1 ? "" : "_yarn", aligned ? "" : "_unaligned")) return;
    check_tensor *qkv      = (tokens >= 64 && check_benching ? check_inout_dense : check_inout)(SGK_BF16, 2, tokens, (q_heads + k_heads + v_heads) * head_dim);
    check_tensor *q_weight = check_input(SGK_BF16, 1, head_dim), *k_weight = check_input(SGK_BF16, 1, head_dim);
    check_tensor *position_ids = check_index(SGK_I32, 0, 9000, 1, tokens);
    check_legal(position_ids, CHECK_STRIDE);
    if (!aligned) check_unaligned(qkv);
    const sgk_qk_norm_rope_options options = {
        .size             = sizeof options,
        .num_heads_q      = q_heads,
        .num_heads_k      = k_heads,
        .num_heads_v      = v_heads,
        .head_dim         = head_dim,
        .rotary_dim       = rotary_dim,
        .eps              = 1e-6,
        .base             = 10000,
        .is_neox          = neox,
        .factor           = factor,
        .low              = 5,
        .high             = factor == 2 ? 5 : 20,
        .attention_factor = factor == 1 ? 1 : 1.2,
    };
    CHECK_CALL(sgk_fused_qk_norm_rope(T(qkv), T(q_weight), T(k_weight), T(position_ids), &options, check_exec));
    check_close(qkv, check_tolerance(SGK_BF16));
    check_done(4 * (double)(tokens * (q_heads + k_heads) * head_dim), 0);
}

void check_qk_norm_rope(void)
{
    for (int64_t dim = 64; dim <= 256; dim *= 2)
        for (int neox = 0; neox < 2; ++neox) {
            check_case_of(3, 4, 2, 2, dim, dim, neox, 1, true);
            check_case_of(2, 3, 1, 0, dim, dim / 2, neox, 4, true);
            check_case_of(2, 2, 1, 1, dim, 3 * (dim / 16), neox, 2, false);
            check_case_of(300, 5, 1, 1, dim, dim / 2, neox, 4, true);
            check_case_of(700, 5, 1, 1, dim, dim / 2, neox, 4, true);       /* so many heads that a thread takes two */
            if (check_on_gpu() && neox) check_case_of(1640, 32, 8, 1, dim, dim, neox, 1, true);     /* or four */
            if (check_small) continue;
            check_case_of(0, 2, 2, 2, dim, dim, neox, 1, true);
            check_case_of(5, 9, 0, 1, dim, dim, neox, 4, true);
            check_case_of(check_int(20, 60), 32, 8, 8, dim, dim, neox, 1, true);
        }
    if (check_benching) {
        check_case_of(1, 32, 8, 8, 128, 128, true, 1, true);
        check_case_of(64, 32, 8, 8, 128, 128, true, 1, true);
        check_case_of(8192, 32, 8, 8, 128, 128, true, 1, true);
    }
}
