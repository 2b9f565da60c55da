/*
 * out = input weight^T of e4m3 numbers, with scales, for many rows, on the matrix units of sm_90a: persistent blocks with tiles of 256 x 128, one
 * warpgroup that copies and two that multiply (wgmma), rings of pieces of 128 rows by 128 in K between them. A tile's results are scaled while products of
 * the next tile are under way.
 *
 *   F16  out is f16 (1) or bf16 (0)
 *
 * A warpgroup has two blocks of 64 x 128 results, one in the upper 128 rows of the tile and one in the lower; they share the weight, and each has input of
 * its own. The matrix units keep 14 bits of a sum of 8-bit floats (wgmma8.cuh), so what a chain of products gives, 256 of K, is added to f32 sums in
 * registers. There is one set of registers for chains, and the blocks take turns, each a piece behind the other:
 *
 *     upper   0 1         2 3       4 5             pieces of weight in a chain
 *     lower         0 1 2       3 4       5 6
 *
 * So a piece of weight is in two chains, one behind the other, and then leaves its ring; one of input is in one chain. The second warpgroup begins when the first
 * one has its first sums: one multiplies while the other adds.
 *
 * Of the warpgroup that copies, one thread starts copies of operands (TMA), a warp fetches scales, and two see results off, one for each warpgroup that
 * multiplies: what these do besides multiplying and adding is time in which their products are not under way.
 *
 * Out is written in boxes of 64 x 64, and rows of input and weight are 16-byte aligned. M K + N K elements read, each once a tile that needs it (from L2),
 * 2 M N K operations: bound by the matrix units and by shared memory, which gives an instruction 64 + 128 rows of 32 bytes in the 64 clocks that it takes.
 *
 * Shared memory: gemm_scaled.h.
 */
#include "barrier.cuh"
#include "cp_async.cuh"
#include "gemm_scaled.cuh"
#include "launch.cuh"
#include "tma.cuh"
#include "wgmma8.cuh"

#define BN    CHAINS_COLUMNS
#define FREE  1                                 /* named barriers: + group: its place for results has been read, */
#define READY 3                                 /* is filled */

struct corner { int m, n, batch; };

/* Down the first tiles in bands: what runs at one time shares both operands in L2. */
DEVICE corner tile(const scaled_wgmma_args *a, int id)
{
    const int in_batch = a->first_tiles * a->second_tiles, in_band = a->band * a->second_tiles, batch = id / in_batch;
    const int at = id % in_batch, top = at / in_band * a->band, rest = at % in_band;
    const int high = a->first_tiles - top < a->band ? a->first_tiles - top : a->band;
    return { (top + rest % high) * CHAINS_ROWS, rest / high * BN, batch };
}

/*
 * What a block has `id`-th: tiles, and behind them halves of those that do not fill another round, upper and lower, each of 128 rows and a block's last.
 */
DEVICE corner piece(const scaled_wgmma_args *a, int id)
{
    const int half = id - a->whole;
    if (half < 0) return tile(a, id);
    corner at = tile(a, a->whole + half / 2);
    at.m += half % 2 * 128;
    return at;
}

struct ring {
    int      stage;
    uint32_t lap;
};
DEVICE void advance(ring *r, int count)
{
    if (++r->stage == count) r->stage = 0, r->lap ^= 1;
}

/* What a warpgroup knows of the block's shared memory, and where it is in the rings: what it takes next, and what it gives back next. */
struct places {
    uint32_t base, full, empty;                 /* barriers: of weight, then of input */
    int      group, t;
    ring     weight, input, old_weight, old_input;
    uint32_t lap;                               /* of scales */
};

DEVICE void wait_for(const places *p, int first, ring r) { mbarrier_wait(p->full + (first + r.stage) * 8, r.lap); }
DEVICE void give_back(const places *p, int first, ring *r, int count)
{
    if (p->t % 32 == 0) mbarrier_arrive(p->empty + (first + r->stage) * 8);
    advance(r, count);
}
DEVICE void give_weight(places *p) { give_back(p, 0, &p->old_weight, CHAINS_WEIGHTS); }
DEVICE void give_input(places *p) { give_back(p, CHAINS_WEIGHTS, &p->old_input, CHAINS_INPUTS); }

