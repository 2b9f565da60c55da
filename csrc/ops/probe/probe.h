/* What the probe kernels are given: plain work whose speed is this machine's ceiling, and the number formats on their own.
 * Read by the host compiler and by NVRTC alike. */
#ifndef SGK_PROBE_H
#define SGK_PROBE_H
#include "base/types.h"

enum { PROBE_BLOCK = 4096 };        /* 32-bit words that one result of probe_read covers */

struct probe_args {
    void       *output;
    const void *input;
    int64_t     count;              /* elements */
    sgk_dtype   dtype;              /* of what probe_load reads and probe_store writes */
};

#endif
