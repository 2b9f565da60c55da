#include "probe.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "cuda/memory.h"
#include "probe_ops.h"

SGK_CPU_DECL(probe_copy);
SGK_CPU_DECL(probe_read);
SGK_CPU_DECL(probe_load);
SGK_CPU_DECL(probe_store);
SGK_CPU_DECL(probe_exp);
static const sgk_cpu_impl copy_cpu[]  = SGK_CPU_IMPLS(probe_copy);
static const sgk_cpu_impl read_cpu[]  = SGK_CPU_IMPLS(probe_read);
static const sgk_cpu_impl load_cpu[]  = SGK_CPU_IMPLS(probe_load);
static const sgk_cpu_impl store_cpu[] = SGK_CPU_IMPLS(probe_store);
static const sgk_cpu_impl exp_cpu[]   = SGK_CPU_IMPLS(probe_exp);

/* Every build of probe.cu. */
typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
} probe_build;
#define BUILD(entry, type, dtype) { SGK_KERNEL("probe/probe.cu", entry, "-DT=" type, SGK_GENERAL), dtype }
static probe_build empty_builds[] = { BUILD("probe_empty", "f32", SGK_F32) };
static probe_build copy_builds[]  = { BUILD("probe_copy", "f32", SGK_I32) };
static probe_build read_builds[]  = { BUILD("probe_read", "f32", SGK_I32) };
static probe_build load_builds[]  = { BUILD("probe_load", "f32", SGK_F32), BUILD("probe_load", "f16", SGK_F16), BUILD("probe_load", "bf16", SGK_BF16) };
static probe_build store_builds[] = { BUILD("probe_store", "f32", SGK_F32), BUILD("probe_store", "f16", SGK_F16), BUILD("probe_store", "bf16", SGK_BF16) };

const sgk_kernel_table probe_kernels[] = {
    SGK_KERNEL_TABLE(empty_builds),
    SGK_KERNEL_TABLE(copy_builds),
    SGK_KERNEL_TABLE(read_builds),
    SGK_KERNEL_TABLE(load_builds),
    SGK_KERNEL_TABLE(store_builds),
    { 0 },
};

static sgk_status launch(const sgk_match *m, probe_build *builds, const struct probe_args *a, int64_t elements_per_block, const sgk_exec *exec)
{
    while (builds->dtype != a->dtype) ++builds;
    SGK_LOG_BUILD(exec, m->op, &builds->kernel, "");
    const sgk_launch shape = { .grid = { (a->count + elements_per_block - 1) / elements_per_block }, .block = { 256 } };
    return sgk_cuda_launch(m->op, &builds->kernel, &shape, m->device.device_id, exec, a, sizeof *a);
}

static sgk_status in_pieces(const sgk_match *m, const DLTensor *t, const char *name)
{
    SGK_REQUIRE((uintptr_t)sgk_data(t) % 16 == 0, SGK_BAD_ARG, "%s: %s is at address %p, expected a multiple of 16", m->op, name, sgk_data(t));
    return SGK_OK;
}

sgk_status sgk_probe_empty(const DLTensor *grid, const sgk_exec *exec)
{
    sgk_match m = { .op = "probe_empty" };
    SGK_MATCH(&m, grid, "N", 1 << SGK_F32);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    const struct probe_args a = { .count = SGK_DIM(&m, 'N'), .dtype = SGK_F32 };
    return sgk_on_gpu(&m) ? launch(&m, empty_builds, &a, 1, exec) : SGK_OK;
}

sgk_status sgk_probe_copy(const DLTensor *output, const DLTensor *input, const sgk_exec *exec)
{
    sgk_match m = { .op = "probe_copy" };
    SGK_MATCH(&m, input, "N", 1 << SGK_I32);
    SGK_MATCH_OUT(&m, output, "N", 1 << SGK_I32);
    SGK_TRY(in_pieces(&m, input, "input"));
    SGK_TRY(in_pieces(&m, output, "output"));
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    const struct probe_args a = { sgk_data(output), sgk_data(input), SGK_DIM(&m, 'N'), SGK_I32 };
    if (sgk_on_gpu(&m)) return launch(&m, copy_builds, &a, PROBE_BLOCK, exec);
    return sgk_cpu_run(m.op, copy_cpu, &a, a.count, sgk_cpu_grain(8), exec);
}

