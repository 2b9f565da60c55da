"""sgl_kernel.deep_gemm against its formulas in torch: products, layouts, and the names that DeepGEMM's users call."""
import pytest

torch = pytest.importorskip("torch")
import sgl_kernel  # noqa: E402
from samples import codes, random, scales  # noqa: E402
from sgl_kernel import _library, deep_gemm  # noqa: E402

pytestmark = pytest.mark.skipif("grouped" in _library.families_left_out, reason="the family is left out")
BF16 = torch.bfloat16


def spread(s, rows, columns, row_block, column_block=128):
    return s.repeat_interleave(row_block, -2)[..., :rows, :].repeat_interleave(column_block, -1)[..., :columns]


def exact(a, sa, b, sb):
    a = a.double() * spread(sa.double(), *a.shape[-2:], 1)
    b = b.double() * spread(sb.double(), *b.shape[-2:], 128)
    return a @ b.transpose(-1, -2)


def close(result, expected):
    assert ((result.double() - expected).norm() <= 5e-3 * expected.norm()).item()


def operands(m, n, k, device, groups=()):
    blocks = -(-k // 128)
    return (codes(*groups, m, k, device=device), scales(*groups, m, blocks, device=device)), \
           (codes(*groups, n, k, device=device, seed=1), scales(*groups, -(-n // 128), blocks, device=device, seed=1))


@pytest.mark.parametrize("m, n, k", [(1, 24, 128), (5, 200, 300), (130, 256, 512), (0, 16, 128)])
def test_one(m, n, k, device):
    a, b = operands(m, n, k, device)
    d = torch.empty(m, n, dtype=BF16, device=device)
    expected = exact(*a, *b)
    for sa in (a[1], deep_gemm.get_col_major_tma_aligned_tensor(a[1])):
        deep_gemm.fp8_gemm_nt((a[0], sa), b, d.fill_(7))
        close(d, expected)
    deep_gemm.gemm_fp8_fp8_bf16_nt(a, b, d.fill_(7))
    close(d, expected)
    close(sgl_kernel.fp8_blockwise_scaled_mm(a[0], b[0].t(), a[1], b[1].t(), torch.float16), expected)
    c = random(m, n, device=device)
    sums = torch.empty(m, n, device=device)
    deep_gemm.fp8_gemm_nt(a, b, sums, c=c)
    close(sums, expected + c.double())
    with pytest.raises(NotImplementedError, match="recipe"):
        deep_gemm.fp8_gemm_nt(a, b, d, recipe=(1, 1, 128))


def test_masked(device):
    a, b = operands(40, 200, 300, device, (3,))
    counts = torch.tensor([0, 40, 17], dtype=torch.int32, device=device)
    expected = exact(*a, *b)
    for call in (deep_gemm.m_grouped_fp8_gemm_nt_masked, deep_gemm.m_grouped_gemm_fp8_fp8_bf16_nt_masked, deep_gemm.fp8_m_grouped_gemm_nt_masked):
        d = torch.full((3, 40, 200), 7, dtype=BF16, device=device)
        call(a, b, d, counts, 20)
        for g, count in enumerate(counts.tolist()):
            assert (d[g, count:] == 7).all()
            close(d[g, :count], expected[g, :count])


def test_contiguous(device):
    rows, align = [5, 0, 130], deep_gemm.get_m_alignment_for_contiguous_layout()
    padded = [deep_gemm.align(r, align) for r in rows]
    a, b = operands(sum(padded), 72, 256, device)
    b = codes(3, 72, 256, device=device, seed=1), scales(3, 1, 2, device=device, seed=1)
    indices, expected, at, ends = torch.full((sum(padded),), -1, dtype=torch.int32), torch.full((sum(padded), 72), 7.0).double().to(device), 0, []
    for g, (r, p) in enumerate(zip(rows, padded)):
        indices[at:at + r] = g
        expected[at:at + r] = exact(a[0][at:at + r], a[1][at:at + r], b[0][g], b[1][g])
        ends.append(at + r)
        at += p
    for call in (deep_gemm.m_grouped_fp8_gemm_nt_contiguous, deep_gemm.m_grouped_gemm_fp8_fp8_bf16_nt_contiguous):
        d = torch.full((sum(padded), 72), 7, dtype=BF16, device=device)
        call(a, b, d, indices.to(device))
        close(d, expected)
    d.fill_(7)
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a, b, d, torch.tensor(ends, dtype=torch.int32, device=device), use_psum_layout=True)
    close(d, expected)


def test_bf16(device):
    x, w = random(3, 20, 48, device=device, dtype=BF16), random(3, 24, 48, device=device, dtype=BF16, seed=1)
    expected = x.double() @ w.double().transpose(1, 2)
    d = torch.full((3, 20, 24), 7, dtype=BF16, device=device)
    deep_gemm.bf16_gemm_nt(x[0], w[0], d[0])
    close(d[0], expected[0])
    sums = torch.ones(20, 24, device=device)
    deep_gemm.bf16_gemm_nt(x[0], w[0], sums, c=sums)
    close(sums, expected[0] + 1)
    d.fill_(7)
    deep_gemm.m_grouped_bf16_gemm_nt_masked(x, w, d, torch.tensor([20, 0, 3], dtype=torch.int32, device=device), 8)
    close(d[0], expected[0])
    close(d[2, :3], expected[2, :3])
    assert (d[1] == 7).all() and (d[2, 3:] == 7).all()
    deep_gemm.m_grouped_bf16_gemm_nt_contiguous(x[0], w, d[0], torch.full((20,), 2, dtype=torch.int32, device=device))
    close(d[0], x[0].double() @ w[2].double().t())


def test_offsets(device):
    rows = [3, 0, 20]
    a, b = operands(sum(rows), 256, 128, device)
    b = codes(3, 256, 128, device=device, seed=1), scales(3, 2, 1, device=device, seed=1)
    sizes, offsets = torch.tensor([[r, 256, 128] for r in rows], dtype=torch.int32, device=device), torch.tensor([0, 3, 3], dtype=torch.int32, device=device)
    d = torch.zeros(sum(rows), 256, dtype=BF16, device=device)
    spare = torch.zeros(3, dtype=torch.int64, device=device)
    sgl_kernel.es_fp8_blockwise_scaled_grouped_mm(d, a[0], b[0].transpose(1, 2), a[1], b[1].transpose(1, 2), spare, spare, spare, sizes, offsets,
                                                  torch.empty(8, dtype=torch.uint8, device=device))
    close(d, torch.cat([exact(x, s, b[0][g], b[1][g]) for g, (x, s) in enumerate(zip(a[0].split(rows), a[1].split(rows)))]))


def test_mx(device):
    """Quantised and multiplied as the release's test does: the difference from the product of what was given is that of 8-bit numbers."""
    rows, n, k = [40, 0, 150], 256, 512
    first = torch.tensor([0, 128, 128], dtype=torch.int32, device=device)
    x, w = random(sum(rows), k, device=device, dtype=BF16), random(3, n, k, device=device, dtype=BF16, seed=1)
    offsets = torch.tensor([0, 40, 40], dtype=torch.int32, device=device)
    sizes = torch.tensor([[r, n, k] for r in rows], dtype=torch.int32, device=device)
    q, s = torch.empty(sum(rows), k, dtype=torch.float8_e4m3fn, device=device), torch.zeros(384, k // 32, dtype=torch.uint8, device=device)
    sgl_kernel.es_sm100_mxfp8_blockscaled_grouped_quant(x, sizes, offsets, first, q, s)
    each = torch.arange(3, dtype=torch.int32, device=device) * n
    qw, sw = torch.empty(3 * n, k, dtype=torch.float8_e4m3fn, device=device), torch.zeros(3 * n, k // 32, dtype=torch.uint8, device=device)
    sgl_kernel.es_sm100_mxfp8_blockscaled_grouped_quant(w.view(3 * n, k), torch.tensor([[n, n, k]] * 3, dtype=torch.int32, device=device), each, each, qw, sw)
    d = torch.zeros(sum(rows), n, dtype=BF16, device=device)
    sgl_kernel.es_sm100_mxfp8_blockscaled_grouped_mm(d, q, qw.view(3, n, k).transpose(1, 2), s, sw.view(3, n, k // 32).transpose(1, 2), sizes, offsets, first)
    expected = torch.cat([x[:40].double() @ w[0].double().t(), x[40:].double() @ w[2].double().t()])
    assert 1 - 2 * (d * expected).sum() / ((d * d).sum() + (expected * expected).sum()) < 1e-3


def test_lists(device):
    inputs, weights = [random(m, 48, device=device, dtype=BF16) for m in (3, 70)], [random(n, 48, device=device, dtype=BF16, seed=1) for n in (8, 30)]
    outputs = [torch.zeros(3, 8, dtype=BF16, device=device), torch.zeros(70, 30, dtype=BF16, device=device)]
    sgl_kernel.cublas_grouped_gemm(inputs, weights, outputs, BF16)
    for x, w, out in zip(inputs, weights, outputs):
        close(out, x.double() @ w.double().t())
    with pytest.raises(AssertionError):
        sgl_kernel.cublas_grouped_gemm(inputs, weights, outputs, torch.float16)


def test_what_is_added_has_the_shape_of_the_result(device):
    a, b, d = random(3, 48, device=device), random(8, 48, device=device), torch.zeros(3, 8, device=device)
    for c in (random(1, 8, device=device), random(3, 1, device=device)):
        with pytest.raises(ValueError, match=r"c is \[\d, \d\] and d \[3, 8\] of torch.float32, expected one shape"):
            deep_gemm.bf16_gemm_nt(a, b, d, c)
    assert not d.any()


@pytest.mark.parametrize("call, words", [
    (lambda s: deep_gemm.transform_sf_into_required_layout(s, 6, 300, (1, 128)), r"sf is \[5, 3\] of torch.float32, expected \[6, 3\] of torch.float32"),
    (lambda s: deep_gemm.transform_sf_into_required_layout(s.half(), 5, 300, (1, 128)), r"sf is \[5, 3\] of torch.float16, expected \[5, 3\] of"),
    (lambda s: deep_gemm.transform_sf_into_required_layout(s, 5, 300, (1, 128, 128)), "is_sfa is None, expected it with a recipe of three"),
    (lambda s: deep_gemm.transform_sf_into_required_layout(s, 5, 300, (1, 64)), r"recipe is \(1, 64\), expected 1 or 128 rows by 128"),
    (lambda s: deep_gemm.get_tma_aligned_size(5, 0), "element_size is 0, expected 1, 2, 4, 8 or 16"),
])
def test_refused_layouts(call, words):
    with pytest.raises(AssertionError, match=words):
        call(scales(5, 3, device="cpu"))


def test_layouts(device):
    s = scales(5, 3, device=device)
    t = deep_gemm.get_mn_major_tma_aligned_tensor(s)
    assert t.stride() == (1, 8) and torch.equal(s, t) and deep_gemm.get_col_major_tma_aligned_tensor(t) is t
    assert deep_gemm.get_col_major_tma_aligned_tensor(scales(2, 5, 3, device=device)).stride() == (24, 1, 8)
    assert deep_gemm.transform_sf_into_required_layout(s, 5, 300, (1, 128, 128), is_sfa=True).stride() == (1, 8)
    assert deep_gemm.transform_sf_into_required_layout(s, 600, 300, (128, 128)) is s
    packed = deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor(torch.exp2(torch.arange(10, device=device).view(2, 5).float()))
    assert packed.shape == (2, 2) and packed.stride() == (1, 4) and packed[1, 1].item() == 127 + 9 and packed[0, 0].item() & 0xffffffff == 127 + (128 << 8) + (129 << 16) + (130 << 24)
    assert deep_gemm.ceil_div(7, 4) == 2 and deep_gemm.get_tma_aligned_size(5, 4) == 8
    x = random(5, 300, device=device)
    codes_of_x, s = deep_gemm.per_token_cast_to_fp8(x)
    assert torch.allclose(codes_of_x.float() * spread(s, 5, 300, 1), x, rtol=0.07, atol=1e-2)
    codes_of_x, s = deep_gemm.per_block_cast_to_fp8(x, use_ue8m0=True)
    assert s.shape == (1, 3) and torch.equal(s.log2(), s.log2().round())
