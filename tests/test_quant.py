"""The quantisers against their formulas in torch, and what their Python functions add."""
import pytest

torch = pytest.importorskip("torch")
import sgl_kernel  # noqa: E402
from samples import random  # noqa: E402
from sgl_kernel import _library  # noqa: E402

pytestmark = pytest.mark.skipif("quant" in _library.families_left_out, reason="the family is left out")
E4M3 = torch.float8_e4m3fn


def codes(x):
    return x.clamp(-448, 448).to(E4M3)


def equal(a, b):
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_per_token(dtype, device):
    x = random(9, 72, device=device, dtype=dtype)
    x[4] = 0
    q, s = torch.empty(9, 72, dtype=E4M3, device=device), torch.empty(9, 1, device=device)
    sgl_kernel.sgl_per_token_quant_fp8(x, q, s)
    x, q, s = x.cpu(), q.cpu(), s.cpu()          # torch divides by 448 on the GPU as it multiplies by 1/448
    assert torch.equal(s, x.float().abs().amax(1, keepdim=True) / 448)
    assert equal(q, codes(x.float() * torch.where(s > 0, 1 / s, 0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_per_tensor(dtype, device):
    x = random(3, 5, 77, device=device, dtype=dtype)
    q, s = torch.empty(3, 5, 77, dtype=E4M3, device=device), torch.zeros(1, device=device)
    sgl_kernel.sgl_per_tensor_quant_fp8(x, q, s, False)
    assert s.item() == (x.cpu().float().abs().max() / 448).item()
    assert equal(q, codes(x.float() * (1 / s)))
    sgl_kernel.sgl_per_tensor_quant_fp8(x, q, s.fill_(0.5), True)
    assert s.item() == 0.5 and equal(q, codes(x.float() * 2))


def scales(rows, groups, layout, device):
    padded = (rows + 3) // 4 * 4
    if layout == "rows":
        return torch.empty(rows, groups, device=device)
    if layout == "columns":
        return torch.empty(groups, rows, device=device).T
    if layout == "aligned":
        return torch.empty(groups, padded, device=device).T[:rows]
    return torch.full(((groups + 3) // 4, padded), -1, dtype=torch.int32, device=device).T[:rows]


@pytest.mark.parametrize("layout", ["rows", "columns", "aligned", "packed"])
@pytest.mark.parametrize("target", [E4M3, torch.int8])
@pytest.mark.parametrize("v2", [False, True])
def test_per_group(layout, target, v2, device):
    rows, groups, group = 7, 6, 32
    x = random(rows, groups * group, device=device, dtype=torch.bfloat16)
    x[2, :group] = 0
    least, most = (-448.0, 448.0) if target == E4M3 else (-128.0, 127.0)
    q, s = torch.empty(x.shape, dtype=target, device=device), scales(rows, groups, layout, device)
    function = sgl_kernel.sgl_per_token_group_quant_8bit
    function(x, q, s, group, 1e-10, least, most, scale_ue8m0=layout == "packed", enable_v2=v2)

    blocks = x.float().view(rows, groups, group)
    amax = blocks.abs().amax(2, keepdim=True).clamp_min(1e-10)
    top = torch.tensor(most, device=device)
    scale = amax * (1 / top) if v2 else amax / top
    if layout == "packed":
        mantissa, exponent = torch.frexp(scale if v2 else scale.clamp_min(1e-10))
        exponent = exponent - (mantissa == 0.5).int()       # frexp's mantissa is in [0.5, 1)
        scale = torch.ldexp(torch.ones_like(scale), exponent)
        stored = s.contiguous().view(torch.uint8)
        assert torch.equal(stored[:, :groups].int(), exponent[..., 0] + 127) and not stored[:, groups:].any()
    else:
        assert torch.equal(s, scale[..., 0])
    scaled = blocks * (top / amax) if v2 and layout != "packed" else blocks / scale
    expected = codes(scaled) if target == E4M3 else scaled.clamp(-128, 127).to(torch.int8)
    assert equal(q, expected.view(x.shape))


@pytest.mark.parametrize("layout", ["rows", "packed"])
def test_fused_and_masked(layout, device):
    experts, rows, groups, group = 3, 5, 16, 128
    x = random(experts, rows, 2 * groups * group, device=device, dtype=torch.bfloat16)
    mask = torch.tensor([0, 5, 2], dtype=torch.int32, device=device)
    q = torch.full((experts, rows, groups * group), 9, dtype=torch.uint8, device=device).view(E4M3)
    s = torch.stack([scales(rows, groups, layout, "cpu").fill_(7).T for _ in range(experts)]).to(device).mT
    sgl_kernel.sgl_per_token_group_quant_8bit(x, q, s, group, 1e-10, -448.0, 448.0, layout == "packed", True, mask)

    gate, up = x.chunk(2, dim=2)
    value = torch.nn.functional.silu(gate.float()).to(x.dtype) * up
    expected_q, expected_s = torch.empty_like(value, dtype=E4M3).flatten(0, 1), scales(experts * rows, groups, layout, device)
    sgl_kernel.sgl_per_token_group_quant_8bit(value.flatten(0, 1), expected_q, expected_s, group, 1e-10, -448.0, 448.0, layout == "packed")
    expected_q = expected_q.view(experts, rows, -1)
    for expert, count in enumerate(mask.tolist()):
        got, wanted = q[expert, :count].view(torch.uint8).int(), expected_q[expert, :count].view(torch.uint8).int()
        assert (got != wanted).float().mean() <= 0.005 if count else True       # torch's exponential may round otherwise
        assert bool((q[expert, count:].view(torch.uint8) == 9).all()) and bool((s[expert, count:] == 7).all())


def test_version_is_chosen_by_group_size(device):
    x = random(2, 48, device=device, dtype=torch.bfloat16)
    q, s = torch.empty(2, 48, dtype=E4M3, device=device), torch.empty(2, 2, device=device)
    with pytest.raises(AssertionError, match="only v2 support fuse_silu_and_mul"):
        sgl_kernel.sgl_per_token_group_quant_8bit(x, q, s, 24, 1e-10, -448.0, 448.0, fuse_silu_and_mul=True)
    with pytest.raises(AssertionError, match="only v2 support masked_m"):
        sgl_kernel.sgl_per_token_group_quant_8bit(x, q, s, 24, 1e-10, -448.0, 448.0, masked_m=torch.zeros(1, dtype=torch.int32))
    sgl_kernel.sgl_per_token_group_quant_fp8(x, q, s, 24, 1e-6, -448.0, 448.0)          # the first version takes any eps
    with pytest.raises(RuntimeError, match="eps is 1e-06, expected 1e-10"):
        sgl_kernel.sgl_per_token_group_quant_int8(x, q, torch.empty(2, 3, device=device), 16, 1e-6, -448.0, 448.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_per_token_int8(dtype):
    x = random(5, 96, device="cpu", dtype=dtype)
    x[1] = 0
    q, s = torch.ops.sgl_kernel.per_token_quant_int8_cpu(x)
    amax = x.float().abs().amax(1).clamp_min(1e-7)
    assert torch.equal(s, amax / 127) and q.dtype == torch.uint8
    assert torch.equal(q.int(), (x.float() * (torch.tensor(127.0) / amax)[:, None]).round().int() + 128)


@pytest.mark.skipif("norm" in _library.families_left_out, reason="the family is left out")
@pytest.mark.parametrize("layout", ["rows", "packed"])
@pytest.mark.parametrize("add", [False, True])
def test_norm_then_groups(layout, add, device):
    rows, groups, group = 7, 6, 32
    x, residual = (random(rows, groups * group, device=device, dtype=torch.bfloat16, seed=seed) for seed in (0, 1))
    weight = random(groups * group, device=device, dtype=torch.bfloat16, seed=2)
    options = group, 1e-10, -448.0, 448.0, layout == "packed"
    results = []
    for fused in (True, False):
        y, r = x.clone(), residual.clone()
        q, s = torch.empty(x.shape, dtype=E4M3, device=device), scales(rows, groups, layout, device)
        if fused and add:
            sgl_kernel.fused_add_rmsnorm_quant(y, r, q, s, weight, *options, rms_eps=1e-5)
        elif fused:
            sgl_kernel.fused_rmsnorm_quant(y, q, s, weight, *options, rms_eps=1e-5)
        else:
            if add:
                sgl_kernel.fused_add_rmsnorm(y, r, weight, 1e-5)
            else:
                sgl_kernel.rmsnorm(y, weight, 1e-5, out=y)
            sgl_kernel.sgl_per_token_group_quant_8bit(y, q, s, *options, enable_v2=False)
        results.append((q.float(), s.clone(), r))
    (q, s, r), (wanted_q, wanted_s, wanted_r) = results
    assert torch.equal(r, wanted_r)
    assert (q != wanted_q).float().mean() < 0.01            # the norm's last bit is free
    assert (s.float() - wanted_s.float()).abs().max() <= (0 if layout == "packed" else 4e-3 * wanted_s.abs().max())
