#include "gemm_check.h"
#include "gemm_scaled.h"

/*
 * One rounding to the format of out, and f32 sums of K products. Those of 8-bit floats on the matrix units of sm_90a are cut to 14 bits within
 * 128 to 384 products; integers are exact, up to the rounding of a sum to f32.
 */
static double tolerance(sgk_dtype dtype, sgk_dtype out, int64_t depth)
{
    return check_tolerance(out) + (dtype == SGK_I8 ? 0 : 0x1p-22 * sqrt((double)depth) + (check_on_gpu() ? 1e-3 : 0));
}

/* The transpose of a matrix, or of each matrix of a batch, as the public functions take mat_b. Broken arguments are passed on as they are. */
typedef struct {
    DLTensor t;
    int64_t  shape[3], strides[3];
} turned;
static const DLTensor *turn(turned *to, const DLTensor *t, int ndim)
{
    if (!t || t->ndim != ndim || !t->strides) return t;
    to->t = *t, to->t.shape = to->shape, to->t.strides = to->strides;
    for (int d = 0; d < ndim; ++d) to->shape[d] = t->shape[d], to->strides[d] = t->strides[d];
    to->shape[ndim - 1] = t->shape[ndim - 2], to->strides[ndim - 1] = t->strides[ndim - 2];
    to->shape[ndim - 2] = t->shape[ndim - 1], to->strides[ndim - 2] = t->strides[ndim - 1];
    return &to->t;
}

static sgk_status fp8_scaled_mm(const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a, const DLTensor *scales_b,
                                const DLTensor *bias, const sgk_exec *exec)
{
    turned b;
    return sgk_fp8_scaled_mm(out, mat_a, turn(&b, mat_b, 2), scales_a, scales_b, bias, exec);
}

static sgk_status int8_scaled_mm(const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a, const DLTensor *scales_b,
                                 const DLTensor *bias, const sgk_exec *exec)
{
    turned b;
    return sgk_int8_scaled_mm(out, mat_a, turn(&b, mat_b, 2), scales_a, scales_b, bias, exec);
}

typedef sgk_status scaled_mm_fn(const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a, const DLTensor *scales_b,
                                const DLTensor *bias, const sgk_exec *exec);
static scaled_mm_fn *function_of(sgk_dtype dtype) { return dtype == SGK_I8 ? int8_scaled_mm : fp8_scaled_mm; }
static const char *name_of(sgk_dtype dtype) { return dtype == SGK_I8 ? "int8_scaled_mm" : "fp8_scaled_mm"; }

enum { BIAS      = 1,
       ONE_SCALE = 2,           /* for all rows, and for all columns */
       DENSE     = 4,
       UNALIGNED = 8 };

/* Integers over their whole range. */
static check_tensor *codes(sgk_dtype dtype, bool dense, int64_t rows, int64_t columns)
{
    if (dtype == SGK_I8) return check_index(SGK_I8, -128, 127, 2, rows, columns);
    return dense ? check_input_dense(dtype, 2, rows, columns) : check_input(dtype, 2, rows, columns);
}

