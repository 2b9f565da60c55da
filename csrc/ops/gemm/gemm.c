#include "gemm.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "gemm_gpu.h"
#include "gemm_packed_run.h"
#include "sgl_kernel/gemm.h"

SGK_CPU_DECL(linear);
SGK_CPU_DECL_AMX(linear);
static const sgk_cpu_impl linear_cpu[] = SGK_CPU_IMPLS(linear), linear_tiles_cpu[] = SGK_CPU_IMPLS_AMX(linear);

static int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Reading this many bytes of weights from the cache, or so many operations, is worth waking a thread for (see sgk_cpu_grain). */
enum { LINEAR_GRAIN_BYTES      = 384 * 1024,
       LINEAR_GRAIN_OPERATIONS = 4 * 1024 * 1024 };

/* bf16 where the CPU multiplies pairs of it: lanes along the columns, weights turned on the way. */
static sgk_status linear_in_pairs(const char *op, const struct linear_args *a, DLDevice device, const sgk_exec *exec)
{
    const struct packed_args p = {
        .out           = a->out,
        .input         = a->input,
        .weight        = a->weight,
        .bias          = a->bias,
        .batch         = 1,
        .rows          = a->rows,
        .columns       = a->columns,
        .depth         = a->depth,
        .out_stride    = a->out_stride,
        .input_stride  = a->input_stride,
        .weight_stride = a->weight_stride,
        .dtype         = a->dtype,
        .out_dtype     = a->out_dtype,
        .bias_dtype    = a->bias_dtype,
        .format        = WEIGHT_BF16,
        .plain         = true,
    };
    return packed_product(op, &p, false, device, exec);
}

static sgk_status linear_on_cpu(const char *op, const struct linear_args *a, DLDevice device, const sgk_exec *exec)
{
    struct linear_cpu_args cpu     = { .a = *a, .row_blocks = ceil_div(a->rows, LINEAR_BLOCK_ROWS) };
    const int64_t          threads = sgk_num_threads(exec), weights = a->columns * (a->depth + 1);
    /* AMX adds in another order than few rows are added in. */
    const bool tiles = a->dtype == SGK_BF16 && a->rows > LINEAR_FEW_TILES && sgk_cpu_has_amx() && !sgk_exec_batch_invariant(exec);
    /* So do more rows than wait for memory alone, which have lanes along the columns; not those of a batch. */
    const bool pairs = a->batch == 1 && a->dtype == SGK_BF16 && !tiles && packed_has_pairs() && (a->rows > LINEAR_FEW_PAIRS || sgk_exec_batch_invariant(exec));
    if (pairs) return linear_in_pairs(op, a, device, exec);
    const bool    few   = a->rows <= LINEAR_FEW_ROWS && !tiles;
    const int64_t worth = 1 + weights * sgk_dtype_size(a->dtype) / LINEAR_GRAIN_BYTES;
    if (few) {
        cpu.parts = least(least(threads, ceil_div(a->columns, 16)), a->rows == 1 ? worth : 1 + 2 * a->rows * weights / LINEAR_GRAIN_OPERATIONS);
    } else {
        const int64_t across = ceil_div(a->columns, LINEAR_BLOCK), most = ceil_div(a->rows, LINEAR_FEW_ROWS);
        if (cpu.row_blocks * across < 4 * threads) cpu.row_blocks = least(most, ceil_div(4 * threads, across));
        cpu.parts = least(threads, cpu.row_blocks * across);
    }
    sgk_scratch scratch;
    SGK_TRY(sgk_scratch_get(&scratch, op, few ? 0 : (size_t)cpu.parts * LINEAR_SCRATCH, device, exec));
    if (scratch.query_only) return SGK_OK;
    cpu.scratch       = scratch.memory;
    sgk_status status = SGK_OK;
    for (int64_t i = 0; i < a->batch && status == SGK_OK; ++i) {        /* the products one after the other: each has all threads */
        status       = sgk_cpu_run(op, tiles ? linear_tiles_cpu : linear_cpu, &cpu, cpu.parts, 1, exec);
        cpu.a.out    = (char *)cpu.a.out + a->out_batch * sgk_dtype_size(a->out_dtype);
        cpu.a.input  = (const char *)cpu.a.input + a->input_batch * sgk_dtype_size(a->dtype);
        cpu.a.weight = (const char *)cpu.a.weight + a->weight_batch * sgk_dtype_size(a->dtype);
        if (a->bias) cpu.a.bias = (const char *)cpu.a.bias + a->bias_batch * sgk_dtype_size(a->bias_dtype);
    }
    sgk_scratch_put(&scratch);
    return status;
}

static sgk_status run(const sgk_match *m, const struct linear_args *a, const sgk_exec *exec)
{
    if (a->batch == 0 || a->rows == 0 || a->columns == 0) {
        SGK_NO_SCRATCH(exec);
        return SGK_OK;
    }
    if (sgk_on_gpu(m)) {
        SGK_NO_SCRATCH(exec);
        return linear_on_gpu(m->op, a, m->device.device_id, exec);
    }
    return linear_on_cpu(m->op, a, m->device, exec);
}

