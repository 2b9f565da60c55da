/*
 * out = input weight^T of 8-bit numbers, with scales, on the matrix units of sm_90a: persistent blocks, one warpgroup that starts the
 * copies (TMA) and GROUPS that multiply (wgmma), a ring of slabs of 128 in K between them.
 *
 *   FIRST, SECOND  formats of the two operands: e4m3 or e5m2, or s8 both
 *   SWAP     0: the first operand of the instruction is input, the second weight; 1: the other way round, for few rows of input
 *   GROUPS   warpgroups that multiply, BLOCKS  instructions of 64 rows in each: the tile has 64 GROUPS BLOCKS rows of the first operand
 *   BN       and BN rows of the second
 *   PART     columns of an instruction: BN or BN / 2
 *   SETS     0 for integers; 1 or 2, see below
 *   TURNS    0: the warpgroups share a tile; 1: each has tiles of its own, in turn, and one stores its results while the other multiplies
 *   LAG      so many products a warpgroup begins after the one before it
 *   STAGES   parts of the ring, of SLABS slabs each
 *   CHUNK    of the second operand's rows, 16, 32 or 64: with 64 of the first, what leaves at once
 *   BUFFERS  such chunks that a warpgroup can have on their way out
 *
 * Integers (s8) are summed in 32 bits over all of K. Sums of 8-bit floats keep only 14 bits in the matrix units (wgmma8.cuh), so those of
 * every slab, 128 products, are added to f32 sums in registers. A warpgroup has one set of registers for the sums of a slab and adds them
 * while the other warpgroup multiplies; or two, and adds the first one while the second one is under way.
 *
 * With split > 1 (gemm_scaled.h) a cluster of that many blocks has one tile and each block a share of K; they add up through each other's
 * shared memory, in the order of the shares. Rows of input and weight must be 16-byte aligned.
 * M K + N K elements read, each once a tile that needs it (from L2), 2 M N K operations: bound by the matrix units, or by memory when M is
 * small.
 *
 * Shared memory: slabs [STAGES][SLABS] of first [64 GROUPS BLOCKS][128], second [BN][128], then results on their way out. The sums of a
 * split are laid over the slabs.
 */
#include "barrier.cuh"
#include "cp_async.cuh"
#include "gemm_scaled.cuh"
#include "launch.cuh"
#include "tma.cuh"
#include "wgmma8.cuh"

#define ROWS        (64 * BLOCKS * (TURNS ? 1 : GROUPS))
#define FIRST_BYTES (ROWS * 128)
#define SLAB_BYTES  ((ROWS + BN) * 128)
#define STAGE_BYTES (SLABS * SLAB_BYTES)
#define OUT         (STAGES * STAGE_BYTES)             /* where results begin */
#define PARTS       (BN / PART)
#define UNITS       (BLOCKS * PARTS)                   /* instructions side by side, of a warpgroup */
#define CHUNK_BYTES (64 * CHUNK * 2)
#define WHOLE       (BUFFERS * CHUNK == UNITS * PART)  /* all results of a warpgroup have room at once */
#define MULTIPLIERS (128 * GROUPS)                     /* threads */
#define PITCH       (SWAP ? ROWS + 4 : BN + 8)         /* of a row of sums: no bank is met twice */
#define REGISTERS   ((UNITS + SETS) * PART > 128 || GROUPS == 3) /* so many sums that registers must be moved to them */

#if PART % CHUNK || (TURNS && (GROUPS != 2 || LAG)) || BN % PART || (SETS == 2 && ((BLOCKS * (BN / PART) * SLABS) % 2 || LAG % 2))
#error "the macros do not fit each other"
#endif

#if SETS
typedef float sum;
DEVICE sum sum_of(float bits) { return bits; }
#else
typedef int sum;
DEVICE sum sum_of(float bits) { return __float_as_int(bits); }
#endif

struct corner {
    int64_t m, n;
    int     batch;
};

/* Down the first tiles in bands: what runs at one time shares both operands in L2. */
DEVICE corner tile(const scaled_wgmma_args *a, int id)
{
    const int     in_batch = a->first_tiles * a->second_tiles, in_band = a->band * a->second_tiles, batch = id / in_batch;
    const int     at = id % in_batch, top = at / in_band * a->band, rest = at % in_band;
    const int     high  = a->first_tiles - top < a->band ? a->first_tiles - top : a->band;
    const int64_t first = (int64_t)(top + rest % high) * ROWS, second = (int64_t)(rest / high) * BN;
    return SWAP ? corner{ second, first, batch } : corner{ first, second, batch };
}

