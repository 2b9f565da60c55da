/* How the CPU's work on a product is cut: see packed_cpu_args. */
#ifndef SGK_GEMM_PACKED_ITEM_H
#define SGK_GEMM_PACKED_ITEM_H
#include "gemm_packed.h"

typedef struct {
    int64_t b, m, rows, n, columns;
} packed_item;

/* The p-th of `parts` equal shares of [0, n). */
static inline int64_t packed_share(int64_t n, int64_t p, int64_t parts) { return n / parts * p + packed_least(p, n % parts); }

/* Items that have the same weights are neighbours. */
static inline packed_item packed_item_at(const struct packed_cpu_args *cpu, int64_t i)
{
    const struct packed_args *a      = &cpu->a;
    const int64_t             groups = packed_ceil(a->columns, cpu->group), block = i % cpu->row_blocks, g = i / cpu->row_blocks % groups;
    const int64_t             m = packed_share(a->rows, block, cpu->row_blocks);
    return (packed_item){
        .b       = i / cpu->row_blocks / groups,
        .m       = m,
        .rows    = packed_share(a->rows, block + 1, cpu->row_blocks) - m,
        .n       = g * cpu->group,
        .columns = packed_least(cpu->group, a->columns - g * cpu->group),
    };
}

#endif
