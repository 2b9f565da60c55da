/*
 * The GPU as operators see it: what the device is, and how to launch a row of a build table.
 *
 * The driver is found with dlopen at the first use. Work runs in the caller's current context when that belongs to the tensors'
 * device, otherwise in the device's primary context (the one torch and the CUDA runtime use). In steady state a launch makes no
 * driver call but cuLaunchKernelEx and the question which context is current.
 */
#ifndef SGK_CUDA_H
#define SGK_CUDA_H
#include "base/exec.h"
#include "cuda/kernel.h"

typedef struct {
    int      ordinal;
    int      major, minor;              /* compute capability */
    unsigned arch;                      /* the SGK_ARCH_* bit of the pack that serves it; 0: none, PTX of the general forms */
    int      multiprocessors;
    int      shared_memory_per_block;   /* bytes a block may ask for (opt-in limit) */
    int      shared_memory_per_multiprocessor;
    int      l2_bytes;
    char     name[96];
    bool     pdl;               /* programmatic dependent launch, in a graph too: sm_90 and driver 12.3 */
} sgk_cuda_device;

/* Properties of a device, read once. SGK_NO_DEVICE with the reason where there is no driver or no such device. */
sgk_status sgk_cuda_get_device(const char *op, int ordinal, const sgk_cuda_device **device);
/* Number of devices; 0 without a driver. */
int sgk_cuda_count(void);
/* Why sgk_cuda_count() is 0, or "". */
const char *sgk_cuda_absence(void);

typedef struct {
    int64_t  grid[3];           /* blocks, checked against the hardware's limits; 0 in x launches nothing, 0 in y or z counts as 1 */
    unsigned block[3];          /* threads; 0 counts as 1 */
    unsigned shared_memory;     /* dynamic, in bytes */
    unsigned cluster;           /* blocks in a cluster along x; 0: none */
    bool     cooperative;
    bool     overlap;           /* programmatic dependent launch whatever exec says: the kernel before it is the same operator's */
    bool     alone;             /* no programmatic dependent launch, whatever exec says */
} sgk_launch;

/*
 * Enqueues one build on exec->stream. `args` is the one struct the kernel takes by value. Programmatic dependent launch is set as a
 * launch attribute when exec asks for it and the device is sm_90 or later; the kernel must then contain griddepcontrol.wait.
 */
sgk_status sgk_cuda_launch(const char *op, sgk_kernel *kernel, const sgk_launch *launch, int ordinal, const sgk_exec *exec,
                           const void *args, size_t args_size);

/* Called before every launch when not NULL, with the row that is to run; false: it does not run, and the call goes on as if it had. How the
 * check knows that every row was reached. Set it while nothing else launches. */
extern bool (*sgk_cuda_launch_hook)(const sgk_kernel *kernel);

/* The build can run on this device: its pack serves it. Launchers pass over rows where this is false. */
static inline bool sgk_kernel_fits(const sgk_kernel *kernel, const sgk_cuda_device *device)
{
    return device->arch ? (kernel->archs & device->arch) != 0 : sgk_kernel_is_general(kernel);
}

/* Logs which build runs; `why` may be "". */
#define SGK_LOG_BUILD(exec, op, kernel, why) \
    do { \
        if (sgk_log_wanted(exec)) sgk_log(exec, "%s: cuda, %s %s %s%s", op, (kernel)->file, (kernel)->entry, (kernel)->defines, why); \
    } while (0)

#endif
