/*
 * Copies from global to shared memory that bypass registers (sm_80). 16 bytes each, both addresses aligned to 16.
 *
 *     cp_async16(to, from, inside);       many of them
 *     cp_async_commit();                  closes a group
 *     cp_async_wait(n);                   all but the newest n groups of this thread have arrived
 *     __syncthreads();                    and those of the others
 */
#pragma once
#include "types.cuh"

/* A pointer into shared memory as the 32-bit address that PTX takes. */
DEVICE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* Zeros instead of data where `inside` is false; `from` is then not read, but must still be an address of 16-byte alignment. */
DEVICE void cp_async16(uint32_t to, const void *from, bool inside)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0) : "memory");
}

/* The first `bytes` of 16, which may be none, and zeros behind them. */
DEVICE void cp_async16_part(uint32_t to, const void *from, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
}

/* 4 bytes, both addresses aligned to 4. */
DEVICE void cp_async4(uint32_t to, const void *from, bool inside)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(inside ? 4 : 0) : "memory");
}

/* Instead of groups and waiting: arrives at an mbarrier (barrier.cuh), as one of its count, when this thread's copies so far have come. */
DEVICE void cp_async_arrive(uint32_t barrier)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

DEVICE uint4 shared_load16(uint32_t address)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}

DEVICE void cp_async_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }

DEVICE void cp_async_wait_all(void) { asm volatile("cp.async.wait_all;" ::: "memory"); }

/* The count is an immediate of the instruction, hence a macro. */
#define cp_async_wait(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")
