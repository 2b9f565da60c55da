"""flash_attn_with_kvcache and flash_attn_varlen_func against attention written out in float64."""
import itertools
import math

import pytest

torch = pytest.importorskip("torch")
sgl_kernel = pytest.importorskip("sgl_kernel")

from sgl_kernel import _library
from sgl_kernel.flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache

pytestmark = pytest.mark.skipif("attention" in _library.families_left_out, reason="the family is left out")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# relative to the result: what the format rounds, and a little for float32 sums
TOLERANCE = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3, torch.float8_e4m3fn: 4e-2}


def attend(q, k, v, scale=None, causal=False, window=(-1, -1), chunk=0, softcap=0, sinks=None, qv=None, top_left=False):
    """One sequence: q [sq, h, d], k [sk, h_k, d], v [sk, h_k, e] -> out [sq, h, e], lse [h, sq], all float64."""
    q, k, v = (x.double() for x in (q, k, v))
    sq, sk, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k)
    if qv is not None:
        scores += torch.einsum("ihe,jhe->hij", qv.double(), v)
    scores = scores * (scale or (q.shape[-1] + (v.shape[-1] if qv is not None else 0)) ** -0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    c = torch.arange(sq, device=q.device)[:, None] + (0 if top_left else sk - sq)
    j = torch.arange(sk, device=q.device)[None, :]
    left, right = window[0], 0 if causal else window[1]
    seen = torch.ones(sq, sk, dtype=torch.bool, device=q.device)
    if left >= 0:
        seen &= j >= c - left
    if right >= 0:
        seen &= j <= c + right
    if chunk:
        seen &= torch.div(j, chunk, rounding_mode="floor") == torch.div(c, chunk, rounding_mode="floor")
    scores = scores.masked_fill(~seen, -math.inf)
    none = torch.full(scores.shape[:2], -math.inf, dtype=torch.float64, device=q.device)
    lse = torch.logsumexp(scores, -1) if sk else none
    if sinks is not None:
        lse = torch.where(lse == -math.inf, none, torch.logaddexp(lse, sinks.double()[:, None].expand_as(lse)))
    p = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0)[..., None])
    return torch.einsum("hij,jhd->ihd", p, v), lse


def assert_close(got, want, dtype):
    assert not torch.isnan(got).any()
    assert torch.equal(torch.isinf(got), torch.isinf(want))
    finite = torch.isfinite(want)
    got, want = got.double()[finite], want[finite]
    assert (got - want).norm() <= TOLERANCE[dtype] * want.norm() + 1e-12


def paged(k, v, page_size, width, device):
    """Caches [pages, page_size, h_k, d] holding k, v (lists of [sk, h_k, d]) in shuffled pages, NaN elsewhere, and the page table."""
    batch, (_, heads, dim) = len(k), k[0].shape
    pages = batch * width + 3
    order = torch.randperm(pages)[: batch * width].reshape(batch, width)
    caches = []
    for sequences in (k, v):
        cache = torch.full((pages, page_size, heads, dim), math.nan, dtype=k[0].dtype)
        for n, rows in enumerate(sequences):
            flat = torch.full((width * page_size, heads, dim), math.nan, dtype=rows.dtype)
            flat[: rows.shape[0]] = rows
            cache[order[n]] = flat.reshape(width, page_size, heads, dim)
        caches.append(cache.to(device))
    return caches[0], caches[1], order.to(device, torch.int32)


