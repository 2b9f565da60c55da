#include <stdlib.h>
#include <string.h>
#include "check/harness.h"
#include "cuda/kernel.h"
#include "gemm.h"
#include "gemm_check.h"
#include "gemm_gpu.h"

/*
 * One rounding to the format of out, and f32 sums of K products: their error grows with the root of K, and on the matrix units, which
 * cut instead of rounding, faster.
 */
static double tolerance(sgk_dtype dtype, sgk_dtype out, int64_t depth)
{
    return check_tolerance(out) + (dtype == SGK_F32 ? 0x1p-24 : 0x1p-22) * sqrt((double)depth);
}

enum { NO_BIAS,
       BIAS,
       BIAS_F32 };

static void check_linear(sgk_dtype dtype, sgk_dtype out_dtype, int with_bias, int64_t rows, int64_t columns, int64_t depth, bool dense)
{
    static const char *const bias_names[] = { "", "_bias", "_bias_f32" };
    if (!check_case("linear_%s_%s%s_%lldx%lldx%lld%s", check_dtype(dtype), check_dtype(out_dtype), bias_names[with_bias],
                    (long long)rows, (long long)columns, (long long)depth, dense ? "_dense" : "")) return;
    check_tensor *input  = dense ? check_input_dense(dtype, 2, rows, depth) : check_input(dtype, 2, rows, depth);
    check_tensor *weight = dense ? check_input_dense(dtype, 2, columns, depth) : check_input(dtype, 2, columns, depth);
    check_tensor *bias   = with_bias ? check_input(with_bias == BIAS ? dtype : SGK_F32, 1, columns) : NULL;
    check_tensor *out    = check_output(out_dtype, 2, rows, columns);
    check_legal(input, CHECK_NDIM);
    check_legal(out, CHECK_NDIM | (out_dtype != dtype ? CHECK_DTYPE : 0));          /* may have the input's format as well */
    if (bias) check_legal(bias, CHECK_NULL | (with_bias == BIAS_F32 ? CHECK_DTYPE : 0));

    CHECK_CALL(sgk_linear(T(out), T(input), T(weight), T(bias), check_exec));
    check_close_sums(out, tolerance(dtype, out_dtype, depth), depth);

    const double m = (double)rows, n = (double)columns, k = (double)depth, size = sgk_dtype_size(dtype);
    check_done((m * k + n * k) * size + m * n * sgk_dtype_size(out_dtype), 2 * m * n * k);
}

/* A dense input for the form of sm_90a, and an out that no piece of 16 bytes fits: elements are stored one by one. */
static void check_linear_out_unaligned(sgk_dtype dtype, int64_t rows, int64_t columns, int64_t depth)
{
    if (!check_case("linear_%s_out_unaligned_%lldx%lldx%lld", check_dtype(dtype), (long long)rows, (long long)columns, (long long)depth)) return;
    check_tensor *input  = check_input_dense(dtype, 2, rows, depth);
    check_tensor *weight = check_input_dense(dtype, 2, columns, depth);
    check_tensor *bias   = check_input(dtype, 1, columns);
    check_tensor *out    = check_unaligned(check_output(dtype, 2, rows, columns));
    check_legal(input, CHECK_NDIM);
    check_legal(out, CHECK_NDIM);
    check_legal(bias, CHECK_NULL);

    CHECK_CALL(sgk_linear(T(out), T(input), T(weight), T(bias), check_exec));
    check_close_sums(out, tolerance(dtype, dtype, depth), depth);
    check_done(0, 0);
}

/* Leading dimensions fold, and addresses need no alignment beyond the element's. */
static void check_linear_folded(sgk_dtype dtype)
{
    if (!check_case("linear_%s_folded_unaligned", check_dtype(dtype))) return;
    check_tensor *input  = check_unaligned(check_input(dtype, 3, (int64_t)2, (int64_t)3, (int64_t)72));
    check_tensor *weight = check_unaligned(check_input(dtype, 2, (int64_t)21, (int64_t)72));
    check_tensor *bias   = check_unaligned(check_input(dtype, 1, (int64_t)21));
    check_tensor *out    = check_unaligned(check_output(dtype, 3, (int64_t)2, (int64_t)3, (int64_t)21));
    check_legal(input, CHECK_NDIM);
    check_legal(out, CHECK_NDIM);
    check_legal(bias, CHECK_NULL);

    CHECK_CALL(sgk_linear(T(out), T(input), T(weight), T(bias), check_exec));
    check_close_sums(out, tolerance(dtype, dtype, 72), 72);
    check_done(0, 0);
}

