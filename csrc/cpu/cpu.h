/* CPU levels: what this machine can do, and which version of an operator runs on it. */
#ifndef SGK_CPU_H
#define SGK_CPU_H
#include "base/parallel.h"
#include "base/types.h"

/* A processor's levels above the reference, worst first: X(name, what it needs). Each includes the ones before it. CMakeLists.txt has the
 * compiler's flags. */
#if defined(__x86_64__)
enum {
    SGK_CPU_AVX2       = 1 << 0,                            /* AVX2, FMA, F16C */
    SGK_CPU_AVX512     = 1 << 1 | SGK_CPU_AVX2,             /* F, BW, DQ, VL */
    SGK_CPU_AVX512BF16 = 1 << 2 | SGK_CPU_AVX512,           /* BF16, VNNI, VBMI */
    SGK_CPU_AMX        = 1 << 3 | SGK_CPU_AVX512BF16,       /* tiles of bf16 and i8, and the kernel's leave to use them */
};
#define SGK_CPU_LEVELS(X) X(avx2, SGK_CPU_AVX2) X(avx512, SGK_CPU_AVX512) X(avx512bf16, SGK_CPU_AVX512BF16) X(amx, SGK_CPU_AMX)
#elif defined(__aarch64__)
enum {
    SGK_CPU_NEON = 1 << 0,                                  /* Advanced SIMD as in Armv8.0-A; BF16 and dot products would be levels above it */
};
#define SGK_CPU_LEVELS(X) X(neon, SGK_CPU_NEON)
#else
#define SGK_CPU_LEVELS(X)
#endif

unsigned sgk_cpu_flags(void);            /* what the CPU has and the OS saves, less what SGK_CPU or sgk_cpu_mask switched off */
void sgk_cpu_mask(unsigned mask);    /* for the check harness */
const char *sgk_cpu_level_name(void);       /* the best level */
static inline bool sgk_cpu_has_amx(void)
{
#if defined(__x86_64__)
    return sgk_cpu_flags() == SGK_CPU_AMX;
#else
    return false;
#endif
}

/* A CPU kernel does items [begin, end) of the work that *args describes. */
typedef void sgk_cpu_fn(const void *args, int64_t begin, int64_t end);
typedef struct {
    const char *level;
    unsigned    needs;
    sgk_cpu_fn *run;
} sgk_cpu_impl;

/* One row for each level that NAME_cpu.c is compiled for, best first, the reference last. With _AMX: and one for NAME_amx.c. */
/* clang-format off */
#define SGK_CPU_IMPLS(name)     { SGK_CPU_ROWS(name) }
#define SGK_CPU_IMPLS_AMX(name) { SGK_CPU_ROW_AMX(name) SGK_CPU_ROWS(name) }
#if defined(__x86_64__)
#define SGK_CPU_DECL(name)     sgk_cpu_fn name##_avx512bf16, name##_avx512, name##_avx2, name##_ref
#define SGK_CPU_DECL_AMX(name) sgk_cpu_fn name##_amx
#define SGK_CPU_ROWS(name)     { "avx512bf16", SGK_CPU_AVX512BF16, name##_avx512bf16 }, { "avx512", SGK_CPU_AVX512, name##_avx512 }, \
                               { "avx2", SGK_CPU_AVX2, name##_avx2 }, { "ref", 0, name##_ref }
#define SGK_CPU_ROW_AMX(name)  { "amx", SGK_CPU_AMX, name##_amx },
#else
#if defined(__aarch64__)
#define SGK_CPU_DECL(name)     sgk_cpu_fn name##_neon, name##_ref
#define SGK_CPU_ROWS(name)     { "neon", SGK_CPU_NEON, name##_neon }, { "ref", 0, name##_ref }
#else
#define SGK_CPU_DECL(name)     sgk_cpu_fn name##_ref
#define SGK_CPU_ROWS(name)     { "ref", 0, name##_ref }
#endif
#define SGK_CPU_DECL_AMX(name) sgk_cpu_fn name##_ref
#define SGK_CPU_ROW_AMX(name)
#endif
/* clang-format on */

const sgk_cpu_impl *sgk_cpu_pick(const sgk_cpu_impl *impls);

/* Runs items [0, n) of the best version in parallel, `grain` items at least a range. The usual end of an operator on the CPU. */
sgk_status sgk_cpu_run(const char *op, const sgk_cpu_impl *impls, const void *args, int64_t n, int64_t grain, const sgk_exec *exec);

/* Enough work for a range when an item touches `bytes` bytes (or does as many operations). Waking a thread takes 2 us on an idle
 * machine and a time slice, a thousand times that, on a busy one: what takes a few microseconds is not worth it. Of a copy what is read
 * is not counted: from one cache to itself 256 KB in all take as long as the second thread needs to begin. */
static inline int64_t sgk_cpu_grain(int64_t bytes) { return bytes > 0 ? 1 + 131072 / bytes : 131072; }

/* Whether an output of so many rows is larger than the last-level cache: gone from it before anyone reads it, and better written around it.
 * Its elements must be aligned. */
bool sgk_cpu_streams(const void *output, int64_t rows, int64_t row_bytes, int64_t element_bytes);
void sgk_cpu_cache(int64_t bytes);      /* for the check harness: the size to go by; 0: the real one */

/* rmsnorm -> rmsnorm_avx2 in the file that is being compiled with -DSGK_CPU_LEVEL=avx2. */
#define SGK_CAT_(a, b)   a##_##b
#define SGK_CAT(a, b)    SGK_CAT_(a, b)
#define SGK_CPU_FN(name) SGK_CAT(name, SGK_CPU_LEVEL)

#define SGK_INLINE static inline __attribute__((always_inline))

#endif
