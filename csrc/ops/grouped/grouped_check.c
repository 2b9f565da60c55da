#include "check/check.h"

void check_grouped(void);

/*
 * One rounding to the format of out; below it on the CPU f32 sums of K products, on the GPU matrix units that keep 14 bits within a block of K.
 */
static double tolerance(sgk_dtype out, int64_t depth)
{
    return check_tolerance(out) + (check_on_gpu() ? 3e-4 : 0x1p-22 * sqrt((double)depth));
}

/* Codes of all sizes, without NaN, and scales over 2^+-10; where out is f16, over less: what is past its range would say nothing. */
static check_tensor *codes(check_tensor *t, int64_t count)
{
    for (int64_t i = 0; i < count; ++i) check_set(t, i, e4m3_to_f32(f32_to_e4m3_sat((float)(check_normal() * (i % 7 ? 16 : 0.01)))));
    return t;
}
static check_tensor *scales(check_tensor *t, int64_t count, sgk_dtype out)
{
    for (int64_t i = 0; i < count; ++i) check_set(t, i, ldexp(1 + 0.5 * fabs(check_normal()), out == SGK_F16 ? check_int(-8, -4) : check_int(-10, 10)));
    return t;
}

static int64_t blocks(int64_t n) { return (n + 127) / 128; }

/* The last two dimensions change places; what is broken stays so. */
static const DLTensor *turned(const DLTensor *t, DLTensor *to, int64_t sizes[3], int64_t strides[3])
{
    if (!t || t->ndim < 2 || t->ndim > 3) return t;
    int64_t dense = 1;
    for (int d = t->ndim - 1; d >= 0; --d) {
        sizes[d]   = t->shape[d];
        strides[d] = t->strides ? t->strides[d] : dense;
        dense *= t->shape[d];
    }
    const int     last = t->ndim - 1;
    const int64_t size = sizes[last], stride = strides[last];
    sizes[last] = sizes[last - 1], strides[last] = strides[last - 1];
    sizes[last - 1] = size, strides[last - 1] = stride;
    *to       = *t;
    to->shape = sizes, to->strides = strides;
    return to;
}
#define TURNED(t) turned(t, &(DLTensor){ 0 }, (int64_t[3]){ 0 }, (int64_t[3]){ 0 })

/* ---- one matrix -------------------------------------------------------------------------------------------------------- */

typedef enum { NT,
               TURNED_B } operator_form;

static void check_one(operator_form form, sgk_dtype out_dtype, int64_t rows, int64_t columns, int64_t depth, bool dense)
{
    const char *name = form == NT ? "fp8_gemm_nt" : "fp8_blockwise_scaled_mm";
    if (!check_case("%s_%s_%lldx%lldx%lld%s", name, check_dtype(out_dtype), (long long)rows, (long long)columns, (long long)depth, dense ? "_dense" : "")) return;
    check_tensor *a   = codes((dense ? check_input_dense : check_input)(SGK_E4M3, 2, rows, depth), rows * depth);
    check_tensor *b   = codes((dense ? check_input_dense : check_input)(SGK_E4M3, 2, columns, depth), columns * depth);
    check_tensor *sa  = scales(check_input(SGK_F32, 2, rows, blocks(depth)), rows * blocks(depth), out_dtype);
    check_tensor *sb  = scales(check_input(SGK_F32, 2, blocks(columns), blocks(depth)), blocks(columns) * blocks(depth), out_dtype);
    check_tensor *out = (dense ? check_output_dense : check_output)(out_dtype, 2, rows, columns);
    check_legal(sa, CHECK_STRIDE);
    check_legal(sb, CHECK_STRIDE);
    check_legal(out, CHECK_DTYPE);

    CHECK_CALL(form == NT ? sgk_fp8_gemm_nt(T(out), T(a), T(sa), T(b), T(sb), check_exec)
                          : sgk_fp8_blockwise_scaled_mm(T(out), T(a), TURNED(T(b)), T(sa), TURNED(T(sb)), check_exec));
    check_close(out, tolerance(out_dtype, depth));
    const double m = (double)rows, n = (double)columns, k = (double)depth;
    check_done(m * k + n * k + m * n * sgk_dtype_size(out_dtype), 2 * m * n * k);
}

/* ---- groups ------------------------------------------------------------------------------------------------------------ */

enum { GROUPS = 5 };
typedef struct { int64_t rows[GROUPS], columns, depth; } group_case;

typedef struct { check_tensor *a, *b, *sa, *sb, *out; } operands;