static void check_scaled_mm(sgk_dtype dtype, sgk_dtype out_dtype, int how, int64_t rows, int64_t columns, int64_t depth)
{
    if (!check_case("%s_%s%s%s_%lldx%lldx%lld%s%s", name_of(dtype), check_dtype(out_dtype), how & BIAS ? "_bias" : "", how & ONE_SCALE ? "_one_scale" : "",
                    (long long)rows, (long long)columns, (long long)depth, how & DENSE ? "_dense" : "", how & UNALIGNED ? "_unaligned" : "")) return;
    const int64_t one      = 1;
    check_tensor *mat_a    = codes(dtype, how & DENSE, rows, depth);
    check_tensor *mat_b    = codes(dtype, how & DENSE, columns, depth);
    check_tensor *scales_a = how & ONE_SCALE ? check_input(SGK_F32, 1, one) : check_input(SGK_F32, 2, rows, one);
    check_tensor *scales_b = how & ONE_SCALE ? check_input(SGK_F32, 1, one) : check_input(SGK_F32, 1, columns);
    check_tensor *bias     = how & BIAS ? check_input(out_dtype, 1, columns) : NULL;
    check_tensor *out      = check_output(out_dtype, 2, rows, columns);
    if (how & UNALIGNED) check_unaligned(mat_a), check_unaligned(mat_b), check_unaligned(out);
    /* One element is as good as one for each. */
    check_legal(scales_a, CHECK_NDIM | CHECK_STRIDE | (rows == 0 || rows == 2 ? CHECK_SIZE(0) : 0));
    check_legal(scales_b, CHECK_NDIM | (columns == 0 || columns == 2 ? CHECK_SIZE(0) : 0));
    check_legal(out, CHECK_DTYPE);                      /* may have another of the three formats, without a bias */
    if (bias) check_legal(bias, CHECK_NULL), check_legal(out, 0);
    if (how & ONE_SCALE) check_legal(scales_a, CHECK_NDIM | CHECK_STRIDE | (rows == 2 ? CHECK_SIZE(0) : 0)), check_legal(scales_b, CHECK_NDIM | (columns == 2 ? CHECK_SIZE(0) : 0));

    scaled_mm_fn *const run = function_of(dtype);
    CHECK_CALL(run(T(out), T(mat_a), T(mat_b), T(scales_a), T(scales_b), T(bias), check_exec));
    check_close(out, tolerance(dtype, out_dtype, depth));

    const double m = (double)rows, n = (double)columns, k = (double)depth;
    check_done(m * k + n * k + m * n * sgk_dtype_size(out_dtype), 2 * m * n * k);
}

static void check_bmm_fp8(sgk_dtype a_dtype, sgk_dtype b_dtype, sgk_dtype out_dtype, int64_t batch, int64_t rows, int64_t columns, int64_t depth, bool dense)
{
    if (!check_case("bmm_fp8_%s_%s_%s_%lldx%lldx%lldx%lld%s", check_dtype(a_dtype), check_dtype(b_dtype), check_dtype(out_dtype), (long long)batch, (long long)rows,
                    (long long)columns, (long long)depth, dense ? "_dense" : "")) return;
    const int64_t one     = 1;
    check_tensor *A       = dense ? check_input_dense(a_dtype, 3, batch, rows, depth) : check_input(a_dtype, 3, batch, rows, depth);
    check_tensor *B       = dense ? check_input_dense(b_dtype, 3, batch, columns, depth) : check_input(b_dtype, 3, batch, columns, depth);
    check_tensor *A_scale = check_input(SGK_F32, 1, one), *B_scale = check_input(SGK_F32, 1, one);
    check_tensor *D = check_output(out_dtype, 3, batch, rows, columns);
    check_legal(A_scale, CHECK_NDIM | CHECK_STRIDE);
    check_legal(B_scale, CHECK_NDIM | CHECK_STRIDE);
    check_tensor *workspace_buffer = check_input(SGK_U8, 1, one);
    check_legal(workspace_buffer, CHECK_NULL | CHECK_NDIM | CHECK_STRIDE | CHECK_SIZE(0));
    check_legal(A, CHECK_DTYPE), check_legal(B, CHECK_DTYPE), check_legal(D, CHECK_DTYPE);      /* each has others to choose from */
    turned b;
    CHECK_CALL(sgk_bmm_fp8(T(D), T(A), turn(&b, T(B), 3), T(A_scale), T(B_scale), T(workspace_buffer), check_exec));
    check_close(D, tolerance(a_dtype, out_dtype, depth));

    const double m = (double)rows, n = (double)columns, k = (double)depth;
    check_done((double)batch * (m * k + n * k + m * n * sgk_dtype_size(out_dtype)), 2 * (double)batch * m * n * k);
}