/* ---- results of one instruction's sums ----------------------------------------------------------------------------------- */

/*
 * Integers to f32. The instruction for it is slow: within 22 bits, which nearly all are in, two others do the same, an addition to the bits of 1.5 * 2^23 and
 * its subtraction. `small`: all of x are.
 */
DEVICE bool all_small(const sum *x)
{
#if SETS
    return true;
#else
    uint32_t beyond = 0;
    #pragma unroll
    for (int i = 0; i < 8; ++i) beyond |= (uint32_t)(x[i] + 0x4b400000) ^ 0x4b000000u;
    return beyond >> 23 == 0;
#endif
}
DEVICE float to_float(sum x, bool small)
{
#if SETS
    return x;
#else
    return small ? __int_as_float(x + 0x4b400000) - 12582912.0f : (float)x;
#endif
}

/* `first` and `second` are the scales of the tile's rows that this warpgroup has, in shared memory. */
DEVICE float scaled(float x, float first, float second) { return SWAP ? x * first * second : x * second * first; }

/* Element by element: f32, or an out that TMA cannot write. */
DEVICE void put_directly(const scaled_args *a, void *out, const sum (&d)[PART / 2], int64_t m, int64_t n, int t, const float *first, const float *second)
{
    const int   r = t / 32 * 16 + t % 32 / 4, c = t % 4 * 2;
    const float low = first[r], high = first[r + 8];
#if SWAP
    const float bias_low = scaled_bias(a, n + r), bias_high = scaled_bias(a, n + r + 8);
    #pragma unroll
    for (int i = 0; i < PART / 2; ++i) {
        const int column = i / 4 * 8 + c + i % 2;
        scaled_store(a, out, m + column, n + r + i % 4 / 2 * 8, scaled(d[i], i % 4 / 2 ? high : low, second[column]) + (i % 4 / 2 ? bias_high : bias_low));
    }
#else
    const bool pairs = scaled_pairs(a, out);
    #pragma unroll
    for (int j = 0; j < PART / 8; ++j) {
        const int64_t k  = n + j * 8 + c;
        const float   b0 = scaled_bias(a, k), b1 = scaled_bias(a, k + 1);
        const float2  s = *(const float2 *)(second + j * 8 + c);
        scaled_store2(a, out, m + r, k, scaled(d[4 * j], low, s.x) + b0, scaled(d[4 * j + 1], low, s.y) + b1, pairs);
        scaled_store2(a, out, m + r + 8, k, scaled(d[4 * j + 2], high, s.x) + b0, scaled(d[4 * j + 3], high, s.y) + b1, pairs);
    }
#endif
}

DEVICE uint32_t pack(float lo, float hi, bool f16) { return f16 ? pack_f16x2(lo, hi) : pack_bf16x2(lo, hi); }

/*
 * Through shared memory, in chunks: `place` has room for BUFFERS, `turn` says which one is next. f16 is a constant. Unless there is room for all, and with
 * more than one buffer, a chunk's barrier also says that the next chunk's buffer has been read: of the copies begun before it all but the newest BUFFERS - 2.
 */
