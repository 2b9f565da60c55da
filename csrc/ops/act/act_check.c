#include <math.h>
#include "check/check.h"

static void check_silu_and_mul(sgk_dtype dtype, int64_t rows, int64_t dim, bool aligned)
{
    if (!check_case("silu_and_mul_%s_%lldx%lld%s", check_dtype(dtype), (long long)rows, (long long)dim, aligned ? "" : "_unaligned")) return;
    check_tensor *x   = check_input(dtype, 2, rows, 2 * dim);
    check_tensor *out = check_output(dtype, 2, rows, dim);
    if (!aligned) check_unaligned(out);

    CHECK_CALL(sgk_silu_and_mul(T(out), T(x), check_exec));
    check_close(out, check_tolerance(dtype));

    const double n = (double)rows * (double)dim;
    check_done(3 * n * sgk_dtype_size(dtype), 5 * n);
}

/* any number of leading dimensions */
static void check_silu_and_mul_ranks(sgk_dtype dtype)
{
    if (check_case("silu_and_mul_%s_40", check_dtype(dtype))) {
        check_tensor *x   = check_input(dtype, 1, (int64_t)80);
        check_tensor *out = check_output(dtype, 1, (int64_t)40);
        CHECK_CALL(sgk_silu_and_mul(T(out), T(x), check_exec));
        check_close(out, check_tolerance(dtype));
        check_done(0, 0);
    }
    if (check_case("silu_and_mul_%s_2x3x5x24", check_dtype(dtype))) {
        check_tensor *x   = check_input(dtype, 4, (int64_t)2, (int64_t)3, (int64_t)5, (int64_t)48);
        check_tensor *out = check_output(dtype, 4, (int64_t)2, (int64_t)3, (int64_t)5, (int64_t)24);
        CHECK_CALL(sgk_silu_and_mul(T(out), T(x), check_exec));
        check_close(out, check_tolerance(dtype));
        check_done(0, 0);
    }
}

/* Where e^-a overflows, where it vanishes, and what is no number. The last gate is 1, so silu itself shows. */
static void check_silu_and_mul_edges(sgk_dtype dtype)
{
    static const double edges[] = { 0, -0.0, 1, -1, 20, -20, 87, -87, 89, -89, 104, -104, 60000, -60000, INFINITY, -INFINITY, NAN };
    enum { COUNT = sizeof edges / sizeof *edges };
    if (!check_case("silu_and_mul_%s_edges", check_dtype(dtype))) return;
    check_tensor *x   = check_input(dtype, 2, (int64_t)1, (int64_t)(2 * COUNT));
    check_tensor *out = check_output(dtype, 2, (int64_t)1, (int64_t)COUNT);
    for (int i = 0; i < COUNT; ++i) check_set(x, i, edges[i]), check_set(x, COUNT + i, 1);

    CHECK_CALL(sgk_silu_and_mul(T(out), T(x), check_exec));
    check_close(out, check_tolerance(dtype));
    check_that(check_result_of(out, 15) == 0, "silu(-infinity) is %g, expected 0", check_result_of(out, 15));
    check_that(isnan(check_result_of(out, 16)), "silu(NaN) is %g, expected NaN", check_result_of(out, 16));
    check_done(0, 0);
}

void check_act(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    static const int64_t some[] = { 0, 1, 7, 8, 15, 64, 100, 128, 1000, 1024, 2048, 4095, 4096, 4104, 11008, 14336, 16384 };
    static const int64_t few[]  = { 1, 8, 31, 128, 4104 };
    const int64_t *dims = check_small ? few : some;
    const size_t count = check_small ? sizeof few / sizeof *few : sizeof some / sizeof *some;

    for (size_t f = 0; f < 3; ++f) {
        for (size_t i = 0; i < count; ++i) check_silu_and_mul(formats[f], check_small ? 2 : check_int(1, 7), dims[i], true);
        check_silu_and_mul(formats[f], 0, 64, true);
        check_silu_and_mul(formats[f], 3, 128, false);
        check_silu_and_mul(formats[f], check_small ? 40 : 300, 16, true);      /* several rows in a block of the GPU */
        check_silu_and_mul_ranks(formats[f]);
        check_silu_and_mul_edges(formats[f]);
    }
    if (check_benching) {
        check_silu_and_mul(SGK_BF16, 64, 4096, true);
        check_silu_and_mul(SGK_BF16, 16384, 4096, true);
    }
}
