#include "copy.h"
#include <string.h>
#include "base/convert.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/indices.h"
#include "sgl_kernel/copy.h"

SGK_CPU_DECL(concat);
static const sgk_cpu_impl concat_cpu[] = SGK_CPU_IMPLS(concat);
SGK_CPU_DECL(downcast);
static const sgk_cpu_impl downcast_cpu[] = SGK_CPU_IMPLS(downcast);

/* PIECE is the unit that is copied, uint4 (16 bytes) where every address and stride allows it. */
typedef struct {
    sgk_kernel kernel;
    int        piece;
} concat_build;
#define CONCAT(type, bytes) { SGK_KERNEL("copy/concat.cu", "concat", "-DPIECE=" type, SGK_GENERAL), bytes }
static concat_build concat_builds[] = { CONCAT("uint4", 16), CONCAT("uint2", 8), CONCAT("uint32_t", 4), CONCAT("uint16_t", 2), CONCAT("uint8_t", 1) };

/* The engine's calls are short, and a launch costs more with the bytes of its arguments. */
typedef struct {
    sgk_kernel kernel;
    int        values;
} values_build;
#define COPY_VALUES(most) { SGK_KERNEL("copy/copy_values.cu", "copy_values", "-DVALUES=" #most, SGK_GENERAL), most }
static values_build values_builds[] = { COPY_VALUES(80), COPY_VALUES(960) };

/* The last of a format takes any row. */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        piece;
} downcast_build;
#define DOWNCAST(type, dtype, piece) { SGK_KERNEL("copy/downcast.cu", "downcast_fp8", "-DT=" type " -DPIECE=" #piece, SGK_GENERAL), dtype, piece }
static downcast_build downcast_builds[] = {
    DOWNCAST("f16", SGK_F16, 8),
    DOWNCAST("f16", SGK_F16, 1),
    DOWNCAST("bf16", SGK_BF16, 8),
    DOWNCAST("bf16", SGK_BF16, 1),
};

const sgk_kernel_table copy_kernels[] = {
    SGK_KERNEL_TABLE(concat_builds),
    SGK_KERNEL_TABLE(values_builds),
    SGK_KERNEL_TABLE(downcast_builds),
    { 0 },
};

/* ---- concat ------------------------------------------------------------------------------------------------------ */

enum { ANY_FORMAT = (1 << SGK_DTYPES) - 1 };

static struct concat_part part(const DLTensor *t, bool shared, int64_t size)
{
    return (struct concat_part){ sgk_data(t), sgk_stride(t, 0) * size, shared ? 0 : sgk_stride(t, 1) * size, t->shape[2] * size };
}

static bool in_pieces(const struct concat_args *a, uint64_t piece)
{
    return ((uintptr_t)a->out | (uint64_t)a->row_stride | (uint64_t)a->head_stride |
            (uintptr_t)a->a.data | (uint64_t)a->a.row_stride | (uint64_t)a->a.head_stride | (uint64_t)a->a.bytes |
            (uintptr_t)a->b.data | (uint64_t)a->b.row_stride | (uint64_t)a->b.head_stride | (uint64_t)a->b.bytes) %
               piece ==
           0;
}

static sgk_status concat_cuda(const sgk_match *m, struct concat_args *a, const sgk_exec *exec)
{
    concat_build *b = concat_builds;
    while (!in_pieces(a, (uint64_t)b->piece)) ++b;
    const int64_t each = (a->a.bytes + a->b.bytes) / b->piece, width = each < CONCAT_THREADS ? each : CONCAT_THREADS, lines = CONCAT_THREADS / width;
    SGK_REQUIRE(each <= INT32_MAX && a->heads <= INT32_MAX, SGK_UNSUPPORTED, "%s: rows of %lld bytes and %lld heads, expected fewer than 2^31 pieces of %d bytes and heads",
                m->op, (long long)(a->a.bytes + a->b.bytes), (long long)a->heads, b->piece);
    SGK_LOG_BUILD(exec, m->op, &b->kernel, b->piece == 16 ? "" : " (rows not in 16-byte pieces)");
    const int64_t some = CONCAT_STEPS * lines, chunks = (each + width - 1) / width;
    a->lines = (uint32_t)lines, a->width = sgk_divisor_of(width), a->chunks = sgk_divisor_of(chunks), a->by_heads = sgk_divisor_of(a->heads);
    const sgk_launch shape = { .grid = { (a->rows * a->heads + some - 1) / some * chunks }, .block = { (unsigned)(lines * width + 31) / 32 * 32 } };
    return sgk_cuda_launch(m->op, &b->kernel, &shape, m->device.device_id, exec, a, sizeof *a);
}

