#include <stdlib.h>
#include <string.h>
#include "check/check.h"
#include "gemm_check.h"
#include "gemm_packed_item.h"
#include "gemm_packed_run.h"

/* As of linear: f32 sums of K products, and one rounding. */
static double tolerance(sgk_dtype out, int64_t depth) { return check_tolerance(out) + 0x1p-22 * sqrt((double)depth); }

/* ---- packing ---------------------------------------------------------------------------------------------------------------------- */

static void check_convert(sgk_dtype dtype, int64_t experts, int64_t columns, int64_t depth)
{
    if (!check_case("convert_weight_packed_%s_%lldx%lldx%lld", check_dtype(dtype), (long long)experts, (long long)columns, (long long)depth)) return;
    const bool    small  = experts == 0 && columns < 16;
    const int64_t wide   = depth + (dtype == SGK_I8 ? 4 : 0);
    check_tensor *weight = experts ? check_input_dense(dtype, 3, experts, columns, depth) : check_input_dense(dtype, 2, columns, depth);
    check_tensor *packed = small ? check_output_dense(SGK_F32, 2, depth, columns) : experts ? check_output_dense(dtype, 3, experts, columns, wide)
                                                                                            : check_output_dense(dtype, 2, columns, wide);
    if (small) check_legal(weight, CHECK_DTYPE);
    CHECK_CALL(sgk_convert_weight_packed(T(packed), T(weight), check_exec));
    check_equal(packed);
    const double n = (double)(columns * depth * (experts ? experts : 1));
    check_done(2 * n * sgk_dtype_size(dtype), 0);
}

static void check_convert_scale(int64_t experts, int64_t columns, int64_t groups)
{
    if (!check_case("convert_scale_packed_%lldx%lldx%lld", (long long)experts, (long long)columns, (long long)groups)) return;
    check_tensor *scale  = experts ? check_index(SGK_U8, 0, 255, 3, experts, columns, groups) : check_index(SGK_U8, 0, 255, 2, columns, groups);
    check_tensor *packed = experts ? check_output_dense(SGK_U8, 3, experts, columns, groups) : check_output_dense(SGK_U8, 2, columns, groups);
    CHECK_CALL(sgk_convert_scale_packed(T(packed), T(scale), check_exec));
    check_equal(packed);
    check_done(2 * (double)(columns * groups), 0);
}

typedef struct {
    int64_t experts, columns, depth, group;
    bool    gptq;
} int4_case;

/* Words of 32 random bits. */
static check_tensor *words(int64_t experts, int64_t rows, int64_t columns)
{
    check_tensor *t = experts ? check_index(SGK_I32, INT32_MIN, INT32_MAX, 3, experts, rows, columns) : check_index(SGK_I32, INT32_MIN, INT32_MAX, 2, rows, columns);
    return t;
}

static void check_convert_int4(int4_case c, sgk_dtype scales_dtype)
{
    if (!check_case("convert_weight_packed_scale_zp_%s_%s_%lldx%lldx%lld_by_%lld", c.gptq ? "gptq" : "awq", check_dtype(scales_dtype), (long long)c.experts, (long long)c.columns,
                    (long long)c.depth, (long long)c.group)) return;
    const int64_t groups = c.depth / c.group, part = int4_part(c.group), blocks = c.columns / 32;
    check_tensor *weight = c.gptq ? words(c.experts, c.depth / 8, c.columns) : words(c.experts, c.depth, c.columns / 8);
    check_tensor *zeros  = words(c.experts, groups, c.columns / 8);
    check_tensor *scales = c.experts ? check_input_dense(scales_dtype, 3, c.experts, groups, c.columns) : check_input_dense(scales_dtype, 2, groups, c.columns);
    check_tensor *packed, *packed_zeros, *packed_scales;
    if (c.experts) {
        packed        = check_output_dense(SGK_U8, 4, c.experts, blocks, c.depth / part, int4_part_bytes(c.group));
        packed_zeros  = check_output_dense(SGK_I8, 4, c.experts, blocks, groups, (int64_t)32);
        packed_scales = check_output_dense(SGK_F32, 4, c.experts, blocks, groups, (int64_t)32);
    } else {
        packed        = check_output_dense(SGK_U8, 3, blocks, c.depth / part, int4_part_bytes(c.group));
        packed_zeros  = check_output_dense(SGK_I8, 3, blocks, groups, (int64_t)32);
        packed_scales = check_output_dense(SGK_F32, 3, blocks, groups, (int64_t)32);
    }
    check_legal(scales, CHECK_DTYPE);
    CHECK_CALL(sgk_convert_weight_packed_scale_zp(T(packed), T(packed_zeros), T(packed_scales), T(weight), T(zeros), T(scales), c.gptq, check_exec));
    check_equal(packed);
    check_equal(packed_zeros);
    check_equal(packed_scales);
    check_done((double)(c.columns * c.depth), 0);
}

/* ---- products --------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t m, n, k;
} shape;

/* A packed weight is any bytes of its format: the reference reads them where the layout says. */
static check_tensor *weight_of(sgk_dtype dtype, bool packed, int64_t n, int64_t k)
{
    return packed ? check_input_dense(dtype, 2, n, k) : check_input(dtype, 2, n, k);
}

