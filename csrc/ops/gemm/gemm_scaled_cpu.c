/*
 * out = input weight^T of 8-bit numbers, with scales, on the CPU. Lanes run along K for both operands, as in gemm_cpu.c; here every row is packed
 * first, a chunk of K at a time, into the format that the CPU multiplies:
 *
 *                          8-bit floats                   integers
 *     AVX-512 BF16, VNNI   bf16, VDPBF16PS                bytes, input with 128 added, VPDPBUSD; 128 times the weights' sum is taken off again
 *     the others           f32                            16 bits
 *
 * All of these hold 8-bit numbers exactly; integers are summed in 32 bits, floats in f32:
 *
 *     sum(m, n) = the sum over chunks of K, in order, of
 *                     the sum over lanes (a fixed tree) of
 *                         the sum over steps of the chunk, in order, of input[m, k] * weight[n, k]
 *
 * The same for every tile height and every cut into parts.
 */
#include "cpu/simd.h"
#include "gemm_scaled.h"

#if defined(__AVX512BF16__)
enum { BF16_PAIRS = 1 };
#else
enum { BF16_PAIRS = 0 };
#endif
#if defined(__AVX512VNNI__)
enum { BYTE_QUADS = 1 };
#else
enum { BYTE_QUADS = 0 };
#endif
enum { TILE_ROWS = VF == 8 ? 3 : 6,                         /* AVX2 has 16 registers, the others 32 */
       TILE_COLUMNS  = 4,
       GROUP_COLUMNS = 8 };                                     /* packed weights that stay in the first-level cache */

typedef enum { FLOATS,
               INTEGERS } kind;

SGK_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
SGK_INLINE int64_t share(int64_t n, int64_t p, int64_t parts) { return n / parts * p + least(p, n % parts); }
SGK_INLINE int64_t packed_size(kind t) { return t == FLOATS ? (BF16_PAIRS ? 2 : 4) : BYTE_QUADS ? 1
                                                                                                : 2; }

/* ---- packed steps of VF * 4 bytes: integers travel in the lanes of a vf ----------------------------------------------------- */

/* clang-format off */
#if defined(__AVX512F__)
SGK_INLINE vf add_integers(vf a, vf b) { return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))); }
SGK_INLINE vf multiply_add(kind t, vf x, vf w, vf sum)
{
    if (t == FLOATS) {
#if defined(__AVX512BF16__)
        return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
#else
        return vf_fma(x, w, sum);
#endif
    }
#if defined(__AVX512VNNI__)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "vm"(w));      /* with the intrinsic GCC copies every sum twice */
    return sum;
#else
    return add_integers(sum, _mm512_castsi512_ps(_mm512_madd_epi16(_mm512_castps_si512(x), _mm512_castps_si512(w))));
#endif
}
SGK_INLINE int32_t sum_integers(vf a) { return _mm512_reduce_add_epi32(_mm512_castps_si512(a)); }
#elif defined(__AVX2__)
SGK_INLINE vf multiply_add(kind t, vf x, vf w, vf sum)
{
    if (t == FLOATS) return vf_fma(x, w, sum);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), _mm256_madd_epi16(_mm256_castps_si256(x), _mm256_castps_si256(w))));
}
SGK_INLINE int32_t sum_integers(vf a)
{
    const __m256i v = _mm256_castps_si256(a);
    __m128i       s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
#else
SGK_INLINE vf multiply_add(kind t, vf x, vf w, vf sum)
{
    if (t == FLOATS) return vf_fma(x, w, sum);
    const int16x8_t a = vreinterpretq_s16_f32(x), b = vreinterpretq_s16_f32(w);
    int32x4_t       s = vmlal_s16(vreinterpretq_s32_f32(sum), vget_low_s16(a), vget_low_s16(b));
    return vreinterpretq_f32_s32(vmlal_s16(s, vget_high_s16(a), vget_high_s16(b)));
}
SGK_INLINE int32_t sum_integers(vf a) { return vaddvq_s32(vreinterpretq_s32_f32(a)); }
#endif
/* clang-format on */

/* ---- packing --------------------------------------------------------------------------------------------------------------- */

/* VF codes in f32. f16 holds all of e4m3, with exponents too low by 8, and e5m2 is its upper half. */
SGK_INLINE vf decode(sgk_dtype t, const uint8_t *p)
{
#if defined(__AVX512F__)
    const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)p));
    if (t == SGK_E5M2) return _mm512_cvtph_ps(_mm256_slli_epi16(b, 8));
    const __m256i low = _mm256_and_si256(b, _mm256_set1_epi16(0x7f)), sign = _mm256_slli_epi16(_mm256_and_si256(b, _mm256_set1_epi16(0x80)), 8);
    const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(low, _mm256_set1_epi16(0x7f)), _mm256_set1_epi16(0x7e00));
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(low, 7), sign), nan)), vf_set(256));
#elif defined(__AVX2__)
    const __m128i b = _mm_cvtepu8_epi16(_mm_loadl_epi64((const void *)p));
    if (t == SGK_E5M2) return _mm256_cvtph_ps(_mm_slli_epi16(b, 8));
    const __m128i low = _mm_and_si128(b, _mm_set1_epi16(0x7f)), sign = _mm_slli_epi16(_mm_and_si128(b, _mm_set1_epi16(0x80)), 8);
    const __m128i nan = _mm_and_si128(_mm_cmpeq_epi16(low, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7e00));
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(_mm_or_si128(_mm_slli_epi16(low, 7), sign), nan)), vf_set(256));
#else
    uint32_t four;
    memcpy(&four, p, sizeof four);
    const uint16x4_t b = vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))));
    if (t == SGK_E5M2) return vcvt_f32_f16(vreinterpret_f16_u16(vshl_n_u16(b, 8)));
    const uint16x4_t low = vand_u16(b, vdup_n_u16(0x7f)), sign = vshl_n_u16(vand_u16(b, vdup_n_u16(0x80)), 8);
    const uint16x4_t nan = vand_u16(vceq_u16(low, vdup_n_u16(0x7f)), vdup_n_u16(0x7e00));
    return vmulq_f32(vcvt_f32_f16(vreinterpret_f16_u16(vorr_u16(vorr_u16(vshl_n_u16(low, 7), sign), nan))), vf_set(256));