DEVICE void put_by_tma(const scaled_wgmma_args *a, const sum (&d)[PART / 2], int64_t m, int64_t n, int batch, int t, int group, const float *first,
                       const float *second, uint32_t place, int *turn, bool f16)
{
    const scaled_args *l    = &a->s;
    const int          lane = t % 32, warp = t / 32, r = warp * 16 + lane / 4, c = lane % 4 * 2;
    const float        low = first[r], high = first[r + 8];
    float2             by[PART / 8];
    #pragma unroll
    for (int j = 0; j < PART / 8; ++j) by[j] = *(const float2 *)(second + 8 * j + c);
#if SWAP
    const float bias_low = scaled_bias(l, n + r), bias_high = scaled_bias(l, n + r + 8);
#endif
    #pragma unroll
    for (int k = 0; k < PART / CHUNK; ++k, *turn = *turn + 1 == BUFFERS ? 0 : *turn + 1) {
        const uint32_t to = place + *turn * CHUNK_BYTES;
#if BUFFERS == 1 && !WHOLE
        if (t == 0) tma_store_wait_read(0);
        named_sync(1 + group, 128);
#endif
        #pragma unroll
        for (int j = 0; j < CHUNK / 16; ++j) {
            const sum   *x = d + k * (CHUNK / 2) + 8 * j;
            const float2 s = by[k * (CHUNK / 8) + 2 * j], u = by[k * (CHUNK / 8) + 2 * j + 1];
            float        y[8];
            if (all_small(x)) {
                #pragma unroll
                for (int i = 0; i < 8; ++i) y[i] = to_float(x[i], true);
            } else {
                #pragma unroll
                for (int i = 0; i < 8; ++i) y[i] = to_float(x[i], false);
            }
            y[0] = scaled(y[0], low, s.x), y[1] = scaled(y[1], low, s.y), y[2] = scaled(y[2], high, s.x), y[3] = scaled(y[3], high, s.y);
            y[4] = scaled(y[4], low, u.x), y[5] = scaled(y[5], low, u.y), y[6] = scaled(y[6], high, u.x), y[7] = scaled(y[7], high, u.y);
#if SWAP                                                        /* [CHUNK rows of out][64] */
            const int row = 16 * j + lane / 16 * 8 + lane % 8, piece = 2 * warp + lane / 8 % 2;
            #pragma unroll
            for (int i = 0; i < 8; ++i) y[i] += i % 4 / 2 ? bias_high : bias_low;
            stmatrix_x4_trans(to + row * 128 + (piece ^ (row & 7)) * 16, pack(y[0], y[1], f16), pack(y[2], y[3], f16), pack(y[4], y[5], f16),
                              pack(y[6], y[7], f16));
#else                                                           /* [64 rows of out][CHUNK] */
            const int row = 16 * warp + lane % 16, piece = 2 * j + lane / 16;
            if (l->bias) {
                const int64_t at = n + k * CHUNK + 16 * j + c;
                const float   b0 = scaled_bias(l, at), b1 = scaled_bias(l, at + 1), b2 = scaled_bias(l, at + 8), b3 = scaled_bias(l, at + 9);
                y[0] += b0, y[1] += b1, y[2] += b0, y[3] += b1, y[4] += b2, y[5] += b3, y[6] += b2, y[7] += b3;
            }
            const int at = CHUNK == 64 ? row * 128 + (piece ^ (row & 7)) * 16 : CHUNK == 32 ? row * 64 + (piece ^ (row >> 1 & 3)) * 16
                                                                                            : row * 32 + piece * 16;
            stmatrix_x4(to + at, pack(y[0], y[1], f16), pack(y[2], y[3], f16), pack(y[4], y[5], f16), pack(y[6], y[7], f16));
#endif
        }
#if !WHOLE
        async_fence();
#if BUFFERS > 1
        if (t == 0) tma_store_wait_read(BUFFERS - 2);
#endif
        named_sync(1 + group, 128);
        if (t == 0) {
            tma_store3(&a->result, (int)n + (SWAP ? 0 : k * CHUNK), (int)m + (SWAP ? k * CHUNK : 0), batch, to);
            tma_store_commit();
        }
#endif
    }
}

/* Into the block's share of a split: rows of out, PITCH apart. `row` counts in the tile along the first operand, `column` along the second. */
DEVICE void put_share(sum *share, const sum (&d)[PART / 2], int row, int column, int t)
{
    const int r = row + t / 32 * 16 + t % 32 / 4, c = column + t % 4 * 2;
    #pragma unroll
    for (int i = 0; i < PART / 2; ++i) {
        const int down = r + i % 4 / 2 * 8, across = c + i / 4 * 8 + i % 2;
        share[SWAP ? across * PITCH + down : down * PITCH + across] = d[i];
    }
}

