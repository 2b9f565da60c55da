"""The operators of the CPU wheel, with the ranks, strides and options of its contract, against torch in float64."""
import pytest

torch = pytest.importorskip("torch")
import sgl_kernel  # noqa: E402,F401

OPS = torch.ops.sgl_kernel
FORMATS = [torch.bfloat16, torch.float16, torch.float32]
# relative to the largest result: one rounding, and a little for float32 sums
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 7e-4, torch.float32: 2e-6}


def random(*shape, dtype, device, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(device, dtype)


def rms(x, eps=1e-6):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def close(got, expected):
    assert got.shape == expected.shape and torch.isfinite(got).all()
    assert (got.double() - expected).abs().max() <= TOLERANCE[got.dtype] * expected.abs().max()


def sliced(*shape, dtype, device, seed=0):
    """Rows with room between them."""
    return random(*shape[:-1], shape[-1] + 24, dtype=dtype, device=device, seed=seed)[..., :shape[-1]]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("dim", [33, 128, 1037, 4096])
def test_norms(device, dtype, dim):
    options = dict(dtype=dtype, device=device)
    w, b = random(dim, **options), random(dim, **options, seed=1)
    for x in (sliced(5, dim, **options), sliced(2, 3, dim, **options)):
        d = x.double()
        close(OPS.rmsnorm_cpu(x, w, 1e-6), rms(d) * w.double())
        close(OPS.gemma4_rmsnorm_cpu(x, w, 1e-6, 0.25, True), rms(d) * (w.double() + 0.25))
        close(OPS.gemma4_rmsnorm_cpu(x, w, 1e-6, 0.25, False), rms(d))
        for bias in (None, b):
            expected = (d - d.mean(-1, keepdim=True)) * (d.var(-1, correction=0, keepdim=True) + 1e-6).rsqrt() * w.double() + (0 if bias is None else b.double())
            close(OPS.layernorm_cpu(x, w, bias, 1e-6), expected)
    x = sliced(5, dim, **options)
    close(OPS.gemma_rmsnorm_cpu(x, w, 1e-6), rms(x.double()) * (1 + w.double()))
    close(OPS.gemma3_rmsnorm_cpu(x, w, 1e-6), rms(x.double()) * (1 + w.double()))
    heads = random(2, 4, 3, dim, **options).transpose(1, 2)
    close(OPS.gemma3_rmsnorm_cpu(heads, w, 1e-6), rms(heads.double()) * (1 + w.double()))
    close(OPS.l2norm_cpu(x.contiguous(), 1e-6), rms(x.double()))
    gate = random(5, dim, **options, seed=2)
    close(OPS.fused_rmsnorm_gated_cpu(x, w, gate, 1e-6), rms(x.double()) * w.double() * torch.nn.functional.silu(gate.double()))
    with pytest.raises(RuntimeError, match="weight has size"):
        OPS.gemma4_rmsnorm_cpu(x, w[1:], 1e-6, 0.0, False)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(7, 533), (2, 3, 64)], ids=str)
def test_norms_with_addition(device, dtype, shape):
    w = random(shape[-1], dtype=dtype, device=device)
    for name, shift in (("fused_add_rmsnorm_cpu", 0), ("gemma_fused_add_rmsnorm_cpu", 1), ("fused_add_layernorm_cpu", None)):
        if shift == 1 and len(shape) == 3:
            continue
        x, residual = sliced(*shape, dtype=dtype, device=device), random(*shape, dtype=dtype, device=device, seed=3)
        before, total = x.clone(), x.double() + residual.double()
        if shift is None:
            out = OPS.fused_add_layernorm_cpu(x, residual, w, None, 1e-6)
            assert torch.equal(x, before)
            close(out, (total - total.mean(-1, keepdim=True)) * (total.var(-1, correction=0, keepdim=True) + 1e-6).rsqrt() * w.double())
        else:
            getattr(OPS, name)(x, residual, w, 1e-6)
            close(x, rms(total) * (w.double() + shift))
        assert torch.equal(residual, total.to(dtype))


@pytest.mark.parametrize("dtype", FORMATS[:2], ids=str)
@pytest.mark.parametrize("shape", [(22018,), (3, 18), (2, 129, 2, 256)], ids=str)
def test_activations(device, dtype, shape):
    x = random(*shape, dtype=dtype, device=device)
    a, b = x.double().chunk(2, -1)
    close(OPS.silu_and_mul_cpu(x), torch.nn.functional.silu(a) * b)
    close(OPS.gelu_and_mul_cpu(x), torch.nn.functional.gelu(a) * b)
    close(OPS.gelu_tanh_and_mul_cpu(x), torch.nn.functional.gelu(a, approximate="tanh") * b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8], ids=str)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_store_cache(device, dtype, index):
    k, v = (torch.arange(5 * 3 * 8).add(i).remainder(200).view(5, 3, 8).to(device, dtype) for i in (0, 7))
    room = torch.zeros(2, 9, 4, 8, dtype=dtype, device=device)[:, :, :3]
    place = torch.tensor([8, 0, 3, 7, 2], dtype=index, device=device)
    for row_dim in (None, 24):
        k_cache, v_cache = room.clone()
        OPS.store_cache_cpu(k, v, k_cache, v_cache, place, row_dim)
        assert torch.equal(k_cache[place.long()], k) and torch.equal(v_cache[place.long()], v) and not k_cache[1].any()
    with pytest.raises(RuntimeError, match="row_dim is 23"):
        OPS.store_cache_cpu(k, v, k_cache, v_cache, place, 23)
