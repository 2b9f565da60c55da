#include <float.h>
#include <math.h>
#include <string.h>
#include "quant_lookup.h"
#include "quant_norm.h"
#include "cpu/codes.h"

SGK_INLINE vf load_some(sgk_dtype t, const void *p, int64_t i, int64_t n) { return n >= VF ? vf_load(t, p, i) : vf_load_part(t, p, i, n); }

/* Asks for the lines of n elements at p[i]. */
SGK_INLINE void ask_for(sgk_dtype t, const void *p, int64_t i, int64_t n)
{
    const int64_t size = t == SGK_F32 ? 4 : 2;
    for (int64_t at = i * size; at < (i + n) * size; at += 64) __builtin_prefetch((const char *)p + at);
}

enum { PIECE = 256,                                     /* elements */
       LONG  = 512 };                                   /* from how many on a table of their codes is worth making */

/*
 * Where, from the begin of a row on, what is asked for lies while its element d is written: a row ahead and some more, as the next row's scale takes all of it
 * at once.
 */
SGK_INLINE int64_t soon_of(int64_t d, int64_t dim, int64_t stride)
{
    enum { MORE = 2048 };
    const int64_t at = d + (dim < 2 * MORE ? dim / 2 : MORE);
    return at < dim ? stride + at : 2 * stride + at - dim;
}

/* ---- rows ---- */
SGK_INLINE void rows(sgk_dtype t, sgk_dtype code, bool stream, const struct quant_rows_args *a, int64_t begin, int64_t end)
{
    const float most = code == SGK_E4M3 ? 448.0f : 127.0f;
    code_table  table;
    code_table_clear(&table);
    for (int64_t row = begin; row < end; ++row) {
        const int64_t              x = row * a->input_stride;
        bool                       finite;
        const struct quant_scaling scaling   = quant_row_scaling(amax_run(t, a->input, x, a->dim, &finite), code);
        const code_scale           k         = { scaling.by, -most, most, false, finite ? CODES_WITHIN : CODES_ENDS, false };
        const bool                 looked_up = t == SGK_BF16 && code == SGK_E4M3 && a->dim >= LONG && code_table_set(&table, scaling.by, false);
        a->s[row * a->s_stride]              = scaling.s;
        for (int64_t d = 0; d < a->dim; d += PIECE) {       /* while this row is written the next one comes */
            const int64_t n = a->dim - d < PIECE ? a->dim - d : PIECE;
            ask_for(t, a->input, x + soon_of(d, a->dim, a->input_stride), n);
            if (looked_up) codes_looked_up(stream, &table, &k, a->q + row * a->q_stride + d, a->input, x + d, n);
            else codes_known(t, code, stream, &k, a->q + row * a->q_stride + d, a->input, x + d, n);
        }
    }
    if (stream) vf_stream_end();
}

SGK_INLINE void rows_of(sgk_dtype t, bool stream, const struct quant_rows_args *a, int64_t begin, int64_t end)
{
    if (a->code == SGK_U8) stream ? rows(t, SGK_U8, true, a, begin, end) : rows(t, SGK_U8, false, a, begin, end);
    else stream ? rows(t, SGK_E4M3, true, a, begin, end) : rows(t, SGK_E4M3, false, a, begin, end);
}

void SGK_CPU_FN(quant_rows)(const void *args, int64_t begin, int64_t end)
{
    const struct quant_rows_args *a      = args;
    const bool                    stream = a->dim && sgk_cpu_streams(a->q, a->rows, a->dim, 1);
    if (a->dtype == SGK_F32) rows_of(SGK_F32, stream, a, begin, end);
    else if (a->dtype == SGK_F16) rows_of(SGK_F16, stream, a, begin, end);
    else rows_of(SGK_BF16, stream, a, begin, end);
}

/* ---- the whole tensor ---- */
SGK_INLINE int64_t block_size(const struct quant_tensor_args *a, int64_t n)
{
    return (n + 1) * QUANT_BLOCK < a->count ? QUANT_BLOCK : a->count - n * QUANT_BLOCK;
}

SGK_INLINE float amax_alone(sgk_dtype t, const struct quant_tensor_args *a, int64_t first, int64_t n)
{
    bool finite;
    ask_for(t, a->input, first + n, n);
    return amax_run(t, a->input, first, n, &finite);
}

