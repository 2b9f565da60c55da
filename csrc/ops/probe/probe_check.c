#include <math.h>
#include "check/check.h"
#include "probe.h"
#include "probe_ops.h"

/* A GPU has one NaN; the CPU keeps the payload, in all its versions alike. */
static void same_numbers(check_tensor *t)
{
    if (check_on_gpu()) check_max(t, 0);
    else check_equal(t);
}

static void check_empty(void)
{
    if (!check_case("probe_empty")) return;
    check_tensor *grid = check_input(SGK_F32, 1, (int64_t)3);
    check_legal(grid, CHECK_SIZE(0) | CHECK_OVERLAP);
    CHECK_CALL(sgk_probe_empty(T(grid), check_exec));
    check_done(0, 0);
}

static void check_copy(int64_t n)
{
    if (!check_case("probe_copy_%lld", (long long)n)) return;
    check_tensor *x = check_input(SGK_I32, 1, n);
    check_tensor *y = check_output(SGK_I32, 1, n);
    CHECK_CALL(sgk_probe_copy(T(y), T(x), check_exec));
    check_equal(y);
    check_done(8 * (double)n, 0);
}

static void check_read(int64_t blocks)
{
    if (!check_case("probe_read_%lld", (long long)blocks)) return;
    check_tensor *x = check_input(SGK_I32, 1, blocks * PROBE_BLOCK);
    check_tensor *y = check_output(SGK_I32, 1, blocks);
    CHECK_CALL(sgk_probe_read(T(y), T(x), check_exec));
    check_equal(y);
    check_done(4.0 * PROBE_BLOCK * (double)blocks, 0);
}

/* All codes, and lengths that end in the middle of a vector. */
static void check_load(sgk_dtype dtype, int64_t n)
{
    if (!check_case("probe_load_%s_%lld", check_dtype(dtype), (long long)n)) return;
    check_tensor *x = check_input(dtype, 1, n);
    check_tensor *y = check_output(SGK_F32, 1, n);
    check_legal(x, CHECK_DTYPE);
    if (dtype != SGK_F32)
        for (int64_t i = 0; i < n; ++i) check_set_code(x, i, (uint32_t)i);
    CHECK_CALL(sgk_probe_load(T(y), T(x), check_exec));
    same_numbers(y);
    check_done(0, 0);
}

/* f32 numbers at and beside each number of the format and each middle between two of them, and as many at random. */
static void check_store(sgk_dtype dtype, int64_t codes)
{
    if (!check_case("probe_store_%s_%lld", check_dtype(dtype), (long long)codes)) return;
    enum { PER_CODE = 8 };
    check_tensor *x = check_input(SGK_F32, 1, codes * PER_CODE);
    check_tensor *y = check_output(dtype, 1, codes * PER_CODE);
    check_legal(y, CHECK_DTYPE);
    for (int64_t c = 0; c < codes; ++c) {
        const uint16_t code = (uint16_t)(codes < 65536 ? c * 7919 : c), next = (uint16_t)(code + 1);
        const float    here = load_f32(dtype == SGK_F32 ? SGK_BF16 : dtype, &code, 0), there = load_f32(dtype == SGK_F32 ? SGK_BF16 : dtype, &next, 0);
        const float    middle        = here + (there - here) / 2;
        const float    all[PER_CODE] = { here, nextafterf(here, INFINITY), nextafterf(here, -INFINITY), middle, nextafterf(middle, INFINITY), nextafterf(middle, -INFINITY) };
        for (int k = 0; k < PER_CODE; ++k) check_set_code(x, c * PER_CODE + k, k < 6 ? f32_bits(all[k]) : (uint32_t)check_int(0, 0xffff) << 16 | (uint32_t)check_int(0, 0xffff));
    }
    CHECK_CALL(sgk_probe_store(T(y), T(x), check_exec));
    same_numbers(y);
    check_done(0, 0);
}

/* Within 2 units in the last place where the result is normal; below, absolutely. */
static void check_exp(int64_t n)
{
    if (!check_case("probe_exp_%lld", (long long)n)) return;
    check_tensor *x = check_input(SGK_F32, 1, n);
    check_tensor *y = check_output(SGK_F32, 1, n);
    for (int64_t i = 0; i < n; ++i) check_set(x, i, i == 0 ? NAN : i == 1 ? -INFINITY
                                                               : i == 2   ? INFINITY
                                                               : i == 3   ? 0
                                                                          : -110 + 210 * (double)i / (double)n);
    CHECK_CALL(sgk_probe_exp(T(y), T(x), check_exec));
    double worst = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double in = check_get(x, i), got = check_result_of(y, i), want = check_reference_of(y, i);
        if (isnan(in)) check_that(isnan(got), "e^NaN is %g", got);
        else if (isinf(want) && in < 88.73) check_that(got > 3.4e38, "e^%g is %g, expected the largest number or infinity", in, got);
        else if (isinf(want) || in < -104) check_that(got == want, "e^%g is %g, expected %g", in, got, want);
        else if (want > 0) worst = fmax(worst, fabs(got - exp(in)) / fmax(exp(in) * 1.1920929e-7, 0x1p-149));
    }
    check_that(worst <= 2, "e^x is off by %.2f units in the last place, allowed 2", worst);
    check_done(0, 0);
}

void check_probe(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    const int64_t          all       = check_small ? 4099 : 65536;
    check_empty();
    check_copy(0);
    check_copy(check_int(1, 4000));
    check_copy(3 * PROBE_BLOCK + check_int(0, 4000));
    check_read(0);
    check_read(check_int(1, 9));
    for (size_t f = 0; f < 3; ++f) {
        check_load(formats[f], all);
        check_load(formats[f], check_int(1, 40));
        check_store(formats[f], all);
        check_store(formats[f], check_int(1, 9));
    }
    if (!check_on_gpu()) check_exp(check_small ? 4099 : 262147);
    if (check_benching) {
        check_copy((int64_t)32 << 20);
        check_read((int64_t)16 << 10);
    }
}
