"""SGK_CHECK=1: on the GPU a bad index is refused in the CPU's words, nothing is written, and the process goes on as if nothing had been asked."""
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
from sgl_kernel import _library  # noqa: E402

NEEDED = {"rope", "kvcache", "sampling", "attention", "moe", "copy", "grammar"}

# The variable is read once, so each run is a process of its own.
CODE = """
import torch
import sgl_kernel
from sgl_kernel.flash_attn import flash_attn_with_kvcache

device = {device!r}
torch.manual_seed(5)
random = lambda *shape: torch.randn(*shape).to(device)
index = lambda *values, dtype=torch.int32: torch.tensor(values, device=device, dtype=dtype)


def refused(words, call, *written):
    before = [t.clone() for t in written]
    try:
        call()
    except RuntimeError as error:
        assert words in str(error), error
    else:
        raise SystemExit("accepted: " + words)
    assert all(torch.equal(a, b) for a, b in zip(before, written))


query, cache, wide = random(3, 64), random(9, 64), torch.full((3, 4), 77, device=device)
positions = wide[:, 1]                              # strided: its neighbours are no positions
positions.copy_(index(0, 8, 4))
rotate = lambda: sgl_kernel.rotary_embedding(positions, query, None, 64, cache)
expected = query.clone()
sgl_kernel.rotary_embedding(positions.contiguous(), expected, None, 64, cache)
positions[2] = 9
refused("rotary_embedding: positions has 9 for token 2, expected 0 to 8, the rows of cos_sin_cache", rotate, query)
positions[2] = 4
rotate()
assert torch.equal(query, expected)

k_cache, v_cache, k, v = random(5, 2, 8), random(5, 2, 8), random(2, 2, 8), random(2, 2, 8)
store = lambda *places: sgl_kernel.set_kv_buffer_kernel(k_cache, v_cache, index(*places, dtype=torch.int64), k, v)
refused("store_kv_cache: out_loc[1] is 5, expected 0 to 4", lambda: store(0, 5), k_cache, v_cache)
store(3, 1)
assert torch.equal(k_cache[[3, 1]], k) and torch.equal(v_cache[[3, 1]], v)

refused("store_cache_cpu: indices[0] is -1, expected 0 to 4", lambda: torch.ops.sgl_kernel.store_cache_cpu(k, v, k_cache, v_cache, index(-1, 2), None), k_cache, v_cache)

heads, keys, values, buffers = random(2, 64), random(2, 64), random(2, 64), [random(5, 64), random(5, 64)]
fused = lambda *rows, at=(0, 8): sgl_kernel.apply_rope_with_cos_sin_cache_inplace(
    index(*at), heads, keys, 64, cache, fused_set_kv_buffer_arg=sgl_kernel.FusedSetKVBufferArg(values, *buffers, None, None, index(*rows, dtype=torch.int64)))
refused("pos_ids has 9 for token 1, expected 0 to 8, the rows of cos_sin_cache", lambda: fused(3, 1, at=(0, 9)), heads, keys, *buffers)
refused("kv_cache_loc has 5 for token 0, expected 0 to 4, the rows of k_buffer", lambda: fused(5, 1), heads, keys, *buffers)
fused(3, 1)
assert torch.equal(buffers[0][[3, 1]], keys) and torch.equal(buffers[1][[3, 1]], values)

planes = index(0, 1, 2, 3, 9, 5).view(3, 2)
refused("positions has 9 for token 0, expected 0 to 8, the rows of cos_sin_cache",
        lambda: torch.ops.sgl_kernel.multimodal_rotary_embedding_cpu(planes, heads, keys, 64, cache, [16, 8, 8], False, True), heads, keys)
refused("positions has -1 for token 1", lambda: torch.ops.sgl_kernel.rotary_embedding_cpu(index(3, -1), heads, keys, 64, cache, True), heads, keys)

probs = torch.softmax(random(2, 16), dim=1)
draw = lambda *rows: sgl_kernel.top_k_top_p_sampling_from_probs(probs, 3, 0.9, indices=index(*rows))
refused("maybe_indices has 2 at [1], expected 0 to 1, the rows of probs", lambda: draw(0, 2))
assert draw(0, 1).shape == (2,)
refused("temperature_arr has -1 at [1], expected a finite number of at least 0", lambda: sgl_kernel.sampling.softmax(probs, index(1, -1, dtype=torch.float32)))

q, pages = random(2, 1, 4, 16), random(4, 2, 2, 16)
attend = lambda *table: flash_attn_with_kvcache(q, pages, pages, cache_seqlens=index(3, 2), page_table=index(*table).view(2, 2))
refused("flash_attn: page_table[0, 1] is -1, expected a page from 0 to 3", lambda: attend(0, -1, 1, -1))
assert torch.equal(attend(0, 3, 1, -1), attend(0, 3, 1, 2))         # a page that no length reaches may be anything

pool, new, table, slots = random(9, 2, 16), random(2, 2, 16), index(*range(8)).view(2, 4), index(7, 9, dtype=torch.int64)
answer, lengths = torch.zeros(2, 4, 16, device=device), index(3, 5, dtype=torch.int64)
decode = lambda: torch.ops.sgl_kernel.decode_attention_cpu(
    q[:, 0], pool, pool.clone(), answer, new, new, slots, torch.empty(2, 4, 1, 17, device=device), table, index(1, 0, dtype=torch.int64), lengths, 0.25, 0.0, False, 0, None, None)
refused("decode_attention: seq_lens[1] is 5, expected 0 to 4", decode, pool, answer)
lengths[1] = 4
refused("decode_attention: loc[1] is 9, expected 0 to 8", decode, pool, answer)
slots[1] = 8
decode()
assert torch.equal(pool[[7, 8]], new) and answer.any()

rows, gathered = random(4, 8), torch.full((2, 8), 7.0, device=device)
gather = lambda *sources: torch.ops.sgl_kernel.shuffle_rows(rows, index(*sources), gathered)
refused("shuffle_rows: dst2src_map[1] is 4, expected 0 to 3", lambda: gather(0, 4), gathered)
gather(3, 0)
assert torch.equal(gathered, rows[[3, 0]])
add = lambda *sources: sgl_kernel.apply_shuffle_mul_sum(rows, gathered, index(*sources), None)
refused("apply_shuffle_mul_sum: permutation[2] is -1, expected 0 to 3", lambda: add(0, 1, -1, 2), gathered)
add(0, 1, 3, 2)
assert torch.equal(gathered, torch.stack([rows[0] + rows[1], rows[3] + rows[2]]))

codes, one = torch.zeros(4, 16, dtype=torch.uint8, device=device), torch.ones(1, device=device)
halves = random(2, 2, 8).half()
downcast = lambda *places: sgl_kernel.downcast_fp8(halves, halves, codes, codes.clone(), one, one, index(*places, dtype=torch.int64))
refused("downcast_fp8: loc[1] is 4, expected a place from 0 to 3", lambda: downcast(0, 4), codes)
downcast(0, 3)
assert codes[0].any() and codes[3].any() and not codes[1:3].any()

logits, allowed = torch.zeros(3, 40, device=device), index(-1, 0, 5, 1, -1, -1).view(3, 2)
forbid = lambda *rows: sgl_kernel.apply_token_bitmask_inplace_cuda(logits, allowed, index(*rows))
refused("indices[0] is 3, expected 0 to 2, a row of logits and of bitmask", lambda: forbid(3, 1), logits)
forbid(0)
assert torch.equal(logits.isinf().sum(1).cpu(), torch.tensor([8, 0, 0]))

if device == "cuda":                                # nothing can be read during a capture: not checked then, and no harm done
    again = query.clone()
    rotate()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sgl_kernel.rotary_embedding(positions, again, None, 64, cache)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(again, query)
print("fine")
"""


@pytest.mark.skipif(bool(NEEDED & set(_library.families_left_out)), reason="a family is left out")
@pytest.mark.parametrize("value", ["1", "0"])
def test_bad_index_is_refused(device, value):
    if device == "cuda" and value == "0":
        pytest.skip("the switch is off: the GPU guards itself and says nothing")
    result = subprocess.run([sys.executable, "-c", CODE.format(device=device)], capture_output=True, text=True, timeout=300, env={**os.environ, "SGK_CHECK": value})
    assert result.stdout == "fine\n", result.stderr
