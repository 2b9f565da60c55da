#include <math.h>
#include <string.h>
#include "check/check.h"

enum form { RMS,
            GEMMA,
            GEMMA3,
            GEMMA4,
            GEMMA4_PLAIN,
            L2,
            GATED,
            LAYER,
            LAYER_PLAIN,
            LAYER_ADD };
enum { ALIGNED       = 0,
       UNALIGNED     = 1,
       IN_PLACE      = 2,
       UNALIGNED_OUT = 3,
       DENSE         = 4 };           /* for figures: lines of the caches are not shared by rows */
static const char *const how_names[] = { "", "_unaligned", "_in_place", "_unaligned_output", "" };

typedef check_tensor *making(sgk_dtype dtype, int ndim, ...);

/* The forms that write output and read input. The case begins with the operator's name. */
static void check_out(const char *op, enum form form, sgk_dtype dtype, int64_t rows, int64_t dim, int how)
{
    const char *variant = form == GEMMA4_PLAIN ? "_without_scale" : form == LAYER_PLAIN ? "_without_bias"
                                                                                        : "";
    if (!check_case("%s_%s_%lldx%lld%s%s", op, check_dtype(dtype), (long long)rows, (long long)dim, variant, how_names[how])) return;
    making       *input    = how == DENSE ? check_input_dense : check_input;
    making       *output   = how == DENSE ? check_output_dense : check_output;
    making       *inout    = how == DENSE ? check_inout_dense : check_inout;
    check_tensor *x        = (how == IN_PLACE ? inout : input)(dtype, 2, rows, dim);
    check_tensor *weight   = form == L2 ? NULL : check_input(dtype, 1, dim);
    check_tensor *bias     = form == LAYER || form == LAYER_ADD ? check_input(dtype, 1, dim) : NULL;
    check_tensor *gate     = form == GATED ? input(dtype, 2, rows, dim) : NULL;
    check_tensor *residual = form == LAYER_ADD ? inout(dtype, 2, rows, dim) : NULL;
    check_tensor *out      = how == IN_PLACE ? x : output(dtype, 2, rows, dim);
    if (how == UNALIGNED_OUT) check_unaligned(out);
    if (how == UNALIGNED) check_unaligned(residual ? residual : gate ? gate
                                                                     : x);
    if (bias) check_legal(bias, CHECK_NULL);

    switch (form) {
    case RMS:          CHECK_CALL(sgk_rmsnorm(T(out), T(x), T(weight), 1e-6, check_exec)); break;
    case GEMMA:        CHECK_CALL(sgk_gemma_rmsnorm(T(out), T(x), T(weight), 1e-6, check_exec)); break;
    case GEMMA3:       CHECK_CALL(sgk_gemma3_rmsnorm(T(out), T(x), T(weight), 1e-6, check_exec)); break;
    case GEMMA4:       CHECK_CALL(sgk_gemma4_rmsnorm(T(out), T(x), T(weight), 1e-6, 0.5, true, check_exec)); break;
    case GEMMA4_PLAIN: CHECK_CALL(sgk_gemma4_rmsnorm(T(out), T(x), T(weight), 1e-6, 0.5, false, check_exec)); break;
    case L2:           CHECK_CALL(sgk_l2norm(T(out), T(x), 1e-6, check_exec)); break;
    case GATED:        CHECK_CALL(sgk_fused_rmsnorm_gated(T(out), T(x), T(weight), T(gate), 1e-6, check_exec)); break;
    case LAYER:
    case LAYER_PLAIN:  CHECK_CALL(sgk_layernorm(T(out), T(x), T(weight), T(bias), 1e-6, check_exec)); break;
    case LAYER_ADD:    CHECK_CALL(sgk_fused_add_layernorm(T(out), T(x), T(residual), T(weight), T(bias), 1e-6, check_exec)); break;
    }
    check_close(out, check_tolerance(dtype));
    if (residual) check_close(residual, check_tolerance(dtype));

    const double n = (double)rows * (double)dim;
    check_done((form == LAYER_ADD ? 4 : form == GATED ? 3
                                                      : 2) *
                   n * sgk_dtype_size(dtype),
               4 * n);
}

