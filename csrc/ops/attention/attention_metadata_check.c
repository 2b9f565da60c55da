#include "attention_metadata.h"
#include "check/check.h"

void check_attention_metadata(void)
{
    static const int64_t batches[] = { 0, 1, 127, 128, 300 };
    for (size_t i = 0; i < sizeof batches / sizeof *batches; ++i) {
        if (!check_case("get_scheduler_metadata_%lld", (long long)batches[i])) continue;
        check_tensor *seqused_k = check_index(SGK_I32, 0, 1000, 1, batches[i]);
        check_tensor *metadata  = check_output_dense(SGK_I32, 1, batches[i] + 1);
        CHECK_CALL(sgk_attention_scheduler_metadata(T(metadata), T(seqused_k), 3, check_exec));
        check_equal(metadata);
        check_done(8 * (double)batches[i], 0);
    }
}