/* Products in a batch: of their own weights, or of the first one's; with gaps between rows and between products. */
static void check_linear_batched(sgk_dtype dtype, sgk_dtype out_dtype, bool with_bias, int64_t batch, int64_t rows, int64_t columns, int64_t depth, bool dense)
{
    if (!check_case("linear_batched_%s_%s%s_%lldx%lldx%lldx%lld%s", check_dtype(dtype), check_dtype(out_dtype), with_bias ? "_bias" : "", (long long)batch,
                    (long long)rows, (long long)columns, (long long)depth, dense ? "_dense" : "")) return;
    check_tensor *input  = dense ? check_input_dense(dtype, 3, batch, rows, depth) : check_input(dtype, 3, batch, rows, depth);
    check_tensor *weight = dense ? check_input_dense(dtype, 3, batch, columns, depth) : check_input(dtype, 3, batch, columns, depth);
    check_tensor *bias   = with_bias ? check_input(dtype, 2, batch, columns) : NULL;
    check_tensor *out    = check_output(out_dtype, 3, batch, rows, columns);
    if (out_dtype != dtype) check_legal(out, CHECK_DTYPE);
    if (bias) check_legal(bias, CHECK_NULL);

    CHECK_CALL(sgk_linear_batched(T(out), T(input), T(weight), T(bias), check_exec));
    check_close_sums(out, tolerance(dtype, out_dtype, depth), depth);

    const double b = (double)batch, m = (double)rows, n = (double)columns, k = (double)depth, size = sgk_dtype_size(dtype);
    check_done(b * ((m * k + n * k) * size + m * n * sgk_dtype_size(out_dtype)), 2 * b * m * n * k);
}

static void check_router(sgk_dtype dtype, sgk_dtype out_dtype, int64_t rows, int64_t columns, int64_t depth)
{
    if (!check_case("dsv3_router_gemm_%s_%s_%lldx%lldx%lld", check_dtype(dtype), check_dtype(out_dtype), (long long)rows, (long long)columns, (long long)depth)) return;
    check_tensor *mat_a  = check_input_dense(dtype, 2, rows, depth);
    check_tensor *mat_b  = check_input_dense(dtype, 2, columns, depth);
    check_tensor *output = check_output(out_dtype, 2, rows, columns);
    if (out_dtype != dtype) check_legal(output, CHECK_DTYPE);

    CHECK_CALL(sgk_dsv3_router_gemm(T(output), T(mat_a), T(mat_b), check_exec));
    check_close_sums(output, tolerance(dtype, out_dtype, depth), depth);

    const double m = (double)rows, n = (double)columns, k = (double)depth, size = sgk_dtype_size(dtype);
    check_done((m * k + n * k) * size + m * n * sgk_dtype_size(out_dtype), 2 * m * n * k);
}

/* mat_b as the operator wants it: the transpose of a tensor [N, K]. */
static sgk_status fused_a(const DLTensor *output, const DLTensor *mat_a, const DLTensor *mat_b, const sgk_exec *exec)
{
    if (!mat_b || mat_b->ndim != 2) return sgk_dsv3_fused_a_gemm(output, mat_a, mat_b, exec);
    int64_t  shape[] = { mat_b->shape[1], mat_b->shape[0] }, strides[] = { mat_b->strides[1], mat_b->strides[0] };
    DLTensor turned = *mat_b;
    turned.shape = shape, turned.strides = strides;
    return sgk_dsv3_fused_a_gemm(output, mat_a, &turned, exec);
}

static void check_fused_a(sgk_dtype dtype, int64_t rows, int64_t columns, int64_t depth, bool dense)
{
    if (!check_case("dsv3_fused_a_gemm_%s_%lldx%lldx%lld%s", check_dtype(dtype), (long long)rows, (long long)columns, (long long)depth, dense ? "_dense" : "")) return;
    check_tensor *mat_a  = dense ? check_input_dense(dtype, 2, rows, depth) : check_input(dtype, 2, rows, depth);
    check_tensor *mat_b  = dense ? check_input_dense(dtype, 2, columns, depth) : check_input(dtype, 2, columns, depth);
    check_tensor *output = check_output(dtype, 2, rows, columns);

    CHECK_CALL(fused_a(T(output), T(mat_a), T(mat_b), check_exec));
    check_close_sums(output, tolerance(dtype, dtype, depth), depth);

    const double m = (double)rows, n = (double)columns, k = (double)depth, size = sgk_dtype_size(dtype);
    check_done((m * k + n * k + m * n) * size, 2 * m * n * k);
}

