#include <math.h>
#include "norm.h"
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/norm.h"

SGK_CPU_DECL(rmsnorm);
SGK_CPU_DECL(fused_add_rmsnorm);
SGK_CPU_DECL(fused_rmsnorm_gated);
SGK_CPU_DECL(layernorm);
SGK_CPU_DECL(fused_add_layernorm);

/* By form. */
static const sgk_cpu_impl cpu_impls[][sizeof(sgk_cpu_impl[]) SGK_CPU_IMPLS(rmsnorm) / sizeof(sgk_cpu_impl)] = {
    SGK_CPU_IMPLS(rmsnorm),
    SGK_CPU_IMPLS(fused_add_rmsnorm),
    SGK_CPU_IMPLS(fused_rmsnorm_gated),
    SGK_CPU_IMPLS(layernorm),
    SGK_CPU_IMPLS(fused_add_layernorm),
};

/*
 * Every build of norm.cu, the narrowest first. A row of up to `lanes * vecs` 16-byte pieces stays in the registers of its threads; with
 * 0 they keep nothing and read the row again in each pass: any length, any alignment. The rest of a build is what was fastest. A layer
 * norm has two barriers where the others have one, and does better with fewer threads a row.
 */
#define BUILD(form, type, dtype, lanes, vecs, early, resident) \
    { SGK_KERNEL("norm/norm.cu", "norm_rows", "-DT=" type " -DFORM=" #form " -DLANES=" #lanes " -DVECS=" #vecs " -DEARLY=" #early " -DRESIDENT=" #resident, SGK_GENERAL), dtype, lanes, vecs }
#define NARROW(form, type, dtype) \
    BUILD(form, type, dtype, 8, 2, 1, 0), BUILD(form, type, dtype, 16, 2, 1, 0), BUILD(form, type, dtype, 32, 2, 1, 0), BUILD(form, type, dtype, 32, 4, 1, 0)
#define RMS_BUILDS(form, type, dtype) \
    NARROW(form, type, dtype), BUILD(form, type, dtype, 128, 2, 1, 0), BUILD(form, type, dtype, 256, 2, 1, 1536), BUILD(form, type, dtype, 256, 4, 1, 0), \
        BUILD(form, type, dtype, 512, 4, 0, 1024), BUILD(form, type, dtype, 512, 8, 0, 0), BUILD(form, type, dtype, 1024, 0, 0, 0)
#define ADD_BUILDS(form, type, dtype) \
    NARROW(form, type, dtype), BUILD(form, type, dtype, 128, 2, 1, 0), BUILD(form, type, dtype, 128, 4, 1, 0), BUILD(form, type, dtype, 256, 4, 1, 0), \
        BUILD(form, type, dtype, 512, 4, 1, 0), BUILD(form, type, dtype, 512, 8, 0, 0), BUILD(form, type, dtype, 1024, 0, 0, 0)
#define GATED_BUILDS(form, type, dtype) \
    NARROW(form, type, dtype), BUILD(form, type, dtype, 256, 2, 1, 1280), BUILD(form, type, dtype, 256, 4, 0, 1024), BUILD(form, type, dtype, 512, 4, 0, 1024), \
        BUILD(form, type, dtype, 1024, 0, 0, 0)
#define LAYER_BUILDS(form, type, dtype) \
    NARROW(form, type, dtype), BUILD(form, type, dtype, 128, 4, 1, 0), BUILD(form, type, dtype, 256, 4, 0, 0), BUILD(form, type, dtype, 512, 4, 0, 0), \
        BUILD(form, type, dtype, 1024, 0, 0, 0)
#define FORMATS(builds, form) builds(form, "f32", SGK_F32), builds(form, "f16", SGK_F16), builds(form, "bf16", SGK_BF16)

typedef struct {
    sgk_kernel kernel;
    sgk_dtype  dtype;
    int        lanes, vecs;
} norm_build;

static norm_build rms_builds[]       = { FORMATS(RMS_BUILDS, NORM_RMS) };
static norm_build add_builds[]       = { FORMATS(ADD_BUILDS, NORM_RMS_ADD) };
static norm_build gated_builds[]     = { FORMATS(GATED_BUILDS, NORM_RMS_GATED) };
static norm_build layer_builds[]     = { FORMATS(LAYER_BUILDS, NORM_LAYER) };
static norm_build layer_add_builds[] = { FORMATS(LAYER_BUILDS, NORM_LAYER_ADD) };

const sgk_kernel_table norm_kernels[] = {
    SGK_KERNEL_TABLE(rms_builds),
    SGK_KERNEL_TABLE(add_builds),
    SGK_KERNEL_TABLE(gated_builds),
    SGK_KERNEL_TABLE(layer_builds),
    SGK_KERNEL_TABLE(layer_add_builds),
    { 0 },
};

/* By form. */
static norm_build *const norm_builds[] = { rms_builds, add_builds, gated_builds, layer_builds, layer_add_builds };

/* Sizes and strides of the rows. Dimensions that are evenly spaced in every tensor become one. `other` may be NULL. */
static void set_rows(struct norm_args *a, const DLTensor *output, const DLTensor *input, const DLTensor *other)
{
    const DLTensor *tensors[] = { output, input, other };
    int64_t        *strides[] = { a->output_stride, a->input_stride, a->other_stride };
    int64_t         size[3]   = { 1, 1, 1 };
    int             used      = 0;
    a->rows                   = 1;
    for (int d = 0; d < input->ndim - 1; ++d) {
        const int64_t n = input->shape[d];
        a->rows *= n;
        if (n == 1) continue;
        bool folds = used > 0;
        for (int k = 0; k < 3; ++k)
            if (folds && tensors[k]) folds = strides[k][used - 1] == n * sgk_stride(tensors[k], d);
        if (folds) size[used - 1] *= n;
        else size[used++] = n;
        for (int k = 0; k < 3; ++k)
            if (tensors[k]) strides[k][used - 1] = sgk_stride(tensors[k], d);
    }
    a->middle = size[1], a->last = size[2];
}

/* Every row begins at a multiple of this many bytes. */
static bool spaced(const void *data, const int64_t *stride, sgk_dtype dtype, int64_t bytes)
{
    const int64_t size = sgk_dtype_size(dtype);
    return (uintptr_t)data % (uintptr_t)bytes == 0 && stride[0] * size % bytes == 0 && stride[1] * size % bytes == 0 && stride[2] * size % bytes == 0;
}

/* Rows that the builds with registers take, if not too long. */
static bool in_pieces(const struct norm_args *a)
{
    static const int64_t none[3];
    const sgk_dtype      t = a->dtype;
    if (a->middle * a->last > 1 && a->rows > UINT32_MAX) return false;
    return sgk_in_pieces(NULL, a->dim, t) && spaced(a->input, a->input_stride, t, 16) && spaced(a->output, a->output_stride, t, 16) &&
           spaced(a->other, a->other_stride, t, 16) && spaced(a->weight, none, t, 16) && spaced(a->bias, none, t, 16);
}

/* The first build of this form and format that takes the row; the last of the format takes any. */
static norm_build *choose(const struct norm_args *a, int form)
{
    const int64_t pieces = in_pieces(a) ? a->dim * sgk_dtype_size(a->dtype) / 16 : INT64_MAX;
    for (norm_build *b = norm_builds[form];; ++b)
        if (b->dtype == a->dtype && (b->vecs == 0 || pieces <= (int64_t)b->lanes * b->vecs)) return b;
}

static sgk_status launch(const sgk_match *m, const struct norm_args *a, int form, const sgk_exec *exec)
{
    norm_build *b = choose(a, form);
    SGK_LOG_BUILD(exec, m->op, &b->kernel, b->vecs ? "" : " (rows that are too long for registers or not in 16-byte pieces)");
    unsigned threads = b->lanes > 32 ? (unsigned)b->lanes : 128;
    int64_t  teams   = threads / (unsigned)b->lanes;
    if (b->vecs == 0) {                                 /* a few elements a thread; its blocks go on to further rows */
        threads = a->dim < 4 * b->lanes ? (unsigned)(a->dim + 127) / 128 * 32 : (unsigned)b->lanes;
        teams   = 1 + a->rows / INT32_MAX;
    }
    const sgk_launch shape = { .grid = { a->rows / teams + (a->rows % teams != 0) }, .block = { threads } };
    return sgk_cuda_launch(m->op, &b->kernel, &shape, m->device.device_id, exec, a, sizeof *a);
}

/* What the normed row is multiplied with, and what is added. */
typedef struct {
    const DLTensor *weight, *bias;
    double          shift;
    enum { WEIGHTED,
           UNUSED,              /* the weight is only checked */
           NO_WEIGHT } kind;    /* the operator has none */
} factors;

/* Two to four dimensions, as many as this tensor has. */
static const char *shape_of(const DLTensor *t)
{
    return t && t->ndim == 4 ? "A B N D" : t && t->ndim == 3 ? "A N D"
                                                             : "N D";
}

/* Every form, see norm.h. NORM_RMS_ADD writes its input: output is input. */
static sgk_status norm(const char *op, int form, const DLTensor *output, const DLTensor *input, const DLTensor *other, const factors *f, double eps,
                       const sgk_exec *exec)
{
    static const int moved[] = { [NORM_RMS] = 2, [NORM_RMS_ADD] = 4, [NORM_RMS_GATED] = 3, [NORM_LAYER] = 2, [NORM_LAYER_ADD] = 4 };
    const DLTensor  *weight = f->weight, *bias = f->bias, *residual = other, *gate = other;
    const char      *shape = shape_of(input);
    sgk_match        m     = { .op = op };
    if (form == NORM_RMS_ADD) SGK_MATCH_OUT(&m, input, shape, SGK_ANY_FLOAT);
    else SGK_MATCH(&m, input, shape, SGK_ANY_FLOAT);
    const unsigned same = 1u << m.dtype;
    if (form == NORM_RMS_ADD || form == NORM_LAYER_ADD) SGK_MATCH_OUT(&m, residual, shape, same);
    if (form == NORM_RMS_GATED) SGK_MATCH(&m, gate, shape, same);
    if (f->kind != NO_WEIGHT) SGK_MATCH(&m, weight, "D", same);
    SGK_MATCH_OPT(&m, bias, "D", same);
    if (form != NORM_RMS_ADD) SGK_MATCH_OUT(&m, output, shape, same);
    if (form != NORM_RMS_ADD && form != NORM_LAYER_ADD) sgk_match_same(&m, output, input);
    SGK_MATCH_FINITE(&m, eps, 0);
    SGK_TRY(sgk_match_done(&m));
    SGK_NO_SCRATCH(exec);

    struct norm_args a = {
        .output = sgk_data(output),
        .input  = sgk_data(input),
        .other  = sgk_data(other),
        .weight = f->kind == WEIGHTED ? sgk_data(weight) : NULL,
        .bias   = sgk_data(bias),
        .dim    = SGK_DIM(&m, 'D'),
        .dtype  = m.dtype,
        .eps    = (float)eps,
        .shift  = (float)f->shift,
    };
    set_rows(&a, output, input, other);
    if (a.rows == 0 || a.dim == 0) return SGK_OK;
    a.inverse_dim = (float)(1 / (double)a.dim);
    if (sgk_on_gpu(&m)) return launch(&m, &a, form, exec);
    const int64_t row = a.dim * sgk_dtype_size(a.dtype);
    a.stream          = a.output != a.input && sgk_cpu_streams(a.output, a.rows, row, sgk_dtype_size(a.dtype));
    return sgk_cpu_run(op, cpu_impls[form], &a, a.rows, sgk_cpu_grain(moved[form] * row), exec);
}

sgk_status sgk_rmsnorm(const DLTensor *output, const DLTensor *input, const DLTensor *weight, double eps, const sgk_exec *exec)
{
    return norm("rmsnorm", NORM_RMS, output, input, NULL, &(factors){ .weight = weight }, eps, exec);
}

sgk_status sgk_gemma_rmsnorm(const DLTensor *output, const DLTensor *input, const DLTensor *weight, double eps, const sgk_exec *exec)
{
    return norm("gemma_rmsnorm", NORM_RMS, output, input, NULL, &(factors){ .weight = weight, .shift = 1 }, eps, exec);
}

sgk_status sgk_gemma3_rmsnorm(const DLTensor *output, const DLTensor *input, const DLTensor *weight, double eps, const sgk_exec *exec)
{
    return norm("gemma3_rmsnorm", NORM_RMS, output, input, NULL, &(factors){ .weight = weight, .shift = 1 }, eps, exec);
}

sgk_status sgk_gemma4_rmsnorm(const DLTensor *output, const DLTensor *input, const DLTensor *weight, double eps, double scale_shift, bool with_scale,
                              const sgk_exec *exec)
{
    SGK_REQUIRE(isfinite(scale_shift), SGK_BAD_ARG, "gemma4_rmsnorm: scale_shift is %g, expected a finite number", scale_shift);
    const factors f = { .weight = weight, .shift = with_scale ? scale_shift : 1, .kind = with_scale ? WEIGHTED : UNUSED };
    return norm("gemma4_rmsnorm", NORM_RMS, output, input, NULL, &f, eps, exec);
}

sgk_status sgk_l2norm(const DLTensor *output, const DLTensor *input, double eps, const sgk_exec *exec)
{
    return norm("l2norm", NORM_RMS, output, input, NULL, &(factors){ .shift = 1, .kind = NO_WEIGHT }, eps, exec);
}

sgk_status sgk_fused_add_rmsnorm(const DLTensor *input, const DLTensor *residual, const DLTensor *weight, double eps, const sgk_exec *exec)
{
    return norm("fused_add_rmsnorm", NORM_RMS_ADD, input, input, residual, &(factors){ .weight = weight }, eps, exec);
}

sgk_status sgk_gemma_fused_add_rmsnorm(const DLTensor *input, const DLTensor *residual, const DLTensor *weight, double eps, const sgk_exec *exec)
{
    return norm("gemma_fused_add_rmsnorm", NORM_RMS_ADD, input, input, residual, &(factors){ .weight = weight, .shift = 1 }, eps, exec);
}

sgk_status sgk_fused_rmsnorm_gated(const DLTensor *output, const DLTensor *input, const DLTensor *weight, const DLTensor *gate, double eps, const sgk_exec *exec)
{
    return norm("fused_rmsnorm_gated", NORM_RMS_GATED, output, input, gate, &(factors){ .weight = weight }, eps, exec);
}

sgk_status sgk_layernorm(const DLTensor *output, const DLTensor *input, const DLTensor *weight, const DLTensor *bias, double eps, const sgk_exec *exec)
{
    return norm("layernorm", NORM_LAYER, output, input, NULL, &(factors){ .weight = weight, .bias = bias }, eps, exec);
}

sgk_status sgk_fused_add_layernorm(const DLTensor *output, const DLTensor *input, const DLTensor *residual, const DLTensor *weight, const DLTensor *bias,
                                   double eps, const sgk_exec *exec)
{
    return norm("fused_add_layernorm", NORM_LAYER_ADD, output, input, residual, &(factors){ .weight = weight, .bias = bias }, eps, exec);
}
