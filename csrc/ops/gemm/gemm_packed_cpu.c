/*
 * Products with packed weights on the CPU. Lanes run along the columns. A panel is 32 columns by some steps of K: a step is one element in f32,
 * a pair in bf16, four in i8, so that it always has 128 bytes, and the rows of input lie in strips of up to 12 rows, 4 bytes a row and step:
 *
 *     panel  [steps][32]          strip  [steps][rows]          sums [rows][32] = the products of one step at a time, each in one chain
 *
 *     sum(m, n) = for each chunk of K, in order: + scale * (a chain over the chunk's steps, from 0)
 *
 * This order is the same for every number of rows and every cut into items: an output's bits depend on its row, its column of weights and the
 * CPU level alone. gemm_packed_amx.c has this file with other strips and tiles. Weights whose layout is a panel's are read where they lie, others are turned into one, a chunk of K at a time, for all rows.
 */
#if defined(PACKED_TILES)
#include "cpu/amx.h"
#elif defined(__AVX512BF16__)
#include "gemm_packed_few.h"
#endif
#include "cpu/codes.h"
#include "gemm_packed_codes.h"
#include "gemm_packed_item.h"
#include "gemm_packed_lanes.h"
#include "gemm_turn.h"
#include "ops/quant/quant.h"

/* ---- tiles ------------------------------------------------------------------------------------------------------------------------ */

/* What happens to the sums of a chunk. */
typedef struct {
    void          *sums;                                /* f32, or i32 of BY_I8 without scale */
    int64_t        stride;                              /* of sums, in elements */
    const float   *scale;                               /* [32], or NULL */
    const int32_t *zero;                                /* [32]: what the products have too much, of BY_I8 with scale */
} tile_end;

#if !defined(PACKED_TILES)

#if defined(__AVX512F__)
enum { TILE_ROWS    = PACKED_STRIP,
       TILE_VECTORS = 2 };
#elif defined(__AVX2__)
enum { TILE_ROWS    = 6,
       TILE_VECTORS = 2 };
#else
enum { TILE_ROWS    = 6,
       TILE_VECTORS = 4 };
#endif
enum { TILE_COLUMNS = TILE_VECTORS * VF,
       TILES        = PACKED_BLOCK / TILE_COLUMNS,      /* beside each other in a panel */
       AHEAD        = 2048 };                           /* bytes of a panel that few rows ask for in advance */

/* The sums come from the second-level cache while the tile is multiplied. */
SGK_INLINE void prefetch_sums(const tile_end *end, int rows, int64_t column)
{
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int i = 0; i < TILE_COLUMNS * 4; i += 64) __builtin_prefetch((const char *)end->sums + (r * end->stride + column) * 4 + i, 1);
}

SGK_INLINE void prefetch_ahead(const char *w)
{
    __builtin_prefetch(w + AHEAD);
    __builtin_prefetch(w + AHEAD + 64);
}

/* `rows` rows by TILE_COLUMNS columns; x_rows: of the strip. */
SGK_INLINE void tile_float(packed_way way, int rows, const uint32_t *x, int64_t x_rows, const char *w, int64_t steps, const tile_end *end, int64_t column)
{
    if (rows > PACKED_FEW_ROWS) prefetch_sums(end, rows, column);
    vf          sum[TILE_ROWS][TILE_VECTORS];
    #pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
        #pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) sum[r][v] = vf_zero();
    for (int64_t s = 0; s < steps; ++s, x += x_rows, w += PACKED_STEP_BYTES) {
        vf u[TILE_VECTORS];
        #pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) u[v] = vf_load_f32((const float *)(const void *)w + v * VF);
        if (rows <= PACKED_FEW_ROWS) prefetch_ahead(w);                    /* they wait for memory */
        #pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
            const vf each = broadcast(x + r);
            #pragma GCC unroll 4
            for (int v = 0; v < TILE_VECTORS; ++v) sum[r][v] = dot_f32(way, sum[r][v], each, u[v]);
        }
    }
    #pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
        float *const to = (float *)end->sums + r * end->stride + column;
        #pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) {
            const vf old = vf_load_f32(to + v * VF);
            vf_store_f32(to + v * VF, end->scale ? vf_fma(sum[r][v], vf_load_f32(end->scale + column + v * VF), old) : vf_add(old, sum[r][v]));
        }
    }
}

SGK_INLINE void tile_i8(int rows, const uint32_t *x, int64_t x_rows, const char *w, int64_t steps, const tile_end *end, int64_t column)
{
    if (rows > PACKED_FEW_ROWS) prefetch_sums(end, rows, column);
    quads       sum[TILE_ROWS][TILE_VECTORS];
    #pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
        #pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) sum[r][v] = quads_zero();
    for (int64_t s = 0; s < steps; ++s, x += x_rows, w += PACKED_STEP_BYTES) {
        quads u[TILE_VECTORS];
        #pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) u[v] = quads_load(w + v * VF * 4);
        if (rows <= PACKED_FEW_ROWS) prefetch_ahead(w);
        #pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
            const quads each = quads_set(x[r]);
            #pragma GCC unroll 4
            for (int v = 0; v < TILE_VECTORS; ++v) sum[r][v] = quads_dot(sum[r][v], each, u[v]);
        }
    }
    #pragma GCC unroll 12
    for (int r = 0; r < rows; ++r)
        #pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) {
            const int64_t at = column + v * VF;
            char *const   to = (char *)end->sums + (r * end->stride + at) * 4;
            if (end->scale) {
                const vf part = quads_to_f32(quads_sub(sum[r][v], quads_load(end->zero + at)));
                vf_store_f32((float *)(void *)to, vf_fma(part, vf_load_f32(end->scale + at), vf_load_f32((const float *)(const void *)to)));
            } else {
                quads_store(to, quads_add(quads_load(to), sum[r][v]));
            }
        }
}

