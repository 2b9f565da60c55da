/*
 * Quantises groups of neighbours, each with its own scale. Every element is read once and stays in registers between the maximum and the
 * codes. Bound by memory: ELEMENTS of each thread are in flight (with FUSE twice as many), and few enough registers to fill the machine.
 *
 * 2^lanes_log2 threads of a warp share a group, ELEMENTS each, in pieces of 16 bytes that alternate between them. Groups follow each
 * other through the threads as they do through memory.
 *
 *   T         f32, f16 or bf16
 *   ELEMENTS  of a thread: 8, 16 or 32. 0: any group and alignment; a warp takes a group and reads it twice
 *   LANES     lanes_log2, or -1: as the arguments say
 *   FUSE      1: the input is [gate | up], and silu(gate) * up is quantised
 *   FORM      GROUPS_ANY, or what is compiled alone, to e4m3: GROUPS_FIRST, the first version with scales in f32; GROUPS_PLAIN and
 *             GROUPS_PACKED, the second version with scales of either kind
 */
#include "quant.h"
#include "quant_silu.h"
#include "launch.cuh"
#include "quant_group.cuh"
#include "reduce.cuh"

#define THREADS (FUSE ? 128 : 256)

#if FUSE
DEVICE float silu_and_mul(float gate, float up) { return rounded(__fmul_rn(rounded(quant_silu(gate)), up)); }
#endif

#if ELEMENTS == 0

DEVICE float value(const quant_groups_args &a, const T *x)
{
#if FUSE
    return silu_and_mul(to_f32(x[0]), to_f32(x[a.groups * a.group]));
#else
    return to_f32(x[0]);
#endif
}

extern "C" __global__ __launch_bounds__(THREADS) void quant_groups(const __grid_constant__ quant_groups_args a)
{
    const int     lane = threadIdx.x % 32;
    const int64_t n = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32, row = n / a.groups, column = n % a.groups;
    const int64_t batch = row / a.batch_rows, line = row % a.batch_rows;
    pdl_wait();
    pdl_release();
    if (row < a.rows && !(a.masked_m && line >= a.masked_m[batch])) {       /* the same for the whole warp */
        const T *x    = (const T *)a.input + row * a.input_stride + column * a.group;
        uint8_t *q    = a.q + row * a.q_stride + column * a.group;
        float    amax = 0;
        for (int64_t i = lane; i < a.group; i += 32) amax = fmaxf(amax, fabsf(value(a, x + i)));
        const quant_scaling k = quant_group_scaling(warp_max(amax), &a);
        for (int64_t i = lane; i < a.group; i += 32) {
            float    v[4] = { value(a, x + i) };
            uint32_t code;
            encode(&code, v, 4, a, k);
            q[i] = (uint8_t)code;
        }
        if (lane == 0) store_scale(a, batch * a.s_batch + line * a.s_row, column, k);
    }
}

#else

#define PIECE  (16 / (int)sizeof(T))
#define PIECES (ELEMENTS / PIECE)
#define BLOCKS (FUSE ? 8 : 8 - ELEMENTS / 8)     /* on a multiprocessor, at least */

#if FUSE
/*
 * silu by the hardware's exponential and reciprocal is within 32 units in the last place of quant_silu, for results that are not tiny:
 * 2^-22 and 1 unit by their definition, and half a unit for each unit of |gate|, here at most 15. Both round to the same T but near the
 * middle between two of them; there, and for the gates whose results are tiny, quant_silu decides. Elements of 16 bits are looked at in
 * pairs.
 */
#define MARGIN 32u

DEVICE float fast_silu(float g)
{
    float e, r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(g * -1.44269504f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + e));
    return g * r;
}

DEVICE uint32_t pack(float lo, float hi, const bf16 *) { return pack_bf16x2(lo, hi); }
DEVICE uint32_t pack(float lo, float hi, const f16 *) { return pack_f16x2(lo, hi); }

/* The same as a product in f32, rounded: that is exact, but for what becomes 0 either way. */
DEVICE uint32_t product(uint32_t x, uint32_t y, const bf16 *)
{
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "r"(0x80008000u));
    return r;
}
DEVICE uint32_t product(uint32_t x, uint32_t y, const f16 *)
{
    uint32_t r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y));
    return r;
}

