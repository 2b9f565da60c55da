#include "base/convert.h"
#include "cpu/copy.h"
#include "kvcache.h"

SGK_INLINE void store_row(bool stream, const struct store_rows *r, int64_t i, int64_t slot, int64_t next)
{
    for (int64_t h = 0; h < r->heads; ++h)
        copy_row((char *)r->cache + slot * r->cache_row + h * r->cache_head, (const char *)r->fresh + i * r->fresh_row + h * r->fresh_head, r->head_bytes,
                 stream, (const char *)r->fresh + next * r->fresh_row + h * r->fresh_head);
}

void SGK_CPU_FN(store_kv_cache)(const void *args, int64_t begin, int64_t end)
{
    const struct store_kv_cache_args *a      = args;
    const int64_t                     bytes  = a->rows[0].heads * a->rows[0].head_bytes + a->rows[1].heads * a->rows[1].head_bytes;
    const bool                        stream = sgk_cpu_streams(a->rows[0].cache, a->tokens, bytes, 1);
    for (int64_t i = begin; i < end; ++i) {
        const int64_t slot = load_index(a->out_loc, i, a->index), next = i + 1 < end ? i + 1 : i, next_slot = load_index(a->out_loc, next, a->index);
        for (int which = 0; which < 2; ++which) copy_page_soon((char *)a->rows[which].cache + next_slot * a->rows[which].cache_row, bytes / 2);
        for (int which = 0; which < 2; ++which) {
            if (stream) store_row(true, &a->rows[which], i, slot, next);
            else store_row(false, &a->rows[which], i, slot, next);
        }
    }
    if (stream) vf_stream_end();
}
