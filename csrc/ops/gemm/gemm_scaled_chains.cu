/*
 * out = input weight^T of e4m3 numbers, with scales, for many rows, on the matrix units of sm_90a: persistent blocks with tiles of 256 x 128, one
 * warpgroup that starts the copies (TMA) and two that multiply (wgmma), rings of pieces of 128 rows by 128 in K between them. A tile's results are
 * scaled and stored while products of the next tile are under way.
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

struct corner { int m, n, batch; };

/* Down the first tiles in bands: what runs at one time shares both operands in L2. */
DEVICE corner tile(const scaled_wgmma_args *a, int id)
{
    const int in_batch = a->first_tiles * a->second_tiles, in_band = a->band * a->second_tiles, batch = id / in_batch;
    const int at = id % in_batch, top = at / in_band * a->band, rest = at % in_band;
    const int high = a->first_tiles - top < a->band ? a->first_tiles - top : a->band;
    return { (top + rest % high) * CHAINS_ROWS, rest / high * CHAINS_COLUMNS, batch };
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
DEVICE void multiply(float (&part)[64], places *p, int weight, bool add)
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
DEVICE void multiply_new(float (&part)[64], places *p, bool add)
{
    wait_for(p, 0, p->weight);
    multiply(part, p, p->weight.stage, add);
    advance(&p->weight, CHAINS_WEIGHTS);
}

/* Scales of `count` rows from row `at` on, of `rows`. */
DEVICE void copy_scales(uint32_t to, const float *from, int64_t step, int at, int64_t rows, int count, int t)
{
    if (t < count) cp_async4(to + t * 4, from + (at + t < rows ? at + t : 0) * step, at + t < rows);
}

DEVICE void copy_tile_scales(const scaled_wgmma_args *a, const places *p, corner at)
{
    const uint32_t to = p->base + CHAINS_SCALES + p->group * (CHAINS_SCALES_COUNT * 4);
    #pragma unroll
    for (int block = 0; block < 2; ++block)
        copy_scales(to + block * (64 * 4), a->s.input_scales, a->s.input_scale_step, at.m + block * 128 + p->group * 64, a->s.rows, 64, p->t);
    copy_scales(to + 2 * 64 * 4, a->s.weight_scales, a->s.weight_scale_step, at.n, a->s.columns, CHAINS_COLUMNS, p->t);
}

#if F16
typedef f16 result;
#else
typedef bf16 result;
#endif
DEVICE uint32_t pack(float lo, float hi) { return F16 ? pack_f16x2(lo, hi) : pack_bf16x2(lo, hi); }

/* Scales: where these are read, the compiler does not read them earlier, into registers that it has not. */
DEVICE float shared_load(uint32_t from)
{
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(from) : "memory");
    return v;
}
DEVICE float2 shared_load2(uint32_t from)
{
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from) : "memory");
    return v;
}

/* Results of a block, by way of shared memory. The tile's scales are there, or on their way. */
DEVICE void store(const scaled_wgmma_args *a, const places *p, const float (&d)[64], corner at, int block)
{
    const int      lane = p->t % 32, warp = p->t / 32, c = lane % 4 * 2;
    const int      m = at.m + block * 128 + p->group * 64, rest = (int)a->s.columns - at.n - c;
    const result  *bias   = (const result *)a->s.bias + at.n + c;
    const uint32_t scales = p->base + CHAINS_SCALES + p->group * (CHAINS_SCALES_COUNT * 4);
    const uint32_t rows = scales + (block * 64 + 16 * warp + lane / 4) * 4, columns = scales + (2 * 64 + c) * 4;
    const uint32_t place = p->base + CHAINS_RESULTS + p->group * CHAINS_RESULTS_BYTES, to = place + (16 * warp + lane % 16) * 128;
    cp_async_wait_all();
    if (p->t == 0) tma_store_wait_read(0);
    named_sync(1 + p->group, 128);
    const float low = shared_load(rows), high = shared_load(rows + 32);
    float2      by[2] = { shared_load2(columns), shared_load2(columns + 32) };
    #pragma unroll
    for (int j = 0; j < 8; ++j) {
        const float2 s = by[0], u = by[1];
        if (j < 7) by[0] = shared_load2(columns + 64 * (j + 1)), by[1] = shared_load2(columns + 64 * (j + 1) + 32);     /* their latency passes meanwhile */
        float y[8];
        #pragma unroll
        for (int i = 0; i < 8; ++i) y[i] = d[8 * j + i];
        y[0] = y[0] * s.x * low, y[1] = y[1] * s.y * low, y[2] = y[2] * s.x * high, y[3] = y[3] * s.y * high;
        y[4] = y[4] * u.x * low, y[5] = y[5] * u.y * low, y[6] = y[6] * u.x * high, y[7] = y[7] * u.y * high;
        if (a->s.bias) {
            const bool  left = 16 * j < rest, right = 16 * j + 8 < rest;
            const float b0 = left ? to_f32(bias[16 * j]) : 0, b1 = left ? to_f32(bias[16 * j + 1]) : 0, b2 = right ? to_f32(bias[16 * j + 8]) : 0,
                        b3 = right ? to_f32(bias[16 * j + 9]) : 0;
            y[0] += b0, y[1] += b1, y[2] += b0, y[3] += b1, y[4] += b2, y[5] += b3, y[6] += b2, y[7] += b3;
        }
        const int piece = (2 * j % 8 + lane / 16) ^ (lane & 7);
        stmatrix_x4(to + j / 4 * 8192 + piece * 16, pack(y[0], y[1]), pack(y[2], y[3]), pack(y[4], y[5]), pack(y[6], y[7]));
    }
    async_fence();
    named_sync(1 + p->group, 128);
    if (p->t == 0) {
        tma_store3(&a->result, at.n, m, at.batch, place);
        tma_store3(&a->result, at.n + 64, m, at.batch, place + 8192);
        tma_store_commit();
    }
}

