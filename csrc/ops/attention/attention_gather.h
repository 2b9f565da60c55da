/* What the kernel that copies keys and values out of their pages is given. Read by the host compiler and by NVRTC alike. */
#ifndef SGK_ATTENTION_GATHER_H
#define SGK_ATTENTION_GATHER_H
#include "attention.h"

enum { ATTENTION_GATHER_ROWS    = 64,                       /* places whose keys, or values, a block copies */
       ATTENTION_GATHER_THREADS = 256 };

/* Keys, or values: where they lie and where they go, strides in bytes. Heads that lie side by side count as one. */
struct attention_gather_rows {
    const void *from;
    void       *to;
    int64_t     from_page, from_row, from_head;
    int64_t     to_sequence, to_row;
    int32_t     heads, pieces;                              /* of 16 bytes, a head's */
};

struct attention_gather_args {
    struct attention_args        a;                         /* the call with its pages */
    struct attention_gather_rows rows[2];                   /* keys, values. To: place j of sequence n at n * to_sequence + j * to_row */
    int32_t                      blocks;                    /* of a sequence's keys, and of its values */
    int32_t                      tile_keys;                 /* attention reads whole tiles of keys, up to a sequence's end */
};

#endif
