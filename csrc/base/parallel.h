/* One parallel loop for all operators. */
#ifndef SGK_PARALLEL_H
#define SGK_PARALLEL_H
#include "base/exec.h"

/*
 * Runs body(begin, end, context) on contiguous ranges that cover [begin, end): at most one range a thread, and no more ranges
 * than the work has grains. Returns when all are done. Body must not throw or exit. Nested calls, calls in a forked child and
 * calls while another thread uses the pool run inline. How the work is cut varies with the number of threads: an operator's bits
 * must not depend on it, so reductions are numbered by blocks of work, never by range.
 */
void sgk_parallel_for(const sgk_exec *exec, int64_t begin, int64_t end, int64_t grain, sgk_parallel_body *body, void *context);

/* How many ranges sgk_parallel_for would run at once with this exec. */
int sgk_num_threads(const sgk_exec *exec);

#endif
