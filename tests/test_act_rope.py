"""Activations and rotary_embedding next to torch."""
import pytest

torch = pytest.importorskip("torch")
from sgl_kernel import gelu_and_mul, gelu_quick, gelu_tanh_and_mul, rotary_embedding, silu_and_mul  # noqa: E402

TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}     # relative l2: one rounding
FORMATS = list(TOLERANCE)


def random(*shape, dtype, device, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(device, dtype)


def assert_near(found, right, dtype):
    assert found.shape == right.shape
    error = (found.double() - right).norm() / right.norm()
    assert error <= TOLERANCE[dtype]                # fails for NaN


# ---- activations -----------------------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    silu_and_mul: torch.nn.functional.silu,
    gelu_and_mul: torch.nn.functional.gelu,
    gelu_tanh_and_mul: lambda a: torch.nn.functional.gelu(a, approximate="tanh"),
}


def gated(function, x):
    a, b = x.double().chunk(2, dim=-1)
    return ACTIVATIONS[function](a) * b


def silu_and_mul_wanted(x):
    return gated(silu_and_mul, x)


@pytest.mark.parametrize("function", list(ACTIVATIONS), ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(16,), (3, 256), (2, 5, 22016), (4, 1, 7, 48)], ids=str)
def test_gated_activation(device, function, dtype, shape):
    x = random(*shape, dtype=dtype, device=device)
    out = function(x)
    assert out.dtype == dtype
    assert_near(out, gated(function, x), dtype)
    given = torch.empty_like(out)
    assert function(x, given) is given and torch.equal(given, out)
    assert torch.equal(getattr(torch.ops.sgl_kernel, function.__name__ + "_cpu")(x), out)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(16,), (3, 256), (2, 5, 11008)], ids=str)
