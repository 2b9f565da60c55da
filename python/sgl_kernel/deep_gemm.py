"""DeepGEMM's functions by their names and signatures: `import sgl_kernel.deep_gemm as deep_gemm`.

Products come from this package's operators: nothing is compiled when a shape is new. Scales are float32 in any layout, so that the helpers which bring
them into DeepGEMM's layouts are kept for callers, and no product needs them. Where DeepGEMM asks for aligned sizes, ours takes any.
"""
from __future__ import annotations

from typing import Optional, Tuple

from sgl_kernel._ops import operator, provided_by, torch

_fp8_gemm_nt = operator("fp8_gemm_nt")
_m_grouped_fp8_gemm_nt_contiguous = operator("m_grouped_fp8_gemm_nt_contiguous")
_m_grouped_fp8_gemm_nt_masked = operator("m_grouped_fp8_gemm_nt_masked")
_m_grouped_bf16_gemm_nt_contiguous = operator("m_grouped_bf16_gemm_nt_contiguous")
_m_grouped_bf16_gemm_nt_masked = operator("m_grouped_bf16_gemm_nt_masked")
_linear = operator("linear")

_num_sms = None
_mk_alignment = 128


# ---- settings and sizes ------------------------------------------------------------------------------------------------------------

def ceil_div(x: int, y: int) -> int:
    return (x + y - 1) // y


def align(x: int, y: int) -> int:
    return ceil_div(x, y) * y


def set_num_sms(num_sms: int) -> None:
    """Remembered for get_num_sms; products use the whole GPU."""
    global _num_sms
    most = torch.cuda.get_device_properties("cuda").multi_processor_count
    assert 0 < num_sms <= most, f"set_num_sms: num_sms is {num_sms}, expected 1 to {most}"
    _num_sms = num_sms


def get_num_sms() -> int:
    return _num_sms or torch.cuda.get_device_properties("cuda").multi_processor_count


def set_tc_util(new_tc_util: int) -> None:
    """Taken and not needed, as the other settings of DeepGEMM that steer its compiler or its launches."""


def get_tc_util() -> int:
    return 100


def set_pdl(new_enable_pdl: bool) -> None:
    """See set_tc_util; TRTLLM_ENABLE_PDL=1 switches programmatic launches on."""


def get_pdl() -> bool:
    return False


def set_ignore_compile_dims(new_value: bool) -> None:
    """See set_tc_util."""


def set_block_size_multiple_of(new_value) -> None:
    """See set_tc_util."""


def get_m_alignment_for_contiguous_layout() -> int:
    """Rows of one group begin at a multiple of this in the contiguous layout."""
    return 128


def get_mk_alignment_for_contiguous_layout() -> int:
    return 128


get_k_alignment_for_contiguous_layout = get_mk_alignment_for_contiguous_layout


def set_mk_alignment_for_contiguous_layout(new_value: int) -> None:
    assert new_value % 128 == 0, f"rows of a group are aligned to 128 here, not to {new_value}"


def get_theoretical_mk_alignment_for_contiguous_layout(expected_m: Optional[int] = None) -> int:
    return 128