static operands make(sgk_dtype dtype, sgk_dtype out_dtype, bool matrices, int64_t rows, int64_t columns, int64_t depth)
{
    operands o = { 0 };
    o.a        = matrices ? check_input_dense(dtype, 3, (int64_t)GROUPS, rows, depth) : check_input_dense(dtype, 2, rows, depth);
    o.b        = check_input_dense(dtype, 3, (int64_t)GROUPS, columns, depth);
    o.out      = matrices ? check_inout_dense(out_dtype, 3, (int64_t)GROUPS, rows, columns) : check_inout_dense(out_dtype, 2, rows, columns);      /* some rows stay */
    check_legal(o.out, CHECK_DTYPE);
    if (dtype != SGK_E4M3) return o;
    codes(o.a, (matrices ? GROUPS : 1) * rows * depth), codes(o.b, GROUPS * columns * depth);
    o.sa = matrices ? check_input(SGK_F32, 3, (int64_t)GROUPS, rows, blocks(depth)) : check_input(SGK_F32, 2, rows, blocks(depth));
    o.sb = check_input(SGK_F32, 3, (int64_t)GROUPS, blocks(columns), blocks(depth));
    scales(o.sa, (matrices ? GROUPS : 1) * rows * blocks(depth), out_dtype), scales(o.sb, GROUPS * blocks(columns) * blocks(depth), out_dtype);
    check_legal(o.sa, CHECK_STRIDE);
    check_legal(o.sb, CHECK_STRIDE);
    return o;
}

static void check_masked(sgk_dtype dtype, sgk_dtype out_dtype, group_case c, int64_t most)
{
    const bool scaled = dtype == SGK_E4M3;
    if (!check_case("%s_%s_%s_%lldx%lldx%lld", scaled ? "m_grouped_fp8_gemm_nt_masked" : "m_grouped_bf16_gemm_nt_masked", check_dtype(dtype), check_dtype(out_dtype), (long long)most,
                    (long long)c.columns, (long long)c.depth)) return;
    double counts[GROUPS], all = 0;
    for (int g = 0; g < GROUPS; ++g) counts[g] = (double)(c.rows[g] < most ? c.rows[g] : most), all += counts[g];
    const operands o        = make(dtype, out_dtype, true, most, c.columns, c.depth);
    check_tensor  *masked   = check_values(SGK_I32, counts, 1, (int64_t)GROUPS);
    const int64_t  expected = 1 + (int64_t)all / GROUPS;
    CHECK_CALL(scaled ? sgk_m_grouped_fp8_gemm_nt_masked(T(o.out), T(o.a), T(o.sa), T(o.b), T(o.sb), T(masked), expected, check_exec)
                      : sgk_m_grouped_bf16_gemm_nt_masked(T(o.out), T(o.a), T(o.b), T(masked), expected, check_exec));
    check_close(o.out, tolerance(out_dtype, c.depth));
    check_done((double)(GROUPS * c.columns * c.depth) * sgk_dtype_size(dtype), 2 * all * (double)c.columns * (double)c.depth);
}

static void check_contiguous(sgk_dtype dtype, sgk_dtype out_dtype, group_case c, bool ends)
{
    const bool scaled = dtype == SGK_E4M3;
    if (!check_case("%s_%s_%s%s_%lldx%lldx%lld", scaled ? "m_grouped_fp8_gemm_nt_contiguous" : "m_grouped_bf16_gemm_nt_contiguous", check_dtype(dtype), check_dtype(out_dtype),
                    ends ? "_ends" : "", (long long)c.rows[0], (long long)c.columns, (long long)c.depth)) return;
    double  values[GROUPS * 512], last[GROUPS], all = 0;
    int64_t rows = 0;
    for (int g = 0; g < GROUPS; ++g) {
        const int64_t padded = (c.rows[g] + 127) / 128 * 128;
        for (int64_t i = 0; i < padded; ++i) values[rows + i] = i < c.rows[g] ? g : -1;
        last[g] = (double)(rows + c.rows[g]), all += (double)c.rows[g];
        rows += padded;
    }
    const operands o = make(dtype, out_dtype, false, rows, c.columns, c.depth);
    if (!scaled && !ends) check_legal(o.b, CHECK_SIZE(0));          /* any number of matrices that holds the layout's */
    check_tensor *layout = ends ? check_values(SGK_I32, last, 1, (int64_t)GROUPS) : check_values(SGK_I32, values, 1, rows);
    CHECK_CALL(scaled ? sgk_m_grouped_fp8_gemm_nt_contiguous(T(o.out), T(o.a), T(o.sa), T(o.b), T(o.sb), T(layout), ends, check_exec)
                      : sgk_m_grouped_bf16_gemm_nt_contiguous(T(o.out), T(o.a), T(o.b), T(layout), ends, check_exec));
    check_close(o.out, tolerance(out_dtype, c.depth));
    check_done((double)(GROUPS * c.columns * c.depth) * sgk_dtype_size(dtype), 2 * all * (double)c.columns * (double)c.depth);
}