/* `shared`: b has one head, which every head of out gets. */
static sgk_status concat(sgk_match *m, const DLTensor *out, const DLTensor *a, const DLTensor *b, bool shared, const sgk_exec *exec)
{
    SGK_TRY(sgk_match_done(m));
    SGK_NO_SCRATCH(exec);
    const int64_t      size = sgk_dtype_size(m->dtype);
    struct concat_args args = {
        .out         = sgk_data(out),
        .row_stride  = sgk_stride(out, 0) * size,
        .head_stride = sgk_stride(out, 1) * size,
        .a           = part(a, false, size),
        .b           = part(b, shared, size),
        .rows        = out->shape[0],
        .heads       = out->shape[1],
    };
    if (sgk_numel(out) == 0) return SGK_OK;
    if (args.rows == 1) args.row_stride = args.a.row_stride = args.b.row_stride = 0;            /* strides that are never taken */
    if (args.heads == 1) args.head_stride = args.a.head_stride = args.b.head_stride = 0;
    if (args.a.bytes == 0) args.a.data = NULL, args.a.row_stride = args.a.head_stride = 0;
    if (args.b.bytes == 0) args.b.data = NULL, args.b.row_stride = args.b.head_stride = 0;
    if (sgk_on_gpu(m)) return concat_cuda(m, &args, exec);
    return sgk_cpu_run(m->op, concat_cpu, &args, args.rows * args.heads, sgk_cpu_grain(args.a.bytes + args.b.bytes), exec);
}

