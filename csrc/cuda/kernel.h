/*
 * Builds of kernels: rows of closed tables.
 *
 * A row is one source file, one entry point and the macros that shape it. The launcher may only choose a row, the pack holds
 * every row, the check runs every row. A family lists its tables in FAMILY_kernels[], which sgk-pack walks.
 *
 *     static struct rmsnorm_build { sgk_kernel kernel; sgk_dtype dtype; int dim, threads; } rmsnorm_builds[] = {
 *         { SGK_KERNEL("norm/norm.cu", "rmsnorm", "-DT=bf16 -DDIM=4096 -DTHREADS=512", SGK_GENERAL), SGK_BF16, 4096, 512 },
 *     };
 *     const sgk_kernel_table norm_kernels[] = { SGK_KERNEL_TABLE(rmsnorm_builds), { 0 } };
 */
#ifndef SGK_KERNEL_H
#define SGK_KERNEL_H
#include <stdbool.h>
#include <stddef.h>

struct sgk_kernel_instances;

typedef struct sgk_kernel {
    const char                  *file;           /* below csrc/ops: "norm/norm.cu" */
    const char                  *entry;          /* the extern "C" function in it */
    const char                  *defines;        /* "-DT=bf16 -DDIM=4096": the macros, separated by one space */
    unsigned                     archs;          /* which packs hold it: SGK_GENERAL, SGK_NOT_90A, or bits of SGK_ARCH_* */
    struct sgk_kernel_instances *instances;     /* loaded functions, one a context; the runtime's */
} sgk_kernel;

/* Packs. A pack serves the compute capabilities behind it. */
enum {
    SGK_ARCH_80   = 1 << 0,     /* 8.0, 8.6, 8.7 */
    SGK_ARCH_89   = 1 << 1,     /* 8.9 */
    SGK_ARCH_90A  = 1 << 2,     /* 9.0: wgmma, TMA */
    SGK_ARCH_100F = 1 << 3,     /* 10.0, 10.3 */
    SGK_ARCH_120F = 1 << 4,     /* 12.0, 12.1 */
    SGK_GENERAL   = SGK_ARCH_80 | SGK_ARCH_89 | SGK_ARCH_90A | SGK_ARCH_100F | SGK_ARCH_120F,
    SGK_NOT_90A   = SGK_GENERAL & ~SGK_ARCH_90A,        /* sm_90a has another form of it */
};

typedef struct {
    void  *rows;                /* structs whose first member is an sgk_kernel */
    size_t row_size, count;
} sgk_kernel_table;

#define SGK_KERNEL(file, entry, defines, archs) { file, entry, defines, archs, NULL }
#define SGK_KERNEL_TABLE(rows)                  { rows, sizeof *(rows), sizeof(rows) / sizeof *(rows) }

/* The tables of every family of this build, ended by NULL. */
extern const sgk_kernel_table *const sgk_kernel_tables[];

/* Any GPU can run it, so PTX of it serves those newer than every pack. */
static inline bool sgk_kernel_is_general(const sgk_kernel *kernel) { return (kernel->archs | SGK_ARCH_90A) == SGK_GENERAL; }

#endif
