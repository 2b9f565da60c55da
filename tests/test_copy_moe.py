"""Concatenations, copies and the row operators of the experts next to torch."""
import pytest

torch = pytest.importorskip("torch")
import sgl_kernel  # noqa: E402
from sgl_kernel import apply_shuffle_mul_sum, concat_mla_absorb_q, concat_mla_k, copy_to_gpu_no_ce, downcast_fp8, moe_sum, moe_sum_reduce, shuffle_rows  # noqa: E402

TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}     # relative l2: one rounding
FORMATS = list(TOLERANCE)


def random(*shape, dtype, device, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(device, dtype)


def assert_near(found, right, dtype):
    assert found.shape == right.shape
    assert (found.double() - right).norm() <= TOLERANCE[dtype] * right.norm()       # fails for NaN


@pytest.mark.parametrize("tokens, heads, nope, rope", [(1, 128, 128, 64), (33, 128, 128, 64), (5, 3, 7, 2), (0, 128, 128, 64)])
def test_concat_mla_k(device, tokens, heads, nope, rope):
    kv = random(tokens, heads, nope + 16, dtype=torch.bfloat16, device=device)      # as the engine has it: slices of one tensor
    k_nope, k_rope = kv[..., :nope], random(tokens, 1, rope + 8, dtype=torch.bfloat16, device=device)[..., :rope]
    k = torch.empty(tokens, heads, nope + rope, dtype=torch.bfloat16, device=device)
    concat_mla_k(k, k_nope, k_rope)
    assert torch.equal(k, torch.cat((k_nope, k_rope.expand(-1, heads, -1)), dim=-1))


def test_concat_mla_k_refuses(device):
    k = torch.zeros(2, 3, 24, device=device)
    with pytest.raises(RuntimeError, match=r"concat_mla_k: k has size 24 in dimension 2, expected 16 \+ 4 like k_nope and k_rope"):
        concat_mla_k(k, torch.ones(2, 3, 16, device=device), torch.ones(2, 1, 4, device=device))
    with pytest.raises(RuntimeError, match="concat_mla_k: k_rope has size 3 in dimension 1, expected 1"):
        concat_mla_k(k, torch.ones(2, 3, 16, device=device), torch.ones(2, 3, 8, device=device))
    assert (k == 0).all()


@pytest.mark.parametrize("shape", [(1, 128), (17, 16), (0, 4)])
def test_concat_mla_absorb_q(device, shape):
    a, b = random(*shape, 512, dtype=torch.bfloat16, device=device), random(*shape, 64, dtype=torch.bfloat16, device=device)
    a, b = a.transpose(0, 1).contiguous().transpose(0, 1), b        # heads first, as a batched product leaves them
    assert torch.equal(concat_mla_absorb_q(a, b), torch.cat((a, b), dim=-1))


@pytest.mark.parametrize("count", [0, 1, 32, 64, 72, 1000, 2001])
def test_copy_to_gpu_no_ce(device, count):
    input, output = torch.arange(count, dtype=torch.int32) - 7, torch.zeros(count, dtype=torch.int32, device=device)
    wanted = input.clone()
    copy_to_gpu_no_ce(input, output)
    input.fill_(-1)                 # free at once
    assert torch.equal(output.cpu(), wanted)
    with pytest.raises(RuntimeError, match=f"copy_to_gpu_no_ce: input has size {count + 1}, expected {count} like output"):
        copy_to_gpu_no_ce(torch.zeros(count + 1, dtype=torch.int32), output)


def test_copy_to_gpu_no_ce_refuses_the_gpu(gpu):
    with pytest.raises(RuntimeError, match="input is on CUDA device 0, expected the CPU"):
        copy_to_gpu_no_ce(torch.zeros(4, dtype=torch.int32, device=gpu), torch.zeros(4, dtype=torch.int32, device=gpu))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("flat", [True, False])
def test_downcast_fp8(device, dtype, flat):
    k, v = random(6, 2, 72, dtype=dtype, device=device) * 50, random(6, 2, 72, dtype=dtype, device=device, seed=1)
    shape = (20, 144) if flat else (20, 2, 72)
    outs = [torch.zeros(shape, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn) for _ in range(2)]
    scales = [torch.tensor([s], device=device) for s in (0.11, 3.0)]
    loc = torch.tensor([5, 0, 9, 2, 3, 7], device=device)
    downcast_fp8(k, v, *outs, *scales, loc, mult=2, offset=1)
    for x, scale, out in zip((k, v), scales, outs):
        wanted = torch.zeros_like(out).view(20, 2, 72).view(torch.uint8)
        inv = 1 / scale.to(dtype)
        wanted[loc * 2 + 1] = (x * inv).float().clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
        assert torch.equal(out.view(20, 2, 72).view(torch.uint8), wanted)


def test_downcast_fp8_refuses(device):
    k, out = random(2, 3, 8, dtype=torch.float16, device=device), torch.zeros(4, 3, 7, dtype=torch.uint8, device=device)
    one = torch.ones(1, device=device)
    with pytest.raises(ValueError, match=r"downcast_fp8: k_out has shape \[4, 3, 7\], expected rows like k, \[2, 3, 8\]"):
        downcast_fp8(k, k, out, out.clone(), one, one, torch.arange(2, device=device))


@pytest.mark.parametrize("dtype", [*FORMATS, torch.float8_e4m3fn, torch.uint8], ids=str)
@pytest.mark.parametrize("columns", [1, 24, 4096])
def test_shuffle_rows(device, dtype, columns):
    x = (random(7, columns, dtype=torch.float32, device=device) * 20).abs().to(dtype)
    index = torch.tensor([6, 0, 0, 3, 5, 1, 2, 6, 4, 6, 1], dtype=torch.int32, device=device)
    out = shuffle_rows(x, index, (11, columns))
    assert out.dtype == dtype and torch.equal(out.view(torch.uint8), x.view(torch.uint8)[index.long()])


def test_shuffle_rows_outside(device):
    x, index = torch.ones(4, 8, device=device), torch.tensor([0, 4, 1], dtype=torch.int32, device=device)
    if device == "cpu":
        with pytest.raises(RuntimeError, match=r"shuffle_rows: dst2src_map\[1\] is 4, expected 0 to 3"):
            shuffle_rows(x, index, (3, 8))
    else:
        out = torch.full((3, 8), 7.0, device=device)
        torch.ops.sgl_kernel.shuffle_rows(x, index, out)
        assert (out[1] == 7).all() and (out[[0, 2]] == 1).all()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("tokens, topk, columns", [(1, 8, 7168), (33, 2, 40), (5, 9, 31), (0, 2, 8)])
@pytest.mark.parametrize("weighted", [True, False])
def test_apply_shuffle_mul_sum(device, dtype, tokens, topk, columns, weighted):
    x = random(tokens * topk, columns, dtype=dtype, device=device)
    permutation = torch.randperm(tokens * topk).to(device, torch.int32)
    factors = random(tokens, topk, dtype=dtype, device=device, seed=1).flatten() if weighted else None
    out = torch.empty(tokens, columns, dtype=dtype, device=device)
    apply_shuffle_mul_sum(x, out, permutation, factors)
    terms = x.double()[permutation.long()].view(tokens, topk, columns)
    assert_near(out, (terms * factors.double().view(tokens, topk, 1) if weighted else terms).sum(1), dtype)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("tokens, topk, columns", [(1, 8, 7168), (300, 3, 24), (5, 2, 31), (7, 4, 64), (0, 2, 8)])
def test_moe_sum(device, dtype, tokens, topk, columns):
    x = random(tokens, topk, columns, dtype=dtype, device=device)
    out = torch.empty(tokens, columns, dtype=dtype, device=device)
    moe_sum(x, out)
    assert_near(out, x.double().sum(1), dtype)
    moe_sum_reduce(x, out, 2.5)
    assert_near(out, 2.5 * x.double().sum(1), dtype)
    moe_sum_reduce(x, out)
    assert (out == 0).all()


def test_hadamard_of_any_layout(device):
    x = random(3, 5, 64, dtype=torch.float32, device=device)
    h = torch.ones(1, 1, device=device)
    while h.shape[0] < 64:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    for form in (x, x[0, 0], x[:, 0], x.transpose(0, 1), x.transpose(1, 2).contiguous().transpose(1, 2), x[:0], x[..., :0]):
        wanted = form @ h[:form.shape[-1], :form.shape[-1]]
        torch.testing.assert_close(sgl_kernel.hadamard_transform(form), wanted, atol=1e-4, rtol=1e-4)
