"""SGK_BATCH_INVARIANT=1: a sequence's attention has the same bits alone, among any others, and in a captured graph whose lengths change."""
import itertools
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
sgl_kernel = pytest.importorskip("sgl_kernel")

from sgl_kernel import _library

pytestmark = pytest.mark.skipif("attention" in _library.families_left_out, reason="the family is left out")
MOST_QUERIES, MOST_KEYS = 600, 3000
# queries and keys: some that decode, some with a few queries, chunks and prompts
SEQUENCES = [(1, 2900), (600, 600), (1, 33), (5, 1500), (300, 2300), (16, 900), (1, 700), (64, 64), (40, 256), (129, 2049)]


def join(tensors):
    """torch.cat, of any format."""
    return torch.cat([t.view(torch.uint8) for t in tensors]).view(tensors[0].dtype)


class Batch:
    """Queries of all sequences, and one cache; its pages are in any order."""

    def __init__(self, device, dtype, heads, kv_heads, dim, page):
        self.device, self.page, self.heads, self.dim = device, page, heads, dim
        generator = torch.Generator().manual_seed(3)

        def random(*shape):
            return torch.randn(*shape, generator=generator).to(torch.bfloat16).to(device).to(dtype)
        self.q = [random(queries, heads, dim) for queries, _ in SEQUENCES]
        self.width = -(-MOST_KEYS // page)
        pages = self.width * len(SEQUENCES)
        self.k, self.v = random(pages, page, kv_heads, dim), random(pages, page, kv_heads, dim)
        self.table = torch.randperm(pages, generator=generator).int().view(len(SEQUENCES), self.width).to(device)

    def ints(self, values):
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def attend(self, chosen, most_queries=None, spare=0, **options):
        """Of the sequences chosen, in their order: what each gets."""
        from sgl_kernel.flash_attn import flash_attn_with_kvcache
        queries, keys = zip(*(SEQUENCES[n] for n in chosen))
        width = -(-max(keys) // self.page) + spare
        out, lse, *_ = flash_attn_with_kvcache(
            join([self.q[n] for n in chosen]), self.k, self.v, cache_seqlens=self.ints(keys), page_table=self.table[list(chosen), :width].contiguous(),
            cu_seqlens_q=self.ints([0, *itertools.accumulate(queries)]), max_seqlen_q=most_queries or max(queries), causal=True, return_softmax_lse=True, **options)
        return list(zip(out.split(queries), lse.split(queries, 1)))

    def replay(self, orders):
        """A graph of one call, over lengths that change: what each order gets."""
        from sgl_kernel.flash_attn import flash_attn_with_kvcache
        most = max(len(order) for order in orders)
        q = torch.zeros(sum(queries for queries, _ in SEQUENCES), *self.q[0].shape[1:], device=self.device).to(self.q[0].dtype)
        cu, used, table = self.ints([0] * (most + 1)), self.ints([0] * most), torch.zeros(most, self.width, dtype=torch.int32, device=self.device)

        def call():
            return flash_attn_with_kvcache(q, self.k, self.v, cache_seqlens=used, page_table=table, cu_seqlens_q=cu, max_seqlen_q=MOST_QUERIES, causal=True, return_softmax_lse=True)[:2]
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            call()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                out, lse = call()
        for order in orders:
            queries, keys = zip(*(SEQUENCES[n] for n in order))
            rest = most - len(order)
            q.view(torch.uint8)[:sum(queries)] = join([self.q[n] for n in order]).view(torch.uint8)
            cu.copy_(self.ints([0, *itertools.accumulate(queries), *[sum(queries)] * rest]))
            used.copy_(self.ints([*keys, *[0] * rest]))
            table[:len(order)] = self.table[list(order)]
            graph.replay()
            torch.cuda.synchronize()
            rows = slice(0, sum(queries))
            yield order, list(zip(out[rows].clone().split(queries), lse[:, rows].clone().split(queries, 1)))       # the next replay writes over them


def compare(device, dtype, heads, kv_heads, dim, page):
    """Which sequences differ, and where."""
    batch, everyone = Batch(device, getattr(torch, dtype), heads, kv_heads, dim, page), tuple(range(len(SEQUENCES)))
    alone = [batch.attend((n,))[0] for n in everyone]
    among = {
        "all": (everyone, {}), "another order": (everyone[::-1], {}), "larger limits": (everyone, dict(most_queries=5000, spare=max(1, 100 // page) if page < 64 else 0)),
        "decodes": ((0, 2, 6), {}), "decodes and a few": ((6, 0, 3, 2), {}), "many alike": ((0, 6) * 40, {}), "prompts": ((1, 4, 9), {}), "a decode and a prompt": ((6, 4), {}),
        "one part": (everyone, dict(num_splits=1)),
    }
    results = [(name, order, batch.attend(order, **options)) for name, (order, options) in among.items()]
    if device == "cuda":
        results += [("graph", order, result) for order, result in batch.replay([everyone, (0, 2, 6), (4, 0), everyone[::-1], (6,)])]
    return [f"{dtype} {heads}:{kv_heads} x {dim}, pages of {page}, {name}: {SEQUENCES[n]}" for name, order, result in results for n, got in zip(order, result)
            if not all(torch.equal(x, y) for x, y in zip(got, alone[n]))]


CASES = [("bfloat16", 8, 2, 128, 16), ("bfloat16", 8, 2, 128, 1), ("float16", 4, 4, 64, 64), ("bfloat16", 8, 1, 64, 1), ("bfloat16", 4, 1, 256, 16), ("bfloat16", 7, 1, 96, 16),
         ("float8_e4m3fn", 8, 2, 128, 16), ("float8_e4m3fn", 7, 1, 128, 64), ("float8_e4m3fn", 4, 2, 64, 1)]


def test_batch_invariant(device):
    """In a process of its own, which has the switch from the start."""
    cases = CASES if device == "cuda" else CASES[:1]
    code = f"import test_attention_invariant as t\nfor case in {cases}:\n    for line in t.compare({device!r}, *case): print(line)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, cwd=os.path.dirname(os.path.abspath(__file__)), env={**os.environ, "SGK_BATCH_INVARIANT": "1"})
    assert result.returncode == 0, result.stderr[-2000:]
    assert not result.stdout, result.stdout[:2000]