/*
 * Every build for sm_90a and every one that streams, with K in each number of parts, on shapes that leave a part of a tile, of a slab and of
 * the ring: also those that would not be chosen here.
 */
static void check_linear_builds(sgk_dtype dtype, sgk_dtype out_dtype, int64_t rows, int64_t columns, int64_t depth, const char *only)
{
    extern const sgk_kernel_table gemm_kernels[];
    if (!check_on_gpu()) return;
    int number = 0;
    for (const sgk_kernel_table *table = gemm_kernels; table->rows; ++table)
        for (size_t i = 0; i < table->count; ++i)
            for (int split = 1; split <= 8; split = split < 3 ? split + 1 : split + 5) {
                const linear_choice choice = { .kernel = (sgk_kernel *)((char *)table->rows + i * table->row_size), .split = split };
                if (!linear_takes(choice, dtype, out_dtype, rows, columns, depth) || (only && ((split > 1 && strcmp(only, "SHARES=1")) || (!strstr(choice.kernel->defines, only) && !strstr(choice.kernel->file, only))))) continue;
                if (!check_case("linear_build_%d_%s_%s_%lldx%lldx%lld_in_%d", number++, check_dtype(dtype), check_dtype(out_dtype), (long long)rows, (long long)columns, (long long)depth, split)) continue;
                if (!linear_has_cost(choice)) fail("gemm_costs.def does not have it");
                check_switches.keep_arguments = true;
                check_tensor *input           = check_input_dense(dtype, 2, rows, depth);
                check_tensor *weight          = check_input_dense(dtype, 2, columns, depth);
                check_tensor *bias            = number % 2 ? check_input(dtype, 1, columns) : NULL;
                check_tensor *out             = check_output(out_dtype, 2, rows, columns);
                linear_forced                 = choice;
                CHECK_CALL(sgk_linear(T(out), T(input), T(weight), T(bias), check_exec));
                linear_forced.kernel = NULL;
                check_close_sums(out, tolerance(dtype, out_dtype, depth), depth);
                check_done(0, 0);
            }
}

sgk_status check_all_and_alone(gemm_product *product, bool own_scratch, const DLTensor *out, const DLTensor *alone, const DLTensor *input, const DLTensor *weight,
                               const DLTensor *input_scales, const DLTensor *weight_scales, const sgk_exec *exec)
{
    const sgk_status status = product(out, input, weight, input_scales, weight_scales, exec);
    if (status != SGK_OK || exec->workspace_query) return status;
    sgk_exec own        = SGK_EXEC_INIT;
    own.batch_invariant = exec->batch_invariant;
    for (int64_t i = 0; i < alone->shape[0]; ++i) {
        int64_t  sizes_in[] = { 1, input->shape[1] }, sizes_out[] = { 1, out->shape[1] }, size_scale[] = { 1 };
        DLTensor x = *input, y = *alone, s = { 0 };
        x.shape = sizes_in, y.shape = sizes_out;
        x.byte_offset += (uint64_t)(i * INVARIANT_APART * input->strides[0] * x.dtype.bits / 8);
        y.byte_offset += (uint64_t)(i * alone->strides[0] * y.dtype.bits / 8);
        if (input_scales) {
            s       = *input_scales;
            s.shape = size_scale;
            s.byte_offset += (uint64_t)(i * INVARIANT_APART * s.dtype.bits / 8);
        }
        const sgk_status each = product(&y, &x, weight, input_scales ? &s : NULL, weight_scales, own_scratch && !check_on_gpu() ? &own : exec);
        if (each != SGK_OK) return each;
    }
    return SGK_OK;
}