def test_gelu_quick(device, dtype, shape):
    x = random(*shape, dtype=dtype, device=device)
    wanted = x.double() * torch.sigmoid(1.702 * x.double())
    assert_near(gelu_quick(x), wanted, dtype)
    assert gelu_quick(x, x) is x
    assert_near(x, wanted, dtype)


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_silu_and_mul_leaves_rows_of_other_experts(device, step, index):
    x = random(11, 64, dtype=torch.float32, device=device)
    ids = torch.tensor([2, -1, 0, 5, -1, -1, 1, 1, -1, 0, 3], dtype=index, device=device)
    out = torch.full((11, 32), 7.0, device=device)
    assert silu_and_mul(x, out, expert_ids=ids, expert_step=step) is out
    kept = ids[torch.arange(11, device=device) // step] == -1
    assert (out[kept] == 7).all() and torch.equal(out[~kept], silu_and_mul(x)[~kept])
    with pytest.raises(RuntimeError, match="expert_ids has size 2, expected at least 11 for 11 rows in steps of 1"):
        silu_and_mul(x, out, expert_ids=ids[:2])


@pytest.mark.parametrize("function", list(ACTIVATIONS), ids=lambda f: f.__name__)
def test_functional_activation_of_odd_rows(device, function):
    op = getattr(torch.ops.sgl_kernel, function.__name__ + "_cpu")
    x = random(3, 2 * 11009, dtype=torch.bfloat16, device=device)
    assert_near(op(x), gated(function, x), torch.bfloat16)
    with pytest.raises(RuntimeError, match="input has size 5 in its last dimension, expected 2 x 2"):
        op(x[:, :5])


def test_silu_and_mul_of_strided_rows(device):
    x = random(6, 3, 64, dtype=torch.float32, device=device)[:, 1, 16:48]
    assert_near(silu_and_mul(x), silu_and_mul_wanted(x), torch.float32)


def test_silu_and_mul_older_schema(device):
    x = random(5, 64, dtype=torch.float32, device=device)
    out = torch.empty(5, 32, device=device)
    torch.ops.sgl_kernel.silu_and_mul.v0_1_8(out, x, torch.cuda.current_stream().cuda_stream if device == "cuda" else 0)
    assert torch.equal(out, silu_and_mul(x))


def test_silu_and_mul_refuses(device):
    x = random(4, 64, dtype=torch.float32, device=device)
    with pytest.raises(ValueError, match="The pointers must be multiple of 16 bytes."):
        silu_and_mul(x[:, :6])
    with pytest.raises(AssertionError):
        silu_and_mul(x, torch.empty(3, 32, device=device))
    with pytest.raises(RuntimeError, match="silu_and_mul: input has size 64 in its last dimension, expected 2 x 31"):
        torch.ops.sgl_kernel.silu_and_mul(torch.empty(4, 31, device=device), x)


# ---- rotary_embedding ------------------------------------------------------------------------------------------------------------

POSITIONS = 50


def cache_of(rot_dim, dtype, device):
    angles = torch.arange(POSITIONS)[:, None] * 10000.0 ** (-torch.arange(rot_dim // 2) / (rot_dim // 2))
    return torch.cat((angles.cos(), angles.sin()), dim=1).to(device, dtype)


def rotated(x, positions, head_size, cache, is_neox):
    """x: positions.shape + [H * head_size]"""
    heads = x.double().reshape(*positions.shape, -1, head_size).clone()
    r = cache.shape[1]
    c, s = (half[..., None, :] for half in cache[positions.long()].double().chunk(2, dim=-1))
    a, b = heads[..., :r].chunk(2, dim=-1) if is_neox else (heads[..., 0:r:2], heads[..., 1:r:2])
    a, b = a * c - b * s, b * c + a * s
    heads[..., :r] = torch.cat((a, b), dim=-1) if is_neox else torch.stack((a, b), dim=-1).flatten(-2)
    return heads.reshape(x.shape)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("head_size, rot_dim", [(64, 64), (128, 64), (256, 128), (6, 4)])
@pytest.mark.parametrize("batch", [(7,), (2, 5)], ids=str)
def test_rotary_embedding(device, dtype, is_neox, head_size, rot_dim, batch):
    query, key = random(*batch, 4 * head_size, dtype=dtype, device=device), random(*batch, 2 * head_size, dtype=dtype, device=device, seed=1)
    positions = torch.randint(POSITIONS, batch, device=device)
    cache = cache_of(rot_dim, dtype, device)
    right = [rotated(x, positions, head_size, cache, is_neox) for x in (query, key)]

    flat = query.clone(), key.clone()
    rotary_embedding(positions, *flat, head_size, cache, is_neox)
    split = [x.clone().view(*batch, -1, head_size) for x in (query, key)]
    rotary_embedding(positions.int(), *split, head_size, cache, is_neox)
    for found, also, x, wanted in zip(flat, split, (query, key), right):
        assert_near(found, wanted, dtype)
        assert torch.equal(also.view_as(x), found)
        rest = found.view(-1, head_size)[:, rot_dim:]
        assert torch.equal(rest, x.view(-1, head_size)[:, rot_dim:])

    alone = query.clone()
    rotary_embedding(positions, alone, None, head_size, cache, is_neox)
    assert torch.equal(alone, flat[0])


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("batch", [(1,), (9,), (3, 4)], ids=str)
def test_rotary_embedding_of_slices_of_one_tensor(device, is_neox, batch):
    heads, kv_heads, size = 4, 2, 32
    qkv = random(*batch, (heads + 2 * kv_heads) * size, dtype=torch.float32, device=device)
    query, key, value = qkv.split([heads * size, kv_heads * size, kv_heads * size], dim=-1)
    positions = torch.randint(POSITIONS, batch, device=device)
    cache = cache_of(size, torch.float32, device)
    right, kept = [rotated(x, positions, size, cache, is_neox) for x in (query, key)], value.clone()
    rotary_embedding(positions, query, key, size, cache, is_neox)
    assert_near(query, right[0], torch.float32)
    assert_near(key, right[1], torch.float32)
    assert torch.equal(value, kept)


def test_rotary_embedding_with_strides_of_any_kind(device):
    """Heads in front of tokens, one row of positions for the whole batch, a query and a key of different ranks."""
    batch, tokens, heads, size = 2, 3, 4, 16
    query = random(heads, batch, tokens, size, dtype=torch.float32, device=device).permute(1, 2, 0, 3)
    key = random(batch, tokens, size, dtype=torch.float32, device=device)
    positions = torch.randint(POSITIONS, (1, tokens), device=device).expand(batch, tokens)
    cache = cache_of(size, torch.float32, device)
    right = rotated(query.reshape(batch, tokens, -1), positions, size, cache, True), rotated(key, positions, size, cache, True)
    rotary_embedding(positions, query, key, size, cache)
    assert_near(query.reshape(batch, tokens, -1), right[0], torch.float32)
    assert_near(key, right[1], torch.float32)


@pytest.mark.parametrize("position", [-1, POSITIONS, 2**40])
def test_rotary_embedding_beyond_the_cache(device, position):
    """An error on the CPU; on the GPU the token is left as it is. Either way nothing else is harmed."""
    query = random(3, 64, dtype=torch.float32, device=device)
    before, positions, cache = query.clone(), torch.tensor([4, position, 7], device=device), cache_of(64, torch.float32, device)
    if device == "cpu":
        with pytest.raises(RuntimeError, match=f"rotary_embedding: positions has {position} for token 1, expected 0 to {POSITIONS - 1}"):
            rotary_embedding(positions, query, None, 64, cache)
        assert torch.equal(query, before)
    else:
        rotary_embedding(positions, query, None, 64, cache)
        assert torch.equal(query[1], before[1]) and not torch.equal(query[0], before[0])


@pytest.mark.parametrize("change, words", [
    (dict(query=torch.zeros(3, 100)), "query has size 100 in dimension 1, expected a multiple of head_size, 64"),
    (dict(key=torch.zeros(3, 3 * 64)), "query has 4 heads, expected a multiple of the 3 of key"),
    (dict(cache=torch.zeros(9, 33)), "cos_sin_cache has size 33 in dimension 1, expected an even number up to head_size, 64"),
    (dict(cache=torch.zeros(9, 66)), "cos_sin_cache has size 66"),
    (dict(cache=torch.zeros(9, 64, dtype=torch.bfloat16)), "cos_sin_cache has dtype bf16, expected f32"),
    (dict(positions=torch.zeros(4, dtype=torch.int64)), "query has size 3 in dimension 0, expected 4"),
    (dict(positions=torch.zeros(3)), "positions has dtype f32, expected i32 or i64"),
    (dict(head_size=0), "head_size is 0"),
])
def test_rotary_embedding_refuses(change, words):
    call = dict(positions=torch.zeros(3, dtype=torch.int64), query=torch.zeros(3, 256), key=torch.zeros(3, 128), head_size=64, cache=torch.zeros(9, 64))
    with pytest.raises(RuntimeError, match=words):
        rotary_embedding(*{**call, **change}.values())
