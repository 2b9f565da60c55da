#include "vision.h"
#include <float.h>
#include <stdio.h>
#include <string.h>
#include "base/match.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "sgl_kernel/vision.h"

SGK_CPU_DECL(image_rows);
SGK_CPU_DECL(image_patches);
static const sgk_cpu_impl image_rows_cpu[]    = SGK_CPU_IMPLS(image_rows);
static const sgk_cpu_impl image_patches_cpu[] = SGK_CPU_IMPLS(image_patches);

enum { THREADS = 256 };                             /* as in vision.cu */

static sgk_kernel weights_build = SGK_KERNEL("vision/vision.cu", "image_weights", "-DT=f32", SGK_GENERAL);
static sgk_kernel rows_build    = SGK_KERNEL("vision/vision.cu", "image_rows", "-DT=f32", SGK_GENERAL);
static struct patches_build {
    sgk_kernel kernel;
    sgk_dtype  dtype;
} patches_builds[] = {
    { SGK_KERNEL("vision/vision.cu", "image_patches", "-DT=f32", SGK_GENERAL), SGK_F32 },
    { SGK_KERNEL("vision/vision.cu", "image_patches", "-DT=f16", SGK_GENERAL), SGK_F16 },
    { SGK_KERNEL("vision/vision.cu", "image_patches", "-DT=bf16", SGK_GENERAL), SGK_BF16 },
};

const sgk_kernel_table vision_kernels[] = {
    { &weights_build, sizeof weights_build, 1 },
    { &rows_build, sizeof rows_build, 1 },
    SGK_KERNEL_TABLE(patches_builds),
    { 0 },
};

/* ---- sizes ------------------------------------------------------------------------------------------------------- */

enum { MOST_SIDE  = 1 << 24,                         /* of an image, before and after: products of sides stay far from 2^63 */
       MOST_RATIO = 200 };

static const char op[] = "image_preprocess_cpu";

static sgk_status check_options(const sgk_image_options *o)
{
    const sgk_match m = { .op = op };
    SGK_REQUIRE(o && o->size >= sizeof *o, SGK_BAD_ARG, "%s: options is NULL or of another version of this library", op);
    SGK_REQUIRE(o->interpolation && !strcmp(o->interpolation, "bicubic"), SGK_UNSUPPORTED, "%s: interpolation is '%s', expected bicubic", op,
                o->interpolation ? o->interpolation : "");
    const struct {
        const char *name;
        int64_t     value, most;
    } counts[] = {
        { "patch_size", o->patch_size, 4096 },
        { "temporal_patch_size", o->temporal_patch_size, 4096 },
        { "merge_size", o->merge_size, 4096 },
        { "longest_edge", o->longest_edge, INT64_MAX },
    };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; ++i)
        SGK_REQUIRE(counts[i].value >= 1 && counts[i].value <= counts[i].most, SGK_BAD_ARG, "%s: %s is %lld, expected 1 to %lld", op, counts[i].name,
                    (long long)counts[i].value, (long long)counts[i].most);
    const double rescale_factor = o->rescale_factor;
    SGK_MATCH_FINITE(&m, rescale_factor, DBL_MIN);
    if (!o->normalize) return SGK_OK;
    SGK_REQUIRE(o->mean && o->mean_count == 3 && o->std && o->std_count == 3, SGK_BAD_ARG,
                "%s: image_mean has %lld values and image_std %lld, expected 3 each", op, (long long)o->mean_count, (long long)o->std_count);
    for (int c = 0; c < 3; ++c)
        SGK_REQUIRE(o->std[c] != 0, SGK_BAD_ARG, "%s: image_std[%d] is 0, expected another number", op, c);
    return SGK_OK;
}

/* Keeps what is computed in f64 a number that fits. */
static int64_t times(double steps, int64_t factor)
{
    const double most = (double)MOST_SIDE / (double)factor + 1;
    return (int64_t)(steps < most ? steps : most) * factor;
}

