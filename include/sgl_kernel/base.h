/*
 * What every part of the C interface shares: status codes, the last error, the version, and sgk_exec.
 *
 * Conventions of every operator
 *   - Tensors are `const DLTensor *`, outputs first. Sizes and strides are 64-bit; strides are in elements.
 *   - All arguments are checked before anything is written. A refused call writes nothing.
 *   - All tensors of a call lie on one device. CPU and CUDA tensors are taken by every operator.
 *   - A tensor with zero elements is legal, and its data pointer may be NULL.
 *   - The last argument is `const sgk_exec *`: how to run. NULL means the defaults.
 *   - CUDA work is enqueued on exec->stream of the tensors' device; nothing waits for it, but under exec->check_indices.
 *   - The same input gives the same bits, whatever the number of threads.
 */
#ifndef SGL_KERNEL_BASE_H
#define SGL_KERNEL_BASE_H

#include <stddef.h>
#include <stdint.h>
#include "dlpack_compat.h"

#ifdef __cplusplus
#define SGK_API extern "C" __attribute__((visibility("default")))
#else
#define SGK_API __attribute__((visibility("default")))
#endif

typedef enum {
    SGK_OK          = 0,
    SGK_BAD_ARG     = -1,       /* the caller broke a documented rule */
    SGK_UNSUPPORTED = -2,       /* legal, but this build or this device cannot run it */
    SGK_NO_DEVICE   = -3,       /* no usable driver or device */
    SGK_FAILED      = -4,       /* the driver or the operating system reported an error */
} sgk_status;

/** One sentence about the last call of this thread that did not return SGK_OK; "" when there was none. */
SGK_API const char *sgk_last_error(void);

/** The library's version, "major.minor.patch". */
SGK_API const char *sgk_version(void);

typedef void sgk_parallel_body(int64_t begin, int64_t end, void *context);

/** A switch of one call: the process's default (see each field), or off, or on. */
typedef enum { SGK_DEFAULT = 0,
               SGK_OFF     = -1,
               SGK_ON      = 1 } sgk_switch;

/**
 * How to run one call. Fill with SGK_EXEC_INIT and set what differs:
 *
 *     sgk_exec exec = SGK_EXEC_INIT;
 *     exec.stream = stream;
 *     sgk_rmsnorm(&out, &in, &weight, 1e-6, &exec);
 */
typedef struct sgk_exec {
    size_t size;                /* sizeof(sgk_exec) as the caller compiled it: the struct may grow at its end */

    void *stream;              /* a CUstream of the tensors' device; NULL is its default stream. CPU: ignored */

    /* Scratch memory on the tensors' device. An operator that needs some takes, in this order: workspace if it is large
     * enough, allocate(), malloc() on the CPU. On the GPU there is no third way: the call is refused and says how much
     * it needs. When workspace_query is not NULL the call checks its arguments, stores the exact number of bytes it
     * would need (0 for none), and does nothing else. Workspace must be 256-byte aligned on the GPU, 64 on the CPU. */
    void   *workspace;
    size_t  workspace_size;
    size_t *workspace_query;
    void *(*allocate)(void *user, size_t bytes, DLDevice device);
    void (*release)(void *user, void *memory, DLDevice device);    /* called when the work is enqueued, not when it is done:
                                                                       the allocator must order reuse by the stream */

    /* Calls body on ranges that cover [begin, end), at least `grain` elements each where possible, and returns when all are
     * done. NULL: this library's own threads (SGK_NUM_THREADS). CPU only. */
    void (*parallel_for)(void *user, int64_t begin, int64_t end, int64_t grain, sgk_parallel_body *body, void *context);
    int (*num_threads)(void *user);       /* how many ranges run at once; goes with parallel_for */

    void (*log)(void *user, const char *message);  /* which version ran and why; NULL: standard error under SGK_VERBOSE=1 */
    void *user;               /* handed to the hooks above */

    sgk_switch pdl;             /* programmatic dependent launch (sm_90 and later). Default: on, unless TRTLLM_ENABLE_PDL=0 */
    sgk_switch batch_invariant; /* schedules that do not depend on the batch. Default: SGK_BATCH_INVARIANT=1 */
    sgk_switch check_indices;   /* bounds-check index tensors on the GPU too, for debugging: a call then waits for the stream, and
                                   refuses what it would refuse on the CPU, in the same words. Not while the stream is being
                                   captured. Default: SGK_CHECK=1 */
} sgk_exec;

#define SGK_EXEC_INIT { sizeof(sgk_exec), NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
                        SGK_DEFAULT, SGK_DEFAULT, SGK_DEFAULT }

#endif
