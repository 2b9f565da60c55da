/* The definition. Everything else is a faster way to get these bytes. */
#include <string.h>
#include "base/convert.h"
#include "cpu/cpu.h"
#include "kvcache.h"

void store_kv_cache_ref(const void *args, int64_t begin, int64_t end)
{
    const struct store_kv_cache_args *a = args;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t slot = load_index(a->out_loc, i, a->index);
        for (int which = 0; which < 2; ++which) {
            const struct store_rows *r = &a->rows[which];
            for (int64_t h = 0; h < r->heads; ++h)
                memcpy((char *)r->cache + slot * r->cache_row + h * r->cache_head,
                       (const char *)r->fresh + i * r->fresh_row + h * r->fresh_head, (size_t)r->head_bytes);
        }
    }
}