/* The sides of the resized image. */
static sgk_status choose_sides(const sgk_image_options *o, int64_t at, int64_t height, int64_t width, int64_t *out_height, int64_t *out_width)
{
    const int64_t factor = o->patch_size * o->merge_size;
    SGK_REQUIRE(height >= 1 && width >= 1 && height <= MOST_SIDE && width <= MOST_SIDE, SGK_BAD_ARG,
                "%s: images[%lld] has %lld x %lld pixels, expected sides of 1 to %d", op, (long long)at, (long long)height, (long long)width, MOST_SIDE);
    if (!o->resize) {
        SGK_REQUIRE(height % factor == 0 && width % factor == 0, SGK_BAD_ARG, "%s: images[%lld] has %lld x %lld pixels, expected multiples of %lld without do_resize",
                    op, (long long)at, (long long)height, (long long)width, (long long)factor);
        *out_height = height, *out_width = width;
        return SGK_OK;
    }
    SGK_REQUIRE(height <= width * MOST_RATIO && width <= height * MOST_RATIO, SGK_BAD_ARG, "%s: images[%lld] has %lld x %lld pixels, expected a ratio of at most %d",
                op, (long long)at, (long long)height, (long long)width, MOST_RATIO);
    const double f = (double)factor, h = (double)height, w = (double)width;
    *out_height = times(floor(h / f + 0.5), factor);
    *out_width  = times(floor(w / f + 0.5), factor);
    if (*out_height * *out_width > o->longest_edge) {
        const double by = sqrt(h * w / (double)o->longest_edge);
        *out_height     = times(fmax(1, floor(h / by / f)), factor);
        *out_width      = times(fmax(1, floor(w / by / f)), factor);
    } else if (*out_height * *out_width < o->shortest_edge) {
        const double by = sqrt((double)o->shortest_edge / (h * w));
        *out_height     = times(ceil(h * by / f), factor);
        *out_width      = times(ceil(w * by / f), factor);
    }
    SGK_REQUIRE(*out_height >= 1 && *out_width >= 1 && *out_height <= MOST_SIDE && *out_width <= MOST_SIDE, SGK_BAD_ARG,
                "%s: images[%lld] would be resized to %lld x %lld pixels, expected sides of 1 to %d", op, (long long)at, (long long)*out_height,
                (long long)*out_width, MOST_SIDE);
    return SGK_OK;
}

int64_t sgk_image_preprocess_size(const DLTensor *const *images, int64_t count, const sgk_image_options *o, int dimension)
{
    if (check_options(o) != SGK_OK) return 0;
    if (dimension) return 3 * o->temporal_patch_size * o->patch_size * o->patch_size;
    int64_t patches = 0;
    for (int64_t i = 0; i < count; ++i) {
        int64_t height, width;
        if (!images[i] || images[i]->ndim != 3 || choose_sides(o, i, images[i]->shape[1], images[i]->shape[2], &height, &width) != SGK_OK) return 0;
        patches += height / o->patch_size * (width / o->patch_size);
    }
    return patches;
}

/* ---- one image --------------------------------------------------------------------------------------------------- */

static int64_t rounded_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }
static int64_t side_bytes(const struct image_side *s) { return rounded_up(4 * s->out + 4) + rounded_up(2 * s->out * s->taps); }
static int64_t scratch_bytes(const struct image_args *a) { return side_bytes(&a->x) + side_bytes(&a->y) + rounded_up(3 * a->y.in * a->x.out); }

static char *place_side(struct image_side *s, char *memory)
{
    s->first  = (int32_t *)(void *)memory;
    s->shift  = s->first + s->out;
    s->weight = (int16_t *)(void *)(memory + rounded_up(4 * s->out + 4));
    return memory + side_bytes(s);
}

static void make_weights(const struct image_side *s)
{
    double largest = 0;
    for (int64_t i = 0; i < s->out; ++i) {
        const struct image_taps t = image_taps_of(s, i);
        for (int64_t j = 0; j < t.count; ++j) largest = fmax(largest, image_weight(&t, j) / t.total);
    }
    *s->shift = image_shift(largest);
    for (int64_t i = 0; i < s->out; ++i) image_put_weights(s, i, *s->shift);
}

static struct image_side side(int64_t in, int64_t out)
{
    struct image_side s    = { .in = in, .out = out };
    const int64_t     most = 2 * (int64_t)ceil(image_support(&s)) + 1;
    s.taps                 = most < in ? most : in;
    return s;
}

static sgk_status run_on_cpu(const struct image_args *a, const sgk_exec *exec)
{
    make_weights(&a->x);
    make_weights(&a->y);
    a->grid[0] = 1;
    a->grid[1] = a->y.out / a->patch;
    a->grid[2] = a->x.out / a->patch;
    SGK_TRY(sgk_cpu_run(op, image_rows_cpu, a, 3 * a->y.in, sgk_cpu_grain(a->x.out * a->x.taps), exec));
    return sgk_cpu_run(op, image_patches_cpu, a, 3 * a->y.out, sgk_cpu_grain(a->x.out * a->y.taps), exec);
}

static sgk_status run_on_gpu(const struct image_args *a, int ordinal, const sgk_exec *exec)
{
    struct patches_build *b = patches_builds;
    while (b->dtype != a->dtype) ++b;
    sgk_kernel *const kernels[] = { &weights_build, &rows_build, &b->kernel };
    const int64_t     across = (a->x.out + THREADS - 1) / THREADS, blocks[] = { 2, 3 * a->y.in * across, 3 * a->y.out * across };
    for (int i = 0; i < 3; ++i) {
        SGK_LOG_BUILD(exec, op, kernels[i], "");
        const sgk_launch shape = { .grid = { blocks[i] }, .block = { THREADS } };
        SGK_TRY(sgk_cuda_launch(op, kernels[i], &shape, ordinal, exec, a, sizeof *a));
    }
    return SGK_OK;
}

