/*
 * The number formats against their definition, written here a second time and slowly: a code's value in double by the format's
 * exponent and fraction; the nearest code by comparing distances to the two neighbours. The compiled conversions are csrc/base/convert.h;
 * the CPU's vector loads and stores and the GPU's are compared with those in the probe family.
 */
#include <math.h>
#include <unistd.h>
#include "base/parallel.h"
#include "harness.h"
#include "sgl_kernel/convert.h"

typedef struct {
    const char *name;
    sgk_dtype   dtype;
    int         exponent, fraction, bias, bits;
    uint32_t    last;                   /* the largest finite code */
    bool        infinities;
} format;

static const format formats[] = {
    { "f16", SGK_F16, 5, 10, 15, 16, 0x7bff, true },
    { "bf16", SGK_BF16, 8, 7, 127, 16, 0x7f7f, true },
    { "e5m2", SGK_E5M2, 5, 2, 15, 8, 0x7b, true },
    { "e4m3", SGK_E4M3, 4, 3, 7, 8, 0x7e, false },
};
enum { FORMATS = sizeof formats / sizeof *formats };

/* The value of a code without sign, also beyond the last one: what the next number would be if the format went on. */
static double value_by_definition(const format *f, uint32_t code)
{
    const int exponent = (int)(code >> f->fraction), fraction = (int)(code & ((1u << f->fraction) - 1));
    if (exponent == 0) return ldexp(fraction, 1 - f->bias - f->fraction);
    return ldexp((1 << f->fraction) + fraction, exponent - f->bias - f->fraction);
}

/* All of them, kept: the exhaustive run asks billions of times. */
static double values[FORMATS][0x8000];
static void fill_values(void)
{
    for (int i = 0; i < FORMATS; ++i)
        for (uint32_t code = 0; code <= formats[i].last + 1; ++code) values[i][code] = value_by_definition(&formats[i], code);
}
static double value_of(const format *f, uint32_t code) { return values[f - formats][code]; }

enum { NOT_A_NUMBER = -1 };

/* The code without sign that a magnitude rounds to. `near` is a first guess and becomes the code at or below the magnitude. */
static int64_t nearest_code(const format *f, double magnitude, uint32_t *near)
{
    if (isnan(magnitude)) return NOT_A_NUMBER;
    const int64_t beyond = f->infinities ? (int64_t)f->last + 1 : NOT_A_NUMBER;
    if (magnitude >= value_of(f, f->last + 1)) return beyond;
    while (*near > 0 && value_of(f, *near) > magnitude) --*near;
    while (*near < f->last && value_of(f, *near + 1) <= magnitude) ++*near;
    const double   below = magnitude - value_of(f, *near), above = value_of(f, *near + 1) - magnitude;
    const uint32_t code = below < above || (below == above && *near % 2 == 0) ? *near : *near + 1;
    return code <= f->last ? code : beyond;
}

static uint32_t encoded(const format *f, float x)
{
    switch (f->dtype) {
    case SGK_F16:  return f32_to_f16(x);
    case SGK_BF16: return f32_to_bf16(x);
    case SGK_E5M2: return f32_to_e5m2(x);
    default:       return f32_to_e4m3(x);
    }
}

static float decoded(const format *f, uint32_t code)
{
    switch (f->dtype) {
    case SGK_F16:  return f16_to_f32((uint16_t)code);
    case SGK_BF16: return bf16_to_f32((uint16_t)code);
    case SGK_E5M2: return e5m2_to_f32((uint8_t)code);
    default:       return e4m3_to_f32((uint8_t)code);
    }
}

static uint32_t sign_bit(const format *f) { return 1u << (f->bits - 1); }

static bool is_nan_code(const format *f, uint32_t code)
{
    const uint32_t magnitude = code & (sign_bit(f) - 1);
    return f->infinities ? magnitude > f->last + 1 : magnitude > f->last;
}

/* The conversion's answer is right: the wanted code with the number's sign, or any NaN. */
static bool right(const format *f, uint32_t got, int64_t want, bool negative)
{
    if (want == NOT_A_NUMBER) return is_nan_code(f, got);
    return got == ((uint32_t)want | (negative ? sign_bit(f) : 0));
}

/* One element of any format. */
typedef union {
    uint16_t code;
    double   f64;
    int64_t  i64;
    float    f32;
    int32_t  i32;
    uint8_t  u8;
    int8_t   i8;
} room;

