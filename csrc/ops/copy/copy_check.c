#include <math.h>
#include "check/check.h"

enum layout { GAPS,
              UNALIGNED,
              DENSE };

static void check_concat_mla_k(sgk_dtype dtype, int64_t tokens, int64_t heads, int64_t nope, int64_t rope, enum layout layout)
{
    static const char *const words[] = { "", "_unaligned", "_dense" };
    if (!check_case("concat_mla_k_%s_%lldx%lldx%lld_%lld%s", check_dtype(dtype), (long long)tokens, (long long)heads, (long long)nope, (long long)rope,
                    words[layout])) return;
    check_tensor *k      = (layout == DENSE ? check_output_dense : check_output)(dtype, 3, tokens, heads, nope + rope);
    check_tensor *k_nope = (layout == DENSE ? check_input_dense : check_input)(dtype, 3, tokens, heads, nope), *k_rope = check_input(dtype, 3, tokens, (int64_t)1, rope);
    if (layout == UNALIGNED) check_unaligned(k_nope);

    CHECK_CALL(sgk_concat_mla_k(T(k), T(k_nope), T(k_rope), check_exec));
    check_equal(k);
    check_done((double)tokens * (double)(heads * (2 * nope + rope) + rope) * sgk_dtype_size(dtype), 0);
}

static void check_concat_mla_absorb_q(sgk_dtype dtype, int64_t rows, int64_t heads, int64_t a_dim, int64_t b_dim, bool dense)
{
    if (!check_case("concat_mla_absorb_q_%s_%lldx%lldx%lld_%lld%s", check_dtype(dtype), (long long)rows, (long long)heads, (long long)a_dim, (long long)b_dim,
                    dense ? "_dense" : "")) return;
    check_tensor *out = (dense ? check_output_dense : check_output)(dtype, 3, rows, heads, a_dim + b_dim);
    check_tensor *a = check_input(dtype, 3, rows, heads, a_dim), *b = check_input(dtype, 3, rows, heads, b_dim);

    CHECK_CALL(sgk_concat_mla_absorb_q(T(out), T(a), T(b), check_exec));
    check_equal(out);
    check_done(2 * (double)rows * (double)(heads * (a_dim + b_dim)) * sgk_dtype_size(dtype), 0);
}

static int32_t values[4000];

static DLTensor on_cpu(int64_t *count)
{
    for (int i = 0; i < 4000; ++i) values[i] = i * 7919 - 1000000;
    return (DLTensor){ .data = values, .device = { kDLCPU, 0 }, .ndim = 1, .dtype = sgk_dtypes[SGK_I32].dl, .shape = count };
}

/* The input stays on the CPU while the output follows the version under test, so it is no tensor of the harness's. */
static void check_copy_to_gpu_no_ce(int64_t count)
{
    if (!check_case("copy_to_gpu_no_ce_%lld", (long long)count)) return;
    check_tensor *output = check_output(SGK_I32, 1, count);
    DLTensor      input  = on_cpu(&count);
    if (count == 0) check_legal(output, CHECK_DEVICE);              /* nothing to do, wherever */

    CHECK_CALL(sgk_copy_to_gpu_no_ce(T(output), &input, check_exec));
    for (int64_t i = 0; i < count; ++i)
        check_that(check_result_of(output, i) == values[i], "output[%lld] is %g, expected %d", (long long)i, check_result_of(output, i), values[i]);
    check_equal(output);
    check_done(0, 0);
}

static void check_copy_refused(const char *what, const char *words, DLTensor input)
{
    if (!check_case("copy_to_gpu_no_ce_%s", what)) return;
    check_tensor *output = check_output(SGK_I32, 1, (int64_t)32);
    CHECK_REFUSED(SGK_BAD_ARG, words, sgk_copy_to_gpu_no_ce(T(output), &input, check_exec));
    check_done(0, 0);
}

