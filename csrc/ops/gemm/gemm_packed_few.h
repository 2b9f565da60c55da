/*
 * Few rows by one or two whole blocks of packed columns. The weights come from memory once, and memory is what such a product waits for: steps are
 * decoded in registers, the walk through K stops for nothing but the sums at a chunk's end, and two blocks side by side are two streams for the
 * processor to follow and twice the chains that do not wait for each other. The order of the sums is that of the tiles. For CPUs with AVX-512 BF16.
 */
#ifndef SGK_GEMM_PACKED_FEW_H
#define SGK_GEMM_PACKED_FEW_H
#include "gemm_packed_codes.h"
#include "gemm_packed_item.h"
#include "gemm_packed_lanes.h"

enum { FEW_AHEAD = 4096 };                              /* bytes that are asked for in advance: what memory brings while it is waited for */

typedef struct {
    const struct packed_args *a;
    const uint32_t           *x;                        /* [steps][rows] */
    const char               *w;                        /* of the first block */
    int64_t                   block_bytes, n;           /* n: its first column */
    int64_t                   steps, chunk;             /* chunk: in steps */
    float                    *sums;                     /* [rows][stride], zeros; i32 for i8 */
    int64_t                   stride;
} few_product;

SGK_INLINE packed_way few_way(weight_format f) { return f == WEIGHT_I8 || f == WEIGHT_INT4 ? BY_I8 : f == WEIGHT_F32 ? BY_F32
                                                                                                                     : BY_BF16; }
SGK_INLINE int64_t few_step_bytes(weight_format f) { return f == WEIGHT_MXFP4 ? 32 : f == WEIGHT_E4M3 || f == WEIGHT_INT4 ? 64
                                                                                                                          : 128; }

/* f32 lanes: sum += the products of pairs of bf16. Not the intrinsic: GCC 12 copies every sum twice around it, and spills some. */
SGK_INLINE __m512i pairs_dot(__m512i sum, __m512i x, __m512i w)
{
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
}

/* What a step is decoded by. */
typedef struct {
    e4m3_tables e4m3;
    __m512i     e2m1, less[2][2];                       /* less: the zeros of int4, of each block */
} few_tables;

/*
 * mxfp4 of two blocks: 32 bytes of each to pairs of bf16, in four vectors. Shifts and unpacking run beside the products, so that only the four looks at the table take
 * turns with them. Within 16 columns vector 0 has columns 0, 2, 4, 6, vector 1 has 8, 10, 12, 14, vectors 2 and 3 those behind them; quarters 0 and 1 are of one block,
 * 2 and 3 of the other.
 */
SGK_INLINE __m512i e2m1_load(const void *first, const void *second)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(first)), _mm256_loadu_si256(second), 1);
}
SGK_INLINE void e2m1_blocks(__m512i table, const char *first, const char *second, __m512i to[4])
{
    const __m512i b        = e2m1_load(first, second);
    const __m512i even_low = _mm512_permutexvar_epi16(b, table), even_high = _mm512_permutexvar_epi16(_mm512_srli_epi16(b, 4), table);
    const __m512i odd_low = _mm512_permutexvar_epi16(_mm512_srli_epi16(b, 8), table), odd_high = _mm512_permutexvar_epi16(_mm512_srli_epi16(b, 12), table);
    to[0] = _mm512_unpacklo_epi16(even_low, even_high), to[1] = _mm512_unpackhi_epi16(even_low, even_high);
    to[2] = _mm512_unpacklo_epi16(odd_low, odd_high), to[3] = _mm512_unpackhi_epi16(odd_low, odd_high);
}

