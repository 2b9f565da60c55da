#include <math.h>
#include "act_timestep.h"
#include "check/check.h"

typedef sgk_status act_fn(const DLTensor *out, const DLTensor *input, const sgk_exec *exec);
typedef struct {
    const char *name;
    act_fn     *run;
    int         times;
    double      operations;
} act_op;     /* input has times as many columns as out */

static const act_op ops[] = {
    { "silu_and_mul", sgk_silu_and_mul, 2, 5 },
    { "gelu_and_mul", sgk_gelu_and_mul, 2, 26 },
    { "gelu_tanh_and_mul", sgk_gelu_tanh_and_mul, 2, 8 },
    { "gelu_quick", sgk_gelu_quick, 1, 4 },
};
enum { OPS = sizeof ops / sizeof *ops };
enum { ALIGNED,
       UNALIGNED,
       DENSE };                   /* for figures: lines of the caches are not shared by rows */

static void check_act_rows(const act_op *op, sgk_dtype dtype, int64_t rows, int64_t dim, int how)
{
    if (!check_case("%s_%s_%lldx%lld%s", op->name, check_dtype(dtype), (long long)rows, (long long)dim, how == UNALIGNED ? "_unaligned" : "")) return;
    check_tensor *x   = (how == DENSE ? check_input_dense : check_input)(dtype, 2, rows, op->times * dim);
    check_tensor *out = (how == DENSE ? check_output_dense : check_output)(dtype, 2, rows, dim);
    if (how == UNALIGNED) check_unaligned(out);

    CHECK_CALL(op->run(T(out), T(x), check_exec));
    check_close(out, check_tolerance(dtype));

    const double n = (double)rows * (double)dim;
    check_done((op->times + 1) * n * sgk_dtype_size(dtype), op->operations * n);
}

/* any number of leading dimensions */
static void check_act_ranks(const act_op *op, sgk_dtype dtype)
{
    if (check_case("%s_%s_40", op->name, check_dtype(dtype))) {
        check_tensor *x   = check_input(dtype, 1, (int64_t)op->times * 40);
        check_tensor *out = check_output(dtype, 1, (int64_t)40);
        CHECK_CALL(op->run(T(out), T(x), check_exec));
        check_close(out, check_tolerance(dtype));
        check_done(0, 0);
    }
    if (check_case("%s_%s_2x3x5x24", op->name, check_dtype(dtype))) {
        check_tensor *x   = check_input(dtype, 4, (int64_t)2, (int64_t)3, (int64_t)5, (int64_t)op->times * 24);
        check_tensor *out = check_output(dtype, 4, (int64_t)2, (int64_t)3, (int64_t)5, (int64_t)24);
        CHECK_CALL(op->run(T(out), T(x), check_exec));
        check_close(out, check_tolerance(dtype));
        check_done(0, 0);
    }
}

/* Where e^x overflows, where it vanishes, and what is no number. The last gate is 1, so the activation itself shows. */
static void check_act_edges(const act_op *op, sgk_dtype dtype)
{
    static const double edges[] = { 0, -0.0, 1, -1, 20, -20, 87, -87, 89, -89, 104, -104, 60000, -60000, INFINITY, -INFINITY, NAN };
    enum { COUNT = sizeof edges / sizeof *edges };
    if (!check_case("%s_%s_edges", op->name, check_dtype(dtype))) return;
    check_tensor *x   = check_input(dtype, 2, (int64_t)1, (int64_t)(op->times * COUNT));
    check_tensor *out = check_output(dtype, 2, (int64_t)1, (int64_t)COUNT);
    for (int i = 0; i < COUNT; ++i) {
        check_set(x, i, edges[i]);
        if (op->times == 2) check_set(x, COUNT + i, 1);
    }
    CHECK_CALL(op->run(T(out), T(x), check_exec));
    check_close(out, check_tolerance(dtype));
    check_that(check_result_of(out, 15) == 0, "%s of -infinity is %g, expected 0", op->name, check_result_of(out, 15));
    check_that(isnan(check_result_of(out, 16)), "%s of NaN is %g, expected NaN", op->name, check_result_of(out, 16));
    check_done(0, 0);
}

/* The middle of the line, densely: every value of f16 from -6 to 6 has its own error, none above a rounding of the result and of e^x. */
static void check_act_line(const act_op *op)
{
    enum { COUNT = 4801 };
    if (!check_case("%s_f32_line", op->name)) return;
    check_tensor *x   = check_input(SGK_F32, 2, (int64_t)1, (int64_t)op->times * COUNT);
    check_tensor *out = check_output(SGK_F32, 2, (int64_t)1, (int64_t)COUNT);
    for (int i = 0; i < COUNT; ++i) {
        check_set(x, i, (i - 2400) / 400.0);
        if (op->times == 2) check_set(x, COUNT + i, 1);
    }
    CHECK_CALL(op->run(T(out), T(x), check_exec));
    check_close(out, check_tolerance(SGK_F32));
    double worst = 0;
    for (int i = 0; i < COUNT; ++i) {
        const double right = check_reference_of(out, i), error = fabs(check_result_of(out, i) - right);
        worst = fmax(worst, right == 0 ? error : error / fabs(right));
    }
    check_that(worst <= 1.2e-5, "the largest relative error between -6 and 6 is %.3g, expected at most 1.2e-5", worst);
    check_done(0, 0);
}

