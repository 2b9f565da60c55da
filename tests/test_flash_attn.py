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
TOLERANCE = {torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}


def attend(q, k, v, scale=None, causal=False, window=(-1, -1)):
    """One sequence: q [sq, h, d], k, v [sk, h_k, d] -> out [sq, h, d], lse [h, sq], all float64."""
    q, k, v = (x.double() for x in (q, k, v))
    sq, sk, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * (scale or q.shape[-1] ** -0.5)
    c = torch.arange(sq, device=q.device)[:, None] + sk - sq
    j = torch.arange(sk, device=q.device)[None, :]
    left, right = window[0], 0 if causal else window[1]
    seen = torch.ones(sq, sk, dtype=torch.bool, device=q.device)
    if left >= 0:
        seen &= j >= c - left
    if right >= 0:
        seen &= j <= c + right
    scores = scores.masked_fill(~seen, -math.inf)
    lse = torch.logsumexp(scores, -1) if sk else torch.full(scores.shape[:2], -math.inf, dtype=torch.float64, device=q.device)
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
