/*
 * Quantises groups of neighbours of silu(gate) * up in bf16, each with its own scale, on sm_90a; the input is [gate | up]. Threads, pieces and
 * groups are those of quant.cu with 16 elements a thread. The arithmetic takes nearly as long as memory does, so both must go on at
 * once: a block takes one tile of groups after the other, and asks for the next one's gates and ups before it works on what has come.
 * Bound by memory.
 *
 * bf16 has so few gates that all of them were tried there, which sgk-check does again (its case "gates"): silu by the hardware's exponential
 * and reciprocal rounds to the same as quant_silu but below -87, where the exponential is beyond what has a reciprocal. Nothing else has to
 * be looked at.
 *
 *   LANES  lanes_log2, or -1: as the arguments say
 *   FORM   GROUPS_ANY, or GROUPS_PACKED, which is compiled alone: the second version to e4m3, with scales that are powers of two
 */
#include "quant.h"
#include "quant_silu.h"
#define T bf16                                  /* for the headers that take it */
#include "launch.cuh"
#include "quant_fast.cuh"
#include "quant_group.cuh"

#define THREADS    128
#define BLOCKS     7                            /* on a multiprocessor */
#define ELEMENTS   16
#define PIECE      8
#define PIECES     (ELEMENTS / PIECE)
#define LAST_TRIED 0xc2aeu                      /* -87 */

/* round(round(silu(gate)) * up), of pieces. */
DEVICE uint4 fuse(uint4 gate, uint4 up)
{
    float g[8], s[8];
    unpack16(g, gate, (const T *)0);
    #pragma unroll
    for (int i = 0; i < 8; ++i) s[i] = fast_silu(g[i]);
    const uint32_t lowest = __vmaxu2(__vmaxu2(gate.x, gate.y), __vmaxu2(gate.z, gate.w));      /* as whole numbers the lowest is the largest */
    if (max(lowest & 0xffff, lowest >> 16) > LAST_TRIED) {
        #pragma unroll 1
        for (int i = 0; i < 8; ++i) {           /* seldom, so the code is short: the elements go around */
            const float first = quant_silu(g[0]);
            #pragma unroll
            for (int j = 0; j < 7; ++j) g[j] = g[j + 1], s[j] = s[j + 1];
            s[7] = first;
        }
    }
    const T *const tag = 0;
    return make_uint4(product(pack_bf16x2(s[0], s[1]), up.x, tag), product(pack_bf16x2(s[2], s[3]), up.y, tag),
                      product(pack_bf16x2(s[4], s[5]), up.z, tag), product(pack_bf16x2(s[6], s[7]), up.w, tag));
}

/* What a thread has of a group. */
typedef struct {
    uint4    gate[PIECES], up[PIECES];
    uint32_t row, column;
    bool     live;
} part_t;

DEVICE void ask_for(part_t *p, const quant_groups_args &a, uint32_t tile, uint32_t lane)
{
    const uint32_t n = tile * (THREADS >> a.lanes_log2) + (threadIdx.x >> a.lanes_log2), of_rows = n >> a.tile_log2, rows = divide(of_rows, a.columns);
    p->column = of_rows - rows * a.columns.by;
    p->row    = (rows << a.tile_log2) + (n & ((1u << a.tile_log2) - 1));
    p->live   = p->row < a.rows && p->column < a.groups;
    if (a.masked_m) {
        const uint32_t batch = divide(p->row, a.lines);
        p->live              = p->live && (int)(p->row - batch * a.lines.by) < a.masked_m[batch];
    }
    const T    *x    = (const T *)a.input + p->row * a.input_stride + (int64_t)p->column * a.group + lane * PIECE;
    const int   step = PIECE << a.lanes_log2;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) p->gate[i] = p->live ? *(const uint4 *)(x + i * step) : zero;
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) p->up[i] = p->live ? *(const uint4 *)(x + a.groups * a.group + i * step) : zero;
}

DEVICE void quantise(const part_t *p, const quant_groups_args &a, uint32_t lane)
{
    uint4 x[PIECES];
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) x[i] = fuse(p->gate[i], p->up[i]);
    float v[ELEMENTS];
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) unpack16(v + i * PIECE, x[i], (const T *)0);
    const quant_scaling k = quant_group_scaling(group_max(largest_size(x, PIECES), LANES, a), &a);
    uint32_t            codes[ELEMENTS / 4];
    encode(codes, v, ELEMENTS, a, k);
    if (p->live) {
        uint8_t *q = a.q + p->row * a.q_stride + (int64_t)p->column * a.group + lane * PIECE;
        #pragma unroll
        for (int i = 0; i < PIECES; ++i) store_codes(q + i * (PIECE << a.lanes_log2), codes + i * PIECE / 4, PIECE);
    }
    int64_t place = p->row * a.s_row;
    if (a.masked_m) {
        const uint32_t batch = divide(p->row, a.lines);
        place                = batch * a.s_batch + (p->row - batch * a.lines.by) * a.s_row;
    }
    store_scales(a, place, p->column, lane, p->live, k);
}

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void quant_fused(const __grid_constant__ quant_groups_args args)
{
    quant_groups_args a = args;
    if (FORM != GROUPS_ANY) a.version = 2, a.ue8m0 = true, a.code = SGK_E4M3, a.clamps = 0;
    if (LANES >= 0) a.lanes_log2 = LANES;
    const uint32_t lane = threadIdx.x & ((1u << a.lanes_log2) - 1);

    pdl_wait();
    pdl_release();
    part_t part;
    ask_for(&part, a, blockIdx.x, lane);
    for (uint32_t next = blockIdx.x + gridDim.x; next < a.tiles; next += gridDim.x) {
        part_t ahead;
        ask_for(&ahead, a, next, lane);
        quantise(&part, a, lane);
        part = ahead;
    }
    quantise(&part, a, lane);
}