def get_tma_aligned_size(x: int, element_size: int) -> int:
    assert element_size in (1, 2, 4, 8, 16), f"get_tma_aligned_size: element_size is {element_size}, expected 1, 2, 4, 8 or 16"
    return align(x, 16 // element_size)


# ---- layouts of scales -------------------------------------------------------------------------------------------------------------

def get_mn_major_tma_aligned_tensor(sf: torch.Tensor) -> torch.Tensor:
    """The same scales with their rows side by side in memory, padded to 16 bytes; itself if it lies so already."""
    rows, blocks = sf.shape[-2:]
    aligned = get_tma_aligned_size(rows, sf.element_size())
    if sf.stride(-2) == 1 and sf.stride(-1) == aligned and (sf.dim() == 2 or sf.stride(0) == aligned * blocks):
        return sf
    result = torch.empty(*sf.shape[:-2], blocks, aligned, dtype=sf.dtype, device=sf.device).transpose(-1, -2)[..., :rows, :]
    return result.copy_(sf)


get_col_major_tma_aligned_tensor = get_mn_major_tma_aligned_tensor


def get_mn_major_tma_aligned_packed_ue8m0_tensor(sf: torch.Tensor, psum_layout: Optional[torch.Tensor] = None) -> torch.Tensor:
    """Scales that are powers of two as their exponents, four blocks of K in an int32, rows side by side."""
    rows, blocks = sf.shape[-2:]
    words, aligned = ceil_div(blocks, 4), get_tma_aligned_size(rows, 4)
    exponents = torch.zeros(*sf.shape[:-2], aligned, words * 4, dtype=torch.uint8, device=sf.device)
    exponents[..., :rows, :blocks] = sf.view(torch.int32).bitwise_right_shift(23).to(torch.uint8)
    packed = exponents.view(torch.int32)
    return packed.transpose(-1, -2).contiguous().transpose(-1, -2)[..., :rows, :]


def transform_sf_into_required_layout(
    sf: torch.Tensor, mn: int, k: int, recipe: Tuple[int, ...], num_groups: Optional[int] = None, is_sfa: Optional[bool] = None,
    disable_ue8m0_cast: bool = False, psum_layout: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """What DeepGEMM wants on sm_90: scales of single rows as get_mn_major_tma_aligned_tensor gives them, those of blocks as they are."""
    if len(recipe) == 3:
        assert is_sfa is not None, f"transform_sf_into_required_layout: is_sfa is None, expected it with a recipe of three, {recipe}"
        rows, block = recipe[0 if is_sfa else 1], recipe[2]
    else:
        assert is_sfa is None, f"transform_sf_into_required_layout: is_sfa is {is_sfa}, expected None with a recipe of two, {recipe}"
        rows, block = recipe
    assert block == 128 and rows in (1, 128), f"transform_sf_into_required_layout: recipe is {recipe}, expected 1 or 128 rows by 128"
    wanted = [*(() if num_groups is None else (num_groups,)), ceil_div(mn, rows), ceil_div(k, block)]
    assert sf.dtype == torch.float32 and list(sf.shape) == wanted, (
        f"transform_sf_into_required_layout: sf is {list(sf.shape)} of {sf.dtype}, expected {wanted} of torch.float32")
    return get_mn_major_tma_aligned_tensor(sf) if rows == 1 else sf


# ---- products ----------------------------------------------------------------------------------------------------------------------

def _check_recipe(recipe, recipe_a=None, recipe_b=None):
    if recipe_a is not None or recipe_b is not None:
        recipe = (recipe_a[0], recipe_b[0], recipe_a[1])
    if recipe is not None and tuple(recipe) != (1, 128, 128):
        raise NotImplementedError(f"deep_gemm: scales by the recipe {tuple(recipe)}; (1, 128, 128) is provided")


def _product_plus(d, c, product):
    """d = c + product, in float32 until the end."""
    if c is None:
        product(d)
        return
    if c.shape != d.shape or not d.dtype.is_floating_point:
        raise ValueError(f"deep_gemm: c is {list(c.shape)} and d {list(d.shape)} of {d.dtype}, expected one shape and a float format")
    sums = torch.empty(d.shape, dtype=torch.float32, device=d.device)
    product(sums)
    d.copy_(sums.add_(c))


@provided_by("grouped")
def fp8_gemm_nt(
    a: Tuple[torch.Tensor, torch.Tensor], b: Tuple[torch.Tensor, torch.Tensor], d: torch.Tensor, c: Optional[torch.Tensor] = None,
    recipe: Optional[Tuple[int, int, int]] = None, recipe_a: Optional[Tuple[int, int]] = None, recipe_b: Optional[Tuple[int, int]] = None,
    compiled_dims: str = "nk", disable_ue8m0_cast: bool = False,
) -> None:
    """d = a @ b.T (+ c): a [M, K] with a scale for 1 x 128 elements, b [N, K] with one for 128 x 128."""
    _check_recipe(recipe, recipe_a, recipe_b)
    _product_plus(d, c, lambda out: _fp8_gemm_nt(out, a[0], a[1], b[0], b[1]))


@provided_by("grouped")
def m_grouped_fp8_gemm_nt_contiguous(
    a: Tuple[torch.Tensor, torch.Tensor], b: Tuple[torch.Tensor, torch.Tensor], d: torch.Tensor, grouped_layout: torch.Tensor,
    recipe: Optional[Tuple[int, int, int]] = None, recipe_a: Optional[Tuple[int, int]] = None, recipe_b: Optional[Tuple[int, int]] = None,
    compiled_dims: str = "nk", disable_ue8m0_cast: bool = False, use_psum_layout: bool = False, ensure_zero_padding: bool = True,
    expected_m_for_psum_layout: Optional[int] = None,
) -> None:
    """d[i] = a[i] @ b[grouped_layout[i]].T; rows whose index is negative stay as they are."""
    _check_recipe(recipe, recipe_a, recipe_b)
    _m_grouped_fp8_gemm_nt_contiguous(d, a[0], a[1], b[0], b[1], grouped_layout, use_psum_layout)


@provided_by("grouped")
def m_grouped_fp8_gemm_nt_masked(
    a: Tuple[torch.Tensor, torch.Tensor], b: Tuple[torch.Tensor, torch.Tensor], d: torch.Tensor, masked_m: torch.Tensor, expected_m: int,
    recipe: Optional[Tuple[int, int, int]] = None, recipe_a: Optional[Tuple[int, int]] = None, recipe_b: Optional[Tuple[int, int]] = None,
    compiled_dims: str = "nk", disable_ue8m0_cast: bool = False,
) -> None:
    """d[g, :masked_m[g]] = a[g, :masked_m[g]] @ b[g].T; other rows stay as they are."""
    _check_recipe(recipe, recipe_a, recipe_b)
    _m_grouped_fp8_gemm_nt_masked(d, a[0], a[1], b[0], b[1], masked_m, expected_m)


@provided_by("gemm")
def bf16_gemm_nt(a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: Optional[torch.Tensor] = None, compiled_dims: str = "nk") -> None:
    """d = a @ b.T (+ c)"""
    _product_plus(d, c, lambda out: _linear(out, a, b, None))


@provided_by("grouped")
def m_grouped_bf16_gemm_nt_contiguous(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, grouped_layout: torch.Tensor, compiled_dims: str = "nk", use_psum_layout: bool = False,
    ensure_zero_padding: bool = True, expected_m_for_psum_layout: Optional[int] = None,
) -> None:
    _m_grouped_bf16_gemm_nt_contiguous(d, a, b, grouped_layout, use_psum_layout)


@provided_by("grouped")
def m_grouped_bf16_gemm_nt_masked(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, masked_m: torch.Tensor, expected_m: int, compiled_dims: str = "nk",
) -> None:
    _m_grouped_bf16_gemm_nt_masked(d, a, b, masked_m, expected_m)


fp8_m_grouped_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked
bf16_m_grouped_gemm_nt_masked = m_grouped_bf16_gemm_nt_masked
fp8_fp4_gemm_nt = fp8_gemm_nt
m_grouped_fp8_fp4_gemm_nt_contiguous = m_grouped_fp8_gemm_nt_contiguous
m_grouped_fp8_fp4_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked


# ---- the older names ---------------------------------------------------------------------------------------------------------------

@provided_by("grouped")
def gemm_fp8_fp8_bf16_nt(lhs: Tuple[torch.Tensor, torch.Tensor], rhs: Tuple[torch.Tensor, torch.Tensor], out: torch.Tensor) -> None:
    _fp8_gemm_nt(out, lhs[0], lhs[1], rhs[0], rhs[1])


@provided_by("grouped")
def m_grouped_gemm_fp8_fp8_bf16_nt_contiguous(
    lhs: Tuple[torch.Tensor, torch.Tensor], rhs: Tuple[torch.Tensor, torch.Tensor], out: torch.Tensor, m_indices: torch.Tensor,
) -> None:
    _m_grouped_fp8_gemm_nt_contiguous(out, lhs[0], lhs[1], rhs[0], rhs[1], m_indices, False)


@provided_by("grouped")
def m_grouped_gemm_fp8_fp8_bf16_nt_masked(
    lhs: Tuple[torch.Tensor, torch.Tensor], rhs: Tuple[torch.Tensor, torch.Tensor], out: torch.Tensor, masked_m: torch.Tensor, expected_m: int,
) -> None:
    _m_grouped_fp8_gemm_nt_masked(out, lhs[0], lhs[1], rhs[0], rhs[1], masked_m, expected_m)


# ---- quantisers of DeepGEMM's tests and examples -----------------------------------------------------------------------------------

def ceil_to_ue8m0(x: torch.Tensor) -> torch.Tensor:
    """Up to the next power of two."""
    return torch.exp2(x.abs().log2().ceil())


def _codes(x, dims, use_ue8m0):
    scale = x.abs().float().amax(dim=dims, keepdim=True).clamp(1e-4) / 448.0
    scale = ceil_to_ue8m0(scale) if use_ue8m0 else scale
    return (x * (1.0 / scale)).to(torch.float8_e4m3fn), scale


def per_token_cast_to_fp8(x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = 128) -> Tuple[torch.Tensor, torch.Tensor]:
    """[M, K] to codes, and a scale for each row and gran_k elements."""
    rows, columns = x.shape
    padded = torch.zeros(rows, align(columns, gran_k), dtype=x.dtype, device=x.device)
    padded[:, :columns] = x
    codes, scale = _codes(padded.view(rows, -1, gran_k), 2, use_ue8m0)
    return codes.view(rows, -1)[:, :columns].contiguous(), scale.view(rows, -1)


def per_block_cast_to_fp8(x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = 128) -> Tuple[torch.Tensor, torch.Tensor]:
    """[N, K] to codes, and a scale for each gran_k x gran_k elements."""
    rows, columns = x.shape
    padded = torch.zeros(align(rows, gran_k), align(columns, gran_k), dtype=x.dtype, device=x.device)
    padded[:rows, :columns] = x
    codes, scale = _codes(padded.view(-1, gran_k, padded.shape[1] // gran_k, gran_k), (1, 3), use_ue8m0)
    return codes.view_as(padded)[:rows, :columns].contiguous(), scale.view(scale.shape[0], scale.shape[2])