/*
 * Of two results the bits that rounding takes away, at the top of 16 each; the margin there; as bits of T the least size of a gate and the
 * last negative gate whose silu is not tiny: 5e-6 in bf16, above the subnormals in f16.
 */
DEVICE uint32_t taken(uint32_t x, uint32_t y, const bf16 *) { return __byte_perm(x, y, 0x5410); }
DEVICE uint32_t taken(uint32_t x, uint32_t y, const f16 *) { return __byte_perm(x, y, 0x5410) << 3 & 0xfff8fff8; }
DEVICE uint32_t margin(const bf16 *) { return MARGIN; }
DEVICE uint32_t margin(const f16 *) { return MARGIN << 3; }
DEVICE uint32_t least_size(const bf16 *) { return 0x3740; }         /* 1.14e-5 */
DEVICE uint32_t least_size(const f16 *) { return 0x0c80; }          /* 2.75e-4 */
DEVICE uint32_t last_negative(const bf16 *) { return 0xc16e; }      /* -14.875 */
DEVICE uint32_t last_negative(const f16 *) { return 0xc980; }       /* -11 */

/* Of pairs of gates and their silu: the least place from the margin's beginning on, the least size less 1, so that 0 is the largest, and the lowest gate, which is the largest as a whole number. */
struct doubts { uint32_t nearest, least, lowest; };

template <class U>
DEVICE void look(doubts *d, uint32_t gates, float lo, float hi, const U *tag)
{
    d->nearest = __viaddmin_u16x2(taken(__float_as_uint(lo), __float_as_uint(hi), tag), (0x8000 + margin(tag)) * 0x10001, d->nearest);
    d->least   = __viaddmin_u16x2(gates & 0x7fff7fff, ~0u, d->least);
    d->lowest  = __vmaxu2(gates, d->lowest);
}

template <class U>
DEVICE bool doubtful(const doubts &d, const U *tag)
{
    const uint32_t nearest = min(d.nearest & 0xffff, d.nearest >> 16), least = min(d.least & 0xffff, d.least >> 16), lowest = max(d.lowest & 0xffff, d.lowest >> 16);
    return nearest <= 2 * margin(tag) || least < least_size(tag) - 1 || lowest > last_negative(tag);
}

/* round(round(silu(gate)) * up), of pieces. */
template <class U>
DEVICE uint4 fuse(uint4 gate, uint4 up, const U *tag)
{
    const uint32_t w[4] = { gate.x, gate.y, gate.z, gate.w };
    float          g[8], s[8];
    unpack16(g, gate, tag);
    #pragma unroll
    for (int i = 0; i < 8; ++i) s[i] = fast_silu(g[i]);
    doubts all = { ~0u, ~0u, 0 };
    #pragma unroll
    for (int i = 0; i < 4; ++i) look(&all, w[i], s[2 * i], s[2 * i + 1], tag);
    if (doubtful(all, tag)) {
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            doubts pair = { ~0u, ~0u, 0 };
            look(&pair, w[i], s[2 * i], s[2 * i + 1], tag);
            if (doubtful(pair, tag)) s[2 * i] = quant_silu(g[2 * i]), s[2 * i + 1] = quant_silu(g[2 * i + 1]);
        }
    }
    return make_uint4(product(pack(s[0], s[1], tag), up.x, tag), product(pack(s[2], s[3], tag), up.y, tag),
                      product(pack(s[4], s[5], tag), up.z, tag), product(pack(s[6], s[7], tag), up.w, tag));
}

#if __CUDA_ARCH__ == 900
/*
 * The same in bf16, which has so few gates that all of them were tried on sm_90, and are again by sgk-check (its case "gates"): by the
 * hardware's exponential and reciprocal all come out as by quant_silu but -infinity, so nothing has to be looked at. Both are of a quarter:
 * what has a reciprocal then ends where quant_silu's exponential does.
 */
DEVICE float tried_silu(float g)
{
    float e, r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(fmaf(g, -1.44269504f, -2.0f)));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(0.25f + e));
    return g * 0.25f * r;
}

