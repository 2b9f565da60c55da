/*
 * out = input weight^T for up to 16 rows of input, made for a short way from the first instruction to the last: no barriers before the
 * weights are asked for, none while they come. A lane copies (cp.async) the pieces of weight that are its own fragments of mma.sync, into
 * a ring of its own, so nobody waits for anybody until K is done. The weights are read once: N K elements, 2 M N K operations. Bound by memory.
 *
 *   T       f16 or bf16
 *   TILES   of 16 columns of out (rows of weight) that a warp multiplies at a time
 *   EIGHTS  most rows of input, in eights
 *   STAGES  slabs of 64 in K that a warp has on their way; WARPS warps share K
 *
 * A cluster (sm_90) also shares K: its blocks have the same columns, and send their sums to whose columns they are. Sums are added in the
 * order of the warps, then of the blocks. Rows of input and weight must be 16-byte aligned and K a multiple of 8.
 *
 * In a slab, lane (g = lane / 4, t = lane % 4) has the pieces of 8 in K at 8 t and 32 + 8 t of the rows g + 8 i: element e of the piece
 * of t stands for the k of mma.sync that lane holds there. Input has its k in the same places, so the order of K within a slab is another,
 * and the same for both.
 */
#include "cluster.cuh"
#include "cp_async.cuh"
#include "gemm.cuh"
#include "launch.cuh"
#include "mma.cuh"

#define WARPS    8
#define COLUMNS  (16 * TILES)
#define ROWS     (8 * EIGHTS)
#define PIECES   (4 * TILES)                    /* of 16 bytes that a lane copies of a slab */
#define PITCH    (COLUMNS + 4)                  /* of a row of sums: no bank is met twice */
#define OUTPUTS  (COLUMNS * ROWS)

DEVICE void copy_slab(const linear_args *a, uint32_t to, int64_t n, int k, int lane)
{
    const int64_t row = n + lane / 4;
    const int     x   = k + lane % 4 * 8;
    const T      *w   = (const T *)a->weight + row * a->weight_stride + x;
    #pragma unroll
    for (int i = 0; i < 2 * TILES; ++i)
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            const bool inside = row + 8 * i < a->columns && x + 32 * j < a->depth;
            cp_async16(to + (2 * i + j) * 512, inside ? w + 8 * i * a->weight_stride + 32 * j : (const T *)a->weight, inside);
        }
}

DEVICE void load_input(const linear_args *a, uint4 (&x)[EIGHTS][2], int k, int lane)
{
    #pragma unroll
    for (int e = 0; e < EIGHTS; ++e)
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int row = 8 * e + lane / 4, at = k + 32 * j + lane % 4 * 8;
            x[e][j] = row < a->rows && at < a->depth ? *(const uint4 *)((const T *)a->input + row * a->input_stride + at) : make_uint4(0, 0, 0, 0);
        }
}

