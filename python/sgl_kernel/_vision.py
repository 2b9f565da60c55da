"""Operators without a Python function of their own: their fakes alone."""
from sgl_kernel._ops import register_fake, torch


@register_fake("image_preprocess_cpu")
def _(images, do_convert_rgb, do_resize, shortest_edge, longest_edge, interpolation, do_rescale, rescale_factor, do_normalize, image_mean, image_std,
      patch_size, temporal_patch_size, merge_size, disable_grouping, out_dtype):
    """How many patches there are follows from the images' sizes by a rule with roots: torch gets a size of its own for it."""
    patches = torch.library.get_ctx().new_dynamic_size()
    return (images[0].new_empty(patches, 3 * temporal_patch_size * patch_size ** 2, dtype=out_dtype),
            images[0].new_empty(len(images), 3, dtype=torch.int64))
