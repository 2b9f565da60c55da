/* Programmatic dependent launch (sm_90): what the kernel before this one wrote may be read only after pdl_wait(). Both are no-ops
 * for a kernel launched without the attribute. */
#pragma once
#include "types.cuh"

DEVICE void pdl_wait(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The next kernel may start to be scheduled; it still waits, in pdl_wait(), for this one to end. */
DEVICE void pdl_release(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
