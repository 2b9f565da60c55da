#include <math.h>
#include "attention_merge.h"
#include "check/check.h"

enum layout { GAPS,
              UNALIGNED,
              DENSE };

static void check_merge(bool v2, sgk_dtype dtype, int64_t tokens, int64_t heads, int64_t dim, enum layout layout)
{
    static const char *const words[] = { "", "_unaligned", "_dense" };
    if (!check_case("%s_%s_%lldx%lldx%lld%s", v2 ? "merge_state_v2" : "merge_state", check_dtype(dtype), (long long)tokens, (long long)heads,
                    (long long)dim, words[layout])) return;
    const bool    dense    = layout == DENSE;
    check_tensor *v_a      = (dense ? check_input_dense : check_input)(dtype, 3, tokens, heads, dim);
    check_tensor *v_b      = (dense ? check_input_dense : check_input)(dtype, 3, tokens, heads, dim);
    check_tensor *v_merged = (dense ? check_output_dense : check_output)(dtype, 3, tokens, heads, dim);
    check_tensor *s_a      = check_input(SGK_F32, 2, tokens, heads);
    check_tensor *s_b      = check_input(SGK_F32, 2, tokens, heads);
    check_tensor *s_merged = check_output(SGK_F32, 2, tokens, heads);
    if (layout == UNALIGNED) check_unaligned(v_b);
    check_tensor *const sums[] = { s_a, s_b };
    for (int k = 0; k < 2; ++k) {
        check_legal(sums[k], CHECK_STRIDE);
        for (int64_t i = 0; i < tokens * heads; ++i) check_set(sums[k], i, 3 * check_normal());
    }
    check_legal(s_merged, CHECK_STRIDE);

    if (v2) CHECK_CALL(sgk_merge_state_v2(T(v_merged), T(s_merged), T(v_a), T(s_a), T(v_b), T(s_b), check_exec));
    else CHECK_CALL(sgk_merge_state(T(v_merged), T(s_merged), T(v_a), T(s_a), T(v_b), T(s_b), check_exec));
    check_close(v_merged, check_tolerance(dtype));
    check_max(s_merged, 4e-5);             /* one unit in the last place of the largest inputs; a sum may come out near 0 */

    const double rows = (double)tokens * (double)heads, n = rows * (double)dim;
    check_done(3 * n * sgk_dtype_size(dtype) + 12 * rows, 3 * n);
}

/* Empty sums on one side, on both, and infinities of either sign; the values of an empty side are NaN and must not show. */
static void check_merge_edges(bool v2, sgk_dtype dtype)
{
    static const double sa[] = { -INFINITY, 2, -INFINITY, INFINITY, 100, -1000, NAN };
    static const double sb[] = { 1, -INFINITY, -INFINITY, -INFINITY, -100, 1000, 1 };
    enum { COUNT = sizeof sa / sizeof *sa,
           DIM   = 24 };
    if (!check_case("%s_%s_edges", v2 ? "merge_state_v2" : "merge_state", check_dtype(dtype))) return;
    check_tensor *v_a      = check_input(dtype, 3, (int64_t)COUNT, (int64_t)1, (int64_t)DIM);
    check_tensor *v_b      = check_input(dtype, 3, (int64_t)COUNT, (int64_t)1, (int64_t)DIM);
    check_tensor *v_merged = check_output(dtype, 3, (int64_t)COUNT, (int64_t)1, (int64_t)DIM);
    check_tensor *s_a      = check_values(SGK_F32, sa, 2, (int64_t)COUNT, (int64_t)1);
    check_tensor *s_b      = check_values(SGK_F32, sb, 2, (int64_t)COUNT, (int64_t)1);
    check_tensor *s_merged = check_output(SGK_F32, 2, (int64_t)COUNT, (int64_t)1);
    for (int i = 0; i < COUNT; ++i)
        for (int d = 0; d < DIM; ++d) {
            if (isinf(sa[i])) check_set(v_a, i * DIM + d, NAN);
            if (isinf(sb[i])) check_set(v_b, i * DIM + d, NAN);
        }
    check_switches.keep_arguments = true;

    if (v2) CHECK_CALL(sgk_merge_state_v2(T(v_merged), T(s_merged), T(v_a), T(s_a), T(v_b), T(s_b), check_exec));
    else CHECK_CALL(sgk_merge_state(T(v_merged), T(s_merged), T(v_a), T(s_a), T(v_b), T(s_b), check_exec));
    check_close(v_merged, check_tolerance(dtype));
    for (int d = 0; d < DIM; ++d) {
        check_that(check_result_of(v_merged, d) == check_get(v_b, d), "v_merged is %g, expected v_b, %g", check_result_of(v_merged, d), check_get(v_b, d));
        check_that(check_result_of(v_merged, 2 * DIM + d) == 0, "v_merged of two empty sums is %g, expected 0", check_result_of(v_merged, 2 * DIM + d));
    }
    check_that(check_result_of(s_merged, 0) == 1, "s_merged is %g, expected 1", check_result_of(s_merged, 0));
    for (int i = 2; i < 4; ++i)
        check_that(check_result_of(s_merged, i) == -INFINITY, "s_merged of two empty sums is %g, expected minus infinity", check_result_of(s_merged, i));
    check_that(isnan(check_result_of(s_merged, COUNT - 1)), "s_merged is %g, expected NaN", check_result_of(s_merged, COUNT - 1));
    check_done(0, 0);
}

void check_merge_state(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (size_t f = 0; f < 3; ++f)
        for (int v2 = 0; v2 < 2; ++v2) {
            const sgk_dtype t = formats[f];
            check_merge(v2, t, 3, 2, 64, GAPS);
            check_merge(v2, t, 2, 3, 21, GAPS);
            check_merge(v2, t, 3, 2, 64, UNALIGNED);
            check_merge(v2, t, 5, 3, 64, DENSE);
            check_merge_edges(v2, t);
            if (check_small) continue;
            check_merge(v2, t, 0, 2, 64, GAPS);
            check_merge(v2, t, 2, 2, 0, GAPS);
            check_merge(v2, t, 5, 7, 128, GAPS);
            check_merge(v2, t, 9, 1, 512, GAPS);
            check_merge(v2, t, 1, 1, 4096, GAPS);
            check_merge(v2, t, check_int(20, 60), 16, 192, GAPS);
            sgk_cpu_cache(1);                                   /* written around the caches */
            check_merge(v2, t, check_int(20, 60), 3, 128, DENSE);
            check_merge(v2, t, 9, 2, 96, DENSE);
            sgk_cpu_cache(0);
        }
    if (check_benching) {
        check_merge(true, SGK_BF16, 64, 32, 128, DENSE);
        check_merge(true, SGK_BF16, 16384, 32, 128, DENSE);
    }
}
