#include "quant.h"
#include <math.h>
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "quant_norm.h"
#include "sgl_kernel/quant.h"

SGK_CPU_DECL(quant_rows);
SGK_CPU_DECL(quant_tensor_amax);
SGK_CPU_DECL(quant_tensor);
SGK_CPU_DECL(quant_groups);
static const sgk_cpu_impl rows_cpu[]   = SGK_CPU_IMPLS(quant_rows);
static const sgk_cpu_impl amax_cpu[]   = SGK_CPU_IMPLS(quant_tensor_amax);
static const sgk_cpu_impl tensor_cpu[] = SGK_CPU_IMPLS(quant_tensor);
static const sgk_cpu_impl groups_cpu[] = SGK_CPU_IMPLS(quant_groups);

/* ---- builds: the last of a format takes any length and alignment ---- */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        piece, steps, teams, most;               /* most threads of a row */
    int64_t    rows;                                    /* the most it is good for */
} rows_build;
enum { FEW_ROWS = 256 };                                /* so few that a thread may do less than keeps it busy */
#define ROWS_UP_TO(rows, type, dtype, piece, steps, teams, most) \
    { SGK_KERNEL("quant/quant_rows.cu", "quant_rows", "-DT=" type " -DPIECE=" #piece " -DSTEPS=" #steps " -DTEAMS=" #teams, SGK_GENERAL), \
      dtype, piece, steps, teams, most, rows }
#define ROWS(type, dtype, piece, steps, teams, most) ROWS_UP_TO(INT64_MAX, type, dtype, piece, steps, teams, most)
#define ROWS_BUILDS(type, dtype, piece) \
    ROWS_UP_TO(FEW_ROWS, type, dtype, piece, 2, 1, 512), ROWS(type, dtype, piece, 4, 8, 32), ROWS(type, dtype, piece, 4, 1, 224), ROWS(type, dtype, piece, 8, 1, 512), ROWS(type, dtype, 1, 0, 1, 256)
static rows_build rows_builds[] = { ROWS_BUILDS("f32", SGK_F32, 4), ROWS_BUILDS("f16", SGK_F16, 8), ROWS_BUILDS("bf16", SGK_BF16, 8) };

typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        piece;
} tensor_build;
#define TENSOR(entry, type, dtype, piece) \
    { SGK_KERNEL("quant/quant_tensor.cu", entry, "-DT=" type " -DPIECE=" #piece, SGK_GENERAL), dtype, piece }
#define TENSOR_BUILDS(entry) { \
    TENSOR(entry, "f32", SGK_F32, 4), TENSOR(entry, "f32", SGK_F32, 1), \
    TENSOR(entry, "f16", SGK_F16, 8), TENSOR(entry, "f16", SGK_F16, 1), \
    TENSOR(entry, "bf16", SGK_BF16, 8), TENSOR(entry, "bf16", SGK_BF16, 1) \
}
static tensor_build amax_builds[]   = TENSOR_BUILDS("quant_tensor_amax");
static tensor_build tensor_builds[] = TENSOR_BUILDS("quant_tensor");

typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        elements, lanes_log2, fuse, form;
} groups_build;
enum { MANY_GROUPS = 32768 };                           /* what fills a GPU also with few threads a group */
#define GROUPS(type, dtype, elements, lanes, fuse, form) \
    { SGK_KERNEL("quant/quant.cu", "quant_groups", "-DT=" type " -DELEMENTS=" #elements " -DLANES=" #lanes " -DFUSE=" #fuse " -DFORM=" #form, SGK_GENERAL), \
      dtype, elements, lanes, fuse, form }
#define GROUPS_OF_128(type, dtype) \
    GROUPS(type, dtype, 32, 2, 0, GROUPS_PLAIN), GROUPS(type, dtype, 16, 3, 0, GROUPS_PLAIN), GROUPS(type, dtype, 16, 3, 0, GROUPS_PACKED), \
        GROUPS(type, dtype, 32, 2, 0, GROUPS_FIRST), GROUPS(type, dtype, 16, 3, 0, GROUPS_FIRST), GROUPS(type, dtype, 32, 2, 0, GROUPS_ANY), \
        GROUPS(type, dtype, 16, 3, 1, GROUPS_PACKED)
#define GROUPS_OF_ANY(type, dtype) \
    GROUPS(type, dtype, 16, -1, 0, GROUPS_ANY), GROUPS(type, dtype, 8, -1, 0, GROUPS_ANY), GROUPS(type, dtype, 0, -1, 0, GROUPS_ANY), \
        GROUPS(type, dtype, 16, -1, 1, GROUPS_ANY), GROUPS(type, dtype, 0, -1, 1, GROUPS_ANY)
static groups_build groups_builds[] = {
    GROUPS_OF_ANY("f32", SGK_F32),
    GROUPS_OF_128("f16", SGK_F16),
    GROUPS_OF_ANY("f16", SGK_F16),
    GROUPS_OF_128("bf16", SGK_BF16),
    GROUPS_OF_ANY("bf16", SGK_BF16),
};

const sgk_kernel_table quant_kernels[] = {
    SGK_KERNEL_TABLE(rows_builds), SGK_KERNEL_TABLE(amax_builds), SGK_KERNEL_TABLE(tensor_builds), SGK_KERNEL_TABLE(groups_builds), SGK_KERNEL_TABLE(quant_norm_builds), { 0 }
};

enum { THREADS      = 256,
       TENSOR_STEPS = 4 };      /* as in the kernels */
enum { TILE_LOG2 = 3,
       TILE      = 1 << TILE_LOG2 };        /* rows whose scales, where they follow each other in memory, make a sector of 32 bytes */

bool quant_in_pieces(const void *input, int64_t input_stride, const void *q, int64_t q_stride, int64_t dim, sgk_dtype dtype)
{
    const int size = sgk_dtype_size(dtype), piece = 16 / size;
    return (uintptr_t)input % 16 == 0 && input_stride * size % 16 == 0 && (uintptr_t)q % (unsigned)piece == 0 && q_stride % piece == 0 &&
           dim % piece == 0;
}

/* ---- arguments ---- */

sgk_status quant_match_rows(const sgk_match *m, const DLTensor *t, const char *name, const DLTensor *like)
{
    SGK_REQUIRE(t->ndim == like->ndim, SGK_BAD_ARG, "%s: %s has %d dimensions, expected %d like input", m->op, name, t->ndim, like->ndim);
    for (int d = 0; d < t->ndim - 1; ++d)
        SGK_REQUIRE(t->shape[d] == like->shape[d], SGK_BAD_ARG, "%s: %s has size %lld in dimension %d, expected %lld like input", m->op, name,
                    (long long)t->shape[d], d, (long long)like->shape[d]);
    return SGK_OK;
}

/* ---- a scale for each row ---- */
static sgk_status rows_cuda(const char *op, const struct quant_rows_args *a, int ordinal, const sgk_exec *exec)
{
    const bool  vectors = quant_in_pieces(a->input, a->input_stride, a->q, a->q_stride, a->dim, a->dtype);
    rows_build *b       = rows_builds;
    while (b->dtype != a->dtype || a->rows > b->rows || (b->piece > 1 && (!vectors || a->dim / b->piece > (int64_t)b->steps * b->most))) ++b;
    int64_t threads = b->most;
    if (b->piece > 1 && b->teams == 1) threads = (a->dim / b->piece + 32 * b->steps - 1) / (32 * b->steps) * 32;
    SGK_LOG_BUILD(exec, op, &b->kernel, b->piece > 1 ? "" : " (rows are not in 16-byte pieces, or too long for registers)");
    const sgk_launch shape = { .grid = { (a->rows + b->teams - 1) / b->teams }, .block = { (unsigned)(threads * b->teams) } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

static sgk_status per_token(const char *op, const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, const char *input_name,
                            sgk_dtype code, const sgk_exec *exec)
{
    sgk_match m = { .op = op };
    SGK_TRY(sgk_match_tensor(&m, input, input_name, "*N D", SGK_ANY_FLOAT, false));
    SGK_MATCH_OUT(&m, output_q, "*N D", 1u << code);
    SGK_TRY(quant_match_rows(&m, output_q, "output_q", input));
    SGK_MATCH_OUT(&m, output_s, "*N~", 1u << SGK_F32);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const struct quant_rows_args a = {
        .q            = sgk_data(output_q),
        .s            = sgk_data(output_s),
        .input        = sgk_data(input),
        .rows         = SGK_DIM(&m, 'N'),
        .dim          = SGK_DIM(&m, 'D'),
        .q_stride     = sgk_fold_stride(output_q, 1),
        .s_stride     = sgk_fold_stride(output_s, 0),
        .input_stride = sgk_fold_stride(input, 1),
        .dtype        = m.dtype,
        .code         = code,
    };
    if (a.rows == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return rows_cuda(m.op, &a, m.device.device_id, exec);
    return sgk_cpu_run(m.op, rows_cpu, &a, a.rows, sgk_cpu_grain(a.dim * (sgk_dtype_size(a.dtype) + 1)), exec);
}

sgk_status sgk_per_token_quant_fp8(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, const sgk_exec *exec)
{
    return per_token("sgl_per_token_quant_fp8", output_q, output_s, input, "input", SGK_E4M3, exec);
}

sgk_status sgk_per_token_quant_int8(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *A, const sgk_exec *exec)
{
    return per_token("per_token_quant_int8_cpu", output_q, output_s, A, "A", SGK_U8, exec);
}

/* ---- one scale ---- */
static sgk_status tensor_cuda(const char *op, const struct quant_tensor_args *a, tensor_build *b, int ordinal, const sgk_exec *exec)
{
    const bool vectors = quant_in_pieces(a->input, 0, a->q, 0, 0, a->dtype);
    while (b->dtype != a->dtype || (b->piece > 1 && !vectors)) ++b;
    const int64_t each = (int64_t)THREADS * TENSOR_STEPS * b->piece;
    SGK_LOG_BUILD(exec, op, &b->kernel, b->piece > 1 ? "" : " (not on 16-byte boundaries)");
    const sgk_launch shape = { .grid = { (a->count + each - 1) / each }, .block = { THREADS } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

sgk_status sgk_per_tensor_quant_fp8(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, bool is_static, const sgk_exec *exec)
{
    sgk_match m = { .op = "sgl_per_tensor_quant_fp8" };
    SGK_MATCH(&m, input, "*N", SGK_ANY_FLOAT);
    SGK_MATCH_DENSE(&m, input);
    SGK_MATCH_OUT(&m, output_q, "*N", 1u << SGK_E4M3);
    SGK_MATCH_DENSE(&m, output_q);
    SGK_TRY(quant_match_rows(&m, output_q, "output_q", input));
    if (is_static) SGK_MATCH(&m, output_s, "*S", 1u << SGK_F32);
    else SGK_MATCH_OUT(&m, output_s, "*S", 1u << SGK_F32);
    SGK_REQUIRE(SGK_DIM(&m, 'S') == 1, SGK_BAD_ARG, "%s: output_s has %lld elements, expected 1", m.op, (long long)SGK_DIM(&m, 'S'));
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const struct quant_tensor_args a = {
        .q     = sgk_data(output_q),
        .s     = sgk_data(output_s),
        .input = sgk_data(input),
        .count = SGK_DIM(&m, 'N'),
        .dtype = m.dtype,
    };
    if (a.count == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) {
        if (!is_static) SGK_TRY(tensor_cuda(m.op, &a, amax_builds, m.device.device_id, exec));
        return tensor_cuda(m.op, &a, tensor_builds, m.device.device_id, exec);
    }
    const int64_t blocks = (a.count + QUANT_BLOCK - 1) / QUANT_BLOCK, grain = sgk_cpu_grain(QUANT_BLOCK * sgk_dtype_size(a.dtype));
    if (!is_static) SGK_TRY(sgk_cpu_run(m.op, amax_cpu, &a, blocks, grain, exec));
    return sgk_cpu_run(m.op, tensor_cpu, &a, blocks, grain, exec);
}

/* ---- a scale for each group ---- */
static bool groups_fit(const groups_build *b, const struct quant_groups_args *a, int64_t groups)
{
    if (b->dtype != a->dtype || b->fuse != a->fuse) return false;
    if (b->elements == 0) return true;
    const bool    known = a->version == (b->form == GROUPS_FIRST ? 1 : 2) && a->code == SGK_E4M3 && !a->clamps && a->ue8m0 == (b->form == GROUPS_PACKED);
    const int64_t lanes = a->group / b->elements;
    return a->group % b->elements == 0 && (lanes & (lanes - 1)) == 0 && lanes <= (a->ue8m0 ? 8 : 32) &&    /* a word of scales is of one warp */
           (b->lanes_log2 < 0 || lanes == 1 << b->lanes_log2) && (b->elements < 32 || groups >= MANY_GROUPS) &&
           (b->form == GROUPS_ANY || known) && quant_in_pieces(a->input, a->input_stride, a->q, a->q_stride, a->group, a->dtype) &&
           groups <= INT32_MAX - THREADS - TILE * a->groups;
}

static sgk_status groups_cuda(const char *op, struct quant_groups_args *a, int ordinal, const sgk_exec *exec)
{
    const int64_t columns = a->ue8m0 ? (a->groups + 3) / 4 * 4 : a->groups, threads = a->fuse ? THREADS / 2 : THREADS;
    groups_build *b = groups_builds;
    while (!groups_fit(b, a, a->rows * columns)) ++b;
    SGK_LOG_BUILD(exec, op, &b->kernel, b->elements ? "" : " (a group is not 1, 2, 4, ... times 16 elements, or not in 16-byte pieces)");
    int64_t groups = a->rows * a->groups;
    a->lanes_log2  = 5;
    if (b->elements) {
        if (a->s_row == 1 && !a->ue8m0 && a->rows >= TILE) a->tile_log2 = TILE_LOG2;
        groups     = (((a->rows - 1) >> a->tile_log2) + 1) * columns << a->tile_log2;
        a->columns = sgk_divisor_of(columns), a->lines = sgk_divisor_of(a->batch_rows);
        while ((int64_t)b->elements << a->lanes_log2 > a->group) --a->lanes_log2;
    }
    const int64_t    each  = threads >> a->lanes_log2;
    const sgk_launch shape = { .grid = { (groups + each - 1) / each }, .block = { (unsigned)threads } };
    return sgk_cuda_launch(op, &b->kernel, &shape, ordinal, exec, a, sizeof *a);
}

static sgk_status group_options_check(const char *op, const quant_group_options *o, sgk_dtype code)
{
    const double least = code == SGK_E4M3 ? -448 : -128, most = code == SGK_E4M3 ? 448 : 127;
    SGK_REQUIRE(o->group_size > 0, SGK_BAD_ARG, "%s: group_size is %lld, expected at least 1", op, (long long)o->group_size);
    if (o->version == 1) {
        SGK_REQUIRE(isfinite(o->eps) && o->eps >= 0, SGK_BAD_ARG, "%s: eps is %g, expected a finite number of at least 0", op, o->eps);
        SGK_REQUIRE(o->min >= least && o->min <= -1, SGK_BAD_ARG, "%s: min is %g, expected a number from %g to -1", op, o->min, least);
        SGK_REQUIRE(o->max >= 1 && o->max <= most, SGK_BAD_ARG, "%s: max is %g, expected a number from 1 to %g", op, o->max, most);
        return SGK_OK;
    }
    SGK_REQUIRE(o->group_size == 16 || o->group_size == 32 || o->group_size == 64 || o->group_size == 128, SGK_BAD_ARG,
                "%s: group_size is %lld, expected 16, 32, 64 or 128", op, (long long)o->group_size);
    SGK_REQUIRE(fabs(o->eps - 1e-10) <= 1e-13, SGK_BAD_ARG, "%s: eps is %g, expected 1e-10", op, o->eps);
    SGK_REQUIRE(o->min == least, SGK_BAD_ARG, "%s: min is %g, expected %g", op, o->min, least);
    SGK_REQUIRE(o->max == most, SGK_BAD_ARG, "%s: max is %g, expected %g", op, o->max, most);
    return SGK_OK;
}

sgk_status quant_match_groups(sgk_match *m, struct quant_groups_args *a, const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input,
                              const DLTensor *masked_m, const quant_group_options *o)
{
    SGK_MATCH(m, input, "*N W", SGK_ANY_FLOAT);
    SGK_MATCH_OUT(m, output_q, "*N D", 1u << SGK_E4M3 | 1u << SGK_I8);
    SGK_TRY(quant_match_rows(m, output_q, "output_q", input));
    const sgk_dtype code = sgk_dtype_at(output_q);
    SGK_TRY(group_options_check(m->op, o, code));

    const int64_t dim = SGK_DIM(m, 'D'), groups = dim / o->group_size, columns = o->scale_ue8m0 ? (groups + 3) / 4 : groups;
    SGK_REQUIRE(SGK_DIM(m, 'W') == dim * (1 + o->fuse), SGK_BAD_ARG, "%s: input has size %lld in its last dimension, expected %lld%s like output_q",
                m->op, (long long)SGK_DIM(m, 'W'), (long long)dim * (1 + o->fuse), o->fuse ? ", twice the size" : "");
    SGK_REQUIRE(dim % o->group_size == 0, SGK_BAD_ARG, "%s: output_q has size %lld in its last dimension, expected a multiple of group_size %lld", m->op,
                (long long)dim, (long long)o->group_size);
    const unsigned format = 1u << (o->scale_ue8m0 ? SGK_I32 : SGK_F32);
    if (masked_m) {
        SGK_MATCH(m, masked_m, "B", 1u << SGK_I32);
        SGK_REQUIRE(input->ndim == 3 && input->shape[0] == masked_m->shape[0], SGK_BAD_ARG, "%s: masked_m has size %lld, expected input to be 3-D and to begin with it",
                    m->op, (long long)masked_m->shape[0]);
        SGK_MATCH_OUT(m, output_s, "B M C~", format);
        SGK_REQUIRE(SGK_DIM(m, 'M') == input->shape[1], SGK_BAD_ARG, "%s: output_s has size %lld in dimension 1, expected %lld like input", m->op,
                    (long long)SGK_DIM(m, 'M'), (long long)input->shape[1]);
    } else {
        SGK_MATCH_OUT(m, output_s, "N C~", format);
    }
    SGK_REQUIRE(SGK_DIM(m, 'C') == columns, SGK_BAD_ARG, "%s: output_s has size %lld in its last dimension, expected %lld for %lld groups", m->op,
                (long long)SGK_DIM(m, 'C'), (long long)columns, (long long)groups);

    *a = (struct quant_groups_args){
        .q            = sgk_data(output_q),
        .s            = sgk_data(output_s),
        .input        = sgk_data(input),
        .masked_m     = sgk_data(masked_m),
        .rows         = SGK_DIM(m, 'N'),
        .batch_rows   = masked_m ? input->shape[1] : SGK_DIM(m, 'N'),
        .groups       = groups,
        .group        = o->group_size,
        .q_stride     = sgk_fold_stride(output_q, 1),
        .input_stride = sgk_fold_stride(input, 1),
        .s_batch      = masked_m ? sgk_stride(output_s, 0) : 0,
        .s_row        = sgk_stride(output_s, -2),
        .s_column     = sgk_stride(output_s, -1),
        .dtype        = m->dtype,
        .code         = code,
        .eps          = (float)o->eps,
        .least        = (float)o->min,
        .most         = (float)o->max,
        .inverse      = 1.0f / (float)o->max,
        .version      = o->version,
        .ue8m0        = o->scale_ue8m0,
        .fuse         = o->fuse,
        .clamps       = code == SGK_E4M3 ? o->min != -448 || o->max != 448 : o->min != -128 || o->max != 127,
    };
    return SGK_OK;
}

static sgk_status per_group(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, const DLTensor *masked_m,
                            const quant_group_options *o, const sgk_exec *exec)
{
    sgk_match                m = { .op = "sgl_per_token_group_quant" };
    struct quant_groups_args a;
    SGK_TRY(quant_match_groups(&m, &a, output_q, output_s, input, masked_m, o));
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    if (a.rows == 0 || a.groups == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return groups_cuda(m.op, &a, m.device.device_id, exec);
    return sgk_cpu_run(m.op, groups_cpu, &a, a.rows * a.groups, sgk_cpu_grain(a.group * (sgk_dtype_size(a.dtype) * (1 + a.fuse) + 1)), exec);
}

sgk_status sgk_per_token_group_quant_8bit(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, int64_t group_size,
                                          double eps, double min, double max, bool scale_ue8m0, const sgk_exec *exec)
{
    const quant_group_options o = { group_size, eps, min, max, scale_ue8m0, false, 1 };
    return per_group(output_q, output_s, input, NULL, &o, exec);
}

sgk_status sgk_per_token_group_quant_8bit_v2(const DLTensor *output_q, const DLTensor *output_s, const DLTensor *input, const DLTensor *masked_m,
                                             int64_t group_size, double eps, double min, double max, bool scale_ue8m0,
                                             bool fuse_silu_and_mul, const sgk_exec *exec)
{
    const quant_group_options o = { group_size, eps, min, max, scale_ue8m0, fuse_silu_and_mul, 2 };
    return per_group(output_q, output_s, input, masked_m, &o, exec);
}