def cumulative(lengths, device):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 3, 16, 64])
@pytest.mark.parametrize("heads, kv_heads, dim", [(4, 4, 64), (8, 2, 128), (6, 1, 40), (5, 5, 256), (20, 2, 96)])
def test_paged_decode(device, dtype, page_size, heads, kv_heads, dim):
    lengths = [1, 700, 0, 64, 129]
    k = [torch.randn(n, kv_heads, dim, dtype=dtype) for n in lengths]
    v = [torch.randn(n, kv_heads, dim, dtype=dtype) for n in lengths]
    k_cache, v_cache, table = paged(k, v, page_size, 700 // page_size + 1, device)
    q = torch.randn(len(lengths), 1, heads, dim, dtype=dtype)
    out, lse, *_ = flash_attn_with_kvcache(
        q.to(device), k_cache, v_cache, cache_seqlens=torch.tensor(lengths, dtype=torch.int32, device=device), page_table=table, causal=True,
        return_softmax_lse=True)
    want = [attend(q[n], k[n], v[n], causal=True) for n in range(len(lengths))]
    assert_close(out.cpu(), torch.stack([w[0] for w in want]), dtype)
    assert_close(lse.cpu(), torch.stack([w[1] for w in want]), torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal, window", [(False, (-1, -1)), (True, (-1, -1)), (False, (5, 9)), (True, (17, 3)), (False, (-1, 0)), (False, (0, -1))])
def test_varlen(device, dtype, causal, window):
    heads, kv_heads, dim = 6, 2, 72
    lengths_q, lengths_k = [3, 0, 70, 17, 1, 40], [3, 5, 130, 0, 65, 20]
    q = torch.randn(sum(lengths_q), heads, dim, dtype=dtype)
    k, v = torch.randn(2, sum(lengths_k), kv_heads, dim, dtype=dtype)
    out, lse, *_ = flash_attn_varlen_func(
        q.to(device), k.to(device), v.to(device), cumulative(lengths_q, device), cumulative(lengths_k, device), max(lengths_q), max(lengths_k),
        causal=causal, window_size=window, return_softmax_lse=True)
    want = [attend(*part, causal=causal, window=window) for part in zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k))]
    assert_close(out.cpu(), torch.cat([w[0] for w in want]), dtype)
    assert_close(lse.cpu(), torch.cat([w[1] for w in want], 1), torch.float16)


def e4m3(x):
    return x.clamp(-448, 448).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn])
@pytest.mark.parametrize("queries", [1, 33])
@pytest.mark.parametrize("options", [
    {"softcap": 20.0}, {"chunk": 48}, {"sinks": torch.float32}, {"sinks": torch.bfloat16}, {"dim_v": 128}, {"dim": 192, "dim_v": 128}, {"dim": 320}, {"dim": 512},
    {"dim": 59}, {"qv": True, "dim_v": 512}, {"qv": True, "dim_v": 64, "softcap": 15.0, "sinks": torch.bfloat16, "window": (60, -1), "chunk": 70}])
