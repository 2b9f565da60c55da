#include "check/check.h"

static void check_shuffle_rows(sgk_dtype dtype, sgk_dtype index, int64_t rows, int64_t sources, int64_t dim, bool dense)
{
    if (!check_case("shuffle_rows_%s_%s_%lldx%lld_of_%lld%s", check_dtype(dtype), check_dtype(index), (long long)rows, (long long)dim, (long long)sources,
                    dense ? "_dense" : "")) return;
    check_tensor *output = (dense ? check_output_dense : check_output)(dtype, 2, rows, dim);
    check_tensor *input  = (dense ? check_input_dense : check_input)(dtype, 2, sources, dim);
    check_tensor *map    = check_index(index, 0, sources - 1, 1, rows);
    check_legal(input, CHECK_SIZE(0));                              /* any number of sources that holds the map's */

    CHECK_CALL(sgk_shuffle_rows(T(output), T(input), T(map), check_exec));
    check_equal(output);
    check_done((double)rows * (2 * (double)dim * sgk_dtype_size(dtype) + sgk_dtype_size(index)), 0);
}

static void check_apply_shuffle_mul_sum(sgk_dtype dtype, sgk_dtype index, int64_t tokens, int64_t terms, int64_t dim, bool factors)
{
    if (!check_case("apply_shuffle_mul_sum_%s_%s_%lldx%lldx%lld%s", check_dtype(dtype), check_dtype(index), (long long)tokens, (long long)terms, (long long)dim,
                    factors ? "_factors" : "")) return;
    const int64_t pairs  = tokens * terms;
    check_tensor *output = (dim % 512 ? check_output : check_output_dense)(dtype, 2, tokens, dim), *input = check_input(dtype, 2, pairs + 2, dim);
    check_tensor *permutation = check_index(index, 0, pairs + 1, 1, pairs), *weights = factors ? check_input(dtype, 1, pairs) : NULL;
    check_legal(input, CHECK_SIZE(0));
    check_legal(output, CHECK_SIZE(0));                             /* what does not divide is refused: see below */
    check_legal(permutation, CHECK_SIZE(0));
    if (weights) check_legal(weights, CHECK_NULL);

    CHECK_CALL(sgk_apply_shuffle_mul_sum(T(output), T(input), T(permutation), T(weights), check_exec));
    check_close(output, 2 * check_tolerance(dtype));
    check_done((double)dim * (double)(pairs + tokens) * sgk_dtype_size(dtype), 2 * (double)pairs * (double)dim);
}

static void check_moe_sum(bool scaled, sgk_dtype dtype, int64_t tokens, int64_t terms, int64_t dim, bool aligned)
{
    if (!check_case("%s_%s_%lldx%lldx%lld%s", scaled ? "moe_sum_reduce" : "moe_sum", check_dtype(dtype), (long long)tokens, (long long)terms, (long long)dim,
                    aligned ? "" : "_unaligned")) return;
    check_tensor *output = (dim % 512 ? check_output : check_output_dense)(dtype, 2, tokens, dim), *input = check_input(dtype, 3, tokens, terms, dim);
    if (!aligned) check_unaligned(input);
    check_legal(input, CHECK_SIZE(1));                              /* any number of terms */

    CHECK_CALL(scaled ? sgk_moe_sum_reduce(T(output), T(input), 2.5, check_exec) : sgk_moe_sum(T(output), T(input), check_exec));
    check_close(output, 2 * check_tolerance(dtype));
    check_done((double)tokens * (double)((terms + 1) * dim) * sgk_dtype_size(dtype), (double)(tokens * terms * dim));
}

static void check_refused(void)
{
    if (check_case("apply_shuffle_mul_sum_uneven")) {
        check_tensor *output = check_output(SGK_F32, 2, (int64_t)3, (int64_t)8), *input = check_input(SGK_F32, 2, (int64_t)7, (int64_t)8);
        check_tensor *permutation = check_index(SGK_I32, 0, 6, 1, (int64_t)7);
        CHECK_REFUSED(SGK_BAD_ARG, "permutation has size 7, expected a multiple of the 3 rows",
                      sgk_apply_shuffle_mul_sum(T(output), T(input), T(permutation), NULL, check_exec));
        check_done(0, 0);
    }
    if (check_case("apply_shuffle_mul_sum_factors_size")) {
        check_tensor *output = check_output(SGK_F32, 2, (int64_t)3, (int64_t)8), *input = check_input(SGK_F32, 2, (int64_t)6, (int64_t)8);
        check_tensor *permutation = check_index(SGK_I32, 0, 5, 1, (int64_t)6), *factors = check_input(SGK_F32, 1, (int64_t)3);
        CHECK_REFUSED(SGK_BAD_ARG, "factors has size 3", sgk_apply_shuffle_mul_sum(T(output), T(input), T(permutation), T(factors), check_exec));
        check_done(0, 0);
    }
}