/* NaN and infinity reach the row and the column that they are in, and nothing else; e5m2 has both, e4m3 NaN. */
static void check_bmm_fp8_special(void)
{
    if (!check_case("bmm_fp8_special")) return;
    const int64_t batch = 2, rows = 9, columns = 24, depth = 160, one = 1;
    check_tensor *A = check_input_dense(SGK_E5M2, 3, batch, rows, depth), *B = check_input_dense(SGK_E4M3, 3, batch, columns, depth);
    check_tensor *A_scale = check_input(SGK_F32, 1, one), *B_scale = check_input(SGK_F32, 1, one);
    check_set_code(A, 3 * depth + 5, 0x7c);             /* infinity in row 3 */
    check_set_code(A, 4 * depth + 150, 0x7e);           /* NaN in row 4 */
    check_set_code(B, 7 * depth + 3, 0xff);             /* NaN in column 7 */
    for (int64_t n = 0; n < columns; ++n) check_set_code(B, n * depth + 5, n == 7 ? 0x7f : n % 2 ? 0x38
                                                                                                 : 0xb8);
    check_tensor *D                = check_output(SGK_BF16, 3, batch, rows, columns);
    check_tensor *workspace_buffer = NULL;
    check_switches.keep_arguments  = true;
    turned b;
    CHECK_CALL(sgk_bmm_fp8(T(D), T(A), turn(&b, T(B), 3), T(A_scale), T(B_scale), T(workspace_buffer), check_exec));
    check_close(D, tolerance(SGK_E5M2, SGK_BF16, depth));
    check_done(0, 0);
}

/* Sums beyond 24 bits, which no f32 sum would give. */
static void check_int8_exact(int64_t rows, int64_t depth)
{
    if (!check_case("int8_scaled_mm_exact_%lldx%lld", (long long)rows, (long long)depth)) return;
    const int64_t columns = 40, one = 1;
    check_tensor *mat_a = check_index(SGK_I8, 120, 127, 2, rows, depth), *mat_b = check_index(SGK_I8, -128, -120, 2, columns, depth);
    const double  ones[]   = { 1 };
    check_tensor *scales_a = check_values(SGK_F32, ones, 1, one), *scales_b = check_values(SGK_F32, ones, 1, one);
    check_tensor *out             = check_output(SGK_F32, 2, rows, columns);
    check_switches.keep_arguments = true;
    CHECK_CALL(int8_scaled_mm(T(out), T(mat_a), T(mat_b), T(scales_a), T(scales_b), NULL, check_exec));
    check_equal(out);
    check_done(0, 0);
}

static sgk_status fp8_product(const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a, const DLTensor *scales_b, const sgk_exec *exec)
{
    return fp8_scaled_mm(out, mat_a, mat_b, scales_a, scales_b, NULL, exec);
}
static sgk_status int8_product(const DLTensor *out, const DLTensor *mat_a, const DLTensor *mat_b, const DLTensor *scales_a, const DLTensor *scales_b, const sgk_exec *exec)
{
    return int8_scaled_mm(out, mat_a, mat_b, scales_a, scales_b, NULL, exec);
}

static void check_scaled_invariant(sgk_dtype dtype, int64_t columns, int64_t depth)
{
    if (!check_case("%s_batch_invariant_%lldx%lld", name_of(dtype), (long long)columns, (long long)depth)) return;
    check_switches.batch_invariant = SGK_ON;
    check_switches.keep_arguments  = true;
    check_tensor *mat_a = codes(dtype, true, (int64_t)INVARIANT_ROWS, depth), *mat_b = codes(dtype, true, columns, depth);
    check_tensor *scales_a = check_input(SGK_F32, 1, (int64_t)INVARIANT_ROWS), *scales_b = check_input(SGK_F32, 1, columns);
    check_tensor *out = check_output(SGK_F32, 2, (int64_t)INVARIANT_ROWS, columns), *alone = check_output(SGK_F32, 2, (int64_t)INVARIANT_ALONE, columns);
    CHECK_CALL(check_all_and_alone(dtype == SGK_I8 ? int8_product : fp8_product, false, T(out), T(alone), T(mat_a), T(mat_b), T(scales_a), T(scales_b), check_exec));
    check_close(out, tolerance(dtype, SGK_F32, depth));
    check_same_alone(out, alone, columns);
    check_done(0, 0);
}