void check_same_alone(check_tensor *out, check_tensor *alone, int64_t columns)
{
    for (int64_t i = 0; i < INVARIANT_ALONE; ++i)
        for (int64_t n = 0; n < columns; ++n) {
            const double among = check_result_of(out, i * INVARIANT_APART * columns + n), by_itself = check_result_of(alone, i * columns + n);
            check_that(among == by_itself, "row %lld differs in column %lld: %.9g among others, %.9g alone", (long long)(i * INVARIANT_APART), (long long)n, among, by_itself);
        }
}

static sgk_status linear_product(const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *input_scales, const DLTensor *weight_scales,
                                 const sgk_exec *exec)
{
    (void)input_scales, (void)weight_scales;
    return sgk_linear(out, input, weight, NULL, exec);
}

static void check_linear_invariant(sgk_dtype dtype, int64_t columns, int64_t depth)
{
    if (!check_case("linear_%s_batch_invariant_%lldx%lld", check_dtype(dtype), (long long)columns, (long long)depth)) return;
    check_switches.batch_invariant = SGK_ON;
    check_switches.keep_arguments  = true;
    check_tensor *input            = check_input_dense(dtype, 2, (int64_t)INVARIANT_ROWS, depth);
    check_tensor *weight           = check_input_dense(dtype, 2, columns, depth);
    check_tensor *out              = check_output(SGK_F32, 2, (int64_t)INVARIANT_ROWS, columns);
    check_tensor *alone            = check_output(SGK_F32, 2, (int64_t)INVARIANT_ALONE, columns);

    CHECK_CALL(check_all_and_alone(linear_product, true, T(out), T(alone), T(input), T(weight), NULL, NULL, check_exec));
    check_close_sums(out, tolerance(dtype, SGK_F32, depth), depth);
    check_same_alone(out, alone, columns);
    check_done(0, 0);
}

/* Rows of calls that must agree in the bits of the rows that they share: on the GPU each has its own tiles. */
static const int64_t invariant_rows[] = { 1, 2, 7, 9, 17, 33, 65, 100, 129, 200, 300, 520, 1100 };

/* The reference's rows do not depend on each other: one call has them all, and other results are copies of its first ones. */
static bool on_cpu(const DLTensor *out) { return out->device.device_type == kDLCPU; }
static char *row_of(const DLTensor *out, int64_t row) { return (char *)out->data + out->byte_offset + row * out->strides[0] * out->dtype.bits / 8; }

static sgk_status some_rows(const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *bias, const sgk_exec *exec)
{
    const int64_t most = input->shape[0], first = out->shape[0] - most;
    for (int64_t i = (int64_t)(sizeof invariant_rows / sizeof *invariant_rows) - 1, at = first; i >= 0; at -= i > 0 ? invariant_rows[i - 1] : 0, --i) {
        if (on_cpu(out) && at < first) {
            memcpy(row_of(out, at), row_of(out, first), (size_t)(row_of(out, invariant_rows[i]) - row_of(out, 0)));
            continue;
        }
        int64_t  sizes_in[] = { invariant_rows[i], input->shape[1] }, sizes_out[] = { invariant_rows[i], out->shape[1] };
        DLTensor x = *input, y = *out;
        x.shape = sizes_in, y.shape = sizes_out;
        y.byte_offset           = (uint64_t)(row_of(out, at) - (char *)out->data);
        const sgk_status status = sgk_linear(&y, &x, weight, bias, exec);
        if (status != SGK_OK) return status;
    }
    return SGK_OK;
}

static void check_linear_rows(sgk_dtype dtype, sgk_dtype out_dtype, int64_t columns, int64_t depth)
{
    if (!check_on_gpu() || !check_case("linear_%s_%s_batch_invariant_rows_%lldx%lld", check_dtype(dtype), check_dtype(out_dtype), (long long)columns, (long long)depth)) return;
    check_switches.batch_invariant = SGK_ON;
    check_switches.keep_arguments  = true;
    int64_t all = 0, most = 0;
    for (size_t i = 0; i < sizeof invariant_rows / sizeof *invariant_rows; ++i) all += most = invariant_rows[i];
    check_tensor *input  = check_input_dense(dtype, 2, most, depth);
    check_tensor *weight = check_input_dense(dtype, 2, columns, depth);
    check_tensor *bias   = check_input(dtype, 1, columns);
    check_tensor *out    = check_output_dense(out_dtype, 2, all, columns);

    CHECK_CALL(some_rows(T(out), T(input), T(weight), T(bias), check_exec));
    check_close_sums(out, tolerance(dtype, out_dtype, depth), depth);
    for (int64_t i = 0, at = 0; at + invariant_rows[i] < all; at += invariant_rows[i++])
        for (int64_t m = 0; m < invariant_rows[i]; ++m)
            for (int64_t n = 0; n < columns; ++n) {
                const double few = check_result_of(out, (at + m) * columns + n), many = check_result_of(out, (all - most + m) * columns + n);
                check_that(few == many, "element [%lld, %lld] is %.9g in a call of %lld rows, %.9g in one of %lld", (long long)m, (long long)n, few, (long long)invariant_rows[i], many, (long long)most);
            }
    check_done(0, 0);
}