void SGK_CPU_FN(quant_tensor_amax)(const void *args, int64_t begin, int64_t end)
{
    const struct quant_tensor_args *a = args;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t first = n * QUANT_BLOCK, count = block_size(a, n);
        const float   amax = a->dtype == SGK_F32 ? amax_alone(SGK_F32, a, first, count) : a->dtype == SGK_F16 ? amax_alone(SGK_F16, a, first, count)
                                                                                                              : amax_alone(SGK_BF16, a, first, count);
        const int32_t bits = (int32_t)f32_bits(amax / 448.0f);
        int32_t      *s = (int32_t *)a->s, seen = __atomic_load_n(s, __ATOMIC_RELAXED);
        while (seen < bits && !__atomic_compare_exchange_n(s, &seen, bits, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    }
}

SGK_INLINE void tensor_piece(sgk_dtype t, bool stream, const struct quant_tensor_args *a, code_table *table, const code_scale *k, int64_t at, int64_t n)
{
    ask_for(t, a->input, at + 16 * PIECE, PIECE);
    if (t == SGK_BF16 && table && stream) codes_looked_up(true, table, k, a->q + at, a->input, at, n);
    else if (t == SGK_BF16 && table) codes_looked_up(false, table, k, a->q + at, a->input, at, n);
    else if (stream) codes_run(t, SGK_E4M3, true, k, a->q + at, a->input, at, n);
    else codes_run(t, SGK_E4M3, false, k, a->q + at, a->input, at, n);
}

void SGK_CPU_FN(quant_tensor)(const void *args, int64_t begin, int64_t end)
{
    const struct quant_tensor_args *a      = args;
    const code_scale                k      = { quant_reciprocal(*a->s), -448, 448, false, CODES_ENDS, false };
    const bool                      stream = sgk_cpu_streams(a->q, (a->count + QUANT_BLOCK - 1) / QUANT_BLOCK, QUANT_BLOCK, 1);
    code_table                      made;
    code_table_clear(&made), made.long_lived = true;
    code_table *table = a->dtype == SGK_BF16 && a->count >= LONG && code_table_set(&made, k.by, false) ? &made : NULL;
    for (int64_t n = begin; n < end; ++n) {
        const int64_t first = n * QUANT_BLOCK, count = block_size(a, n);
        for (int64_t i = 0; i < count; i += PIECE) {
            const int64_t at = first + i, m = count - i < PIECE ? count - i : PIECE;
            if (a->dtype == SGK_F32) tensor_piece(SGK_F32, stream, a, table, &k, at, m);
            else if (a->dtype == SGK_F16) tensor_piece(SGK_F16, stream, a, table, &k, at, m);
            else tensor_piece(SGK_BF16, stream, a, table, &k, at, m);
        }
    }
    if (stream) vf_stream_end();
}

/* ---- groups ---- */

/* As quant_silu and quant_exp, of MANY vectors step by step: so each step finds its operands ready. */
enum { MANY = VF == 16 ? 8 : 4 };
SGK_INLINE void silu(vf *a)
{
    vf x[MANY], k[MANY], p[MANY];
    VF_EACH(i, MANY)
    a[i] = vf_max(vf_set(-FLT_MAX), a[i]);
    VF_EACH(i, MANY)
    x[i] = vf_max(vf_set(-104.0f), vf_min(vf_set(88.8f), vf_sub(vf_set(-0.0f), a[i])));
    VF_EACH(i, MANY)
    k[i] = vf_round(vf_mul(x[i], vf_set(1.44269504f)));
    VF_EACH(i, MANY)
    x[i] = vf_fma(k[i], vf_set(-0.693145752f), x[i]);
    VF_EACH(i, MANY)
    x[i] = vf_fma(k[i], vf_set(-1.428606765e-06f), x[i]);
    VF_EACH(i, MANY)
    p[i] = vf_fma(vf_set(1.9875691500e-4f), x[i], vf_set(1.3981999507e-3f));
    VF_EACH(i, MANY)
    p[i] = vf_fma(p[i], x[i], vf_set(8.3334519073e-3f));
    VF_EACH(i, MANY)
    p[i] = vf_fma(p[i], x[i], vf_set(4.1665795894e-2f));
    VF_EACH(i, MANY)
    p[i] = vf_fma(p[i], x[i], vf_set(1.6666665459e-1f));
    VF_EACH(i, MANY)
    p[i] = vf_fma(p[i], x[i], vf_set(5.0000001201e-1f));
    VF_EACH(i, MANY)
    p[i] = vf_fma(p[i], vf_mul(x[i], x[i]), vf_add(x[i], vf_set(1)));
    VF_EACH(i, MANY)
    a[i] = vf_div(a[i], vf_add(vf_set(1), vf_pow2(p[i], k[i])));
}

/*
 * Of gates of bf16, for results that are rounded to it: of every one of them it is that of quant_silu. The polynomial's factors were chosen so; check_gates()
 * looks.
 */
SGK_INLINE void silu_of_bf16(vf *a)
{
    vf x[MANY], k[MANY], p[MANY];
    VF_EACH(i, MANY)
    a[i] = vf_max(vf_set(-200), a[i]);                      /* -0 from there on */
    VF_EACH(i, MANY)
    x[i] = vf_min(vf_set(104), a[i]);
    VF_EACH(i, MANY)
    k[i] = vf_fma(x[i], vf_set(-1.44269504f), vf_set(0x1.8p23f));
    VF_EACH(i, MANY)
    k[i] = vf_sub(k[i], vf_set(0x1.8p23f));                 /* whole */
    VF_EACH(i, MANY)
    x[i] = vf_fma(x[i], vf_set(-1.44269504f), -k[i]);
    VF_EACH(i, MANY)
    p[i] = vf_fma(vf_set(9.64680407e-3f), x[i], vf_set(5.58364727e-2f));
    VF_EACH(i, MANY)
    p[i] = vf_fma(p[i], x[i], vf_set(2.40220562e-1f));
    VF_EACH(i, MANY)
    p[i] = vf_fma(p[i], x[i], vf_set(6.93125546e-1f));
    VF_EACH(i, MANY)
    p[i] = vf_fma(p[i], x[i], vf_set(1));
    VF_EACH(i, MANY)
    a[i] = vf_div(a[i], vf_add(vf_set(1), vf_pow2(p[i], k[i])));
}

/* round(round(silu(gate)) * up) in the format t; a fused group is a multiple of 16. First what is rounded first: half the chain, so that more of them are under way. What
 * lies `ahead` elements on is asked for. */
SGK_INLINE void fuse(sgk_dtype t, void *out, const void *input, int64_t gate, int64_t up, int64_t n, int64_t ahead)
{
    int64_t i = 0;
    for (; i + MANY * VF <= n; i += MANY * VF) {
        vf a[MANY];
#pragma GCC unroll 4
        for (int k = 0; k < MANY; k += 2) {
            vf_prefetch2(t, input, gate + ahead + i + k * VF);
            vf_load_pairs(t, input, gate + i + k * VF, &a[k], &a[k + 1]);
        }
        if (t == SGK_BF16) silu_of_bf16(a);
        else silu(a);
#pragma GCC unroll 4
        for (int k = 0; k < MANY; k += 2) vf_store_pairs(t, false, out, i + k * VF, a[k], a[k + 1]);
    }
    for (int64_t k = 0; k < i; k += 2 * VF) {
        vf a, b, c, d;
        vf_prefetch2(t, input, up + ahead + k);
        vf_load_pairs(t, out, k, &a, &b), vf_load_pairs(t, input, up + k, &c, &d);
        vf_store_pairs(t, false, out, k, vf_mul(a, c), vf_mul(b, d));
    }
    for (; i < n; i += VF) {
        vf a[MANY] = { vf_load(t, input, gate + i) };
        silu(a);
        vf_store(t, out, i, vf_mul(vf_rounded(t, a[0]), vf_load(t, input, up + i)));
    }
}

/* A function for each format, which all that quantise groups share: it has many forms inside. `finite`: what is encoded, also before it was scaled. */
#define ENCODE_SCALED(name, t) \
    static __attribute__((noinline)) void name(bool stream, bool finite, const struct quant_groups_args *a, const struct quant_scaling *s, uint8_t *q, \
                                               const void *from, int64_t first, int64_t n) \
    { \
        encode_scaled_as(t, stream, a, (code_scale){ s->by, a->least, a->most, s->divide, a->clamps ? CODES_ANY : finite ? CODES_WITHIN \
                                                                                                                         : CODES_ENDS, \
                                                     false }, \
                         q, from, first, n); \
    }
SGK_INLINE void encode_scaled_as(sgk_dtype t, bool stream, const struct quant_groups_args *a, code_scale k, uint8_t *q, const void *from, int64_t first,
                                 int64_t n)
{
    const code_scale over = { k.by, k.least, k.most, true, k.known, false }, times = { k.by, k.least, k.most, false, k.known, false };
    if (a->code == SGK_I8 && stream && !k.divide) codes_known(t, SGK_I8, true, &times, q, from, first, n);
    else if (a->code == SGK_I8 && k.divide) codes_known(t, SGK_I8, stream, &over, q, from, first, n);
    else if (a->code == SGK_I8) codes_known(t, SGK_I8, false, &times, q, from, first, n);
    else if (stream && k.divide) codes_known(t, SGK_E4M3, true, &over, q, from, first, n);
    else if (stream) codes_known(t, SGK_E4M3, true, &times, q, from, first, n);
    else if (k.divide) codes_known(t, SGK_E4M3, false, &over, q, from, first, n);
    else codes_known(t, SGK_E4M3, false, &times, q, from, first, n);
}
ENCODE_SCALED(encode_f32, SGK_F32)
ENCODE_SCALED(encode_f16, SGK_F16)
ENCODE_SCALED(encode_bf16, SGK_BF16)
#define encode_scaled(t, ...) ((t) == SGK_F32 ? encode_f32(__VA_ARGS__) : (t) == SGK_F16 ? encode_f16(__VA_ARGS__) \
                                                                                         : encode_bf16(__VA_ARGS__))

