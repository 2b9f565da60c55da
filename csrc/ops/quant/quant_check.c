#include <math.h>
#include "check/check.h"

/* ---- a scale for each row ---- */
static void check_rows(bool fp8, sgk_dtype dtype, int64_t rows, int64_t dim, bool aligned)
{
    if (!check_case("%s_%s_%lldx%lld%s", fp8 ? "sgl_per_token_quant_fp8" : "per_token_quant_int8_cpu", check_dtype(dtype), (long long)rows,
                    (long long)dim, aligned ? "" : "_unaligned")) return;
    check_tensor *x = check_input(dtype, 2, rows, dim);
    check_tensor *q = check_output(fp8 ? SGK_E4M3 : SGK_U8, 2, rows, dim);
    check_tensor *s = check_output(SGK_F32, 1, rows);
    if (!aligned) check_unaligned(x);
    check_legal(x, CHECK_DTYPE);                        /* the other float formats */
    check_legal(s, CHECK_STRIDE | CHECK_NDIM);          /* any shape of that many elements */
    for (int64_t i = 0; i < dim && rows > 1; ++i) check_set(x, i, 0);

    if (fp8) CHECK_CALL(sgk_per_token_quant_fp8(T(q), T(s), T(x), check_exec));
    else CHECK_CALL(sgk_per_token_quant_int8(T(q), T(s), T(x), check_exec));
    check_equal(q);
    check_equal(s);
    if (rows > 1 && dim > 0) check_that(check_result_of(q, 0) == (fp8 ? 0 : 128), "a row of zeros has code %g", check_result_of(q, 0));
    check_done((double)rows * (double)dim * (sgk_dtype_size(dtype) + 1), 4.0 * (double)rows * (double)dim);
}

/* Every step of the format and the middles between them, what is too small and too large, and what is no number. */
static void check_codes(sgk_dtype dtype, bool row)
{
    enum { COUNT = 2 * 2 * 127 + 10 };
    if (!check_case(row ? "sgl_per_token_quant_fp8_%s_codes" : "sgl_per_tensor_quant_fp8_%s_codes", check_dtype(dtype))) return;
    check_tensor *x = check_input_dense(dtype, 2, (int64_t)1, (int64_t)COUNT);
    check_tensor *q = check_output_dense(SGK_E4M3, 2, (int64_t)1, (int64_t)COUNT);
    check_tensor *s = row ? check_output_dense(SGK_F32, 1, (int64_t)1) : check_input_dense(SGK_F32, 1, (int64_t)1);
    if (!row) check_set(s, 0, 1);
    check_legal(x, CHECK_DTYPE);
    check_legal(s, CHECK_NDIM);
    for (int i = 0; i < 127; ++i) {
        const double here = e4m3_to_f32((uint8_t)i), next = i < 126 ? e4m3_to_f32((uint8_t)(i + 1)) : 448;
        check_set(x, 4 * i, here), check_set(x, 4 * i + 1, -here);
        check_set(x, 4 * i + 2, (here + next) / 2), check_set(x, 4 * i + 3, -(here + next) / 2);
    }
    static const double edges[] = { NAN, 0, -0.0, 1e-7, -1e-7, 1e-3, 447, -447, 440, 6e-5 };
    for (int i = 0; i < 10; ++i) check_set(x, COUNT - 10 + i, edges[i]);

    if (row) CHECK_CALL(sgk_per_token_quant_fp8(T(q), T(s), T(x), check_exec));
    else CHECK_CALL(sgk_per_tensor_quant_fp8(T(q), T(s), T(x), true, check_exec));
    check_equal(q);
    if (row) check_equal(s);
    int wrong = 0;
    for (int i = 0; i < 127; ++i) wrong += check_result_of(q, 4 * i) != e4m3_to_f32((uint8_t)i);
    check_that(wrong == 0, "%d of 127 exact numbers have another code", wrong);
    check_that(isnan(check_result_of(q, COUNT - 10)), "NaN became %g", check_result_of(q, COUNT - 10));
    check_done(0, 0);
}

