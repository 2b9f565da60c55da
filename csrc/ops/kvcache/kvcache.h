/* What the cache kernels are given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_KVCACHE_H
#define SGK_KVCACHE_H
#include "base/types.h"

/* One of k and v: rows of `heads` pieces of `head_bytes` each. Strides are in bytes. */
struct store_rows {
    void       *cache;
    const void *fresh;
    int64_t     heads, head_bytes;
    int64_t     cache_row, cache_head, fresh_row, fresh_head;
    uint32_t    pieces;                 /* of a row; the kernel's */
};

struct store_kv_cache_args {
    struct store_rows rows[2];
    const void       *out_loc;
    sgk_dtype         index;                  /* of out_loc: i32 or i64 */
    int64_t           tokens, slots;
};

#endif