SGK_INLINE void tile(packed_way way, int rows, const uint32_t *x, int64_t x_rows, const char *w, int64_t steps, const tile_end *end, int64_t column)
{
    if (way == BY_I8) tile_i8(rows, x, x_rows, w, steps, end, column);
    else tile_float(way, rows, x, x_rows, w, steps, end, column);
}

/* A strip by a panel. */
SGK_INLINE void tiles(packed_way way, int64_t rows, const uint32_t *x, const char *w, int64_t steps, const tile_end *end)
{
    for (int64_t first = 0; first < rows; first += TILE_ROWS) {
        const tile_end part = { (char *)end->sums + first * end->stride * 4, end->stride, end->scale, end->zero };
        for (int64_t t = 0; t < TILES; ++t) {
            const uint32_t *const from = x + first;
            const char *const     at   = w + t * TILE_COLUMNS * 4;
#define ROWS(n) \
case n: tile(way, n, from, rows, at, steps, &part, t *TILE_COLUMNS); break
            switch (packed_least(TILE_ROWS, rows - first)) {
                ROWS(1);
                ROWS(2);
                ROWS(3);
                ROWS(4);
                ROWS(5);
                ROWS(6);
#if defined(__AVX512F__)
                ROWS(7);
                ROWS(8);
                ROWS(9);
                ROWS(10);
                ROWS(11);
                ROWS(12);
#endif
            }
#undef ROWS
        }
    }
}

static __attribute__((noinline)) void tiles_f32(int64_t rows, const uint32_t *x, const char *w, int64_t steps, const tile_end *end) { tiles(BY_F32, rows, x, w, steps, end); }
#if defined(__AVX512BF16__)
static __attribute__((noinline)) void tiles_bf16(int64_t rows, const uint32_t *x, const char *w, int64_t steps, const tile_end *end) { tiles(BY_BF16, rows, x, w, steps, end); }
#else
#define tiles_bf16 tiles_f32                                    /* which nobody asks for */
#endif
static __attribute__((noinline)) void tiles_i8(int64_t rows, const uint32_t *x, const char *w, int64_t steps, const tile_end *end) { tiles(BY_I8, rows, x, w, steps, end); }

#else

/*
 * Two tiles of 16 rows by two of 16 columns, from tiles of zeros; then as above.
 *
 *     sum(m, n) = for each 16 steps, in order: + what the instruction makes of them; bf16: the even elements, a chain, + the odd ones
 */
SGK_INLINE void tiles_amx(packed_way way, int64_t rows, const uint32_t *x, const char *w, int64_t steps, const tile_end *end)
{
    enum { SIDE = AMX_ROWS };
    static const char zeros[AMX_TILE_BYTES] __attribute__((aligned(64))) = { 0 };
    char              sums[4][AMX_TILE_BYTES] __attribute__((aligned(64)));
    const int64_t     pitch = packed_ceil(steps, PACKED_TILE_STEPS) * PACKED_TILE_STEPS, bytes = pitch * 4;
    const char *const upper = (const char *)x, *const lower = upper + SIDE * bytes;
    amx_loads_follow();
    amx_load(0, zeros, AMX_ROW_BYTES);
    amx_load(1, zeros, AMX_ROW_BYTES);
    amx_load(2, zeros, AMX_ROW_BYTES);
    amx_load(3, zeros, AMX_ROW_BYTES);
    for (int64_t s = 0; s < pitch; s += PACKED_TILE_STEPS, w += PACKED_TILE_STEPS * PACKED_STEP_BYTES) {
        amx_load(4, upper + s * 4, bytes);
        amx_load(5, lower + s * 4, bytes);
        amx_load(6, w, PACKED_STEP_BYTES);
        amx_load(7, w + 64, PACKED_STEP_BYTES);
        if (way == BY_BF16) {
            amx_dot_bf16(0, 4, 6);
            amx_dot_bf16(1, 4, 7);
            amx_dot_bf16(2, 5, 6);
            amx_dot_bf16(3, 5, 7);
        } else {
            amx_dot_u8s8(0, 4, 6);
            amx_dot_u8s8(1, 4, 7);
            amx_dot_u8s8(2, 5, 6);
            amx_dot_u8s8(3, 5, 7);
        }
    }
    amx_store(0, sums[0], AMX_ROW_BYTES);
    amx_store(1, sums[1], AMX_ROW_BYTES);
    amx_store(2, sums[2], AMX_ROW_BYTES);
    amx_store(3, sums[3], AMX_ROW_BYTES);
    amx_loads_follow();
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t half = 0; half < 2; ++half) {
            const char *const from = sums[r / SIDE * 2 + half] + r % SIDE * AMX_ROW_BYTES;
            const int64_t     at   = half * VF;
            float *const      to   = (float *)end->sums + r * end->stride + at;
            if (way == BY_BF16) {
                const vf sum = vf_load_f32((const float *)(const void *)from), old = vf_load_f32(to);
                vf_store_f32(to, end->scale ? vf_fma(sum, vf_load_f32(end->scale + at), old) : vf_add(old, sum));
            } else if (end->scale) {
                vf_store_f32(to, vf_fma(quads_to_f32(quads_sub(quads_load(from), quads_load(end->zero + at))), vf_load_f32(end->scale + at), vf_load_f32(to)));
            } else {
                quads_store(to, quads_add(quads_load(to), quads_load(from)));
            }
        }
}

static __attribute__((noinline)) void tiles_bf16(int64_t rows, const uint32_t *x, const char *w, int64_t steps, const tile_end *end) { tiles_amx(BY_BF16, rows, x, w, steps, end); }
static __attribute__((noinline)) void tiles_i8(int64_t rows, const uint32_t *x, const char *w, int64_t steps, const tile_end *end) { tiles_amx(BY_I8, rows, x, w, steps, end); }
#define tiles_f32 tiles_bf16                                    /* which nobody asks for */