/* problem_sizes and offsets of experts one behind the other; the first place stays nobody's. */
static int64_t sizes_of(group_case c, check_tensor **sizes, check_tensor **offsets)
{
    double  values[3 * GROUPS], first[GROUPS];
    int64_t rows = 1;
    for (int g = 0; g < GROUPS; ++g) {
        values[3 * g] = (double)c.rows[g], values[3 * g + 1] = (double)c.columns, values[3 * g + 2] = (double)c.depth;
        first[g] = (double)rows;
        rows += c.rows[g];
    }
    *sizes   = check_values(SGK_I32, values, 2, (int64_t)GROUPS, (int64_t)3);
    *offsets = check_values(SGK_I32, first, 1, (int64_t)GROUPS);
    return rows;
}

static void check_offsets(bool es, sgk_dtype out_dtype, group_case c)
{
    if (!check_case("%s_%s_%lldx%lldx%lld", es ? "es_fp8_blockwise_scaled_grouped_mm" : "fp8_blockwise_scaled_grouped_mm", check_dtype(out_dtype), (long long)c.rows[0],
                    (long long)c.columns, (long long)c.depth)) return;
    check_tensor  *sizes, *offsets;
    const int64_t  rows = sizes_of(c, &sizes, &offsets);
    const operands o    = make(SGK_E4M3, out_dtype, false, rows, c.columns, c.depth);
    check_tensor  *spare[8], *layouts[2], *workspace = check_index(SGK_U8, 0, 9, 1, (int64_t)16);
    for (int i = 0; i < 8; ++i) spare[i] = check_index(SGK_I64, 0, 9, 1, (int64_t)GROUPS);
    for (int i = 0; i < 2; ++i) layouts[i] = check_index(SGK_I32, 0, 9, 2, (int64_t)GROUPS, (int64_t)5);
    check_legal(workspace, CHECK_SIZE(0));
    CHECK_CALL(es ? sgk_es_fp8_blockwise_scaled_grouped_mm(T(o.out), T(o.a), TURNED(T(o.b)), T(o.sa), TURNED(T(o.sb)), T(spare[0]), T(spare[1]), T(spare[2]), T(sizes), T(offsets),
                                                           T(workspace), check_exec)
                  : sgk_fp8_blockwise_scaled_grouped_mm(T(o.out), T(spare[0]), T(spare[1]), T(spare[2]), T(spare[3]), T(spare[4]), T(o.a), TURNED(T(o.b)), T(o.sa), TURNED(T(o.sb)),
                                                        T(spare[5]), T(spare[6]), T(spare[7]), T(layouts[0]), T(layouts[1]), T(sizes), T(offsets), T(workspace), check_exec));
    check_close(o.out, tolerance(out_dtype, c.depth));
    check_done((double)(GROUPS * c.columns * c.depth), 2 * (double)rows * (double)c.columns * (double)c.depth);
}

/* ---- MX ---------------------------------------------------------------------------------------------------------------- */

static check_tensor *scale_offsets_of(group_case c, int64_t *rows)
{
    double first[GROUPS];
    *rows = 128;                                /* the first tile is nobody's */
    for (int g = 0; g < GROUPS; ++g) {
        first[g] = (double)*rows;
        *rows += (c.rows[g] + 127) / 128 * 128;
    }
    return check_values(SGK_I32, first, 1, (int64_t)GROUPS);
}