/* This block's columns of the tile, pieces of four: the sum of all shares, in order. Reads from other blocks are slow, hence several at once. */
DEVICE void add_shares(const scaled_wgmma_args *a, corner at, int slice, uint32_t shares, const float *first, const float *second, int t)
{
    const scaled_args *l      = &a->s;
    void *const        out    = scaled_out(l, at.batch);
    const int          across = (SWAP ? ROWS : BN) / 4, left = across * slice / a->split, wide = across * (slice + 1) / a->split - left;
    const int64_t      rest = l->rows - at.m;
    const int          high = rest < (SWAP ? BN : ROWS) ? (int)rest : (SWAP ? BN : ROWS), count = high * wide;
    const bool         pairs = scaled_pairs(l, out);
    for (int i = t; i < count; i += 4 * MULTIPLIERS) {
        sum      v[4][4];
        uint32_t from[4];
        #pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int p    = i + e * MULTIPLIERS < count ? i + e * MULTIPLIERS : i;
            from[e]        = shares + (uint32_t)(p / wide * PITCH + (left + p % wide) * 4) * 4;
            const float4 u = cluster_load4(from[e], 0);
            v[e][0] = sum_of(u.x), v[e][1] = sum_of(u.y), v[e][2] = sum_of(u.z), v[e][3] = sum_of(u.w);
        }
        for (int s = 1; s < a->split; ++s) {
            float4 u[4];
            #pragma unroll
            for (int e = 0; e < 4; ++e) u[e] = cluster_load4(from[e], (uint32_t)s);
            #pragma unroll
            for (int e = 0; e < 4; ++e)
                v[e][0] += sum_of(u[e].x), v[e][1] += sum_of(u[e].y), v[e][2] += sum_of(u[e].z), v[e][3] += sum_of(u[e].w);
        }
        #pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int     p = i + e * MULTIPLIERS;
            const int64_t m = at.m + p / wide, n = at.n + (left + p % wide) * 4;
            if (p >= count || n >= l->columns) continue;
            const int    down = p / wide, column = (left + p % wide) * 4;         /* in the tile */
            const float4 weight = *(const float4 *)((SWAP ? first : second) + column);
            const float  scale = SWAP ? second[down] : first[down], by[4] = { weight.x, weight.y, weight.z, weight.w };
            float        y[4];
            #pragma unroll
            for (int c = 0; c < 4; ++c) y[c] = (float)v[e][c] * by[c] * scale + scaled_bias(l, n + c);
            scaled_store2(l, out, m, n, y[0], y[1], pairs);
            scaled_store2(l, out, m, n + 2, y[2], y[3], pairs);
        }
    }
}

/* The part of the ring behind n others. */
DEVICE void skip(int *stage, uint32_t *lap, int n)
{
    n += *stage;
    *stage = n % STAGES, *lap ^= n / STAGES & 1;
}

/* ---- the kernel -------------------------------------------------------------------------------------------------------- */

/* Scales of `count` rows from row `at` on, of `rows`. */
DEVICE void copy_scales(float *to, const float *from, int64_t step, int64_t at, int64_t rows, int count, int t)
{
    for (int i = t; i < count; i += 128)
        cp_async4(shared_address(to + i), from + (at + i < rows ? at + i : 0) * step, at + i < rows);
}

