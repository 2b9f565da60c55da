"""fp8_scaled_mm, int8_scaled_mm and bmm_fp8 next to torch in float64: formats, scales, bias, odd sizes, empty ones, and what is refused."""
import pytest

torch = pytest.importorskip("torch")
from sgl_kernel import bmm_fp8, fp8_scaled_mm, int8_scaled_mm  # noqa: E402

TOLERANCE = {torch.float32: 3e-4, torch.float16: 1e-3, torch.bfloat16: 6e-3}     # relative l2: one rounding, and the sums of the matrix units
FUNCTIONS = {torch.float8_e4m3fn: fp8_scaled_mm, torch.int8: int8_scaled_mm}


def random(*shape, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed + len(shape))
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, generator=generator, dtype=dtype).to(device)
    return torch.randn(*shape, generator=generator).to(dtype).to(device)


def wanted(mat_a, mat_b, scales_a, scales_b, bias=None):
    product = (mat_a.double() @ mat_b.double()) * scales_a.double().reshape(-1, 1) * scales_b.double().reshape(1, -1)
    return product if bias is None else product + bias.double()


def assert_near(found, right, tolerance):
    assert found.shape == right.shape
    error = (found.double() - right).norm() / right.norm()
    assert error <= tolerance                       # fails for NaN


def operands(dtype, rows, columns, depth, device):
    return (random(rows, depth, dtype=dtype, device=device), random(columns, depth, dtype=dtype, device=device, seed=7).t(),
            random(rows, 1, dtype=torch.float32, device=device, seed=1) / 64, random(columns, 1, dtype=torch.float32, device=device, seed=2))


@pytest.mark.parametrize("dtype", FUNCTIONS, ids=str)
@pytest.mark.parametrize("out_dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 7, 40, 200])
@pytest.mark.parametrize("columns, depth", [(64, 256), (33, 1031), (296, 144)])
def test_product(device, dtype, out_dtype, rows, columns, depth):
    a, b, sa, sb = operands(dtype, rows, columns, depth, device)
    bias = random(columns, dtype=out_dtype, device=device, seed=3)
    for extra in (None, bias):
        found = FUNCTIONS[dtype](a, b, sa, sb, out_dtype, extra)
        assert found.dtype == out_dtype
        assert_near(found, wanted(a, b, sa, sb, extra), TOLERANCE[out_dtype])


@pytest.mark.parametrize("dtype", FUNCTIONS, ids=str)
def test_scales_of_any_shape(device, dtype):
    a, b, sa, sb = operands(dtype, 9, 24, 64, device)
    run, right = FUNCTIONS[dtype], wanted(a, b, sa, sb)
    for x, y in ((sa.flatten(), sb.flatten()), (sa.t(), sb.t()), (sa, sb)):
        assert_near(run(a, b, x, y, torch.bfloat16), right, TOLERANCE[torch.bfloat16])
    assert_near(run(a, b, sa[:1], sb[0, 0], torch.bfloat16), wanted(a, b, sa[:1], sb[:1]), TOLERANCE[torch.bfloat16])       # one for all


@pytest.mark.parametrize("dtype", FUNCTIONS, ids=str)
def test_empty_and_strided(device, dtype):
    a, b, sa, sb = operands(dtype, 12, 32, 64, device)
    run = FUNCTIONS[dtype]
    assert run(a[:0], b, sa[:0], sb, torch.float16).shape == (0, 32)
    assert run(a, b[:, :0], sa, sb[:0], torch.float16).shape == (12, 0)
    assert (run(a[:, :0], b[:0], sa, sb, torch.float16) == 0).all()
    part = (a[::2, 3:50], b[3:50, 1:20], sa[::2], sb[1:20])
    assert_near(run(*part, torch.bfloat16), wanted(*part), TOLERANCE[torch.bfloat16])


def test_int8_is_exact(device):
    a, b, *_ = operands(torch.int8, 33, 40, 4112, device)
    one = torch.ones(1, device=device)
    assert torch.equal(int8_scaled_mm(a, b, one, one, torch.float32).double(), a.double() @ b.double())


@pytest.mark.parametrize("a_dtype, b_dtype", [(x, y) for x in (torch.float8_e4m3fn, torch.float8_e5m2) for y in (torch.float8_e4m3fn, torch.float8_e5m2)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("batch, rows, columns, depth", [(16, 48, 80, 64), (2, 5, 33, 47), (0, 5, 33, 47), (3, 130, 136, 272)])
def test_bmm(device, a_dtype, b_dtype, dtype, batch, rows, columns, depth):
    A, B = random(batch, rows, depth, dtype=a_dtype, device=device), random(batch, columns, depth, dtype=b_dtype, device=device, seed=5).transpose(1, 2)
    A_scale, B_scale = torch.tensor([0.5], device=device), torch.tensor(3.0, device=device)
    found = bmm_fp8(A, B, A_scale, B_scale, dtype)
    if batch:
        assert_near(found, A.double() @ B.double() * 1.5, TOLERANCE[dtype])
    out = torch.empty_like(found)
    assert bmm_fp8(A, B, A_scale, B_scale, dtype, out) is out and torch.equal(out, found)


@pytest.mark.parametrize("dtype", FUNCTIONS, ids=str)
def test_refused(device, dtype):
    a, b, sa, sb = operands(dtype, 9, 24, 64, device)
    run = FUNCTIONS[dtype]
    for arguments, message in (((a, b.contiguous(), sa, sb, torch.bfloat16), "column-major"), ((a, b, sa[:5], sb, torch.bfloat16), "scales_a has 5 elements"),
                               ((a.float(), b, sa, sb, torch.bfloat16), "mat_a has dtype"), ((a, b, sa, sb, torch.bfloat16, sb.flatten()), "bias has dtype"),
                               ((a[:, :60], b, sa, sb, torch.bfloat16), "mat_b has size 64"), ((a, b, sa, sb, torch.int32), "out has dtype")):
        with pytest.raises(RuntimeError, match=message):
            run(*arguments)