/* Of group j of the row whose scales begin at `place`. */
SGK_INLINE void store_scale(const struct quant_groups_args *a, int64_t place, int64_t j, struct quant_scaling k)
{
    if (!a->ue8m0) {
        ((float *)a->s)[place + j * a->s_column] = k.s;
        return;
    }
    uint8_t *word = (uint8_t *)a->s + (place + j / 4 * a->s_column) * 4;
    word[j % 4]   = (uint8_t)(k.exponent + 127);
    if (j == a->groups - 1)
        for (int64_t i = j % 4 + 1; i < 4; ++i) word[i] = 0;
}

/* `count` groups at from[at], numbers j to j + count - 1 of a row; all their scales are found before any is encoded, so that none waits for the other. */
enum { TOGETHER = 8 };
typedef struct {
    const void  *from, *soon;                           /* soon: what is asked for while it is encoded, or NULL */
    uint8_t     *q;
    int64_t      at, place, j;
    int          count;
    bool         found_scales;                          /* it is looked up, or with `turns` encoded times reciprocals */
    lookup_batch found;
    float        by[TOGETHER];
} batch;

#if defined(__AVX512VBMI__)
SGK_INLINE bool batches_look_up(const struct quant_groups_args *a)
{
    const bool may = lookup_takes(a);
    if (may) lookup_prepare();
    return may;
}
static __attribute__((noinline)) bool batch_find(const struct quant_groups_args *a, batch *b)
{
    const uint16_t *x = (const uint16_t *)b->from + b->at;
    return a->group == 128 ? lookup_find(&b->found, a, 128, x, b->count) : lookup_find(&b->found, a, a->group, x, b->count);
}
static __attribute__((noinline)) void batch_look_up(bool stream, const struct quant_groups_args *a, const batch *b)
{
    const uint16_t *x = (const uint16_t *)b->from + b->at;
    if (a->group == 128) lookup_encode(&b->found, stream, a, 128, b->q, x, b->count, b->soon);
    else lookup_encode(&b->found, stream, a, a->group, b->q, x, b->count, b->soon);
}
/*
 * i8 of version 1, where a scale is 1 / 127 of the largest, rounded: times its reciprocal. Quotients nearer to a whole number than a rounding are those that are one, and
 * that of the largest, which comes out as 127 or just below; so the reciprocal is chosen that gives the same of it.
 */