/* Their scales in the same order. */
SGK_INLINE void e8m0_blocks(const uint8_t *first, const uint8_t *second, vf to[4])
{
    const __m512i b = e2m1_load(first, second), even = _mm512_and_si512(b, _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(b, 8), zero = _mm512_setzero_si512();
    to[0] = e8m0_of(_mm512_unpacklo_epi16(even, zero)), to[1] = e8m0_of(_mm512_unpackhi_epi16(even, zero));
    to[2] = e8m0_of(_mm512_unpacklo_epi16(odd, zero)), to[3] = e8m0_of(_mm512_unpackhi_epi16(odd, zero));
}

/* Sums of 64 columns from that order to their own. */
SGK_INLINE void e2m1_put_in_order(float *sums)
{
    vf v[4], quarter[4];
    for (int i = 0; i < 4; ++i) v[i] = vf_load_f32(sums + i * VF);
    quarter[0] = _mm512_unpacklo_ps(v[0], v[2]), quarter[1] = _mm512_unpackhi_ps(v[0], v[2]);
    quarter[2] = _mm512_unpacklo_ps(v[1], v[3]), quarter[3] = _mm512_unpackhi_ps(v[1], v[3]);
    for (int i = 0; i < 2; ++i) {
        const vf low  = i ? _mm512_shuffle_f32x4(quarter[0], quarter[1], 0xee) : _mm512_shuffle_f32x4(quarter[0], quarter[1], 0x44);
        const vf high = i ? _mm512_shuffle_f32x4(quarter[2], quarter[3], 0xee) : _mm512_shuffle_f32x4(quarter[2], quarter[3], 0x44);
        vf_store_f32(sums + 2 * i * VF, _mm512_shuffle_f32x4(low, high, 0x88));
        vf_store_f32(sums + (2 * i + 1) * VF, _mm512_shuffle_f32x4(low, high, 0xdd));
    }
}

SGK_INLINE void few_step(weight_format f, const few_tables *t, int block, const char *w, __m512i to[2])
{
    if (f == WEIGHT_E4M3) {
        e4m3_pairs(&t->e4m3, _mm512_loadu_si512(w), to);
    } else if (f == WEIGHT_MXFP4) {
        to[0] = e2m1_pairs(t->e2m1, w), to[1] = e2m1_pairs(t->e2m1, w + 16);
    } else if (f == WEIGHT_INT4) {
        const __m512i b = _mm512_loadu_si512(w), half = _mm512_set1_epi8(15);
        to[0] = _mm512_sub_epi8(_mm512_and_si512(b, half), t->less[block][0]);
        to[1] = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(b, 4), half), t->less[block][1]);
    } else {
        to[0] = _mm512_loadu_si512(w), to[1] = _mm512_loadu_si512(w + 64);
    }
}

/* 16 bytes, each four times. */
SGK_INLINE __m512i four_times(const int8_t *p)
{
    return _mm512_shuffle_epi8(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)), _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0));
}

/* The factors of 16 columns of group g of K, from column n on. */
SGK_INLINE vf few_scale(weight_format f, const struct packed_args *a, int64_t n, int64_t groups, int64_t g)
{
    if (f == WEIGHT_MXFP4) return e8m0_lanes((const uint8_t *)a->scale + n / PACKED_BLOCK * PACKED_BLOCK * groups + g * PACKED_BLOCK + n % PACKED_BLOCK);
    if (f == WEIGHT_INT4) return vf_load_f32((const float *)a->scale + (n / PACKED_BLOCK * groups + g) * PACKED_BLOCK + n % PACKED_BLOCK);
    return vf_set(((const float *)a->scale)[n / a->group_n * groups + g]);
}