static void check_linear(sgk_dtype dtype, shape s, bool packed, bool bias_given)
{
    if (!check_case("weight_packed_linear_%s_%lldx%lldx%lld%s%s", check_dtype(dtype), (long long)s.m, (long long)s.n, (long long)s.k, packed ? "" : "_plain", bias_given ? "_bias" : "")) return;
    check_tensor *mat1 = check_input(dtype, 2, s.m, s.k);
    check_tensor *mat2 = weight_of(dtype, packed, s.n, s.k);
    check_tensor *bias = bias_given ? check_input(SGK_F32, 1, s.n) : NULL;
    check_tensor *out  = check_output(dtype, 2, s.m, s.n);
    check_legal(mat1, CHECK_NDIM);
    check_legal(out, CHECK_NDIM);
    if (bias) check_legal(bias, CHECK_NULL);
    CHECK_CALL(sgk_weight_packed_linear(T(out), T(mat1), T(mat2), T(bias), packed, check_exec));
    check_close_sums(out, tolerance(dtype, s.k), s.k);
    const double m = (double)s.m, n = (double)s.n, k = (double)s.k;
    check_done((m * k + n * k + m * n) * sgk_dtype_size(dtype), 2 * m * n * k);
}

static void check_small_linear(sgk_dtype dtype, shape s)
{
    if (!check_case("weight_packed_linear_%s_small_%lldx%lldx%lld", check_dtype(dtype), (long long)s.m, (long long)s.n, (long long)s.k)) return;
    check_tensor *mat1 = check_input(dtype, 3, (int64_t)2, s.m, s.k);
    check_tensor *mat2 = check_input_dense(SGK_F32, 2, s.k, s.n);
    check_tensor *bias = check_input(SGK_F32, 1, s.n);
    check_tensor *out  = check_output(dtype, 3, (int64_t)2, s.m, s.n);
    check_legal(mat1, CHECK_NDIM);
    check_legal(out, CHECK_NDIM);
    check_legal(bias, CHECK_NULL);
    CHECK_CALL(sgk_weight_packed_linear(T(out), T(mat1), T(mat2), T(bias), true, check_exec));
    check_close_sums(out, tolerance(dtype, s.k), s.k);
    check_done(0, 0);
}

static void check_sigmoid(sgk_dtype dtype, int64_t rows, int64_t depth, int64_t columns)
{
    if (!check_case("fused_linear_sigmoid_mul_%s_%lldx%lld_%lld", check_dtype(dtype), (long long)rows, (long long)depth, (long long)columns)) return;
    check_tensor *mat1 = check_input(dtype, 2, rows, depth);
    check_tensor *mat2 = check_input_dense(SGK_F32, 2, depth, (int64_t)1);
    check_tensor *bias = check_input(SGK_F32, 1, (int64_t)1);
    check_tensor *by   = check_input(dtype, 2, rows, columns);
    check_tensor *out  = check_output(dtype, 2, rows, columns);
    for (int64_t k = 0; k < depth; ++k) check_set(mat2, k, check_normal() / sqrt((double)depth));
    check_legal(bias, CHECK_NULL);
    check_legal(mat2, CHECK_STRIDE);
    CHECK_CALL(sgk_fused_linear_sigmoid_mul(T(out), T(mat1), T(mat2), T(bias), true, T(by), check_exec));
    check_close(out, check_tolerance(dtype) + 0x1p-19 * sqrt((double)depth));         /* the sum is an exponent */
    check_done((double)(rows * (depth + 2 * columns)) * sgk_dtype_size(dtype), 2 * (double)(rows * depth));
}

/* Where the sigmoid is 1, or next to 0: below f32's normal numbers it may be 0. */
static void check_sigmoid_end(sgk_dtype dtype, double sum)
{
    if (!check_case("fused_linear_sigmoid_mul_%s_of_%g", check_dtype(dtype), sum)) return;
    check_tensor *mat1            = check_values(dtype, (double[]){ sum / 2, sum / 2 }, 2, (int64_t)1, (int64_t)2);
    check_tensor *mat2            = check_values(SGK_F32, (double[]){ 1, 1 }, 2, (int64_t)2, (int64_t)1);
    check_tensor *by              = check_values(dtype, (double[]){ 1, -1, 0.5 }, 2, (int64_t)1, (int64_t)3);
    check_tensor *out             = check_output(dtype, 2, (int64_t)1, (int64_t)3);
    check_switches.keep_arguments = true;
    CHECK_CALL(sgk_fused_linear_sigmoid_mul(T(out), T(mat1), T(mat2), NULL, true, T(by), check_exec));
    check_max(out, 0x1p-126);
    check_done(0, 0);
}

static void check_bmm(sgk_dtype dtype, bool e4m3, int64_t batch, shape s, bool packed)
{
    if (!check_case("bmm_cpu_%s%s_%lldx%lldx%lldx%lld%s", check_dtype(dtype), e4m3 ? "_e4m3" : "", (long long)batch, (long long)s.m, (long long)s.n, (long long)s.k, packed ? "" : "_plain")) return;
    const sgk_dtype weights = e4m3 ? SGK_E4M3 : dtype;
    check_tensor   *mat1    = check_input(dtype, 3, batch, s.m, s.k);
    check_tensor   *mat2    = packed ? check_input_dense(weights, 3, batch, s.n, s.k) : check_input(weights, 3, batch, s.n, s.k);
    check_tensor   *scale   = e4m3 ? check_input(SGK_F32, 0) : NULL;
    check_tensor   *out     = check_output(dtype, 3, batch, s.m, s.n);
    if (scale) check_set(scale, 0, 0.75), check_legal(scale, CHECK_NULL);
    if (e4m3) check_legal(mat2, CHECK_DTYPE);
    CHECK_CALL(sgk_bmm_cpu(T(out), T(mat1), T(mat2), packed, T(scale), check_exec));
    check_close_sums(out, tolerance(dtype, s.k), s.k);
    const double b = (double)batch, m = (double)s.m, n = (double)s.n, k = (double)s.k;
    check_done(b * ((m * k + m * n) * sgk_dtype_size(dtype) + n * k * sgk_dtype_size(weights)), 2 * b * m * n * k);
}