/* Indices outside are refused; on a GPU where it was asked to look. */
static void check_outside(int64_t bad)
{
    if (check_case("shuffle_rows_outside_%lld", (long long)bad)) {
        check_tensor *output = check_inout(SGK_F32, 2, (int64_t)3, (int64_t)8), *input = check_input(SGK_F32, 2, (int64_t)4, (int64_t)8);
        check_tensor *map = check_index(SGK_I64, 0, 3, 1, (int64_t)3);
        check_set(map, 1, (double)bad);
        check_switches.check_indices = SGK_ON;
        CHECK_REFUSED(SGK_BAD_ARG, "dst2src_map[1] is", sgk_shuffle_rows(T(output), T(input), T(map), check_exec));
        check_done(0, 0);
    }
    if (check_case("apply_shuffle_mul_sum_outside_%lld", (long long)bad)) {
        check_tensor *output = check_output(SGK_F32, 2, (int64_t)3, (int64_t)8), *input = check_input(SGK_F32, 2, (int64_t)4, (int64_t)8);
        check_tensor *permutation = check_index(SGK_I64, 0, 3, 1, (int64_t)6);
        check_set(permutation, 1, (double)bad);
        check_switches.check_indices = SGK_ON;
        CHECK_REFUSED(SGK_BAD_ARG, "permutation[1] is", sgk_apply_shuffle_mul_sum(T(output), T(input), T(permutation), NULL, check_exec));
        check_done(0, 0);
    }
}

void check_moe(void)
{
    static const sgk_dtype copied[] = { SGK_F32, SGK_F16, SGK_BF16, SGK_E4M3, SGK_U8 }, summed[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (size_t f = 0; f < sizeof copied / sizeof *copied; ++f) {
        check_shuffle_rows(copied[f], SGK_I32, check_small ? 5 : check_int(1, 300), 37, 256, false);
        check_shuffle_rows(copied[f], SGK_I64, 9, 4, 15, false);
        check_shuffle_rows(copied[f], SGK_I32, 6, 3, 15, true);
        check_shuffle_rows(copied[f], SGK_I32, 3, 5, 4128, false);
        check_shuffle_rows(copied[f], SGK_I32, 1, 1, 1, false);
    }
    check_shuffle_rows(SGK_BF16, SGK_I32, 0, 4, 64, false);

    static const int64_t some[] = { 1, 2, 3, 4, 6, 8, 9, 17 }, few[] = { 1, 8, 9 };
    const size_t         count = check_small ? sizeof few / sizeof *few : sizeof some / sizeof *some;
    for (size_t f = 0; f < sizeof summed / sizeof *summed; ++f) {
        const sgk_dtype t = summed[f];
        for (size_t i = 0; i < count; ++i) {
            const int64_t terms = check_small ? few[i] : some[i];
            check_apply_shuffle_mul_sum(t, i % 2 ? SGK_I64 : SGK_I32, check_int(1, 9), terms, 64 + 8 * (int64_t)i, i % 3 != 0);
            check_moe_sum(false, t, check_int(1, 9), terms, 1032, true);
            check_moe_sum(true, t, check_int(1, 9), terms, 40, true);
        }
        check_apply_shuffle_mul_sum(t, SGK_I32, 4, 3, 33, true);
        check_apply_shuffle_mul_sum(t, SGK_I32, 4, 0, 33, false);
        check_apply_shuffle_mul_sum(t, SGK_I32, 0, 3, 32, true);
        check_apply_shuffle_mul_sum(t, SGK_I32, 2, 8, check_small ? 2056 : 7168, true);
        check_moe_sum(false, t, 5, 2, 31, true);
        check_moe_sum(true, t, 3, 8, check_small ? 2056 : 7168, true);
        check_moe_sum(true, t, 2, 8, 64, false);
        check_moe_sum(true, t, check_small ? 40 : 300, 3, 24, true);    /* several tokens in a block of the GPU; 8 columns behind the last 16 */
        check_moe_sum(true, t, 0, 8, 64, true);
        check_moe_sum(true, t, 3, 0, 64, true);
    }
    /* Outputs written around the caches, and inputs that do not stay in them. */
    sgk_cpu_cache(1);
    for (size_t f = 0; f < sizeof summed / sizeof *summed; ++f) {
        check_apply_shuffle_mul_sum(summed[f], SGK_I32, 5, 3, 1024, true);
        check_moe_sum(false, summed[f], 5, 3, 1024, true);
        check_moe_sum(true, summed[f], 3, 8, 1536, true);
        check_moe_sum(false, summed[f], 3, 5, 1100, true);
        check_moe_sum(true, summed[f], 3, 1, 136, true);
        if (!check_small) check_moe_sum(true, summed[f], 3, 4, 5240, true);
        check_moe_sum(false, summed[f], 7, 2, 100, true);
        check_shuffle_rows(summed[f], SGK_I32, 6, 4, 160, true);
    }
    sgk_cpu_cache(0);
    check_refused();
    check_outside(4);
    check_outside(-1);
    check_outside((int64_t)1 << 40);
    if (check_benching) {
        check_shuffle_rows(SGK_BF16, SGK_I32, 16384, 8192, 4096, true);
        check_apply_shuffle_mul_sum(SGK_BF16, SGK_I32, 64, 8, 7168, true);
        check_apply_shuffle_mul_sum(SGK_BF16, SGK_I32, 2048, 8, 7168, true);
        check_moe_sum(false, SGK_BF16, 2048, 8, 4096, true);
        check_moe_sum(true, SGK_BF16, 64, 8, 7168, true);
        check_moe_sum(true, SGK_BF16, 2048, 8, 7168, true);
    }
}