/* One product of matrices whose sizes were matched as M, N and K; `early` as of linear_args. */
static struct linear_args product(const sgk_match *m, const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *bias, bool early)
{
    return (struct linear_args){
        .out           = sgk_data(out),
        .input         = sgk_data(input),
        .weight        = sgk_data(weight),
        .bias          = sgk_data(bias),
        .rows          = SGK_DIM(m, 'M'),
        .columns       = SGK_DIM(m, 'N'),
        .depth         = SGK_DIM(m, 'K'),
        .out_stride    = sgk_fold_stride(out, 1),
        .input_stride  = sgk_fold_stride(input, 1),
        .weight_stride = sgk_stride(weight, -2),
        .dtype         = m->dtype,
        .out_dtype     = sgk_dtype_at(out),
        .bias_dtype    = bias ? sgk_dtype_at(bias) : SGK_F32,
        .batch         = 1,
        .early         = early,
    };
}

sgk_status sgk_linear(const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *bias, const sgk_exec *exec)
{
    sgk_match m = { .op = "linear" };
    SGK_MATCH(&m, input, "*M K", SGK_ANY_FLOAT);
    SGK_MATCH(&m, weight, "N K", 1u << m.dtype);
    SGK_MATCH_OPT(&m, bias, "N", 1u << m.dtype | 1u << SGK_F32);
    SGK_MATCH_OUT(&m, out, "*M N", 1u << m.dtype | 1u << SGK_F32);
    SGK_TRY(sgk_match_done(&m));

    const struct linear_args a = product(&m, out, input, weight, bias, sgk_exec_pdl_asked(exec));
    return run(&m, &a, exec);
}

sgk_status sgk_linear_batched(const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *bias, const sgk_exec *exec)
{
    sgk_match m = { .op = "linear_batched" };
    SGK_MATCH(&m, input, "B M K", SGK_ANY_FLOAT);
    SGK_MATCH(&m, weight, "B N K", 1u << m.dtype);
    SGK_MATCH_OPT(&m, bias, "B N", 1u << m.dtype | 1u << SGK_F32);
    SGK_MATCH_OUT(&m, out, "B M N", 1u << m.dtype | 1u << SGK_F32);
    SGK_TRY(sgk_match_done(&m));

    struct linear_args a = product(&m, out, input, weight, bias, sgk_exec_pdl_asked(exec));
    a.out_stride         = sgk_stride(out, 1);
    a.input_stride       = sgk_stride(input, 1);
    a.batch              = SGK_DIM(&m, 'B');
    a.out_batch          = sgk_stride(out, 0);
    a.input_batch        = sgk_stride(input, 0);
    a.weight_batch       = sgk_stride(weight, 0);
    a.bias_batch         = bias ? sgk_stride(bias, 0) : 0;
    return run(&m, &a, exec);
}

sgk_status sgk_dsv3_router_gemm(const DLTensor *output, const DLTensor *mat_a, const DLTensor *mat_b, const sgk_exec *exec)
{
    sgk_match m = { .op = "dsv3_router_gemm" };
    SGK_MATCH(&m, mat_a, "M K", SGK_ANY_FLOAT);
    SGK_MATCH(&m, mat_b, "N K", 1u << m.dtype);
    SGK_MATCH_OUT(&m, output, "M N", 1u << m.dtype | 1u << SGK_F32);
    SGK_TRY(sgk_match_done(&m));

    const struct linear_args a = product(&m, output, mat_a, mat_b, NULL, sgk_exec_pdl(exec));
    return run(&m, &a, exec);
}

sgk_status sgk_dsv3_fused_a_gemm(const DLTensor *output, const DLTensor *mat_a, const DLTensor *mat_b, const sgk_exec *exec)
{
    sgk_match m = { .op = "dsv3_fused_a_gemm" };
    SGK_MATCH(&m, mat_a, "M K", SGK_ANY_FLOAT);
    SGK_MATCH(&m, mat_b, "K N~", 1u << m.dtype);
    SGK_MATCH_OUT(&m, output, "M N", 1u << m.dtype | 1u << SGK_F32);
    SGK_REQUIRE(SGK_DIM(&m, 'K') <= 1 || sgk_stride(mat_b, 0) == 1, SGK_BAD_ARG,
                "%s: mat_b has stride %lld in dimension 0, expected 1: columns must be dense", m.op, (long long)sgk_stride(mat_b, 0));
    SGK_TRY(sgk_match_done(&m));

    struct linear_args a = product(&m, output, mat_a, mat_b, NULL, sgk_exec_pdl(exec));
    a.weight_stride      = sgk_stride(mat_b, 1);
    return run(&m, &a, exec);
}
