/*
 * A tile of 64 x 64 outputs by plain f32 multiply-adds: a block of 128 threads, each with 8 x 4 outputs. Slabs of BK in K lie turned in shared
 * memory, two of them in turn, so that both operands run along the tile.
 */
#pragma once
#include "types.cuh"

#define THREADS 128
#define BK      16
#define LINE    68              /* 64 outputs and a gap of 16 bytes: the turned stores meet a bank twice, not four times */

/*
 * d += the products of a slab, of rows m to m + 7 and columns n to n + 3 of the tile. A macro: the compiler makes other code of a function in its
 * place in packed_simt.
 */
#define SIMT_SLAB(d, xs, ws, m, n) \
    do { \
        _Pragma("unroll") for (int e_ = 0; e_ < BK; ++e_) \
        { \
            float u_[8], v_[4]; \
            unpack16(u_, *(const uint4 *)&(xs)[e_][m], (const f32 *)0); \
            unpack16(u_ + 4, *(const uint4 *)&(xs)[e_][(m) + 4], (const f32 *)0); \
            unpack16(v_, *(const uint4 *)&(ws)[e_][n], (const f32 *)0); \
            _Pragma("unroll") for (int i_ = 0; i_ < 8; ++i_) \
                _Pragma("unroll") for (int j_ = 0; j_ < 4; ++j_) d[i_][j_] = fmaf(u_[i_], v_[j_], d[i_][j_]); \
        } \
    } while (0)