/* The sums behind the columns of a packed i8 weight have to be true: packs random rows by the layout's words. */
static check_tensor *i8_weight(bool packed, int64_t n, int64_t k)
{
    if (!packed) return check_index(SGK_I8, -128, 127, 2, n, k);
    check_tensor *t = check_index(SGK_I8, -128, 127, 2, n, k + 4);
    for (int64_t block = 0; block * 32 < n; ++block) {
        const int64_t r = packed_least(32, n - block * 32), first = packed_block_at(WEIGHT_I8, block, k, 0);
        for (int64_t c = 0; c < r; ++c) {
            int32_t sum = 0;
            for (int64_t i = 0; i < k; ++i) sum += (int32_t)check_get(t, first + packed_element_at(WEIGHT_I8, i, c, r, k, 0));
            for (int64_t i = 0; i < 4; ++i) check_set(t, first + r * k + c * 4 + i, (double)(int8_t)(uint8_t)((uint32_t)sum >> (8 * i) & 255));
        }
    }
    return t;
}

static check_tensor *positive(int64_t n)
{
    check_tensor *t = check_input_dense(SGK_F32, 2, n, (int64_t)1);
    for (int64_t i = 0; i < n; ++i) check_set(t, i, 0.01 + 0.02 * fabs(check_normal()));
    return t;
}

static void check_int8(sgk_dtype out_dtype, shape s, bool packed, bool bias_given)
{
    if (!check_case("int8_scaled_mm_cpu_%s_%lldx%lldx%lld%s%s", check_dtype(out_dtype), (long long)s.m, (long long)s.n, (long long)s.k, packed ? "" : "_plain", bias_given ? "_bias" : "")) return;
    check_tensor *mat1    = check_index(SGK_U8, 0, 255, 2, s.m, s.k);
    check_tensor *mat2    = i8_weight(packed, s.n, s.k);
    check_tensor *scales1 = positive(s.m), *scales2 = positive(s.n);
    check_tensor *bias = bias_given ? check_input(SGK_F32, 1, s.n) : NULL;
    check_tensor *out  = check_output(out_dtype, 2, s.m, s.n);
    check_legal(scales1, CHECK_NDIM);
    check_legal(scales2, CHECK_NDIM);
    check_legal(out, CHECK_DTYPE);
    if (bias) check_legal(bias, CHECK_NULL);
    CHECK_CALL(sgk_int8_scaled_mm_cpu(T(out), T(mat1), T(mat2), T(scales1), T(scales2), T(bias), packed, check_exec));
    check_close_least(out, check_tolerance(out_dtype), bias_given);         /* the bias may cancel the sum */
    const double m = (double)s.m, n = (double)s.n, k = (double)s.k;
    check_done(m * k + n * k + m * n * sgk_dtype_size(out_dtype), 2 * m * n * k);
}

static void check_int8_quant(sgk_dtype dtype, shape s, bool packed)
{
    if (!check_case("int8_scaled_mm_with_quant_%s_%lldx%lldx%lld%s", check_dtype(dtype), (long long)s.m, (long long)s.n, (long long)s.k, packed ? "" : "_plain")) return;
    check_tensor *mat1    = check_input(dtype, 2, s.m, s.k);
    check_tensor *mat2    = i8_weight(packed, s.n, s.k);
    check_tensor *scales2 = positive(s.n);
    check_tensor *bias    = check_input(SGK_F32, 1, s.n);
    check_tensor *out     = check_output(dtype, 2, s.m, s.n);
    check_legal(mat1, CHECK_DTYPE);
    check_legal(scales2, CHECK_NDIM);
    check_legal(out, CHECK_DTYPE);
    check_legal(bias, CHECK_NULL);
    CHECK_CALL(sgk_int8_scaled_mm_with_quant(T(out), T(mat1), T(mat2), T(scales2), T(bias), packed, check_exec));
    check_close_least(out, check_tolerance(dtype), 1);
    const double m = (double)s.m, n = (double)s.n, k = (double)s.k;
    check_done((m * k + m * n) * sgk_dtype_size(dtype) + n * k, 2 * m * n * k);
}