#endif

typedef void tiles_fn(int64_t rows, const uint32_t *x, const char *w, int64_t steps, const tile_end *end);

/* ---- strips ----------------------------------------------------------------------------------------------------------------------- */

/* VF elements of a row, or the n there are, zeros behind them. */
SGK_INLINE vf row_part(sgk_dtype t, const void *p, int64_t i, int64_t n) { return n >= VF ? vf_load(t, p, i) : vf_load_part(t, p, i, n); }
SGK_INLINE vf row_lanes(sgk_dtype t, const void *p, int64_t i, int64_t n)
{
    return t == SGK_F32 ? row_part(SGK_F32, p, i, n) : t == SGK_F16 ? row_part(SGK_F16, p, i, n)
                                                                    : row_part(SGK_BF16, p, i, n);
}

/* n elements of a row of input as steps, zeros behind them up to a whole step; q: what quantises it, or 0. */
static void row_to_steps(const struct packed_cpu_args *cpu, const void *input, int64_t at, int64_t n, float by, uint32_t *to)
{
    const sgk_dtype t = cpu->a.dtype;
    if (cpu->quantise) {
        uint8_t *const codes = (uint8_t *)to;
        for (int64_t k = 0; k < n; k += VF)
            encode(SGK_U8, codes + k, packed_least(VF, n - k), vf_mul(row_lanes(t, input, at + k, n - k), vf_set(by)), -127, 127);
        for (int64_t k = n; k % 4; ++k) codes[k] = 128;
        return;
    }
    if (cpu->way == BY_F32) {
        float *const f = (float *)(void *)to;
        int64_t      k = 0;
        for (; k + VF <= n; k += VF) vf_store_f32(f + k, t == SGK_F32 ? vf_load(SGK_F32, input, at + k) : t == SGK_F16 ? vf_load(SGK_F16, input, at + k)
                                                                                                                       : vf_load(SGK_BF16, input, at + k));
        for (; k < n; ++k) f[k] = load_f32(t, input, at + k);
        return;
    }
    const int64_t size = cpu->way == BY_BF16 ? 2 : 1, bytes = n * size;
    if (bytes % 4) to[bytes / 4] = cpu->way == BY_BF16 ? 0 : 0x80808080u;
    memcpy(to, (const char *)input + at * size, (size_t)bytes);
}

/* What a row is multiplied by to be quantised. */
static float quantiser(const struct packed_args *a, int64_t at, float *scale)
{
    vf most = vf_zero();
    for (int64_t k = 0; k < a->depth; k += VF) most = vf_max(vf_abs(row_lanes(a->dtype, a->input, at + k, a->depth - k)), most);         /* leaves NaN out */
    const struct quant_scaling scaling = quant_row_scaling(vf_most(most), SGK_U8);
    *scale                             = scaling.s;
    return scaling.by;
}

static int64_t steps_of(const struct packed_cpu_args *cpu, int64_t elements) { return packed_ceil(elements, packed_step(cpu->way)); }

/*
 * The strips of a block of rows lie chunk by chunk. For AMX all of them have as many rows, so that the last one may have some that nobody wrote: they
 * end in sums that nobody reads.
 */
static uint32_t *strips_of(const struct packed_cpu_args *cpu, const packed_item *item, int64_t k, int64_t steps, int64_t first)
{
    const int64_t before = packed_kept_rows(cpu, item->b * cpu->a.rows + item->m, item->b * cpu->row_blocks + item->block) * (cpu->row_bytes / 4);
    const int64_t rows   = cpu->tiles ? packed_ceil(item->rows, PACKED_TILE_STRIP) * PACKED_TILE_STRIP : item->rows;
    return cpu->strips + before + rows * (k / cpu->chunk) * packed_pitch(cpu, steps_of(cpu, cpu->chunk)) + first * packed_pitch(cpu, steps);
}

/* to[s * apart + r] = rows[r][s] for four rows. */
SGK_INLINE void four_side_by_side(uint32_t *to, int64_t apart, uint32_t rows[4][PACKED_STEPS + VF], int64_t steps)
{
    int64_t s = 0;
#if defined(__AVX512F__)
    for (; s + 16 <= steps; s += 16) {
        __m512i x[4], four[4];                                          /* four[i]: of steps i, i + 4, i + 8 and i + 12 */
        for (int r = 0; r < 4; ++r) x[r] = _mm512_loadu_si512(rows[r] + s);
        const __m512i low01 = _mm512_unpacklo_epi32(x[0], x[1]), high01 = _mm512_unpackhi_epi32(x[0], x[1]);
        const __m512i low23 = _mm512_unpacklo_epi32(x[2], x[3]), high23 = _mm512_unpackhi_epi32(x[2], x[3]);
        four[0] = _mm512_unpacklo_epi64(low01, low23), four[1] = _mm512_unpackhi_epi64(low01, low23);
        four[2] = _mm512_unpacklo_epi64(high01, high23), four[3] = _mm512_unpackhi_epi64(high01, high23);
        for (int i = 0; i < 4; ++i) {
            uint32_t *const at = to + (s + i) * apart;
            _mm_storeu_si128((void *)at, _mm512_castsi512_si128(four[i]));
            _mm_storeu_si128((void *)(at + 4 * apart), _mm512_extracti32x4_epi32(four[i], 1));
            _mm_storeu_si128((void *)(at + 8 * apart), _mm512_extracti32x4_epi32(four[i], 2));
            _mm_storeu_si128((void *)(at + 12 * apart), _mm512_extracti32x4_epi32(four[i], 3));
        }
    }
#endif
    for (; s < steps; ++s)
        for (int r = 0; r < 4; ++r) to[s * apart + r] = rows[r][s];
}