#endif
}

/* What the codes without sign are in bf16, for packing by table. */
typedef struct { uint16_t bf16[128]; } table;
static void fill(table *to, sgk_dtype t)
{
    for (int c = 0; c < 128 && BF16_PAIRS; ++c) to->bf16[c] = f32_to_bf16(t == SGK_E5M2 ? e5m2_to_f32((uint8_t)c) : e4m3_to_f32((uint8_t)c));
}

/* One step of packed floats from 2 VF (bf16) or VF codes. */
SGK_INLINE void pack_floats(sgk_dtype t, char *to, const uint8_t *from, const table *codes)
{
#if defined(__AVX512BF16__)
    (void)t;
    const __m512i c    = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)from));
    const __m512i low  = _mm512_permutex2var_epi16(_mm512_loadu_si512(codes->bf16), c, _mm512_loadu_si512(codes->bf16 + 32));
    const __m512i high = _mm512_permutex2var_epi16(_mm512_loadu_si512(codes->bf16 + 64), c, _mm512_loadu_si512(codes->bf16 + 96));
    const __m512i v    = _mm512_mask_blend_epi16(_mm512_test_epi16_mask(c, _mm512_set1_epi16(0x40)), low, high);
    _mm512_storeu_si512((void *)to, _mm512_ternarylogic_epi32(v, _mm512_slli_epi16(c, 8), _mm512_set1_epi16((short)0x8000), 0xf8));      /* v | (sign & mask) */
#else
    (void)codes;
    vf_store_f32((float *)(void *)to, decode(t, from));
#endif
}

SGK_INLINE void pack_integers(char *to, const uint8_t *from, bool input)
{
#if defined(__AVX512VNNI__)
    const __m512i v = _mm512_loadu_si512((const void *)from);
    _mm512_storeu_si512((void *)to, input ? _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80)) : v);
#else
    (void)input;
#if defined(__AVX512F__)
    _mm512_storeu_si512((void *)to, _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)from)));
#elif defined(__AVX2__)
    _mm256_storeu_si256((void *)to, _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)from)));
#else
    vst1q_s16((int16_t *)(void *)to, vmovl_s8(vld1_s8((const int8_t *)from)));
#endif
#endif
}

/* n codes of a row, with zeros up to the end of the last step. */
SGK_INLINE void pack_row_of(sgk_dtype t, char *to, const uint8_t *from, int64_t n, bool input, const table *codes)
{
    const kind    k    = t == SGK_I8 ? INTEGERS : FLOATS;
    const int64_t step = 4 * VF / packed_size(k);
    int64_t       i    = 0;
    for (; i + step <= n; i += step, to += 4 * VF) {
        if (k == FLOATS) pack_floats(t, to, from + i, codes);
        else pack_integers(to, from + i, input);
    }
    if (i < n) {
        uint8_t rest[4 * VF] = { 0 };
        memcpy(rest, from + i, (size_t)(n - i));
        if (k == FLOATS) pack_floats(t, to, rest, codes);
        else pack_integers(to, rest, input);
    }
}