/* Weights that make every second result a subnormal number, among rows where none is: on the CPU these are the reference's to a step. */
static void check_subnormal(const char *op, enum form form)
{
    if (!check_case("%s_bf16_subnormal", op) || check_on_gpu()) return;
    const int64_t rows = 7, dim = 200;
    check_tensor *x = check_input(SGK_BF16, 2, rows, dim), *weight = check_input(SGK_BF16, 1, dim), *bias = form == LAYER ? check_input(SGK_BF16, 1, dim) : NULL, *out = check_output(SGK_BF16, 2, rows, dim);
    if (bias) check_legal(bias, CHECK_NULL);
    for (int64_t d = 0; d < dim; d += 2) check_set(weight, d, 0x1p-128);
    for (int64_t d = 0; bias && d < dim; d += 2) check_set(bias, d, 0);
    for (int64_t d = 0; d < dim; ++d) check_set(x, 3 * dim + d, 0);
    if (form == RMS) CHECK_CALL(sgk_rmsnorm(T(out), T(x), T(weight), 1e-6, check_exec));
    else CHECK_CALL(sgk_layernorm(T(out), T(x), T(weight), T(bias), 1e-6, check_exec));
    for (int64_t i = 0; i < rows * dim; i += 2)
        check_that(fabs(check_result_of(out, i) - check_reference_of(out, i)) <= 0x1p-133, "element %lld is %g, the reference's %g", (long long)i, check_result_of(out, i), check_reference_of(out, i));
    check_done(0, 0);
}

static void check_add(const char *op, bool gemma, sgk_dtype dtype, int64_t rows, int64_t dim, int how)
{
    if (!check_case("%s_%s_%lldx%lld%s", op, check_dtype(dtype), (long long)rows, (long long)dim, how_names[how])) return;
    making       *inout  = how == DENSE ? check_inout_dense : check_inout;
    check_tensor *x      = inout(dtype, 2, rows, dim);
    check_tensor *r      = inout(dtype, 2, rows, dim);
    check_tensor *weight = check_input(dtype, 1, dim);
    if (how == UNALIGNED) check_unaligned(r);

    if (gemma) CHECK_CALL(sgk_gemma_fused_add_rmsnorm(T(x), T(r), T(weight), 1e-6, check_exec));
    else CHECK_CALL(sgk_fused_add_rmsnorm(T(x), T(r), T(weight), 1e-6, check_exec));
    check_close(x, check_tolerance(dtype));
    check_close(r, check_tolerance(dtype));

    const double n = (double)rows * (double)dim;
    check_done(4 * n * sgk_dtype_size(dtype), 6 * n);
}

/* The tensor without the last entry of its dimension before the rows' (and of the one before that): dimensions that do not fold into
 * one. What is left out must stay as it was. `place` says whose copy is used. */
static const DLTensor *slice(const DLTensor *t, int place)
{
    static DLTensor view[3];
    static int64_t  shape[3][8];
    if (!t || t->ndim < 2 || t->ndim > 8) return t;
    view[place] = *t;
    memcpy(shape[place], t->shape, (size_t)t->ndim * sizeof *t->shape);
    for (int d = t->ndim - 2; d > 0 && d >= t->ndim - 3; --d)
        if (shape[place][d] > 1) shape[place][d]--;
    view[place].shape = shape[place];
    return &view[place];
}