static void check_copies_refused(void)
{
    int64_t  count = 32, fewer = 31, stride = 2;
    DLTensor input = on_cpu(&count), bad = input;
    bad.shape = &fewer;
    check_copy_refused("size", "input has size 31, expected 32 like output", bad);
    bad = input, bad.device.device_type = kDLCUDA;
    check_copy_refused("device", "input is on CUDA device 0, expected the CPU", bad);
    bad = input, bad.dtype = sgk_dtypes[SGK_I64].dl;
    check_copy_refused("dtype", "input has dtype i64, expected i32", bad);
    bad = input, bad.strides = &stride;
    check_copy_refused("stride", "input has stride 2", bad);
    bad = input, bad.data = NULL;
    check_copy_refused("data", "null data pointer", bad);
    bad = input, bad.ndim = 0;
    check_copy_refused("ndim", "input has 0 dimensions", bad);
}

static void check_downcast_fp8(sgk_dtype dtype, sgk_dtype out, sgk_dtype index, int64_t tokens, int64_t heads, int64_t dim, double scale)
{
    if (!check_case("downcast_fp8_%s_%s_%s_%lldx%lldx%lld_%g", check_dtype(dtype), check_dtype(out), check_dtype(index), (long long)tokens, (long long)heads,
                    (long long)dim, scale)) return;
    const int64_t mult = 2, offset = 1, places = mult * (2 * tokens + 3);
    check_tensor *k_out = check_inout_dense(out, 3, places, heads, dim), *v_out = check_inout_dense(out, 3, places, heads, dim);
    check_tensor *k = check_input_dense(dtype, 3, tokens, heads, dim), *v = check_input_dense(dtype, 3, tokens, heads, dim);
    check_tensor *k_scale = check_values(SGK_F32, &scale, 1, (int64_t)1), *v_scale = check_values(SGK_F32, (const double[]){ 0.3 }, 1, (int64_t)1);
    check_tensor *loc = check_index(index, 0, 0, 1, tokens);
    for (int64_t i = 0; i < tokens; ++i) check_set(loc, i, (double)(2 * (tokens - 1 - i) + check_int(0, 1)));
    if (tokens) check_set(k, 0, NAN), check_set(k, heads * dim - 1, -INFINITY);

    CHECK_CALL(sgk_downcast_fp8(T(k_out), T(v_out), T(k), T(v), T(k_scale), T(v_scale), T(loc), mult, offset, check_exec));
    check_equal(k_out);
    check_equal(v_out);
    check_done(6 * (double)tokens * (double)(heads * dim), 0);
}

/* Every bf16 beside its neighbours, in k by one scale and in v by another. */
static void check_downcast_codes(double k_scale_value, double v_scale_value)
{
    if (!check_case("downcast_fp8_bf16_codes_%g_%g", k_scale_value, v_scale_value)) return;
    enum { TOKENS = 64,
           DIM    = 1024 };
    check_tensor *rows[2], *outs[2], *scales[2];
    for (int i = 0; i < 2; ++i) rows[i] = check_input_dense(SGK_BF16, 3, (int64_t)TOKENS, (int64_t)1, (int64_t)DIM);
    for (int i = 0; i < 2; ++i) outs[i] = check_output_dense(SGK_E4M3, 3, (int64_t)TOKENS, (int64_t)1, (int64_t)DIM);
    for (int i = 0; i < 2; ++i) scales[i] = check_input(SGK_F32, 1, (int64_t)1), check_set(scales[i], 0, i ? v_scale_value : k_scale_value);
    check_tensor *loc = check_input(SGK_I64, 1, (int64_t)TOKENS);
    for (int64_t t = 0; t < TOKENS; ++t) check_set(loc, t, (double)t);
    for (int64_t n = 0; n < TOKENS * DIM; ++n)
        for (int i = 0; i < 2; ++i) check_set_code(rows[i], n, (uint32_t)n);
    check_switches.keep_arguments = true;
    CHECK_CALL(sgk_downcast_fp8(T(outs[0]), T(outs[1]), T(rows[0]), T(rows[1]), T(scales[0]), T(scales[1]), T(loc), 1, 0, check_exec));
    check_equal(outs[0]), check_equal(outs[1]);
    check_done(0, 0);
}