static void strip(const struct packed_cpu_args *cpu, const packed_item *item, int64_t s)
{
    const struct packed_args *a     = &cpu->a;
    const int64_t             first = packed_strip_at(cpu, item->rows, s), high = packed_strip_at(cpu, item->rows, s + 1) - first;
    float                     by[PACKED_TILE_STRIP] = { 0 };
    for (int64_t r = 0; r < high && cpu->quantise; ++r) {
        const int64_t row = item->m + first + r;
        by[r]             = quantiser(a, item->b * a->input_batch + row * a->input_stride, &cpu->row_scale[item->b * a->rows + row]);
    }
    /* The chunks of a lone strip lie one behind the other: short ones are done together. */
    const int64_t together = PACKED_STEPS / steps_of(cpu, cpu->chunk), some = !cpu->tiles && high == item->rows && together > 1 ? together * cpu->chunk : cpu->chunk;
    for (int64_t k = 0; k < a->depth; k += some) {
        const int64_t   n = packed_least(some, a->depth - k), steps = steps_of(cpu, n), pitch = packed_pitch(cpu, steps);
        uint32_t *const to = strips_of(cpu, item, k, steps, first);
        uint32_t        rows[4][PACKED_STEPS + VF];
        for (int64_t r = 0; r < high; ++r) {
            uint32_t *const row = rows[r % 4];
            row_to_steps(cpu, a->input, item->b * a->input_batch + (item->m + first + r) * a->input_stride + k, n, by[r], row);
            if (cpu->tiles) {
                memcpy(to + r * pitch, row, (size_t)steps * 4);
                memset(to + r * pitch + steps, 0, (size_t)(pitch - steps) * 4);
            } else if (high == 1) {
                memcpy(to, row, (size_t)steps * 4);
            } else if (r >= high - high % 4) {
                for (int64_t i = 0; i < steps; ++i) to[i * high + r] = row[i];
            } else if (r % 4 == 3) {
                four_side_by_side(to + r - 3, high, rows, steps);
            }
        }
    }
}

/* Strips are numbered through all blocks of rows. */
void SGK_CPU_FN(packed_strips)(const void *args, int64_t begin, int64_t end)
{
    const struct packed_cpu_args *cpu = args;
    int64_t                       at  = 0;
    for (int64_t b = 0; b < cpu->a.batch; ++b)
        for (int64_t i = 0; i < cpu->row_blocks; ++i) {
            const int64_t     m    = packed_share(cpu->a.rows, i, cpu->row_blocks);
            const packed_item item = { .b = b, .block = i, .m = m, .rows = packed_share(cpu->a.rows, i + 1, cpu->row_blocks) - m };
            for (int64_t s = 0; s < packed_strip_count(cpu, item.rows); ++s, ++at)
                if (at >= begin && at < end) strip(cpu, &item, s);
        }
}

/* ---- panels ----------------------------------------------------------------------------------------------------------------------- */

/* panel[s][c] = rows[c][s] */

static void turn(char *panel, const char *const rows[PACKED_BLOCK], int64_t steps)
{
    int64_t s = 0;
#if defined(__AVX512F__)
    for (; s + 16 <= steps; s += 16)
        for (int c = 0; c < PACKED_BLOCK; c += 16) {
            __m512i x[16];
            #pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) x[i] = _mm512_loadu_si512(rows[c + i] + s * 4);
            turn16(x);
            #pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) _mm512_storeu_si512(panel + (s + i) * PACKED_STEP_BYTES + c * 4, x[i]);
        }
#endif
    for (; s < steps; ++s)
        for (int c = 0; c < PACKED_BLOCK; ++c) memcpy(panel + s * PACKED_STEP_BYTES + c * 4, rows[c] + s * 4, 4);
}

/* A value as the way takes it, at element k of a row. */
SGK_INLINE void put(packed_way way, char *row, int64_t k, float v)
{
    if (way == BY_F32) {
        memcpy(row + k * 4, &v, 4);
    } else {
        const uint16_t h = (uint16_t)(f32_bits(v) >> 16);             /* exact */
        memcpy(row + k * 2, &h, 2);
    }
}

/* Asks for the lines of n bytes at p, into the second-level cache. They need not exist. */
SGK_INLINE void prefetch(const char *p, int64_t n)
{
    for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(p + i, 0, 2);
}

