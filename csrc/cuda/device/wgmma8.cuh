/*
 * Matrix instructions of a warpgroup for elements of 8 bits (sm_90a): D[64xN] += A[64x32] B[Nx32]^T, A and B in shared memory with K along
 * their rows. Order of calls, operands and who holds what are those of wgmma.cuh; a step of 32 elements is 32 bytes, WGMMA_STEP as well.
 *
 *     wgmma(d, a, b, add, (const e4m3 *)0, (const e5m2 *)0);     d: float[N / 2]; either format on either side
 *     wgmma(d, a, b, add, (const s8 *)0, (const s8 *)0);         d: int[N / 2]; exact
 *
 * Sums of 8-bit floats keep 14 significant bits whatever d holds: what needs more adds d to sums of its own every few steps.
 */
#pragma once
#include "wgmma.cuh"

struct e4m3 { uint8_t bits; };
struct e5m2 { uint8_t bits; };
typedef int8_t s8;

/* clang-format off */
#define WGMMA_NAMES_4 "%0, %1, %2, %3"
#define WGMMA_LIST_4  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])

#define WGMMA_NAMES_28 WGMMA_NAMES_24 ", %24, %25, %26, %27"
#define WGMMA_LIST_28 WGMMA_LIST_24, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])

#define WGMMA_I8(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), "+r"(d[i + 7])
#define WGMMA_INTS_4   "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
#define WGMMA_INTS_8   WGMMA_I8(0)
#define WGMMA_INTS_16  WGMMA_INTS_8, WGMMA_I8(8)
#define WGMMA_INTS_32  WGMMA_INTS_16, WGMMA_I8(16), WGMMA_I8(24)
#define WGMMA_INTS_48  WGMMA_INTS_32, WGMMA_I8(32), WGMMA_I8(40)
#define WGMMA_INTS_64  WGMMA_INTS_48, WGMMA_I8(48), WGMMA_I8(56)
#define WGMMA_INTS_80  WGMMA_INTS_64, WGMMA_I8(64), WGMMA_I8(72)
#define WGMMA_INTS_96  WGMMA_INTS_80, WGMMA_I8(80), WGMMA_I8(88)
#define WGMMA_INTS_112 WGMMA_INTS_96, WGMMA_I8(96), WGMMA_I8(104)
#define WGMMA_INTS_128 WGMMA_INTS_112, WGMMA_I8(112), WGMMA_I8(120)

/* The last three numbers are those of the operands behind d. */
#define WGMMA_E(n, left, right, registers, a_, b_, add_) \
    DEVICE void wgmma(float (&d)[registers], uint64_t a, uint64_t b, bool add, const left *, const right *) \
    { \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add_ ", 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32." #left "." #right \
                     " {" WGMMA_NAMES_##registers "}, %" #a_ ", %" #b_ ", add, 1, 1;\n}" \
                     : WGMMA_LIST_##registers : "l"(a), "l"(b), "r"((int)add)); \
    }
#define WGMMA_S(n, registers, a_, b_, add_) \
    DEVICE void wgmma(int (&d)[registers], uint64_t a, uint64_t b, bool add, const s8 *, const s8 *) \
    { \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add_ ", 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k32.s32.s8.s8" \
                     " {" WGMMA_NAMES_##registers "}, %" #a_ ", %" #b_ ", add;\n}" \
                     : WGMMA_INTS_##registers : "l"(a), "l"(b), "r"((int)add)); \
    }
#define WGMMA_8BIT(n, registers, a, b, add) \
    WGMMA_E(n, e4m3, e4m3, registers, a, b, add) \
    WGMMA_E(n, e4m3, e5m2, registers, a, b, add) \
    WGMMA_E(n, e5m2, e4m3, registers, a, b, add) \
    WGMMA_E(n, e5m2, e5m2, registers, a, b, add) \
    WGMMA_S(n, registers, a, b, add)
WGMMA_8BIT(8, 4, 4, 5, 6)
WGMMA_8BIT(16, 8, 8, 9, 10)
WGMMA_8BIT(32, 16, 16, 17, 18)
WGMMA_8BIT(64, 32, 32, 33, 34)
WGMMA_8BIT(96, 48, 48, 49, 50)
WGMMA_8BIT(128, 64, 64, 65, 66)
WGMMA_8BIT(160, 80, 80, 81, 82)
WGMMA_8BIT(192, 96, 96, 97, 98)
WGMMA_8BIT(224, 112, 112, 113, 114)
WGMMA_8BIT(256, 128, 128, 129, 130)
#define WGMMA_INTS_24  WGMMA_INTS_16, WGMMA_I8(16)
#define WGMMA_INTS_56  WGMMA_INTS_48, WGMMA_I8(48)
WGMMA_S(48, 24, 24, 25, 26)
WGMMA_S(112, 56, 56, 57, 58)
WGMMA_E(48, e4m3, e4m3, 24, 24, 25, 26)
WGMMA_E(56, e4m3, e4m3, 28, 28, 29, 30)
WGMMA_E(112, e4m3, e4m3, 56, 56, 57, 58)
/* clang-format on */