SGK_INLINE bool turns_reciprocals(const struct quant_groups_args *a)
{
    return a->code == SGK_I8 && a->version == 1 && !a->ue8m0 && !a->clamps && a->group % 32 == 0 && a->group > 0;
}
/* Finds the scales and reciprocals of a batch; false where one of the largest is tiny, or no number. */
static __attribute__((noinline)) bool batch_turn(const struct quant_groups_args *a, batch *b)
{
    enum { LEAST = 32 << 7,
           ABOVE = 224 << 7 };             /* of bf16: reciprocals are normal numbers */
    const uint16_t *x    = (const uint16_t *)b->from + b->at;
    const __m256i   bits = a->group == 128 ? lookup_most(x, 128, b->count) : lookup_most(x, a->group, b->count);
    const __m256    most = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)), one = _mm256_set1_ps(1), end = _mm256_set1_ps(127);
    if (_mm256_cmpge_epu32_mask(_mm256_sub_epi32(bits, _mm256_set1_epi32(LEAST)), _mm256_set1_epi32(ABOVE - LEAST)) |
        _mm256_cmp_ps_mask(most, _mm256_set1_ps(a->eps), _CMP_NGE_UQ)) return false;
    const __m256 s = _mm256_div_ps(most, end), turned = _mm256_div_ps(one, s), tiny = _mm256_set1_ps(0x1p-22f);
    _mm256_storeu_ps(b->found.scale, s);
    _mm256_storeu_ps(b->by, _mm256_mul_ps(turned, _mm256_mask_sub_ps(_mm256_add_ps(one, tiny), _mm256_cmp_ps_mask(_mm256_div_ps(most, s), end, _CMP_LT_OQ), one, tiny)));
    return true;
}
SGK_INLINE void turned_groups(bool stream, int64_t group, const batch *b)
{
    const uint16_t *soon = b->soon;
    for (int g = 0; g < b->count; ++g) {
        const code_scale k    = { b->by[g], -128, 127, false, CODES_WITHIN, false };
        const int64_t    from = b->at + g * group;
        uint8_t         *q    = b->q + g * group;
        int64_t          i    = 0;
        for (; i + 64 <= group; i += 64) {
            if (soon) __builtin_prefetch(soon), __builtin_prefetch(soon + 32), soon += 64;
            codes_64(SGK_BF16, SGK_I8, stream, &k, q + i, b->from, from + i);
        }
        if (i < group) codes_run(SGK_BF16, SGK_I8, false, &k, q + i, b->from, from + i, group - i);
    }
}
static __attribute__((noinline)) void batch_encode_turned(bool stream, int64_t group, const batch *b)
{
    if (stream) group == 128 ? turned_groups(true, 128, b) : turned_groups(true, group, b);
    else group == 128 ? turned_groups(false, 128, b) : turned_groups(false, group, b);
}
#else
SGK_INLINE bool turns_reciprocals(const struct quant_groups_args *a)
{
    (void)a;
    return false;
}
SGK_INLINE bool batch_turn(const struct quant_groups_args *a, batch *b)
{
    (void)a, (void)b;
    return false;
}
SGK_INLINE void batch_encode_turned(bool stream, int64_t group, const batch *b) { (void)stream, (void)group, (void)b; }
SGK_INLINE bool batches_look_up(const struct quant_groups_args *a)
{
    (void)a;
    return false;
}
SGK_INLINE bool batch_find(const struct quant_groups_args *a, batch *b)
{
    (void)a, (void)b;
    return false;
}
SGK_INLINE void batch_look_up(bool stream, const struct quant_groups_args *a, const batch *b) { (void)stream, (void)a, (void)b; }
#endif