static void check_fp8(sgk_dtype dtype, shape s, int64_t block_n, int64_t block_k, bool packed)
{
    if (!check_case("fp8_scaled_mm_cpu_%s_%lldx%lldx%lld_by_%lldx%lld%s", check_dtype(dtype), (long long)s.m, (long long)s.n, (long long)s.k, (long long)block_n, (long long)block_k,
                    packed ? "" : "_plain")) return;
    const int64_t block[] = { block_n, block_k };
    check_tensor *mat1    = check_input(dtype, 2, s.m, s.k);
    check_tensor *mat2    = weight_of(SGK_E4M3, packed, s.n, s.k);
    check_tensor *scales2 = check_input_dense(SGK_F32, 2, packed_ceil(s.n, block_n), packed_ceil(s.k, block_k));
    check_tensor *bias    = check_input(SGK_F32, 1, s.n);
    check_tensor *out     = check_output(dtype, 2, s.m, s.n);
    check_legal(mat1, CHECK_DTYPE);
    check_legal(out, CHECK_DTYPE);
    check_legal(bias, CHECK_NULL);
    CHECK_CALL(sgk_fp8_scaled_mm_cpu(T(out), T(mat1), T(mat2), T(scales2), block, 2, T(bias), packed, check_exec));
    check_close_sums(out, tolerance(dtype, s.k), s.k);
    const double m = (double)s.m, n = (double)s.n, k = (double)s.k;
    check_done((m * k + m * n) * sgk_dtype_size(dtype) + n * k, 2 * m * n * k);
}

/* Every code of e4m3, zeros, subnormal numbers and NaN among them, by a row of ones: exact. */
static void check_fp8_codes(sgk_dtype dtype)
{
    if (!check_case("fp8_scaled_mm_cpu_%s_codes", check_dtype(dtype))) return;
    const int64_t block[] = { 32, 32 };
    check_tensor *mat1    = check_input(dtype, 2, (int64_t)2, (int64_t)2);
    check_tensor *mat2    = check_input_dense(SGK_E4M3, 2, (int64_t)256, (int64_t)2);
    check_tensor *scales2 = check_input_dense(SGK_F32, 2, (int64_t)8, (int64_t)1);
    check_tensor *out     = check_output(SGK_F32, 2, (int64_t)2, (int64_t)256);
    for (int64_t i = 0; i < 4; ++i) check_set(mat1, i, i % 2 ? 0 : 1);
    for (int64_t i = 0; i < 8; ++i) check_set(scales2, i, 1);
    for (int64_t i = 0; i < 512; ++i) check_set_code(mat2, i, (uint32_t)(i / 64 * 32 + i % 32));     /* both elements of a pair */
    check_legal(mat1, CHECK_DTYPE);
    check_legal(out, CHECK_DTYPE);
    CHECK_CALL(sgk_fp8_scaled_mm_cpu(T(out), T(mat1), T(mat2), T(scales2), block, 2, NULL, true, check_exec));
    check_max(out, 0);
    check_done(0, 0);
}

static void check_mxfp4(sgk_dtype dtype, shape s, bool packed)
{
    if (!check_case("mxfp4_scaled_mm_cpu_%s_%lldx%lldx%lld%s", check_dtype(dtype), (long long)s.m, (long long)s.n, (long long)s.k, packed ? "" : "_plain")) return;
    check_tensor *mat1    = check_input(dtype, 2, s.m, s.k);
    check_tensor *mat2    = check_index(SGK_U8, 0, 255, 2, s.n, s.k / 2);
    check_tensor *scales2 = check_index(SGK_U8, 120, 130, 2, s.n, s.k / 32);
    check_tensor *bias    = check_input(SGK_F32, 1, s.n);
    check_tensor *out     = check_output(dtype, 2, s.m, s.n);
    if (s.n * s.k >= 128) check_set(scales2, 1, 0), check_set(scales2, 2, s.n % 2 ? 100 : 255);
    check_legal(mat1, CHECK_DTYPE);
    check_legal(scales2, CHECK_NDIM | (s.k ? 0 : CHECK_SIZE(0)));
    check_legal(out, CHECK_DTYPE);
    check_legal(bias, CHECK_NULL);
    CHECK_CALL(sgk_mxfp4_scaled_mm_cpu(T(out), T(mat1), T(mat2), T(scales2), T(bias), packed, check_exec));
    check_close_sums(out, tolerance(dtype, s.k), s.k);
    const double m = (double)s.m, n = (double)s.n, k = (double)s.k;
    check_done((m * k + m * n) * sgk_dtype_size(dtype) + n * k / 2, 2 * m * n * k);
}

/* Weights that are packed by the layout's words, with true sums. */
static void check_int4(sgk_dtype dtype, shape s, int64_t group)
{
    if (!check_case("int4_scaled_mm_cpu_%s_%lldx%lldx%lld_by_%lld", check_dtype(dtype), (long long)s.m, (long long)s.n, (long long)s.k, (long long)group)) return;
    const int64_t part = int4_part(group), bytes = int4_part_bytes(group), blocks = s.n / 32, groups = s.k / group;
    check_tensor *x      = check_input(dtype, 2, s.m, s.k);
    check_tensor *w      = check_index(SGK_U8, 0, 255, 3, blocks, s.k / part, bytes);
    check_tensor *zeros  = check_index(SGK_I8, 0, 16, 3, blocks, groups, (int64_t)32);
    check_tensor *scales = check_input_dense(SGK_F32, 3, blocks, groups, (int64_t)32);
    check_tensor *bias   = check_input(SGK_F32, 1, s.n);
    check_tensor *out    = check_output(dtype, 2, s.m, s.n);
    for (int64_t b = 0; b < blocks; ++b)
        for (int64_t p = 0; p < s.k / part; ++p)
            for (int64_t c = 0; c < 32; ++c) {
                const int64_t first = (b * (s.k / part) + p) * bytes, zero = (int64_t)check_get(zeros, (b * groups + p * part / group) * 32 + c);
                int32_t       sum = 0;
                for (int64_t k = 0; k < part; ++k) sum += ((int)check_get(w, first + packed_element_at(WEIGHT_INT4, k, c, 32, s.k, group)) >> (c / 16 * 4) & 15) - (int32_t)zero;
                for (int64_t i = 0; i < 4; ++i) check_set(w, first + 16 * part + c * 4 + i, (double)((uint32_t)sum >> (8 * i) & 255));
            }
    check_legal(x, CHECK_DTYPE);
    check_legal(out, CHECK_DTYPE);
    check_legal(bias, CHECK_NULL);
    CHECK_CALL(sgk_int4_scaled_mm_cpu(T(out), T(x), T(w), T(zeros), T(scales), T(bias), check_exec));
    check_close_least(out, tolerance(dtype, s.k), 1);
    const double m = (double)s.m, n = (double)s.n, k = (double)s.k;
    check_done((m * k + m * n) * sgk_dtype_size(dtype) + n * k / 2, 2 * m * n * k);
}

