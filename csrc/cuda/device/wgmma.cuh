/*
 * Matrix instructions of a warpgroup (sm_90a): D[64xN] += A[64x16] B[Nx16]^T, f32 sums in registers, A and B (f16 or bf16) in shared
 * memory. 128 threads, the first warp's number divisible by 4, issue together. With w the warp of the group, g = lane / 4, t = lane % 4:
 *
 *     d[4j], d[4j+1]      row 16 w + g,        columns 8j + 2t, 8j + 2t + 1
 *     d[4j+2], d[4j+3]    row 16 w + g + 8,    the same columns
 *
 *     wgmma_fence();                              once before a batch, and when ordinary code wrote d
 *     wgmma(d, a, b, add, (const T *)0);          as many as wanted; add = false: D = A B^T
 *     wgmma_held(d, a, b, add, (const T *)0);     A in registers, as in mma.cuh: packed sums of one product are A of the next. They must
 *                                                 stay as they are until the batch is done
 *     wgmma_held_t(d, a, b, add, (const T *)0);   and B as [K][N] in memory, N along the 128 bytes
 *     wgmma_commit();
 *     wgmma_wait(n);                              all but the newest n batches are done
 *     wgmma_pin(d);                               for every d that is read next: the compiler does not know that wgmma_wait() defines it
 *
 * d is a float[N / 2], and its size chooses N. It must be indexed by constants only, or it leaves the registers.
 */
#pragma once
#include "types.cuh"

/*
 * An operand in slabs of [rows][128 bytes], K along the 128 bytes, 128-byte swizzle, aligned to 1024: the address, 1024 bytes from 8
 * rows to the next 8. A step of 32 bytes in K (16 elements of 16 bits) adds 2; a slab has four.
 */
DEVICE uint64_t wgmma_operand(uint32_t address) { return 1ull << 62 | 64ull << 32 | 1ull << 16 | (address & 0x3ffff) >> 4; }
/* The same of its low word, where that is counted up. */
DEVICE uint64_t wgmma_operand_of(uint32_t low) { return (uint64_t)0x40000040 << 32 | low; }
enum { WGMMA_STEP = 2 };

/* B of wgmma_held_t: slabs of [K][128 bytes], N along the 128 bytes, each `slab` bytes. A step of 16 in K adds 128. */
DEVICE uint64_t wgmma_operand_t(uint32_t address, uint32_t slab) { return 1ull << 62 | 64ull << 32 | (uint64_t)(slab >> 4) << 16 | (address & 0x3ffff) >> 4; }
enum { WGMMA_STEP_T = 128 };

/*
 * A number that is the same in all lanes, so that the compiler knows it: descriptors made from it stay in uniform registers. Otherwise each
 * product waits until its descriptor has been moved there.
 */
DEVICE uint32_t uniform(uint32_t x) { return __reduce_or_sync(~0u, x); }