static void pack_row(sgk_dtype t, char *to, const uint8_t *from, int64_t n, bool input, const table *codes)
{
    if (t == SGK_I8) pack_row_of(SGK_I8, to, from, n, input, codes);
    else if (t == SGK_E4M3) pack_row_of(SGK_E4M3, to, from, n, input, codes);
    else pack_row_of(SGK_E5M2, to, from, n, input, codes);
}

/* 128 times the sum of a packed row of weights: what 128 more in every input adds. */
SGK_INLINE int32_t excess(const char *w, int64_t bytes)
{
#if defined(__AVX512VNNI__)
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < bytes; i += 64) sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8((char)0x80), _mm512_loadu_si512((const void *)(w + i)));
    return _mm512_reduce_add_epi32(sum);
#else
    (void)w, (void)bytes;
    return 0;
#endif
}

/* ---- tiles ----------------------------------------------------------------------------------------------------------------- */

/* sums[r][0..3] += the products of packed rows x and four packed rows w, less `excess`. */
SGK_INLINE void tile(kind t, int rows, const char *x, const char *w, int64_t bytes, const int32_t excess[TILE_COLUMNS], float *sums)
{
    vf sum[TILE_ROWS][TILE_COLUMNS];
    #pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
        #pragma GCC unroll 4
        for (int c = 0; c < TILE_COLUMNS; ++c) sum[r][c] = vf_zero();
    for (int64_t i = 0; i < bytes; i += 4 * VF) {
        vf v[TILE_ROWS];
        #pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) v[r] = vf_load_f32((const float *)(const void *)(x + r * SCALED_STEP_BYTES + i));
        #pragma GCC unroll 4
        for (int c = 0; c < TILE_COLUMNS; ++c) {
            const vf u = vf_load_f32((const float *)(const void *)(w + c * SCALED_STEP_BYTES + i));
            #pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) sum[r][c] = multiply_add(t, v[r], u, sum[r][c]);
        }
    }
    #pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
        float *to = sums + r * SCALED_BLOCK;
        if (t == FLOATS) {
            v4_store(to, v4_load(to) + vf_sums4(sum[r][0], sum[r][1], sum[r][2], sum[r][3]));
        } else {
            uint32_t so_far[TILE_COLUMNS];                      /* wraps, as the sums do */
            memcpy(so_far, to, sizeof so_far);
            #pragma GCC unroll 4
            for (int c = 0; c < TILE_COLUMNS; ++c) so_far[c] += (uint32_t)sum_integers(sum[r][c]) - (uint32_t)excess[c];
            memcpy(to, so_far, sizeof so_far);
        }
    }
}

SGK_INLINE void tile_any(kind t, int64_t rows, const char *x, const char *w, int64_t bytes, const int32_t excess[TILE_COLUMNS], float *sums)
{
    switch (rows) {
    case 1: tile(t, 1, x, w, bytes, excess, sums); break;
    case 2: tile(t, 2, x, w, bytes, excess, sums); break;
    case 3: tile(t, 3, x, w, bytes, excess, sums); break;
#if !defined(__AVX2__) || defined(__AVX512F__)
    case 4: tile(t, 4, x, w, bytes, excess, sums); break;
    case 5: tile(t, 5, x, w, bytes, excess, sums); break;
    case 6: tile(t, 6, x, w, bytes, excess, sums); break;
#endif
    }
}

/* ---- blocks ---------------------------------------------------------------------------------------------------------------- */

SGK_INLINE void store_rows(sgk_dtype t, const struct scaled_args *a, int64_t batch, int64_t m, int64_t rows, int64_t n, int64_t columns, const float *sums)
{
    float scale[SCALED_BLOCK + VF] = { 0 }, bias[SCALED_BLOCK + VF] = { 0 };
    for (int64_t c = 0; c < columns; ++c) {
        scale[c] = a->weight_scales[(n + c) * a->weight_scale_step];
        if (a->bias) bias[c] = load_f32(t, a->bias, n + c);
    }
    const bool integers = a->input_dtype == SGK_I8;
    for (int64_t r = 0; r < rows; ++r, sums += SCALED_BLOCK) {
        const vf row = vf_set(a->input_scales[(m + r) * a->input_scale_step]);
        for (int64_t c = 0; c < columns; c += VF) {
            const int64_t to = batch * a->out_batch + (m + r) * a->out_stride + n + c, rest = columns - c;
            float         v[VF];
            for (int i = 0; i < VF; ++i) v[i] = integers ? (float)(int32_t)f32_bits(sums[c + i]) : sums[c + i];
            const vf product = vf_mul(vf_mul(vf_load_f32(v), vf_load_f32(scale + c)), row), y = a->bias ? vf_add(product, vf_load_f32(bias + c)) : product;
            if (rest >= VF) vf_store(t, a->out, to, y);
            else vf_store_part(t, a->out, to, rest, y);
        }
    }
}