/* ---- qkv_proj_with_rope ----------------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t tokens, depth, heads, q_rank, kv_rank, nope, rope;
} mla_shape;

enum { PLAIN_KIND,
       INT8_KIND,
       FP8_KIND };

/* Weights of about 1 / sqrt(depth), so that what follows is about 1. */
static check_tensor *mla_weight(int kind, sgk_dtype dtype, int64_t rows, int64_t depth)
{
    if (kind == INT8_KIND) return i8_weight(true, rows, depth);
    check_tensor *t = check_input_dense(kind == FP8_KIND ? SGK_E4M3 : dtype, 2, rows, depth);
    for (int64_t i = 0; i < rows * depth; ++i) check_set(t, i, check_normal() * (kind == FP8_KIND ? 1 : 0.1));
    return t;
}

static check_tensor *mla_scale(int kind, int64_t rows, int64_t depth)
{
    if (kind == PLAIN_KIND) return NULL;
    check_tensor *t = kind == INT8_KIND ? check_input_dense(SGK_F32, 2, rows, (int64_t)1) : check_input_dense(SGK_F32, 2, packed_ceil(rows, 64), packed_ceil(depth, 128));
    const int64_t n = kind == INT8_KIND ? rows : packed_ceil(rows, 64) * packed_ceil(depth, 128);
    for (int64_t i = 0; i < n; ++i) check_set(t, i, kind == INT8_KIND ? 0.001 + 0.0005 * fabs(check_normal()) : 0.1 + 0.02 * check_normal());
    if (kind == INT8_KIND) check_legal(t, CHECK_NDIM);
    return t;
}

static check_tensor *mla_normal(sgk_dtype dtype, int64_t rows, int64_t columns)
{
    check_tensor *t = rows < 0 ? check_input(dtype, 1, columns) : check_input(dtype, 2, rows, columns);         /* rows < 0: one dimension */
    for (int64_t i = 0; i < (rows < 0 ? 1 : rows) * columns; ++i) check_set(t, i, check_normal());
    return t;
}

static void check_qkv(sgk_dtype dtype, int kind, bool latent_e4m3, bool fused, mla_shape s)
{
    static const char *const kinds[] = { "", "_int8", "_fp8" };
    if (!check_case("qkv_proj_with_rope%s_%s%s%s_%lldx%lld_%lld_%lld_%lld_%lld_%lld", fused ? "_fused_weight" : "", check_dtype(dtype), kinds[kind], latent_e4m3 ? "_e4m3" : "",
                    (long long)s.tokens, (long long)s.depth, (long long)s.heads, (long long)s.q_rank, (long long)s.kv_rank, (long long)s.nope, (long long)s.rope)) return;
    const int64_t block[] = { 64, 128 }, wide = s.kv_rank + s.rope, q_wide = s.heads * (s.nope + s.rope), rows = 50, first = fused ? s.q_rank + wide : s.q_rank;
    check_tensor *hidden = mla_normal(dtype, s.tokens, s.depth);
    check_tensor *q_a = mla_weight(kind, dtype, first, s.depth), *q_b = mla_weight(kind, dtype, q_wide, s.q_rank), *kv_a = fused ? NULL : mla_weight(kind, dtype, wide, s.depth);
    check_tensor *w_kc = check_input_dense(latent_e4m3 ? SGK_E4M3 : dtype, 3, s.heads, s.kv_rank, s.nope);
    for (int64_t i = 0; i < s.heads * s.kv_rank * s.nope; ++i) check_set(w_kc, i, check_normal());
    check_tensor *q_norm = mla_normal(dtype, -1, s.q_rank), *kv_norm = mla_normal(dtype, -1, s.kv_rank), *cos_sin = mla_normal(dtype, rows, s.rope);
    check_tensor *positions = check_index(SGK_I64, 0, rows - 1, 1, s.tokens);
    check_tensor *q_a_scale = mla_scale(kind, first, s.depth), *q_b_scale = mla_scale(kind, q_wide, s.q_rank), *kv_a_scale = fused ? NULL : mla_scale(kind, wide, s.depth);
    check_tensor *w_scale = latent_e4m3 ? check_input(SGK_F32, 0) : NULL;
    if (w_scale) check_set(w_scale, 0, 0.5), check_legal(w_scale, CHECK_NULL);
    check_legal(positions, CHECK_DATA);
    check_legal(cos_sin, CHECK_SIZE(0));
    check_tensor *q_input = check_output(dtype, 3, s.tokens, s.heads, wide), *k_input = check_output(dtype, 3, s.tokens, (int64_t)1, wide);
#define OPTIONS &(sgk_qkv_proj_options){ \
    .size = sizeof(sgk_qkv_proj_options), .eps = 1e-6, .use_int8_w8a8 = kind == INT8_KIND, .use_fp8_w8a16 = kind == FP8_KIND, .q_a_proj_scale = T(q_a_scale), .q_b_proj_scale = T(q_b_scale), .kv_a_proj_scale = T(kv_a_scale), .w_scale = T(w_scale), .is_vnni = true, .block_size = block, .block_count = 2, .q_lora_rank = s.q_rank, .kv_lora_rank = s.kv_rank, .qk_rope_head_dim = s.rope \
}
    if (fused) {
        CHECK_CALL(sgk_qkv_proj_with_rope_fused_weight(T(q_input), T(k_input), T(hidden), T(q_a), T(q_b), T(w_kc), T(q_norm), T(kv_norm), T(positions), T(cos_sin), OPTIONS, check_exec));
    } else {
        CHECK_CALL(sgk_qkv_proj_with_rope(T(q_input), T(k_input), T(hidden), T(q_a), T(q_b), T(kv_a), T(w_kc), T(q_norm), T(kv_norm), T(positions), T(cos_sin), OPTIONS, check_exec));
    }