extern "C" __global__ __launch_bounds__(MULTIPLIERS + 128, 1) void scaled_wgmma(const __grid_constant__ scaled_wgmma_args a)
{
    extern __shared__ uint8_t    memory[];
    __shared__ uint64_t          full[STAGES], empty[STAGES];
    __shared__ alignas(16) float first_scales[GROUPS][64 * BLOCKS], second_scales[GROUPS][BN];
    const uint32_t               unaligned = shared_address(memory), base = (unaligned + 1023) & ~1023u;
    const int                    group = __shfl_sync(~0u, threadIdx.x / 128, 0), t = threadIdx.x % 128;
    const int                    slice = (int)cluster_rank(), lane = t % 32;
    const int                    from = (int)((int64_t)a.steps * slice / a.split), to = (int)((int64_t)a.steps * (slice + 1) / a.split);
    const int                    tiles = a.first_tiles * a.second_tiles * (int)a.s.batch, begin = (int)blockIdx.x / a.split, stride = (int)gridDim.x / a.split;
    int                          stage = 0;
    uint32_t                     lap   = 0;

    if (threadIdx.x == MULTIPLIERS) {
        tma_prefetch_map(&a.first);
        tma_prefetch_map(&a.second);
        #pragma unroll
        for (int s = 0; s < STAGES; ++s) {
            mbarrier_init(shared_address(&full[s]), 1);
            mbarrier_init(shared_address(&empty[s]), TURNS ? 4 : 4 * GROUPS);
        }
        mbarrier_init_done();
    }
    if (group < GROUPS) {
        named_sync(1 + GROUPS, MULTIPLIERS + 32);
    } else if (t < 32) {                        /* the first copies need not wait for anybody */
        __threadfence_block();
        __syncwarp();
        named_announce(1 + GROUPS, MULTIPLIERS + 32);
    }
    pdl_wait();

    if (group == GROUPS) {
#if REGISTERS
        registers_give(GROUPS == 3 ? 32 : 40);
#endif
        if (t == 0) {
            for (int id = begin; id < tiles; id += stride) {
                const corner at    = tile(&a, id);
                const int    first = (int)(SWAP ? at.n : at.m), second = (int)(SWAP ? at.m : at.n);
                for (int k = from; k < to; ++k) {
                    const uint32_t arrived = shared_address(&full[stage]);
                    mbarrier_wait(shared_address(&empty[stage]), lap ^ 1);
                    mbarrier_expect(arrived, STAGE_BYTES);
                    #pragma unroll
                    for (int s = 0; s < SLABS; ++s) {
                        const uint32_t slab = base + stage * STAGE_BYTES + s * SLAB_BYTES;
                        const int      x    = (k * SLABS + s) * 128;
                        tma_load3(slab, &a.first, x, first, at.batch, arrived);
                        tma_load3(slab + FIRST_BYTES, &a.second, x, second, at.batch, arrived);
                    }
                    if (++stage == STAGES) stage = 0, lap ^= 1;
                }
            }
            if (a.split == 1) {
                if (a.by_tma) tma_prefetch_map(&a.result);
                pdl_release();
            }
        }
        __syncwarp();
        if (a.split > 1) cluster_sync();
    } else {
#if REGISTERS
        registers_take(GROUPS == 3 ? 160 : 232);
#endif
        const int part_of_tile = TURNS ? 0 : group * BLOCKS;                 /* in blocks of 64 rows */
        sum       d[UNITS][PART / 2];
        int       turn = 0;
        if (TURNS) skip(&stage, &lap, group * (to - from));
        for (int id = begin + (TURNS ? group * stride : 0); id < tiles; id += TURNS ? GROUPS * stride : stride) {
            const corner at = tile(&a, id);
            {
                const float  *input = a.s.input_scales, *weight = a.s.weight_scales;
                const int64_t input_step = a.s.input_scale_step, weight_step = a.s.weight_scale_step;
                named_sync(1 + group, 128);                                 /* the last tile's have been read */
                copy_scales(first_scales[group], SWAP ? weight : input, SWAP ? weight_step : input_step,
                            (SWAP ? at.n : at.m) + part_of_tile * 64, SWAP ? a.s.columns : a.s.rows, 64 * BLOCKS, t);
                copy_scales(second_scales[group], SWAP ? input : weight, SWAP ? input_step : weight_step, SWAP ? at.m : at.n,
                            SWAP ? a.s.rows : a.s.columns, BN, t);
            }
#if SETS
            sum part[SETS][PART / 2];
            #pragma unroll
            for (int u = 0; u < UNITS; ++u)
                #pragma unroll
                for (int i = 0; i < PART / 2; ++i) d[u][i] = 0;
#else
            int last = 0;
#endif
            if (TURNS && id != begin) named_sync(2 + GROUPS + group, 256);  /* whose turn it was waits for its last slabs no more */
            const int most = (to - from) * (SETS ? SLABS * UNITS : 1), lag = LAG < most ? LAG : most;
            if (LAG && group > 0 && id == begin) named_sync(1 + GROUPS + group, 256);
            for (int k = from; k < to; ++k) {
                mbarrier_wait(shared_address(&full[stage]), lap);
#if SETS
                #pragma unroll
                for (int q = 0; q < SLABS * UNITS; q += SETS) {
                    wgmma_fence();
                    #pragma unroll
                    for (int e = 0; e < SETS; ++e) {
                        const int      u    = (q + e) % UNITS;
                        const uint32_t slab = base + stage * STAGE_BYTES + (q + e) / UNITS * SLAB_BYTES;
                        const uint64_t x    = wgmma_operand(slab + (part_of_tile + u / PARTS) * 8192);
                        const uint64_t y    = wgmma_operand(slab + FIRST_BYTES + u % PARTS * PART * 128);
                        #pragma unroll
                        for (int i = 0; i < 4; ++i) wgmma(part[e], x + i * WGMMA_STEP, y + i * WGMMA_STEP, i > 0, (const FIRST *)0, (const SECOND *)0);
                        wgmma_commit();
                    }
#if SETS == 2
                    wgmma_wait(1);
                    wgmma_pin(part[0]);
                    #pragma unroll
                    for (int i = 0; i < PART / 2; ++i) d[q % UNITS][i] += part[0][i];
#endif
                    wgmma_wait(0);
                    wgmma_pin(part[SETS - 1]);
                    if (q + SETS == SLABS * UNITS && lane == 0) mbarrier_arrive(shared_address(&empty[stage]));
                    if (LAG && group + 1 < GROUPS && id == begin && (k - from) * SLABS * UNITS + q + SETS == lag) named_announce(2 + GROUPS + group, 256);
                    #pragma unroll
                    for (int i = 0; i < PART / 2; ++i) d[(q + SETS - 1) % UNITS][i] += part[SETS - 1][i];
                }
#else
                wgmma_fence();
                #pragma unroll
                for (int s = 0; s < SLABS; ++s) {
                    const uint32_t slab = base + stage * STAGE_BYTES + s * SLAB_BYTES;
                    const uint64_t x = wgmma_operand(slab + part_of_tile * 8192), y = wgmma_operand(slab + FIRST_BYTES);
                    #pragma unroll
                    for (int i = 0; i < 4; ++i)
                        #pragma unroll
                        for (int u = 0; u < UNITS; ++u)
                            wgmma(d[u], x + i * WGMMA_STEP + u / PARTS * (8192 / 16), y + i * WGMMA_STEP + u % PARTS * (PART * 128 / 16),
                                  k > from || s > 0 || i > 0, (const FIRST *)0, (const SECOND *)0);
                }
                wgmma_commit();
                if (LAG && group + 1 < GROUPS && id == begin && k - from + 1 == lag) named_announce(2 + GROUPS + group, 256);
                if (k > from) {                                             /* the stage before this one has been read */
                    wgmma_wait(1);
                    if (lane == 0) mbarrier_arrive(shared_address(&empty[last]));
                }
                last = stage;
#endif
                if (++stage == STAGES) stage = 0, lap ^= 1;
            }
            if (TURNS && id + stride < tiles) named_announce(2 + GROUPS + (group + 1) % GROUPS, 256);
#if !SETS
            wgmma_wait(0);
            if (lane == 0) mbarrier_arrive(shared_address(&empty[last]));
            #pragma unroll
            for (int u = 0; u < UNITS; ++u) wgmma_pin(d[u]);
#endif

            if (TURNS) skip(&stage, &lap, (GROUPS - 1) * (to - from));
            if (a.split > 1) {
                sum *share = (sum *)(memory + (base - unaligned));
                named_sync(1 + GROUPS, MULTIPLIERS);                        /* nobody reads slabs any more */
                #pragma unroll
                for (int u = 0; u < UNITS; ++u) put_share(share, d[u], (part_of_tile + u / PARTS) * 64, u % PARTS * PART, t);
                cp_async_wait_all();
                cluster_sync();
                add_shares(&a, at, slice, base, first_scales[0], second_scales[0], (int)threadIdx.x);
            } else {
                cp_async_wait_all();
                if (WHOLE && t == 0) tma_store_wait_read(0);
                named_sync(1 + group, 128);
                void *const    out   = scaled_out(&a.s, at.batch);
                const uint32_t place = base + OUT + group * BUFFERS * CHUNK_BYTES;
                #pragma unroll
                for (int u = 0; u < UNITS; ++u) {
                    const int64_t row = (part_of_tile + u / PARTS) * 64, column = u % PARTS * PART;
                    const int64_t m = at.m + (SWAP ? column : row), n = at.n + (SWAP ? row : column);
                    const float  *first = first_scales[group] + u / PARTS * 64, *second = second_scales[group] + column;
                    if (a.by_tma && a.s.out_dtype == SGK_BF16) put_by_tma(&a, d[u], m, n, at.batch, t, group, first, second, place, &turn, false);
                    else if (a.by_tma) put_by_tma(&a, d[u], m, n, at.batch, t, group, first, second, place, &turn, true);
                    else put_directly(&a.s, out, d[u], m, n, t, first, second);
                }
#if WHOLE
                if (a.by_tma) {
                    async_fence();
                    named_sync(1 + group, 128);
                    if (t == 0) {
                        #pragma unroll
                        for (int c = 0; c < BUFFERS; ++c) {
                            const int row = (part_of_tile + c * CHUNK / BN) * 64, column = c * CHUNK % BN;
                            tma_store3(&a.result, (int)at.n + (SWAP ? row : column), (int)at.m + (SWAP ? column : row), at.batch, place + c * CHUNK_BYTES);
                        }
                        tma_store_commit();
                    }
                }
#endif
            }
        }
        if (t == 0) tma_store_wait_read(0);
    }
    if (a.split > 1) {
        cluster_sync();                         /* a block's shared memory is the cluster's until all are done */
        pdl_release();
    }
}