DEVICE void wgmma_fence(void) { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit(void) { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
#define wgmma_wait(n) asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory")
DEVICE void wgmma_pin1(float &x) { asm volatile("" : "+f"(x)::"memory"); }
DEVICE void wgmma_pin1(int &x) { asm volatile("" : "+r"(x)::"memory"); }
#define wgmma_pin(d) \
    do { \
        _Pragma("unroll") for (int i_ = 0; i_ < (int)(sizeof(d) / sizeof *(d)); ++i_) wgmma_pin1((d)[i_]); \
    } while (0)

/* stmatrix: the reverse of ldmatrix, see mma.cuh. The transposed form writes column c of a matrix where lane c of its eight says. */
DEVICE void stmatrix_x4(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
DEVICE void stmatrix_x4_trans(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

/* The names and the list of d's registers, in eights. */
/* clang-format off */
#define WGMMA_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_NAMES_16 WGMMA_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_24 WGMMA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_NAMES_32 WGMMA_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_40 WGMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_NAMES_48 WGMMA_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_NAMES_56 WGMMA_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_NAMES_64 WGMMA_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_72 WGMMA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_NAMES_80 WGMMA_NAMES_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_NAMES_88 WGMMA_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_NAMES_96 WGMMA_NAMES_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_NAMES_104 WGMMA_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_NAMES_112 WGMMA_NAMES_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_NAMES_120 WGMMA_NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_NAMES_128 WGMMA_NAMES_120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_LIST_8 WGMMA_D8(0)
#define WGMMA_LIST_16 WGMMA_LIST_8, WGMMA_D8(8)
#define WGMMA_LIST_24 WGMMA_LIST_16, WGMMA_D8(16)
#define WGMMA_LIST_32 WGMMA_LIST_24, WGMMA_D8(24)
#define WGMMA_LIST_40 WGMMA_LIST_32, WGMMA_D8(32)
#define WGMMA_LIST_48 WGMMA_LIST_40, WGMMA_D8(40)
#define WGMMA_LIST_56 WGMMA_LIST_48, WGMMA_D8(48)
#define WGMMA_LIST_64 WGMMA_LIST_56, WGMMA_D8(56)
#define WGMMA_LIST_72 WGMMA_LIST_64, WGMMA_D8(64)
#define WGMMA_LIST_80 WGMMA_LIST_72, WGMMA_D8(72)
#define WGMMA_LIST_88 WGMMA_LIST_80, WGMMA_D8(80)
#define WGMMA_LIST_96 WGMMA_LIST_88, WGMMA_D8(88)
#define WGMMA_LIST_104 WGMMA_LIST_96, WGMMA_D8(96)
#define WGMMA_LIST_112 WGMMA_LIST_104, WGMMA_D8(104)
#define WGMMA_LIST_120 WGMMA_LIST_112, WGMMA_D8(112)
#define WGMMA_LIST_128 WGMMA_LIST_120, WGMMA_D8(120)

/* The last three numbers are those of the operands behind d; with A in registers, of its four, of b and of add. */
#define WGMMA(n, format, registers, a_, b_, add_) \
    DEVICE void wgmma(float (&d)[registers], uint64_t a, uint64_t b, bool add, const format *) \
    { \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add_ ", 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #format "." #format \
                     " {" WGMMA_NAMES_##registers "}, %" #a_ ", %" #b_ ", add, 1, 1, 0, 0;\n}" \
                     : WGMMA_LIST_##registers : "l"(a), "l"(b), "r"((int)add)); \
    }
#define WGMMA_HELD(name, n, format, registers, a0_, a1_, a2_, a3_, b_, add_, transposed) \
    DEVICE void name(float (&d)[registers], const uint32_t (&a)[4], uint64_t b, bool add, const format *) \
    { \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #add_ ", 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." #format "." #format \
                     " {" WGMMA_NAMES_##registers "}, {%" #a0_ ", %" #a1_ ", %" #a2_ ", %" #a3_ "}, %" #b_ ", add, 1, 1, " #transposed ";\n}" \
                     : WGMMA_LIST_##registers : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add)); \
    }
#define WGMMA_BOTH(n, registers, a, b, add) WGMMA(n, f16, registers, a, b, add) WGMMA(n, bf16, registers, a, b, add)
#define WGMMA_HELDS(n, registers, ...) \
    WGMMA_HELD(wgmma_held, n, f16, registers, __VA_ARGS__, 0) WGMMA_HELD(wgmma_held, n, bf16, registers, __VA_ARGS__, 0) \
    WGMMA_HELD(wgmma_held_t, n, f16, registers, __VA_ARGS__, 1) WGMMA_HELD(wgmma_held_t, n, bf16, registers, __VA_ARGS__, 1)
WGMMA_BOTH(16, 8, 8, 9, 10)
WGMMA_BOTH(32, 16, 16, 17, 18)
WGMMA_BOTH(64, 32, 32, 33, 34)
WGMMA_BOTH(80, 40, 40, 41, 42)
WGMMA_BOTH(96, 48, 48, 49, 50)
WGMMA_BOTH(112, 56, 56, 57, 58)
WGMMA_BOTH(128, 64, 64, 65, 66)
WGMMA_BOTH(144, 72, 72, 73, 74)
WGMMA_BOTH(160, 80, 80, 81, 82)
WGMMA_BOTH(176, 88, 88, 89, 90)
WGMMA_BOTH(192, 96, 96, 97, 98)
WGMMA_BOTH(208, 104, 104, 105, 106)
WGMMA_BOTH(224, 112, 112, 113, 114)
WGMMA_BOTH(256, 128, 128, 129, 130)
WGMMA_HELDS(64, 32, 32, 33, 34, 35, 36, 37)
WGMMA_HELDS(80, 40, 40, 41, 42, 43, 44, 45)
WGMMA_HELDS(96, 48, 48, 49, 50, 51, 52, 53)
WGMMA_HELDS(112, 56, 56, 57, 58, 59, 60, 61)
WGMMA_HELDS(128, 64, 64, 65, 66, 67, 68, 69)
WGMMA_HELDS(144, 72, 72, 73, 74, 75, 76, 77)
WGMMA_HELDS(160, 80, 80, 81, 82, 83, 84, 85)
WGMMA_HELDS(176, 88, 88, 89, 90, 91, 92, 93)
WGMMA_HELDS(192, 96, 96, 97, 98, 99, 100, 101)
WGMMA_HELDS(256, 128, 128, 129, 130, 131, 132, 133)
/* clang-format on */