/* All builds that linear_same_bits() says are the same, one behind the other. */
static linear_choice same_builds[64];
static int           same_count;

static sgk_status by_each(const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *bias, const sgk_exec *exec)
{
    const int64_t rows   = input->shape[0];
    sgk_status    status = SGK_OK;
    for (int i = 0; i < same_count && status == SGK_OK; ++i) {
        if (on_cpu(out) && i > 0) {
            memcpy(row_of(out, i * rows), row_of(out, 0), (size_t)(row_of(out, rows) - row_of(out, 0)));
            continue;
        }
        int64_t  sizes[] = { rows, out->shape[1] };
        DLTensor y       = *out;
        y.shape          = sizes;
        y.byte_offset    = (uint64_t)(row_of(out, i * rows) - (char *)out->data);
        linear_forced    = same_builds[i];
        status           = sgk_linear(&y, input, weight, bias, exec);
    }
    linear_forced.kernel = NULL;
    return status;
}

static void check_linear_same(sgk_dtype dtype, sgk_dtype out_dtype, int64_t rows, int64_t columns, int64_t depth, int shares)
{
    extern const sgk_kernel_table gemm_kernels[];
    if (!check_on_gpu()) return;
    same_count = 0;
    for (const sgk_kernel_table *table = gemm_kernels; table->rows; ++table)
        for (size_t i = 0; i < table->count; ++i)
            for (int split = 1; split <= shares; split = split < shares ? shares : shares + 1) {
                const linear_choice choice = { .kernel = (sgk_kernel *)((char *)table->rows + i * table->row_size), .split = split };
                if (linear_takes(choice, dtype, out_dtype, rows, columns, depth) && linear_same_bits(choice, dtype, out_dtype, depth, shares) && same_count < (int)(sizeof same_builds / sizeof *same_builds))
                    same_builds[same_count++] = choice;
            }
    if (same_count < 2 || !check_case("linear_%s_%s_same_bits_%lldx%lldx%lld_in_%d", check_dtype(dtype), check_dtype(out_dtype), (long long)rows, (long long)columns, (long long)depth, shares)) return;
    check_switches.keep_arguments = true;
    check_tensor *input           = check_input_dense(dtype, 2, rows, depth);
    check_tensor *weight          = check_input_dense(dtype, 2, columns, depth);
    check_tensor *bias            = check_input(dtype, 1, columns);
    check_tensor *out             = check_output_dense(out_dtype, 2, rows * same_count, columns);
    CHECK_CALL(by_each(T(out), T(input), T(weight), T(bias), check_exec));
    check_close_sums(out, tolerance(dtype, out_dtype, depth), depth);
    for (int i = 1; i < same_count; ++i)
        for (int64_t e = 0; e < rows * columns; ++e) {
            const double first = check_result_of(out, e), other = check_result_of(out, i * rows * columns + e);
            check_that(first == other, "%s in %d gives %.9g where %s in %d gives %.9g", same_builds[i].kernel->defines, same_builds[i].split, other, same_builds[0].kernel->defines, same_builds[0].split, first);
        }
    check_done(0, 0);
}

#if defined(__x86_64__)
sgk_cpu_fn linear_amx, linear_amx_model;

/* What gemm_amx.c says it adds, in that order. */
static float in_steps(const uint16_t *x, const uint16_t *w, int64_t depth)
{
    float sum = 0;
    for (int64_t k = 0; k < depth; k += 32) {
        float chain[2] = { 0, 0 };
        for (int64_t i = k; i < k + 32 && i < depth; ++i) chain[i % 2] = fmaf(bf16_to_f32(x[i]), bf16_to_f32(w[i]), chain[i % 2]);
        sum += chain[0] + chain[1];
    }
    return sum;
}