/* n elements from k of a block of plain rows. `room` has a panel's bytes. */
static void panel_of_rows(const struct packed_cpu_args *cpu, const char *weight, int64_t n0, int64_t r, int64_t k, int64_t n, char *panel, char *room)
{
    const struct packed_args *a    = &cpu->a;
    const packed_way          way  = cpu->way;
    const int64_t             step = packed_step(way), steps = steps_of(cpu, n), size = a->format == WEIGHT_F32 ? 4 : a->format == WEIGHT_F16 || a->format == WEIGHT_BF16 ? 2
                                                                                                                                                                          : 1;
    const bool                as_it_is                                             = n % step == 0 && ((way == BY_I8) | (way == BY_BF16 && a->format == WEIGHT_BF16) | (way == BY_F32 && a->format == WEIGHT_F32));
    static const char         zeros[PACKED_STEPS * 4] __attribute__((aligned(64))) = { 0 };
    const char               *rows[PACKED_BLOCK];
    for (int64_t c = 0; c < PACKED_BLOCK; ++c) {
        rows[c] = zeros;
        if (c >= r) continue;
        const char *const from = weight + (n0 + c) * a->weight_stride * size;
        if (as_it_is) {
            rows[c] = from + k * size;
            continue;
        }
        char *const to = room + c * PACKED_STEPS * 4;
        memset(to + (steps - (steps > 0)) * 4, 0, 4);                 /* behind the last element */
        rows[c] = to;
        if (way == BY_I8 || (way == BY_BF16 && a->format == WEIGHT_BF16)) {
            memcpy(to, from + k * size, (size_t)(n * size));
        } else if (a->format == WEIGHT_E4M3) {
            const uint8_t *const p = (const uint8_t *)from + k;
            if (way == BY_F32)
                for (int64_t i = 0; i < n; ++i) put(BY_F32, to, i, e4m3_value(p[i]));
            else
                for (int64_t i = 0; i < n; ++i) put(BY_BF16, to, i, e4m3_value(p[i]));
        } else if (a->format == WEIGHT_MXFP4) {
            for (int64_t i = 0; i < n; ++i) put(way, to, i, e2m1[((const uint8_t *)from)[(k + i) / 2] >> ((k + i) % 2 * 4) & 15]);
        } else {
            const sgk_dtype t = a->format == WEIGHT_F32 ? SGK_F32 : a->format == WEIGHT_F16 ? SGK_F16
                                                                                            : SGK_BF16;
            int64_t         i = 0;
            for (; i + VF <= n; i += VF) vf_store_f32((float *)(void *)to + i, t == SGK_F32 ? vf_load(SGK_F32, from, k + i) : t == SGK_F16 ? vf_load(SGK_F16, from, k + i)
                                                                                                                                           : vf_load(SGK_BF16, from, k + i));
            for (; i < n; ++i) put(BY_F32, to, i, load_f32(t, from, k + i));
        }
    }
    turn(panel, rows, steps);
}


/* n elements from k of a packed block of r columns, other than where it is a panel already. */
static void panel_of_block(const struct packed_cpu_args *cpu, const char *block, int64_t r, int64_t k, int64_t n, char *panel, const int8_t *zeros)
{
    const struct packed_args *a     = &cpu->a;
    const int64_t             steps = steps_of(cpu, n);
    int64_t                   i     = 0;
    if (r < PACKED_BLOCK) memset(panel, 0, (size_t)(steps * PACKED_STEP_BYTES));
    switch (a->format) {
    case WEIGHT_F32:
    case WEIGHT_SMALL: {
        for (; i < n; ++i) memcpy(panel + i * PACKED_STEP_BYTES, block + (k + i) * r * 4, (size_t)r * 4);
        return;
    }
    case WEIGHT_F16:
        for (; i < n; ++i) {
            float *const to = (float *)(void *)(panel + i * PACKED_STEP_BYTES);
            int64_t      c  = 0;
            for (; c + VF <= r; c += VF) vf_store_f32(to + c, vf_load(SGK_F16, block, (k + i) * r + c));
            for (; c < r; ++c) to[c] = load_f32(SGK_F16, block, (k + i) * r + c);
        }
        return;
    case WEIGHT_BF16:
        for (; i + 2 <= n; i += 2) {
            const char *const from = block + (k + i) * r * 2;
            if (cpu->way == BY_BF16) {
                memcpy(panel + i / 2 * PACKED_STEP_BYTES, from, (size_t)r * 4);
                continue;
            }
            uint32_t *const to = (uint32_t *)(void *)(panel + i * PACKED_STEP_BYTES);
            for (int64_t c = 0; c < r; ++c) {
                uint32_t pair;
                memcpy(&pair, from + c * 4, 4);
                to[c] = pair << 16, to[PACKED_BLOCK + c] = pair & 0xffff0000u;
            }
        }
        for (; i < n; ++i)                                          /* the last of an odd K */
            for (int64_t c = 0; c < PACKED_BLOCK; ++c) {
                uint16_t h = 0;
                if (c < r) memcpy(&h, block + ((k + i) * r + c) * 2, 2);
                const uint32_t u = cpu->way == BY_BF16 ? h : (uint32_t)h << 16;
                memcpy(panel + i / packed_step(cpu->way) * PACKED_STEP_BYTES + c * 4, &u, 4);
            }
        return;
    case WEIGHT_E4M3: {
        const uint8_t *const from = (const uint8_t *)block + k * r;
#if defined(__AVX512BF16__)
        if (cpu->way == BY_BF16) {
            const e4m3_tables tables = e4m3_to_bf16();
            for (; i < n; i += 2) {
                uint8_t pair[64] = { 0 };
                __m512i step[2];
                if (r == PACKED_BLOCK && i + 2 <= n) {
                    e4m3_pairs(&tables, _mm512_loadu_si512(from + i * PACKED_BLOCK), step);
                } else {
                    memcpy(pair, from + i * r, (size_t)r);
                    if (i + 1 < n) memcpy(pair + 32, from + (i + 1) * r, (size_t)r);
                    e4m3_pairs(&tables, _mm512_loadu_si512(pair), step);
                }
                _mm512_storeu_si512(panel + i / 2 * PACKED_STEP_BYTES, step[0]);
                _mm512_storeu_si512(panel + i / 2 * PACKED_STEP_BYTES + 64, step[1]);
            }
            return;
        }
#endif
        for (; i < n; ++i) {
            float *const to = (float *)(void *)(panel + i * PACKED_STEP_BYTES);
            for (int64_t c = 0; c < r; ++c) to[c] = e4m3_value(from[i * r + c]);
        }
        return;
    }
    case WEIGHT_MXFP4: {
        const uint8_t *from = (const uint8_t *)block + k / 2 * r;
        for (; i < n; i += 2, from += r) {
#if defined(__AVX512BF16__)
            if (cpu->way == BY_BF16) {
                uint8_t bytes[PACKED_BLOCK] = { 0 };
                memcpy(bytes, from, (size_t)r);
                _mm512_storeu_si512(panel + i / 2 * PACKED_STEP_BYTES, e2m1_pairs(e2m1_to_bf16(), bytes));
                _mm512_storeu_si512(panel + i / 2 * PACKED_STEP_BYTES + 64, e2m1_pairs(e2m1_to_bf16(), bytes + 16));
                continue;
            }
#endif
            float *const to = (float *)(void *)(panel + i * PACKED_STEP_BYTES);
            for (int64_t c = 0; c < r; ++c) to[c] = e2m1[from[c] & 15], to[PACKED_BLOCK + c] = e2m1[from[c] >> 4];
        }
        return;
    }
    case WEIGHT_I8: {
        const char *const from = block + k * r;
        for (; i + 4 <= n; i += 4) memcpy(panel + i / 4 * PACKED_STEP_BYTES, from + i * r, (size_t)r * 4);
        if (i < n) {
            memset(panel + i / 4 * PACKED_STEP_BYTES, 0, PACKED_STEP_BYTES);
            for (int64_t c = 0; c < r; ++c) memcpy(panel + i / 4 * PACKED_STEP_BYTES + c * 4, from + i * r + c * (n - i), (size_t)(n - i));
        }
        return;
    }
    case WEIGHT_INT4: {
        const uint8_t *from = (const uint8_t *)block + k / cpu->chunk * int4_part_bytes(a->group_k);
        int8_t         less[PACKED_STEP_BYTES];
        for (int c = 0; c < PACKED_BLOCK; ++c) memset(less + 4 * c, zeros[c], 4);
        for (; i < n; i += 4, from += 64) {
            int8_t *const to = (int8_t *)panel + i / 4 * PACKED_STEP_BYTES;
            for (int j = 0; j < 64; ++j) to[j] = (int8_t)((from[j] & 15) - less[j]), to[64 + j] = (int8_t)((from[j] >> 4) - less[64 + j]);
        }
        return;
    }
    }
}

