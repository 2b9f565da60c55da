"""The rotary operators of the CPU release, store_cache_cpu and the modules of sgl_kernel.testing, next to torch."""
import pytest

torch = pytest.importorskip("torch")
import sgl_kernel  # noqa: E402, F401
from sgl_kernel import _library  # noqa: E402

pytestmark = pytest.mark.skipif(bool({"rope", "kvcache"} & _library.families_left_out), reason="a family is left out")
ops = torch.ops.sgl_kernel
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = list(CLOSE)


def random(*shape, device, dtype):
    return torch.randn(*shape, device=device).to(dtype)


def table(rows, rot_dim, device, dtype):
    angle = torch.rand(rows, rot_dim // 2, device=device) * 6
    return torch.cat((angle.cos(), angle.sin()), 1).to(dtype)


def rotated(x, cos, sin, is_neox):
    """x [tokens, heads, size] by cos and sin [tokens, R / 2]."""
    rot_dim = 2 * cos.shape[1]
    cos, sin, turning = cos.float().unsqueeze(1), sin.float().unsqueeze(1), x[..., :rot_dim].float()
    a, b = turning.chunk(2, -1) if is_neox else (turning[..., 0::2], turning[..., 1::2])
    pairs = (a * cos - b * sin, b * cos + a * sin)
    turned = torch.cat(pairs, -1) if is_neox else torch.stack(pairs, -1).flatten(-2)
    return torch.cat((turned.to(x.dtype), x[..., rot_dim:]), -1)


def close(got, expected):
    torch.testing.assert_close(got, expected, atol=CLOSE[got.dtype], rtol=CLOSE[got.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("form", ["flat", "heads", "batch"])
def test_rotary_embedding_cpu(device, dtype, is_neox, form):
    tokens, heads, size, rot_dim = 12, 4, 64, 32
    positions, cache = torch.randint(0, 50, (tokens,), device=device), table(50, rot_dim, device, dtype)
    query, key = random(tokens, heads, size, device=device, dtype=dtype), random(tokens, 2, size, device=device, dtype=dtype)
    expected = [rotated(x, *cache[positions].chunk(2, 1), is_neox) for x in (query, key)]
    shape = {"flat": (tokens, -1), "heads": (tokens, -1, size), "batch": (3, 4, -1, size)}[form]
    given = [x.reshape(shape).clone() for x in (query, key)]
    before = [x.clone() for x in given]
    results = ops.rotary_embedding_cpu(positions, *given, size, cache, is_neox)
    for result, argument, old, wanted in zip(results, given, before, expected):
        close(result.reshape(wanted.shape), wanted)
        if form == "heads":
            assert torch.equal(argument, old)
        else:
            assert result is argument


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("interleaved", [None, True, False])
def test_multimodal_rotary_embedding_cpu(device, dtype, is_neox, interleaved):
    tokens, size, rot_dim, section = 9, 48, 32, [6, 5, 5]
    cache = table(40, rot_dim, device, dtype)
    positions = torch.randint(0, 40, (3, tokens) if interleaved is not None else (tokens,), device=device)
    query, key = random(tokens, 4 * size, device=device, dtype=dtype), random(tokens, 2 * size, device=device, dtype=dtype)
    rows = cache[positions.expand(3, tokens)]                           # [3, T, R]
    t, h, w = section
    if interleaved:
        plane = [1 if j % 3 == 1 and j <= 3 * h else 2 if j % 3 == 2 and j <= 3 * w else 0 for j in range(rot_dim // 2)]
    else:
        plane = [0] * t + [1] * h + [2] * w
    cos, sin = (torch.stack([half[p, :, j] for j, p in enumerate(plane)], 1) for half in rows.chunk(2, 2))
    expected = [rotated(x.view(tokens, -1, size), cos, sin, is_neox).view(x.shape) for x in (query, key)]
    results = ops.multimodal_rotary_embedding_cpu(positions, query, key, size, cache, None if interleaved is None else section, bool(interleaved), is_neox)
    assert results[0] is query and results[1] is key
    for result, wanted in zip(results, expected):
        close(result, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("size", [64, 72, 10])
def test_apply_rotary_pos_emb_cpu(device, dtype, wide, size):
    tokens, heads = 7, 3
    packed = random(tokens, 3, heads, size, device=device, dtype=dtype)
    query, key = packed[:, 0], packed[:, 1]                             # tokens are further apart than heads are long
    cos, sin = (torch.randn(tokens, size, device=device).to(torch.float32 if wide else dtype) for _ in range(2))

    def turned(x):
        half = torch.cat((-x[..., size // 2:], x[..., :size // 2]), -1).float()
        return (x.float() * cos.float().unsqueeze(1) + half * sin.float().unsqueeze(1)).to(dtype)

    expected = turned(query), turned(key)
    results = ops.apply_rotary_pos_emb_cpu(query, key, cos, sin)
    assert results[0] is query and results[1] is key
    for result, wanted in zip(results, expected):
        close(result, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("tokens", [1, 7, 133])
def test_store_cache_cpu(device, dtype, index, tokens):
    k, v = (torch.randint(0, 255, (tokens, 4, 64), device=device).to(dtype) for _ in range(2))
    caches = [torch.zeros(300, 8, 64, dtype=dtype, device=device)[:, :4] for _ in range(2)]     # rows with gaps
    where = torch.randperm(300, device=device)[:tokens]
    expected = [cache.clone() for cache in caches]
    expected[0][where], expected[1][where] = k, v
    ops.store_cache_cpu(k, v, *caches, where.to(index), 256 if tokens > 1 else None)
    assert all(torch.equal(cache, wanted) for cache, wanted in zip(caches, expected))
    with pytest.raises(RuntimeError, match="store_cache_cpu: row_dim is 255, expected 256"):
        ops.store_cache_cpu(k, v, *caches, where.to(index), 255)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("head_size, rotary_dim", [(64, 64), (128, 128), (256, 128)])
def test_modules_agree(device, dtype, is_neox, head_size, rotary_dim):
    from sgl_kernel.testing.rotary_embedding import (
        FlashInferRotaryEmbedding, FusedSetKVBufferArg, MHATokenToKVPool, RotaryEmbedding, SglKernelRotaryEmbedding, create_inputs,
    )
    how = (head_size, rotary_dim, 512, 10000, is_neox, dtype)
    given = create_inputs(head_size, 2, 33, device, dtype, num_q_heads=4, num_kv_heads=2)
    heads = lambda: (given["query"].clone(), given["key"].clone())          # noqa: E731
    plain = RotaryEmbedding(*how).to(device)
    query, key = plain.forward_native(given["pos_ids"], *heads())
    for got, wanted in zip(SglKernelRotaryEmbedding(*how).to(device).forward_cuda(given["pos_ids"], *heads()), (query, key)):
        close(got, wanted)

    fused = FlashInferRotaryEmbedding(*how).to(device)
    query, key = fused.forward_native(given["pos_ids"], *heads())
    pool, stored = (MHATokenToKVPool(2, head_size, device, dtype) for _ in range(2))
    stored.set_kv_buffer(given["out_cache_loc"], key, given["value"])
    arguments = FusedSetKVBufferArg(given["value"], pool.get_key_buffer().flatten(1), pool.get_value_buffer().flatten(1), None, None, given["out_cache_loc"])
    for got, wanted in zip(fused.forward_cuda(given["pos_ids"], *heads(), fused_set_kv_buffer_arg=arguments), (query, key)):
        close(got, wanted)
    close(pool.get_key_buffer(), stored.get_key_buffer())
    assert torch.equal(pool.get_value_buffer(), stored.get_value_buffer())


def test_modules_take_offsets(device):
    from sgl_kernel.testing.rotary_embedding import RotaryEmbedding, SglKernelRotaryEmbedding
    how, positions = (16, 16, 64, 10000, True, torch.float32), torch.arange(5, device=device)
    query, key = random(5, 32, device=device, dtype=torch.float32), random(5, 16, device=device, dtype=torch.float32)
    plain, ours = RotaryEmbedding(*how).to(device), SglKernelRotaryEmbedding(*how).to(device)
    expected = plain(positions + 3, query, key)
    for got, wanted in zip(ours.forward_cuda(positions, query.clone(), key.clone(), offsets=torch.tensor(3, device=device)), expected):
        close(got, wanted)


@pytest.mark.parametrize("tokens", [0, 3])
def test_apply_rope_of_no_tokens(device, tokens):
    """An engine's idle rank has none."""
    query, key = torch.randn(tokens, 128, device=device), torch.randn(tokens, 64, device=device)
    buffers = [torch.zeros(9, 64, device=device) for _ in range(2)]
    where = torch.arange(tokens, device=device)
    fused = sgl_kernel.FusedSetKVBufferArg(key.clone(), *buffers, None, None, where)
    rotate = torch.compile(sgl_kernel.apply_rope_with_cos_sin_cache_inplace, fullgraph=True, dynamic=True, backend="aot_eager")
    rotate(where, query, key, 32, table(9, 32, device, torch.float32), fused_set_kv_buffer_arg=fused)
    assert torch.equal(buffers[0][:tokens], key)
    sgl_kernel.apply_rope_with_cos_sin_cache_inplace(where, query, key, 32, table(9, 32, device, torch.float32), fused_set_kv_buffer_arg=fused)
    for size in (0, -1, 48):
        with pytest.raises(ValueError, match=f"query has rows of 128, expected a multiple of head_size, {size}"):
            sgl_kernel.apply_rope_with_cos_sin_cache_inplace(where, query, key, size, table(9, 32, device, torch.float32))
