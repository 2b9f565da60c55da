#include "attention_lightning.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/attention.h"

SGK_CPU_DECL(lightning);
static const sgk_cpu_impl lightning_cpu[] = SGK_CPU_IMPLS(lightning);

/* clang-format off */
struct lightning_build lightning_builds[LIGHTNING_BUILDS] = {
    { SGK_KERNEL("attention/attention_lightning.cu", "lightning_decode", "-DT=f32",  SGK_GENERAL), SGK_F32 },
    { SGK_KERNEL("attention/attention_lightning.cu", "lightning_decode", "-DT=f16",  SGK_GENERAL), SGK_F16 },
    { SGK_KERNEL("attention/attention_lightning.cu", "lightning_decode", "-DT=bf16", SGK_GENERAL), SGK_BF16 },
};
/* clang-format on */

sgk_status sgk_lightning_attention_decode(const DLTensor *output, const DLTensor *new_kv, const DLTensor *q, const DLTensor *k, const DLTensor *v, const DLTensor *past_kv,
                                          const DLTensor *slope, const sgk_exec *exec)
{
    sgk_match m = { .op = "lightning_attention_decode" };
    SGK_MATCH(&m, q, "B H 1 D", SGK_ANY_FLOAT);
    SGK_MATCH(&m, k, "B H 1 D", 1u << m.dtype);
    SGK_MATCH(&m, v, "B H 1 E", 1u << m.dtype);
    SGK_MATCH(&m, past_kv, "B H D E", 1u << SGK_F32);
    SGK_MATCH(&m, slope, "H 1 1", 1u << SGK_F32);
    SGK_MATCH_OUT(&m, output, "B H 1 E", 1u << m.dtype);
    SGK_MATCH_OUT(&m, new_kv, "B H D E", 1u << SGK_F32);
    sgk_match_same(&m, new_kv, past_kv);
    SGK_TRY(sgk_match_done(&m));
    SGK_MATCH_DENSE(&m, q);
    SGK_MATCH_DENSE(&m, k);
    SGK_MATCH_DENSE(&m, v);
    SGK_MATCH_DENSE(&m, past_kv);
    SGK_MATCH_DENSE(&m, slope);
    SGK_MATCH_DENSE(&m, output);
    SGK_MATCH_DENSE(&m, new_kv);
    const int64_t sizes[] = { SGK_DIM(&m, 'H'), SGK_DIM(&m, 'D'), SGK_DIM(&m, 'E') };
    for (int i = 0; i < 3; ++i)
        SGK_REQUIRE(sizes[i] < INT32_MAX, SGK_BAD_ARG, "%s: a size is %lld, expected less than 2^31 heads and elements", m.op, (long long)sizes[i]);
    SGK_NO_SCRATCH(exec);

    const struct lightning_args a = {
        .output  = sgk_data(output),
        .new_kv  = sgk_data(new_kv),
        .q       = sgk_data(q),
        .k       = sgk_data(k),
        .v       = sgk_data(v),
        .past_kv = sgk_data(past_kv),
        .slope   = sgk_data(slope),
        .items   = SGK_DIM(&m, 'B') * SGK_DIM(&m, 'H'),
        .heads   = (int32_t)SGK_DIM(&m, 'H'),
        .dim     = (int32_t)SGK_DIM(&m, 'D'),
        .dim_v   = (int32_t)SGK_DIM(&m, 'E'),
        .dtype   = m.dtype,
    };
    if (!a.items || !a.dim_v) return SGK_OK;
    if (!sgk_on_gpu(&m)) return sgk_cpu_run(m.op, lightning_cpu, &a, a.items, sgk_cpu_grain(8 * (int64_t)a.dim * a.dim_v), exec);
    struct lightning_build *b = lightning_builds;
    while (b->dtype != a.dtype) ++b;
    const sgk_launch shape = { .grid = { a.items * ((a.dim_v + 31) / 32) }, .block = { 256 } };
    return sgk_cuda_launch(m.op, &b->kernel, &shape, m.device.device_id, exec, &a, sizeof a);
}