SGK_INLINE void few(weight_format f, int rows, int blocks, const few_product *p)
{
    const packed_way          way     = few_way(f);
    const struct packed_args *a       = p->a;
    const bool                scaled  = f == WEIGHT_INT4 || f == WEIGHT_MXFP4 || (f == WEIGHT_E4M3 && a->scale);
    const int64_t             group_k = f == WEIGHT_MXFP4 ? MXFP4_GROUP : a->group_k, chunk = f == WEIGHT_MXFP4 ? MXFP4_GROUP / 2 : p->chunk;
    const int64_t             groups = scaled ? packed_ceil(a->depth, group_k) : 1, bytes = few_step_bytes(f);
    const uint32_t           *x      = p->x;
    const char               *w      = p->w;
    const bool                turned = f == WEIGHT_MXFP4 && blocks == 2;
    few_tables                tables;
    if (f == WEIGHT_E4M3) tables.e4m3 = e4m3_to_bf16();
    if (f == WEIGHT_MXFP4) tables.e2m1 = e2m1_to_bf16();
    for (int64_t first = 0; first < p->steps; first += chunk) {
        const int64_t g = scaled ? first * packed_step(way) / group_k : 0, steps = f == WEIGHT_MXFP4 ? chunk : packed_least(chunk, p->steps - first);
        if (f == WEIGHT_INT4)
            #pragma GCC unroll 2
            for (int b = 0; b < blocks; ++b) {
                const int8_t *const zeros = a->zeros + ((p->n / PACKED_BLOCK + b) * groups + g) * PACKED_BLOCK;
                tables.less[b][0] = four_times(zeros), tables.less[b][1] = four_times(zeros + 16);
            }
        __m512i sum[4][4];
        #pragma GCC unroll 4
        for (int r = 0; r < rows; ++r)
            #pragma GCC unroll 4
            for (int v = 0; v < 2 * blocks; ++v) sum[r][v] = quads_zero();
        for (int64_t s = 0; s < steps; ++s, x += rows, w += bytes) {
            __m512i u[4];
            #pragma GCC unroll 2
            for (int b = 0; b < blocks; ++b) {
                const char *const from = w + b * p->block_bytes;
                if (!turned) few_step(f, &tables, b, from, u + 2 * b);
                __builtin_prefetch(from + FEW_AHEAD);
                if (bytes > 64) __builtin_prefetch(from + FEW_AHEAD + 64);
                if (f == WEIGHT_BF16 && rows == 4) __builtin_prefetch(from + FEW_AHEAD / 2), __builtin_prefetch(from + FEW_AHEAD / 2 + 64);     /* again, as linear does */
            }
            if (turned) e2m1_blocks(tables.e2m1, w, w + p->block_bytes, u);
            #pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
                const __m512i each = quads_set(x[r]);
                #pragma GCC unroll 4
                for (int v = 0; v < 2 * blocks; ++v)
                    sum[r][v] = way == BY_I8     ? quads_dot(sum[r][v], each, u[v])
                                : way == BY_BF16 ? pairs_dot(sum[r][v], each, u[v])
                                                 : _mm512_castps_si512(vf_fma(_mm512_castsi512_ps(each), _mm512_castsi512_ps(u[v]), _mm512_castsi512_ps(sum[r][v])));
            }
        }
        vf scales[4] = { vf_zero(), vf_zero(), vf_zero(), vf_zero() };
        if (turned) {
            const uint8_t *const of = (const uint8_t *)a->scale + p->n * groups + g * PACKED_BLOCK;
            e8m0_blocks(of, of + PACKED_BLOCK * groups, scales);
        } else if (scaled) {
            #pragma GCC unroll 4
            for (int v = 0; v < 2 * blocks; ++v) scales[v] = few_scale(f, a, p->n + v * VF, groups, g);
        }
        #pragma GCC unroll 4
        for (int v = 0; v < 2 * blocks; ++v) {
            const int64_t at    = v * VF;
            const vf      scale = scales[v];
            #pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
                float *const to = p->sums + r * p->stride + at;
                if (f == WEIGHT_I8) {
                    quads_store(to, quads_add(quads_load(to), sum[r][v]));
                } else if (f == WEIGHT_INT4) {
                    const quads zero = quads_times128(quads_load(w + v / 2 * p->block_bytes + v % 2 * 64));
                    vf_store_f32(to, vf_fma(quads_to_f32(quads_sub(sum[r][v], zero)), scale, vf_load_f32(to)));
                } else {
                    const vf part = _mm512_castsi512_ps(sum[r][v]);
                    vf_store_f32(to, scaled ? vf_fma(part, scale, vf_load_f32(to)) : vf_add(vf_load_f32(to), part));
                }
            }
        }
        if (f == WEIGHT_INT4) w += PACKED_BLOCK * 4;
    }
    if (turned)
        for (int r = 0; r < rows; ++r) e2m1_put_in_order(p->sums + r * p->stride);
}

typedef void few_fn(int64_t rows, int64_t blocks, const few_product *p);

#define FEW(name, format) \
    static __attribute__((noinline)) void name(int64_t rows, int64_t blocks, const few_product *p) \
    { \
        switch (rows * 2 + blocks - 3) { \
        case 0: few(format, 1, 1, p); break; \
        case 1: few(format, 1, 2, p); break; \
        case 2: few(format, 2, 1, p); break; \
        case 3: few(format, 2, 2, p); break; \
        case 4: few(format, 3, 1, p); break; \
        case 5: few(format, 3, 2, p); break; \
        case 6: few(format, 4, 1, p); break; \
        case 7: few(format, 4, 2, p); break; \
        } \
    }
FEW(few_f32, WEIGHT_F32)
FEW(few_bf16, WEIGHT_BF16)
FEW(few_e4m3, WEIGHT_E4M3)
FEW(few_i8, WEIGHT_I8)
FEW(few_mxfp4, WEIGHT_MXFP4)
FEW(few_int4, WEIGHT_INT4)
#undef FEW

/* What multiplies an item this way, or NULL. */
static few_fn *few_of(const struct packed_cpu_args *cpu, const packed_item *item)
{
    const struct packed_args *a = &cpu->a;
    if (a->plain || item->rows > PACKED_FEW_ROWS || item->columns % PACKED_BLOCK || item->columns > 2 * PACKED_BLOCK || a->depth % packed_step(cpu->way)) return NULL;
    const weight_format f = (weight_format)a->format;
    if (cpu->way != few_way(f)) return NULL;
    if (f == WEIGHT_E4M3 && a->scale)                   /* a block has one factor */
        for (int64_t n = item->n; n < item->n + item->columns; n += PACKED_BLOCK)
            if (n / a->group_n != (n + PACKED_BLOCK - 1) / a->group_n) return NULL;
    return f == WEIGHT_F32 ? few_f32 : f == WEIGHT_BF16 ? few_bf16
                                   : f == WEIGHT_E4M3   ? few_e4m3
                                   : f == WEIGHT_I8     ? few_i8
                                   : f == WEIGHT_MXFP4  ? few_mxfp4
                                   : f == WEIGHT_INT4   ? few_int4
                                                        : NULL;
}
#endif