/* Where a block's layout is a panel's. */
static bool is_panel(const struct packed_cpu_args *cpu, int64_t r, int64_t n)
{
    const struct packed_args *a = &cpu->a;
    if (a->plain || r != PACKED_BLOCK || n % packed_step(cpu->way) || packed_pitch(cpu, steps_of(cpu, n)) != steps_of(cpu, n)) return false;
    return a->format == WEIGHT_I8 || (a->format == WEIGHT_BF16 && cpu->way == BY_BF16) || (a->format == WEIGHT_F32 && cpu->way == BY_F32);
}

/* Rows of weights in memory. */
typedef struct {
    const char *at;
    int64_t     rows, bytes, apart;                             /* bytes: of each row */
} piece;

/*
 * What the panel after the one of columns c on and elements k on is made from, where weights have as many bits as their panel. The processor would
 * not guess it: pieces are short and far apart.
 */
static piece next_piece(const struct packed_cpu_args *cpu, const packed_item *item, const char *weight, int64_t c, int64_t k)
{
    const struct packed_args *a    = &cpu->a;
    const int64_t             size = 4 / packed_step(cpu->way);
    if (a->plain) {                                             /* a share of the next turn's rows for each panel of this one */
        if (!(a->format == WEIGHT_I8 || (a->format == WEIGHT_BF16 && cpu->way == BY_BF16) || a->format == WEIGHT_F32)) return (piece){ 0 };
        const int64_t turn = k / cpu->chunk % PACKED_TURNS, ahead = k + (PACKED_TURNS - turn) * cpu->chunk;
        const int64_t panels = packed_ceil(item->columns, PACKED_BLOCK) * PACKED_TURNS, i = turn * packed_ceil(item->columns, PACKED_BLOCK) + c / PACKED_BLOCK;
        const int64_t first = item->columns * i / panels, n = packed_least(PACKED_TURNS * cpu->chunk, a->depth - ahead);
        if (n <= 0) return (piece){ 0 };
        return (piece){ weight + ((item->n + first) * a->weight_stride + ahead) * size, item->columns * (i + 1) / panels - first, n * size, a->weight_stride * size };
    }
    c += PACKED_BLOCK;
    if (c >= item->columns) c = 0, k += cpu->chunk;
    const int64_t n = packed_least(cpu->chunk, a->depth - k), r = packed_least(PACKED_BLOCK, item->columns - c);
    if (n <= 0) return (piece){ 0 };
    if (!is_panel(cpu, r, n)) return (piece){ 0 };
    return (piece){ weight + packed_block_at(a->format, (item->n + c) / PACKED_BLOCK, a->depth, 0) + k * size * PACKED_BLOCK, steps_of(cpu, n), PACKED_STEP_BYTES, PACKED_STEP_BYTES };
}

/* The s-th of `shares` parts of it, into the second-level cache. */
static void prefetch_share(const piece *p, int64_t s, int64_t shares)
{
    for (int64_t i = p->rows * s / shares; i < p->rows * (s + 1) / shares; ++i) prefetch(p->at + i * p->apart, p->bytes);
}

/* The factors of a chunk's sums, for the columns of a block. NULL: none. */
static const float *scales_of(const struct packed_args *a, int64_t n0, int64_t r, int64_t k, float scale[PACKED_BLOCK])
{
    if (!a->scale || a->format == WEIGHT_I8) return NULL;
    const int64_t groups = packed_ceil(a->depth, a->group_k), g = k / a->group_k;
    if (a->format == WEIGHT_INT4) return (const float *)a->scale + (n0 / PACKED_BLOCK * groups + g) * PACKED_BLOCK;
    for (int64_t c = r; c < PACKED_BLOCK; ++c) scale[c] = 0;
    if (a->format == WEIGHT_MXFP4) {
        for (int64_t c = 0; c < r; ++c) {
            const uint32_t code = ((const uint8_t *)a->scale)[n0 * groups + g * r + c];
            scale[c]            = f32_from_bits(code == 0 ? 0x00400000u : code == 255 ? 0x7fc00000u
                                                                                      : code << 23);
        }
    } else {
        const float *from = (const float *)a->scale + n0 / a->group_n * groups + g;
        for (int64_t c = 0, left = a->group_n - n0 % a->group_n; c < r; ++c, --left) {
            if (left == 0) from += groups, left = a->group_n;
            scale[c] = *from;
        }
    }
    return scale;
}