/* Infinity in a row: its neighbours become 0, itself no number. */
static void check_infinite(bool fp8, sgk_dtype dtype)
{
    if (!check_case("%s_%s_infinite", fp8 ? "sgl_per_token_quant_fp8" : "per_token_quant_int8_cpu", check_dtype(dtype))) return;
    check_tensor *x = check_input(dtype, 2, (int64_t)2, (int64_t)40);
    check_tensor *q = check_output(fp8 ? SGK_E4M3 : SGK_U8, 2, (int64_t)2, (int64_t)40);
    check_tensor *s = check_output(SGK_F32, 1, (int64_t)2);
    check_legal(x, CHECK_DTYPE);
    check_legal(s, CHECK_STRIDE | CHECK_NDIM);
    check_set(x, 3, INFINITY), check_set(x, 44, -INFINITY), check_set(x, 50, NAN);
    if (fp8) CHECK_CALL(sgk_per_token_quant_fp8(T(q), T(s), T(x), check_exec));
    else CHECK_CALL(sgk_per_token_quant_int8(T(q), T(s), T(x), check_exec));
    check_equal(q);
    check_equal(s);
    check_done(0, 0);
}

/* ---- one scale ---- */
static void check_tensor_scale(sgk_dtype dtype, int64_t rows, int64_t dim, bool is_static, double scale, bool aligned)
{
    if (!check_case("sgl_per_tensor_quant_fp8_%s_%lldx%lld%s_%g%s", check_dtype(dtype), (long long)rows, (long long)dim, is_static ? "_static" : "",
                    scale, aligned ? "" : "_unaligned")) return;
    check_tensor *x = check_input_dense(dtype, 2, rows, dim);
    check_tensor *q = check_output_dense(SGK_E4M3, 2, rows, dim);
    check_tensor *s = is_static ? check_input_dense(SGK_F32, 1, (int64_t)1) : check_inout_dense(SGK_F32, 1, (int64_t)1);
    check_set(s, 0, scale);
    check_legal(x, CHECK_DTYPE);
    check_legal(s, CHECK_NDIM);
    if (!aligned) check_unaligned(x);
    CHECK_CALL(sgk_per_tensor_quant_fp8(T(q), T(s), T(x), is_static, check_exec));
    check_equal(q);
    if (!is_static) check_equal(s);
    check_done((double)rows * (double)dim * ((2 - is_static) * sgk_dtype_size(dtype) + 1), 3.0 * (double)rows * (double)dim);
}

/* ---- a scale for each group ---- */
typedef enum { ROW_MAJOR,
               COLUMN_MAJOR,
               ALIGNED,
               PACKED } layout;
static const char *const layout_names[] = { "rows", "columns", "aligned", "packed" };

typedef struct {
    const char *op;
    int         version;
    sgk_dtype   dtype, code;
    int64_t     batches, rows, groups, group;
    layout      layout;
    bool        fuse, masked, unaligned, narrow;
} group_case;

/* The scales as the operator sees them: [T, G] over memory [G, columns], or the same of each batch. */
static const DLTensor *scales_view(const group_case *c, const DLTensor *memory, DLTensor *view, int64_t shape[8], int64_t strides[8])
{
    const int wanted = c->masked ? 3 : 2;
    if (!memory || c->layout == ROW_MAJOR || memory->ndim != wanted) return memory;
    *view = *memory;
    for (int d = 0; d < wanted; ++d) shape[d] = memory->shape[d], strides[d] = memory->strides[d];
    const int     t = wanted - 2, g = wanted - 1;
    const int64_t padding = c->layout == COLUMN_MAJOR ? 0 : (c->rows + 3) / 4 * 4 - c->rows;
    shape[t] = memory->shape[g] - padding, shape[g] = memory->shape[t];
    strides[t] = memory->strides[g], strides[g] = memory->strides[t];
    view->shape = shape, view->strides = strides;
    return view;
}

