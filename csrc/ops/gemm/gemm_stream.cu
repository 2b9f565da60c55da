/*
 * out = input weight^T for up to 16 rows of input, made for a short way from the first instruction to the last: no barriers before the
 * weights are asked for, none while they come. A lane copies (cp.async) the very pieces of weight and input that are its fragments of mma.sync,
 * into a ring of its own, so nobody waits for anybody until K is done. The weights are read once: N K elements, 2 M N K operations. Bound by memory.
 *
 *   T       f16 or bf16
 *   TILES   of 16 columns of out (rows of weight) that a warp multiplies at a time
 *   EIGHTS  most rows of input, in eights
 *   WARPS   share K; each has STAGES - 1 slabs of 64 in K on their way
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
#include "l2_policy.cuh"
#include "launch.cuh"
#include "mma.cuh"
#if __CUDA_ARCH__ >= 900
#include "tma.cuh"
#endif

#define COLUMNS (16 * TILES)
#define ROWS    (8 * EIGHTS)
#define PIECES  (4 * TILES + 2 * EIGHTS)       /* of 16 bytes that a lane copies of a slab: weight, then input */
#define PITCH   (COLUMNS + 4)                  /* of a row of sums: no bank is met twice */
#define OUTPUTS (COLUMNS * ROWS)

/* Zeros instead of data where it is not inside. */
DEVICE void copy_once(uint32_t to, const void *from, bool inside, uint64_t policy)
{
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0), "l"(policy) : "memory");
}