extern "C" __global__ __launch_bounds__(32 * WARPS, 1) void linear_stream(const __grid_constant__ linear_args batch)
{
    const linear_args a = linear_batch(&batch, blockIdx.y);
    extern __shared__ __align__(16) uint8_t ring[];                     /* [WARPS][STAGES][PIECES][32] pieces */
    __shared__ float                        sums[2][WARPS][ROWS * PITCH], inbox[OUTPUTS + 8];
    const int      lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int      slice = (int)cluster_rank(), slices = (int)cluster_blocks();
    const uint32_t base  = shared_address(ring) + (warp * STAGES * PIECES * 32 + lane) * 16;
    /* This cluster's columns, in groups, and this warp's slabs of each. */
    const int64_t groups = (a.columns + COLUMNS - 1) / COLUMNS, cluster = blockIdx.x / slices, clusters = gridDim.x / slices;
    const int64_t first = groups * cluster / clusters, last = groups * (cluster + 1) / clusters;
    const int     slabs = (int)((a.depth + 63) / 64), from = (int)((int64_t)slabs * slice / slices) + warp, to = (int)((int64_t)slabs * (slice + 1) / slices);
    const int     each = from < to ? (to - from + WARPS - 1) / WARPS : 0;
    const int64_t all  = each * (last - first);

    cluster_arrive();
    int64_t n_next = first * COLUMNS;           /* what is copied next */
    int     k_next = 0, slot_next = 0;
    #define COPY_NEXT() \
    do { \
        copy_slab(&a, base + slot_next * (PIECES * 512), n_next, (from + k_next * WARPS) * 64, lane); \
        if (++k_next == each) k_next = 0, n_next += COLUMNS; \
        slot_next = slot_next + 1 == STAGES ? 0 : slot_next + 1; \
    } while (0)
    #pragma unroll
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < all) COPY_NEXT();
        cp_async_commit();
    }
    pdl_wait();
    pdl_release();

    uint4 x[EIGHTS][2];
    if (each) load_input(&a, x, from * 64, lane);
    int64_t done = 0;
    int     slot = 0;
    for (int64_t group = first; group < last; ++group) {
        float d[TILES][EIGHTS][4];
        #pragma unroll
        for (int i = 0; i < TILES; ++i)
            #pragma unroll
            for (int e = 0; e < EIGHTS; ++e)
                #pragma unroll
                for (int c = 0; c < 4; ++c) d[i][e][c] = 0;

        for (int k = 0; k < each; ++k, ++done) {
            uint4 y[EIGHTS][2];                 /* the next slab's input */
            load_input(&a, y, (from + (k + 1 < each ? k + 1 : 0) * WARPS) * 64, lane);
            cp_async_wait(STAGES - 2);
            if (done + STAGES - 1 < all) COPY_NEXT();
            cp_async_commit();
            const uint4 *w = (const uint4 *)(ring + (base - shared_address(ring)) + slot * (PIECES * 512));
            #pragma unroll
            for (int j = 0; j < 2; ++j)
                #pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    const uint4    low = w[(4 * i + j) * 32], high = w[(4 * i + 2 + j) * 32];
                    const uint32_t w0[4] = { low.x, high.x, low.y, high.y }, w1[4] = { low.z, high.z, low.w, high.w };
                    #pragma unroll
                    for (int e = 0; e < EIGHTS; ++e) {
                        const uint32_t x0[2] = { x[e][j].x, x[e][j].y }, x1[2] = { x[e][j].z, x[e][j].w };
                        mma_m16n8k16(d[i][e], w0, x0, (const T *)0);
                        mma_m16n8k16(d[i][e], w1, x1, (const T *)0);
                    }
                }
            #pragma unroll
            for (int e = 0; e < EIGHTS; ++e) x[e][0] = y[e][0], x[e][1] = y[e][1];
            slot = slot + 1 == STAGES ? 0 : slot + 1;
        }

        float (*share)[ROWS * PITCH] = sums[(group - first) & 1];       /* in turn: who writes it again has met all in between */
        #pragma unroll
        for (int i = 0; i < TILES; ++i)
            #pragma unroll
            for (int e = 0; e < EIGHTS; ++e)
                #pragma unroll
                for (int c = 0; c < 4; ++c)
                    share[warp][(8 * e + lane % 4 * 2 + c % 2) * PITCH + 16 * i + lane / 4 + c / 2 * 8] = d[i][e][c];
        __syncthreads();
        if (slices > 1) cluster_wait();         /* all have begun: their inboxes may be written */
        const int outputs = COLUMNS * (a.rows < ROWS ? (int)a.rows : ROWS), part = (outputs + slices - 1) / slices;
        for (int o = (int)threadIdx.x; o < outputs; o += 32 * WARPS) {
            const int m = o / COLUMNS, n = o % COLUMNS;
            float     sum = 0;
            #pragma unroll
            for (int s = 0; s < WARPS; ++s) sum += share[s][m * PITCH + n];
            const int64_t column = group * COLUMNS + n;
            if (slices == 1) linear_store(&a, m, column, sum + linear_bias(&a, column));
            else cluster_store(&inbox[slice * part + o % part], (unsigned)(o / part), sum);
        }
        if (slices > 1) {                       /* one group of columns a cluster */
            cluster_arrive();
            cluster_wait();
            for (int i = (int)threadIdx.x; i < part; i += 32 * WARPS) {
                const int o = slice * part + i, m = o / COLUMNS;
                if (o >= outputs) break;
                float sum = inbox[i];
                for (int s = 1; s < slices; ++s) sum += inbox[s * part + i];
                const int64_t column = group * COLUMNS + o % COLUMNS;
                linear_store(&a, m, column, sum + linear_bias(&a, column));
            }
        }
    }
    if (slices == 1) cluster_wait();
}