static void check_groups(group_case c)
{
    const bool packed = c.layout == PACKED;
    if (!check_case("%s_%s_%s_%lldx%lldx%lld_%s%s%s%s%s%s", c.op, check_dtype(c.dtype), check_dtype(c.code), (long long)(c.batches * c.rows),
                    (long long)c.groups, (long long)c.group, layout_names[c.layout], c.version == 2 ? "" : "_v1", c.fuse ? "_silu" : "",
                    c.masked ? "_masked" : "", c.unaligned ? "_unaligned" : "", c.narrow ? "_narrow" : "")) return;
    const int64_t   dim = c.groups * c.group, width = dim * (c.fuse ? 2 : 1), columns = packed ? (c.groups + 3) / 4 : c.groups;
    const int64_t   padded = c.layout == ALIGNED || packed ? (c.rows + 3) / 4 * 4 : c.rows;
    const int64_t   outer = c.layout == ROW_MAJOR ? c.rows : columns, inner = c.layout == ROW_MAJOR ? columns : padded;
    const sgk_dtype format = packed ? SGK_I32 : SGK_F32;
    const double    least  = c.narrow ? -90 : c.code == SGK_I8 ? -128
                                                               : -448,
                    most   = c.narrow ? 100 : c.code == SGK_I8 ? 127
                                                               : 448,
                    eps    = c.narrow ? 0 : 1e-10;

    check_tensor *x, *q, *s, *mask = NULL;
    if (c.masked) {
        x    = check_input_dense(c.dtype, 3, c.batches, c.rows, width);
        q    = check_inout_dense(c.code, 3, c.batches, c.rows, dim);           /* what is masked keeps what it held */
        s    = check_inout_dense(format, 3, c.batches, outer, inner);
        mask = check_index(SGK_I32, 0, c.rows, 1, c.batches);
        if (c.batches > 1) check_set(mask, 0, 0), check_set(mask, 1, (double)c.rows);
        check_legal(mask, CHECK_NULL);
    } else {
        x = check_input(c.dtype, 2, c.batches * c.rows, width);
        q = check_output(c.code, 2, c.batches * c.rows, dim);
        s = padded == c.rows ? check_output_dense(format, 2, outer, inner) : check_inout_dense(format, 2, outer, inner);
    }
    if (c.unaligned) check_unaligned(x);
    check_legal(x, CHECK_DTYPE);                        /* the other float formats */
    check_legal(s, CHECK_STRIDE | (padded > c.rows && c.rows == 1 ? CHECK_OVERLAP : 0));    /* what overlaps may be the padding alone */
    check_legal(q, CHECK_DTYPE);
    for (int64_t i = 0; i < c.group && c.rows > 1; ++i) check_set(x, i, 0);
    if (c.rows > 1) check_set(x, width, -0.0), check_set(x, width + 1, -1e-9);

    DLTensor view;
    int64_t  shape[8], strides[8];
    if (c.version == 1)
        CHECK_CALL(sgk_per_token_group_quant_8bit(T(q), scales_view(&c, T(s), &view, shape, strides), T(x), c.group, eps, least, most, packed, check_exec));
    else
        CHECK_CALL(sgk_per_token_group_quant_8bit_v2(T(q), scales_view(&c, T(s), &view, shape, strides), T(x), T(mask), c.group, 1e-10, least, most,
                                                     packed, c.fuse, check_exec));
    check_equal(q);
    check_equal(s);
    const double n = (double)(c.batches * c.rows) * (double)dim;
    check_done(n * (sgk_dtype_size(c.dtype) * (1 + c.fuse) + 1 + 4.0 / (double)c.group), 6 * n);
}