/* A batch begins before the one ahead of it ends. */
SGK_INLINE void batch_begin(bool turns, const struct quant_groups_args *a, bool may_look_up, batch *b)
{
    b->found_scales = turns ? batch_turn(a, b) : may_look_up && batch_find(a, b);
}
SGK_INLINE void batch_end(sgk_dtype t, bool turns, bool stream, const struct quant_groups_args *a, const batch *b)
{
    struct quant_scaling scaling[TOGETHER];
    bool                 finite[TOGETHER];
    if (t == SGK_BF16 && b->found_scales) {
        if (turns) batch_encode_turned(stream, a->group, b);
        else batch_look_up(stream, a, b);
        if (!a->ue8m0 && a->s_column == 1) {
            memcpy((float *)a->s + b->place + b->j, b->found.scale, (size_t)b->count * sizeof(float));
            return;
        }
        for (int g = 0; g < b->count; ++g) store_scale(a, b->place, b->j + g, (struct quant_scaling){ .s = b->found.scale[g], .exponent = b->found.exponent[g] });
        return;
    }
    for (int g = 0; g < b->count; ++g) scaling[g] = quant_group_scaling(amax_run(t, b->from, b->at + g * a->group, a->group, &finite[g]), a);
    for (int g = 0; g < b->count; ++g) encode_scaled(t, stream, finite[g], a, &scaling[g], b->q + g * a->group, b->from, b->at + g * a->group, a->group);
    for (int g = 0; g < b->count; ++g) store_scale(a, b->place, b->j + g, scaling[g]);
}