/* Rows [m, m + rows) by columns [n, n + columns) of a product of the batch. */
static void block(const struct scaled_args *a, const table codes[2], int64_t batch, int64_t m, int64_t rows, int64_t n, int64_t columns, char *scratch)
{
    const kind     t      = a->input_dtype == SGK_I8 ? INTEGERS : FLOATS;
    const int64_t  chunk  = SCALED_STEP_BYTES / packed_size(t);
    const uint8_t *input  = (const uint8_t *)a->input + batch * a->input_batch + m * a->input_stride;
    const uint8_t *weight = (const uint8_t *)a->weight + batch * a->weight_batch + n * a->weight_stride;
    char *const    x      = scratch;                                                                       /* [rows][SCALED_STEP_BYTES] */
    float *const   sums   = (float *)(void *)(x + rows * SCALED_STEP_BYTES);                                /* [rows][SCALED_BLOCK] */
    char           w[GROUP_COLUMNS * SCALED_STEP_BYTES] __attribute__((aligned(64)));
    memset(sums, 0, (size_t)rows * SCALED_BLOCK * sizeof *sums);
    for (int64_t k = 0; k < a->depth; k += chunk) {
        const int64_t n_k = least(chunk, a->depth - k), bytes = (n_k * packed_size(t) + 4 * VF - 1) / (4 * VF) * (4 * VF);
        for (int64_t r = 0; r < rows; ++r) pack_row(a->input_dtype, x + r * SCALED_STEP_BYTES, input + r * a->input_stride + k, n_k, true, &codes[0]);
        for (int64_t g = 0; g < columns; g += GROUP_COLUMNS) {
            int32_t       over[GROUP_COLUMNS] = { 0 };
            const int64_t some                = least(GROUP_COLUMNS, columns - g);
            for (int64_t c = 0; c < some; ++c) {
                pack_row(a->weight_dtype, w + c * SCALED_STEP_BYTES, weight + (g + c) * a->weight_stride + k, n_k, false, &codes[1]);
                if (t == INTEGERS) over[c] = excess(w + c * SCALED_STEP_BYTES, bytes);
            }
            for (int64_t c = some; c % TILE_COLUMNS; ++c) memset(w + c * SCALED_STEP_BYTES, 0, (size_t)bytes);
            for (int64_t r = 0; r < rows; r += TILE_ROWS)
                for (int64_t c = 0; c < some; c += TILE_COLUMNS) {
                    const int64_t height = least(TILE_ROWS, rows - r);
                    if (t == FLOATS) tile_any(FLOATS, height, x + r * SCALED_STEP_BYTES, w + c * SCALED_STEP_BYTES, bytes, over + c, sums + r * SCALED_BLOCK + g + c);
                    else tile_any(INTEGERS, height, x + r * SCALED_STEP_BYTES, w + c * SCALED_STEP_BYTES, bytes, over + c, sums + r * SCALED_BLOCK + g + c);
                }
        }
    }
    if (a->out_dtype == SGK_F32) store_rows(SGK_F32, a, batch, m, rows, n, columns, sums);
    else if (a->out_dtype == SGK_F16) store_rows(SGK_F16, a, batch, m, rows, n, columns, sums);
    else store_rows(SGK_BF16, a, batch, m, rows, n, columns, sums);
}

void SGK_CPU_FN(scaled_mm)(const void *args, int64_t begin, int64_t end)
{
    const struct scaled_cpu_args *cpu    = args;
    const struct scaled_args     *a      = &cpu->a;
    const int64_t                 across = (a->columns + SCALED_BLOCK - 1) / SCALED_BLOCK, each = across * cpu->row_blocks, blocks = a->batch * each;
    table                         codes[2] = { { { 0 } } };
    fill(&codes[0], a->input_dtype), fill(&codes[1], a->weight_dtype);
    for (int64_t p = begin; p < end; ++p)
        for (int64_t i = share(blocks, p, cpu->parts); i < share(blocks, p + 1, cpu->parts); ++i) {
            const int64_t n = i % across * SCALED_BLOCK, at = i % each / across;
            const int64_t m = share(a->rows, at, cpu->row_blocks), behind = share(a->rows, at + 1, cpu->row_blocks);
            char          few[SCALED_FEW_ROWS * SCALED_ROW_BYTES] __attribute__((aligned(64)));
            block(a, codes, i / each, m, behind - m, n, least(SCALED_BLOCK, a->columns - n), cpu->scratch ? (char *)cpu->scratch + p * SCALED_SCRATCH : few);
        }
}