/* Every gate, alone in its group, so that the scale is its silu. */
static void check_gates(sgk_dtype dtype)
{
    if (!check_case("sgl_per_token_group_quant_8bit_v2_%s_gates", check_dtype(dtype))) return;
    enum { ROWS   = 512,
           GROUPS = 128,
           GROUP  = 16,
           DIM    = GROUPS * GROUP };
    check_tensor *x = check_input_dense(dtype, 2, (int64_t)ROWS, (int64_t)2 * DIM);
    check_tensor *q = check_output_dense(SGK_E4M3, 2, (int64_t)ROWS, (int64_t)DIM);
    check_tensor *s = check_output_dense(SGK_F32, 2, (int64_t)ROWS, (int64_t)GROUPS);
    check_legal(x, CHECK_DTYPE);
    check_legal(s, CHECK_STRIDE);
    check_legal(q, CHECK_DTYPE);
    for (int64_t n = 0; n < ROWS * GROUPS; ++n)
        for (int64_t i = 0; i < GROUP; ++i) {
            const int64_t at = n / GROUPS * 2 * DIM + n % GROUPS * GROUP + i;
            check_set_code(x, at, (uint32_t)n);
            check_set(x, at + DIM, 1);
        }
    CHECK_CALL(sgk_per_token_group_quant_8bit_v2(T(q), T(s), T(x), NULL, GROUP, 1e-10, -448, 448, false, true, check_exec));
    check_equal(q);
    check_equal(s);
    check_done(0, 0);
}

/* Every bf16 from 1 to 2 as the largest of its group, times 16, over every such number times powers of two, down to what becomes zero. */
static void check_group_largest(int version, sgk_dtype code)
{
    if (!check_case("sgl_per_token_group_quant_8bit_%sbf16_%slargest", version == 1 ? "" : "v2_", code == SGK_I8 ? "i8_" : "")) return;
    enum { ROWS   = 128,
           GROUPS = 22,
           GROUP  = 128,
           DIM    = GROUPS * GROUP };
    const double  least = code == SGK_I8 ? -128 : -448, most = code == SGK_I8 ? 127 : 448;
    check_tensor *x = check_input_dense(SGK_BF16, 2, (int64_t)ROWS, (int64_t)DIM);
    check_tensor *q = check_output_dense(code, 2, (int64_t)ROWS, (int64_t)DIM);
    check_tensor *s = check_output_dense(SGK_F32, 2, (int64_t)ROWS, (int64_t)GROUPS);
    check_legal(x, CHECK_DTYPE);
    check_legal(s, CHECK_STRIDE);
    check_legal(q, CHECK_DTYPE);
    for (int64_t n = 0; n < ROWS * GROUPS; ++n) {
        check_set_code(x, n * GROUP, (uint32_t)(0x4180 + n / GROUPS));
        for (int64_t i = 1; i < GROUP; ++i) check_set_code(x, n * GROUP + i, (uint32_t)(0x4100 - (n % GROUPS << 7) + i) | (i % 2 ? 0x8000 : 0));
    }
    if (version == 1) CHECK_CALL(sgk_per_token_group_quant_8bit(T(q), T(s), T(x), GROUP, 1e-10, least, most, false, check_exec));
    else CHECK_CALL(sgk_per_token_group_quant_8bit_v2(T(q), T(s), T(x), NULL, GROUP, 1e-10, least, most, false, false, check_exec));
    check_equal(q);
    check_equal(s);
    check_done(0, 0);
}

