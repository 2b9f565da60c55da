/*
 * Number formats to and from f32 and f64, exact: every conversion rounds once, to nearest, ties to even; NaN stays NaN.
 *
 *            exponent  fraction  bias   infinities   largest
 *   f16          5        10       15      yes         65504
 *   bf16         8         7      127      yes         3.39e38
 *   e5m2         5         2       15      yes         57344
 *   e4m3         4         3        7      no          448        (all ones is NaN)
 *
 * Beyond the largest number f16, bf16 and e5m2 become infinity and e4m3 becomes NaN; the _sat forms give the largest number instead
 * (also for infinities), as quantisers want.
 */
#ifndef SGK_CONVERT_H
#define SGK_CONVERT_H
#include <math.h>
#include <string.h>
#include "base/dtype.h"

static inline uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* f64 to f32 so that a later rounding to a narrower format is the only one that counts: towards zero, with the last bit
 * set when anything was lost ("round to odd"; S. Boldo, G. Melquiond: When double rounding is odd, 2005). */
static inline float f64_to_f32_odd(double d)
{
    const float f = (float)d;
    if (isnan(d) || (double)f == d) return f;
    uint32_t u = f32_bits(f);
    if (isinf(f) || fabs((double)f) > fabs(d)) u -= 1;      /* it was rounded away from zero: step back */
    return f32_from_bits(u | 1);
}

static inline float bf16_to_f32(uint16_t h) { return f32_from_bits((uint32_t)h << 16); }

static inline uint16_t f32_to_bf16(float f)
{
    const uint32_t u = f32_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* A float with `fraction` bits and this bias, from its code without sign. Codes with all exponent bits set are the caller's. */
static inline float small_float(uint32_t code, int fraction, int bias)
{
    const uint32_t exponent = code >> fraction, rest = code & ((1u << fraction) - 1);
    if (exponent) return f32_from_bits((exponent + (uint32_t)(127 - bias)) << 23 | rest << (23 - fraction));
    return (float)rest * f32_from_bits((uint32_t)(128 - bias - fraction) << 23);
}

/* The nearest code without sign of |f|, f finite; may exceed the format's largest: the caller looks. */
static inline uint32_t small_code(uint32_t magnitude, int fraction, int bias)
{
    const int32_t exponent = (int32_t)(magnitude >> 23) - 127 + bias;       /* in the format's terms */
    if (exponent > 0) {
        const int      drop = 23 - fraction;
        const uint32_t code = magnitude - ((uint32_t)(127 - bias) << 23);
        return (code + (1u << (drop - 1)) - 1 + (code >> drop & 1)) >> drop;
    }
    const int drop = 23 - fraction + 1 - exponent;                          /* subnormal in the format */
    if (drop > 25 || magnitude < 0x00800000) return 0;                      /* under half of the least, or a subnormal f32 */
    const uint32_t whole = (magnitude & 0x7fffff) | 0x800000;
    const uint32_t half = 1u << (drop - 1), rest = whole & (2 * half - 1);
    const uint32_t code = drop > 24 ? 0 : whole >> drop;
    return code + (rest > half || (rest == half && (code & 1)));
}

static inline float f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, code = h & 0x7fff;
    const uint32_t u = code >= 0x7c00 ? 0x7f800000 | (code & 0x3ff) << 13 : f32_bits(small_float(code, 10, 15));
    return f32_from_bits(sign | u | ((code > 0x7c00) ? 0x400000u : 0));
}

static inline uint16_t f32_to_f16(float f)
{
    const uint32_t u = f32_bits(f), magnitude = u & 0x7fffffff, sign = u >> 16 & 0x8000;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);          /* 65520 and more */
    return (uint16_t)(sign | small_code(magnitude, 10, 15));
}

static inline float e5m2_to_f32(uint8_t b) { return f16_to_f32((uint16_t)(b << 8)); }

static inline uint8_t f32_to_e5m2(float f)
{
    const uint32_t u = f32_bits(f), magnitude = u & 0x7fffffff, sign = u >> 24 & 0x80;
    if (magnitude > 0x7f800000) return (uint8_t)(sign | 0x7e);
    if (magnitude >= 0x47700000) return (uint8_t)(sign | 0x7c);             /* 61440 and more */
    return (uint8_t)(sign | small_code(magnitude, 2, 15));
}

static inline uint8_t f32_to_e5m2_sat(float f)
{
    const uint8_t b = f32_to_e5m2(f);
    return (b & 0x7f) == 0x7c ? (uint8_t)(b - 1) : b;
}