#undef OPTIONS
    /* Four roundings behind each other; a step of a quantiser where its input's last bit differs. */
    check_close(q_input, 4 * tolerance(dtype, s.depth) + (kind == INT8_KIND ? 2e-3 : 0));
    check_close(k_input, 3 * tolerance(dtype, s.depth));
    check_done(0, 0);
}

static sgk_status packed_linear_product(const DLTensor *out, const DLTensor *input, const DLTensor *weight, const DLTensor *input_scales, const DLTensor *weight_scales,
                                        const sgk_exec *exec)
{
    (void)input_scales, (void)weight_scales;
    return sgk_weight_packed_linear(out, input, weight, NULL, true, exec);
}

static void check_invariant(sgk_dtype dtype, int64_t columns, int64_t depth)
{
    if (!check_case("weight_packed_linear_%s_batch_invariant_%lldx%lld", check_dtype(dtype), (long long)columns, (long long)depth)) return;
    check_switches.batch_invariant = SGK_ON;
    check_switches.keep_arguments  = true;
    check_tensor *mat1             = check_input_dense(dtype, 2, (int64_t)INVARIANT_ROWS, depth);
    check_tensor *mat2             = check_input_dense(dtype, 2, columns, depth);
    check_tensor *out              = check_output(dtype, 2, (int64_t)INVARIANT_ROWS, columns);
    check_tensor *alone            = check_output(dtype, 2, (int64_t)INVARIANT_ALONE, columns);
    CHECK_CALL(check_all_and_alone(packed_linear_product, true, T(out), T(alone), T(mat1), T(mat2), NULL, NULL, check_exec));
    check_close_sums(out, tolerance(dtype, depth), depth);
    check_same_alone(out, alone, columns);
    check_done(0, 0);
}

#if defined(__x86_64__)
sgk_cpu_fn packed_avx512bf16, packed_strips_avx512bf16, packed_amx, packed_strips_amx, packed_amx_model, packed_strips_amx_model;

static void *random_bytes(int64_t n, int least, int most)
{
    uint8_t *p = malloc((size_t)n + 64);
    for (int64_t i = 0; p && i < n; ++i) p[i] = (uint8_t)check_int(least, most);
    return p;
}

static void *random_bf16(int64_t n)
{
    uint16_t *p = malloc((size_t)n * 2 + 64);
    for (int64_t i = 0; p && i < n; ++i) p[i] = f32_to_bf16((float)check_normal());
    return p;
}

