#include "check/check.h"

void check_vision(void);

typedef struct {
    int64_t size[2], other[2];                      /* height and width of one image or two */
    int64_t shortest, longest, patch, temporal, merge;
    bool    resize, normalize;
} image_case;

static const double mean[] = { 0.48, 0.45, 0.41 }, deviation[] = { 0.27, 0.26, 0.28 };

static sgk_image_options options_of(image_case c)
{
    return (sgk_image_options){
        .size                = sizeof(sgk_image_options),
        .resize              = c.resize,
        .shortest_edge       = c.shortest,
        .longest_edge        = c.longest,
        .interpolation       = "bicubic",
        .rescale_factor      = 1.0 / 255,
        .normalize           = c.normalize,
        .mean                = mean,
        .std                 = deviation,
        .mean_count          = 3,
        .std_count           = 3,
        .patch_size          = c.patch,
        .temporal_patch_size = c.temporal,
        .merge_size          = c.merge,
    };
}

/* The rows that a tensor of this shape becomes. */
static int64_t patches(const int64_t size[2], const sgk_image_options *o)
{
    int64_t         shape[] = { 3, size[0], size[1] };
    const DLTensor  image   = { .ndim = 3, .shape = shape };
    const DLTensor *list[]  = { &image };
    return sgk_image_preprocess_size(list, 1, o, 0);
}

static check_tensor *image_of(int64_t height, int64_t width, bool dense)
{
    check_tensor *image = dense ? check_input_dense(SGK_U8, 3, (int64_t)3, height, width) : check_input(SGK_U8, 3, (int64_t)3, height, width);
    for (int64_t i = 0; i < 3 * height * width; ++i) check_set(image, i, check_int(0, 255));
    check_legal(image, CHECK_SIZE(1) | CHECK_SIZE(2));          /* another size may round to the same patches */
    return image;
}

static void check_image_preprocess(sgk_dtype dtype, image_case c)
{
    if (!check_case("image_preprocess_cpu_%s_%lldx%lld_%lldx%lld_p%lldt%lldm%lld%s%s", check_dtype(dtype), (long long)c.size[0], (long long)c.size[1],
                    (long long)c.other[0], (long long)c.other[1], (long long)c.patch, (long long)c.temporal, (long long)c.merge,
                    c.resize ? "" : "_as_is", c.normalize ? "" : "_plain")) return;
    const sgk_image_options o       = options_of(c);
    const int               count   = c.other[0] ? 2 : 1;
    const int64_t           columns = 3 * c.temporal * c.patch * c.patch;
    const int64_t           rows    = patches(c.size, &o) + (count == 2 ? patches(c.other, &o) : 0);
    check_tensor           *pixels = check_output_dense(dtype, 2, rows, columns), *grid = check_output_dense(SGK_I64, 2, (int64_t)count, (int64_t)3);
    check_tensor           *first = image_of(c.size[0], c.size[1], false), *second = count == 2 ? image_of(c.other[0], c.other[1], true) : NULL;
    check_legal(pixels, CHECK_DTYPE);
    if (!c.resize) check_legal(first, 0);

    CHECK_CALL(sgk_image_preprocess(T(pixels), T(grid), (const DLTensor *const[]){ T(first), T(second) }, count, &o, check_exec));
    check_close(pixels, check_tolerance(dtype));
    check_equal(grid);
    const double bytes = (double)(3 * c.size[0] * c.size[1] + 3 * c.other[0] * c.other[1]) + (double)(rows * columns) * sgk_dtype_size(dtype);
    check_done(bytes, 0);
}

static void check_refused(void)
{
    if (!check_case("image_preprocess_cpu_refused")) return;
    check_tensor     *pixels = check_output_dense(SGK_F32, 2, (int64_t)4, (int64_t)24), *grid = check_output_dense(SGK_I64, 2, (int64_t)1, (int64_t)3);
    check_tensor     *image = image_of(4, 4, true), *strip = image_of(1, 201, true);
    const image_case  c = { .shortest = 1, .longest = 16, .patch = 2, .temporal = 2, .merge = 1, .resize = true, .normalize = true };
    sgk_image_options o = options_of(c);
#define CALL(image) sgk_image_preprocess(T(pixels), T(grid), (const DLTensor *const[]){ T(image) }, 1, &o, check_exec)
    CHECK_REFUSED(SGK_BAD_ARG, "expected a ratio of at most 200", CALL(strip));
    o.interpolation = "bilinear";
    CHECK_REFUSED(SGK_UNSUPPORTED, "interpolation is 'bilinear', expected bicubic", CALL(image));
    o            = options_of(c);
    o.patch_size = 0;
    CHECK_REFUSED(SGK_BAD_ARG, "patch_size is 0", CALL(image));
    o           = options_of(c);
    o.std_count = 1;
    CHECK_REFUSED(SGK_BAD_ARG, "image_std 1, expected 3 each", CALL(image));
    o            = options_of(c);
    o.merge_size = 3, o.resize = false;
    CHECK_REFUSED(SGK_BAD_ARG, "expected multiples of 6 without do_resize", CALL(image));
    o               = options_of(c);
    o.shortest_edge = INT64_MAX, o.longest_edge = INT64_MAX;
    CHECK_REFUSED(SGK_BAD_ARG, "would be resized to", CALL(image));
#undef CALL
    check_done(0, 0);
}

void check_vision(void)
{
    static const image_case cases[] = {
        { { 30, 21 }, { 43, 12 }, 1, 1 << 20, 4, 2, 2, true, true },            /* nearest multiples of 8 */
        { { 100, 75 }, { 0 }, 1, 1600, 4, 1, 2, true, true },                   /* smaller: more taps than pixels of a patch */
        { { 3, 5 }, { 1, 1 }, 2304, 1 << 20, 16, 2, 1, true, true },            /* larger: fewer pixels than taps */
        { { 24, 40 }, { 8, 8 }, 1, 1 << 20, 4, 3, 2, false, false },            /* bytes as they are */
        { { 300, 2 }, { 0 }, 1, 1 << 20, 2, 2, 1, true, true },
        { { 4, 800 }, { 0 }, 1, 1, 1, 1, 1, true, true },                       /* to a few pixels */
        { { 8000, 40 }, { 40, 8000 }, 1, 1, 1, 1, 1, true, true },              /* more taps than a tile of the CPU has columns */
        { { 17, 600 }, { 0 }, 1, 1 << 20, 7, 2, 1, true, true },                /* more than one chunk of a row, not in whole vectors */
    };
    static const sgk_dtype formats[] = { SGK_F32, SGK_F16, SGK_BF16 };
    for (int f = 0; f < 3; ++f)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) check_image_preprocess(formats[f], cases[i]);
    check_refused();
    if (check_benching) check_image_preprocess(SGK_BF16, (image_case){ { 1080, 1920 }, { 0 }, 65536, 16777216, 16, 2, 2, true, true });
}
