"""sparse_flash_attn and lightning_attention_decode against attention written out in float64."""
import itertools
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sgl_kernel")

from samples import SAMPLES
from sgl_kernel import lightning_attention_decode
from sgl_kernel.sparse_flash_attn import convert_vertical_slash_indexes, convert_vertical_slash_indexes_mergehead, sparse_attn_func, sparse_attn_varlen_func


def attend(q, k, v, lists, causal, softcap=0):
    """One sequence: q [sq, h, d]; lists of block_count, block_offset, column_count, column_index, [h, r, ...]."""
    sq, sk, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.full((q.shape[1], sq), -math.inf, dtype=torch.float64)
    for h, i in itertools.product(range(q.shape[1]), range(sq)):
        blocks, offsets, columns, indices = (x[h, i // 64] for x in lists)
        keys = [j for o in offsets[:blocks].tolist() for j in range(o, o + 64)] + indices[:columns].tolist()
        keys = torch.tensor([j for j in keys if j < sk and (not causal or j <= i + sk - sq)], dtype=torch.long)
        if len(keys):
            s = k[keys, h // group].double() @ q[i, h].double() * q.shape[-1] ** -0.5
            s = softcap * torch.tanh(s / softcap) if softcap else s
            lse[h, i] = torch.logsumexp(s, 0)
            out[i, h] = torch.softmax(s, 0) @ v[keys, h // group].double()
    return out, lse


def lists_for(batch, heads, rows, keys):
    return [torch.randint(0, 4, (batch, heads, rows), dtype=torch.int32), torch.randint(0, keys, (batch, heads, rows, 3), dtype=torch.int32),
            torch.randint(0, 80, (batch, heads, rows), dtype=torch.int32), torch.randint(0, keys, (batch, heads, rows, 79), dtype=torch.int32)]


def assert_close(got, want, tolerance=6e-3):
    got = got.cpu().double()
    assert torch.equal(got.isinf(), want.isinf())
    assert (got.nan_to_num(neginf=0) - want.nan_to_num(neginf=0)).norm() <= tolerance * want.nan_to_num(neginf=0).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal, softcap", [(False, 0.0), (True, 0.0), (True, 5.0)])
def test_sparse(device, dtype, causal, softcap):
    q, k, v = torch.randn(2, 70, 4, 128, dtype=dtype), *torch.randn(2, 2, 150, 2, 128, dtype=dtype)
    lists = lists_for(2, 4, 2, 150)
    out, lse = sparse_attn_func(q.to(device), k.to(device), v.to(device), *(x.to(device) for x in lists), causal=causal, softcap=softcap, return_softmax_lse=True)
    want = [attend(q[n], k[n], v[n], [x[n] for x in lists], causal, softcap) for n in range(2)]
    assert_close(out, torch.stack([w[0] for w in want]))
    assert_close(lse, torch.stack([w[1] for w in want]), 1e-3)
    again = torch.ops.sgl_kernel.fwd_sparse(q.to(device), k.to(device), v.to(device), *(x.to(device) for x in lists), None, None, 0.0, 128 ** -0.5, causal, softcap, True, None)
    assert len(again) == 2 and torch.equal(again[0], out) and torch.equal(again[1], lse)


@pytest.mark.parametrize("causal", [False, True])
def test_sparse_varlen(device, causal):
    lengths_q, lengths_k, dtype = [70, 3, 130], [90, 40, 130], torch.bfloat16
    q, k, v = torch.randn(sum(lengths_q), 4, 128, dtype=dtype), *torch.randn(2, sum(lengths_k), 2, 128, dtype=dtype)
    lists = lists_for(3, 4, 3, 130)
    cu = [torch.tensor([0, *itertools.accumulate(x)], dtype=torch.int32, device=device) for x in (lengths_q, lengths_k)]
    out, lse = sparse_attn_varlen_func(q.to(device), k.to(device), v.to(device), *(x.to(device) for x in lists), *cu, 130, 130, causal=causal, return_softmax_lse=True)
    want = [attend(*part, [x[n] for x in lists], causal) for n, part in enumerate(zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k)))]
    assert_close(out, torch.cat([w[0] for w in want]))
    assert_close(lse, torch.cat([w[1] for w in want], 1), 1e-3)


def test_refused():
    q, lists = torch.randn(1, 4, 2, 128), [torch.zeros(1, 2, 1, dtype=torch.int32), torch.zeros(1, 2, 1, 1, dtype=torch.int32)] * 2
    with pytest.raises(RuntimeError, match="block_count of list 1 is 2, expected 0 to 1"):
        sparse_attn_func(q, q, q, torch.tensor([[[1], [2]]], dtype=torch.int32), *lists[1:])
    with pytest.raises(NotImplementedError, match="p_dropout is 0.1, expected 0"):
        sparse_attn_func(q, q, q, *lists, dropout_p=0.1)
    with pytest.raises(NotImplementedError, match="alibi_slopes is given, expected None"):
        sparse_attn_func(q, q, q, *lists, alibi_slopes=torch.zeros(2))


def test_compiles(device):
    q, lists = torch.randn(1, 4, 2, 128, device=device, dtype=torch.float16), [x.to(device) for x in lists_for(1, 2, 1, 4)]

    def call(q, out):
        return torch.ops.sgl_kernel.fwd_sparse(q, q, q, *lists, out, None, 0.0, 0.1, False, 0.0, True, None)

    for out in (None, torch.empty_like(q)):
        got, want = torch.compile(call, fullgraph=True, backend="aot_eager")(q, out), call(q, None)
        assert all(torch.equal(g, w) for g, w in zip(got, want))


def test_vertical_and_slash_example(device):
    """The example of the releases' own test."""
    lengths = torch.tensor([4], dtype=torch.int32, device=device)
    vertical, slash = torch.tensor([[[1, 3]]], dtype=torch.int32, device=device), torch.tensor([[[2]]], dtype=torch.int32, device=device)
    _, _, _, columns = convert_vertical_slash_indexes(lengths, lengths, vertical, slash, 4, 2, 2, causal=True)
    assert columns.tolist() == [[[[0, 0], [0, 0]]]]
    _, _, _, columns = convert_vertical_slash_indexes(lengths, lengths, vertical, slash, 4, 2, 2, causal=False)
    assert columns.tolist() == [[[[1, 0], [1, 3]]]]


def test_vertical_and_slash_cover_what_they_name(device):
    """Causal lists hold every key of every slash and line that lies at or before the query."""
    size, vertical, slash = 500, sorted({3, 70, 131, 340}), sorted({0, 1, 64, 200, 333}, reverse=True)
    on = lambda x: torch.tensor(x, dtype=torch.int32, device=device)
    counts = on([3]), on([5])
    for merged in (False, True):
        lines = [340 if merged and i == 3 else x for i, x in enumerate(vertical)]
        call = convert_vertical_slash_indexes_mergehead if merged else convert_vertical_slash_indexes
        blocks, offsets, columns, indices = (x.cpu() for x in call(on([size]), on([size]), on([[lines]]), on([[slash]]), *(counts if merged else ()), size, 64, 64))
        for i in range(size):
            r = i // 64
            seen = {j for o in offsets[0, 0, r, : blocks[0, 0, r]].tolist() for j in range(o, o + 64)} | set(indices[0, 0, r, : columns[0, 0, r]].tolist())
            assert {i - s for s in slash if s <= i} | {v for v in vertical[: 3 if merged else 4] if v <= i} <= seen


@pytest.mark.parametrize("context_size", [-1, 2**31, 2**63 - 1])
def test_refused_context_size(context_size):
    arguments = SAMPLES["convert_vertical_slash_indexes"](2, "cpu")
    arguments[8] = context_size
    with pytest.raises(RuntimeError, match=f"^convert_vertical_slash_indexes: context_size is {context_size}, expected 0 to 2147483647$"):
        torch.ops.sgl_kernel.convert_vertical_slash_indexes(*arguments)


@pytest.mark.parametrize("context_size, block_size_M", [(-1, 64), (130, 0)])
def test_refused_sizes_of_lists(context_size, block_size_M):
    with pytest.raises(ValueError, match=f"context_size is {context_size} and block_size_M {block_size_M}, expected at least 0 and 1"):
        convert_vertical_slash_indexes(*SAMPLES["convert_vertical_slash_indexes"](2, "cpu")[4:8], context_size, block_size_M, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim, dim_v", [(32, 64), (96, 96), (64, 33)])
def test_lightning(device, dtype, dim, dim_v):
    q, k, v = torch.randn(3, 4, 1, dim, dtype=dtype), torch.randn(3, 4, 1, dim, dtype=dtype), torch.randn(3, 4, 1, dim_v, dtype=dtype)
    past, slope = torch.randn(3, 4, dim, dim_v), torch.rand(4, 1, 1)
    output, new = torch.empty(3, 4, 1, dim_v, dtype=dtype, device=device), torch.empty(3, 4, dim, dim_v, device=device)
    lightning_attention_decode(*(x.to(device) for x in (q, k, v, past, slope)), output, new)
    want = torch.exp(-slope.double()) * past.double() + k.double().transpose(2, 3) * v.double()
    assert_close(new, want, 1e-6)
    assert_close(output, q.double() @ want)
