#include "cpu/cpu.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

static _Atomic unsigned mask = ~0u;

static const struct {
    const char *name;
    unsigned    flags;
} levels[] = {
    { "ref", 0 },
#define LEVEL(name, flags) { #name, flags },
    SGK_CPU_LEVELS(LEVEL)
#undef LEVEL
};
enum { LEVELS = sizeof levels / sizeof *levels };

#if defined(__x86_64__)
/* Linux keeps tiles only for a process that asks for them (since 5.16), and says no where a thread's signal stack could not hold them. */
static bool may_use_amx(void)
{
    enum { BF16                = 1 << 22,
           TILES               = 1 << 24,
           INT8                = 1 << 25,                   /* CPUID, leaf 7, EDX */
           TILE_STATES         = 3 << 17,                   /* XCR0: configuration and data */
           ARCH_REQ_XCOMP_PERM = 0x1023,
           TILE_DATA           = 18 };
    unsigned a, b, c, d, xcr0, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & BF16) || !(d & TILES) || !(d & INT8)) return false;
    __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    return (xcr0 & TILE_STATES) == TILE_STATES && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}
#endif

/* The best level: it includes the others. */
static unsigned detect(unsigned allowed)
{
#if defined(__x86_64__)
    /* __builtin_cpu_supports() also asks the OS (XGETBV) whether it saves the wide registers. */
    __builtin_cpu_init();
    const bool avx2   = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    const bool bf16   = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
    const bool amx    = bf16 && !(SGK_CPU_AMX & ~allowed) && may_use_amx();
    return allowed & (unsigned)(amx ? SGK_CPU_AMX : bf16 ? SGK_CPU_AVX512BF16
                                                : avx512 ? SGK_CPU_AVX512
                                                : avx2   ? SGK_CPU_AVX2
                                                         : 0);
#elif defined(__aarch64__)
    return allowed & (getauxval(AT_HWCAP) & HWCAP_ASIMD ? SGK_CPU_NEON : 0u);
#else
    return allowed & 0u;
#endif
}

/* SGK_CPU=avx2 means: nothing above avx2. */
static unsigned allowed_by_environment(void)
{
    const char *wanted = getenv("SGK_CPU");
    if (!wanted || !*wanted) return ~0u;
    for (int i = 0; i < LEVELS; ++i)
        if (!strcmp(wanted, levels[i].name)) return levels[i].flags;
#define NAME(name, flags) ", " #name
    fprintf(stderr, "sgl_kernel: SGK_CPU is '%s', expected one of ref" SGK_CPU_LEVELS(NAME) "; using all this CPU has\n", wanted);
#undef NAME
    return ~0u;
}

void sgk_cpu_mask(unsigned m) { mask = m; }

unsigned sgk_cpu_flags(void)
{
    static _Atomic unsigned known = 1u << 31;               /* bit 31: not asked yet */
    unsigned                f     = known;
    if (f >> 31) known = f = detect(allowed_by_environment());
    return f & mask;
}

const char *sgk_cpu_level_name(void)
{
    const unsigned flags = sgk_cpu_flags();
    int            best  = 0;
    for (int i = 0; i < LEVELS; ++i)
        if (!(levels[i].flags & ~flags)) best = i;
    return levels[best].name;
}

const sgk_cpu_impl *sgk_cpu_pick(const sgk_cpu_impl *impl)
{
    const unsigned flags = sgk_cpu_flags();
    while (impl->needs & ~flags) ++impl;
    return impl;
}

static _Atomic int64_t cache;

void sgk_cpu_cache(int64_t bytes) { cache = bytes; }

/* The part of the last-level cache that a core has. Linux is asked first: on AMD the C library may give that of all cores together, ten times as much. */
static int64_t last_level_cache(void)
{
    long  size = 0;
    FILE *file = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "re");
    if (file && fscanf(file, "%ldK", &size) != 1) size = 0;
    if (file) fclose(file);
    if (size > 0) return (int64_t)size << 10;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return size > 0 ? size : (int64_t)32 << 20;                    /* the system may not know */
}

bool sgk_cpu_streams(const void *output, int64_t rows, int64_t row_bytes, int64_t element_bytes)
{
    if (!cache) cache = last_level_cache();
    return (uintptr_t)output % (uintptr_t)element_bytes == 0 && rows > cache / row_bytes;
}

typedef struct {
    sgk_cpu_fn *run;
    const void *args;
} cpu_job;

static void run_range(int64_t begin, int64_t end, void *context)
{
    const cpu_job *job = context;
    job->run(job->args, begin, end);
}

sgk_status sgk_cpu_run(const char *op, const sgk_cpu_impl *impls, const void *args, int64_t n, int64_t grain, const sgk_exec *exec)
{
    const sgk_cpu_impl *impl = sgk_cpu_pick(impls);
    if (sgk_log_wanted(exec))
        sgk_log(exec, "%s: cpu, %s%s", op, impl->level, impl != impls ? " (the better levels are not on this CPU or were switched off)" : "");
    cpu_job job = { impl->run, args };
    sgk_parallel_for(exec, 0, n, grain, run_range, &job);
    return SGK_OK;
}