static void check_mx(sgk_dtype out_dtype, group_case c, bool unaligned)
{
    if (!check_case("es_sm100_mxfp8_blockscaled_grouped_mm_%s_%lldx%lldx%lld%s", check_dtype(out_dtype), (long long)c.rows[0], (long long)c.columns, (long long)c.depth,
                    unaligned ? "_unaligned" : "")) return;
    check_tensor *sizes, *offsets;
    int64_t       scale_rows;
    const int64_t rows = sizes_of(c, &sizes, &offsets), across = c.depth / 32;
    check_tensor *first = scale_offsets_of(c, &scale_rows);
    check_tensor *a = codes(check_input_dense(SGK_E4M3, 2, rows, c.depth), rows * c.depth), *b = codes(check_input_dense(SGK_E4M3, 3, (int64_t)GROUPS, c.columns, c.depth), GROUPS * c.columns * c.depth);
    check_tensor *sa = check_input_dense(SGK_U8, 2, scale_rows, across), *sb = check_input_dense(SGK_U8, 3, (int64_t)GROUPS, c.columns, across);
    for (int64_t i = 0; i < scale_rows * across; ++i) check_set(sa, i, check_int(110, 120));
    for (int64_t i = 0; i < GROUPS * c.columns * across; ++i) check_set(sb, i, check_int(117, 137));
    check_tensor *out = check_inout(out_dtype, 2, rows, c.columns);
    if (unaligned) check_unaligned(a);
    check_legal(sa, CHECK_SIZE(0));
    check_legal(out, CHECK_DTYPE);
    CHECK_CALL(sgk_es_sm100_mxfp8_blockscaled_grouped_mm(T(out), T(a), TURNED(T(b)), T(sa), TURNED(T(sb)), T(sizes), T(offsets), T(first), check_exec));
    check_close(out, tolerance(out_dtype, c.depth));
    check_done((double)(GROUPS * c.columns * c.depth), 2 * (double)rows * (double)c.columns * (double)c.depth);
}

static void check_mx_quant(sgk_dtype dtype, group_case c, bool unaligned)
{
    if (!check_case("es_sm100_mxfp8_blockscaled_grouped_quant_%s_%lldx%lld%s", check_dtype(dtype), (long long)c.rows[0], (long long)c.depth, unaligned ? "_unaligned" : "")) return;
    check_tensor *sizes, *offsets;
    int64_t       scale_rows;
    const int64_t rows  = sizes_of(c, &sizes, &offsets);
    check_tensor *first = scale_offsets_of(c, &scale_rows), *input = check_input(dtype, 2, rows, c.depth);
    check_tensor *q = check_inout(SGK_E4M3, 2, rows, c.depth), *s = check_inout_dense(SGK_U8, 2, scale_rows, c.depth / 32);
    if (unaligned) check_unaligned(input);
    check_legal(s, CHECK_SIZE(0));
    check_legal(input, CHECK_DTYPE);
    CHECK_CALL(sgk_es_sm100_mxfp8_blockscaled_grouped_quant(T(q), T(s), T(input), T(sizes), T(offsets), T(first), check_exec));
    check_equal(q);
    check_equal(s);
    check_done((double)(rows * c.depth) * (1 + sgk_dtype_size(dtype)), 0);
}

/* ---- lists ------------------------------------------------------------------------------------------------------------- */

static void check_list(sgk_dtype dtype)
{
    if (!check_case("cublas_grouped_gemm_%s", check_dtype(dtype))) return;
    check_tensor *x0 = check_input(dtype, 2, (int64_t)3, (int64_t)40), *w0 = check_input(dtype, 2, (int64_t)9, (int64_t)40), *out0 = check_output(dtype, 2, (int64_t)3, (int64_t)9);
    check_tensor *x1 = check_input_dense(dtype, 2, (int64_t)130, (int64_t)72), *w1 = check_input_dense(dtype, 2, (int64_t)24, (int64_t)72), *out1 = check_output(dtype, 2, (int64_t)130, (int64_t)24);
    CHECK_CALL(sgk_cublas_grouped_gemm((const DLTensor *[]){ T(out0), T(out1) }, 2, (const DLTensor *[]){ T(x0), T(x1) }, 2, (const DLTensor *[]){ T(w0), T(w1) }, 2, check_exec));
    check_close(out0, tolerance(dtype, 40));
    check_close(out1, tolerance(dtype, 72));
    check_done(0, 0);
}

/* bf16, one product alone: the other tiles of sm_90a. */
static void check_list_of_one(int64_t rows, int64_t columns, int64_t depth)
{
    if (!check_case("cublas_grouped_gemm_%lldx%lldx%lld", (long long)rows, (long long)columns, (long long)depth)) return;
    check_tensor *x = check_input_dense(SGK_BF16, 2, rows, depth), *w = check_input_dense(SGK_BF16, 2, columns, depth), *out = check_output_dense(SGK_BF16, 2, rows, columns);
    CHECK_CALL(sgk_cublas_grouped_gemm((const DLTensor *[]){ T(out) }, 1, (const DLTensor *[]){ T(x) }, 1, (const DLTensor *[]){ T(w) }, 1, check_exec));
    check_close(out, tolerance(SGK_BF16, depth));
    check_done(0, 0);
}