/* ---- items ------------------------------------------------------------------------------------------------------------------------ */

/* Sums of the columns of an i8 weight. */
static void column_sums(const struct packed_args *a, const char *weight, int64_t n0, int64_t r, int32_t sums[PACKED_BLOCK])
{
    memset(sums, 0, PACKED_BLOCK * sizeof *sums);
    if (!a->plain) {
        memcpy(sums, weight + packed_block_at(WEIGHT_I8, n0 / PACKED_BLOCK, a->depth, 0) + a->depth * r, (size_t)r * 4);
        return;
    }
    for (int64_t c = 0; c < r; ++c) {
        const int8_t *const row = (const int8_t *)weight + (n0 + c) * a->weight_stride;
        int32_t             sum = 0;
        for (int64_t k = 0; k < a->depth; ++k) sum += row[k];
        sums[c] = sum;
    }
}

/* Scales, adds the bias, rounds, and stores. */
SGK_INLINE void finish_rows(sgk_dtype t, const struct packed_cpu_args *cpu, const packed_item *item, const char *weight, const float *sums)
{
    const struct packed_args *a = &cpu->a;
    float                     bias[PACKED_GROUP + VF], scale[PACKED_GROUP + VF];
    int32_t                   less[PACKED_GROUP + VF];
    for (int64_t c = 0; c < item->columns; ++c) bias[c] = a->bias ? load_f32(a->bias_dtype, a->bias, item->n + c) : 0;
    if (a->format == WEIGHT_I8) {
        for (int64_t c = 0; c < item->columns; ++c) scale[c] = ((const float *)a->scale)[item->n + c];
        for (int64_t c = 0; c < item->columns; c += PACKED_BLOCK) column_sums(a, weight, item->n + c, packed_least(PACKED_BLOCK, item->columns - c), less + c);
    }
    const float *const by = cpu->quantise ? cpu->row_scale + item->b * a->rows : a->input_scale;
    for (int64_t r = 0; r < item->rows; ++r, sums += cpu->group) {
        const vf each = vf_set(by ? by[item->m + r] : 1);
        for (int64_t c = 0; c < item->columns; c += VF) {
            const int64_t to = item->b * a->out_batch + (item->m + r) * a->out_stride + item->n + c, rest = item->columns - c;
            vf            v = vf_load_f32(sums + c);                   /* a row of sums is whole */
            if (a->format == WEIGHT_I8) v = vf_mul(vf_mul(quads_to_f32(quads_sub(quads_load(sums + c), quads_times128(quads_load(less + c)))), each), vf_load_f32(scale + c));
            else if (by) v = vf_mul(v, each);
            if (a->bias) v = vf_add(v, vf_load_f32(bias + c));
            if (rest >= VF) vf_store(t, a->out, to, v);
            else vf_store_part(t, a->out, to, rest, v);
        }
    }
}

/* PACKED_TURNS panels for each block of plain columns, from element k on. */
static void turn_group(const struct packed_cpu_args *cpu, const packed_item *item, const char *weight, int64_t k, char *panels, char *room)
{
    for (int64_t c = 0; c < item->columns; c += PACKED_BLOCK)
        for (int64_t i = 0; i < PACKED_TURNS && k + i * cpu->chunk < cpu->a.depth; ++i) {
            const int64_t from = k + i * cpu->chunk, n = packed_least(cpu->chunk, cpu->a.depth - from), steps = steps_of(cpu, n);
            char *const   panel = panels + (c / PACKED_BLOCK * PACKED_TURNS + i) * PACKED_PANEL_BYTES;
            panel_of_rows(cpu, weight, item->n + c, packed_least(PACKED_BLOCK, item->columns - c), from, n, panel, room);
            memset(panel + steps * PACKED_STEP_BYTES, 0, (size_t)((packed_pitch(cpu, steps) - steps) * PACKED_STEP_BYTES));
        }
}

