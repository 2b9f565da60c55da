#include "copy.h"
#include <string.h>
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/copy.h"

/* memcpy is as fast as the machine: the reference is the only version on the CPU. */
sgk_cpu_fn concat_ref;
static const sgk_cpu_impl concat_cpu[] = { { "ref", 0, concat_ref } };

/* PIECE is the unit that is copied, uint4 (16 bytes) where every address and stride allows it. */
typedef struct { sgk_kernel kernel; int piece; } concat_build;
#define CONCAT(type, bytes) { SGK_KERNEL("copy/concat.cu", "concat", "-DPIECE=" type, SGK_GENERAL), bytes }
static concat_build concat_builds[] = { CONCAT("uint4", 16), CONCAT("uint2", 8), CONCAT("uint32_t", 4), CONCAT("uint16_t", 2), CONCAT("uint8_t", 1) };

/* The engine's calls are short, and a launch costs more with the bytes of its arguments. */
typedef struct { sgk_kernel kernel; int values; } values_build;
#define COPY_VALUES(most) { SGK_KERNEL("copy/copy_values.cu", "copy_values", "-DVALUES=" #most, SGK_GENERAL), most }
static values_build values_builds[] = { COPY_VALUES(80), COPY_VALUES(960) };

const sgk_kernel_table copy_kernels[] = { SGK_KERNEL_TABLE(concat_builds), SGK_KERNEL_TABLE(values_builds), { 0 } };

/* ---- concat ------------------------------------------------------------------------------------------------------ */

enum { ANY_FORMAT = (1 << SGK_DTYPES) - 1, THREADS = 256, STEPS = 4 };          /* the last two as in concat.cu */

static struct concat_part part(const DLTensor *t, bool shared, int64_t size)
{
    return (struct concat_part){ sgk_data(t), sgk_stride(t, 0) * size, shared ? 0 : sgk_stride(t, 1) * size, t->shape[2] * size };
}

static bool in_pieces(const struct concat_args *a, uint64_t piece)
{
    return ((uintptr_t)a->out | (uint64_t)a->row_stride | (uint64_t)a->head_stride |
            (uintptr_t)a->a.data | (uint64_t)a->a.row_stride | (uint64_t)a->a.head_stride | (uint64_t)a->a.bytes |
            (uintptr_t)a->b.data | (uint64_t)a->b.row_stride | (uint64_t)a->b.head_stride | (uint64_t)a->b.bytes) % piece == 0;
}

static sgk_status concat_cuda(const sgk_match *m, const struct concat_args *a, const sgk_exec *exec)
{
    concat_build *b = concat_builds;
    while (!in_pieces(a, (uint64_t)b->piece)) ++b;
    const int64_t each = (a->a.bytes + a->b.bytes) / b->piece, block = THREADS * STEPS;
    SGK_REQUIRE(each <= INT32_MAX && a->heads <= INT32_MAX, SGK_UNSUPPORTED, "%s: rows of %lld bytes and %lld heads, expected fewer than 2^31 pieces of %d bytes and heads",
                m->op, (long long)(a->a.bytes + a->b.bytes), (long long)a->heads, b->piece);
    SGK_LOG_BUILD(exec, m->op, &b->kernel, b->piece == 16 ? "" : " (rows not in 16-byte pieces)");
    const sgk_launch shape = { .grid = { (a->rows * a->heads * each + block - 1) / block }, .block = { THREADS } };
    return sgk_cuda_launch(m->op, &b->kernel, &shape, m->device.device_id, exec, a, sizeof *a);
}

/* `shared`: b has one head, which every head of out gets. */
static sgk_status concat(sgk_match *m, const DLTensor *out, const DLTensor *a, const DLTensor *b, bool shared, const sgk_exec *exec)
{
    SGK_TRY(sgk_match_done(m));
    SGK_NO_SCRATCH(exec);
    const int64_t size = sgk_dtype_size(m->dtype);
    struct concat_args args = {
        .out = sgk_data(out), .row_stride = sgk_stride(out, 0) * size, .head_stride = sgk_stride(out, 1) * size,
        .a = part(a, false, size), .b = part(b, shared, size), .rows = out->shape[0], .heads = out->shape[1],
    };
    if (sgk_numel(out) == 0) return SGK_OK;
    if (args.rows == 1) args.row_stride = args.a.row_stride = args.b.row_stride = 0;            /* strides that are never taken */
    if (args.heads == 1) args.head_stride = args.a.head_stride = args.b.head_stride = 0;
    if (args.a.bytes == 0) args.a.data = NULL, args.a.row_stride = args.a.head_stride = 0;
    if (args.b.bytes == 0) args.b.data = NULL, args.b.row_stride = args.b.head_stride = 0;
    if (sgk_on_gpu(m)) return concat_cuda(m, &args, exec);
    return sgk_cpu_run(m->op, concat_cpu, &args, args.rows * args.heads, sgk_cpu_grain(2 * (args.a.bytes + args.b.bytes)), exec);
}