static void check_refused(void)
{
    if (!check_case("m_grouped_fp8_gemm_nt_contiguous_refused")) return;
    const operands o     = make(SGK_E4M3, SGK_BF16, false, 3, 16, 128);
    check_tensor  *above = check_values(SGK_I32, (double[]){ 0, 5, 0 }, 1, (int64_t)3), *mixed = check_values(SGK_I32, (double[]){ 1, 1, 2 }, 1, (int64_t)3);
    check_tensor  *behind = check_values(SGK_I32, (double[]){ 3, 2, 2, 2, 2 }, 1, (int64_t)GROUPS);
    if (!check_on_gpu()) {
        CHECK_REFUSED(SGK_BAD_ARG, "grouped_layout[1] is 5, expected less than 5", sgk_m_grouped_fp8_gemm_nt_contiguous(T(o.out), T(o.a), T(o.sa), T(o.b), T(o.sb), T(above), false, check_exec));
        CHECK_REFUSED(SGK_BAD_ARG, "grouped_layout[2] is 2, expected 1 like", sgk_m_grouped_fp8_gemm_nt_contiguous(T(o.out), T(o.a), T(o.sa), T(o.b), T(o.sb), T(mixed), false, check_exec));
        CHECK_REFUSED(SGK_BAD_ARG, "grouped_layout gives group 1 rows 128 to", sgk_m_grouped_fp8_gemm_nt_contiguous(T(o.out), T(o.a), T(o.sa), T(o.b), T(o.sb), T(behind), true, check_exec));
    }
    check_done(0, 0);
}