/* The version for AMX, with its tiles in C wherever AVX512_BF16 is, and as it is where AMX is, beside that for AVX512_BF16. */
static void check_tiles(int32_t format, shape s, bool plain, int64_t row_blocks)
{
    static const char *const names[] = { [WEIGHT_BF16] = "bf16", [WEIGHT_E4M3] = "e4m3", [WEIGHT_I8] = "i8", [WEIGHT_MXFP4] = "mxfp4", [WEIGHT_INT4] = "int4" };
    if (check_on_gpu() || (sgk_cpu_flags() & SGK_CPU_AVX512BF16) != SGK_CPU_AVX512BF16) return;
    const bool  amx = sgk_cpu_flags() == SGK_CPU_AMX, quantise = format == WEIGHT_INT4;
    const char *op = format == WEIGHT_I8 ? "int8_scaled_mm_cpu" : format == WEIGHT_INT4 ? "int4_scaled_mm_cpu"
                                                              : format == WEIGHT_E4M3   ? "fp8_scaled_mm_cpu"
                                                              : format == WEIGHT_MXFP4  ? "mxfp4_scaled_mm_cpu"
                                                                                        : "weight_packed_linear";
    if (!check_case("%s_tiles_%s_%s_%lldx%lldx%lld%s", op, amx ? "amx" : "model", names[format], (long long)s.m, (long long)s.n, (long long)s.k, plain ? "_plain" : "")) return;
    const int64_t      group = format == WEIGHT_INT4 ? 64 : format == WEIGHT_MXFP4 ? 32
                                                        : format == WEIGHT_E4M3    ? 96
                                                                                   : 0,
                       wide  = s.n * (s.k + 132) * 2;
    struct packed_args a     = {
        .input         = format == WEIGHT_I8 ? random_bytes(s.m * s.k, 0, 255) : random_bf16(s.m * s.k),
        .weight        = format == WEIGHT_BF16 ? random_bf16(wide / 2) : random_bytes(wide, 0, format == WEIGHT_E4M3 ? 0x70 : 255),
        .scale         = format == WEIGHT_MXFP4 ? random_bytes(s.n * s.k, 120, 130) : malloc((size_t)(s.n * (s.k + 64)) * 4),
        .zeros         = random_bytes(s.n * s.k, 0, 16),
        .batch         = 1,
        .rows          = s.m,
        .columns       = s.n,
        .depth         = s.k,
        .out_stride    = s.n,
        .input_stride  = s.k,
        .weight_stride = s.k,
        .group_n       = 32,
        .group_k       = group,
        .dtype         = format == WEIGHT_I8 ? SGK_U8 : SGK_BF16,
        .out_dtype     = SGK_F32,
        .bias_dtype    = SGK_F32,
        .format        = format,
        .plain         = plain,
    };
    for (int64_t i = 0; i < s.n * (s.k + 64) && format != WEIGHT_MXFP4; ++i) ((float *)a.scale)[i] = 1 + 0.1f * (float)check_normal();
    if (format == WEIGHT_BF16) free((void *)a.scale), a.scale = NULL;
    float *out[2] = { malloc((size_t)(s.m * s.n) * 4), malloc((size_t)(s.m * s.n) * 4) };
    for (int tiles = 0; tiles < 2; ++tiles) {
        a.out                      = out[tiles];
        struct packed_cpu_args cpu = packed_plan(&a, quantise, tiles, check_exec);
        cpu.row_blocks = row_blocks, cpu.parts = 1, cpu.items = packed_ceil(s.n, cpu.group) * row_blocks;
        cpu.part_scratch   = (packed_panels(&cpu) + 1) * PACKED_PANEL_BYTES + (s.m + 1) * cpu.group * 4;
        char *const memory = malloc(packed_plan_bytes(&cpu) + 64);
        char *const placed = memory + (64 - (uintptr_t)memory % 64) % 64;
        memset(memory, 0xff, packed_plan_bytes(&cpu) + 64);             /* NaN in the rows that nobody writes */
        packed_plan_place(&cpu, placed);
        int64_t strips = 0;
        for (int64_t i = 0; i < row_blocks; ++i) strips += packed_strip_count(&cpu, packed_share(s.m, i + 1, row_blocks) - packed_share(s.m, i, row_blocks));
        (!tiles ? packed_strips_avx512bf16 : amx ? packed_strips_amx
                                                 : packed_strips_amx_model)(&cpu, 0, strips);
        (!tiles ? packed_avx512bf16 : amx ? packed_amx
                                          : packed_amx_model)(&cpu, 0, 1);
        free(memory);
    }
    double off = 0, all = 0;
    for (int64_t i = 0; i < s.m * s.n; ++i) off += pow((double)out[0][i] - (double)out[1][i], 2), all += pow((double)out[0][i], 2);
    const double limit = format == WEIGHT_I8 || format == WEIGHT_INT4 ? 0 : 1e-5;
    check_that(sqrt(off) <= limit * sqrt(all), "the tiles' result is %.3g off, allowed %.3g", sqrt(off / all), limit);
    free((void *)a.input), free((void *)a.weight), free((void *)a.scale), free((void *)a.zeros), free(out[0]), free(out[1]);
    check_done(0, 0);
}
#endif

