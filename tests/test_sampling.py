"""softmax, and draws whose every one is foretold by a model in Python integers, or judged by its statistics."""
import math

import pytest

torch = pytest.importorskip("torch")
from sgl_kernel import softmax, top_k_top_p_sampling_from_probs as draw  # noqa: E402

FORMATS = [torch.float32, torch.float16, torch.bfloat16]


def random(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(device, dtype)


# ---- softmax ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (5, 2000), (2, 50257), (2, 128256)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6, 5.0])
def test_softmax(device, dtype, shape, temperature):
    logits = 4 * random(*shape, dtype=dtype, device=device)
    right = torch.softmax(logits.double() / temperature, dim=1)
    out = softmax(logits, temperature)
    assert out.dtype == torch.float32
    assert (out - right).norm() <= 1e-6 * right.norm()
    assert torch.equal(softmax(logits, torch.full((shape[0],), temperature, device=device)), out)


def test_softmax_in_place_and_of_slices(device):
    logits = random(4, 300, device=device)
    right = softmax(logits)
    assert torch.equal(softmax(logits, out=logits), right) and torch.equal(logits, right)
    wide = random(4, 700, device=device)
    assert torch.equal(softmax(wide[:, 13:400]), softmax(wide[:, 13:400].contiguous()))


def test_softmax_at_temperature_zero(device):
    logits = torch.tensor([[1.0, 3, 2, 3], [-math.inf] * 4, [5, math.nan, 1, 1], [0, 1, math.inf, 1]], device=device)
    out = softmax(logits, 0.0)
    assert out[0].tolist() == [0, 1, 0, 0] and out[1].tolist() == [0, 0, 0, 0] and out[2].isnan().all() and out[3].tolist() == [0, 0, 1, 0]
    mixed = softmax(logits[:1].expand(3, 4), torch.tensor([0.0, 1.0, 1e-38], device=device))
    assert torch.equal(mixed[0], out[0]) and torch.allclose(mixed[1], torch.softmax(logits[0], 0)) and mixed[2].tolist() == [0, 0.5, 0, 0.5]


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_softmax_refuses(temperature):
    with pytest.raises(RuntimeError, match="softmax: temperature_val is .*, expected a finite number of at least 0"):
        softmax(torch.zeros(2, 3), temperature)
    with pytest.raises(RuntimeError, match=r"softmax: temperature_arr has .* at \[1\], expected a finite number of at least 0"):
        softmax(torch.zeros(2, 3), torch.tensor([1.0, temperature]))


# ---- draws, foretold -------------------------------------------------------------------------------------------------------------

def philox(counter, key):
    for _ in range(10):
        a, b = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [(b >> 32) ^ counter[1] ^ key[0], b & 0xFFFFFFFF, (a >> 32) ^ counter[3] ^ key[1], a & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def test_philox():
    """The known answers that come with Random123."""
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert philox([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def foretold(row, k, p, joint, seed, counter):
    """The operator's definition in Python's integers, by sorting."""
    values = [x if x > 0 else 0.0 for x in row.tolist()]
    largest = max(values)
    if largest == 0:
        return 0
    scale = 63 - len(values).bit_length() - math.frexp(largest)[1]
    weights = [math.floor(math.ldexp(x, scale)) for x in values]
    order = sorted(values, reverse=True)
    kept = order[k - 1] if 0 < k < len(values) else 0.0
    if p < 1:
        need = math.ceil(p * sum(w for x, w in zip(values, weights) if joint or x >= kept))
        for threshold in sorted(set(values), reverse=True):
            if sum(w for x, w in zip(values, weights) if x >= threshold) >= max(need, 1):
                kept = max(kept, threshold)
                break
    total = sum(w for x, w in zip(values, weights) if x >= kept)
    bits = philox([counter & 0xFFFFFFFF, counter >> 32, 0, 0], [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])
    place, above = (bits[1] << 32 | bits[0]) * total >> 64, 0
    for i, (x, w) in enumerate(zip(values, weights)):
        above += w if x >= kept else 0
        if above > place:
            return i


PROBS = {
    "softmax": lambda: torch.softmax(3 * random(6, 200), dim=1),
    "ties": lambda: torch.randint(0, 4, (6, 100), generator=torch.Generator().manual_seed(3)).float() / 8,
    "tiny": lambda: torch.softmax(30 * random(6, 150), dim=1) * 1e-35,
    "long": lambda: torch.softmax(2 * random(2, 5000), dim=1),
    "odd": lambda: torch.tensor([[0.0, math.nan, 0.5, -3, 0.25], [0, 0, 0, 0, 0], [math.nan] * 5, [0, 0, 0, 0, 1e-45], [3e38, 3e38, 1, 2, 3e38]]),
}


@pytest.mark.parametrize("order", ["top_k_first", "joint"])
@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (1, 1.0), (10, 1.0), (-1, 0.9), (1 << 20, 0.3), (40, 0.75), (3, 0.0)])
@pytest.mark.parametrize("kind", PROBS)
def test_draws_are_the_foretold_ones(device, kind, top_k, top_p, order):
    probs = PROBS[kind]()
    p = torch.tensor(top_p).item()
    for seed in [0, 1234567890123456789, -5]:
        out = draw(probs.to(device), top_k, top_p, filter_apply_order=order, seed=torch.tensor([seed], device=device))
        assert out.dtype == torch.int32
        assert out.tolist() == [foretold(row, top_k, p, order == "joint", seed, i) for i, row in enumerate(probs)]


def test_tensors_of_options(device):
    probs = torch.softmax(2 * random(4, 120), dim=1)
    indices, seeds = torch.tensor([3, 0, 0, 2, 1, 3, 3], dtype=torch.int32), torch.arange(7) * 7919 - 3
    top_k, top_p = torch.tensor([0, 5, 1, 100, 20, 500, 3]), torch.tensor([0.5, 1.0, 0.1, 0.9, 0.7, 2.0, 0.6], dtype=torch.float64)
    out = draw(*(x.to(device) for x in (probs, top_k, top_p)), indices=indices.to(device), seed=seeds.to(device))
    p = top_p.float().tolist()
    assert out.tolist() == [foretold(probs[r], top_k[i].item(), p[i], False, seeds[i].item(), 0) for i, r in enumerate(indices.tolist())]
    # a request's draw depends on its own seed, not on its place in the batch
    alone = draw(probs[2:3].to(device), 100, top_p[3:4].to(device), seed=seeds[3:4].to(device))
    assert alone.item() == out[3].item()


def test_formats_strides_and_empty_batches(device):
    probs = torch.softmax(random(3, 64), dim=1).to(device)
    seed = torch.tensor([11], device=device)
    assert torch.equal(draw(probs.bfloat16(), 5, 0.9, seed=seed), draw(probs.bfloat16().float(), 5, 0.9, seed=seed))
    wide = torch.zeros(3, 100, device=device)
    wide[:, 7:71] = probs
    assert torch.equal(draw(wide[:, 7:71], 5, 0.9, seed=seed), draw(probs, 5, 0.9, seed=seed))
    assert draw(probs[:0], 5, 0.9).shape == (0,)
    assert draw(probs, 5, 0.9, indices=torch.zeros(0, dtype=torch.int32, device=device)).shape == (0,)


# ---- draws, by their statistics --------------------------------------------------------------------------------------------------

DRAWS = 1_000_000


def chi_square_limit(freedom):
    """What a sound generator exceeds once in about 10^5 tests (E. Wilson, M. Hilferty: The distribution of chi-square, 1931)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.265 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("seeds", ["one", "each"])
@pytest.mark.parametrize("top_k, top_p, order", [(0, 1.0, "top_k_first"), (12, 1.0, "top_k_first"), (0, 0.8, "top_k_first"), (20, 0.6, "joint")])
def test_a_million_draws(device, top_k, top_p, order, seeds):
    probs = torch.softmax(1.5 * random(1, 50, seed=4), dim=1)
    seed = torch.tensor([20260101], device=device) if seeds == "one" else torch.arange(DRAWS, device=device)
    out = draw(probs.to(device), top_k, top_p, indices=torch.zeros(DRAWS, dtype=torch.int32, device=device), filter_apply_order=order, seed=seed)
    counts = torch.bincount(out.cpu().long(), minlength=50).double()
    assert len(counts) == 50

    value, place = probs[0].double().sort(descending=True)
    keep = (value.cumsum(0) - value < top_p) & (torch.arange(50) < (top_k or 50))
    expected = torch.zeros(50, dtype=torch.float64)
    expected[place[keep]] = value[keep] / value[keep].sum() * DRAWS
    assert counts[expected == 0].sum() == 0
    inside = expected > 0
    assert expected[inside].min() > 5
    assert ((counts - expected)[inside] ** 2 / expected[inside]).sum() < chi_square_limit(inside.sum().item() - 1)


def test_generator(device):
    probs = torch.softmax(random(1, 1000), dim=1).expand(64, 1000).to(device)
    generator = torch.Generator(device).manual_seed(5)
    first, second = draw(probs, 0, 1.0, generator=generator), draw(probs, 0, 1.0, generator=generator)
    assert not torch.equal(first, second)
    generator.manual_seed(5)
    assert torch.equal(first, draw(probs, 0, 1.0, generator=generator))
    assert not torch.equal(draw(probs, 0, 1.0), draw(probs, 0, 1.0))
    assert first.unique().numel() > 30              # rows draw on their own


def test_generator_in_a_graph(gpu):
    probs = torch.softmax(random(1, 1000, device=gpu), dim=1).expand(64, 1000)
    draw(probs, 50, 0.9)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = draw(probs, 50, 0.9)
    graph.replay()
    first = out.clone()
    graph.replay()
    assert not torch.equal(first, out)


# ---- errors ----------------------------------------------------------------------------------------------------------------------

def test_refuses(device):
    probs = torch.softmax(random(2, 8, device=device), dim=1)
    with pytest.raises(ValueError, match="Invalid filter_apply_order: both"):
        draw(probs, 3, 0.5, filter_apply_order="both")
    broken = probs.clone()
    broken[1, 3] = math.nan
    with pytest.raises(ValueError, match="Input probs contains NaN."):
        draw(broken, 3, 0.5, check_nan=True)
    assert draw(broken, 3, 0.5)[1].item() != 3
    with pytest.raises(RuntimeError, match="top_p_val is -0.5, expected a number of at least 0"):
        draw(probs, 3, -0.5)
    with pytest.raises(RuntimeError, match="seed has size 3 in dimension 0, expected 1 or 2 like output"):
        draw(probs, 3, 0.5, seed=torch.zeros(3, dtype=torch.int64, device=device))
    with pytest.raises(RuntimeError, match="probs has 3 dimensions, expected 2"):
        draw(probs[None], 3, 0.5)


def test_an_index_beyond_the_rows(device):
    """An error on the CPU; -1 on the GPU."""
    probs, indices = torch.softmax(random(2, 8, device=device), dim=1), torch.tensor([1, 2], device=device)
    if device == "cpu":
        with pytest.raises(RuntimeError, match=r"maybe_indices has 2 at \[1\], expected 0 to 1, the rows of probs"):
            draw(probs, 3, 0.5, indices=indices)
    else:
        out = draw(probs, 3, 0.5, indices=indices).tolist()
        assert out[1] == -1 and 0 <= out[0] < 8
