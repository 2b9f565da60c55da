/* Reading an sgk_exec: its switches, its scratch memory, its log. */
#ifndef SGK_EXEC_H
#define SGK_EXEC_H
#include "base/status.h"

/* exec->field, or `otherwise` where there is no exec, or it was compiled before the field existed. */
#define SGK_EXEC(exec, field, otherwise) \
    ((exec) && (exec)->size >= offsetof(sgk_exec, field) + sizeof(exec)->field ? (exec)->field : (otherwise))

bool sgk_exec_pdl(const sgk_exec *exec);
bool sgk_exec_pdl_asked(const sgk_exec *exec);          /* the same, off where neither exec nor the environment says anything */
bool sgk_exec_batch_invariant(const sgk_exec *exec);
bool sgk_exec_check_indices(const sgk_exec *exec);

/* True when somebody wants to know which version runs; ask before composing a message. */
bool sgk_log_wanted(const sgk_exec *exec);
void sgk_log(const sgk_exec *exec, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Scratch memory of one call. Where a query is under way, sgk_scratch_get answers it and *query_only becomes true: the operator
 * then returns SGK_OK without running. An operator that needs scratch calls this once, after the last check;
 * one that needs none calls it with 0 bytes if it may be asked (SGK_QUERY below). */
typedef struct {
    void           *memory;
    bool            query_only;
    DLDevice        device;
    const sgk_exec *exec;
    int             origin;     /* who frees it */
} sgk_scratch;

sgk_status sgk_scratch_get(sgk_scratch *scratch, const char *op, size_t bytes, DLDevice device, const sgk_exec *exec);
void sgk_scratch_put(sgk_scratch *scratch);

/* For operators without scratch memory: answers a query with 0 and returns. */
#define SGK_NO_SCRATCH(exec) \
    do { \
        size_t *query_ = SGK_EXEC(exec, workspace_query, NULL); \
        if (query_) { \
            *query_ = 0; \
            return SGK_OK; \
        } \
    } while (0)

#endif