enum { FUSED = 128 };                                       /* elements of a fused group at most */
/* `turns`: what turns_reciprocals() is true of. */
SGK_INLINE void groups(sgk_dtype t, bool turns, const struct quant_groups_args *a, int64_t begin, int64_t end)
{
    enum { AHEAD  = 2048,                               /* elements that are asked for in time, in the row or in the next one */
           EVENLY = 4096 };                             /* by what looks up codes: it does so a batch later */
    const int64_t      dim = a->groups * a->group, far = AHEAD < dim ? AHEAD : dim, further = EVENLY < dim ? EVENLY : dim;
    const bool         lines = ((int64_t)(uintptr_t)a->q | a->q_stride | a->group) % 64 == 0, may_look_up = !turns && batches_look_up(a);
    const bool         stream = lines && sgk_cpu_streams(a->q, a->rows, dim, 1);
    _Alignas(64) float values[2][TOGETHER * FUSED];
    batch              batches[2] = { { .count = 0 }, { .count = 0 } };
    int                now        = 0;
    int64_t            row = begin / a->groups, j = begin % a->groups;
    for (int64_t n = begin; n < end; ++row, j = 0) {
        const int64_t stop = end - n < a->groups - j ? j + end - n : a->groups, outer = row / a->batch_rows, line = row - outer * a->batch_rows;
        n += stop - j;
        if (a->masked_m && line >= a->masked_m[outer]) continue;
        const int64_t place = outer * a->s_batch + line * a->s_row;
        for (int count; j < stop; j += count, now = !now) {
            const int64_t x = row * a->input_stride + j * a->group, ahead = j * a->group + far < dim ? far : far - dim + a->input_stride;
            batch        *b = &batches[now];
            count           = stop - j < TOGETHER ? (int)(stop - j) : TOGETHER;
            b->count = count, b->place = place, b->j = j;
            b->q    = a->q + row * a->q_stride + j * a->group;
            b->from = a->fuse ? (const void *)values[now] : a->input, b->at = a->fuse ? 0 : x;
            if (a->fuse) fuse(t, values[now], a->input, x, x + dim, count * a->group, ahead);
            batch_begin(turns, a, may_look_up, b);
            b->soon = NULL;
            if (!a->fuse && b->found_scales) b->soon = (const uint16_t *)a->input + x + (j * a->group + further < dim ? further : further - dim + a->input_stride);
            else if (!a->fuse) ask_for(t, a->input, x + ahead, count * a->group);
            batch_end(t, turns, stream, a, &batches[!now]);
        }
    }
    batch_end(t, turns, stream, a, &batches[!now]);
    if (stream) vf_stream_end();
}

void SGK_CPU_FN(quant_groups)(const void *args, int64_t begin, int64_t end)
{
    const struct quant_groups_args *a = args;
    if (a->dtype == SGK_F32) groups(SGK_F32, false, a, begin, end);
    else if (a->dtype == SGK_F16) groups(SGK_F16, false, a, begin, end);
    else if (turns_reciprocals(a)) groups(SGK_BF16, true, a, begin, end);
    else groups(SGK_BF16, false, a, begin, end);
}

/* ---- groups of a norm ---- */
SGK_INLINE void store_some(sgk_dtype t, void *p, int64_t i, int64_t n, vf v)
{
    if (n >= VF) vf_store(t, p, i, v);
    else vf_store_part(t, p, i, n, v);
}

