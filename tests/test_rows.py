"""A row's bits do not depend on how many rows a call has, whichever build their number chooses."""
import pytest

torch = pytest.importorskip("torch")
import sgl_kernel  # noqa: E402
from sgl_kernel import _library  # noqa: E402

pytestmark = pytest.mark.skipif(bool({"act", "attention", "moe", "norm", "quant", "rope"} & _library.families_left_out), reason="a family is left out")
MANY, FEW = 1500, 3


def rmsnorm(x):
    return [sgl_kernel.rmsnorm(x, torch.linspace(-1, 1, x.shape[-1], device=x.device).to(x.dtype))]


def silu_and_mul(x):
    return [sgl_kernel.silu_and_mul(x)]


def per_token_group_quant(version):
    def call(x):
        q, s = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device), torch.empty(len(x), x.shape[1] // 128, device=x.device)
        sgl_kernel.sgl_per_token_group_quant_fp8(x, q, s, 128, 1e-10, -448.0, 448.0, False, enable_v2=version == 2)
        return [q.view(torch.uint8), s]
    return call


def qk_norm_rope(is_neox, rotary_dim):
    def call(x):
        x, w = x.clone(), torch.linspace(-1, 1, 128, device=x.device).bfloat16()
        positions = torch.arange(len(x), dtype=torch.int32, device=x.device) * 7
        sgl_kernel.fused_qk_norm_rope(x, 10, 4, 2, 128, 1e-6, w, w, 1e4, is_neox, positions, 4.0, 3.0, 20.0, 1.1, rotary_dim)
        return [x]
    return call


def rotary_embedding(x):
    q, k = x.clone(), x[:, :512].clone()
    angle = torch.outer(torch.arange(4096.0), 1e4 ** (-torch.arange(64) / 64))
    cache = torch.cat((angle.cos(), angle.sin()), 1).to(x.device, x.dtype)
    sgl_kernel.rotary_embedding(torch.arange(len(x), device=x.device), q, k, 128, cache, True)
    return [q, k]


def moe_sum_reduce(x):
    out = torch.empty(len(x), 256, dtype=x.dtype, device=x.device)
    sgl_kernel.moe_sum_reduce(x.view(len(x), 8, 256), out, 2.5)
    return [out]


def merge_state(x):
    v = x.view(len(x), 16, 128)
    s = v.float().sum(-1)
    return list(sgl_kernel.merge_state_v2(v, s, v.flip(1).contiguous(), s / 2))


CALLS = {
    "rmsnorm": rmsnorm, "silu_and_mul": silu_and_mul, "per_token_group_quant_v1": per_token_group_quant(1), "per_token_group_quant_v2": per_token_group_quant(2),
    "qk_norm_rope_neox": qk_norm_rope(True, 128), "qk_norm_rope_neox_64": qk_norm_rope(True, 64), "qk_norm_rope_pairs_96": qk_norm_rope(False, 96),
    "rotary_embedding": rotary_embedding, "moe_sum_reduce": moe_sum_reduce, "merge_state": merge_state,
}


@pytest.mark.parametrize("name", CALLS)
def test_rows_alone(device, name):
    x = torch.randn(MANY, 2048, generator=torch.Generator().manual_seed(5)).to(device, torch.bfloat16)
    for many, few in zip(CALLS[name](x), CALLS[name](x[:FEW].contiguous())):
        assert torch.equal(many[:FEW], few)
