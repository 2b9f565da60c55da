/*
 * Sums of a slab of e4m3 times its scales, for kernels whose warpgroups have BN columns (a macro) of a tile.
 */
#pragma once
#include "grouped.cuh"

#define SEGMENT (BN & -BN)                              /* columns that have one scale in any tile */

/* A thread's scales of a slab: of its two rows, and of the one or two blocks of columns that it meets. */
struct slab_scales { float upper, lower, left, right; };

/* sum += the sum of a slab, times its scales; `cut` columns are of the left block. */
DEVICE void promote(float (&sum)[BN / 2], const float (&part)[BN / 2], const slab_scales *own, int cut)
{
    #pragma unroll
    for (int s = 0; s < BN / SEGMENT; ++s) {
        const float column = s * SEGMENT < cut ? own->left : own->right, x = own->upper * column, y = own->lower * column;
        #pragma unroll
        for (int j = s * SEGMENT / 8; j < (s + 1) * SEGMENT / 8; ++j) {
            sum[4 * j]     = fmaf(x, part[4 * j], sum[4 * j]);
            sum[4 * j + 1] = fmaf(x, part[4 * j + 1], sum[4 * j + 1]);
            sum[4 * j + 2] = fmaf(y, part[4 * j + 2], sum[4 * j + 2]);
            sum[4 * j + 3] = fmaf(y, part[4 * j + 3], sum[4 * j + 3]);
        }
    }
}