extern "C" __global__ __launch_bounds__(32 * WARPS, 1) void linear_stream(const __grid_constant__ linear_args batch)
{
    const linear_args a = linear_batch(&batch, blockIdx.y);
    extern __shared__ __align__(16) uint8_t ring[];                     /* [WARPS][STAGES][PIECES][32] pieces */
    __shared__ float                        sums[2][WARPS][ROWS * PITCH], inbox[OUTPUTS + 8];
    const int                               lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, row = lane / 4;
    const unsigned                          slice = cluster_rank(), slices = cluster_blocks();
    const uint32_t                          base = shared_address(ring) + (warp * STAGES * PIECES * 32 + lane) * 16;
    /* This cluster's columns, in groups, and this warp's slabs of each. */
    const unsigned groups = (unsigned)((a.columns + COLUMNS - 1) / COLUMNS), cluster = blockIdx.x / slices, clusters = gridDim.x / slices;
    const unsigned fewer = groups / clusters, more = groups % clusters;         /* the first ones have a group more */
    const int      first = (int)(cluster * fewer + (cluster < more ? cluster : more)), last = first + (int)(fewer + (cluster < more));
    const unsigned slabs = ((unsigned)a.depth + 63) / 64;
    const int      from = (int)(slabs * slice / slices) + warp, to = (int)(slabs * (slice + 1) / slices);
    const int      each = from < to ? (to - from + WARPS - 1) / WARPS : 0, k_first = from * 64 + lane % 4 * 8, k_end = k_first + each * (WARPS * 64);
    int            left = each * (last - first);                                /* slabs to copy */

    if (slices > 1) cluster_arrive();
    const uint64_t policy = l2_evict_first();                                   /* weights are read once: they leave L2 first */
    int            n = first * COLUMNS + row, k = k_first;                      /* what is copied next */
    const T       *w = (const T *)a.weight + n * a.weight_stride + k, *x = (const T *)a.input + row * a.input_stride + k;
    uint32_t       at = base;
#if __CUDA_ARCH__ >= 900
    /* The kernel before this one may still run: weights are not its result, and may come as far as L2. */
    const int begin = (int)(slabs * slice / slices) * 64, bytes = ((int)a.depth - begin < (STAGES - 1) * WARPS * 64 ? (int)a.depth - begin : (STAGES - 1) * WARPS * 64) * 2;
    if ((int)threadIdx.x < COLUMNS && first * COLUMNS + (int)threadIdx.x < (int)a.columns && first < last && bytes > 0)
        l2_prefetch((const T *)a.weight + (first * COLUMNS + (int)threadIdx.x) * a.weight_stride + begin, bytes);
#endif
    pdl_wait();
    pdl_release();
    #define COPY_NEXT() \
    do { \
        if (left > 0) { \
            --left; \
            _Pragma("unroll") for (int i_ = 0; i_ < 2 * TILES; ++i_) \
                _Pragma("unroll") for (int j_ = 0; j_ < 2; ++j_) \
                    copy_once(at + (2 * i_ + j_) * 512, w + 8 * i_ * a.weight_stride + 32 * j_, n + 8 * i_ < (int)a.columns && k + 32 * j_ < (int)a.depth, policy); \
            _Pragma("unroll") for (int e_ = 0; e_ < EIGHTS; ++e_) \
                _Pragma("unroll") for (int j_ = 0; j_ < 2; ++j_) \
                    cp_async16(at + (4 * TILES + 2 * e_ + j_) * 512, x + 8 * e_ * a.input_stride + 32 * j_, row + 8 * e_ < (int)a.rows && k + 32 * j_ < (int)a.depth); \
            k += WARPS * 64, w += WARPS * 64, x += WARPS * 64; \
            if (k == k_end) k = k_first, n += COLUMNS, w += COLUMNS * a.weight_stride - each * (WARPS * 64), x -= each * (WARPS * 64); \
            at = at + PIECES * 512 == base + STAGES * PIECES * 512 ? base : at + PIECES * 512; \
        } \
        cp_async_commit(); \
    } while (0)
    #pragma unroll 1
    for (int s = 0; s < STAGES - 1; ++s) COPY_NEXT();

    const uint4 *slab = (const uint4 *)(ring + (base - shared_address(ring))), *const slabs_end = slab + STAGES * PIECES * 32;
    #pragma unroll 1
    for (int group = first; group < last; ++group) {
        float d[TILES][EIGHTS][4];
        #pragma unroll
        for (int i = 0; i < TILES; ++i)
            #pragma unroll
            for (int e = 0; e < EIGHTS; ++e)
                #pragma unroll
                for (int c = 0; c < 4; ++c) d[i][e][c] = 0;

        #pragma unroll 1
        for (int done = 0; done < each; ++done) {
            cp_async_wait(STAGES - 2);
            COPY_NEXT();
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                uint4 v[EIGHTS];
                #pragma unroll
                for (int e = 0; e < EIGHTS; ++e) v[e] = slab[(4 * TILES + 2 * e + j) * 32];
                #pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    const uint4    low = slab[(4 * i + j) * 32], high = slab[(4 * i + 2 + j) * 32];
                    const uint32_t w0[4] = { low.x, high.x, low.y, high.y }, w1[4] = { low.z, high.z, low.w, high.w };
                    #pragma unroll
                    for (int e = 0; e < EIGHTS; ++e) {
                        const uint32_t x0[2] = { v[e].x, v[e].y }, x1[2] = { v[e].z, v[e].w };
                        mma_m16n8k16(d[i][e], w0, x0, (const T *)0);
                        mma_m16n8k16(d[i][e], w1, x1, (const T *)0);
                    }
                }
            }
            slab += PIECES * 32;
            if (slab == slabs_end) slab -= STAGES * PIECES * 32;
        }

        float (*share)[ROWS * PITCH] = sums[(group - first) & 1];       /* in turn: who writes it again has met all in between */
        #pragma unroll
        for (int i = 0; i < TILES; ++i)
            #pragma unroll
            for (int e = 0; e < EIGHTS; ++e)
                #pragma unroll
                for (int c = 0; c < 4; ++c)
                    share[warp][(8 * e + lane % 4 * 2 + c % 2) * PITCH + 16 * i + row + c / 2 * 8] = d[i][e][c];
        __syncthreads();
        if (slices > 1) cluster_wait();         /* all have begun: their inboxes may be written */
        const int outputs = COLUMNS * (a.rows < ROWS ? (int)a.rows : ROWS), part = (outputs + (int)slices - 1) / (int)slices;
        #pragma unroll 1
        for (int o = (int)threadIdx.x; o < outputs; o += 32 * WARPS) {
            const int     m = o / COLUMNS, c = o % COLUMNS;
            const int64_t column = (int64_t)group * COLUMNS + c;
            float         sum    = 0;
            #pragma unroll
            for (int s = 0; s < WARPS; ++s) sum += share[s][m * PITCH + c];
            if (slices == 1) linear_store(&a, m, column, sum + linear_bias(&a, column));
            else cluster_store(&inbox[(int)slice * part + o % part], (unsigned)(o / part), sum);
        }
        if (slices > 1) {                       /* one group of columns a cluster */
            cluster_arrive();
            cluster_wait();
            #pragma unroll 1
            for (int i = (int)threadIdx.x; i < part && (int)slice * part + i < outputs; i += 32 * WARPS) {
                const int     o      = (int)slice * part + i;
                const int64_t column = (int64_t)group * COLUMNS + o % COLUMNS;
                float         sum    = 0;
                #pragma unroll 1
                for (int s = 0; s < (int)slices; ++s) sum += inbox[s * part + i];
                linear_store(&a, o / COLUMNS, column, sum + linear_bias(&a, column));
            }
        }
    }
}
