"""apply_rope_with_cos_sin_cache_inplace, merge_state and apply_token_bitmask_inplace_cuda as engines call them."""
import pytest

torch = pytest.importorskip("torch")
import sgl_kernel  # noqa: E402
from sgl_kernel import _library  # noqa: E402

left_out = _library.families_left_out


def rotated(x, angle, is_neox, head_size):
    x = x.double().view(x.shape[0], -1, head_size)
    c, s = angle.cos()[:, None].double(), angle.sin()[:, None].double()
    a, b = x.chunk(2, -1) if is_neox else (x[..., ::2], x[..., 1::2])
    pair = a * c - b * s, b * c + a * s
    return (torch.cat(pair, -1) if is_neox else torch.stack(pair, -1).flatten(-2)).flatten(1)


@pytest.mark.skipif("rope" in left_out, reason="the family is left out")
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_apply_rope(is_neox, fused, dtype):
    torch.manual_seed(0)
    tokens, heads, kv_heads, size = 7, 4, 2, 64
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * size).to(dtype)
    q, k, v = qkv.split([heads * size, kv_heads * size, kv_heads * size], 1)         # slices of one tensor, as engines have them
    angle, positions = torch.randn(50, size // 2), torch.randint(0, 50, (tokens,), dtype=torch.int32)
    cache = torch.cat((angle.cos(), angle.sin()), 1)
    wanted = [rotated(x, angle[positions.long()], is_neox, size) for x in (q, k)]
    k_buffer, v_buffer, loc = torch.zeros(20, kv_heads * size, dtype=dtype), torch.zeros(20, kv_heads * size, dtype=dtype), torch.randperm(20)[:tokens]
    argument = sgl_kernel.FusedSetKVBufferArg(v, k_buffer, v_buffer, None, None, loc) if fused else None
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, q, k, size, cache, is_neox, argument)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-3
    for found, want in zip((q, k), wanted):
        torch.testing.assert_close(found.double(), want, atol=tolerance, rtol=tolerance)
    if fused:
        assert torch.equal(k_buffer[loc], k) and torch.equal(v_buffer[loc], v)


@pytest.mark.skipif("rope" in left_out, reason="the family is left out")
def test_apply_rope_refuses():
    q, k, cache = torch.zeros(2, 64), torch.zeros(2, 64), torch.zeros(5, 64)
    with pytest.raises(ValueError, match="cos_sin_cache should be float32"):
        sgl_kernel.apply_rope_with_cos_sin_cache_inplace(torch.arange(2), q, k, 64, cache.half())
    for k_scale, loc in ((1.0, torch.arange(2)), (None, torch.arange(2, dtype=torch.int32))):
        with pytest.raises(AssertionError):
            argument = sgl_kernel.FusedSetKVBufferArg(k, torch.zeros(5, 64), torch.zeros(5, 64), k_scale, None, loc)
            sgl_kernel.apply_rope_with_cos_sin_cache_inplace(torch.arange(2), q, k, 64, cache, True, argument)


@pytest.mark.skipif("attention" in left_out, reason="the family is left out")
@pytest.mark.parametrize("name, log, exp", [("merge_state", torch.logaddexp2, torch.exp2), ("merge_state_v2", torch.logaddexp, torch.exp)])
def test_merge_state(name, log, exp):
    torch.manual_seed(0)
    v_a, v_b, s_a, s_b = torch.randn(5, 3, 32), torch.randn(5, 3, 32), torch.randn(3, 5).T, torch.randn(5, 3)
    s_a[1, 2] = float("-inf")
    v, s = getattr(sgl_kernel, name)(v_a, s_a, v_b, s_b)
    wanted = log(s_a, s_b)
    torch.testing.assert_close(s, wanted)
    torch.testing.assert_close(v, v_a * exp(s_a - wanted)[..., None] + v_b * exp(s_b - wanted)[..., None])


@pytest.mark.skipif("grammar" in left_out, reason="the family is left out")
@pytest.mark.parametrize("indices", [None, [2, 0], torch.tensor([1], dtype=torch.int32)])
def test_token_bitmask(indices):
    torch.manual_seed(0)
    logits, allowed = torch.randn(3, 70), torch.rand(3, 96) < 0.4
    weights = 2 ** torch.arange(32, dtype=torch.int64)
    bitmask = (allowed.view(3, 3, 32) * weights).sum(-1).to(torch.int32)
    rows = range(3) if indices is None else [int(i) for i in indices]
    wanted = logits.clone()
    for row in rows:
        wanted[row, ~allowed[row, :70]] = float("-inf")
    assert sgl_kernel.apply_token_bitmask_inplace_cuda(logits, bitmask, indices) is None
    assert torch.equal(logits, wanted)


@pytest.mark.skipif("rope" in left_out, reason="the family is left out")
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("rotary_dim", [None, 64])
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_fused_qk_norm_rope(is_neox, rotary_dim, factor):
    torch.manual_seed(0)
    tokens, heads, kv_heads, size = 6, 4, 2, 128
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * size).bfloat16()
    q_weight, k_weight, positions = torch.randn(size).bfloat16(), torch.randn(size).bfloat16(), torch.randint(0, 400, (tokens,), dtype=torch.int32)
    q, k, v = qkv.double().split([heads * size, kv_heads * size, kv_heads * size], 1)
    turning = rotary_dim or size
    f = 10000.0 ** (-torch.arange(0, turning, 2, dtype=torch.float64) / turning)
    if factor != 1:
        ramp = ((torch.arange(turning // 2, dtype=torch.float64) - 4) / 12).clamp(0, 1)
        f = f / factor * ramp + f * (1 - ramp)
    wanted = []
    for x, weight in ((q, q_weight), (k, k_weight)):
        x = x.view(tokens, -1, size)
        x = x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()
        turned = rotated(x[..., :turning].flatten(1), positions[:, None] * f, is_neox, turning).view(tokens, -1, turning) * 1.1
        wanted.append(torch.cat((turned, x[..., turning:]), -1).flatten(1))
    more = () if rotary_dim is None else (rotary_dim,)
    sgl_kernel.fused_qk_norm_rope(qkv, heads, kv_heads, kv_heads, size, 1e-6, q_weight, k_weight, 10000.0, is_neox, positions, factor, 4.0, 16.0, 1.1, *more)
    torch.testing.assert_close(qkv.double(), torch.cat((*wanted, v), 1), atol=2e-2, rtol=1e-2)
