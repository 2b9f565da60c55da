#include "check/check.h"

static void check_rmsnorm(sgk_dtype dtype, int64_t rows, int64_t dim, bool aligned)
{
    if (!check_case("rmsnorm_%s_%lldx%lld%s", check_dtype(dtype), (long long)rows, (long long)dim, aligned ? "" : "_unaligned")) return;
    check_tensor *x   = check_input(dtype, 2, rows, dim);
    check_tensor *w   = check_input(dtype, 1, dim);
    check_tensor *out = check_output(dtype, 2, rows, dim);
    if (!aligned) check_unaligned(x);

    CHECK_CALL(sgk_rmsnorm(T(out), T(x), T(w), 1e-6, check_exec));
    check_close(out, check_tolerance(dtype));

    const double n = (double)rows * (double)dim;
    check_done(2 * n * sgk_dtype_size(dtype), 4 * n);
}

/* output may be input itself */
static void check_rmsnorm_in_place(sgk_dtype dtype, int64_t rows, int64_t dim)
{
    if (!check_case("rmsnorm_%s_%lldx%lld_in_place", check_dtype(dtype), (long long)rows, (long long)dim)) return;
    check_tensor *x = check_inout(dtype, 2, rows, dim);
    check_tensor *w = check_input(dtype, 1, dim);

    CHECK_CALL(sgk_rmsnorm(T(x), T(x), T(w), 1e-6, check_exec));
    check_close(x, check_tolerance(dtype));
    check_done(0, 0);
}

static void check_fused_add_rmsnorm(sgk_dtype dtype, int64_t rows, int64_t dim, bool aligned)
{
    if (!check_case("fused_add_rmsnorm_%s_%lldx%lld%s", check_dtype(dtype), (long long)rows, (long long)dim, aligned ? "" : "_unaligned")) return;
    check_tensor *x = check_inout(dtype, 2, rows, dim);
    check_tensor *r = check_inout(dtype, 2, rows, dim);
    check_tensor *w = check_input(dtype, 1, dim);
    if (!aligned) check_unaligned(r);

    CHECK_CALL(sgk_fused_add_rmsnorm(T(x), T(r), T(w), 1e-6, check_exec));
    check_close(x, check_tolerance(dtype));
    check_close(r, check_tolerance(dtype));

    const double n = (double)rows * (double)dim;
    check_done(4 * n * sgk_dtype_size(dtype), 6 * n);
}

void check_norm(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    static const int64_t pieces[] = { 128, 256, 512, 1024, 2048, 4096, 4097 };         /* 16 bytes each: a row that fills each build, and one too long */
    static const int64_t some[] = { 0, 1, 7, 8, 64, 111, 128, 1000, 4096, 7168, 40000, 65536 };
    static const int64_t few[]  = { 1, 111 };
    const int64_t *dims = check_small ? few : some;
    const size_t count = check_small ? sizeof few / sizeof *few : sizeof some / sizeof *some;

    for (size_t f = 0; f < 3; ++f) {
        for (size_t i = 0; i < sizeof pieces / sizeof *pieces; ++i) {
            const int64_t dim = pieces[i] * 16 / sgk_dtype_size(formats[f]);
            check_rmsnorm(formats[f], 2, dim, true);
            check_fused_add_rmsnorm(formats[f], 2, dim, true);
        }
        for (size_t i = 0; i < count; ++i) {
            check_rmsnorm(formats[f], check_small ? 2 : check_int(1, 5), dims[i], true);
            check_fused_add_rmsnorm(formats[f], check_small ? 2 : check_int(1, 5), dims[i], true);
        }
        check_rmsnorm(formats[f], 0, 64, true);
        check_rmsnorm(formats[f], 3, 128, false);
        check_fused_add_rmsnorm(formats[f], 3, 128, false);
        check_rmsnorm_in_place(formats[f], 3, 200);
    }
    if (check_benching) {
        check_rmsnorm(SGK_BF16, 64, 4096, true);
        check_rmsnorm(SGK_BF16, 16384, 4096, true);
        check_fused_add_rmsnorm(SGK_BF16, 64, 4096, true);
        check_fused_add_rmsnorm(SGK_BF16, 16384, 4096, true);
    }
}