/* part = or += the products of the next piece of input and this piece of weight. */
DEVICE void multiply(float (&part)[BN / 2], places *p, int weight, bool add)
{
    wait_for(p, CHAINS_WEIGHTS, p->input);
    const uint32_t second = p->base + weight * CHAINS_PIECE, first = p->base + (CHAINS_WEIGHTS + p->input.stage) * CHAINS_PIECE + p->group * (CHAINS_PIECE / 2);
    const uint64_t x = wgmma_operand(first), y = wgmma_operand(second);
    #pragma unroll
    for (int i = 0; i < 4; ++i) wgmma(part, x + i * WGMMA_STEP, y + i * WGMMA_STEP, add || i > 0, (const e4m3 *)0, (const e4m3 *)0);
    wgmma_commit();
    advance(&p->input, CHAINS_INPUTS);
}

/* The same where the piece of weight is new, too. */
DEVICE void multiply_new(float (&part)[BN / 2], places *p, bool add)
{
    wait_for(p, 0, p->weight);
    multiply(part, p, p->weight.stage, add);
    advance(&p->weight, CHAINS_WEIGHTS);
}

#if F16
typedef f16 result;
#else
typedef bf16 result;
#endif

/*
 * One warp: scales and biases of a block's tiles. Those of columns lie in the order in which a thread of a quad reads them: for each 16 columns two, and the two that are
 * eight further.
 */
DEVICE void copy_scales(const scaled_wgmma_args *a, const places *p, int begin, int tiles, int stride)
{
    const int lane = p->t % 32;
    uint32_t  lap  = 1;
    for (int id = begin; id < tiles; id += stride, lap ^= 1) {
        const corner at = piece(a, id);
        mbarrier_wait(p->base + CHAINS_SCALES_EMPTY, lap);
        #pragma unroll 2
        for (int i = lane; i < CHAINS_ROWS; i += 32) {
            const bool there = at.m + i < a->s.rows;
            cp_async4(p->base + CHAINS_ROW_SCALES + i * 4, a->s.input_scales + (there ? at.m + i : 0) * a->s.input_scale_step, there);
        }
        #pragma unroll 2
        for (int i = lane; i < BN; i += 32) {
            const bool there = at.n + i < a->s.columns;
            const int  place = i / 16 * 16 + i % 8 / 2 * 4 + i % 16 / 8 * 2 + i % 2;
            cp_async4(p->base + CHAINS_COLUMN_SCALES + place * 4, a->s.weight_scales + (there ? at.n + i : 0) * a->s.weight_scale_step, there);
            if (a->s.bias) {
                const float b = there ? to_f32(((const result *)a->s.bias)[at.n + i]) : 0;
                asm volatile("st.shared.f32 [%0], %1;" ::"r"(p->base + CHAINS_BIASES + place * 4), "f"(b) : "memory");
            }
        }
        cp_async_arrive(p->base + CHAINS_SCALES_FULL);
        mbarrier_arrive(p->base + CHAINS_SCALES_FULL);
    }
}

/* A warp for each group that multiplies: its results leave. */
DEVICE void send(const scaled_wgmma_args *a, const places *p, int group, int begin, int tiles, int stride)
{
    const uint32_t place = p->base + CHAINS_RESULTS + group * CHAINS_RESULTS_BYTES;
    for (int id = begin; id < tiles; id += stride) {
        const corner at = piece(a, id);
        for (int block = 0; block < (id < a->whole ? 2 : 1); ++block) {
            const int m = at.m + block * 128 + group * 64;
            named_announce(FREE + group, 128 + 32);
            named_sync(READY + group, 128 + 32);
            if (p->t % 32 == 0) {
                tma_store3(&a->result, at.n, m, at.batch, place);
                tma_store3(&a->result, at.n + 64, m, at.batch, place + 8192);
                tma_store_commit();
                tma_store_wait_read(0);
            }
            __syncwarp();
        }
    }
}

DEVICE uint32_t pack(float lo, float hi) { return F16 ? pack_f16x2(lo, hi) : pack_bf16x2(lo, hi); }

/* Scales: where these are read, the compiler does not read them earlier, into registers that it has not. */
DEVICE float shared_load(uint32_t from)
{
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(from) : "memory");
    return v;
}
DEVICE float4 shared_load4(uint32_t from)
{
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(from) : "memory");
    return v;
}