void check_grouped(void)
{
    static const sgk_dtype formats[]                  = { SGK_BF16, SGK_F16, SGK_F32 };
    static const struct { int64_t m, n, k; } shapes[] = {
        { 0, 5, 7 },
        { 3, 0, 7 },
        { 3, 5, 0 },
        { 1, 1, 1 },
        { 5, 17, 31 },
        { 9, 130, 257 },
        { 33, 65, 300 },
        { 70, 140, 129 },
    };
    /* Rows in 16-byte pieces: the tiles of sm_90a and of sm_80, with few rows K in shares. */
    static const struct { int64_t m, n, k; } dense[] = {
        { 1, 72, 272 },
        { 16, 136, 1168 },
        { 12, 264, 4112 },
        { 17, 8456, 16 },
        { 24, 136, 1040 },
        { 33, 8456, 144 },
        { 33, 7168, 16 },
        { 64, 264, 640 },
        { 65, 4104, 16 },
        { 65, 8456, 144 },
        { 100, 4232, 16 },
        { 128, 640, 512 },
        { 129, 12296, 16 },
        { 260, 8456, 16 },
        { 1100, 136, 16 },
        { 1100, 72, 272 },
        { 9, 4264, 16 },                        /* up to 128 rows, K shared within a block: tiles of 48, 64 and 192 columns, of 64 for more than 64 rows */
        { 33, 8392, 16 },
        { 3, 14800, 16 },
        { 70, 8392, 16 },
        { 65, 136, 2704 },
        { 129, 2856, 16 },                      /* more rows, few columns */
        { 129, 3368, 144 },
        { 129, 2472, 16 },
        { 131, 2152, 16 },
        { 130, 24, 4112 },
        { 100, 4104, 1168 },                    /* few rows: tiles one above the other */
        { 128, 6152, 528 },
        { 128, 6344, 2832 },
        { 66, 4104, 4368 },                     /* tiles of 128 rows, K in two shares */
        { 3, 12688, 784 },
        { 60, 12688, 16 },
    };
    /* Tiles of 256 columns in pairs and alone, of 112, 192 and 224: results leave behind the next tile's products, where a block has several; K past the ring. */
    static const struct { int64_t m, n, k; } behind[] = {
        { 129, 10568, 16 },
        { 257, 8488, 16 },
        { 66, 14328, 272 },
        { 66, 21128, 144 },
        { 129, 14776, 784 },
        { 260, 20488, 400 },
        { 390, 14344, 784 },
    };
    /* K past the ring of the tiles above. */
    static const struct { int64_t m, n, k; } deep[] = { { 9, 4264, 1552 }, { 3, 14800, 912 }, { 65, 6344, 1040 } };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i) check_one(i % 2 ? NT : TURNED_B, formats[i % 3], shapes[i].m, shapes[i].n, shapes[i].k, false);
    for (size_t i = 0; i < sizeof dense / sizeof *dense; ++i)
        if (!check_small || dense[i].m < 1000) check_one(i % 2 ? NT : TURNED_B, formats[i % 3], dense[i].m, dense[i].n, dense[i].k, true);
    for (size_t i = 0; i < sizeof behind / sizeof *behind && check_on_gpu(); ++i)
        if (!check_small || i < 5) check_one(TURNED_B, i % 2 ? SGK_F16 : SGK_BF16, behind[i].m, behind[i].n, behind[i].k, true);
    if (check_on_gpu() && !check_small) check_one(NT, SGK_F32, 260, 16392, 144, true);                                        /* results that cannot leave so: tiles of 128 */
    for (size_t i = 0; i < sizeof deep / sizeof *deep && check_on_gpu() && !check_small; ++i) check_one(i % 2 ? NT : TURNED_B, formats[i % 3], deep[i].m, deep[i].n, deep[i].k, true);
    for (int f = 0; f < 3; ++f) check_one(NT, formats[f], 37, 136, 384, true);
    if (!check_small) check_one(NT, SGK_F32, 8, 24, 65536, true);

    static const group_case cases[] = {
        { { 5, 0, 130, 1, 16 }, 136, 400 },
        { { 0, 0, 0, 0, 0 }, 24, 128 },
        { { 300, 128, 129, 2, 0 }, 264, 272 },
        { { 1, 2, 1, 3, 1 }, 520, 1040 },
        { { 64, 40, 33, 17, 60 }, 72, 144 },
        { { 7, 20, 3, 0, 9 }, 35, 100 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        const sgk_dtype t = formats[i % 3], plain = i % 2 ? SGK_F16 : SGK_BF16;
        check_masked(SGK_E4M3, t, cases[i], i == 1 ? 5 : 150);
        check_masked(plain, i % 3 ? plain : SGK_F32, cases[i], 150);
        check_masked(SGK_BF16, SGK_BF16, cases[i], 150);
        check_contiguous(SGK_E4M3, t, cases[i], false);
        check_contiguous(SGK_E4M3, t, cases[i], true);
        check_contiguous(plain, plain, cases[i], false);
        check_contiguous(SGK_BF16, SGK_BF16, cases[i], true);
        check_offsets(i % 2, t, cases[i]);
        check_offsets(!(i % 2), formats[(i + 1) % 3], cases[i]);
    }
    /* K past the ring, in tiles of 128x160 and 128x128; of these a block has two. */
    for (int i = 0; i < (check_small ? 1 : 2) && check_on_gpu(); ++i) check_contiguous(SGK_E4M3, SGK_BF16, (group_case){ { 70, 1, 2, 1, 3 }, 3400 + 1600 * i, 784 }, false);
    if (check_on_gpu() && !check_small) check_contiguous(SGK_E4M3, SGK_F16, (group_case){ { 300, 1, 384, 200, 130 }, 2040, 144 }, false);    /* of 128x256 */
    check_masked(SGK_F16, SGK_F16, (group_case){ { 130, 128, 129, 2, 0 }, 1672, 72 }, 150);                                  /* large tiles where there is no form of sm_90a */
    static const group_case mx[] = { { { 5, 0, 130, 1, 16 }, 128, 256 }, { { 40, 1, 2, 0, 128 }, 256, 128 }, { { 0, 0, 0, 0, 0 }, 128, 128 } };
    for (size_t i = 0; i < sizeof mx / sizeof *mx; ++i) {
        check_mx(formats[i % 2], mx[i], false);
        check_mx_quant(formats[i % 2], mx[i], false);
        check_mx_quant(formats[i % 2], mx[i], true);
    }
    check_mx(SGK_BF16, mx[0], true);
    check_list(SGK_F16);
    check_list(SGK_BF16);
    check_list_of_one(1, 72, 24);
    check_list_of_one(1, 72, 136);
    check_list_of_one(128, 2056, 136);
    check_list_of_one(520, 4104, 24);
    check_refused();
    if (check_benching) {
        check_one(NT, SGK_BF16, 1, 4096, 4096, true);
        check_one(NT, SGK_BF16, 16, 4096, 7168, true);
        check_one(NT, SGK_BF16, 512, 4096, 4096, true);
        check_masked(SGK_E4M3, SGK_BF16, (group_case){ { 16, 16, 16, 16, 16 }, 4096, 7168 }, 128);
    }
}