sgk_status sgk_probe_copy_bare(void *output, const void *input, int64_t count, const sgk_exec *exec, int times)
{
    const struct probe_args a     = { output, input, count, SGK_I32 };
    const sgk_launch        shape = { .grid = { (count + PROBE_BLOCK - 1) / PROBE_BLOCK }, .block = { 256 } };
    return sgk_cuda_launch_bare(&copy_builds[0].kernel, &shape, exec, &a, times);
}

sgk_status sgk_probe_read(const DLTensor *output, const DLTensor *input, const sgk_exec *exec)
{
    sgk_match m = { .op = "probe_read" };
    SGK_MATCH(&m, input, "N", 1 << SGK_I32);
    SGK_MATCH_OUT(&m, output, "B", 1 << SGK_I32);
    SGK_REQUIRE(SGK_DIM(&m, 'N') == PROBE_BLOCK * SGK_DIM(&m, 'B'), SGK_BAD_ARG, "%s: input has %lld elements, expected %d x %lld", m.op,
                (long long)SGK_DIM(&m, 'N'), PROBE_BLOCK, (long long)SGK_DIM(&m, 'B'));
    SGK_TRY(in_pieces(&m, input, "input"));
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    const struct probe_args a = { sgk_data(output), sgk_data(input), SGK_DIM(&m, 'N'), SGK_I32 };
    if (sgk_on_gpu(&m)) return launch(&m, read_builds, &a, PROBE_BLOCK, exec);
    return sgk_cpu_run(m.op, read_cpu, &a, SGK_DIM(&m, 'B'), sgk_cpu_grain(4 * PROBE_BLOCK), exec);
}

sgk_status sgk_probe_load(const DLTensor *output, const DLTensor *input, const sgk_exec *exec)
{
    sgk_match m = { .op = "probe_load" };
    SGK_MATCH(&m, input, "N", SGK_ANY_FLOAT);
    SGK_MATCH_OUT(&m, output, "N", 1 << SGK_F32);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    const struct probe_args a = { sgk_data(output), sgk_data(input), SGK_DIM(&m, 'N'), m.dtype };
    if (sgk_on_gpu(&m)) return launch(&m, load_builds, &a, 256, exec);
    return sgk_cpu_run(m.op, load_cpu, &a, a.count, sgk_cpu_grain(8), exec);
}

sgk_status sgk_probe_store(const DLTensor *output, const DLTensor *input, const sgk_exec *exec)
{
    sgk_match m = { .op = "probe_store" };
    SGK_MATCH_OUT(&m, output, "N", SGK_ANY_FLOAT);
    SGK_MATCH(&m, input, "N", 1 << SGK_F32);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);
    const struct probe_args a = { sgk_data(output), sgk_data(input), SGK_DIM(&m, 'N'), m.dtype };
    if (sgk_on_gpu(&m)) return launch(&m, store_builds, &a, 256, exec);
    return sgk_cpu_run(m.op, store_cpu, &a, a.count, sgk_cpu_grain(8), exec);
}

sgk_status sgk_probe_exp(const DLTensor *output, const DLTensor *input, const sgk_exec *exec)
{
    sgk_match m = { .op = "probe_exp" };
    SGK_MATCH(&m, input, "N", 1 << SGK_F32);
    SGK_MATCH_OUT(&m, output, "N", 1 << SGK_F32);
    SGK_TRY(sgk_match_done(&m));
    SGK_REQUIRE(!sgk_on_gpu(&m), SGK_UNSUPPORTED, "%s: is about the CPU's lanes, the tensors are on a GPU", m.op);
    SGK_NO_SCRATCH(exec);
    const struct probe_args a = { sgk_data(output), sgk_data(input), SGK_DIM(&m, 'N'), SGK_F32 };
    return sgk_cpu_run(m.op, exp_cpu, &a, a.count, sgk_cpu_grain(8), exec);
}