/* Three and four dimensions. Sliced, every dimension has its own stride; whole, they fold. */
static void check_ranks(const char *op, enum form form, sgk_dtype dtype, int ndim, bool sliced)
{
    if (!check_case("%s_%s_%dd%s", op, check_dtype(dtype), ndim, sliced ? "_sliced" : "")) return;
    const bool    add = form == LAYER_ADD;
    check_tensor *x, *out, *other = NULL;
    if (ndim == 3) {
        x   = check_input(dtype, 3, (int64_t)3, (int64_t)5, (int64_t)128);
        out = check_inout(dtype, 3, (int64_t)3, (int64_t)5, (int64_t)128);
        if (add || form == GATED) other = (add ? check_inout : check_input)(dtype, 3, (int64_t)3, (int64_t)5, (int64_t)128);
    } else {
        x   = check_input(dtype, 4, (int64_t)2, (int64_t)3, (int64_t)6, (int64_t)48);
        out = check_inout(dtype, 4, (int64_t)2, (int64_t)3, (int64_t)6, (int64_t)48);
        if (add || form == GATED) other = (add ? check_inout : check_input)(dtype, 4, (int64_t)2, (int64_t)3, (int64_t)6, (int64_t)48);
    }
    check_tensor *weight          = check_input(dtype, 1, ndim == 3 ? (int64_t)128 : (int64_t)48);
    check_switches.keep_arguments = sliced;             /* where an argument is broken, its slice may be whole again */

#define S(t, place) (sliced ? slice(T(t), place) : T(t))
    switch (form) {
    case RMS:       CHECK_CALL(sgk_rmsnorm(S(out, 0), S(x, 1), T(weight), 1e-6, check_exec)); break;
    case GEMMA3:    CHECK_CALL(sgk_gemma3_rmsnorm(S(out, 0), S(x, 1), T(weight), 1e-6, check_exec)); break;
    case GATED:     CHECK_CALL(sgk_fused_rmsnorm_gated(S(out, 0), S(x, 1), T(weight), S(other, 2), 1e-6, check_exec)); break;
    case LAYER_ADD: CHECK_CALL(sgk_fused_add_layernorm(S(out, 0), S(x, 1), S(other, 2), T(weight), NULL, 1e-6, check_exec)); break;
    default:        CHECK_CALL(sgk_layernorm(S(out, 0), S(x, 1), T(weight), NULL, 1e-6, check_exec)); break;
    }
#undef S
    check_close(out, check_tolerance(dtype));
    if (add) check_close(other, check_tolerance(dtype));
    check_done(0, 0);
}

static void check_add_ranks(const char *op, sgk_dtype dtype)
{
    if (!check_case("%s_%s_3d", op, check_dtype(dtype))) return;
    check_tensor *x      = check_inout(dtype, 3, (int64_t)3, (int64_t)5, (int64_t)64);
    check_tensor *r      = check_inout_dense(dtype, 3, (int64_t)3, (int64_t)5, (int64_t)64);
    check_tensor *weight = check_input(dtype, 1, (int64_t)64);
    CHECK_CALL(sgk_fused_add_rmsnorm(T(x), T(r), T(weight), 1e-6, check_exec));
    check_close(x, check_tolerance(dtype));
    check_close(r, check_tolerance(dtype));
    check_done(0, 0);
}

/* What no broken tensor shows: numbers out of range, and more dimensions than four. */
static void check_refused(const char *op, enum form form)
{
    if (!check_case("%s_refused", op)) return;
    check_tensor *x      = check_input(SGK_F32, 2, (int64_t)2, (int64_t)8);
    check_tensor *five   = check_input(SGK_F32, 5, (int64_t)1, (int64_t)1, (int64_t)1, (int64_t)2, (int64_t)8);
    check_tensor *weight = check_input(SGK_F32, 1, (int64_t)8);
    check_tensor *out    = check_output(SGK_F32, 2, (int64_t)2, (int64_t)8);
    if (form == GEMMA4) {
        CHECK_REFUSED(SGK_BAD_ARG, "scale_shift", sgk_gemma4_rmsnorm(T(out), T(x), T(weight), 1e-6, INFINITY, true, check_exec));
    } else if (form == LAYER) {
        CHECK_REFUSED(SGK_BAD_ARG, "eps", sgk_layernorm(T(out), T(x), T(weight), NULL, NAN, check_exec));
    } else {
        CHECK_REFUSED(SGK_BAD_ARG, "eps", sgk_rmsnorm(T(out), T(x), T(weight), -1, check_exec));
        CHECK_REFUSED(SGK_BAD_ARG, "dimensions", sgk_rmsnorm(T(out), T(five), T(weight), 1e-6, check_exec));
    }
    check_done(0, 0);
}