def test_options(device, dtype, queries, options):
    """Every option of attention to a paged cache."""
    if dtype == torch.float8_e4m3fn and "qv" in options:
        pytest.skip("q_v is not for e4m3")
    heads, kv_heads, dim, page_size = 6, 2, options.get("dim", 64), 16
    dim_v, lengths = options.get("dim_v", dim), [1, 300, 77]
    draw = (lambda *shape: e4m3(torch.randn(*shape))) if dtype == torch.float8_e4m3fn else (lambda *shape: torch.randn(*shape, dtype=dtype))
    k, v = [draw(n, kv_heads, dim) for n in lengths], [draw(n, kv_heads, dim_v) for n in lengths]
    pages = torch.randperm(63)[:60].view(3, 20).int()
    caches = []
    for sequences, size in ((k, dim), (v, dim_v)):
        cache = torch.zeros(63, page_size, kv_heads, size).to(dtype)
        for n, rows in enumerate(sequences):
            flat = torch.zeros(20 * page_size, kv_heads, size).to(dtype)
            flat[: rows.shape[0]] = rows
            cache[pages[n].long()] = flat.view(20, page_size, kv_heads, size)
        caches.append(cache.to(device))
    q = draw(3, queries, heads, dim)
    qv = draw(3, queries, heads, dim_v) if "qv" in options else None
    sinks = torch.randn(heads).to(options["sinks"]) if "sinks" in options else None
    scales = [torch.rand(3, kv_heads) + 0.5 for _ in range(3)] if dtype == torch.float8_e4m3fn else [None] * 3
    on = lambda x: None if x is None else x.to(device)
    out, lse, *_ = flash_attn_with_kvcache(
        q.to(device), *caches, qv=on(qv), cache_seqlens=torch.tensor(lengths, dtype=torch.int32, device=device), page_table=pages.to(device), causal=True,
        q_descale=on(scales[0]), k_descale=on(scales[1]), v_descale=on(scales[2]), window_size=options.get("window", (-1, -1)),
        attention_chunk=options.get("chunk"), softcap=options.get("softcap", 0.0), sinks=on(sinks), return_softmax_lse=True)
    assert out.dtype == (torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype)
    want = []
    for n in range(3):
        x, y, z = q[n].double(), k[n].double(), v[n].double()
        if scales[0] is not None:
            x = x * scales[0][n].double().repeat_interleave(heads // kv_heads)[:, None]
            y, z = y * scales[1][n].double()[:, None], z * scales[2][n].double()[:, None]
        want.append(attend(x, y, z, causal=True, window=options.get("window", (-1, -1)), chunk=options.get("chunk", 0), softcap=options.get("softcap", 0),
                           sinks=sinks, qv=None if qv is None else qv[n]))
    rounds = dtype == torch.float8_e4m3fn and queries > 32 and device != "cpu"       # weights to e4m3 as well, on some GPUs
    assert_close(out.cpu(), torch.stack([w[0] for w in want]), dtype if rounds or dtype != torch.float8_e4m3fn else torch.bfloat16)
    assert_close(lse.cpu(), torch.stack([w[1] for w in want]), torch.float16)


def rotated(x, cos, sin, interleaved):
    """x [n, h, d] at n positions; cos and sin [n, r / 2]."""
    x, cos, sin = x.double().clone(), cos.double()[:, None], sin.double()[:, None]
    r = 2 * cos.shape[-1]
    a, b = (x[..., 0:r:2], x[..., 1:r:2]) if interleaved else (x[..., : r // 2], x[..., r // 2: r])
    a, b = a * cos - b * sin, a * sin + b * cos
    if interleaved:
        x[..., 0:r:2], x[..., 1:r:2] = a, b
    else:
        x[..., : r // 2], x[..., r // 2: r] = a, b
    return x


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("offsets", [None, [5, 0, 60]])
def test_append_with_rotation(device, interleaved, causal, offsets):
    dtype, heads, kv_heads, dim, new, room = torch.bfloat16, 4, 2, 64, 5, 128
    before = [0, 33, 100]
    cos, sin = torch.randn(room, 16, dtype=dtype), torch.randn(room, 16, dtype=dtype)
    q, k_new, v_new = (torch.randn(3, new, h, dim, dtype=dtype) for h in (heads, kv_heads, kv_heads))
    k, v = torch.randn(2, 3, room, kv_heads, dim, dtype=dtype)
    k_cache, v_cache = k.to(device), v.to(device)
    out = flash_attn_with_kvcache(
        q.to(device), k_cache, v_cache, k_new.to(device), v_new.to(device), rotary_cos=cos.to(device), rotary_sin=sin.to(device),
        cache_seqlens=torch.tensor(before, dtype=torch.int32, device=device), causal=causal, rotary_interleaved=interleaved,
        rotary_seqlens=None if offsets is None else torch.tensor(offsets, dtype=torch.int32, device=device))
    for n in range(3):
        first = (offsets or before)[n]
        at = torch.arange(first, first + new)
        keys = torch.cat((k[n, : before[n]], rotated(k_new[n], cos[at], sin[at], interleaved).to(dtype)))
        values = torch.cat((v[n, : before[n]], v_new[n]))
        assert_close(k_cache[n, before[n]: before[n] + new].cpu(), keys[before[n]:].double(), dtype)
        at = at if causal else torch.full((new,), first)
        want, _ = attend(rotated(q[n], cos[at], sin[at], interleaved).to(dtype), keys, values, causal=causal)
        assert_close(out[n].cpu(), want, dtype)


def test_fwd(device):
    """The released operator: out given or not, both schemas, and in a compiled graph."""
    q, k, v = torch.randn(2, 3, 4, 32, device=device), torch.randn(2, 9, 2, 32, device=device), torch.randn(2, 9, 2, 32, device=device)
    want, lse, *_ = flash_attn_with_kvcache(q, k, v, causal=True, return_softmax_lse=True)

    def newest(q, k, v, out):
        return torch.ops.sgl_kernel.fwd(
            q, k, v, None, None, None, out, None, None, None, None, None, None, None, None, None, None, None, None, None, None, None, None, None, True,
            -1, -1, 0, 0.0, True, None, 0, None, 0, None)

    def oldest(q, k, v, out):
        return torch.ops.sgl_kernel.fwd.v0_1_8(
            q, k, v, None, None, None, out, None, None, None, None, None, None, None, None, None, None, None, None, None, None, None, None, 32 ** -0.5, True,
            -1, -1, 0.0, True, None, 0, None, 0)

    for fwd in (newest, oldest):
        for out in (None, torch.empty_like(q)):
            for call in (fwd, torch.compile(fwd, fullgraph=True, backend="aot_eager")):
                got = call(q, k, v, out)
                assert torch.equal(got[0], want) and torch.equal(got[1], lse)
                if out is not None:
                    assert got[0].data_ptr() == out.data_ptr() and torch.equal(out, want)
                    out.zero_()
    assert len(newest(q, k, v, None)) == 4 and len(oldest(q, k, v, None)) == 2


def test_scheduler_metadata(device):
    from sgl_kernel.flash_attn import get_scheduler_metadata
    lengths = torch.tensor([3, 9], dtype=torch.int32, device=device)
    metadata = get_scheduler_metadata(2, 1, 64, 4, 2, 64, lengths, causal=True)
    assert metadata.dtype == torch.int32 and metadata.shape == get_scheduler_metadata(2, 1, 64, 4, 2, 64, lengths * 2, causal=True).shape
    q, k = torch.randn(2, 1, 4, 64, device=device), torch.randn(2, 64, 2, 64, device=device)
    assert torch.equal(flash_attn_with_kvcache(q, k, k, cache_seqlens=lengths, scheduler_metadata=metadata), flash_attn_with_kvcache(q, k, k, cache_seqlens=lengths))


def test_varlen_with_pages(device):
    q, cu_q, cu_k = torch.randn(7, 4, 64, device=device), cumulative([3, 4], device), cumulative([40, 21], device)
    k, v = torch.randn(2, 61, 2, 64)
    caches = paged(k.split([40, 21]), v.split([40, 21]), 16, 3, device)
    got = flash_attn_varlen_func(q, caches[0], caches[1], cu_q, cu_k, 4, 40, page_table=caches[2], causal=True)
    assert torch.allclose(got, flash_attn_varlen_func(q, k.to(device), v.to(device), cu_q, cu_k, 4, 40, causal=True), atol=1e-5)


@pytest.mark.parametrize("page_size", [0, 1, 16])
@pytest.mark.parametrize("packed", [False, True])
def test_append(device, page_size, packed):
    dtype, heads, kv_heads, dim, new = torch.bfloat16, 4, 2, 64, 5
    before, room = [0, 33, 100], 128
    fresh = [2, 0, 5] if packed else [new] * 3
    k = [torch.randn(n + m, kv_heads, dim, dtype=dtype) for n, m in zip(before, fresh)]
    v = [torch.randn(n + m, kv_heads, dim, dtype=dtype) for n, m in zip(before, fresh)]
    q = torch.randn(3, new, heads, dim, dtype=dtype)
    k_cache, v_cache, table = paged([x[:n] for x, n in zip(k, before)], [x[:n] for x, n in zip(v, before)], page_size or room, room // (page_size or room), device)
    layout = {"page_table": table} if page_size else {"cache_batch_idx": table[:, 0].contiguous()}
    join = torch.cat if packed else torch.stack
    k_new, v_new = (join([x[n:] for x, n in zip(y, before)]).to(device) for y in (k, v))
    out = flash_attn_with_kvcache(
        q.to(device), k_cache, v_cache, k_new, v_new, cache_seqlens=torch.tensor(before, dtype=torch.int32, device=device), causal=True,
        cu_seqlens_k_new=cumulative(fresh, device) if packed else None, **layout)
    assert_close(out.cpu(), torch.stack([attend(q[n], k[n], v[n], causal=True)[0] for n in range(3)]), dtype)
    for cache, rows in ((k_cache, k), (v_cache, v)):
        for n in range(3):
            flat = cache[table[n].long()].reshape(-1, kv_heads, dim).cpu()
            assert torch.equal(flat[: before[n] + fresh[n]], rows[n])
            assert torch.isnan(flat[before[n] + fresh[n]:]).all()


def test_dense_options(device):
    dtype = torch.float32
    q = torch.randn(2, 70, 4, 32, dtype=dtype)
    k, v = torch.randn(2, 2, 90, 4, 32, dtype=dtype)
    out = torch.full_like(q, 7).to(device)
    got = flash_attn_with_kvcache(q.to(device), k.to(device), v.to(device), cache_seqlens=61, softmax_scale=-0.3, out=out, num_splits=3)
    assert got is out
    assert_close(out.cpu(), torch.stack([attend(q[n], k[n, :61], v[n, :61], scale=-0.3)[0] for n in range(2)]), dtype)
    leftpad = torch.tensor([7, 61], dtype=torch.int32, device=device)
    out, lse, *_ = flash_attn_with_kvcache(q.to(device), k.to(device), v.to(device), cache_seqlens=61, cache_leftpad=leftpad, causal=True, return_softmax_lse=True)
    assert_close(out[0].cpu(), attend(q[0], k[0, 7:61], v[0, 7:61], causal=True)[0], dtype)
    assert (out[1] == 0).all() and (lse[1] == -math.inf).all()
    assert (lse[0, :, :16] == -math.inf).all()


def test_nothing(device):
    q, k = torch.randn(2, 3, 4, 32, device=device), torch.randn(2, 0, 4, 32, device=device)
    out, lse, *_ = flash_attn_with_kvcache(q, k, k, return_softmax_lse=True)
    assert (out == 0).all() and (lse == math.inf).all()
    assert flash_attn_with_kvcache(q[:0], k[:0], k[:0]).shape == (0, 3, 4, 32)
    zero = torch.zeros(3, dtype=torch.int32, device=device)
    assert flash_attn_varlen_func(q[0, :0], k[0], k[0], zero, zero, 0, 0).shape == (0, 4, 32)


@pytest.mark.parametrize("options, words", [
    ({"cache_seqlens": torch.tensor([1, 9], dtype=torch.int32)}, r"seqused_k gives sequence 1 a length of 9, expected 0 to 3"),
    ({"cache_seqlens": torch.tensor([-1, 3], dtype=torch.int32)}, r"seqused_k gives sequence 0 a length of -1"),
    ({"cache_seqlens": torch.tensor([1, 2])}, r"seqused_k has dtype i64, expected i32"),
    ({"page_table": torch.tensor([[0], [2]], dtype=torch.int32)}, r"page_table\[1, 0\] is 2, expected a page from 0 to 1"),
    ({"cache_batch_idx": torch.tensor([0, 2], dtype=torch.int32)}, r"kv_batch_idx\[1\] is 2, expected 0 to 1"),
    ({"k": torch.randn(2, 3, 4, 32)}, "k_new is given alone"),
    ({"k": torch.randn(2, 3, 4, 32), "v": torch.randn(2, 3, 4, 32)}, "k_new is given without seqused_k"),
    ({"num_splits": 257}, "num_splits is 257, expected 0 to 256"),
    ({"cu_seqlens_q": torch.tensor([0, 1, 2], dtype=torch.int32)}, "q has 4 dimensions, expected 3"),
])
def test_refused(options, words):
    q = torch.randn(2, 3, 4, 32)
    with pytest.raises(RuntimeError, match=words):
        flash_attn_with_kvcache(q, q.clone(), q.clone(), **options)


def test_refused_varlen():
    q, cu = torch.randn(6, 4, 32), torch.tensor([0, 2, 6], dtype=torch.int32)
    with pytest.raises(ValueError, match="max_seqlen_q and max_seqlen_k are required"):
        flash_attn_varlen_func(q, q, q, cu, cu)
    for bad, words in ((cu.flip(0), r"cu_seqlens_q\[0\] is 6, expected 0"), (torch.tensor([0, 4, 2], dtype=torch.int32), "is 2 after 4"),
                       (torch.tensor([0, 2, 7], dtype=torch.int32), "ends at 7, expected at most 6 rows")):
        with pytest.raises(RuntimeError, match=words):
            flash_attn_varlen_func(q, q, q, bad, cu, 6, 6)
    with pytest.raises(RuntimeError, match="cu_seqlens_q gives sequence 1 a length of 4, expected 0 to 3"):
        flash_attn_varlen_func(q, q, q, cu, cu, 3, 4)


def test_same_bits(device):
    """Again, and with one thread; and a sequence does not know its neighbours on the CPU."""
    lengths = torch.tensor([900, 3, 1500], dtype=torch.int32, device=device)
    q = torch.randn(3, 2, 8, 64, dtype=torch.bfloat16, device=device)
    k, v = torch.randn(2, 3, 1600, 2, 64, dtype=torch.bfloat16, device=device)
    first = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True)
    assert torch.equal(first, flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True))
    if device == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            assert torch.equal(first, flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True))
            assert torch.equal(first[2:], flash_attn_with_kvcache(q[2:], k[2:], v[2:], cache_seqlens=lengths[2:], causal=True))
        finally:
            torch.set_num_threads(threads)


def test_opcheck():
    q, k = torch.randn(2, 3, 4, 32), torch.randn(2, 9, 4, 32)
    lengths = torch.tensor([4, 6], dtype=torch.int32)
    none = [None] * 7
    torch.library.opcheck(torch.ops.sgl_kernel.flash_attn.default, (
        torch.empty_like(q), torch.empty(2, 4, 3), q, k, k.clone(), None, None, None, None, lengths, None, None, None, None, None, None, None, None,
        None, True, -1, -1, 0, 0.0, 0, None, 0))
    torch.library.opcheck(torch.ops.sgl_kernel.flash_attn_append.default, (
        torch.empty_like(q), None, q, k, k.clone(), q.clone(), q.clone(), None, None, None, None, lengths, None, None, None, None, *none[:6],
        None, True, -1, -1, 0, 0.0, True, 0, None, 0))


def test_compile():
    def step(q, k, v, lengths):
        return flash_attn_with_kvcache(q, k, v, k=q, v=q, cache_seqlens=lengths, causal=True) * 2

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3):
        q, k = torch.randn(batch, 3, 4, 32), torch.randn(batch, 9, 4, 32)
        v, lengths = k.clone(), torch.full((batch,), 4, dtype=torch.int32)
        k2, v2 = k.clone(), v.clone()
        assert torch.equal(compiled(q, k, v, lengths), step(q, k2, v2, lengths))
        assert torch.equal(k, k2) and torch.equal(v[:, 4:7], q)


def pool_case(device, batch, context, encoder=0):
    """req_to_token in a shuffled pool, and what finds each sequence in it."""
    slots = (batch + 2) * context + 5
    table = torch.randperm(slots)[: (batch + 2) * context].view(batch + 2, context)
    rows = torch.randperm(batch + 2)[:batch]
    return slots, table, rows


@pytest.mark.parametrize("heads, kv_heads, dim, dim_v", [(16, 16, 64, 64), (16, 1, 33, 55), (32, 8, 128, 128), (22, 1, 576, 512)])
@pytest.mark.parametrize("options", [{}, {"window": 17}, {"cap": 20.0}, {"sinks": True}, {"encoder": 10}, {"cross": True}])
def test_decode_attention_cpu(device, heads, kv_heads, dim, dim_v, options):
    dtype, batch, context, scale = torch.bfloat16, 3, 200, dim ** -0.5
    slots, table, rows = pool_case(device, batch, context)
    lengths = [1, 190, 77]
    offset = options.get("encoder", 0)
    encoder = torch.full((batch,), offset or 60) if offset or "cross" in options else None
    latent = dim == 576
    k = torch.randn(slots, kv_heads, dim, dtype=dtype)
    v = k[:, :, :dim_v] if latent else torch.randn(slots, kv_heads, dim_v, dtype=dtype)
    key, value = torch.randn(batch, kv_heads, dim, dtype=dtype), torch.randn(batch, kv_heads, dim_v, dtype=dtype)
    q, sinks = torch.randn(batch, heads, dim, dtype=dtype), torch.randn(heads, dtype=dtype) if "sinks" in options else None
    loc = torch.stack([table[r, offset + n - 1] for r, n in zip(rows, lengths)])
    k_cache = k.clone().to(device)
    v_cache = k_cache[:, :, :dim_v] if latent else v.clone().to(device)
    out = torch.empty(batch, heads, dim_v, dtype=dtype, device=device)
    on = lambda x: None if x is None else x.to(device)
    torch.ops.sgl_kernel.decode_attention_cpu(
        on(q), k_cache, v_cache, out, on(key), on(value), on(loc), torch.empty(batch, heads, 8, dim_v + 1, device=device), on(table.int()), on(rows),
        on(torch.tensor(lengths)), scale, options.get("cap", 0.0), "cross" in options, options.get("window", 0), on(encoder), on(sinks))
    k[loc] = key
    if not latent:
        v[loc] = value
    assert torch.equal(k_cache.cpu(), k) and torch.equal(v_cache.cpu(), v)
    for b in range(batch):
        n, first = (60, 0) if "cross" in options else (lengths[b], offset)
        at = table[rows[b], first: first + n]
        want, _ = attend(q[b:b + 1], k[at], v[at], scale=scale, window=(options.get("window", 0) - 1, -1), softcap=options.get("cap", 0), sinks=sinks)
        assert_close(out[b].cpu(), want[0], dtype)


@pytest.mark.parametrize("heads, kv_heads, dim, dim_v", [(1, 1, 32, 32), (16, 4, 128, 96), (6, 2, 40, 40)])
@pytest.mark.parametrize("options", [{}, {"window": 17}, {"cap": 20.0}, {"sinks": True}, {"encoder": 10}, {"cross": True}, {"unread": True}])
def test_extend_attention_cpu(device, heads, kv_heads, dim, dim_v, options):
    dtype, batch, context, scale = torch.float16, 3, 200, dim ** -0.5
    slots, table, rows = pool_case(device, batch, context)
    before, fresh = ([0] * 3 if "unread" in options else [0, 150, 7]), [33, 1, 70]
    offset = options.get("encoder", 0)
    encoder = torch.full((batch,), offset or 60) if offset or "cross" in options else None
    k_buffer, v_buffer = torch.randn(slots, kv_heads + ("unread" in options), dim, dtype=dtype), torch.randn(slots, kv_heads + ("unread" in options), dim_v, dtype=dtype)
    k, v = torch.randn(sum(fresh), kv_heads, dim, dtype=dtype), torch.randn(sum(fresh), kv_heads, dim_v, dtype=dtype)
    q, sinks = torch.randn(sum(fresh), heads, dim, dtype=dtype), torch.randn(heads, dtype=dtype) if "sinks" in options else None
    start = [0, *itertools.accumulate(fresh)]
    out = torch.empty(sum(fresh), heads, dim_v, dtype=dtype, device=device)
    on = lambda x: None if x is None else x.to(device)
    cross = "cross" in options
    torch.ops.sgl_kernel.extend_attention_cpu(
        on(q), None if cross else on(k), None if cross else on(v), out, on(k_buffer), on(v_buffer), on(table), on(rows),
        on(torch.tensor([x + y for x, y in zip(before, fresh)])), on(torch.tensor(fresh)), on(torch.tensor(start[:-1])), max(fresh), scale,
        options.get("cap", 0.0), cross, options.get("window", 0), on(encoder), on(sinks))
    for b in range(batch):
        new = slice(start[b], start[b + 1])
        at = table[rows[b], :60] if cross else table[rows[b], offset: offset + before[b]]
        keys = [k_buffer[at]] if cross else [k[new]] if "unread" in options else [k_buffer[at], k[new]]
        values = [v_buffer[at]] if cross else [v[new]] if "unread" in options else [v_buffer[at], v[new]]
        want, _ = attend(q[new], torch.cat(keys), torch.cat(values), scale=scale, causal=not cross, window=(options.get("window", 0) - 1, -1),
                         softcap=options.get("cap", 0), sinks=sinks)
        assert_close(out[new].cpu(), want, dtype)


POOL_DECODE = {"loc": 6, "req_to_token": 8, "req_pool_indices": 9, "seq_lens": 10, "encoder_lens": 15}
POOL_EXTEND = {"req_to_token": 6, "req_pool_indices": 7, "seq_lens": 8, "extend_seq_lens": 9, "extend_start_loc": 10, "encoder_lens": 16}


@pytest.mark.parametrize("op, name", [(op, name) for op, names in (("decode", POOL_DECODE), ("extend", POOL_EXTEND)) for name in names])
@pytest.mark.parametrize("bad", [-1, 64, 2**63 - 1, -2**63])
def test_refused_pool_indices(op, name, bad):
    """Two requests in a pool of 64 slots whose table has 8 columns; what is wrong is the second one's."""
    cache, table, lengths = torch.randn(64, 2, 16), torch.arange(24).view(3, 8), torch.tensor([3, 4])
    rest = [0.25, 0.0, False, 0, torch.tensor([1, 2]), None]
    if op == "decode":
        new, wrong = torch.randn(2, 2, 16), POOL_DECODE[name]
        arguments = [torch.randn(2, 4, 16), cache, cache.clone(), torch.zeros(2, 4, 16), new, new, torch.tensor([40, 50]), torch.empty(2, 4, 1, 17),
                     table, torch.tensor([2, 0]), lengths, *rest]
    else:
        new, wrong = torch.randn(5, 2, 16), POOL_EXTEND[name]
        arguments = [torch.randn(5, 4, 16), new, new, torch.zeros(5, 4, 16), cache, cache.clone(), table, torch.tensor([2, 0]), lengths,
                     torch.tensor([2, 3]), torch.tensor([0, 2]), 3, *rest]
    call = getattr(torch.ops.sgl_kernel, f"{op}_attention_cpu")
    call(*arguments)
    arguments[wrong] = arguments[wrong].clone()
    if name == "req_to_token":
        arguments[wrong][0, 2:] = bad
        place = r"\[0, [23]\]"
    else:
        arguments[wrong][1] = bad
        place = r"\[1\]"
    before = [t.clone() if isinstance(t, torch.Tensor) else None for t in arguments]
    with pytest.raises(RuntimeError, match=f"^{op}_attention: {name}{place} is {bad}, expected "):
        call(*arguments)
    assert all(torch.equal(t, b) for t, b in zip(arguments, before) if b is not None and t.is_floating_point() and t.ndim == 3)


@pytest.mark.parametrize("causal", [False, True])
def test_flash_attn_varlen_func_operator(device, causal):
    """The operator of the CPU list, which aligns the first query with the first key."""
    dtype, lengths_q, lengths_k = torch.bfloat16, [30, 3, 70], [40, 96, 20]
    q = torch.randn(sum(lengths_q), 16, 48, dtype=dtype)
    k, v = torch.randn(sum(lengths_k), 2, 48, dtype=dtype), torch.randn(sum(lengths_k), 2, 32, dtype=dtype)
    out = torch.ops.sgl_kernel.flash_attn_varlen_func(
        q.to(device), k.to(device), v.to(device), cumulative(lengths_q, device), cumulative(lengths_k, device), 70, 96, causal)
    want = [attend(*part, causal=causal, top_left=True)[0] for part in zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k))]
    assert_close(out.cpu(), torch.cat(want), dtype)
