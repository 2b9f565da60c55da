#include "sampling.h"
#include <float.h>
#include "base/convert.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/indices.h"
#include "sgl_kernel/sampling.h"

SGK_CPU_DECL(softmax);
SGK_CPU_DECL(top_k_top_p);
static const sgk_cpu_impl softmax_cpu[]     = SGK_CPU_IMPLS(softmax);
static const sgk_cpu_impl top_k_top_p_cpu[] = SGK_CPU_IMPLS(top_k_top_p);

/* Every build of sampling_softmax.cu. The first of a format is for long rows where there are no clusters, the last takes any row. */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        piece, warps;
} softmax_build;

#define BUILD(type, dtype, piece, warps, archs) \
    { SGK_KERNEL("sampling/sampling_softmax.cu", "softmax", "-DT=" type " -DPIECE=" #piece " -DWARPS=" #warps, archs), dtype, piece, warps }
#define BUILDS(type, dtype, piece) \
    BUILD(type, dtype, piece, 32, SGK_ARCH_80 | SGK_ARCH_89), BUILD(type, dtype, piece, 8, SGK_GENERAL), BUILD(type, dtype, 1, 16, SGK_GENERAL)

static softmax_build softmax_builds[] = { BUILDS("f32", SGK_F32, 4), BUILDS("f16", SGK_F16, 8), BUILDS("bf16", SGK_BF16, 8) };

static sgk_kernel top_k_top_p_builds[] = { SGK_KERNEL("sampling/sampling_top.cu", "top_k_top_p", "", SGK_GENERAL) };

const sgk_kernel_table sampling_kernels[] = { SGK_KERNEL_TABLE(softmax_builds), SGK_KERNEL_TABLE(top_k_top_p_builds), { 0 } };

static softmax_build *choose_softmax(const struct softmax_args *a, const sgk_cuda_device *device)
{
    const bool     vectors = sgk_in_pieces(a->logits, a->logits_stride, a->dtype) && sgk_in_pieces(a->out, a->out_stride, SGK_F32) && sgk_in_pieces(NULL, a->dim, a->dtype);
    softmax_build *b       = softmax_builds;
    for (;; ++b) {
        if (b->dtype != a->dtype || !sgk_kernel_fits(&b->kernel, device)) continue;
        if (b->piece == 1) return b;
        if (vectors && (b->warps == 8 || a->dim > 8192)) return b;
    }
}

/* A long row is shared by the blocks of a cluster, so that few rows are work for a whole GPU. */
static sgk_status softmax_cuda(const sgk_match *m, const struct softmax_args *a, const sgk_exec *exec)
{
    const sgk_cuda_device *device;
    SGK_TRY(sgk_cuda_get_device(m->op, m->device.device_id, &device));
    softmax_build *b       = choose_softmax(a, device);
    const int64_t  enough  = 2 * 32 * b->warps * b->piece;          /* elements of a block: two loads in each of its threads */
    unsigned       cluster = 1;
    while (device->major >= 9 && cluster < 8 && a->dim >= 2 * cluster * enough) cluster *= 2;
    SGK_LOG_BUILD(exec, m->op, &b->kernel, b->piece > 1 ? "" : " (rows are not in 16-byte pieces)");
    const sgk_launch shape = { .grid = { a->rows * cluster }, .block = { 32u * (unsigned)b->warps }, .cluster = cluster > 1 ? cluster : 0 };
    return sgk_cuda_launch(m->op, &b->kernel, &shape, m->device.device_id, exec, a, sizeof *a);
}

/* Temperatures and shares of a tensor, where the host can read them; NULL: there is none. */
static sgk_status check_not_negative(const char *op, const float *values, int64_t count, const char *name, bool finite)
{
    for (int64_t i = 0; values && i < count; ++i)
        SGK_REQUIRE(values[i] >= 0 && (!finite || values[i] <= FLT_MAX), SGK_BAD_ARG, "%s: %s has %g at [%lld], expected a %snumber of at least 0",
                    op, name, values[i], (long long)i, finite ? "finite " : "");
    return SGK_OK;
}

sgk_status sgk_softmax(const DLTensor *out, const DLTensor *logits, const DLTensor *temperature_arr, double temperature_val, const sgk_exec *exec)
{
    sgk_match m = { .op = "softmax" };
    SGK_MATCH(&m, logits, "N V", SGK_ANY_FLOAT);
    SGK_MATCH_OUT(&m, out, "N V", 1u << SGK_F32);
    SGK_MATCH_OPT(&m, temperature_arr, "N", 1u << SGK_F32);
    sgk_match_same(&m, out, logits);
    if (!temperature_arr) SGK_MATCH_FINITE(&m, temperature_val, 0);
    SGK_REQUIRE(temperature_arr || temperature_val <= FLT_MAX, SGK_BAD_ARG, "softmax: temperature_val is %g, expected at most %g", temperature_val, FLT_MAX);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const struct softmax_args a = {
        .out             = sgk_data(out),
        .logits          = sgk_data(logits),
        .temperature_arr = sgk_data(temperature_arr),
        .rows            = SGK_DIM(&m, 'N'),
        .dim             = SGK_DIM(&m, 'V'),
        .out_stride      = sgk_stride(out, 0),
        .logits_stride   = sgk_stride(logits, 0),
        .dtype           = m.dtype,
        .temperature     = (float)temperature_val,
    };
    if (a.rows == 0 || a.dim == 0) return SGK_OK;
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m.op, m.device, &temperature_arr, 1, exec));
    SGK_TRY(sgk_indices_done(&host, host.known ? check_not_negative(m.op, host.data[0], a.rows, "temperature_arr", true) : SGK_OK));
    if (sgk_on_gpu(&m)) return softmax_cuda(&m, &a, exec);
    return sgk_cpu_run(m.op, softmax_cpu, &a, a.rows, sgk_cpu_grain(a.dim * 12), exec);
}

