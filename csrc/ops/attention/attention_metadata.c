#include "attention_metadata.h"
#include <string.h>
#include "base/match.h"
#include "cuda/cuda.h"
#include "sgl_kernel/attention.h"

struct metadata_build attention_metadata_builds[METADATA_BUILDS] = {
    { SGK_KERNEL("attention/attention_metadata.cu", "attention_metadata", "-DTHREADS=128", SGK_GENERAL) },
};

enum { THREADS = 128 };                                 /* as in the build */

sgk_status sgk_attention_scheduler_metadata(const DLTensor *metadata, const DLTensor *seqused_k, int64_t num_splits, const sgk_exec *exec)
{
    sgk_match m = { .op = "get_scheduler_metadata" };
    SGK_MATCH(&m, seqused_k, "B", 1u << SGK_I32);
    SGK_MATCH_OUT(&m, metadata, "M", 1u << SGK_I32);
    SGK_REQUIRE(SGK_DIM(&m, 'M') == SGK_DIM(&m, 'B') + 1, SGK_BAD_ARG, "%s: metadata has size %lld in dimension 0, expected %lld, one more than seqused_k", m.op,
                (long long)SGK_DIM(&m, 'M'), (long long)SGK_DIM(&m, 'B') + 1);
    SGK_REQUIRE(SGK_DIM(&m, 'B') < INT32_MAX, SGK_BAD_ARG, "%s: seqused_k has size %lld in dimension 0, expected less than 2^31 sequences", m.op, (long long)SGK_DIM(&m, 'B'));
    SGK_REQUIRE(num_splits >= 0 && num_splits <= 256, SGK_BAD_ARG, "%s: num_splits is %lld, expected 0 to 256", m.op, (long long)num_splits);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    const struct attention_metadata_args a = { .metadata = sgk_data(metadata), .seqused_k = sgk_data(seqused_k), .batch = (int32_t)SGK_DIM(&m, 'B'), .num_splits = (int32_t)num_splits };
    if (sgk_on_gpu(&m)) {
        const sgk_launch shape = { .grid = { a.batch / THREADS + 1 }, .block = { THREADS } };
        return sgk_cuda_launch(m.op, &attention_metadata_builds[0].kernel, &shape, m.device.device_id, exec, &a, sizeof a);
    }
    if (a.batch) memcpy(a.metadata, a.seqused_k, (size_t)a.batch * 4);
    a.metadata[a.batch] = a.num_splits;
    return SGK_OK;
}