sgk_status sgk_concat_mla_k(const DLTensor *k, const DLTensor *k_nope, const DLTensor *k_rope, const sgk_exec *exec)
{
    sgk_match m = { .op = "concat_mla_k" };
    SGK_MATCH_OUT(&m, k, "T H W", ANY_FORMAT);
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
    SGK_MATCH(&m, a, "M N A", 1u << m.dtype);
    SGK_MATCH(&m, b, "M N B", 1u << m.dtype);
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
        a.count  = count - done < b->values ? count - done : b->values;
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
    SGK_MATCH(&from, input, "N", 1 << SGK_I32);
    SGK_REQUIRE(!sgk_on_gpu(&from), SGK_BAD_ARG, "%s: input is on CUDA device %d, expected the CPU", m.op, from.device.device_id);
    SGK_REQUIRE(SGK_DIM(&from, 'N') == SGK_DIM(&m, 'N'), SGK_BAD_ARG, "%s: input has size %lld, expected %lld like output", m.op,
                (long long)SGK_DIM(&from, 'N'), (long long)SGK_DIM(&m, 'N'));
    if (!sgk_on_gpu(&m)) SGK_MATCH(&m, input, "N", 1 << SGK_I32);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const int64_t count = SGK_DIM(&m, 'N');
    if (count == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return copy_values_cuda(&m, sgk_data(output), sgk_data(input), count, exec);
    if (sgk_log_wanted(exec)) sgk_log(exec, "%s: cpu, memcpy", m.op);
    memcpy(sgk_data(output), sgk_data(input), (size_t)count * sizeof(int32_t));
    return SGK_OK;
}

/* ---- downcast_fp8 ------------------------------------------------------------------------------------------------ */

static sgk_status dense_rows(const sgk_match *m, const DLTensor *t, const char *name)
{
    SGK_REQUIRE(t->shape[1] == 1 || sgk_stride(t, 1) == t->shape[2], SGK_BAD_ARG, "%s: %s has stride %lld in dimension 1, expected %lld (dense rows)", m->op, name,
                (long long)sgk_stride(t, 1), (long long)t->shape[2]);
    return SGK_OK;
}

static struct downcast_rows downcast_rows_of(const DLTensor *out, const DLTensor *x, const DLTensor *scale)
{
    return (struct downcast_rows){ sgk_data(out), sgk_data(x), sgk_data(scale), out->shape[0] == 1 ? 0 : sgk_stride(out, 0), x->shape[0] == 1 ? 0 : sgk_stride(x, 0) };
}

/* Eight elements are 16 bytes of x and 8 of out. */
static bool in_eights(const struct downcast_rows *r, int64_t dim)
{
    return (uintptr_t)r->x % 16 == 0 && (uintptr_t)r->out % 8 == 0 && (r->stride | r->out_stride | dim) % 8 == 0;
}

static sgk_status downcast_cuda(const sgk_match *m, struct downcast_args *a, const sgk_exec *exec)
{
    enum { THREADS = 256,                               /* as in downcast.cu */
           FEW     = 2048 };                            /* tokens: fewer fill the machine only with many threads a row */
    downcast_build *b = downcast_builds;
    while (b->dtype != a->dtype || (b->piece > 1 && !(in_eights(&a->rows[0], a->dim) && in_eights(&a->rows[1], a->dim)))) ++b;
    SGK_LOG_BUILD(exec, m->op, &b->kernel, b->piece > 1 ? "" : " (rows are not in 16-byte pieces)");
    a->lanes_log2 = 5;
    while (a->tokens < FEW && 1 << a->lanes_log2 < THREADS && 1 << a->lanes_log2 < a->dim / b->piece) ++a->lanes_log2;
    const int64_t    each  = THREADS >> a->lanes_log2;
    const sgk_launch shape = { .grid = { (a->tokens + each - 1) / each, 2 }, .block = { THREADS } };
    return sgk_cuda_launch(m->op, &b->kernel, &shape, m->device.device_id, exec, a, sizeof *a);
}

static sgk_status check_places(const sgk_match *m, const struct downcast_args *a, const void *loc)
{
    for (int64_t t = 0; t < a->tokens; ++t) {
        const int64_t at = load_index(loc, t, a->wide_loc ? SGK_I64 : SGK_I32);
        SGK_REQUIRE(at >= INT32_MIN && at <= INT32_MAX && at * a->mult + a->offset >= 0 && at * a->mult + a->offset < a->places, SGK_BAD_ARG,
                    "%s: loc[%lld] is %lld, expected a place from 0 to %lld once it is times %lld plus %lld", m->op, (long long)t, (long long)at,
                    (long long)a->places - 1, (long long)a->mult, (long long)a->offset);
    }
    return SGK_OK;
}

sgk_status sgk_downcast_fp8(const DLTensor *k_out, const DLTensor *v_out, const DLTensor *k, const DLTensor *v, const DLTensor *k_scale,
                            const DLTensor *v_scale, const DLTensor *loc, int64_t mult, int64_t offset, const sgk_exec *exec)
{
    sgk_match      m     = { .op = "downcast_fp8" };
    const unsigned bytes = 1 << SGK_E4M3 | 1 << SGK_U8;
    SGK_MATCH(&m, k, "S H D", 1 << SGK_F16 | 1 << SGK_BF16);
    SGK_MATCH(&m, v, "S H D", 1u << m.dtype);
    SGK_MATCH_OUT(&m, k_out, "R H D", bytes);
    SGK_MATCH_OUT(&m, v_out, "R H D", 1u << sgk_dtype_at(k_out));
    SGK_MATCH(&m, k_scale, "1", 1 << SGK_F32);
    SGK_MATCH(&m, v_scale, "1", 1 << SGK_F32);
    SGK_MATCH(&m, loc, "S", SGK_ANY_INDEX);
    SGK_TRY(dense_rows(&m, k, "k"));
    SGK_TRY(dense_rows(&m, v, "v"));
    SGK_TRY(dense_rows(&m, k_out, "k_out"));
    SGK_TRY(dense_rows(&m, v_out, "v_out"));
    SGK_REQUIRE(mult >= 0 && mult <= INT32_MAX && offset >= INT32_MIN && offset <= INT32_MAX, SGK_BAD_ARG, "%s: mult is %lld and offset %lld, expected 32-bit numbers, mult not negative",
                m.op, (long long)mult, (long long)offset);
    SGK_TRY(sgk_match_done(&m));
    struct downcast_args a = {
        .rows     = { downcast_rows_of(k_out, k, k_scale), downcast_rows_of(v_out, v, v_scale) },
        .loc      = sgk_data(loc),
        .tokens   = SGK_DIM(&m, 'S'),
        .places   = SGK_DIM(&m, 'R'),
        .dim      = SGK_DIM(&m, 'H') * SGK_DIM(&m, 'D'),
        .mult     = mult,
        .offset   = offset,
        .dtype    = m.dtype,
        .wide_loc = sgk_dtype_at(loc) == SGK_I64,
    };
    SGK_NO_SCRATCH(exec);
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m.op, m.device, &loc, 1, exec));
    SGK_TRY(sgk_indices_done(&host, host.known ? check_places(&m, &a, host.data[0]) : SGK_OK));
    if (a.tokens == 0 || a.dim == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return downcast_cuda(&m, &a, exec);
    return sgk_cpu_run(m.op, downcast_cpu, &a, a.tokens, sgk_cpu_grain(6 * a.dim), exec);
}