/* ---- the operator ------------------------------------------------------------------------------------------------ */

/* What is known of image i before there is memory for it. */
static sgk_status describe(const sgk_image_options *o, sgk_dtype dtype, const DLTensor *image, int64_t i, struct image_args *a)
{
    int64_t height, width;
    SGK_TRY(choose_sides(o, i, image->shape[1], image->shape[2], &height, &width));
    const struct image_args described = {
        .image          = sgk_data(image),
        .channel_stride = sgk_stride(image, 0),
        .row_stride     = sgk_stride(image, 1),
        .x              = side(image->shape[2], width),
        .y              = side(image->shape[1], height),
        .patch          = (int32_t)o->patch_size,
        .temporal       = (int32_t)o->temporal_patch_size,
        .merge          = (int32_t)o->merge_size,
        .dtype          = dtype,
    };
    *a = described;
    for (int c = 0; c < 3; ++c) {                   /* (byte * factor - mean) / std = (byte - mean / factor) * (factor / std) */
        a->mean[c]  = o->normalize ? (float)(o->mean[c] / o->rescale_factor) : 0;
        a->scale[c] = (float)(o->normalize ? o->rescale_factor / o->std[c] : o->rescale_factor);
    }
    return SGK_OK;
}

static int64_t patches_of(const struct image_args *a) { return a->y.out / a->patch * (a->x.out / a->patch); }

sgk_status sgk_image_preprocess(const DLTensor *pixels, const DLTensor *grid, const DLTensor *const *images, int64_t count,
                                const sgk_image_options *options, const sgk_exec *exec)
{
    SGK_TRY(check_options(options));
    SGK_REQUIRE(count >= 0 && (count == 0 || images), SGK_BAD_ARG, "%s: images is NULL, expected %lld tensors", op, (long long)count);
    sgk_match         m;
    int64_t           rows = 0, scratch_size = 0;
    struct image_args a;
    for (int64_t i = -1; i < count; ++i) {          /* each image beside what is written; and that alone, as there may be no image */
        m = (sgk_match){ .op = op };
        SGK_MATCH_OUT(&m, pixels, "P C", SGK_ANY_FLOAT);
        SGK_MATCH_OUT(&m, grid, "N 3", 1u << SGK_I64);
        SGK_MATCH_DENSE(&m, pixels);
        SGK_MATCH_DENSE(&m, grid);
        char name[40];
        snprintf(name, sizeof name, "images[%lld]", (long long)i);
        if (i >= 0) SGK_TRY(sgk_match_tensor(&m, images[i], name, "3 H W", 1u << SGK_U8, false));
        SGK_TRY(sgk_match_done(&m));
        if (i < 0) continue;
        SGK_TRY(describe(options, m.dtype, images[i], i, &a));
        if (scratch_bytes(&a) > scratch_size) scratch_size = scratch_bytes(&a);
        rows += patches_of(&a);
    }
    const int64_t columns = sgk_image_preprocess_size(NULL, 0, options, 1);
    SGK_REQUIRE(grid->shape[0] == count, SGK_BAD_ARG, "%s: grid has size %lld in dimension 0, expected %lld, the number of images", op, (long long)grid->shape[0], (long long)count);
    SGK_REQUIRE(pixels->shape[0] == rows && pixels->shape[1] == columns, SGK_BAD_ARG, "%s: pixels has shape [%lld, %lld], expected [%lld, %lld]", op,
                (long long)pixels->shape[0], (long long)pixels->shape[1], (long long)rows, (long long)columns);

    sgk_scratch scratch;
    SGK_TRY(sgk_scratch_get(&scratch, op, (size_t)scratch_size, m.device, exec));
    if (scratch.query_only) return SGK_OK;
    sgk_status status = SGK_OK;
    char      *next   = sgk_data(pixels);
    for (int64_t i = 0; i < count && status == SGK_OK; ++i) {
        status   = describe(options, m.dtype, images[i], i, &a);
        a.pixels = next;
        a.grid   = (int64_t *)sgk_data(grid) + 3 * i;
        a.wide   = (uint8_t *)place_side(&a.y, place_side(&a.x, scratch.memory));
        if (status == SGK_OK) status = sgk_on_gpu(&m) ? run_on_gpu(&a, m.device.device_id, exec) : run_on_cpu(&a, exec);
        next += patches_of(&a) * columns * sgk_dtype_size(m.dtype);
    }
    sgk_scratch_put(&scratch);
    return status;
}
