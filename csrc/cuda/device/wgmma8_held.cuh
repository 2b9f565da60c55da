/*
 * As wgmma8.cuh, for N = 64, 128 and 192, with A in registers, four elements each:
 *
 *     wgmma_held(d, a, b, add, (const e4m3 *)0);     d: float[N / 2], the 14 bits of wgmma8.cuh; with g and t as in wgmma.cuh
 *
 *         a[0]  row g, k 4t .. 4t+3        a[1]  row g + 8, the same        a[2], a[3]  k 16 later
 */
#pragma once
#include "wgmma8.cuh"

/* clang-format off */
#define WGMMA_HELD8(n, registers, a0, a1, a2, a3, b_, add_) \
    DEVICE void wgmma_held(float (&d)[registers], const uint32_t (&a)[4], uint64_t b, bool add, const e4m3 *) \
    { \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add_ ", 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" WGMMA_NAMES_##registers "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_ ", add, 1, 1;\n}" \
                     : WGMMA_LIST_##registers : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add)); \
    }
WGMMA_HELD8(64, 32, 32, 33, 34, 35, 36, 37)
WGMMA_HELD8(128, 64, 64, 65, 66, 67, 68, 69)
WGMMA_HELD8(192, 96, 96, 97, 98, 99, 100, 101)
/* clang-format on */
