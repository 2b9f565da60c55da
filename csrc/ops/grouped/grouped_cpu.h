/* What the reference and the vector code share: the cut of the work, scales that are powers of two. */
#ifndef SGK_GROUPED_CPU_H
#define SGK_GROUPED_CPU_H
#include <math.h>
#include "grouped.h"

struct grouped_item { int64_t group, row, rows, column, columns; };

/* The first row of a group, and how many it has; they have been checked. */
static inline int64_t grouped_start(const struct grouped_args *a, int64_t group)
{
    if (a->form == GROUPED_OFFSETS) return a->offsets[group];
    if (a->form == GROUPED_ENDS && group > 0) return ((int64_t)a->layout[group - 1] + GROUPED_ALIGNMENT - 1) / GROUPED_ALIGNMENT * GROUPED_ALIGNMENT;
    return 0;
}
static inline int64_t grouped_count(const struct grouped_args *a, int64_t group)
{
    if (a->form == GROUPED_MASKED) return a->layout[group];
    if (a->form == GROUPED_OFFSETS) return a->layout[3 * group];
    if (a->form == GROUPED_ENDS) return a->layout[group] - grouped_start(a, group);
    return a->rows;
}

static inline struct grouped_item grouped_item_of(const struct grouped_cpu_args *cpu, int64_t i)
{
    const struct grouped_args *a    = &cpu->a;
    struct grouped_item        t    = { 0 };
    int64_t                    high = a->form >= GROUPED_MASKED ? a->groups : 1;
    while (high - t.group > 1) {                                 /* the last group that has no more items before it */
        const int64_t middle = (t.group + high) / 2;
        if (cpu->items[middle] <= i) t.group = middle;
        else high = middle;
    }
    const int64_t local = i - cpu->items[t.group], count = grouped_count(a, t.group), first = local / cpu->across * GROUPED_CPU_ROWS;
    t.row     = grouped_start(a, t.group) + first;
    t.rows    = count - first < GROUPED_CPU_ROWS ? count - first : GROUPED_CPU_ROWS;
    t.column  = local % cpu->across * GROUPED_CPU_COLUMNS;
    t.columns = a->columns - t.column < GROUPED_CPU_COLUMNS ? a->columns - t.column : GROUPED_CPU_COLUMNS;
    return t;
}

/* 2^(code - 127); 255 is NaN. */
static inline float grouped_mx_scale(uint8_t code) { return code == 255 ? NAN : ldexpf(1, code - 127); }

/* Of a row of a, and of a column of b, at element k. */
static inline float grouped_mx_a(const struct grouped_args *a, int64_t group, int64_t row, int64_t k)
{
    const int64_t first = a->sa_offsets[group], local = row - grouped_start(a, group);
    return grouped_mx_scale(((const uint8_t *)a->sa)[first * a->sa_row + grouped_mx_place(local, k / GROUPED_MX_BLOCK, a->sa_row)]);
}
static inline float grouped_mx_b(const struct grouped_args *a, int64_t group, int64_t column, int64_t k)
{
    return grouped_mx_scale(((const uint8_t *)a->sb)[group * a->sb_group + grouped_mx_place(column, k / GROUPED_MX_BLOCK, a->sa_row)]);
}

#endif
