/*
 * What the kernels of tiles on the matrix units of sm_80 share: slabs of input and weight in a ring in shared memory, fragments of them by ldmatrix, and
 * the sums of warps that share K.
 *
 *   BM, BN, BK  the tile
 *   WM, WN, WK  warps along m, n and k. Each of the WK takes its share of a slab; their sums are added in order at the end
 *   STAGES      slabs in shared memory
 *
 * The kernel says EACH, the elements in 16 bytes, and `sum`, the type of its sums. The steps of the main loop are macros over the kernel's own variables:
 * where they are functions the compiler makes other code of some builds.
 *
 * A row of a slab is ROW_PIECES pieces of 16 bytes. Piece p of row r lies at place p ^ r (the low bits), so that the 8 rows of one
 * ldmatrix matrix, and the pieces of one copy, meet every bank once:
 *
 *     4 pieces, two rows in a line of 128 bytes       8 and more
 *     r 0,1   0 1 2 3  0 1 2 3                        r 0   0 1 2 3 4 5 6 7
 *     r 2,3   1 0 3 2  1 0 3 2                        r 1   1 0 3 2 5 4 7 6
 *     r 4,5   2 3 0 1  2 3 0 1                        r 2   2 3 0 1 6 7 4 5
 *     r 6,7   3 2 1 0  3 2 1 0                        ...
 */
#pragma once
#include "cp_async.cuh"
#include "mma.cuh"

#define THREADS    (32 * WM * WN * WK)
#define ROW_PIECES (BK / EACH)
#define PASS_ROWS  (THREADS / ROW_PIECES)               /* rows that the block copies at once */
#define STAGE      ((BM + BN) * ROW_PIECES * 16)        /* bytes */
#define MT         (BM / WM / 16)                       /* 16x8 products of a warp, along m */
#define NT         (BN / WN / 8)                        /* and along n; even */
#define STEPS      (ROW_PIECES / 2 / WK)                /* of 32 bytes in k, that a warp does in a slab */

#if BM % PASS_ROWS || BN % PASS_ROWS || NT % 2 || ROW_PIECES % (2 * WK) || (ROW_PIECES != 4 && ROW_PIECES % 8)
#error "the macros do not fit each other"
#endif

DEVICE uint32_t place(int row, int piece)
{
    return (uint32_t)(row * ROW_PIECES + (ROW_PIECES == 4 ? piece ^ (row >> 1 & 3) : piece ^ (row & 7))) * 16;
}

/*
 * The next slab to a stage of the ring: this thread has one piece of every PASS_ROWS-th row, from x and w on, and `k` is where that piece lies in K.
 * The kernel's COPY_PIECE(to, from, inside) writes zeros beyond the depth and for rows that are not there.
 */
#define COPY_SLAB(stage) \
    do { \
        if (k - piece * EACH < a.depth) { \
            const uint32_t to_ = base + (uint32_t)(stage) * STAGE; \
            _Pragma("unroll") for (int r_ = 0; r_ < BM; r_ += PASS_ROWS) \
                COPY_PIECE(to_ + place(row + r_, piece), x + r_ * a.input_stride, m0 + row + r_ < a.rows); \
            _Pragma("unroll") for (int r_ = 0; r_ < BN; r_ += PASS_ROWS) \
                COPY_PIECE(to_ + BM * ROW_PIECES * 16 + place(row + r_, piece), w + r_ * a.weight_stride, n0 + row + r_ < a.columns); \
            k += BK, x += BK, w += BK; \
        } \
        cp_async_commit();      /* an empty group keeps the count */ \
    } while (0)

/* A warp's fragments of pieces p and p + 1 of a slab whose input is at xs and whose weight is at ws. */
#define LOAD_FRAGMENTS(fx, fw, xs, ws, p) \
    do { \
        _Pragma("unroll") for (int i_ = 0; i_ < MT; ++i_)       /* lanes 0-15: rows, first half of k; lanes 16-31: second half */ \
            ldmatrix_x4(fx[i_], xs + place((wm * MT + i_) * 16 + lane % 16, p + lane / 16)); \
        _Pragma("unroll") for (int j_ = 0; j_ < NT / 2; ++j_)   /* two blocks of 8 columns, each both halves of k */ \
            ldmatrix_x4(fw[j_], ws + place((wn * NT / 2 + j_) * 16 + lane % 8 + lane / 16 * 8, p + lane / 8 % 2)); \
    } while (0)

/* WK > 1: the sums of the warps that have shares of K, to those with wk = 0. */
#define ADD_SHARES(d) \
    do { \
        sum *shares_ = (sum *)slabs + (warp % (WM * WN)) * (MT * NT * 4 * 32) + lane;       /* [WK - 1][WM * WN][MT * NT * 4][32] */ \
        cp_async_wait(0); \
        __syncthreads(); \
        if (wk > 0) { \
            _Pragma("unroll") for (int i_ = 0; i_ < MT * NT * 4; ++i_) \
                shares_[((wk - 1) * WM * WN * MT * NT * 4 + i_) * 32] = d[i_ / 4 / NT][i_ / 4 % NT][i_ % 4]; \
        } \
        __syncthreads(); \
        if (wk == 0) { \
            for (int o_ = 0; o_ < WK - 1; ++o_) \
                _Pragma("unroll") for (int i_ = 0; i_ < MT * NT * 4; ++i_) \
                    d[i_ / 4 / NT][i_ / 4 % NT][i_ % 4] += shares_[(o_ * WM * WN * MT * NT * 4 + i_) * 32]; \
        } \
    } while (0)