DEVICE void zero(float (&d)[64])
{
    #pragma unroll
    for (int i = 0; i < 64; ++i) d[i] = 0;
}

DEVICE void add(float (&d)[64], float (&part)[64])
{
    wgmma_pin(part);
    #pragma unroll
    for (int i = 0; i < 64; ++i) d[i] += part[i];
}

/*
 * A block's chain begins: the pieces of weight that end the other block's chain, and then the next one, if there is `more`. `old` is a constant, 1 or 2: so
 * many were in the other chain. Pieces of the last two products are given back when it ends.
 */
DEVICE void begin_chain(float (&part)[64], places *p, int old, bool more)
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
DEVICE void end_chain(float (&d)[64], float (&part)[64], places *p, bool two, bool first, bool last)
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
        const corner at    = tile(a, id);
        const int    steps = a->steps;
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
    const int                                 tiles = a.first_tiles * a.second_tiles * (int)a.s.batch;
    places                                    p     = { base, base + CHAINS_BARRIERS, base + CHAINS_BARRIERS + CHAINS_PIECES * 8, group, (int)threadIdx.x % 128, {}, {}, {}, {} };

    if (threadIdx.x == 256) {
        tma_prefetch_map(&a.first);
        tma_prefetch_map(&a.second);
        #pragma unroll
        for (int s = 0; s < CHAINS_PIECES; ++s) {
            mbarrier_init(p.full + s * 8, 1);
            mbarrier_init(p.empty + s * 8, 8);
        }
        mbarrier_init_done();
    }
    if (group < 2) {
        named_sync(3, 256 + 32);
    } else if (p.t < 32) {                      /* the first copies need not wait for anybody */
        __threadfence_block();
        __syncwarp();
        named_announce(3, 256 + 32);
    }
    pdl_wait();

    if (group == 2) {
        registers_give(40);
        if (p.t == 0) {
            copy_operands(&a, &p, begin, tiles, stride);
            tma_prefetch_map(&a.result);
            pdl_release();
        }
        return;
    }

    registers_take(232);
    const int last = a.steps - 1;               /* chain of a tile: the first one takes two pieces of weight, each later one a new one, the last one none */
    corner    at   = { 0, 0, 0 };
    float     d[2][64], part[64];
    if (group == 1) named_sync(4, 256);
    for (int id = begin; id < tiles; id += stride) {
        wgmma_fence();
        multiply_new(part, &p, false);
        multiply_new(part, &p, true);
        if (id != begin) store(&a, &p, d[0], at, 0);                        /* of the tile before */
        zero(d[0]);
        end_chain(d[0], part, &p, true, false, false);
        if (group == 0 && id == begin) named_announce(4, 256);
        begin_chain(part, &p, 2, last > 1);
        if (id != begin) store(&a, &p, d[1], at, 1);
        zero(d[1]);
        at = tile(&a, id);
        copy_tile_scales(&a, &p, at);
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
    #pragma unroll
    for (int block = 0; block < 2; ++block) store(&a, &p, d[block], at, block);
    if (p.t == 0) tma_store_wait_read(0);
}