static void *numbers(int64_t n)
{
    uint16_t *p = malloc((size_t)n * sizeof *p);
    for (int64_t i = 0; p && i < n; ++i) p[i] = f32_to_bf16((float)check_normal());
    return p;
}

/* Every bit of the version for AMX, with its tiles in C wherever AVX512_BF16 is, and as it is where AMX is. */
static void check_linear_tiles(int64_t rows, int64_t columns, int64_t depth, int64_t row_blocks)
{
    if (check_on_gpu() || (sgk_cpu_flags() & SGK_CPU_AVX512BF16) != SGK_CPU_AVX512BF16) return;
    const bool amx = sgk_cpu_flags() == SGK_CPU_AMX;
    if (!check_case("linear_bf16_tiles_%s_%lldx%lldx%lld", amx ? "amx" : "model", (long long)rows, (long long)columns, (long long)depth)) return;
    struct linear_cpu_args args = {
        .a          = { .rows = rows, .columns = columns, .depth = depth, .out_stride = columns, .input_stride = depth, .weight_stride = depth, .dtype = SGK_BF16, .out_dtype = SGK_F32, .input = numbers(rows * depth), .weight = numbers(columns * depth), .out = malloc((size_t)(rows * columns) * sizeof(float)) },
        .parts      = 1,
        .row_blocks = row_blocks,
        .scratch    = malloc(LINEAR_SCRATCH),
    };
    check_that(args.a.input && args.a.weight && args.a.out && args.scratch, "no memory");
    (amx ? linear_amx : linear_amx_model)(&args, 0, 1);
    const float *out = args.a.out;
    for (int64_t m = 0; m < rows; ++m)
        for (int64_t n = 0; n < columns; ++n) {
            const float found = out[m * columns + n], wanted = in_steps((const uint16_t *)args.a.input + m * depth, (const uint16_t *)args.a.weight + n * depth, depth);
            check_that(f32_bits(found) == f32_bits(wanted), "out[%lld, %lld] is %.9g, expected %.9g", (long long)m, (long long)n, (double)found, (double)wanted);
        }
    free((void *)args.a.input), free((void *)args.a.weight), free(args.a.out), free(args.scratch);
    check_done(0, 0);
}
#endif