static sgk_status check_draws(const sgk_match *m, const struct top_k_top_p_args *a, const void *indices, const float *top_p_arr)
{
    for (int64_t i = 0; indices && i < a->draws; ++i) {
        const int64_t at = load_index(indices, i, a->indices_wide ? SGK_I64 : SGK_I32);
        SGK_REQUIRE(at >= 0 && at < a->rows, SGK_BAD_ARG, "%s: maybe_indices has %lld at [%lld], expected 0 to %lld, the rows of probs",
                    m->op, (long long)at, (long long)i, (long long)a->rows - 1);
    }
    return check_not_negative(m->op, top_p_arr, a->draws, "maybe_top_p_arr", false);
}

/* 63 - the bits of n: n weights of so many bits sum to less than 2^63. */
static int32_t weight_bits(int64_t n)
{
    int32_t bits = 63;
    for (; n; n >>= 1) --bits;
    return bits;
}

sgk_status sgk_top_k_top_p_sampling_from_probs(const DLTensor *probs, const DLTensor *output, const DLTensor *maybe_indices,
                                               const DLTensor *maybe_top_k_arr, int64_t top_k_val,
                                               const DLTensor *maybe_top_p_arr, double top_p_val, bool joint,
                                               const DLTensor *seed, const sgk_exec *exec)
{
    sgk_match m = { .op = "top_k_top_p_sampling_from_probs" };
    SGK_MATCH(&m, probs, "R V", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, output, "N", 1u << SGK_I32);
    SGK_MATCH_OPT(&m, maybe_indices, "N", SGK_ANY_INDEX);
    SGK_MATCH_OPT(&m, maybe_top_k_arr, "N", SGK_ANY_INDEX);
    SGK_MATCH_OPT(&m, maybe_top_p_arr, "N", 1u << SGK_F32);
    SGK_MATCH(&m, seed, "S", 1u << SGK_I64);
    const int64_t draws = SGK_DIM(&m, 'N'), rows = SGK_DIM(&m, 'R'), dim = SGK_DIM(&m, 'V'), seeds = SGK_DIM(&m, 'S');
    SGK_REQUIRE(maybe_indices || draws == rows, SGK_BAD_ARG, "%s: output has size %lld in dimension 0, expected %lld like probs where there are no indices",
                m.op, (long long)draws, (long long)rows);
    SGK_REQUIRE(seeds == 1 || seeds == draws, SGK_BAD_ARG, "%s: seed has size %lld in dimension 0, expected 1 or %lld like output",
                m.op, (long long)seeds, (long long)draws);
    SGK_REQUIRE(draws == 0 || (dim >= 1 && dim <= INT32_MAX), SGK_BAD_ARG, "%s: probs has size %lld in dimension 1, expected 1 to %d", m.op, (long long)dim, INT32_MAX);
    SGK_REQUIRE(maybe_top_p_arr || top_p_val >= 0, SGK_BAD_ARG, "%s: top_p_val is %g, expected a number of at least 0", m.op, top_p_val);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const struct top_k_top_p_args a = {
        .probs        = sgk_data(probs),
        .output       = sgk_data(output),
        .indices      = sgk_data(maybe_indices),
        .top_k_arr    = sgk_data(maybe_top_k_arr),
        .top_p_arr    = sgk_data(maybe_top_p_arr),
        .seed         = sgk_data(seed),
        .draws        = draws,
        .rows         = rows,
        .dim          = dim,
        .probs_stride = sgk_stride(probs, 0),
        .top_k        = top_k_val,
        .top_p        = (float)top_p_val,
        .joint        = joint,
        .one_seed     = seeds == 1,
        .indices_wide = maybe_indices && sgk_dtype_at(maybe_indices) == SGK_I64,
        .top_k_wide   = maybe_top_k_arr && sgk_dtype_at(maybe_top_k_arr) == SGK_I64,
        .weight_bits  = weight_bits(dim),
    };
    if (draws == 0) return SGK_OK;
    sgk_indices host;
    SGK_TRY(sgk_indices_read(&host, m.op, m.device, (const DLTensor *[]){ maybe_indices, maybe_top_p_arr }, 2, exec));
    SGK_TRY(sgk_indices_done(&host, host.known ? check_draws(&m, &a, host.data[0], host.data[1]) : SGK_OK));
    if (sgk_on_gpu(&m)) {
        sgk_kernel *kernel = &top_k_top_p_builds[0];
        SGK_LOG_BUILD(exec, m.op, kernel, "");
        const sgk_launch shape = { .grid = { draws }, .block = { 512 } };
        return sgk_cuda_launch(m.op, kernel, &shape, m.device.device_id, exec, &a, sizeof a);
    }
    return sgk_cpu_run(m.op, top_k_top_p_cpu, &a, draws, sgk_cpu_grain(dim * 16), exec);
}