static void check_downcast_refused(int64_t bad)
{
    if (!check_case("downcast_fp8_outside_%lld", (long long)bad)) return;
    check_tensor *k_out = check_output_dense(SGK_U8, 3, (int64_t)5, (int64_t)2, (int64_t)8), *v_out = check_output_dense(SGK_U8, 3, (int64_t)5, (int64_t)2, (int64_t)8);
    check_tensor *k = check_input_dense(SGK_BF16, 3, (int64_t)1, (int64_t)2, (int64_t)8), *v = check_input_dense(SGK_BF16, 3, (int64_t)1, (int64_t)2, (int64_t)8);
    check_tensor *scale = check_values(SGK_F32, (const double[]){ 1 }, 1, (int64_t)1), *loc = check_index(SGK_I64, bad, bad, 1, (int64_t)1);
    check_switches.check_indices = SGK_ON;          /* the GPU looks where it is asked to; otherwise it leaves the row out */
    CHECK_REFUSED(SGK_BAD_ARG, "downcast_fp8: loc[0] is", sgk_downcast_fp8(T(k_out), T(v_out), T(k), T(v), T(scale), T(scale), T(loc), 1, 0, check_exec));
    check_done(0, 0);
}

void check_copy(void)
{
    static const sgk_dtype halves[] = { SGK_F16, SGK_BF16 };
    for (size_t f = 0; f < 2; ++f) {
        check_downcast_fp8(halves[f], SGK_E4M3, SGK_I64, check_small ? 3 : check_int(1, 40), 8, 128, 1);
        check_downcast_fp8(halves[f], SGK_U8, SGK_I32, 4, 4, 520, 0.01);
        check_downcast_fp8(halves[f], SGK_U8, SGK_I64, 5, 3, 7, 37);
        check_downcast_fp8(halves[f], SGK_E4M3, SGK_I64, 0, 2, 8, 1);
    }
    if (!check_small && !check_on_gpu()) check_downcast_codes(0.5, 0.37), check_downcast_codes(1, 100);
    check_downcast_refused(5);
    check_downcast_refused(-1);
    if (check_benching) check_downcast_fp8(SGK_BF16, SGK_E4M3, SGK_I64, 8192, 8, 128, 1);

    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16, SGK_E4M3, SGK_U8 };
    for (size_t f = 0; f < sizeof formats / sizeof *formats; ++f) {
        check_concat_mla_k(formats[f], check_small ? 2 : check_int(1, 40), check_small ? 4 : 128, 128, 64, GAPS);
        check_concat_mla_k(formats[f], 3, 5, 28, 4, GAPS);
        check_concat_mla_k(formats[f], 5, 3, 7, 3, GAPS);
        check_concat_mla_k(formats[f], 2, 2, 128, 64, UNALIGNED);
        check_concat_mla_k(formats[f], 0, 2, 128, 64, GAPS);
        check_concat_mla_k(formats[f], 3, 2, 16, 0, GAPS);
        check_concat_mla_absorb_q(formats[f], check_small ? 2 : check_int(1, 9), check_small ? 3 : 128, 512, 64, false);
        check_concat_mla_absorb_q(formats[f], 7, 1, 24, 40, true);
        check_concat_mla_absorb_q(formats[f], 1, 9, 1, 1, true);
        check_concat_mla_absorb_q(formats[f], 2, 3, 0, 5, true);
    }
    /* Outputs written around the caches. */
    sgk_cpu_cache(1);
    for (size_t f = 0; f < 2; ++f) {
        check_concat_mla_k(halves[f], 3, 5, 128, 64, DENSE);
        check_concat_mla_k(halves[f], 3, 5, 28, 4, DENSE);
        check_concat_mla_absorb_q(halves[f], 3, 5, 512, 64, true);
        check_downcast_fp8(halves[f], SGK_E4M3, SGK_I64, 5, 8, 128, 1);
        check_downcast_fp8(halves[f], SGK_E4M3, SGK_I64, 5, 3, 7, 1);
    }
    sgk_cpu_cache(0);
    static const int64_t counts[] = { 0, 1, 32, 64, 72, 80, 81, 960, 961, 3000 };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; ++i) check_copy_to_gpu_no_ce(counts[i]);
    check_copies_refused();
    if (check_benching) {
        check_concat_mla_k(SGK_BF16, 64, 128, 128, 64, DENSE);
        check_concat_mla_k(SGK_BF16, 4096, 128, 128, 64, DENSE);
        check_concat_mla_absorb_q(SGK_BF16, 1024, 128, 512, 64, true);
    }
}