/* The row, or the sum: made in every pass rather than kept, as the row is in the first-level cache by then. */
SGK_INLINE vf summed(sgk_dtype t, bool add, const struct quant_norm_args *n, int64_t row, int64_t d, int64_t left)
{
    const vf x = load_some(t, n->groups.input, row * n->groups.input_stride + d, left);
    return add ? vf_add(x, load_some(t, n->residual, row * n->residual_stride + d, left)) : x;
}

SGK_INLINE void summed2(sgk_dtype t, bool add, const struct quant_norm_args *n, int64_t row, int64_t d, vf *x, vf *y)
{
    vf u, v;
    vf_load_pairs(t, n->groups.input, row * n->groups.input_stride + d, x, y);
    if (!add) return;
    vf_load_pairs(t, n->residual, row * n->residual_stride + d, &u, &v);
    *x = vf_add(*x, u), *y = vf_add(*y, v);
}

/* Elements [first, first + count) of the norm, rounded to the format, with as many of the next rows asked for. `last`: nothing of the row is read after this, and the sum is stored. */
SGK_INLINE void normalise(sgk_dtype t, bool flushed, bool add, bool last, const struct quant_norm_args *n, void *out, int64_t row, int64_t first, int64_t count, vf scale)
{
    const int64_t dim = n->groups.groups * n->groups.group, kept = row * n->residual_stride + first;
    const int64_t next = row * n->groups.input_stride + soon_of(first, dim, n->groups.input_stride), other = row * n->residual_stride + soon_of(first, dim, n->residual_stride);
    int64_t       i = 0;
    for (; i + 2 * VF <= count; i += 2 * VF) {
        vf x, y, g, h;
        vf_prefetch2(t, n->groups.input, next + i);
        if (add) vf_prefetch2(t, n->residual, other + i);
        summed2(t, add, n, row, first + i, &x, &y);
        vf_load_pairs(t, n->weight, first + i, &g, &h);
        vf_store_pairs_of(flushed, t, false, out, i, vf_mul(vf_mul(x, scale), g), vf_mul(vf_mul(y, scale), h));
        if (add && last) vf_store_pairs(t, false, n->residual, kept + i, x, y);
    }
    for (; i < count; i += VF) {
        const vf x = summed(t, add, n, row, first + i, count - i);
        store_some(t, out, i, count - i, vf_mul(vf_mul(x, scale), load_some(t, n->weight, first + i, count - i)));
        if (add && last) store_some(t, n->residual, kept + i, count - i, x);
    }
}

/* Elements of the norm that are kept at a time. */
enum { KEPT = 1024 };

/* Groups that are kept whole are normalised once; the last ones that were begun and are not ended. */
typedef struct {
    _Alignas(64) float normed[2][KEPT];
    batch batches[2];
    int   now;
} norm_batches;

/* A row's last batch ends while the next row is under way. */
SGK_INLINE void norm_short_groups(sgk_dtype t, bool flushed, bool add, bool stream, bool may_look_up, const struct quant_norm_args *n, int64_t row, vf scale, norm_batches *kept)
{
    const struct quant_groups_args *a    = &n->groups;
    const int64_t                   most = KEPT / a->group < TOGETHER ? KEPT / a->group : TOGETHER;
    for (int64_t j = 0, count; j < a->groups; j += count) {
        batch *b = &kept->batches[kept->now];
        count    = a->groups - j < most ? a->groups - j : most;
        b->from = kept->normed[kept->now], b->soon = NULL, b->q = a->q + row * a->q_stride + j * a->group, b->at = 0, b->place = row * a->s_row, b->j = j, b->count = (int)count;
        normalise(t, flushed, add, true, n, kept->normed[kept->now], row, j * a->group, count * a->group, scale);
        batch_begin(false, a, may_look_up, b);
        kept->now = !kept->now;
        if (j) batch_end(t, false, stream, a, &kept->batches[kept->now]);
    }
}