static void check_decoding(const format *f)
{
    if (!check_case("formats_%s_decode", f->name)) return;
    for (uint32_t code = 0; code < 1u << f->bits; ++code) {
        const uint32_t magnitude = code & (sign_bit(f) - 1);
        const bool     negative  = code != magnitude;
        const float    got       = decoded(f, code);
        const room     stored    = { .code = (uint16_t)code };
        bool           ok;
        if (is_nan_code(f, code)) ok = isnan(got);
        else if (f->infinities && magnitude == f->last + 1) ok = isinf(got) && !signbit(got) == !negative;
        else ok = (double)got == (negative ? -value_of(f, magnitude) : value_of(f, magnitude)) && !signbit(got) == !negative;
        const double general = load_as_f64(&stored, 0, f->dtype);
        ok                   = ok && (isnan(got) ? isnan(general) : (double)got == general);
        /* and back: the same code, or a NaN for a NaN */
        ok = ok && (is_nan_code(f, code) ? is_nan_code(f, encoded(f, got)) && (encoded(f, got) & sign_bit(f)) == (code & sign_bit(f)) : encoded(f, got) == code);
        /* the step from one number to the next, and the largest one, by which verdicts are given */
        ok = ok && (magnitude >= f->last || check_step(f->dtype, got) == value_of(f, magnitude + 1) - value_of(f, magnitude));
        ok = ok && (magnitude != f->last || !f->infinities || check_largest(f->dtype) == value_of(f, magnitude));
        check_that(ok, "code 0x%x becomes %g, and that 0x%x", code, (double)got, encoded(f, got));
        if (!ok) break;
    }
    check_done(0, 0);
}

/* ---- f32 to the format: patterns in ascending order, so that the guess is always close ---- */
typedef struct {
    const format   *f;
    uint32_t        step;
    _Atomic int64_t wrong;              /* a pattern + 1 */
} sweep;

static bool one_pattern(const format *f, uint32_t pattern, uint32_t *near)
{
    const float   x         = f32_from_bits(pattern);
    const double  magnitude = fabs((double)x);
    const bool    negative  = pattern >> 31;
    const int64_t want      = nearest_code(f, magnitude, near);
    if (!right(f, encoded(f, x), want, negative)) return false;
    if (f->dtype != SGK_E4M3 && f->dtype != SGK_E5M2) return true;
    const uint8_t saturated = f->dtype == SGK_E4M3 ? f32_to_e4m3_sat(x) : f32_to_e5m2_sat(x);
    const int64_t beyond    = isnan(x) ? NOT_A_NUMBER : want == NOT_A_NUMBER || want > (int64_t)f->last ? (int64_t)f->last
                                                                                                        : want;
    return right(f, saturated, beyond, negative);
}

static void sweep_range(int64_t begin, int64_t end, void *context)
{
    sweep   *s    = context;
    uint32_t near = 0;
    /* Both signs of a magnitude side by side: the guess stays close. */
    for (int64_t i = begin; i < end && !s->wrong; ++i) {
        const uint32_t magnitude = (uint32_t)(i * s->step);
        if (!one_pattern(s->f, magnitude, &near)) s->wrong = (int64_t)magnitude + 1;
        else if (!one_pattern(s->f, magnitude | 0x80000000u, &near)) s->wrong = (int64_t)(magnitude | 0x80000000u) + 1;
    }
}

static void check_encoding(const format *f)
{
    if (!check_case("formats_%s_encode", f->name)) return;
    sweep         s        = { .f = f, .step = check_exhaustive ? 1 : check_small ? 40961
                                                                                  : 4093 };
    const int64_t patterns = ((int64_t)1 << 31) / s.step;
    if (check_exhaustive) alarm(0);                         /* takes its time */
    sgk_parallel_for(NULL, 0, patterns, 1 << 16, sweep_range, &s);
    if (s.wrong) {
        const uint32_t pattern = (uint32_t)(s.wrong - 1);
        fail("f32 pattern 0x%08x (%.9g) becomes 0x%x", pattern, (double)f32_from_bits(pattern), encoded(f, f32_from_bits(pattern)));
    }
    /* Every number, every middle between two, and the patterns around them. */
    uint32_t near = 0;
    for (uint32_t code = 0; code <= f->last && !case_failed; ++code) {
        const double here = value_of(f, code), middle = (here + value_of(f, code + 1)) / 2;
        const float  places[2] = { (float)here, (float)middle };
        for (int p = 0; p < 2; ++p)
            for (int32_t off = -2; off <= 2; ++off) {
                const uint32_t at      = f32_bits(places[p]);
                const uint32_t pattern = off < 0 && at < (uint32_t)-off ? 0 : at + (uint32_t)off;
                const bool     ok      = one_pattern(f, pattern, &near) && one_pattern(f, pattern | 0x80000000u, &near);
                check_that(ok, "f32 pattern 0x%08x (%.9g) becomes 0x%x", pattern, (double)f32_from_bits(pattern), encoded(f, f32_from_bits(pattern)));
            }
    }
    check_done(0, 0);
}

