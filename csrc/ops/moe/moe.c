#include "moe.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/indices.h"
#include "sgl_kernel/moe.h"

SGK_CPU_DECL(moe_sum);
static const sgk_cpu_impl moe_sum_cpu[] = SGK_CPU_IMPLS(moe_sum);

/* memcpy is as fast as the machine: the reference is the only version on the CPU. */
SGK_CPU_DECL(shuffle_rows);
static const sgk_cpu_impl shuffle_rows_cpu[] = SGK_CPU_IMPLS(shuffle_rows);

/* PIECE is the unit that is copied, uint4 (16 bytes) where every address and stride allows it. */
typedef struct {
    sgk_kernel kernel;
    int        piece;
} shuffle_build;
#define SHUFFLE(type, bytes) { SGK_KERNEL("moe/moe_shuffle.cu", "shuffle_rows", "-DPIECE=" type, SGK_GENERAL), bytes }
static shuffle_build shuffle_builds[] = { SHUFFLE("uint4", 16), SHUFFLE("uint32_t", 4), SHUFFLE("uint16_t", 2), SHUFFLE("uint8_t", 1) };

/* The last of a format takes any row. */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        piece;
} sum_build;
#define SUM(type, dtype, piece, shuffled) \
    { SGK_KERNEL("moe/moe_sum.cu", "moe_sum", "-DT=" type " -DPIECE=" #piece " -DSHUFFLED=" #shuffled, SGK_GENERAL), dtype, piece }
#define SUMS(shuffled) { \
    SUM("f32", SGK_F32, 4, shuffled), \
    SUM("f32", SGK_F32, 1, shuffled), \
    SUM("f16", SGK_F16, 8, shuffled), \
    SUM("f16", SGK_F16, 1, shuffled), \
    SUM("bf16", SGK_BF16, 8, shuffled), \
    SUM("bf16", SGK_BF16, 1, shuffled), \
}
static sum_build sum_builds[]          = SUMS(0);
static sum_build shuffled_sum_builds[] = SUMS(1);

const sgk_kernel_table moe_kernels[] = {
    SGK_KERNEL_TABLE(shuffle_builds),
    SGK_KERNEL_TABLE(sum_builds),
    SGK_KERNEL_TABLE(shuffled_sum_builds),
    { 0 },
};

enum { ANY_FORMAT = (1 << SGK_DTYPES) - 1 };

/* The least power of two of threads for `pieces` of them, up to a block. */
static int32_t lanes_log2(int64_t pieces, int threads)
{
    int32_t log2 = 0;
    while (1 << log2 < threads && (int64_t)1 << log2 < pieces) ++log2;
    return log2;
}

/* Where the host can read it, an index is checked before anything is written; otherwise the GPU leaves out what would be outside. */
static sgk_status check_indices(const sgk_match *m, const DLTensor *t, const char *name, int64_t limit, const sgk_exec *exec)
{
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m->op, m->device, &t, 1, exec));
    return sgk_indices_done(&host, host.known ? sgk_indices_within(m->op, name, host.data[0], 1, sgk_dtype_at(t), sgk_numel(t), limit, NULL) : SGK_OK);
}

/* ---- shuffle_rows -------------------------------------------------------------------------------------------------- */

static sgk_status shuffle_rows_cuda(const sgk_match *m, struct shuffle_rows_args *a, const sgk_exec *exec)
{
    const uint64_t places = (uintptr_t)a->output | (uintptr_t)a->input | (uint64_t)a->bytes | (uint64_t)a->output_stride | (uint64_t)a->input_stride;
    shuffle_build *b      = shuffle_builds;
    while (places % (uint64_t)b->piece) ++b;
    const int64_t each = a->bytes / b->piece;
    SGK_REQUIRE(each <= INT32_MAX, SGK_UNSUPPORTED, "%s: rows of %lld bytes, expected fewer than 2^31 pieces of %d bytes", m->op, (long long)a->bytes, b->piece);
    SGK_LOG_BUILD(exec, m->op, &b->kernel, b->piece == 16 ? "" : " (rows not in 16-byte pieces)");
    a->lanes_log2       = lanes_log2((each + SHUFFLE_STEPS - 1) / SHUFFLE_STEPS, SHUFFLE_THREADS);
    const int64_t chunk = SHUFFLE_STEPS * ((int64_t)1 << a->lanes_log2), chunks = (each + chunk - 1) / chunk, rows = SHUFFLE_THREADS >> a->lanes_log2;
    a->chunks              = sgk_divisor_of(chunks);
    const sgk_launch shape = { .grid = { chunks * ((a->rows + rows - 1) / rows) }, .block = { SHUFFLE_THREADS } };
    return sgk_cuda_launch(m->op, &b->kernel, &shape, m->device.device_id, exec, a, sizeof *a);
}

