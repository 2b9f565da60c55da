"""Patch embedding and image preprocessing next to torch."""
import math

import pytest

torch = pytest.importorskip("torch")
from sgl_kernel import _library  # noqa: E402

pytestmark = pytest.mark.skipif(bool({"vision", "gemm"} & _library.families_left_out), reason="a family is left out")
TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}     # relative l2: one rounding
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("sizes", [(7, 32, 3, 2, 16, 16), (1, 1024, 3, 2, 14, 14), (0, 4, 1, 1, 2, 2), (3, 5, 2, 1, 3, 1)])
def test_conv3d_embed(device, dtype, packed, sizes):
    rows, filters, *patch = sizes
    generator = torch.Generator().manual_seed(rows)
    x, w, b = (torch.randn(s, generator=generator).to(device, dtype) for s in ((rows, *patch), (filters, *patch), (filters,)))
    ops = torch.ops.sgl_kernel
    got = ops.conv3d_embed_cpu(x, ops.conv3d_embed_weight_pack(w) if packed else w, b, packed)
    right = x.double().flatten(1) @ w.double().flatten(1).T + b.double()
    assert got.dtype == dtype and got.shape == right.shape
    assert (got.double() - right).norm() <= 2 * TOLERANCE[dtype] * right.norm() + 1e-12


def image(height, width, device, seed=0):
    """Noise, with edges that make a cubic overshoot."""
    pixels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed + height), dtype=torch.uint8)
    pixels[:, height // 3:height // 2] = 255
    pixels[:, :, width // 2:2 * width // 3] = 0
    return pixels.to(device)


def sides(height, width, factor, least, most):
    """The sizes of Qwen2-VL's image processor, halves rounded up as in the release."""
    out = [math.floor(side / factor + 0.5) * factor for side in (height, width)]
    if out[0] * out[1] > most:
        by = math.sqrt(height * width / most)
        out = [max(factor, math.floor(side / by / factor) * factor) for side in (height, width)]
    elif out[0] * out[1] < least:
        by = math.sqrt(least / (height * width))
        out = [math.ceil(side * by / factor) * factor for side in (height, width)]
    return out


def preprocess(images, least=56 * 56, most=28 * 28 * 1280, patch=14, frames=2, merge=2, dtype=torch.float32, resize=True, rescale=True, normalize=True):
    return torch.ops.sgl_kernel.image_preprocess_cpu(
        images, True, resize, least, most, "bicubic", rescale, 1 / 255, normalize, MEAN, STD, patch, frames, merge, True, dtype)


def patches_of(x, patch, frames, merge):
    """[3, height, width] to rows, by torch's views."""
    height, width = (side // patch for side in x.shape[1:])
    x = x.expand(frames, *x.shape).reshape(frames, 3, height // merge, merge, patch, width // merge, merge, patch)
    return x.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(height * width, -1), [1, height, width]


SIZES = [(224, 224), (56, 84), (300, 411), (20, 30), (1, 1), (1500, 701), (35, 4000), (400, 2), (1043, 29)]


@pytest.mark.parametrize("patch, frames, merge", [(14, 2, 2), (16, 2, 2), (5, 1, 3)])
def test_the_bytes_are_those_of_torch(device, patch, frames, merge):
    """Without rescaling and normalising the output is the resized image: every byte as torch's own resampling of uint8 on the CPU has it."""
    images = [image(*size, device) for size in SIZES]
    pixels, grid = preprocess(images, patch=patch, frames=frames, merge=merge, rescale=False, normalize=False)
    rows, grids = [], []
    for size, x in zip(SIZES, images):
        resized = torch.nn.functional.interpolate(x[None].cpu(), sides(*size, patch * merge, 56 * 56, 28 * 28 * 1280), mode="bicubic", antialias=True)[0]
        row, g = patches_of(resized.float(), patch, frames, merge)
        rows.append(row), grids.append(g)
    assert grid.tolist() == grids and grid.dtype == torch.int64
    assert torch.equal(pixels.cpu(), torch.cat(rows))


def test_to_a_few_pixels(device):
    """Thousands of taps."""
    x = image(40, 8000, device)
    pixels, grid = preprocess([x], 1, 1, 1, 1, 1, rescale=False, normalize=False)
    resized = torch.nn.functional.interpolate(x[None].cpu(), sides(40, 8000, 1, 1, 1), mode="bicubic", antialias=True)[0]
    assert grid.tolist() == [[1, *resized.shape[1:]]] and torch.equal(pixels.cpu(), resized.flatten(1).T.float())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_normalised(device, dtype):
    x = image(112, 168, device)[:, ::2]         # rows with a gap
    pixels, grid = preprocess([x], dtype=dtype, resize=False)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    right, _ = patches_of((x.cpu().double() / 255 - mean) / std, 14, 2, 2)
    assert pixels.dtype == dtype and grid.tolist() == [[1, 4, 12]]
    assert (pixels.cpu().double() - right).norm() <= TOLERANCE[dtype] * right.norm()


def test_refusals(device):
    x = image(20, 20, device)

    def refused(kind, words, images=(x,), **options):
        with pytest.raises(kind, match=words):
            preprocess(list(images), **options)

    refused(RuntimeError, r"images\[1\] has 2 x 401 pixels, expected a ratio of at most 200", [x, image(2, 401, device)])
    refused(RuntimeError, r"images\[0\] has 0 x 4 pixels", [x[:, :0, :4]])
    refused(RuntimeError, r"images\[0\] has dtype f32", [x.float()])
    refused(RuntimeError, r"images\[0\] has size 4 in dimension 0, expected 3", [torch.cat((x, x[:1]))])
    refused(RuntimeError, "expected multiples of 28 without do_resize", resize=False)
    refused(RuntimeError, "patch_size is 0", patch=0)
    refused(RuntimeError, "longest_edge is -1", most=-1)
    arguments = [[x], True, True, 1, 10**6, "bicubic", True, 1 / 255, True, MEAN, STD, 14, 2, 2, True, torch.float32]
    for place, value, words in ((5, "nearest", "interpolation is 'nearest'"), (9, MEAN[:1], "image_mean has 1 values"), (10, [0.1, 0, 1], r"image_std\[1\] is 0")):
        with pytest.raises(RuntimeError, match=words):
            torch.ops.sgl_kernel.image_preprocess_cpu(*[value if i == place else a for i, a in enumerate(arguments)])