static void check_linear_refused(sgk_dtype dtype)
{
    if (!check_case("linear_%s_refused", check_dtype(dtype))) return;
    const sgk_dtype other        = dtype == SGK_F16 ? SGK_BF16 : SGK_F16;
    check_tensor   *input        = check_input(dtype, 2, (int64_t)3, (int64_t)8);
    check_tensor   *weight       = check_input(dtype, 2, (int64_t)4, (int64_t)8);
    check_tensor   *other_weight = check_input(other, 2, (int64_t)4, (int64_t)8);
    check_tensor   *bias         = check_input(other, 1, (int64_t)4);
    check_tensor   *out          = check_output(dtype, 2, (int64_t)3, (int64_t)4);
    check_tensor   *other_out    = check_output(other, 2, (int64_t)3, (int64_t)4);
    CHECK_REFUSED(SGK_BAD_ARG, "weight has dtype", sgk_linear(T(out), T(input), T(other_weight), NULL, check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "bias has dtype", sgk_linear(T(out), T(input), T(weight), T(bias), check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "out has dtype", sgk_linear(T(other_out), T(input), T(weight), NULL, check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "out has size 4 in dimension 1, expected 3", sgk_linear(T(out), T(input), T(input), NULL, check_exec));
    check_done(0, 0);
}

void shape_gemm(const int64_t *sizes, int count)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (size_t f = 0; f < sizeof formats / sizeof *formats && count == 3; ++f)
        check_linear(formats[f], formats[f], NO_BIAS, sizes[0], sizes[1], sizes[2], true);
    if (count == 3) check_scaled_shape(sizes[0], sizes[1], sizes[2]);
}

void check_gemm(void)
{
    check_embed();
    check_scaled();
    check_packed();
    static const sgk_dtype formats[]                  = { SGK_F32, SGK_F16, SGK_BF16 };
    static const struct { int64_t m, n, k; } shapes[] = {
        { 0, 5, 7 },
        { 3, 0, 7 },
        { 3, 5, 0 },
        { 40, 5, 0 },
        { 1, 1, 1 },
        { 2, 17, 31 },
        { 3, 5, 512 },
        { 6, 70, 513 },
        { 7, 33, 1025 },
        { 24, 19, 64 },
        { 25, 65, 100 },
        { 64, 3, 2100 },
        { 67, 130, 530 },
        { 500, 9, 40 },
    };
    /* Aligned and dense, for the GPU's builds: each vector build with an odd number of columns, then the tiles from small to large. */
    static const struct { int64_t m, n, k; } dense[] = {
        { 1, 77, 1032 },
        { 3, 35, 520 },
        { 8, 21, 264 },
        { 16, 100, 1160 },
        { 32, 2201, 264 },
        { 500, 570, 72 },
        { 1000, 570, 40 },
        { 1000, 1150, 136 },
    };
    /* For sm_90a, N a multiple of 8: each of its tiles on a GPU of 132 multiprocessors, small ones with K in 1 to 4 shares. */
    static const struct { int64_t m, n, k; } tiled[] = {
        { 3, 72, 8 },
        { 1, 200, 264 },
        { 3, 136, 1032 },
        { 3, 25368, 72 },
        { 24, 136, 1096 },
        { 20, 8456, 72 },
        { 40, 200, 1032 },
        { 40, 8456, 8 },
        { 70, 200, 1032 },
        { 66, 2568, 72 },
        { 200, 1160, 8 },
        { 1100, 2056, 8 },
        { 130, 12296, 8 },
        { 260, 8456, 8 },
        { 130, 16392, 8 },
        { 3, 2120, 2056 },
    };
    for (int f = 0; f < 3; ++f) {
        const sgk_dtype t = formats[f];
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i)
            check_linear(t, i % 2 ? t : SGK_F32, (int)(i + (size_t)f) % 3, shapes[i].m, shapes[i].n, shapes[i].k, false);
        for (size_t i = 0; i < sizeof dense / sizeof *dense; ++i) {
            const bool large = dense[i].m >= 32, deep = t == SGK_BF16 && !check_small;
            if (large && t == SGK_F32) continue;                        /* no matrix units */
            check_linear(t, i % 2 ? SGK_F32 : t, (int)(i + (size_t)f) % 3, dense[i].m, dense[i].n, large && !deep ? 24 : dense[i].k, true);
        }
        for (size_t i = 0; i < sizeof tiled / sizeof *tiled && t != SGK_F32; ++i)
            check_linear(t, i % 3 == 1 ? SGK_F32 : t, (int)(i + (size_t)f) % 3, tiled[i].m, tiled[i].n, tiled[i].k, true);
        if (t == SGK_BF16 && !check_small) check_linear(t, t, BIAS, 130, 4232, 1096, true);
        if (t != SGK_F32) {
            check_linear_out_unaligned(t, 37, 136, 72);
            check_linear_out_unaligned(t, 200, 1160, 8);
            check_linear_out_unaligned(t, 10, 72, 1032);
        }
        for (int bias = NO_BIAS; bias <= BIAS_F32; ++bias) {
            check_linear(t, t, bias, 5, 12, 40, false);
            if (t != SGK_F32) check_linear(t, SGK_F32, bias, 5, 12, 40, false);
        }
        if (t != SGK_F32) {
            check_linear_builds(t, t, 13, 264, 1096, NULL);
            check_linear_builds(t, t, 1, 136, 7176, "SHARE=");
            check_linear_builds(t, SGK_F32, 3, 136, 1096, "SHARE=");
            check_linear_builds(t, t, 7, 136, 1096, "SHARE=");
            check_linear_builds(t, t, 7, 136, 1096, "EIGHTS=1");
            check_linear_builds(t, t == SGK_F16 ? SGK_F32 : t, 5, 77, 40, "AHEAD=");
            check_linear_builds(t, t == SGK_F16 ? t : SGK_F32, 11, 200, 8264, "AHEAD=");
            check_linear_builds(t, t == SGK_F16 ? SGK_F32 : t, 200, 328, 264, NULL);
            if (!check_small) check_linear_builds(t, t, 520, 8456, 136, "SWAP=0");          /* several tiles a block */
            for (int64_t slabs = 3; slabs > 0 && !check_small; --slabs) check_linear_builds(t, t, 1040, 4232, 64 * slabs - 56, "gemm_wide");
            if (!check_small) check_linear_builds(t, t, 136, 12808, 264, "SHARES=1");
            check_linear_builds(t, t == SGK_F16 ? t : SGK_F32, 70, 72, 8712, "CHAIN=8");
            check_linear_builds(t, t == SGK_F16 ? t : SGK_F32, 70, 72, 8712, "CHAIN=16");
            for (int64_t depth = 392; depth < 1200 && !check_small; depth += 632) check_linear_builds(t, t, 520, 2504, depth, "gemm_share");      /* more clusters than fit at once */
            for (int64_t depth = 200; depth < 2100; depth += 1856) check_linear_builds(t, t, 130, 200, depth, "gemm_share");      /* once and several times through the ring */
            if (!check_small) check_linear_builds(t, t, 9, 17000, 136, "LEAN=1");
        }
        check_linear_batched(t, t, true, 3, 5, 7, 33, false);
        check_linear_batched(t, SGK_F32, false, 2, 3, 21, 264, true);
        check_linear_batched(t, t, false, 5, 70, 136, 136, true);
        check_linear_batched(t, t, true, 2, 9, 72, 1032, true);
        check_linear_batched(t, t, false, 70, 40, 136, 136, true);         /* several products a block */
        if (!check_small && t != SGK_F32) check_linear_batched(t, t, false, 9, 300, 2056, 72, true);
        check_linear_batched(t, t, false, 0, 4, 5, 6, false);
        check_linear_batched(t, t, false, 4, 3, 5, 0, false);
        check_router(t, SGK_F32, 1, 256, 1096);
        check_router(t, t, 7, 40, 264);
        check_router(t, t, 17, 130, 100);
        check_fused_a(t, 1, 264, 1032, true);
        check_fused_a(t, 9, 72, 264, true);
        check_fused_a(t, 1, 2112, 2056, true);
        check_fused_a(t, 7, 712, 2056, true);
        check_fused_a(t, 12, 705, 4104, true);
        check_fused_a(t, 18, 77, 31, false);
        check_linear_folded(t);
        check_linear_invariant(t, 75, 1288);
        check_linear_invariant(t, 10, 2077);
        check_linear_invariant(t, 136, 1032);
        check_linear_rows(t, t, 136, 1032);
        check_linear_rows(t, SGK_F32, 72, 2056);
        if (t != SGK_F32) check_linear_rows(t, SGK_F32, 40, 8712);
        if (t == SGK_BF16) check_linear_rows(t, t, 2120, 1088);
        if (t != SGK_F16) check_linear_rows(t, t, 200, 4168);
        if (t == SGK_F32) check_linear_builds(t, t, 70, 72, 1032, NULL);
        for (int shares = 1; shares <= 4 && t != SGK_F32; ++shares) {
            check_linear_same(t, t, 130, 264, 1032 + 512 * shares, shares);
            check_linear_same(t, t, 70, 200, 3 * 512, shares);
            check_linear_same(t, SGK_F32, 130, 264, 1032 + 512 * shares, shares);
            check_linear_same(t, SGK_F32, 70, 72, 8200 + 128 * shares, shares);
        }
        if (t != SGK_F32) check_linear_same(t, t, 70, 72, 952, 8);
        check_linear_refused(t);
    }
#if defined(__x86_64__)
    check_linear_tiles(1, 1, 1, 1);
    check_linear_tiles(25, 5, 31, 1);
    check_linear_tiles(33, 150, 65, 2);
    check_linear_tiles(70, 40, 2100, 1);
#endif
    if (check_benching) {
        check_router(SGK_BF16, SGK_F32, 1, 256, 7168);
        check_router(SGK_BF16, SGK_F32, 16, 256, 7168);
        check_fused_a(SGK_BF16, 1, 2112, 7168, true);
        check_fused_a(SGK_BF16, 16, 2112, 7168, true);
        check_linear_batched(SGK_BF16, SGK_BF16, false, 128, 64, 512, 128, true);
        for (int f = 0; f < 3; ++f) {
            check_linear(formats[f], formats[f], NO_BIAS, 1, 2048, 256, true);
            check_linear(formats[f], formats[f], NO_BIAS, 1, 4096, 4096, true);
            check_linear(formats[f], formats[f], NO_BIAS, 16, 4096, 4096, true);
            check_linear(formats[f], formats[f], NO_BIAS, 512, 4096, 4096, true);
        }
    }
}
