/* Which tile comes when, and whose rows it has: what the kernels of grouped products share. */
#pragma once
#include "grouped.h"
#include "types.cuh"

/* The rows of a group: from `start`, `count` of them; within a, or within the group's own matrix. What the GPU is told may be wrong: no more than a has. */
struct grouped_rows { int64_t start, count; };

DEVICE grouped_rows grouped_rows_of(const grouped_args *a, int64_t g)
{
    int64_t start = 0, count = a->rows;
    if (a->form == GROUPED_MASKED) {
        count = a->layout[g];
    } else if (a->form == GROUPED_OFFSETS) {
        start = a->offsets[g];
        count = a->layout[3 * g];
    } else if (a->form == GROUPED_ENDS) {
        if (g > 0) start = ((int64_t)a->layout[g - 1] + GROUPED_ALIGNMENT - 1) / GROUPED_ALIGNMENT * GROUPED_ALIGNMENT;
        count = a->layout[g] - start;
    }
    if (start < 0 || start > a->rows) start = count = 0;
    if (count > a->rows - start) count = a->rows - start;
    return { start, count < 0 ? 0 : count };
}

/* Down the tiles of rows in bands: what runs at one time shares both operands in L2. */
DEVICE void grouped_walk(int id, int down, int across, int band, int *m, int *n)
{
    const int in_band = band * across, top = id / in_band * band, rest = id % in_band, high = down - top < band ? down - top : band;
    *m = top + rest % high;
    *n = rest / high;
}