SGK_INLINE void norm_long_groups(sgk_dtype t, bool add, const struct quant_norm_args *n, int64_t row, vf scale)
{
    const struct quant_groups_args *a = &n->groups;
    _Alignas(64) float              normed[KEPT];
    for (int64_t j = 0; j < a->groups; ++j) {
        struct quant_scaling scaling = { 0, 0, 0, 0 };
        float                amax    = 0;
        bool                 finite;
        for (int pass = 0; pass < 2; ++pass) {
            for (int64_t i = 0; i < a->group; i += KEPT) {
                const int64_t count = a->group - i < KEPT ? a->group - i : KEPT, first = j * a->group + i;
                normalise(t, false, add, pass == 1, n, normed, row, first, count, scale);
                if (pass == 0) amax = fmaxf(amax, amax_run(t, normed, 0, count, &finite));
                else encode_scaled(t, false, false, a, &scaling, a->q + row * a->q_stride + first, normed, 0, count);
            }
            if (pass == 0) scaling = quant_group_scaling(amax, a);
        }
        store_scale(a, row * a->s_row, j, scaling);
    }
}

SGK_INLINE void norm_rows(sgk_dtype t, bool flushed, bool add, const struct quant_norm_args *n, int64_t begin, int64_t end)
{
    const struct quant_groups_args *a           = &n->groups;
    const int64_t                   dim         = a->groups * a->group;
    const bool                      lines       = ((int64_t)(uintptr_t)a->q | a->q_stride | a->group) % 64 == 0;
    const bool                      stream      = lines && sgk_cpu_streams(a->q, a->rows, dim, 1);
    const bool                      may_look_up = batches_look_up(a);
    norm_batches                    kept;
    kept.now = 0, kept.batches[0].count = kept.batches[1].count = 0, kept.batches[1].found_scales = false;
    for (int64_t row = begin; row < end; ++row) {
        vf      sum[4] = { vf_zero(), vf_zero(), vf_zero(), vf_zero() };
        int64_t d      = 0;
        for (; d + 4 * VF <= dim; d += 4 * VF) {
            vf x[4];
            summed2(t, add, n, row, d, &x[0], &x[1]), summed2(t, add, n, row, d + 2 * VF, &x[2], &x[3]);
            VF_EACH(i, 4)
            sum[i] = vf_fma(x[i], x[i], sum[i]);
        }
        for (; d < dim; d += VF) {
            const vf x = summed(t, add, n, row, d, dim - d);
            sum[0]     = vf_fma(x, x, sum[0]);
        }
        const vf scale = vf_set(1 / sqrtf(vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3]))) / (float)dim + n->eps));
        batch_end(t, false, stream, a, &kept.batches[!kept.now]);
        if (a->group > KEPT) norm_long_groups(t, add, n, row, scale);
        else norm_short_groups(t, flushed, add, stream, may_look_up, n, row, scale, &kept);
    }
    batch_end(t, false, stream, a, &kept.batches[!kept.now]);
    if (stream) vf_stream_end();
}

/* Without a residual nothing is written that is read: so rows go without a look at what is subnormal, SOME at a time, and once more where something was. */
#if defined(VF_FLUSHES)
enum { SOME = 4096 };
static __attribute__((noinline)) void norm_some(bool flushed, const struct quant_norm_args *n, int64_t begin, int64_t end)
{
    flushed ? norm_rows(SGK_BF16, true, false, n, begin, end) : norm_rows(SGK_BF16, false, false, n, begin, end);
}
SGK_INLINE void norm_bf16(const struct quant_norm_args *n, int64_t begin, int64_t end)
{
    for (int64_t first = begin, last; first < end; first = last) {
        last                  = end - first < 2 * SOME ? end : first + SOME;
        const unsigned before = vf_flush_begin();
        norm_some(true, n, first, last);
        if (!vf_flush_end(before)) norm_some(false, n, first, last);
    }
}
#else
SGK_INLINE void norm_bf16(const struct quant_norm_args *n, int64_t begin, int64_t end) { norm_rows(SGK_BF16, false, false, n, begin, end); }
#endif

void SGK_CPU_FN(quant_norm)(const void *args, int64_t begin, int64_t end)
{
    const struct quant_norm_args *n = args;
    const sgk_dtype               t = n->groups.dtype;
    if (n->residual) t == SGK_F32 ? norm_rows(SGK_F32, false, true, n, begin, end) : t == SGK_F16 ? norm_rows(SGK_F16, false, true, n, begin, end)
                                                                                                  : norm_rows(SGK_BF16, false, true, n, begin, end);
    else t == SGK_F32 ? norm_rows(SGK_F32, false, false, n, begin, end) : t == SGK_F16 ? norm_rows(SGK_F16, false, false, n, begin, end)
                                                                                       : norm_bf16(n, begin, end);
}