/* Results of a block leave, the `last` of a tile or not. */
DEVICE void store(const scaled_wgmma_args *a, places *p, const float (&d)[BN / 2], int block, bool last)
{
    const int      lane = p->t % 32, warp = p->t / 32;
    const uint32_t rows = p->base + CHAINS_ROW_SCALES + (block * 128 + p->group * 64 + 16 * warp + lane / 4) * 4, columns = p->base + CHAINS_COLUMN_SCALES + lane % 4 * 16;
    const uint32_t to = p->base + CHAINS_RESULTS + p->group * CHAINS_RESULTS_BYTES + (16 * warp + lane % 16) * 128;
    if (block == 0) mbarrier_wait(p->base + CHAINS_SCALES_FULL, p->lap);
    const float low = shared_load(rows), high = shared_load(rows + 32);
    float4      by[3] = { shared_load4(columns), shared_load4(columns + 64) };
    named_sync(FREE + p->group, 128 + 32);
    #pragma unroll
    for (int j = 0; j < 8; ++j) {
        const float4 s = by[j % 3];
        if (j < 6) by[(j + 2) % 3] = shared_load4(columns + 64 * (j + 2));      /* while products read shared memory its latency is long */
        float y[8];
        y[0] = d[8 * j] * s.x * low, y[1] = d[8 * j + 1] * s.y * low, y[2] = d[8 * j + 2] * s.x * high, y[3] = d[8 * j + 3] * s.y * high;
        y[4] = d[8 * j + 4] * s.z * low, y[5] = d[8 * j + 5] * s.w * low, y[6] = d[8 * j + 6] * s.z * high, y[7] = d[8 * j + 7] * s.w * high;
        if (a->s.bias) {
            const float4 b = shared_load4(columns + (CHAINS_BIASES - CHAINS_COLUMN_SCALES) + 64 * j);
            y[0] += b.x, y[1] += b.y, y[2] += b.x, y[3] += b.y, y[4] += b.z, y[5] += b.w, y[6] += b.z, y[7] += b.w;
        }
        const int piece = (2 * j % 8 + lane / 16) ^ (lane & 7);
        stmatrix_x4(to + j / 4 * 8192 + piece * 16, pack(y[0], y[1]), pack(y[2], y[3]), pack(y[4], y[5]), pack(y[6], y[7]));
    }
    async_fence();
    if (last) {
        mbarrier_arrive(p->base + CHAINS_SCALES_EMPTY);
        p->lap ^= 1;
    }
    named_announce(READY + p->group, 128 + 32);
}

DEVICE void zero(float (&d)[BN / 2])
{
    #pragma unroll
    for (int i = 0; i < BN / 2; ++i) d[i] = 0;
}

DEVICE void add(float (&d)[BN / 2], float (&part)[BN / 2])
{
    wgmma_pin(part);
    #pragma unroll
    for (int i = 0; i < BN / 2; ++i) d[i] += part[i];
}

/*
 * A block's chain begins: the pieces of weight that end the other block's chain, and then the next one, if there is `more`. `old` is a constant, 1 or 2: so
 * many were in the other chain. Pieces of the last two products are given back when it ends.
 */
DEVICE void begin_chain(float (&part)[BN / 2], places *p, int old, bool more)
{
    wgmma_fence();
    multiply(part, p, p->old_weight.stage, false);
    if (old == 2) multiply(part, p, p->old_weight.stage + 1 == CHAINS_WEIGHTS ? 0 : p->old_weight.stage + 1, true);
    if (!more) return;
    if (old == 2) {
        wgmma_wait(1);
        give_weight(p);
        give_input(p);
    }
    multiply_new(part, p, true);
}

/* `two`: there are two products to wait for; `first`, `last`: the piece of weight of the first one, of the last or only one, leaves its ring. */
DEVICE void end_chain(float (&d)[BN / 2], float (&part)[BN / 2], places *p, bool two, bool first, bool last)
{
    if (two) {
        wgmma_wait(1);
        if (first) give_weight(p);
        give_input(p);
    }
    wgmma_wait(0);
    if (last) give_weight(p);
    give_input(p);
    add(d, part);
}

/* The next piece, as soon as its place is free. */
DEVICE void copy(const places *p, int first, ring *r, int count, const sgk_tma_map *map, int k, int row, int batch)
{
    const uint32_t arrived = p->full + (first + r->stage) * 8;
    mbarrier_wait(p->empty + (first + r->stage) * 8, r->lap ^ 1);
    mbarrier_expect(arrived, CHAINS_PIECE);
    tma_load3(p->base + (first + r->stage) * CHAINS_PIECE, map, k * 128, row, batch, arrived);
    advance(r, count);
}

