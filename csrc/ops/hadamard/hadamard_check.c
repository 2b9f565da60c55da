#include "hadamard.h"
#include <math.h>
#include "check/check.h"

static const char *const names[]  = { "fast_hadamard_transform", "fast_hadamard_transform_12N", "fast_hadamard_transform_20N", "fast_hadamard_transform_28N",
                                      "fast_hadamard_transform_40N" };
static const int         orders[] = { 1, 12, 20, 28, 40 };

typedef enum { GAPS,
               UNALIGNED,
               DENSE } layout;
static const char *const layout_names[] = { "", "_unaligned", "_dense" };

static void check_transform(int which, sgk_dtype dtype, int64_t rows, int64_t dim, layout how)
{
    if (!check_case("%s_%s_%lldx%lld%s", names[which], check_dtype(dtype), (long long)rows, (long long)dim, layout_names[how])) return;
    const int64_t some = rows > 0;
    check_tensor *x    = how == DENSE ? check_input_dense(dtype, 3, some, rows, dim) : check_input(dtype, 3, some, rows, dim);
    check_tensor *out  = how == DENSE ? check_output_dense(dtype, 3, some, rows, dim) : check_output(dtype, 3, some, rows, dim);
    if (how == UNALIGNED) check_unaligned(x), check_unaligned(out);
    CHECK_CALL(sgk_hadamard_transform(T(out), T(x), orders[which], 1 / sqrt((double)(dim > 0 ? dim : 1)), check_exec));
    check_close(out, check_tolerance(dtype));
    int log2 = 0;
    while ((int64_t)orders[which] << log2 < dim) ++log2;
    check_done(2.0 * (double)(rows * dim) * sgk_dtype_size(dtype), (double)(rows * dim) * log2);
}

/* The matrix itself, as the transform of the identity. Its fingerprint (FNV-1a of the signs, row by row) is that of the release's matrix of this order. */
static void check_matrix(int which)
{
    static const uint64_t fingerprints[] = { 0, 0x518487a298e5e695, 0xe3c47fc611776069, 0xc4d5fd2188299009, 0x70c8487499bd07ad };
    if (!check_case("%s_matrix", names[which])) return;
    const int64_t order = orders[which], n = 4 * order;
    check_tensor *x = check_input_dense(SGK_F32, 2, n, n), *out = check_output_dense(SGK_F32, 2, n, n);
    for (int64_t i = 0; i < n * n; ++i) check_set(x, i, i / n == i % n);
    CHECK_CALL(sgk_hadamard_transform(T(out), T(x), (int)order, 1, check_exec));
    check_equal(out);
    uint64_t hash = 0xcbf29ce484222325, wrong = 0;
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) {               /* row j of the result is column j of the matrix */
            const double v = check_result_of(out, j * n + i);
            if (i % 4 == 0 && j % 4 == 0) hash = (hash ^ (v < 0)) * 0x100000001b3;
            wrong += fabs(v) != 1 || (v < 0) != ((__builtin_popcountll((unsigned long long)(i & j & 3)) & 1) ^ (check_result_of(out, j / 4 * 4 * n + i / 4 * 4) < 0));
        }
    check_that(wrong == 0, "%d entries are not the matrix of order %d times Sylvester's of order 4", (int)wrong, (int)order);
    check_that(hash == fingerprints[which], "the matrix of order %d has fingerprint %llx", (int)order, (unsigned long long)hash);
    check_done(0, 0);
}

/* One infinity makes its row infinite; two of one sign make what they cancel in no number. */
static void check_infinite(int which, int log2)
{
    const int64_t dim = (int64_t)orders[which] << log2;
    if (!check_case("%s_f32_%lld_infinite", names[which], (long long)dim)) return;
    check_tensor *x = check_input(SGK_F32, 2, (int64_t)2, dim), *out = check_output(SGK_F32, 2, (int64_t)2, dim);
    check_set(x, 5, INFINITY), check_set(x, dim + 3, -INFINITY), check_set(x, 2 * dim - 2, -INFINITY);
    CHECK_CALL(sgk_hadamard_transform(T(out), T(x), orders[which], 1, check_exec));
    check_close(out, check_tolerance(SGK_F32));
    check_done(0, 0);
}

static void check_arguments(int which)
{
    if (!check_case("%s_refused", names[which])) return;
    const int     order = orders[which];
    const int64_t dim   = order == 1 ? 32769 : order * 1024 + 1;
    check_tensor *x = check_input(SGK_BF16, 2, (int64_t)1, dim), *out = check_output(SGK_BF16, 2, (int64_t)1, dim);
    if (which == 0) CHECK_REFUSED(SGK_BAD_ARG, "order is 16, expected 1, 12, 20, 28 or 40", sgk_hadamard_transform(T(out), T(x), 16, 1, check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "in dimension 1, expected at most", sgk_hadamard_transform(T(out), T(x), order, 1, check_exec));
    check_done(0, 0);
}

void check_hadamard(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (int which = 0; which < 5; ++which) {
        const int64_t order = orders[which];
        if (order > 1) check_matrix(which);
        check_arguments(which);
        for (int log2 = order == 1 ? 3 : 2; log2 <= 10; log2 += 3) check_infinite(which, log2);
        for (int f = 0; f < 3; ++f) {
            const sgk_dtype t = formats[f];
            for (int log2 = order == 1 ? 0 : 2; log2 <= (order == 1 ? 15 : 10); ++log2) {
                if (check_small && log2 % 3 != f && log2 > 3) continue;         /* each size in one format */
                const int64_t n = order << log2;
                check_transform(which, t, check_small ? 2 : check_int(1, n > 4096 ? 3 : 20), n, GAPS);
                if (log2 > 2) check_transform(which, t, 2, n / 2 + 8, GAPS);
                if (log2 > 2 && !check_small) check_transform(which, t, check_int(1, 5), n - 1, UNALIGNED);
            }
            check_transform(which, t, 3, order * 6 + 5, GAPS);
            check_transform(which, t, 3, 1, GAPS);
            check_transform(which, t, 3, 64, UNALIGNED);
            check_transform(which, t, 0, 64, GAPS);
            check_transform(which, t, 3, 0, GAPS);
        }
    }
    /* Outputs written around the caches. */
    sgk_cpu_cache(1);
    for (int f = 0; f < 3; ++f) {
        for (int log2 = 5; log2 <= 13; ++log2) check_transform(0, formats[f], 3, (int64_t)1 << log2, DENSE);
        check_transform(0, formats[f], 3, 4096 - 64, DENSE);
        for (int which = 1; which < 5; ++which) check_transform(which, formats[f], 3, (int64_t)orders[which] << 7, DENSE);
    }
    sgk_cpu_cache(0);
    if (check_benching) {
        const int64_t elements = 1 << 25;
        for (int log2 = 6; log2 <= 15; ++log2) check_transform(0, SGK_BF16, elements >> log2, (int64_t)1 << log2, DENSE);
        check_transform(0, SGK_F32, 8192, 4096, DENSE);
        check_transform(0, SGK_BF16, 64, 4096, DENSE);
        for (int which = 1; which < 5; ++which)
            for (int log2 = 6; log2 <= 10; log2 += 2) check_transform(which, SGK_BF16, (elements >> log2) / orders[which], (int64_t)orders[which] << log2, DENSE);
    }
}