sgk_status sgk_concat_mla_k(const DLTensor *k, const DLTensor *k_nope, const DLTensor *k_rope, const sgk_exec *exec)
{
    sgk_match m = { .op = "concat_mla_k" };
    SGK_MATCH_OUT(&m, k,  "T H W", ANY_FORMAT);
    SGK_MATCH(&m, k_nope, "T H D", 1u << m.dtype);
    SGK_MATCH(&m, k_rope, "T 1 R", 1u << m.dtype);
    SGK_REQUIRE(SGK_DIM(&m, 'W') == SGK_DIM(&m, 'D') + SGK_DIM(&m, 'R'), SGK_BAD_ARG, "%s: k has size %lld in dimension 2, expected %lld + %lld like k_nope and k_rope",
                m.op, (long long)SGK_DIM(&m, 'W'), (long long)SGK_DIM(&m, 'D'), (long long)SGK_DIM(&m, 'R'));
    return concat(&m, k, k_nope, k_rope, true, exec);
}

sgk_status sgk_concat_mla_absorb_q(const DLTensor *out, const DLTensor *a, const DLTensor *b, const sgk_exec *exec)
{
    sgk_match m = { .op = "concat_mla_absorb_q" };
    SGK_MATCH_OUT(&m, out, "M N W", ANY_FORMAT);
    SGK_MATCH(&m, a,       "M N A", 1u << m.dtype);
    SGK_MATCH(&m, b,       "M N B", 1u << m.dtype);
    SGK_REQUIRE(SGK_DIM(&m, 'W') == SGK_DIM(&m, 'A') + SGK_DIM(&m, 'B'), SGK_BAD_ARG, "%s: out has size %lld in dimension 2, expected %lld + %lld like a and b",
                m.op, (long long)SGK_DIM(&m, 'W'), (long long)SGK_DIM(&m, 'A'), (long long)SGK_DIM(&m, 'B'));
    return concat(&m, out, a, b, false, exec);
}

/* ---- copy_to_gpu_no_ce --------------------------------------------------------------------------------------------- */

static sgk_status copy_values_cuda(const sgk_match *m, int32_t *output, const int32_t *input, int64_t count, const sgk_exec *exec)
{
    values_build *b = &values_builds[count > values_builds[0].values];
    SGK_LOG_BUILD(exec, m->op, &b->kernel, "");
    struct copy_values_args a;
    for (int64_t done = 0; done < count; done += a.count) {
        a.output = output + done;
        a.count = count - done < b->values ? count - done : b->values;
        memcpy(a.values, input + done, (size_t)a.count * sizeof *a.values);
        const sgk_launch shape = { .grid = { 1 }, .block = { b->values < 256 ? 96 : 256 } };
        SGK_TRY(sgk_cuda_launch(m->op, &b->kernel, &shape, m->device.device_id, exec, &a, offsetof(struct copy_values_args, values) + (size_t)b->values * sizeof *a.values));
    }
    return SGK_OK;
}

sgk_status sgk_copy_to_gpu_no_ce(const DLTensor *output, const DLTensor *input, const sgk_exec *exec)
{
    /* The two may be on different devices, which matching refuses: each is matched by itself, and both together only on the CPU. */
    sgk_match m = { .op = "copy_to_gpu_no_ce" }, from = m;
    SGK_MATCH_OUT(&m, output, "N", 1 << SGK_I32);
    SGK_MATCH(&from,  input,  "N", 1 << SGK_I32);
    SGK_REQUIRE(!sgk_on_gpu(&from), SGK_BAD_ARG, "%s: input is on CUDA device %d, expected the CPU", m.op, from.device.device_id);
    SGK_REQUIRE(SGK_DIM(&from, 'N') == SGK_DIM(&m, 'N'), SGK_BAD_ARG, "%s: input has size %lld, expected %lld like output", m.op,
                (long long)SGK_DIM(&from, 'N'), (long long)SGK_DIM(&m, 'N'));
    if (!sgk_on_gpu(&m)) SGK_MATCH(&m, input, "N", 1 << SGK_I32);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const int64_t count = SGK_DIM(&m, 'N');
    if (count == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return copy_values_cuda(&m, sgk_data(output), sgk_data(input), count, exec);
    memcpy(sgk_data(output), sgk_data(input), (size_t)count * sizeof(int32_t));
    return SGK_OK;
}