static inline float e4m3_to_f32(uint8_t b)
{
    const float f = (b & 0x7f) == 0x7f ? NAN : small_float(b & 0x7f, 3, 7);
    return b & 0x80 ? -f : f;
}

static inline uint8_t f32_to_e4m3(float f)
{
    const uint32_t u = f32_bits(f), magnitude = u & 0x7fffffff, sign = u >> 24 & 0x80;
    if (magnitude > 0x43e80000) return (uint8_t)(sign | 0x7f);              /* more than 464; 464 itself is a tie that goes to 448 */
    return (uint8_t)(sign | small_code(magnitude, 3, 7));
}

static inline uint8_t f32_to_e4m3_sat(float f)
{
    return isnan(f) ? f32_to_e4m3(f) : f32_to_e4m3(fminf(fmaxf(f, -448.0f), 448.0f));
}

/* Any float format; integers are read as their value. For references and checks: clarity over speed. */
static inline double load_as_f64(const void *p, int64_t i, sgk_dtype t)
{
    switch (t) {
    case SGK_F32:    return ((const float *)p)[i];
    case SGK_F64:    return ((const double *)p)[i];
    case SGK_F16:    return f16_to_f32(((const uint16_t *)p)[i]);
    case SGK_BF16:   return bf16_to_f32(((const uint16_t *)p)[i]);
    case SGK_E4M3:   return e4m3_to_f32(((const uint8_t *)p)[i]);
    case SGK_E5M2:   return e5m2_to_f32(((const uint8_t *)p)[i]);
    case SGK_I8:     return ((const int8_t *)p)[i];
    case SGK_U8:     return ((const uint8_t *)p)[i];
    case SGK_I32:    return ((const int32_t *)p)[i];
    case SGK_I64:    return (double)((const int64_t *)p)[i];
    case SGK_BOOL:   return ((const uint8_t *)p)[i] != 0;
    case SGK_DTYPES: break;
    }
    return NAN;
}

/* Rounds once. Integers: to nearest even, kept within the format's range, NaN to 0. */
static inline void store_f64(void *p, int64_t i, sgk_dtype t, double v)
{
    switch (t) {
    case SGK_F32:  ((float *)p)[i] = (float)v; break;
    case SGK_F64:  ((double *)p)[i] = v; break;
    case SGK_F16:  ((uint16_t *)p)[i] = f32_to_f16(f64_to_f32_odd(v)); break;
    case SGK_BF16: ((uint16_t *)p)[i] = f32_to_bf16(f64_to_f32_odd(v)); break;
    case SGK_E4M3: ((uint8_t *)p)[i] = f32_to_e4m3(f64_to_f32_odd(v)); break;
    case SGK_E5M2: ((uint8_t *)p)[i] = f32_to_e5m2(f64_to_f32_odd(v)); break;
    case SGK_I8:   ((int8_t *)p)[i] = (int8_t)(isnan(v) ? 0 : rint(fmin(fmax(v, -128), 127))); break;
    case SGK_U8:   ((uint8_t *)p)[i] = (uint8_t)(isnan(v) ? 0 : rint(fmin(fmax(v, 0), 255))); break;
    case SGK_I32:  ((int32_t *)p)[i] = (int32_t)(isnan(v) ? 0 : rint(fmin(fmax(v, -2147483648.0), 2147483647.0))); break;
    case SGK_I64:
        ((int64_t *)p)[i] = isnan(v) ? 0 : v >= 9223372036854775808.0 ? INT64_MAX
                                       : v < -9223372036854775808.0   ? INT64_MIN
                                                                      : (int64_t)rint(v);
        break;
    case SGK_BOOL:   ((uint8_t *)p)[i] = v != 0; break;
    case SGK_DTYPES: break;
    }
}

/* The float formats in f32, for inner loops: t is a constant at every call, so the compiler chooses. */
static inline float load_f32(sgk_dtype t, const void *p, int64_t i)
{
    return t == SGK_F32 ? ((const float *)p)[i] : t == SGK_F16 ? f16_to_f32(((const uint16_t *)p)[i])
                                                               : bf16_to_f32(((const uint16_t *)p)[i]);
}

static inline void store_f32(sgk_dtype t, void *p, int64_t i, float v)
{
    if (t == SGK_F32) ((float *)p)[i] = v;
    else if (t == SGK_F16) ((uint16_t *)p)[i] = f32_to_f16(v);
    else ((uint16_t *)p)[i] = f32_to_bf16(v);
}

/* An index tensor, i32 or i64. */
static inline int64_t load_index(const void *p, int64_t i, sgk_dtype t)
{
    return t == SGK_I32 ? ((const int32_t *)p)[i] : ((const int64_t *)p)[i];
}

#endif