/* sums [rows][group] += the products of an item. */
static void multiply(const struct packed_cpu_args *cpu, const packed_item *item, const char *weight, char *panel, char *room, float *sums)
{
    const struct packed_args *a      = &cpu->a;
    tiles_fn *const           run    = cpu->way == BY_F32 ? tiles_f32 : cpu->way == BY_BF16 ? tiles_bf16
                                                                                            : tiles_i8;
    const int64_t             strips = packed_strip_count(cpu, item->rows);
#if defined(SGK_GEMM_PACKED_FEW_H)
    few_fn *const few_rows = few_of(cpu, item);
    if (few_rows) {
        const few_product p = {
            .a           = a,
            .x           = strips_of(cpu, item, 0, 0, 0),
            .w           = weight + packed_block_at(a->format, item->n / PACKED_BLOCK, a->depth, a->group_k),
            .block_bytes = packed_block_at(a->format, 1, a->depth, a->group_k),
            .n           = item->n,
            .steps       = steps_of(cpu, a->depth),
            .chunk       = steps_of(cpu, cpu->chunk),
            .sums        = sums,
            .stride      = cpu->group,
        };
        few_rows(item->rows, item->columns / PACKED_BLOCK, &p);
        return;
    }
#endif
    for (int64_t k = 0; k < a->depth; k += cpu->chunk) {
        const int64_t n = packed_least(cpu->chunk, a->depth - k), steps = steps_of(cpu, n);
        if (a->plain && k / cpu->chunk % PACKED_TURNS == 0) turn_group(cpu, item, weight, k, panel, room);
        for (int64_t c = 0; c < item->columns; c += PACKED_BLOCK) {
            const int64_t     n0 = item->n + c, r = packed_least(PACKED_BLOCK, item->columns - c), block = n0 / PACKED_BLOCK;
            const char *const at = weight + packed_block_at(a->format, block, a->depth, a->group_k);
            float             scale[PACKED_BLOCK];
            int32_t           zero[PACKED_BLOCK];
            const char       *w = panel;
            if (is_panel(cpu, r, n)) {
                w = at + k * PACKED_STEP_BYTES / packed_step(cpu->way);
            } else if (a->plain) {
                w = panel + (c / PACKED_BLOCK * PACKED_TURNS + k / cpu->chunk % PACKED_TURNS) * PACKED_PANEL_BYTES;
            } else {
                panel_of_block(cpu, at, r, k, n, panel, a->format == WEIGHT_INT4 ? a->zeros + (block * (a->depth / a->group_k) + k / a->group_k) * PACKED_BLOCK : NULL);
                memset(panel + steps * PACKED_STEP_BYTES, 0, (size_t)((packed_pitch(cpu, steps) - steps) * PACKED_STEP_BYTES));
            }
            const piece next = next_piece(cpu, item, weight, c, k);
            tile_end    end  = { .sums = sums + c, .stride = cpu->group, .scale = scales_of(a, n0, r, k, scale), .zero = zero };
            if (a->format == WEIGHT_INT4) {
                memcpy(zero, at + k / cpu->chunk * int4_part_bytes(a->group_k) + 16 * cpu->chunk, sizeof zero);
                for (int i = 0; i < PACKED_BLOCK; ++i) zero[i] = (int32_t)((uint32_t)zero[i] * 128);      /* bytes that nobody packed may wrap */
            }
            for (int64_t s = 0; s < strips; ++s) {
                const int64_t first = packed_strip_at(cpu, item->rows, s), high = packed_strip_at(cpu, item->rows, s + 1) - first;
                if (strips > 1) prefetch_share(&next, s, strips);
                end.sums = sums + first * cpu->group + c;
                run(high, strips_of(cpu, item, k, steps, first), w, steps, &end);
            }
        }
    }
}

static void run_item(const struct packed_cpu_args *cpu, const packed_item *item, char *scratch)
{
    const struct packed_args *a      = &cpu->a;
    const char *const         weight = (const char *)a->weight + item->b * a->weight_batch;
    char *const panel = scratch, *const room = scratch + packed_panels(cpu) * PACKED_PANEL_BYTES;
    float *const sums = (float *)(void *)(room + PACKED_PANEL_BYTES);        /* [rows][group] */

    memset(sums, 0, (size_t)(item->rows * cpu->group) * sizeof *sums);
    multiply(cpu, item, weight, panel, room, sums);
    if (a->out_dtype == SGK_F32) finish_rows(SGK_F32, cpu, item, weight, sums);
    else if (a->out_dtype == SGK_F16) finish_rows(SGK_F16, cpu, item, weight, sums);
    else finish_rows(SGK_BF16, cpu, item, weight, sums);
}

void SGK_CPU_FN(packed)(const void *args, int64_t begin, int64_t end)
{
    const struct packed_cpu_args *cpu = args;
#if defined(PACKED_TILES)
    amx_begin();
#endif
    for (int64_t p = begin; p < end; ++p)
        for (int64_t i = packed_share(cpu->items, p, cpu->parts); i < packed_share(cpu->items, p + 1, cpu->parts); ++i) {
            const packed_item item = packed_item_at(cpu, i);
            run_item(cpu, &item, cpu->scratch + p * cpu->part_scratch);
        }
#if defined(PACKED_TILES)
    amx_end();
#endif
}

#if !defined(PACKED_TILES)
/* ---- linear_sigmoid --------------------------------------------------------------------------------------------------------------- */

SGK_INLINE void linear_sigmoid_rows(sgk_dtype t, const struct linear_sigmoid_args *a, int64_t begin, int64_t end)
{
    for (int64_t m = begin; m < end; ++m) {
        vf      sum = vf_zero();
        int64_t k   = 0;
        if (a->weight_stride == 1)
            for (; k + VF <= a->depth; k += VF) sum = vf_fma(vf_load(t, a->input, m * a->input_stride + k), vf_load_f32(a->weight + k), sum);
        float all = vf_sum(sum) + (a->bias ? *a->bias : 0);
        for (; k < a->depth; ++k) all = fmaf(load_f32(t, a->input, m * a->input_stride + k), a->weight[k * a->weight_stride], all);
        const vf by = vf_div(vf_set(1), vf_add(vf_set(1), vf_exp(vf_set(-all))));
        int64_t  j  = 0;
        for (; j + VF <= a->columns; j += VF) vf_store(t, a->out, m * a->out_stride + j, vf_mul(by, vf_load(t, a->by, m * a->by_stride + j)));
        if (j < a->columns) vf_store_part(t, a->out, m * a->out_stride + j, a->columns - j, vf_mul(by, vf_load_part(t, a->by, m * a->by_stride + j, a->columns - j)));
    }
}

void SGK_CPU_FN(linear_sigmoid)(const void *args, int64_t begin, int64_t end)
{
    const struct linear_sigmoid_args *a = args;
    if (a->dtype == SGK_F32) linear_sigmoid_rows(SGK_F32, a, begin, end);
    else if (a->dtype == SGK_F16) linear_sigmoid_rows(SGK_F16, a, begin, end);
    else linear_sigmoid_rows(SGK_BF16, a, begin, end);
}
#endif