/* f64 rounds once too: a double that is a hair beside the middle of two codes would round wrongly by way of an f32. */
static void check_from_double(const format *f)
{
    if (!check_case("formats_%s_from_f64", f->name)) return;
    uint32_t near = 0;
    for (uint32_t code = 0; code <= f->last && !case_failed; ++code) {
        const double middle = (value_of(f, code) + value_of(f, code + 1)) / 2;
        const double all[]  = { middle, nextafter(middle, 0), nextafter(middle, INFINITY), middle * (1 + 1e-12), middle * (1 - 1e-12), value_of(f, code) };
        for (size_t i = 0; i < sizeof all / sizeof *all; ++i) {
            room up = { .code = 0 }, down = { .code = 0 };
            store_f64(&up, 0, f->dtype, all[i]);
            store_f64(&down, 0, f->dtype, -all[i]);
            const int64_t want = nearest_code(f, all[i], &near);
            check_that(right(f, up.code, want, false) && right(f, down.code, want, true), "%.17g becomes 0x%x and 0x%x, expected code %lld", all[i], up.code, down.code, (long long)want);
        }
    }
    check_done(0, 0);
}

/* ---- sgk_convert ---- */
static void check_convert(sgk_dtype from, sgk_dtype to, int64_t n)
{
    if (!check_case("formats_convert_%s_to_%s_%lld", check_dtype(from), check_dtype(to), (long long)n)) return;
    check_tensor *x = check_input_dense(from, 2, n, (int64_t)3);
    check_tensor *y = check_output_dense(to, 2, n, (int64_t)3);
    check_legal(x, CHECK_DTYPE);
    check_legal(y, CHECK_DTYPE);
    CHECK_CALL(sgk_convert(T(y), T(x), check_exec));
    check_equal(y);
    for (int64_t i = 0; i < 3 * n && to != from; ++i) {
        room want = { .code = 0 };
        store_f64(&want, 0, to, check_get(x, i));
        const double expected = load_as_f64(&want, 0, to), got = check_result_of(y, i);
        check_that(expected == got || (isnan(expected) && isnan(got)), "element %lld is %g, expected %g", (long long)i, got, expected);
    }
    check_done(0, 0);
}

static void check_convert_wide_integers(void)
{
    if (!check_case("formats_convert_wide_integers")) return;
    int64_t        in[]       = { INT64_MAX, INT64_MIN, ((int64_t)1 << 53) + 1, ((int64_t)1 << 62) + ((int64_t)1 << 38) + 1, -((int64_t)1 << 62) - ((int64_t)1 << 38) - 1, 2147483648, -2147483649 };
    const float    f32_want[] = { 0x1p63f, -0x1p63f, 0x1p53f, 0x1.000002p62f, -0x1.000002p62f, 0x1p31f, -0x1p31f };
    const int32_t  i32_want[] = { INT32_MAX, INT32_MIN, INT32_MAX, INT32_MAX, INT32_MIN, INT32_MAX, INT32_MIN };
    int64_t        n          = sizeof in / sizeof *in;
    float          f32_got[7];
    int32_t        i32_got[7];
    const DLTensor from = { .data = in, .device = { kDLCPU, 0 }, .ndim = 1, .dtype = sgk_dtypes[SGK_I64].dl, .shape = &n };
    DLTensor       to   = from;
    to.data = f32_got, to.dtype = sgk_dtypes[SGK_F32].dl;
    check_that(sgk_convert(&to, &from, NULL) == SGK_OK && !memcmp(f32_got, f32_want, sizeof f32_got), "i64 to f32 rounds twice");
    to.data = i32_got, to.dtype = sgk_dtypes[SGK_I32].dl;
    check_that(sgk_convert(&to, &from, NULL) == SGK_OK && !memcmp(i32_got, i32_want, sizeof i32_got), "i64 to i32 does not stop at the bounds");
    check_done(0, 0);
}

void check_formats(void)
{
    for (sgk_dtype from = 0; from < SGK_DTYPES && first_level; ++from)
        for (sgk_dtype to = 0; to < SGK_DTYPES; ++to)
            if (!check_small || from == to || from == SGK_F32 || to == SGK_F32) check_convert(from, to, check_int(0, 40));
    if (!first_level) return;
    fill_values();
    check_convert_wide_integers();
    for (int f = 0; f < FORMATS; ++f) {
        check_decoding(&formats[f]);
        check_encoding(&formats[f]);
        check_from_double(&formats[f]);
    }
}
