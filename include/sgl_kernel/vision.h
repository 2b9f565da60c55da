/* What a vision model's input goes through before its first matrix product. */
#ifndef SGL_KERNEL_VISION_H
#define SGL_KERNEL_VISION_H
#include <stdbool.h>
#include "base.h"

typedef struct {
    size_t        size;                                 /* sizeof(sgk_image_options) as the caller compiled it */
    bool          resize;                               /* false: height and width must be multiples of patch_size * merge_size */
    int64_t       shortest_edge, longest_edge;          /* the least and the largest area of a resized image, in pixels */
    const char   *interpolation;                        /* "bicubic" */
    double        rescale_factor;                       /* pixels are multiplied by it; 1 leaves them as they are */
    bool          normalize;                            /* (pixel * rescale_factor - mean) / std */
    const double *mean, *std;                           /* one for each channel; std not 0 */
    int64_t       mean_count, std_count;                /* 3 each */
    int64_t       patch_size, temporal_patch_size, merge_size;
} sgk_image_options;

/**
 * Images to the rows of patches that Qwen2-VL's vision tower takes.
 *
 * Each image is resized, normalised and cut into patches of patch_size x patch_size pixels; every patch is a row.
 *
 *   size     f = patch_size * merge_size. Height and width go to the nearest multiple of f, halves up. Is their product above
 *            longest_edge, then to floor(side / b / f) f with b = sqrt(height width / longest_edge), at least f; below shortest_edge, to
 *            ceil(side b / f) f with b = sqrt(shortest_edge / (height width)).
 *   resize   antialiased bicubic, as torch resizes uint8: 16-bit fixed-point weights, columns before rows, 8 bits after each
 *   row      [channel, temporal_patch_size, patch_size, patch_size], the image repeated along time
 *   rows     image after image; in one in blocks of merge_size x merge_size patches, blocks and the patches in them row-major
 *
 * @param pixels   [P, 3 * temporal_patch_size * patch_size^2], f32 | f16 | bf16; dense; sgk_image_preprocess_size() tells P
 * @param grid     [count, 3], i64; dense; of each image 1, and the patches down and across
 * @param images   [3, height, width] each, u8; rows and channels may be strided
 *
 * Refused: an image without pixels or with sides more than 200 to 1. The resized bytes are the same on every device and level.
 * Scratch memory: as much as the widest image, resized in one direction, and the weights.
 * @return SGK_OK, SGK_BAD_ARG, SGK_UNSUPPORTED, SGK_NO_DEVICE or SGK_FAILED; see sgk_last_error()
 */
SGK_API sgk_status sgk_image_preprocess(const DLTensor *pixels, const DLTensor *grid, const DLTensor *const *images, int64_t count,
                                        const sgk_image_options *options, const sgk_exec *exec);

/** The size of pixels in dimension 0 or 1; 0 for arguments that sgk_image_preprocess refuses. */
SGK_API int64_t sgk_image_preprocess_size(const DLTensor *const *images, int64_t count, const sgk_image_options *options, int dimension);
#endif
