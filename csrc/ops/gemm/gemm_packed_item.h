/* How the CPU's work on a product is cut: see packed_cpu_args. */
#ifndef SGK_GEMM_PACKED_ITEM_H
#define SGK_GEMM_PACKED_ITEM_H
#include "gemm_packed.h"

typedef struct {
    int64_t b, block, m, rows, n, columns;          /* block: of rows */
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
        .block   = block,
        .m       = m,
        .rows    = packed_share(a->rows, block + 1, cpu->row_blocks) - m,
        .n       = g * cpu->group,
        .columns = packed_least(cpu->group, a->columns - g * cpu->group),
    };
}

/* Strips of a block of rows, and where one begins. */
static inline int64_t packed_strip_count(const struct packed_cpu_args *cpu, int64_t rows) { return packed_ceil(rows, cpu->tiles ? PACKED_TILE_STRIP : PACKED_STRIP); }
static inline int64_t packed_strip_at(const struct packed_cpu_args *cpu, int64_t rows, int64_t s)
{
    return cpu->tiles ? packed_least(rows, s * PACKED_TILE_STRIP) : packed_share(rows, s, packed_strip_count(cpu, rows));
}

/* Steps as they are kept: AMX takes whole tiles. */
static inline int64_t packed_pitch(const struct packed_cpu_args *cpu, int64_t steps) { return cpu->tiles ? packed_ceil(steps, PACKED_TILE_STEPS) * PACKED_TILE_STEPS : steps; }

/* Panels that are kept at a time. */
static inline int64_t packed_panels(const struct packed_cpu_args *cpu) { return cpu->a.plain ? cpu->group / PACKED_BLOCK * PACKED_TURNS : 1; }

/* Of a row in all chunks, in bytes. */
static inline int64_t packed_row_bytes(const struct packed_cpu_args *cpu)
{
    const int64_t whole = cpu->a.depth / cpu->chunk, rest = cpu->a.depth % cpu->chunk, step = packed_step(cpu->way);
    return 4 * (whole * packed_pitch(cpu, cpu->chunk / step) + packed_pitch(cpu, packed_ceil(rest, step)));
}

/* Rows as they are kept before row m of block `block` of a matrix; of all of it with m = rows and block = row_blocks. */
static inline int64_t packed_kept_rows(const struct packed_cpu_args *cpu, int64_t m, int64_t block) { return m + (cpu->tiles ? block * PACKED_TILE_STRIP : 0); }

#endif
