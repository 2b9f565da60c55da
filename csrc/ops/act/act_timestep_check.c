#include <math.h>
#include "act_timestep.h"
#include "check/check.h"

static void check_embedding(sgk_dtype dtype, sgk_dtype input_dtype, int64_t rows, int64_t dim, bool cos_first, double shift, double scale)
{
    if (!check_case("timestep_embedding_%s_%s_%lldx%lld_%s_%g_%g", check_dtype(dtype), check_dtype(input_dtype), (long long)rows, (long long)dim,
                    cos_first ? "cos" : "sin", shift, scale)) return;
    check_tensor *output = check_output(dtype, 2, rows, dim), *input = check_index(input_dtype, 0, 999, 1, rows);
    check_legal(output, CHECK_DTYPE);
    check_legal(input, CHECK_DTYPE | CHECK_STRIDE);

    CHECK_CALL(sgk_timestep_embedding(T(output), T(input), dim, cos_first, shift, scale, 10000, check_exec));
    check_close(output, check_tolerance(dtype));
    for (int64_t r = 0; r < rows && dim; ++r) {                         /* frequency 0 is 1 */
        const double angle = scale * check_get(input, r), sine = check_result_of(output, r * dim + (cos_first ? dim / 2 : 0));
        check_that(fabs(sine - sin(angle)) <= 3 * check_tolerance(dtype), "row %lld: sine is %g, expected %g", (long long)r, sine, sin(angle));
    }
    check_done((double)rows * (double)dim * sgk_dtype_size(dtype), 30 * (double)rows * (double)dim);
}

static void check_embedding_refused(const char *what, const char *words, int64_t dim, double shift, double scale, int64_t period)
{
    if (!check_case("timestep_embedding_%s", what)) return;
    check_tensor *output = check_output(SGK_F32, 2, (int64_t)2, (int64_t)8), *input = check_index(SGK_I64, 0, 9, 1, (int64_t)2);
    CHECK_REFUSED(SGK_BAD_ARG, words, sgk_timestep_embedding(T(output), T(input), dim, false, shift, scale, period, check_exec));
    check_done(0, 0);
}

void check_timestep(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 }, inputs[] = { SGK_F32, SGK_F64, SGK_F16, SGK_BF16, SGK_I32, SGK_I64 };
    for (size_t f = 0; f < sizeof formats / sizeof *formats; ++f) {
        check_embedding(formats[f], SGK_F32, 2, 256, false, 0, 1);
        check_embedding(formats[f], SGK_I64, check_small ? 9 : check_int(1, 40), 320, true, 1, 0.37);
        check_embedding(formats[f], SGK_F32, 3, 6, false, 0.5, 1000);
        if (check_small) continue;
        check_embedding(formats[f], SGK_F32, 0, 64, false, 0, 1);
        check_embedding(formats[f], SGK_F32, 4, 0, false, 1, 1);
    }
    for (size_t f = 0; f < sizeof inputs / sizeof *inputs; ++f) check_embedding(SGK_F32, inputs[f], 5, 34, false, 0, 1);
    check_embedding_refused("dim", "output has size 8 in dimension 1, expected 16", 16, 0, 1, 10000);
    check_embedding_refused("period", "max_period is 0, expected at least 1", 8, 0, 1, 0);
    check_embedding_refused("shift", "downscale_freq_shift is 4, expected a finite number other than half of dim", 8, 4, 1, 10000);
    check_embedding_refused("scale", "scale is inf", 8, 0, INFINITY, 10000);
    if (check_benching) {
        check_embedding(SGK_F32, SGK_F32, 64, 320, true, 0, 1);
        check_embedding(SGK_F32, SGK_F32, 32768, 512, true, 0, 1);
    }
}
