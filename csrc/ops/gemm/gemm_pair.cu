/*
 * out = input weight^T for up to 16 rows of input: two blocks of a cluster have 32 columns, and each half of K, so that a block reads half of the input.
 * That comes to shared memory at once, by the copy engine. Warps have a slab of 64 in K each in turn; lanes load the very pieces of weight that are
 * their fragments of mma.sync straight into registers, AHEAD slabs at a time. Nobody waits for anybody but the input until K is done.
 * The weights are read once: N K elements, 2 M N K operations. Bound by memory.
 *
 *   T         f16 or bf16
 *   EIGHTS    most rows of input, in eights
 *   WARPS     share a block's half of K
 *   AHEAD     slabs that a warp has on their way
 *
 * Sums of the warps are added in their order; each block then has 16 of the columns, and is sent the other half's sums. Rows of input and weight must
 * be 16-byte aligned and K a multiple of 8. Where the pieces of a slab lie is said in gemm_few.cu.
 */
#include "cluster_push.cuh"
#include "cp_async.cuh"
#include "gemm.cuh"
#include "gemm_once.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "tma.cuh"

#define COLUMNS LINEAR_PAIR_COLUMNS
#define ROWS    (8 * EIGHTS)
#define PITCH   (COLUMNS + 4)                   /* of a row of sums: no bank is met twice */

/* A multiple of 16 bytes, at addresses of that alignment; they arrive at the mbarrier. */
DEVICE void bulk_load(uint32_t to, const void *from, int bytes, uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier) : "memory");
}

extern "C" __global__ __launch_bounds__(32 * WARPS, 1) void linear_pair(const __grid_constant__ linear_few_args a)
{
    extern __shared__ __align__(128) uint8_t rows[];                    /* [ROWS][pitch] */
    __shared__ float                         sums[WARPS][ROWS * PITCH], inbox[ROWS * 16];
    __shared__ uint64_t                      arrived, received;
    const int                                lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, row = lane / 4, rank = (int)cluster_rank();
    const int64_t                            n = (int64_t)(blockIdx.x / 2) * COLUMNS, last = a.l.columns - 1;
    const int                                slabs = ((int)a.l.depth + 63) / 64, half = (slabs + 1) / 2, from = rank * half, to = rank ? slabs : half;
    const int                                begin = from * 8, end = to * 8 < (int)a.l.depth / 8 ? to * 8 : (int)a.l.depth / 8;      /* pieces of 8 in K */
    const int                                pitch = half * 128 + 64, each = to - from > warp ? (to - from - warp + WARPS - 1) / WARPS : 0;
    const uint32_t                           there = shared_address(&arrived);

    /* The kernel before this one may still run: weights may come as far as L2, where all see the same. A warp starts one copy after the other, so each starts its own. */
    const int pieces = end - begin < a.ahead / 2 ? end - begin : a.ahead / 2, own_column = warp + WARPS * lane, own_row = own_column;
    if (own_column < COLUMNS && n + own_column <= last && pieces > 0) l2_prefetch((const T *)a.l.weight + (n + own_column) * a.l.weight_stride + begin * 8, pieces * 16);

    const uint4 *w[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i) w[i] = (const uint4 *)((const T *)a.l.weight + (n + row + 8 * i < last ? n + row + 8 * i : last) * a.l.weight_stride);
    if (threadIdx.x == 0) {
        mbarrier_init(there, 1);
        mbarrier_init(shared_address(&received), 1);
        mbarrier_expect(shared_address(&received), ROWS * 16 * 4);
        mbarrier_init_done();
        mbarrier_expect(there, (uint32_t)(a.l.rows * (end - begin) * 16));
    }
    __syncthreads();
    cluster_begin();                                    /* the barriers are there */
    pdl_wait();
    if (a.release == 0) pdl_release();
    if (own_row < (int)a.l.rows && end > begin)
        bulk_load(shared_address(rows) + own_row * pitch, (const T *)a.l.input + own_row * a.l.input_stride + begin * 8, (end - begin) * 16, there);

    uint4 v[AHEAD][8];
    int   p = begin + warp * 8 + lane % 4, q = p;       /* the pieces of the slab that is asked for next, and of the one that is multiplied */
    #define LOAD(s) \
    do { \
        _Pragma("unroll") for (int j_ = 0; j_ < 2; ++j_) \
            _Pragma("unroll") for (int i_ = 0; i_ < 4; ++i_) v[s][4 * j_ + i_] = load_once(w[i_] + p + 4 * j_, p + 4 * j_ < end); \
        p += 8 * WARPS; \
    } while (0)
    #pragma unroll
    for (int s = 0; s < AHEAD; ++s) LOAD(s);

    float d[2][EIGHTS][4];
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        #pragma unroll
        for (int e = 0; e < EIGHTS; ++e)
            #pragma unroll
            for (int c = 0; c < 4; ++c) d[i][e][c] = 0;
    if (end > begin) mbarrier_wait(there, 0);

    #pragma unroll 1
    for (int i = 0; i < each; i += AHEAD) {
        if (i > 0 && i >= a.release) pdl_release();
        #pragma unroll
        for (int s = 0; s < AHEAD; ++s) {
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                #pragma unroll
                for (int e = 0; e < EIGHTS; ++e) {
                    uint4 y = make_uint4(0, 0, 0, 0);
                    if (q + 4 * j < end) y = *(const uint4 *)(rows + (row + 8 * e) * pitch + (q + 4 * j - begin) * 16);
                    const uint32_t x0[2] = { y.x, y.y }, x1[2] = { y.z, y.w };
                    #pragma unroll
                    for (int t = 0; t < 2; ++t) {
                        const uint4    low = v[s][4 * j + 2 * t], high = v[s][4 * j + 2 * t + 1];
                        const uint32_t w0[4] = { low.x, high.x, low.y, high.y }, w1[4] = { low.z, high.z, low.w, high.w };
                        mma_m16n8k16(d[t][e], w0, x0, (const T *)0);
                        mma_m16n8k16(d[t][e], w1, x1, (const T *)0);
                    }
                }
            }
            q += 8 * WARPS;
            LOAD(s);
        }
    }

    #pragma unroll
    for (int t = 0; t < 2; ++t)
        #pragma unroll
        for (int e = 0; e < EIGHTS; ++e)
            #pragma unroll
            for (int c = 0; c < 4; ++c) sums[warp][(8 * e + lane % 4 * 2 + c % 2) * PITCH + 16 * t + row + c / 2 * 8] = d[t][e][c];
    __syncthreads();
    cluster_await();                                    /* the other block's barrier is there */
    const int m = (int)threadIdx.x / COLUMNS, c = (int)threadIdx.x % COLUMNS, place = m * 16 + c % 16;
    if (m >= ROWS) return;
    float sum = 0;
    #pragma unroll
    for (int s = 0; s < WARPS; ++s) sum += sums[s][m * PITCH + c];
    if (c / 16 != rank) {
        cluster_push(shared_address(&inbox[place]), shared_address(&received), (uint32_t)(rank ^ 1), sum);
    } else {
        mbarrier_wait_published(shared_address(&received), 0);
        linear_store(&a.l, m, n + c, sum + inbox[place] + linear_bias(&a.l, n + c));
    }
}