static void check_group_options(void)
{
    if (!check_case("sgl_per_token_group_quant_8bit_v2_refused")) return;
    check_tensor *x = check_input(SGK_BF16, 2, (int64_t)2, (int64_t)96);
    check_tensor *q = check_output(SGK_E4M3, 2, (int64_t)2, (int64_t)96);
    check_tensor *s = check_output_dense(SGK_F32, 2, (int64_t)2, (int64_t)3);
    CHECK_REFUSED(SGK_BAD_ARG, "group_size is 48", sgk_per_token_group_quant_8bit_v2(T(q), T(s), T(x), NULL, 48, 1e-10, -448, 448, false, false, check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "eps is", sgk_per_token_group_quant_8bit_v2(T(q), T(s), T(x), NULL, 32, 1e-6, -448, 448, false, false, check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "min is", sgk_per_token_group_quant_8bit_v2(T(q), T(s), T(x), NULL, 32, 1e-10, -240, 240, false, false, check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "expected i32", sgk_per_token_group_quant_8bit_v2(T(q), T(s), T(x), NULL, 32, 1e-10, -448, 448, true, false, check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "twice", sgk_per_token_group_quant_8bit_v2(T(q), T(s), T(x), NULL, 32, 1e-10, -448, 448, false, true, check_exec));
    check_done(0, 0);
}

static void check_all_groups(sgk_dtype dtype)
{
    static const int64_t sizes[] = { 16, 32, 64, 128 };
    const char *const v1 = "sgl_per_token_group_quant_8bit", *const v2 = "sgl_per_token_group_quant_8bit_v2";
    for (int i = check_small ? 3 : 0; i < 4; ++i)
        for (int l = ROW_MAJOR; l <= PACKED; ++l)
            for (int code = 0; code < 2; ++code) {
                const sgk_dtype to = code ? SGK_I8 : SGK_E4M3;
                check_groups((group_case){ v1, 1, dtype, to, 1, check_small ? 3 : check_int(1, 9), 5, sizes[i], (layout)l, .fuse = false });
                check_groups((group_case){ v2, 2, dtype, to, 1, check_small ? 3 : check_int(1, 9), 5, sizes[i], (layout)l, .fuse = false });
                check_groups((group_case){ v2, 2, dtype, to, 1, check_small ? 3 : check_int(1, 9), 7, sizes[i], (layout)l, .fuse = true });
                check_groups((group_case){ v2, 2, dtype, to, 4, check_small ? 3 : check_int(3, 9), 6, sizes[i], (layout)l, .fuse = true, .masked = true });
            }
    check_groups((group_case){ v2, 2, dtype, SGK_E4M3, 3, 5, 16, 128, ALIGNED, .masked = true });
    check_groups((group_case){ v2, 2, dtype, SGK_E4M3, 1, 5, 3, 32, ROW_MAJOR, .unaligned = true });
    check_groups((group_case){ v2, 2, dtype, SGK_E4M3, 1, 5, 3, 32, PACKED, .fuse = true, .unaligned = true });
    check_groups((group_case){ v1, 1, dtype, SGK_E4M3, 1, 3, 4, 64, ROW_MAJOR, .narrow = true });
    check_groups((group_case){ v1, 1, dtype, SGK_I8, 1, 3, 4, 256, ROW_MAJOR, .narrow = true });
    check_groups((group_case){ v1, 1, dtype, SGK_I8, 1, 3, 9, 8, PACKED, .fuse = false });
    check_groups((group_case){ v2, 2, dtype, SGK_E4M3, 1, 6, 2, 128, PACKED, .fuse = false });
    check_groups((group_case){ v2, 2, dtype, SGK_E4M3, 1, 3, 1, 16, PACKED, .fuse = false });
    check_groups((group_case){ v1, 1, dtype, SGK_I8, 1, 5, 3, 7, ROW_MAJOR, .fuse = false });
    check_groups((group_case){ v1, 1, dtype, SGK_E4M3, 1, 4, 2, 300, PACKED, .fuse = false });
    check_groups((group_case){ v1, 1, dtype, SGK_E4M3, 1, 1, 1, 8, PACKED, .fuse = false });
    check_groups((group_case){ v1, 1, dtype, SGK_E4M3, 1, 1, 1, 1, ROW_MAJOR, .fuse = false });
    check_groups((group_case){ v2, 2, dtype, SGK_E4M3, 1, 0, 3, 64, ROW_MAJOR, .fuse = false });
    if (!check_small) check_groups((group_case){ v2, 2, dtype, SGK_E4M3, 1, 70, 33, 128, ALIGNED, .fuse = false });
    if (check_on_gpu()) check_groups((group_case){ v1, 1, dtype, SGK_E4M3, 1, 600, 56, 128, ROW_MAJOR, .fuse = false });    /* so many groups that each has few threads */
    if (check_on_gpu()) check_groups((group_case){ v2, 2, dtype, SGK_E4M3, 1, 600, 56, 128, ALIGNED, .fuse = false });
    if (check_on_gpu()) check_groups((group_case){ v1, 1, dtype, SGK_I8, 1, 600, 56, 128, ROW_MAJOR, .fuse = false });
    check_groups((group_case){ "sgl_per_token_group_quant_fp8", 1, dtype, SGK_E4M3, 1, 3, 2, 24, ROW_MAJOR, .fuse = false });
    check_groups((group_case){ "sgl_per_token_group_quant_int8", 1, dtype, SGK_I8, 1, 3, 2, 24, COLUMN_MAJOR, .fuse = false });
}

/* ---- norms ---- */
static double scale_at(const group_case *c, double (*element)(const check_tensor *t, int64_t i), const check_tensor *s, int64_t row, int64_t j)
{
    const int64_t padded = c->layout == ALIGNED || c->layout == PACKED ? (c->rows + 3) / 4 * 4 : c->rows;
    if (c->layout == ROW_MAJOR) return element(s, row * c->groups + j);
    if (c->layout != PACKED) return element(s, j * padded + row);
    const uint32_t word = (uint32_t)(int64_t)element(s, j / 4 * padded + row);
    return ldexp(1, (int)(word >> 8 * (j % 4) & 0xff) - 127);
}

/* The last bit of the norm is free: here and there a code may be the next one, and a scale the next number. */
static void check_dequantised(const group_case *c, const check_tensor *q, const check_tensor *s)
{
    int64_t others = 0, far = 0;
    for (int64_t row = 0; row < c->rows; ++row)
        for (int64_t j = 0; j < c->groups; ++j) {
            const double mine = scale_at(c, check_result_of, s, row, j), reference = scale_at(c, check_reference_of, s, row, j), larger = fmax(mine, reference);
            for (int64_t i = (row * c->groups + j) * c->group, last = i + c->group; i < last; ++i) {
                const double x = check_result_of(q, i) * mine, y = check_reference_of(q, i) * reference, error = fabs(x - y);
                const double step = c->code == SGK_I8 ? larger : fmax(fmax(fabs(x), fabs(y)) / 8, larger / 512);
                others += !(error <= 2 * check_tolerance(c->dtype) * fabs(y));         /* the scale's own difference is none */
                far += !(error <= 1.01 * step + 0.01 * fabs(y));
            }
        }
    check_that(far == 0, "%lld elements are further than a code from the reference's", (long long)far);
    check_that(others <= 2 + c->rows * c->groups * c->group / 100, "%lld elements have another code than the reference's", (long long)others);
}

static void check_norm(group_case c, bool add)
{
    const bool packed = c.layout == PACKED;
    if (!check_case("%s_%s_%s_%lldx%lldx%lld_%s%s", add ? "fused_add_rmsnorm_quant" : "fused_rmsnorm_quant", check_dtype(c.dtype), check_dtype(c.code),
                    (long long)c.rows, (long long)c.groups, (long long)c.group, layout_names[c.layout], c.unaligned ? "_unaligned" : "")) return;
    const int64_t   dim = c.groups * c.group, columns = packed ? (c.groups + 3) / 4 : c.groups;
    const int64_t   padded = c.layout == ALIGNED || packed ? (c.rows + 3) / 4 * 4 : c.rows;
    const int64_t   outer = c.layout == ROW_MAJOR ? c.rows : columns, inner = c.layout == ROW_MAJOR ? columns : padded;
    const sgk_dtype format = packed ? SGK_I32 : SGK_F32;
    const double    least = c.code == SGK_I8 ? -128 : -448, most = c.code == SGK_I8 ? 127 : 448;
    check_tensor   *input = check_input(c.dtype, 2, c.rows, dim), *weight = check_input(c.dtype, 1, dim);
    check_tensor   *residual = add ? check_inout(c.dtype, 2, c.rows, dim) : NULL;
    check_tensor   *q        = check_output(c.code, 2, c.rows, dim);
    check_tensor   *s        = padded == c.rows ? check_output_dense(format, 2, outer, inner) : check_inout_dense(format, 2, outer, inner);
    if (c.unaligned) check_unaligned(input);
    check_legal(s, CHECK_STRIDE | (padded > c.rows && c.rows == 1 ? CHECK_OVERLAP : 0));    /* what overlaps may be the padding alone */
    check_legal(q, CHECK_DTYPE);
    for (int64_t i = 0; i < dim && c.rows > 1; ++i) {
        check_set(input, i, 0);
        if (add) check_set(residual, i, 0);
    }

    DLTensor view;
    int64_t  shape[8], strides[8];
    if (add)
        CHECK_CALL(sgk_fused_add_rmsnorm_quant(T(q), scales_view(&c, T(s), &view, shape, strides), T(residual), T(input), T(weight), c.group, 1e-6, 1e-10, least,
                                               most, packed, check_exec));
    else
        CHECK_CALL(sgk_fused_rmsnorm_quant(T(q), scales_view(&c, T(s), &view, shape, strides), T(input), T(weight), c.group, 1e-6, 1e-10, least, most, packed,
                                           check_exec));
    check_dequantised(&c, q, s);
    if (add) check_close(residual, check_tolerance(c.dtype));
    if (c.rows > 1 && dim > 0) check_that(check_result_of(q, 0) == 0, "a row of zeros has code %g", check_result_of(q, 0));
    const double n = (double)c.rows * (double)dim;
    check_done(n * (sgk_dtype_size(c.dtype) * (add ? 3 : 1) + 1 + 4.0 / (double)c.group), 8 * n);
}

static void check_norms(sgk_dtype dtype)
{
    static const int64_t widths[] = { 1, 5, 16, 36, 90, 130, 300 };     /* groups of 128: up to what no build keeps in registers */
    for (int add = 0; add < 2; ++add) {
        for (size_t i = 0; i < sizeof widths / sizeof *widths; ++i)
            check_norm((group_case){ .dtype = dtype, .code = i % 2 ? SGK_I8 : SGK_E4M3, .rows = check_small ? 2 : check_int(1, 5), .groups = widths[i], .group = 128, .layout = (layout)(i % 4) }, add);
        check_norm((group_case){ .dtype = dtype, .code = SGK_E4M3, .rows = 3, .groups = 7, .group = 16, .layout = PACKED }, add);
        check_norm((group_case){ .dtype = dtype, .code = SGK_E4M3, .rows = 3, .groups = 3, .group = 64, .layout = PACKED, .unaligned = true }, add);
        check_norm((group_case){ .dtype = dtype, .code = SGK_I8, .rows = 2, .groups = 5, .group = 7, .layout = ROW_MAJOR }, add);
        check_norm((group_case){ .dtype = dtype, .code = SGK_E4M3, .rows = 2, .groups = 2, .group = 1000, .layout = COLUMN_MAJOR }, add);
        check_norm((group_case){ .dtype = dtype, .code = SGK_E4M3, .rows = 0, .groups = 2, .group = 32, .layout = ROW_MAJOR }, add);
    }
}

void check_quant(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    static const int64_t   some[]    = { 0, 1, 4, 7, 8, 64, 100, 512, 1000, 2048, 4096, 4104, 7168, 16384, 32768, 40000 };
    static const int64_t   few[]     = { 1, 8, 4096, 4104, 40000 };
    static const int64_t   many[]    = { 512, 3584, 8192 };             /* of rows enough to fill a GPU: a build each */
    const int64_t         *dims      = check_small ? few : some;
    const size_t           count     = check_small ? sizeof few / sizeof *few : sizeof some / sizeof *some;

    for (size_t f = 0; f < 3; ++f) {
        for (int fp8 = 0; fp8 < 2; ++fp8) {
            for (size_t i = 0; i < count; ++i) check_rows(fp8, formats[f], check_small ? 2 : check_int(1, 5), dims[i], true);
            for (size_t i = 0; i < sizeof many / sizeof *many; ++i) check_rows(fp8, formats[f], 300, many[i], true);
            check_rows(fp8, formats[f], 0, 64, true);
            check_rows(fp8, formats[f], 3, 128, false);
            check_infinite(fp8, formats[f]);
        }
        check_codes(formats[f], true);
        check_codes(formats[f], false);
        for (size_t i = 0; i < count; ++i) check_tensor_scale(formats[f], check_small ? 2 : check_int(1, 5), dims[i], i % 2, i % 2 ? 0.01 : 0, true);
        check_tensor_scale(formats[f], 3, 77, false, 0, false);
        check_tensor_scale(formats[f], 3, 77, true, 0.25, false);
        check_tensor_scale(formats[f], 3, 77, false, 1000, true);           /* a larger one is there already */
        check_tensor_scale(formats[f], 3, 77, true, 0, true);
        check_tensor_scale(formats[f], 3, 77, true, 1e-39, true);           /* 1 / s is no number */
        check_all_groups(formats[f]);
        check_norms(formats[f]);
    }
    if (!check_small) check_gates(SGK_F16), check_gates(SGK_BF16);
    if (!check_small) check_group_largest(1, SGK_E4M3), check_group_largest(2, SGK_E4M3);
    if (!check_small && !check_on_gpu()) check_group_largest(1, SGK_I8);
    /* Codes written around the caches. */
    sgk_cpu_cache(1);
    check_groups((group_case){ "sgl_per_token_group_quant_8bit", 1, SGK_BF16, SGK_E4M3, 1, 6, 19, 128, ROW_MAJOR, .fuse = false });
    check_groups((group_case){ "sgl_per_token_group_quant_8bit_v2", 2, SGK_BF16, SGK_E4M3, 1, 6, 19, 64, PACKED, .fuse = false });
    check_groups((group_case){ "sgl_per_token_group_quant_8bit", 1, SGK_BF16, SGK_I8, 1, 6, 19, 128, ROW_MAJOR, .fuse = false });
    check_groups((group_case){ "sgl_per_token_group_quant_8bit_v2", 2, SGK_F16, SGK_I8, 1, 6, 19, 64, ROW_MAJOR, .fuse = false });
    check_norm((group_case){ .dtype = SGK_BF16, .code = SGK_E4M3, .rows = 6, .groups = 19, .group = 128, .layout = ALIGNED }, false);
    check_norm((group_case){ .dtype = SGK_F16, .code = SGK_E4M3, .rows = 6, .groups = 19, .group = 64, .layout = PACKED }, true);
    sgk_cpu_cache(0);
    check_group_options();
    if (check_benching) {
        const char *const v1 = "sgl_per_token_group_quant_8bit", *const v2 = "sgl_per_token_group_quant_8bit_v2";
        for (int64_t rows = 64; rows <= 16384; rows += 16384 - 64) {
            check_rows(true, SGK_BF16, rows, 7168, true);
            check_tensor_scale(SGK_BF16, rows, 7168, false, 0, true);
            check_tensor_scale(SGK_BF16, rows, 7168, true, 0.01, true);
            check_groups((group_case){ v2, 2, SGK_BF16, SGK_E4M3, 1, rows, 56, 128, ALIGNED, .fuse = false });
            check_groups((group_case){ v2, 2, SGK_BF16, SGK_E4M3, 1, rows, 56, 128, PACKED, .fuse = false });
            check_groups((group_case){ v1, 1, SGK_BF16, SGK_E4M3, 1, rows, 56, 128, ROW_MAJOR, .fuse = false });
            check_groups((group_case){ v2, 2, SGK_BF16, SGK_E4M3, 1, rows, 28, 128, PACKED, .fuse = true });
            check_norm((group_case){ .dtype = SGK_BF16, .code = SGK_E4M3, .rows = rows, .groups = 56, .group = 128, .layout = ALIGNED }, false);
            check_norm((group_case){ .dtype = SGK_BF16, .code = SGK_E4M3, .rows = rows, .groups = 56, .group = 128, .layout = ALIGNED }, true);
        }
        check_groups((group_case){ v2, 2, SGK_BF16, SGK_I8, 1, 16384, 56, 128, ROW_MAJOR, .fuse = false });
    }
}