static void check_scaled_refused(sgk_dtype dtype)
{
    if (!check_case("%s_refused", name_of(dtype))) return;
    const int64_t       one = 1, three = 3, four = 4, five = 5, sixteen = 16;
    check_tensor       *mat_a = codes(dtype, true, three, sixteen), *mat_b = codes(dtype, true, four, sixteen), *rows_b = codes(dtype, true, sixteen, four);
    check_tensor       *scales_a = check_input(SGK_F32, 2, three, one), *scales_b = check_input(SGK_F32, 1, four), *too_many = check_input(SGK_F32, 1, five);
    check_tensor       *bias = check_input(SGK_F32, 1, four), *out = check_output(SGK_BF16, 2, three, four);
    scaled_mm_fn *const run = function_of(dtype);
    CHECK_REFUSED(SGK_BAD_ARG, "scales_a has 5 elements, expected 3 or 1", run(T(out), T(mat_a), T(mat_b), T(too_many), T(scales_b), NULL, check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "scales_b has 5 elements, expected 4 or 1", run(T(out), T(mat_a), T(mat_b), T(scales_a), T(too_many), NULL, check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "bias has dtype f32, expected bf16", run(T(out), T(mat_a), T(mat_b), T(scales_a), T(scales_b), T(bias), check_exec));
    CHECK_REFUSED(SGK_BAD_ARG, "mat_b has stride 4 in dimension 0, expected 1 (column-major)",
                  (dtype == SGK_I8 ? sgk_int8_scaled_mm : sgk_fp8_scaled_mm)(T(out), T(mat_a), T(rows_b), T(scales_a), T(scales_b), NULL, check_exec));
    check_done(0, 0);
}

void check_scaled_shape(int64_t rows, int64_t columns, int64_t depth)
{
    check_scaled_mm(SGK_E4M3, SGK_BF16, DENSE, rows, columns, depth);
    check_scaled_mm(SGK_I8, SGK_BF16, DENSE, rows, columns, depth);
}

void check_scaled(void)
{
    static const struct { int64_t m, n, k; } shapes[] = {
        { 0, 5, 7 },
        { 3, 0, 7 },
        { 3, 5, 0 },
        { 1, 1, 1 },
        { 2, 17, 31 },
        { 3, 5, 512 },
        { 6, 70, 513 },
        { 7, 33, 1025 },
        { 12, 19, 64 },
        { 25, 65, 100 },
        { 33, 130, 2100 },
        { 200, 9, 48 },
    };
    /* Aligned and dense, for the GPU's builds, from few rows to many, small ones with K in 1 to 4 shares. */
    static const struct { int64_t m, n, k; } tiled[] = {
        { 1, 77, 1040 },
        { 3, 72, 16 },
        { 1, 200, 528 },
        { 3, 136, 2064 },
        { 3, 25368, 144 },
        { 24, 136, 2192 },
        { 20, 8456, 144 },
        { 40, 200, 2064 },
        { 40, 8456, 16 },
        { 70, 200, 2064 },
        { 66, 2568, 144 },
        { 200, 1160, 16 },
        { 1100, 2056, 16 },
        { 130, 12296, 16 },
        { 260, 8456, 16 },
        { 130, 16392, 16 },
        { 120, 136, 8208 },
        { 66, 21120, 144 },
        { 300, 600, 144 },
        { 500, 3400, 144 },
        { 9, 6312, 2064 },                      /* up to 128 rows: each tile of the form that shares K within a block, and tiles one above the other */
        { 12, 7384, 2064 },
        { 20, 7408, 2064 },
        { 3, 12688, 1168 },
        { 33, 14808, 272 },
        { 64, 16928, 1040 },
        { 60, 8488, 400 },
        { 100, 4104, 1168 },
        { 128, 6152, 528 },
        { 66, 136, 2304 },
        { 66, 4104, 4368 },                     /* tiles of 128 rows: 64 columns with K in two shares, and in one, and 112 columns */
        { 122, 8392, 2064 },
        { 90, 14344, 2064 },
        { 24, 25608, 16 },
        { 40, 25608, 16 },                      /* more columns than that form takes */
    };
    static const sgk_dtype formats[] = { SGK_E4M3, SGK_I8 }, outs[] = { SGK_BF16, SGK_F16, SGK_F32 };
    for (int f = 0; f < 2; ++f) {
        const sgk_dtype t = formats[f];
        for (int i = 0; i < (int)(sizeof shapes / sizeof *shapes); ++i)
            check_scaled_mm(t, outs[(i + f) % 3], (i % 2 ? BIAS : 0) | (i % 3 == 2 ? ONE_SCALE : 0) | (i % 4 == 3 ? UNALIGNED : 0), shapes[i].m, shapes[i].n, shapes[i].k);
        for (int i = 0; i < (int)(sizeof tiled / sizeof *tiled); ++i)
            check_scaled_mm(t, outs[(i + f) % 3], (i % 2 ? BIAS : 0) | (i % 5 == 2 ? ONE_SCALE : 0) | DENSE, tiled[i].m, tiled[i].n, tiled[i].k);
        for (int o = 0; o < 3; ++o) check_scaled_mm(t, outs[o], o == 1 ? BIAS : 0, 5, 12, 48);
        check_scaled_invariant(t, 75, 1296);
        check_scaled_invariant(t, 10, 2077);
        check_scaled_invariant(t, 136, 1040);
        check_scaled_refused(t);
    }
    if (check_on_gpu()) check_scaled_mm(SGK_I8, SGK_BF16, DENSE, 65, 29568, 2432);      /* the widest tile, which only deep products choose */
    /* Tiles of 256 x 128, one and several a block, with K in one piece, in two, three and more. */
    static const struct { int64_t m, n, k; } chains[] = {
        { 390, 5768, 144 },
        { 508, 8440, 16 },
        { 390, 12808, 272 },
        { 390, 12808, 400 },
        { 390, 12808, 656 },
        { 390, 29000, 144 },
    };
    if (check_on_gpu())
        for (int o = 0; o < 2; ++o)
            for (int i = 0; i < (check_small ? 1 : (int)(sizeof chains / sizeof *chains)); ++i)
                check_scaled_mm(SGK_E4M3, outs[o], DENSE | (i % 2 == o ? BIAS : 0) | (i == 3 ? ONE_SCALE : 0), chains[i].m, chains[i].n, chains[i].k);
    check_int8_exact(5, 70000);
    check_int8_exact(70, 4112);

    static const sgk_dtype pairs[][2] = { { SGK_E4M3, SGK_E4M3 }, { SGK_E4M3, SGK_E5M2 }, { SGK_E5M2, SGK_E4M3 }, { SGK_E5M2, SGK_E5M2 } };
    for (int p = 0; p < 4; ++p) {
        check_bmm_fp8(pairs[p][0], pairs[p][1], SGK_BF16, 3, 5, 40, 64, true);
        check_bmm_fp8(pairs[p][0], pairs[p][1], SGK_F16, 2, 130, 136, 272, false);
        check_bmm_fp8(pairs[p][0], pairs[p][1], SGK_F32, 2, 7, 11, 37, p % 2);
    }
    check_bmm_fp8(SGK_E4M3, SGK_E4M3, SGK_BF16, 3, 24, 264, 528, true);
    check_bmm_fp8(SGK_E4M3, SGK_E4M3, SGK_F16, 2, 100, 264, 528, true);
    check_bmm_fp8(SGK_E4M3, SGK_E4M3, SGK_BF16, 0, 5, 40, 64, true);
    check_bmm_fp8(SGK_E4M3, SGK_E4M3, SGK_BF16, 16, 48, 80, 64, true);
    if (check_on_gpu() && !check_small) check_bmm_fp8(SGK_E4M3, SGK_E4M3, SGK_BF16, 3, 390, 2568, 144, true);
    check_bmm_fp8_special();
    if (check_benching) {
        for (int f = 0; f < 2; ++f) {
            check_scaled_mm(formats[f], SGK_BF16, DENSE, 1, 4096, 4096);
            check_scaled_mm(formats[f], SGK_BF16, DENSE, 16, 4096, 4096);
            check_scaled_mm(formats[f], SGK_BF16, DENSE, 512, 4096, 4096);
        }
        check_bmm_fp8(SGK_E4M3, SGK_E4M3, SGK_BF16, 16, 512, 128, 512, true);
    }
}
