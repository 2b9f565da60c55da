#include "act_timestep.h"
#include <math.h>
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/act.h"

SGK_CPU_DECL(timestep);
static const sgk_cpu_impl timestep_cpu[] = SGK_CPU_IMPLS(timestep);

#define BUILD(type, dtype) { SGK_KERNEL("act/act_timestep.cu", "timestep", "-DT=" type, SGK_GENERAL), dtype }

timestep_build timestep_builds[TIMESTEP_BUILDS] = { BUILD("f32", SGK_F32), BUILD("f16", SGK_F16), BUILD("bf16", SGK_BF16) };

static sgk_status timestep_cuda(const sgk_match *m, const struct timestep_args *a, const sgk_exec *exec)
{
    timestep_build *b = timestep_builds;
    while (b->dtype != a->dtype) ++b;
    SGK_LOG_BUILD(exec, m->op, &b->kernel, "");
    const int64_t    chunks = (a->half + TIMESTEP_COLUMNS - 1) / TIMESTEP_COLUMNS;
    const sgk_launch shape  = { .grid = { chunks * ((a->rows + TIMESTEP_ROWS - 1) / TIMESTEP_ROWS) }, .block = { TIMESTEP_COLUMNS } };
    return sgk_cuda_launch(m->op, &b->kernel, &shape, m->device.device_id, exec, a, sizeof *a);
}

sgk_status sgk_timestep_embedding(const DLTensor *output, const DLTensor *input, int64_t dim, bool flip_sin_to_cos, double downscale_freq_shift,
                                  double scale, int64_t max_period, const sgk_exec *exec)
{
    sgk_match m = { .op = "timestep_embedding" };
    SGK_MATCH_OUT(&m, output, "B D", SGK_ANY_FLOAT);
    const sgk_dtype dtype = m.dtype;
    SGK_MATCH(&m, input, "B~", SGK_ANY_FLOAT | 1 << SGK_F64 | SGK_ANY_INDEX);
    const int64_t columns = SGK_DIM(&m, 'D'), half = columns / 2;
    SGK_REQUIRE(dim == columns, SGK_BAD_ARG, "%s: output has size %lld in dimension 1, expected %lld, which dim is", m.op, (long long)columns, (long long)dim);
    SGK_REQUIRE(dim % 2 == 0, SGK_BAD_ARG, "%s: dim is %lld, expected an even number", m.op, (long long)dim);
    SGK_REQUIRE(max_period >= 1, SGK_BAD_ARG, "%s: max_period is %lld, expected at least 1", m.op, (long long)max_period);
    SGK_REQUIRE(isfinite(scale), SGK_BAD_ARG, "%s: scale is %g, expected a finite number", m.op, scale);
    SGK_REQUIRE(isfinite(downscale_freq_shift) && downscale_freq_shift != (double)half, SGK_BAD_ARG,
                "%s: downscale_freq_shift is %g, expected a finite number other than half of dim", m.op, downscale_freq_shift);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const struct timestep_args a = {
        .output        = sgk_data(output),
        .input         = sgk_data(input),
        .rows          = SGK_DIM(&m, 'B'),
        .half          = half,
        .output_stride = sgk_stride(output, 0),
        .input_stride  = sgk_stride(input, 0),
        .step          = -log((double)max_period) / ((double)half - downscale_freq_shift),
        .scale         = scale,
        .dtype         = dtype,
        .input_dtype   = sgk_dtype_at(input),
        .cos_first     = flip_sin_to_cos,
    };
    if (a.rows == 0 || a.half == 0) return SGK_OK;
    if (sgk_on_gpu(&m)) return timestep_cuda(&m, &a, exec);
    return sgk_cpu_run(m.op, timestep_cpu, &a, a.rows, sgk_cpu_grain(16 * a.half), exec);
}