sgk_status sgk_shuffle_rows(const DLTensor *output, const DLTensor *input, const DLTensor *dst2src_map, const sgk_exec *exec)
{
    sgk_match m = { .op = "shuffle_rows" };
    SGK_MATCH_OUT(&m, output, "D C", ANY_FORMAT);
    SGK_MATCH(&m, input, "S C", 1u << m.dtype);
    SGK_MATCH(&m, dst2src_map, "D", SGK_ANY_INDEX);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    SGK_TRY(check_indices(&m, dst2src_map, "dst2src_map", SGK_DIM(&m, 'S'), exec));

    const int64_t            size = sgk_dtype_size(m.dtype);
    struct shuffle_rows_args a    = {
        .output        = sgk_data(output),
        .input         = sgk_data(input),
        .map           = sgk_data(dst2src_map),
        .rows          = SGK_DIM(&m, 'D'),
        .sources       = SGK_DIM(&m, 'S'),
        .bytes         = SGK_DIM(&m, 'C') * size,
        .output_stride = SGK_DIM(&m, 'D') == 1 ? 0 : sgk_stride(output, 0) * size,
        .input_stride  = SGK_DIM(&m, 'S') == 1 ? 0 : sgk_stride(input, 0) * size,
        .wide_map      = sgk_dtype_at(dst2src_map) == SGK_I64,
    };
    if (a.rows == 0 || a.bytes == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return shuffle_rows_cuda(&m, &a, exec);
    return sgk_cpu_run(m.op, shuffle_rows_cpu, &a, a.rows, sgk_cpu_grain(a.bytes), exec);
}

/* ---- sums ---------------------------------------------------------------------------------------------------------- */

static sgk_status sum_cuda(const sgk_match *m, struct moe_sum_args *a, const sgk_exec *exec)
{
    const bool vectors = sgk_in_pieces(a->output, a->output_stride, a->dtype) && sgk_in_pieces(a->input, a->token_stride, a->dtype) &&
                         sgk_in_pieces(NULL, a->term_stride, a->dtype) && sgk_in_pieces(NULL, a->dim, a->dtype);
    sum_build *b       = a->permutation ? shuffled_sum_builds : sum_builds;
    while (b->dtype != a->dtype || (b->piece > 1 && !vectors)) ++b;
    const int64_t pieces = a->dim / b->piece;
    SGK_REQUIRE(a->sources <= INT32_MAX, SGK_UNSUPPORTED, "%s: input has %lld rows, expected fewer than 2^31", m->op, (long long)a->sources);
    a->lanes_log2 = lanes_log2(pieces, MOE_SUM_THREADS);
    if (a->lanes_log2 < 3) a->lanes_log2 = 3;           /* eight lanes hand round what each has looked up */
    const int64_t lanes = (int64_t)1 << a->lanes_log2, chunks = (pieces + lanes - 1) / lanes, rows = MOE_SUM_THREADS >> a->lanes_log2;
    a->chunks = sgk_divisor_of(chunks);
    SGK_LOG_BUILD(exec, m->op, &b->kernel, b->piece > 1 ? "" : " (rows are not in 16-byte pieces)");
    const sgk_launch shape = { .grid = { chunks * ((a->tokens + rows - 1) / rows) }, .block = { MOE_SUM_THREADS } };
    return sgk_cuda_launch(m->op, &b->kernel, &shape, m->device.device_id, exec, a, sizeof *a);
}

static sgk_status sum(const sgk_match *m, struct moe_sum_args *a, const sgk_exec *exec)
{
    if (a->tokens == 0 || a->dim == 0) return SGK_OK;
    if (a->tokens == 1) a->output_stride = a->token_stride = 0;         /* strides that are never taken */
    if (sgk_on_gpu(m)) return sum_cuda(m, a, exec);
    const int64_t blocks = (a->dim + MOE_BLOCK - 1) / MOE_BLOCK, each = a->dim < MOE_BLOCK ? a->dim : MOE_BLOCK;
    return sgk_cpu_run(m->op, moe_sum_cpu, a, a->tokens * blocks, sgk_cpu_grain((a->terms + 1) * each * sgk_dtype_size(a->dtype)), exec);
}

static sgk_status reduce(const char *op, const DLTensor *output, const DLTensor *input, double factor, const sgk_exec *exec)
{
    sgk_match m = { .op = op };
    SGK_MATCH_OUT(&m, output, "T H", SGK_ANY_FLOAT);
    SGK_MATCH(&m, input, "T K H", 1u << m.dtype);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    struct moe_sum_args a = {
        .output        = sgk_data(output),
        .input         = sgk_data(input),
        .tokens        = SGK_DIM(&m, 'T'),
        .terms         = SGK_DIM(&m, 'K'),
        .dim           = SGK_DIM(&m, 'H'),
        .output_stride = sgk_stride(output, 0),
        .token_stride  = sgk_stride(input, 0),
        .term_stride   = SGK_DIM(&m, 'K') == 1 ? 0 : sgk_stride(input, 1),
        .scale         = (float)factor,
        .dtype         = m.dtype,
    };
    return sum(&m, &a, exec);
}

sgk_status sgk_moe_sum(const DLTensor *output, const DLTensor *input, const sgk_exec *exec)
{
    return reduce("moe_sum", output, input, 1, exec);
}

sgk_status sgk_moe_sum_reduce(const DLTensor *output, const DLTensor *input, double routed_scaling_factor, const sgk_exec *exec)
{
    return reduce("moe_sum_reduce", output, input, routed_scaling_factor, exec);
}

sgk_status sgk_apply_shuffle_mul_sum(const DLTensor *output, const DLTensor *input, const DLTensor *permutation, const DLTensor *factors,
                                     const sgk_exec *exec)
{
    sgk_match m = { .op = "apply_shuffle_mul_sum" };
    SGK_MATCH_OUT(&m, output, "M C", SGK_ANY_FLOAT);
    SGK_MATCH(&m, input, "S C", 1u << m.dtype);
    SGK_MATCH(&m, permutation, "P", SGK_ANY_INDEX);
    SGK_MATCH_OPT(&m, factors, "P", 1u << m.dtype);
    const int64_t tokens = SGK_DIM(&m, 'M'), terms = tokens ? SGK_DIM(&m, 'P') / tokens : 0;
    SGK_REQUIRE(terms * tokens == SGK_DIM(&m, 'P'), SGK_BAD_ARG, "%s: permutation has size %lld, expected a multiple of the %lld rows of output", m.op,
                (long long)SGK_DIM(&m, 'P'), (long long)tokens);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    SGK_TRY(check_indices(&m, permutation, "permutation", SGK_DIM(&m, 'S'), exec));
    struct moe_sum_args a = {
        .output           = sgk_data(output),
        .input            = sgk_data(input),
        .permutation      = sgk_data(permutation),
        .factors          = sgk_data(factors),
        .tokens           = tokens,
        .terms            = terms,
        .dim              = SGK_DIM(&m, 'C'),
        .sources          = SGK_DIM(&m, 'S'),
        .output_stride    = sgk_stride(output, 0),
        .term_stride      = SGK_DIM(&m, 'S') == 1 ? 0 : sgk_stride(input, 0),
        .scale            = 1,
        .dtype            = m.dtype,
        .wide_permutation = sgk_dtype_at(permutation) == SGK_I64,
    };
    return sum(&m, &a, exec);
}
