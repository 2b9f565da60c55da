/* 16 bytes that are read once, for gemm_few.cu and gemm_pair.cu. */
#pragma once
#include "types.cuh"

/* Zeros where it is not inside. Loads stay in the order of the program. */
DEVICE uint4 load_once(const uint4 *from, bool inside)
{
    uint4 v;
    asm volatile("{\n\t"
                 ".reg .pred p;\n\t"
                 "setp.ne.u32 p, %5, 0;\n\t"
                 "mov.u32 %0, 0;\n\t"
                 "mov.u32 %1, 0;\n\t"
                 "mov.u32 %2, 0;\n\t"
                 "mov.u32 %3, 0;\n\t"
                 "@p ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n\t"
                 "}"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w) : "l"(__cvta_generic_to_global(from)), "r"((uint32_t)inside) : "memory");
    return v;
}