void check_norm(void)
{
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    /* 16 bytes each: a row that fills each build, and one too long for all. The rarer forms have fewer builds. */
    static const int64_t pieces[]     = { 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 4097 };
    static const int64_t few_pieces[] = { 16, 32, 64, 128, 512, 1024, 2048, 2049 };
    static const int64_t some[]       = { 0, 1, 7, 8, 64, 111, 500, 1000, 1037, 7168, 40000, 65536 };
    static const int64_t few[]        = { 1, 111 };
    const int64_t       *dims         = check_small ? few : some;
    const size_t         count        = check_small ? sizeof few / sizeof *few : sizeof some / sizeof *some;

    for (size_t f = 0; f < 3; ++f) {
        const sgk_dtype t     = formats[f];
        const int64_t   piece = 16 / sgk_dtype_size(t);
        for (size_t i = 0; i < sizeof pieces / sizeof *pieces; ++i) {
            check_out("rmsnorm", RMS, t, 2, pieces[i] * piece, ALIGNED);
            check_add("fused_add_rmsnorm", false, t, 2, pieces[i] * piece, ALIGNED);
        }
        for (size_t i = 0; i < sizeof few_pieces / sizeof *few_pieces; ++i) {
            check_out("fused_rmsnorm_gated_cpu", GATED, t, 3, few_pieces[i] * piece, ALIGNED);
            check_out("layernorm_cpu", LAYER, t, 3, few_pieces[i] * piece, ALIGNED);
            check_out("fused_add_layernorm_cpu", LAYER_ADD, t, 3, few_pieces[i] * piece, ALIGNED);
        }
        for (size_t i = 0; i < count; ++i) {
            check_out("rmsnorm", RMS, t, check_small ? 2 : check_int(1, 5), dims[i], ALIGNED);
            check_add("fused_add_rmsnorm", false, t, check_small ? 2 : check_int(1, 5), dims[i], ALIGNED);
            check_out("gemma_rmsnorm", GEMMA, t, 2, dims[i], ALIGNED);
            check_add("gemma_fused_add_rmsnorm", true, t, 2, dims[i], ALIGNED);
            check_out("fused_rmsnorm_gated_cpu", GATED, t, 2, dims[i], ALIGNED);
            check_out("layernorm_cpu", LAYER, t, 2, dims[i], ALIGNED);
            check_out("fused_add_layernorm_cpu", LAYER_ADD, t, 2, dims[i], ALIGNED);
        }
        /* Rows that share a block: the last block is not full. */
        check_out("rmsnorm", RMS, t, 37, 12 * piece, ALIGNED);
        check_out("rmsnorm", RMS, t, 13, 20 * piece, ALIGNED);
        check_out("rmsnorm", RMS, t, 6, 40 * piece, ALIGNED);
        check_add("fused_add_rmsnorm", false, t, 37, 12 * piece, ALIGNED);
        check_out("layernorm_cpu", LAYER, t, 37, 12 * piece, ALIGNED);
        check_out("layernorm_cpu", LAYER_PLAIN, t, 7, 100 * piece, ALIGNED);

        check_out("rmsnorm", RMS, t, 0, 64, ALIGNED);
        check_out("rmsnorm", RMS, t, 3, 128, UNALIGNED);
        check_out("rmsnorm", RMS, t, 3, 200, IN_PLACE);
        check_add("fused_add_rmsnorm", false, t, 3, 128, UNALIGNED);
        check_out("fused_rmsnorm_gated_cpu", GATED, t, 3, 128, UNALIGNED);
        check_out("layernorm_cpu", LAYER, t, 3, 128, UNALIGNED);
        check_out("layernorm_cpu", LAYER, t, 3, 200, IN_PLACE);
        check_out("fused_add_layernorm_cpu", LAYER_ADD, t, 3, 128, UNALIGNED);

        check_out("rmsnorm_cpu", RMS, t, 5, 533, ALIGNED);
        check_out("gemma_rmsnorm_cpu", GEMMA, t, 5, 256, ALIGNED);
        check_out("gemma3_rmsnorm_cpu", GEMMA3, t, 5, 256, ALIGNED);
        check_out("gemma4_rmsnorm_cpu", GEMMA4, t, 5, 256, ALIGNED);
        check_out("gemma4_rmsnorm_cpu", GEMMA4_PLAIN, t, 5, 33, ALIGNED);
        check_out("l2norm_cpu", L2, t, 5, 128, ALIGNED);
        check_out("l2norm_cpu", L2, t, 5, 1037, ALIGNED);
        check_add("fused_add_rmsnorm_cpu", false, t, 5, 533, ALIGNED);
        check_add("gemma_fused_add_rmsnorm_cpu", true, t, 5, 256, ALIGNED);
        check_add_ranks("fused_add_rmsnorm_cpu", t);
        for (int sliced = 0; sliced < 2; ++sliced) {
            check_ranks("rmsnorm_cpu", RMS, t, 3, sliced);
            check_ranks("rmsnorm_cpu", RMS, t, 4, sliced);
            check_ranks("gemma3_rmsnorm_cpu", GEMMA3, t, 4, sliced);
            check_ranks("fused_rmsnorm_gated_cpu", GATED, t, 4, sliced);
            check_ranks("layernorm_cpu", LAYER, t, 3, sliced);
            check_ranks("fused_add_layernorm_cpu", LAYER_ADD, t, 4, sliced);
        }
    }
    /* Outputs written around the caches, wherever their rows begin. */
    sgk_cpu_cache(1);
    for (size_t f = 0; f < 3; ++f) {
        check_out("rmsnorm", RMS, formats[f], 5, 301, ALIGNED);
        check_out("rmsnorm", RMS, formats[f], 3, 160, UNALIGNED_OUT);
        check_out("rmsnorm", RMS, formats[f], 4, 7, ALIGNED);
        check_out("fused_rmsnorm_gated_cpu", GATED, formats[f], 5, 303, ALIGNED);
        check_out("layernorm_cpu", LAYER, formats[f], 5, 305, ALIGNED);
        check_out("fused_add_layernorm_cpu", LAYER_ADD, formats[f], 5, 307, UNALIGNED_OUT);
    }
    sgk_cpu_cache(0);
    check_subnormal("rmsnorm", RMS);
    check_subnormal("layernorm_cpu", LAYER);
    check_refused("rmsnorm", RMS);
    check_refused("gemma4_rmsnorm_cpu", GEMMA4);
    check_refused("layernorm_cpu", LAYER);
    if (check_benching) {
        check_out("rmsnorm", RMS, SGK_BF16, 1, 4096, DENSE);
        check_out("rmsnorm", RMS, SGK_BF16, 64, 4096, DENSE);
        check_out("rmsnorm", RMS, SGK_BF16, 16384, 4096, DENSE);
        check_out("rmsnorm", RMS, SGK_BF16, 524288, 128, DENSE);
        check_out("rmsnorm", RMS, SGK_BF16, 65536, 1024, DENSE);
        check_out("rmsnorm", RMS, SGK_BF16, 4096, 7168, DENSE);
        check_out("rmsnorm", RMS, SGK_BF16, 4096, 16384, DENSE);
        check_add("fused_add_rmsnorm", false, SGK_BF16, 64, 4096, DENSE);
        check_add("fused_add_rmsnorm", false, SGK_BF16, 16384, 4096, DENSE);
        check_add("fused_add_rmsnorm", false, SGK_BF16, 4096, 7168, DENSE);
        check_out("gemma_rmsnorm", GEMMA, SGK_BF16, 16384, 4096, DENSE);
        check_add("gemma_fused_add_rmsnorm", true, SGK_BF16, 16384, 4096, DENSE);
        check_out("gemma3_rmsnorm_cpu", GEMMA3, SGK_BF16, 16384, 4096, DENSE);
        check_out("gemma4_rmsnorm_cpu", GEMMA4, SGK_BF16, 16384, 4096, DENSE);
        check_out("l2norm_cpu", L2, SGK_BF16, 524288, 128, DENSE);
        check_out("fused_rmsnorm_gated_cpu", GATED, SGK_BF16, 524288, 128, DENSE);
        check_out("fused_rmsnorm_gated_cpu", GATED, SGK_BF16, 16384, 4096, DENSE);
        check_out("layernorm_cpu", LAYER, SGK_BF16, 16384, 4096, DENSE);
        check_out("fused_add_layernorm_cpu", LAYER_ADD, SGK_BF16, 16384, 4096, DENSE);
    }
}