DEVICE uint4 fuse(uint4 gate, uint4 up, const bf16 *tag)
{
    float g[8], s[8];
    unpack16(g, gate, tag);
    #pragma unroll
    for (int i = 0; i < 8; ++i) s[i] = tried_silu(g[i]);
    const uint32_t lowest = __vmaxu2(__vmaxu2(gate.x, gate.y), __vmaxu2(gate.z, gate.w));      /* as whole numbers the lowest is the largest */
    if (max(lowest & 0xffff, lowest >> 16) >= 0xff80) {                                         /* -infinity, or no number */
        #pragma unroll 1
        for (int i = 0; i < 8; ++i) {           /* seldom, so the code is short: the elements go around */
            const float first = quant_silu(g[0]);
            #pragma unroll
            for (int j = 0; j < 7; ++j) g[j] = g[j + 1], s[j] = s[j + 1];
            s[7] = first;
        }
    }
    return make_uint4(product(pack(s[0], s[1], tag), up.x, tag), product(pack(s[2], s[3], tag), up.y, tag),
                      product(pack(s[4], s[5], tag), up.z, tag), product(pack(s[6], s[7], tag), up.w, tag));
}
#endif

DEVICE uint4 fuse(uint4 gate, uint4 up, const f32 *tag)
{
    float v[4], u[4];
    unpack16(v, gate, tag);
    unpack16(u, up, tag);
    #pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = silu_and_mul(v[i], u[i]);
    return pack16(v, tag);
}
#endif

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void quant_groups(const __grid_constant__ quant_groups_args args)
{
    quant_groups_args a = args;
    if (FORM != GROUPS_ANY) a.version = FORM == GROUPS_FIRST ? 1 : 2, a.ue8m0 = FORM == GROUPS_PACKED, a.code = SGK_E4M3, a.clamps = 0;
    if (LANES >= 0) a.lanes_log2 = LANES;

    const uint32_t n = blockIdx.x * (THREADS >> a.lanes_log2) + (threadIdx.x >> a.lanes_log2), of_tile = n >> a.tile_log2;
    const uint32_t tile = divide(of_tile, a.columns), column = of_tile - tile * a.columns.by;
    const uint32_t row   = (tile << a.tile_log2) + (n & ((1u << a.tile_log2) - 1));
    const uint32_t lane  = threadIdx.x & ((1u << a.lanes_log2) - 1);
    const int      step  = PIECE << a.lanes_log2;
    const int64_t  first = column * a.group + lane * PIECE;
    const T       *x     = (const T *)a.input + row * a.input_stride + first;
    const uint4    zero  = make_uint4(0, 0, 0, 0);

    pdl_wait();
    pdl_release();
    bool    live  = row < a.rows && column < a.groups;
    int64_t place = row * a.s_row;
    if (a.masked_m) {
        const uint32_t batch = divide(row, a.lines), line = row - batch * a.lines.by;
        live  = live && (int)line < a.masked_m[batch];
        place = batch * a.s_batch + line * a.s_row;
    }
    uint4 p[PIECES];
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) p[i] = live ? *(const uint4 *)(x + i * step) : zero;
#if FUSE
    uint4 up[PIECES];
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) up[i] = live ? *(const uint4 *)(x + a.groups * a.group + i * step) : zero;
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) p[i] = fuse(p[i], up[i], (const T *)0);
#endif
    float v[ELEMENTS];
    #pragma unroll
    for (int i = 0; i < PIECES; ++i) unpack16(v + i * PIECE, p[i], (const T *)0);
    const quant_scaling k = quant_group_scaling(group_max(largest_size(p, PIECES), LANES, a), &a);
    uint32_t            codes[ELEMENTS / 4];
    encode(codes, v, ELEMENTS, a, k);
    if (live) {
        uint8_t *q = a.q + row * a.q_stride + first;
        #pragma unroll
        for (int i = 0; i < PIECES; ++i) store_codes(q + i * step, codes + i * PIECE / 4, PIECE);
    }
    store_scales(a, place, column, lane, live, k);
}

#endif
