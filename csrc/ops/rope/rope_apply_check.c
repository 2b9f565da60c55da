#include "check/check.h"
#include "rope.h"

enum { ROWS = 97 };

typedef struct {
    sgk_dtype dtype;
    int64_t   tokens, q_heads, k_heads, head_size, rot_dim;
    bool      interleave, in_place, fused, unaligned;
} apply_case;

static void check_apply(apply_case c)
{
    if (!check_case("apply_rope_pos_ids_cos_sin_cache_%s_%lldx%lld+%lldx%lld_%lld%s%s%s%s", check_dtype(c.dtype), (long long)c.tokens, (long long)c.q_heads,
                    (long long)c.k_heads, (long long)c.head_size, (long long)c.rot_dim, c.interleave ? "_interleave" : "", c.in_place ? "_in_place" : "",
                    c.fused ? "_fused" : "", c.unaligned ? "_unaligned" : "")) return;
    const bool    dense                               = check_benching && c.q_heads == 32;            /* the clock is for tensors without gaps, as an engine's are */
    const int64_t slots                               = 2 * c.tokens + 3;
    check_tensor *(*const inout)(sgk_dtype, int, ...) = dense ? check_inout_dense : check_inout;
    check_tensor *q                                   = c.in_place ? inout(c.dtype, 3, c.tokens, c.q_heads, c.head_size) : check_input(c.dtype, 3, c.tokens, c.q_heads, c.head_size);
    check_tensor *k                                   = c.in_place ? inout(c.dtype, 3, c.tokens, c.k_heads, c.head_size) : check_input(c.dtype, 3, c.tokens, c.k_heads, c.head_size);
    check_tensor *q_rope                              = c.in_place ? q : check_output(c.dtype, 3, c.tokens, c.q_heads, c.head_size);
    check_tensor *k_rope                              = c.in_place ? k : check_output(c.dtype, 3, c.tokens, c.k_heads, c.head_size);
    check_tensor *cache = check_input(SGK_F32, 2, (int64_t)ROWS, c.rot_dim), *pos_ids = check_index(SGK_I64, 0, ROWS - 1, 1, c.tokens);
    check_tensor *v = NULL, *k_buffer = NULL, *v_buffer = NULL, *loc = NULL;
    check_legal(cache, CHECK_SIZE(0));
    check_legal(pos_ids, CHECK_STRIDE);
    if (c.fused) {
        v        = (dense ? check_input_dense : check_input)(c.dtype, 3, c.tokens, c.k_heads, c.head_size);
        k_buffer = inout(c.dtype, 3, slots, c.k_heads, c.head_size), v_buffer = inout(c.dtype, 3, slots, c.k_heads, c.head_size);
        loc = check_index(c.interleave ? SGK_I32 : SGK_I64, 0, 0, 1, c.tokens);
        for (int64_t i = 0; i < c.tokens; ++i) check_set(loc, i, (double)(2 * (c.tokens - i)));
        check_legal(loc, CHECK_STRIDE);
    }
    if (c.unaligned) check_unaligned(k);
    check_switches.keep_arguments = c.in_place;         /* one tensor in two places cannot be broken in one */

    CHECK_CALL(sgk_apply_rope_pos_ids_cos_sin_cache(T(q_rope), T(k_rope), T(k_buffer), T(v_buffer), T(q), T(k), T(v), T(cache), T(pos_ids), T(loc),
                                                    c.interleave, check_exec));
    check_close(q_rope, check_tolerance(c.dtype));
    check_close(k_rope, check_tolerance(c.dtype));
    if (c.fused) {
        check_close(k_buffer, check_tolerance(c.dtype));
        check_equal(v_buffer);
    }
    const double q_bytes = (double)(c.tokens * c.q_heads * c.head_size) * sgk_dtype_size(c.dtype), k_bytes = q_bytes / (double)c.q_heads * (double)c.k_heads;
    check_done(2 * q_bytes + (c.fused ? 5 : 2) * k_bytes + 8 * (double)c.tokens, 0);
}

static void check_apply_refused(double position, double slot, const char *words)
{
    if (!check_case("apply_rope_pos_ids_cos_sin_cache_%g_%g", position, slot)) return;
    check_switches.check_indices  = SGK_ON;
    check_switches.keep_arguments = true;
    const double  positions[] = { 3, position }, slots[] = { 1, slot };
    check_tensor *q = check_inout(SGK_F32, 3, (int64_t)2, (int64_t)2, (int64_t)16), *k = check_inout(SGK_F32, 3, (int64_t)2, (int64_t)1, (int64_t)16);
    check_tensor *v = check_input(SGK_F32, 3, (int64_t)2, (int64_t)1, (int64_t)16), *cache = check_input(SGK_F32, 2, (int64_t)ROWS, (int64_t)16);
    check_tensor *k_buffer = check_inout(SGK_F32, 3, (int64_t)5, (int64_t)1, (int64_t)16), *v_buffer = check_inout(SGK_F32, 3, (int64_t)5, (int64_t)1, (int64_t)16);
    check_tensor *pos_ids = check_values(SGK_I64, positions, 1, (int64_t)2), *loc = check_values(SGK_I64, slots, 1, (int64_t)2);
    CHECK_REFUSED(SGK_BAD_ARG, words, sgk_apply_rope_pos_ids_cos_sin_cache(T(q), T(k), T(k_buffer), T(v_buffer), T(q), T(k), T(v), T(cache), T(pos_ids), T(loc), false, check_exec));
    check_done(0, 0);
}

void check_apply_rope(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (size_t f = 0; f < 3; ++f)
        for (int interleave = 0; interleave < 2; ++interleave) {
            const sgk_dtype t = formats[f];
            const bool      i = interleave;
            check_apply((apply_case){ t, 3, 4, 2, 64, 64, i, false, false, false });
            check_apply((apply_case){ t, 3, 4, 2, 64, 32, i, true, false, false });
            check_apply((apply_case){ t, 3, 3, 2, 64, 64, i, true, true, false });
            check_apply((apply_case){ t, 2, 2, 1, 96, 32, i, false, true, false });
            check_apply((apply_case){ t, 3, 2, 3, 13, 6, i, false, true, false });
            check_apply((apply_case){ t, 3, 4, 2, 64, 64, i, false, false, true });
            check_apply((apply_case){ t, 300, 3, 1, 64, 32, i, true, true, false });
            if (check_on_gpu()) check_apply((apply_case){ t, 1640, 32, 8, 128, 128, i, true, false, false });       /* more than the GPU holds at once */
            if (check_small) continue;
            check_apply((apply_case){ t, 0, 4, 2, 64, 64, i, false, true, false });
            check_apply((apply_case){ t, 3, 2, 2, 32, 0, i, false, false, false });
            check_apply((apply_case){ t, 5, 5, 5, 256, 128, i, true, false, false });
            check_apply((apply_case){ t, 2, 2, 1, 1200, 1100, i, false, true, false });
            check_apply((apply_case){ t, check_int(20, 60), 32, 8, 128, 128, i, true, true, false });
        }
    check_apply_refused(97, 2, "pos_ids has 97 for token 1");
    check_apply_refused(5, 5, "kv_cache_loc has 5 for token 1");
    if (check_benching) {
        check_apply((apply_case){ SGK_BF16, 1, 32, 8, 128, 128, false, true, true, false });
        check_apply((apply_case){ SGK_BF16, 64, 32, 8, 128, 128, false, true, true, false });
        check_apply((apply_case){ SGK_BF16, 8192, 32, 8, 128, 128, false, true, true, false });
    }
}