/* One thread. Pieces come in the order in which they are multiplied. */
DEVICE void copy_operands(const scaled_wgmma_args *a, places *p, int begin, int tiles, int stride)
{
    for (int id = begin; id < tiles; id += stride) {
        const corner at    = piece(a, id);
        const int    steps = a->steps;
        if (id >= a->whole) {
            for (int k = 0; k < steps; ++k) {
                copy(p, 0, &p->weight, CHAINS_WEIGHTS, &a->second, k, at.n, at.batch);
                copy(p, CHAINS_WEIGHTS, &p->input, CHAINS_INPUTS, &a->first, k, at.m, at.batch);
            }
            return;
        }
        for (int chain = 0, from = 0, to = 0; from < steps; ++chain) {
            const int row = at.m + chain % 2 * 128, next = to + (chain == 0 ? 2 : 1);
            for (int k = from; k < to; ++k) copy(p, CHAINS_WEIGHTS, &p->input, CHAINS_INPUTS, &a->first, k, row, at.batch);
            from = to;
            for (; to < next && to < steps; ++to) {
                copy(p, 0, &p->weight, CHAINS_WEIGHTS, &a->second, to, at.n, at.batch);
                copy(p, CHAINS_WEIGHTS, &p->input, CHAINS_INPUTS, &a->first, to, row, at.batch);
            }
        }
    }
}

extern "C" __global__ __launch_bounds__(384, 1) void scaled_chains(const __grid_constant__ scaled_wgmma_args a)
{
    extern __shared__ __align__(1024) uint8_t memory[];
    const uint32_t                            base  = shared_address(memory);
    const int                                 group = (int)uniform(threadIdx.x / 128), begin = (int)blockIdx.x, stride = (int)gridDim.x;
    const int                                 tiles = a.whole + a.halves;
    places                                    p     = { base, base + CHAINS_BARRIERS, base + CHAINS_BARRIERS + CHAINS_PIECES * 8, group, (int)threadIdx.x % 128, {}, {}, {}, {}, 0 };

    if (threadIdx.x == 256) {
        tma_prefetch_map(&a.first);
        tma_prefetch_map(&a.second);
        #pragma unroll
        for (int s = 0; s < CHAINS_PIECES; ++s) {
            mbarrier_init(p.full + s * 8, 1);
            mbarrier_init(p.empty + s * 8, 8);
        }
        mbarrier_init(base + CHAINS_SCALES_FULL, 64);
        mbarrier_init(base + CHAINS_SCALES_EMPTY, 256);
        mbarrier_init_done();
    }
    if (group < 2 || p.t / 32 == 1) {
        named_sync(5, 256 + 64);
    } else if (p.t < 32) {                      /* the first copies need not wait for anybody */
        __threadfence_block();
        __syncwarp();
        named_announce(5, 256 + 64);
    }
    pdl_wait();

    if (group == 2) {
        registers_give(40);
        const int warp = (int)uniform(p.t / 32);
        if (p.t == 0) {
            copy_operands(&a, &p, begin, tiles, stride);
            tma_prefetch_map(&a.result);
            pdl_release();
        }
        if (warp == 1) copy_scales(&a, &p, begin, tiles, stride);
        if (warp >= 2) send(&a, &p, warp - 2, begin, tiles, stride);
        return;
    }

    registers_take(232);
    const int last = a.steps - 1;               /* chain of a tile: the first one takes two pieces of weight, each later one a new one, the last one none */
    float     d[2][BN / 2], part[BN / 2];
    if (group == 1) named_sync(6, 256);
    bool half = false;
    for (int id = begin; id < tiles; id += stride) {
        half = id >= a.whole;
        wgmma_fence();
        multiply_new(part, &p, false);
        multiply_new(part, &p, true);
        if (id != begin) store(&a, &p, d[0], 0, false);                     /* of the tile before */
        zero(d[0]);
        end_chain(d[0], part, &p, true, half, half);
        if (group == 0 && id == begin) named_announce(6, 256);
        if (half) {
            wgmma_fence();
            if (last > 1) multiply_new(part, &p, false);
            if (last > 2) multiply_new(part, &p, true);
        } else {
            begin_chain(part, &p, 2, last > 1);
        }
        if (id != begin) store(&a, &p, d[1], 1, true);
        zero(d[1]);
        if (half) {
            if (last > 1) end_chain(d[0], part, &p, last > 2, true, true);
            #pragma unroll 1
            for (int k = 4; k <= last; k += 2) {
                wgmma_fence();
                multiply_new(part, &p, false);
                if (k < last) multiply_new(part, &p, true);
                end_chain(d[0], part, &p, k < last, true, true);
            }
            break;
        }
        end_chain(d[1], part, &p, true, true, last == 1);
        #pragma unroll 1
        for (int k = 2; k <= last; k += 2) {
            begin_chain(part, &p, 1, k < last);
            end_chain(d[0], part, &p, k < last, true, k == last);
            if (k < last) {
                begin_chain(part, &p, 1, k + 1 < last);
                end_chain(d[1], part, &p, k + 1 < last, true, k + 1 == last);
            }
        }
    }
    store(&a, &p, d[0], 0, false);
    if (!half) store(&a, &p, d[1], 1, true);
}