static void check_refused(void)
{
    if (!check_case("weight_packed_linear_refused")) return;
    check_tensor *mat1 = check_input(SGK_BF16, 2, (int64_t)3, (int64_t)8), *wide = check_input_dense(SGK_F32, 2, (int64_t)8, (int64_t)16);
    check_tensor *gaps = check_input(SGK_BF16, 2, (int64_t)16, (int64_t)8), *out = check_output(SGK_BF16, 2, (int64_t)3, (int64_t)16);
    CHECK_REFUSED(SGK_BAD_ARG, "expected fewer than 16", sgk_weight_packed_linear(T(out), T(mat1), T(wide), NULL, true, check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "mat2", sgk_weight_packed_linear(T(out), T(mat1), T(gaps), NULL, true, check_exec));
    check_done(0, 0);
}

void check_packed(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 }, all[] = { SGK_F32, SGK_F16, SGK_BF16, SGK_E4M3, SGK_I8, SGK_U8 };
    for (size_t f = 0; f < sizeof all / sizeof *all; ++f) {
        check_convert(all[f], 0, 70, 33);
        check_convert(all[f], 0, 5, 19);
        check_convert(all[f], 2, 5, 34);
        check_convert(all[f], 3, 64, 96);
        check_convert(all[f], 0, 0, 4);
        check_convert(all[f], 0, 32, 0);
    }
    check_convert_scale(0, 40, 3);
    check_convert_scale(2, 32, 5);
    static const int4_case int4[] = { { 0, 32, 64, 32, false }, { 0, 64, 256, 128, true }, { 2, 32, 512, 256, false }, { 3, 64, 48, 16, true }, { 0, 32, 64, 64, true } };
    for (size_t i = 0; i < sizeof int4 / sizeof *int4; ++i) check_convert_int4(int4[i], formats[i % 3]);

    static const shape shapes[] = { { 0, 20, 8 }, { 3, 0, 8 }, { 3, 40, 0 }, { 1, 1, 1 }, { 1, 33, 70 }, { 2, 64, 511 }, { 4, 32, 1024 }, { 5, 70, 513 }, { 11, 40, 1037 }, { 12, 40, 260 }, { 13, 32, 64 }, { 25, 65, 100 }, { 67, 66, 300 }, { 40, 136, 530 }, { 530, 9, 40 }, { 1, 544, 384 }, { 2, 640, 320 }, { 3, 512, 256 }, { 4, 576, 512 } };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
        const shape s = shapes[i], even = { s.m, s.n, (s.k + 31) / 32 * 32 }, whole = { s.m, (s.n + 31) / 32 * 32, (s.k + 63) / 64 * 64 };
        const int   f = (int)i % 3;
        for (int packed = 0; packed < 2; ++packed) {
            for (int j = 0; j < 3; ++j) check_linear(formats[j], s, packed, (i + (size_t)j) % 2);
            check_int8(formats[f], s, packed, i % 2);
            check_int8_quant(formats[(f + 1) % 3], s, packed);
            check_fp8(SGK_BF16, s, 64, 128, packed);
            check_fp8(formats[f], s, i % 2 ? 5 : 32, i % 3 ? 32 : 544, packed);
            check_mxfp4(SGK_BF16, even, packed);
            if (f < 2) check_mxfp4(formats[f], even, packed);
            check_bmm(formats[f], false, 3, s, packed);
            if (s.m < 100) check_bmm(SGK_BF16, true, 2, s, packed);
            if (s.m < 100) check_bmm(formats[(f + 1) % 3], true, 2, s, packed);
        }
        if (whole.k && whole.k % 128 == 0) check_int4(SGK_BF16, whole, 128);
        if (whole.k) check_int4(formats[f], whole, whole.k % 256 == 0 ? 256 : i % 2 ? 64
                                                                                    : 32);
    }
    for (int f = 0; f < 3; ++f) {
        check_small_linear(formats[f], (shape){ 3, 1, 70 });
        check_small_linear(formats[f], (shape){ 40, 12, 600 });
        check_sigmoid(formats[f], 5, 70, 40);
        check_sigmoid(formats[f], 3, 512, 32);
        check_sigmoid(formats[f], 0, 8, 32);
        for (int e = 0; e < 6; ++e) check_sigmoid_end(formats[f], (double[]){ -INFINITY, -200, -95, 95, INFINITY, NAN }[e]);
        check_invariant(formats[f], 75, 1288);
        check_invariant(formats[f], 32, 2048);
        check_fp8_codes(formats[f]);
    }
    static const mla_shape mla[] = { { 3, 256, 3, 64, 64, 32, 32 }, { 17, 320, 2, 96, 32, 64, 64 }, { 1, 70, 1, 5, 33, 7, 6 }, { 0, 32, 2, 32, 32, 32, 32 } };
    for (size_t i = 0; i < sizeof mla / sizeof *mla; ++i)
        for (int kind = PLAIN_KIND; kind <= FP8_KIND; ++kind)
            for (int fused = 0; fused < 2; ++fused) {
                check_qkv(SGK_BF16, kind, kind == FP8_KIND, fused, mla[i]);
                if (i < 2) check_qkv(i ? SGK_F16 : SGK_F32, kind, fused, fused, mla[i]);
            }
    check_refused();
#if defined(__x86_64__)
    static const int32_t tiled[] = { WEIGHT_BF16, WEIGHT_E4M3, WEIGHT_I8, WEIGHT_MXFP4, WEIGHT_INT4 };
    for (size_t f = 0; f < sizeof tiled / sizeof *tiled; ++f)
        for (int plain = 0; plain < (tiled[f] == WEIGHT_INT4 ? 1 : 2); ++plain) {
            if (tiled[f] == WEIGHT_MXFP4 && plain) continue;
            check_tiles(tiled[f], (shape){ 9, 32, 64 }, plain, 1);
            check_tiles(tiled[f], (shape){ 70, 160, 576 }, plain, 2);
            if (tiled[f] != WEIGHT_MXFP4 && tiled[f] != WEIGHT_INT4) check_tiles(tiled[f], (shape){ 33, 45, 333 }, plain, 1);
        }
#endif
    if (check_benching) {
        static const int64_t rows[] = { 1, 4, 512 };
        for (int i = 0; i < 3; ++i) {
            const shape s = { rows[i], 4096, 4096 };
            for (int f = 0; f < 3; ++f) check_linear(formats[f], s, true, false);
            check_linear(SGK_BF16, s, false, false);
            check_int8(SGK_BF16, s, true, false);
            check_int8_quant(SGK_BF16, s, true);
            check_fp8(SGK_BF16, s, 128, 128, true);
            check_mxfp4(SGK_BF16, s, true);
            check_int4(SGK_BF16, s, 128);
        }
    }
}
