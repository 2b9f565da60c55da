#include <stdbool.h>
#include "attention_slash.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/attention.h"

struct slash_build attention_slash_builds[SLASH_BUILDS] = {
    { SGK_KERNEL("attention/attention_slash.cu", "attention_slash", "-DTHREADS=64", SGK_GENERAL) },
};

enum { THREADS = 64 };                                  /* as in the build */

static void convert(int64_t begin, int64_t end, void *context)
{
    for (int64_t item = begin; item < end; ++item) slash_convert(context, item);
}

sgk_status sgk_convert_vertical_slash_indexes(const DLTensor *block_count, const DLTensor *block_offset, const DLTensor *column_count, const DLTensor *column_index,
                                              const DLTensor *q_seqlens, const DLTensor *kv_seqlens, const DLTensor *vertical_indexes, const DLTensor *slash_indexes,
                                              const DLTensor *vertical_indices_count, const DLTensor *slash_indices_count, int64_t context_size, int64_t block_size_M,
                                              int64_t block_size_N, bool causal, const sgk_exec *exec)
{
    sgk_match      m   = { .op = "convert_vertical_slash_indexes" };
    const unsigned i32 = 1u << SGK_I32;
    SGK_MATCH(&m, vertical_indexes, "B H V", i32);
    SGK_MATCH(&m, slash_indexes, "B H S", i32);
    SGK_MATCH(&m, q_seqlens, "B", i32);
    SGK_TRY(sgk_match_tensor(&m, kv_seqlens, "kv_seqlens", "B", i32, false));
    SGK_MATCH_OPT(&m, vertical_indices_count, "H", i32);
    SGK_MATCH_OPT(&m, slash_indices_count, "H", i32);
    SGK_MATCH_OUT(&m, block_count, "B H R", i32);
    SGK_MATCH_OUT(&m, block_offset, "B H R S", i32);
    SGK_MATCH_OUT(&m, column_count, "B H R", i32);
    SGK_MATCH_OUT(&m, column_index, "B H R V", i32);
    SGK_TRY(sgk_match_done(&m));
    SGK_MATCH_DENSE(&m, vertical_indexes);
    SGK_MATCH_DENSE(&m, slash_indexes);
    SGK_MATCH_DENSE(&m, block_count);
    SGK_MATCH_DENSE(&m, block_offset);
    SGK_MATCH_DENSE(&m, column_count);
    SGK_MATCH_DENSE(&m, column_index);
    SGK_REQUIRE(!vertical_indices_count == !slash_indices_count, SGK_BAD_ARG, "%s: %s is given alone, expected vertical_indices_count and slash_indices_count together", m.op,
                vertical_indices_count ? "vertical_indices_count" : "slash_indices_count");
    SGK_REQUIRE(block_size_M >= 1 && block_size_M <= 65536, SGK_BAD_ARG, "%s: block_size_M is %lld, expected 1 to 65536", m.op, (long long)block_size_M);
    SGK_REQUIRE(block_size_N >= 1 && block_size_N <= 65536, SGK_BAD_ARG, "%s: block_size_N is %lld, expected 1 to 65536", m.op, (long long)block_size_N);
    SGK_REQUIRE(context_size >= 0 && context_size <= INT32_MAX, SGK_BAD_ARG, "%s: context_size is %lld, expected 0 to 2147483647", m.op, (long long)context_size);
    const long long blocks = (context_size + block_size_M - 1) / block_size_M;
    SGK_REQUIRE(SGK_DIM(&m, 'R') == blocks, SGK_BAD_ARG, "%s: block_count has size %lld in dimension 2, expected %lld, context_size over block_size_M", m.op, (long long)SGK_DIM(&m, 'R'), blocks);
    SGK_NO_SCRATCH(exec);

    struct attention_slash_args a = {
        .block_count            = sgk_data(block_count),
        .block_offset           = sgk_data(block_offset),
        .column_count           = sgk_data(column_count),
        .column_index           = sgk_data(column_index),
        .q_seqlens              = sgk_data(q_seqlens),
        .kv_seqlens             = sgk_data(kv_seqlens),
        .vertical_indexes       = sgk_data(vertical_indexes),
        .slash_indexes          = sgk_data(slash_indexes),
        .vertical_indices_count = sgk_data(vertical_indices_count),
        .slash_indices_count    = sgk_data(slash_indices_count),
        .items                  = SGK_DIM(&m, 'B') * SGK_DIM(&m, 'H') * SGK_DIM(&m, 'R'),
        .heads                  = (int32_t)SGK_DIM(&m, 'H'),
        .row_blocks             = (int32_t)SGK_DIM(&m, 'R'),
        .nnz_v                  = (int32_t)SGK_DIM(&m, 'V'),
        .nnz_s                  = (int32_t)SGK_DIM(&m, 'S'),
        .m                      = (int32_t)block_size_M,
        .n                      = (int32_t)block_size_N,
        .causal                 = causal,
    };
    if (!a.items) return SGK_OK;
    if (sgk_on_gpu(&m)) {
        const sgk_launch shape = { .grid = { (a.items + THREADS - 1) / THREADS }, .block = { THREADS } };
        return sgk_cuda_launch(m.op, &attention_slash_builds[0].kernel, &shape, m.device.device_id, exec, &a, sizeof a);
    }
    sgk_parallel_for(exec, 0, a.items, sgk_cpu_grain(16 * ((int64_t)a.nnz_v + a.nnz_s)), convert, &a);
    return SGK_OK;
}
