"""linear next to torch: formats, shapes that fold, odd sizes, empty ones, and what is refused."""
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
from sgl_kernel import dsv3_fused_a_gemm, dsv3_router_gemm, linear  # noqa: E402

TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}     # relative l2: one rounding, and f32 sums
FORMATS = list(TOLERANCE)


def random(*shape, dtype, device, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + len(shape))).to(device, dtype)


def wanted(input, weight, bias=None):
    product = input.double() @ weight.double().T
    return product if bias is None else product + bias.double()


def assert_near(found, right, tolerance):
    assert found.shape == right.shape
    error = (found.double() - right).norm() / right.norm()
    assert error <= tolerance                       # fails for NaN


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 7, 40, 200])
@pytest.mark.parametrize("columns, depth", [(64, 256), (33, 1031), (300, 129)])
def test_product(device, dtype, rows, columns, depth):
    x, w = random(rows, depth, dtype=dtype, device=device), random(columns, depth, dtype=dtype, device=device, seed=7)
    assert_near(linear(x, w), wanted(x, w), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("bias_dtype", FORMATS, ids=str)
@pytest.mark.parametrize("out_dtype", FORMATS, ids=str)
def test_formats(device, dtype, bias_dtype, out_dtype):
    x, w = random(5, 72, dtype=dtype, device=device), random(19, 72, dtype=dtype, device=device)
    bias = random(19, dtype=bias_dtype, device=device)
    out = torch.empty(5, 19, dtype=out_dtype, device=device)
    if {bias_dtype, out_dtype} <= {dtype, torch.float32}:
        assert linear(x, w, bias, out=out) is out
        assert_near(out, wanted(x, w, bias), max(TOLERANCE[out_dtype], TOLERANCE[torch.float32]))
    else:
        with pytest.raises(RuntimeError, match="linear: (bias|out) has dtype"):
            linear(x, w, bias, out=out)


def test_shapes(device):
    x, w = random(2, 3, 4, 48, dtype=torch.float32, device=device), random(9, 48, dtype=torch.float32, device=device)
    assert_near(linear(x, w), wanted(x, w), 1e-6)
    assert_near(linear(x[0, 0, 0], w), wanted(x[0, 0, 0], w), 1e-6)                             # a vector
    assert_near(linear(x[0, :, 1], w), wanted(x[0, :, 1], w), 1e-6)                             # rows with a stride
    assert_near(linear(x[:1, 1:, 0, 5:17], w[::2, 5:17]), wanted(x[:1, 1:, 0, 5:17], w[::2, 5:17]), 1e-6)
    repeated = x[0, 0, :1].expand(6, 48)
    assert_near(linear(repeated, w), wanted(repeated, w), 1e-6)
    wide = torch.full((4, 20), 5.0, device=device)
    linear(x[0, 0], w, out=wide[:, 3:12])
    assert_near(wide[:, 3:12], wanted(x[0, 0], w), 1e-6)
    assert (wide[:, :3] == 5).all() and (wide[:, 12:] == 5).all()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("batch, rows, columns, depth", [(1, 3, 5, 7), (5, 33, 24, 136), (3, 70, 40, 64)])
def test_batched(device, dtype, batch, rows, columns, depth):
    """As the absorbed projections of latent attention use it: heads are the batch, and lie between a token's elements."""
    x, w = random(rows, batch, depth, dtype=dtype, device=device).transpose(0, 1), random(batch, columns, depth, dtype=dtype, device=device)
    bias = random(batch, columns, dtype=dtype, device=device)
    right = torch.bmm(x.double(), w.double().transpose(1, 2))
    assert_near(linear(x, w), right, TOLERANCE[dtype])
    assert_near(linear(x, w, bias), right + bias.double()[:, None], TOLERANCE[dtype])
    found = torch.empty(rows, batch, columns, dtype=dtype, device=device)
    linear(x, w, out=found.transpose(0, 1))
    assert_near(found.transpose(0, 1), right, TOLERANCE[dtype])
    assert_near(linear(x, w[:1].expand(batch, -1, -1)), torch.bmm(x.double(), w[:1].double().expand(batch, -1, -1).transpose(1, 2)), TOLERANCE[dtype])
    assert linear(x[:0], w[:0]).shape == (0, rows, columns)
    with pytest.raises(RuntimeError, match="linear_batched: weight has size"):
        linear(x, w[:, :, 1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_f32_out(device, dtype):
    x, w = random(4, 96, dtype=dtype, device=device), random(24, 96, dtype=dtype, device=device)
    found = linear(x, w, out_dtype=torch.float32)
    assert found.dtype == torch.float32
    assert_near(found, wanted(x, w), TOLERANCE[torch.float32])


@pytest.mark.parametrize("rows", [0, 1, 5, 16, 40])
@pytest.mark.parametrize("columns, depth", [(256, 7168), (20, 100)])
def test_dsv3(device, rows, columns, depth):
    x, w = random(rows, depth, dtype=torch.bfloat16, device=device), random(columns, depth, dtype=torch.bfloat16, device=device)
    for out_dtype in (torch.bfloat16, torch.float32):
        found = dsv3_router_gemm(x, w, out_dtype)
        assert found.dtype == out_dtype
        if rows:
            assert_near(found, wanted(x, w), TOLERANCE[out_dtype])
    assert dsv3_router_gemm(x, w).dtype == torch.bfloat16
    out = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
    assert dsv3_fused_a_gemm(x, w.T, out) is out
    assert torch.equal(dsv3_fused_a_gemm(x, w.T), out)
    if rows:
        assert_near(out, wanted(x, w), TOLERANCE[torch.bfloat16])
        with pytest.raises(RuntimeError, match="dsv3_fused_a_gemm: mat_b has stride"):
            dsv3_fused_a_gemm(x, w.T.contiguous())


def test_empty(device):
    x, w, bias = (torch.zeros(s, device=device) for s in [(3, 0), (4, 0), (4,)])
    assert linear(x[:0], w).shape == (0, 4) and linear(x, w[:0]).shape == (3, 0)
    assert linear(x, w).eq(0).all() and linear(x, w, bias + 2).eq(2).all()
    assert linear(torch.zeros(50, 0, device=device), w, bias - 1).eq(-1).all()


def test_true_f32(device):
    """TF32 has 10 bits of fraction: 1 + 2^-12 would be 1."""
    x = torch.full((64, 64), 1 + 2.0**-12, device=device)
    assert linear(x, torch.ones_like(x)).eq(64 * (1 + 2.0**-12)).all()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("rows", [4, 70])
def test_special_values(device, dtype, rows):
    """NaN and infinity travel as IEEE says: inf * 0 and inf - inf are NaN, a sum beyond the format is infinite, and neighbours do not notice."""
    inf, nan = float("inf"), float("nan")
    x, w = random(rows, 300, dtype=dtype, device="cpu"), random(40, 300, dtype=dtype, device="cpu")
    x[0, 7], x[1, 299] = inf, nan
    w[3, 7], w[4, 7], w[5, 100], w[6, [100, 101]], w[7, 8] = 0, -inf, -inf, torch.tensor([inf, -inf], dtype=dtype), nan
    w[8] = torch.finfo(dtype).max / 256            # 300 of the last row reach beyond it, partial sums of the others do not
    x[-1] = x[-1].abs() + 1
    right = wanted(x, w).to(dtype)
    found = linear(x.to(device), w.to(device)).cpu()
    kinds = right.isnan(), right == inf, right == -inf
    assert kinds[0].any() and kinds[1].any() and kinds[2].any() and right.isfinite().any()
    for kind, of_found in zip(kinds, (found.isnan(), found == inf, found == -inf)):
        assert torch.equal(kind, of_found)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_threads(dtype):
    """The bits do not depend on the number of threads."""
    x, w = random(70, 520, dtype=dtype, device="cpu"), random(210, 520, dtype=dtype, device="cpu")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results += [(linear(x, w), linear(x[:3], w))]
    finally:
        torch.set_num_threads(before)
    for many, few in results[1:]:
        assert torch.equal(many, results[0][0]) and torch.equal(few, results[0][1])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_rows_do_not_know_each_other(dtype):
    """On the CPU always; on the GPU with SGK_BATCH_INVARIANT=1, which sgk-check covers."""
    x, w = random(70, 1100, dtype=dtype, device="cpu"), random(50, 1100, dtype=dtype, device="cpu")
    together = linear(x, w)
    for first, last in [(0, 1), (5, 9), (30, 69)]:
        assert torch.equal(linear(x[first:last], w), together[first:last])


def test_refused(device):
    x, w = torch.zeros(3, 8, device=device), torch.zeros(4, 8, device=device)
    with pytest.raises(RuntimeError, match="linear: weight has size 7 in dimension 1, expected 8"):
        linear(x, w[:, :7])
    with pytest.raises(RuntimeError, match="linear: bias has size 3 in dimension 0, expected 4"):
        linear(x, w, torch.zeros(3, device=device))
    with pytest.raises(RuntimeError, match="linear: out is written and overlaps input"):
        linear(x, w, out=x[:, :4])
    with pytest.raises(RuntimeError, match="linear: input has leading dimensions that are not evenly spaced"):
        linear(torch.zeros(4, 3, 8, device=device)[:, :2], w)
    with pytest.raises(RuntimeError, match="linear: input has stride 3 in its last dimension, expected 1"):
        linear(torch.zeros(8, 3, device=device).T, w)
    with pytest.raises(RuntimeError, match="linear: input has dtype f64"):
        linear(x.double(), w)


def test_gradients_are_not_lost_silently():
    x, w = torch.zeros(3, 8, requires_grad=True), torch.zeros(4, 8)
    assert not linear(x, w).requires_grad


ROWS_ALIKE = """
import torch
import sgl_kernel
rows = [1, 3, 8, 16, 17, 32, 48, 64, 96, 128, 160, 256, 384, 512, 768, 1024, 2000, 4096]
for columns, depth in (4096, 7168), (7168, 2048), (4096, 14336), (24576, 1536), (256, 7168), (2112, 7168), (1280, 8192), (768, 4096):
    for dtype, out_dtype in (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32), (torch.float32, torch.float32):
        if dtype == torch.float32 and columns > 2112:
            continue
        x, w = torch.randn(rows[-1], depth, device="cuda", dtype=dtype), torch.randn(columns, depth, device="cuda", dtype=dtype)
        every = sgl_kernel.linear(x, w, out_dtype=out_dtype)
        for m in rows:
            found = sgl_kernel.linear(x[:m], w, out_dtype=out_dtype)
            assert torch.equal(found, every[:m]), f"{dtype}, {out_dtype}: {m} rows of {columns} x {depth} have other bits in {rows[-1]}"
"""


def test_batch_invariant_rows(gpu):
    subprocess.run([sys.executable, "-c", ROWS_ALIKE], check=True, env=os.environ | {"SGK_BATCH_INVARIANT": "1"})