/* In place, where the contract has it. */
static void check_gelu_quick_in_place(sgk_dtype dtype)
{
    if (!check_case("gelu_quick_%s_in_place", check_dtype(dtype))) return;
    check_tensor *x               = check_inout(dtype, 2, (int64_t)5, (int64_t)40);
    check_switches.keep_arguments = true;
    CHECK_CALL(sgk_gelu_quick(T(x), T(x), check_exec));
    check_close(x, check_tolerance(dtype));
    check_done(0, 0);
}

/* Rows of experts that live elsewhere stay as they are. */
static void check_silu_and_mul_experts(sgk_dtype dtype, sgk_dtype index, int64_t rows, int64_t dim, int64_t step)
{
    if (!check_case("silu_and_mul_experts_%s_%s_%lldx%lld_%lld", check_dtype(dtype), check_dtype(index), (long long)rows, (long long)dim, (long long)step)) return;
    const int64_t steps = (rows + step - 1) / step;
    check_tensor *x     = check_input(dtype, 2, rows, 2 * dim);
    check_tensor *out   = check_inout(dtype, 2, rows, dim);
    check_tensor *ids   = check_index(index, -1, 2, 1, steps + 1);
    if (steps > 1) check_set(ids, 0, -1), check_set(ids, 1, 3);
    check_legal(ids, CHECK_SIZE(0));

    CHECK_CALL(sgk_silu_and_mul_experts(T(out), T(x), T(ids), step, check_exec));
    check_close(out, check_tolerance(dtype));
    for (int64_t d = 0; d < dim && steps > 1; ++d)
        check_that(check_result_of(out, d) == check_get(out, d), "row 0 was written at column %lld though its expert is -1", (long long)d);
    check_done(0, 0);
}

static void check_silu_and_mul_experts_refused(void)
{
    if (check_case("silu_and_mul_experts_few_ids")) {
        check_tensor *x = check_input(SGK_F32, 2, (int64_t)7, (int64_t)16), *out = check_output(SGK_F32, 2, (int64_t)7, (int64_t)8);
        check_tensor *ids = check_index(SGK_I32, 0, 3, 1, (int64_t)3);
        CHECK_REFUSED(SGK_BAD_ARG, "expert_ids has size 3, expected at least 4", sgk_silu_and_mul_experts(T(out), T(x), T(ids), 2, check_exec));
        check_done(0, 0);
    }
    if (check_case("silu_and_mul_experts_no_step")) {
        check_tensor *x = check_input(SGK_F32, 2, (int64_t)7, (int64_t)16), *out = check_output(SGK_F32, 2, (int64_t)7, (int64_t)8);
        check_tensor *ids = check_index(SGK_I32, 0, 3, 1, (int64_t)8);
        CHECK_REFUSED(SGK_BAD_ARG, "expert_step is 0", sgk_silu_and_mul_experts(T(out), T(x), T(ids), 0, check_exec));
        check_done(0, 0);
    }
}

void check_act(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    static const int64_t   some[]    = { 0, 1, 7, 8, 15, 64, 100, 128, 1000, 1024, 2048, 4095, 4096, 4104, 11008, 14336, 16384 };
    static const int64_t   few[]     = { 1, 8, 31, 128, 4104 };
    const int64_t         *dims      = check_small ? few : some;
    const size_t           count     = check_small ? sizeof few / sizeof *few : sizeof some / sizeof *some;

    for (int o = 0; o < OPS; ++o) {
        for (size_t f = 0; f < 3; ++f) {
            for (size_t i = 0; i < count; ++i) check_act_rows(&ops[o], formats[f], check_small ? 2 : check_int(1, 7), dims[i], ALIGNED);
            check_act_rows(&ops[o], formats[f], 0, 64, ALIGNED);
            check_act_rows(&ops[o], formats[f], 3, 128, UNALIGNED);
            check_act_rows(&ops[o], formats[f], check_small ? 40 : 300, 16, ALIGNED);      /* several rows in a block of the GPU */
            check_act_ranks(&ops[o], formats[f]);
            check_act_edges(&ops[o], formats[f]);
        }
        check_act_line(&ops[o]);
    }
    for (size_t f = 0; f < 3; ++f) {
        check_gelu_quick_in_place(formats[f]);
        check_silu_and_mul_experts(formats[f], f % 2 ? SGK_I64 : SGK_I32, 13, 24, 4);
        check_silu_and_mul_experts(formats[f], SGK_I32, 5, 4100, 1);
        check_silu_and_mul_experts(formats[f], SGK_I64, 0, 64, 2);
    }
    check_silu_and_mul_experts_refused();

    /* Outputs written around the caches, wherever their rows begin. */
    sgk_cpu_cache(1);
    for (int o = 0; o < OPS; ++o)
        for (size_t f = 0; f < 3; ++f) {
            check_act_rows(&ops[o], formats[f], 5, 9, ALIGNED);
            check_act_rows(&ops[o], formats[f], 4, 307, UNALIGNED);
            check_act_rows(&ops[o], formats[f], 2, 4199, ALIGNED);
        }
    sgk_cpu_cache(0);
    if (check_benching)
        for (int o = 0; o < OPS; ++o) {
            check_act_rows(&ops[o], SGK_BF16, 64, 4096, DENSE);
            check_act_rows(&ops[o], SGK_BF16, 64, 14336, DENSE);
            check_act_rows(&ops[o], SGK_BF16, 16384, 4096, DENSE);
            check_act_rows(&ops[o], SGK_BF16, 8192, 14336, DENSE);
        }
    check_timestep();
}
