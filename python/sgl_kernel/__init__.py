"""Compute kernels for LLM serving: the Python API of sgl-kernel on libsgl_kernel.so.

Importing registers torch.ops.sgl_kernel.* where torch 2.10 or newer is installed. Without it `import sgl_kernel` works and every
function that needs torch says so when it is called.
"""
import os
import types

from sgl_kernel import _attention, _library, _vision, debug_utils, load_utils  # noqa: F401

__version__ = _library.version
common_ops = load_utils._load_architecture_specific_ops()

from sgl_kernel.attention import lightning_attention_decode, merge_state, merge_state_v2
from sgl_kernel.elementwise import (
    FusedSetKVBufferArg,
    apply_rope_with_cos_sin_cache_inplace,
    concat_mla_absorb_q,
    concat_mla_k,
    copy_to_gpu_no_ce,
    downcast_fp8,
    dsv4_fused_k_norm_rope_flashmla,
    dsv4_fused_q_indexer_rope_hadamard_quant,
    dsv4_fused_q_norm_rope,
    fused_add_rmsnorm,
    fused_add_rmsnorm_quant,
    fused_rmsnorm_quant,
    gelu_and_mul,
    gelu_quick,
    gelu_tanh_and_mul,
    gemma_fused_add_rmsnorm,
    gemma_rmsnorm,
    rmsnorm,
    rotary_embedding,
    silu_and_mul,
    timestep_embedding,
)
from sgl_kernel.expert_specialization import (
    es_fp8_blockwise_scaled_grouped_mm,
    es_sm100_mxfp8_blockscaled_grouped_mm,
    es_sm100_mxfp8_blockscaled_grouped_quant,
)
from sgl_kernel.gemm import (
    bmm_fp8,
    cublas_grouped_gemm,
    dsv3_fused_a_gemm,
    dsv3_router_gemm,
    fp8_blockwise_scaled_mm,
    fp8_scaled_mm,
    int8_scaled_mm,
    linear,
    sgl_per_tensor_quant_fp8,
    sgl_per_token_group_quant_8bit,
    sgl_per_token_group_quant_fp8,
    sgl_per_token_group_quant_int8,
    sgl_per_token_quant_fp8,
    shuffle_rows,
)
from sgl_kernel.grammar import apply_token_bitmask_inplace_cuda
from sgl_kernel.hadamard import (
    hadamard_transform,
    hadamard_transform_12n,
    hadamard_transform_20n,
    hadamard_transform_28n,
    hadamard_transform_40n,
)
from sgl_kernel.memory import set_kv_buffer_kernel, weak_ref_tensor
from sgl_kernel.moe import apply_shuffle_mul_sum, fp8_blockwise_scaled_grouped_mm, fused_qk_norm_rope, moe_sum, moe_sum_reduce
from sgl_kernel.sampling import softmax, top_k_top_p_sampling_from_probs
from sgl_kernel.spatial import get_sm_available


def get_include():
    """The folder of sgl_kernel.h and sgl_kernel/*.h, for C programs: -I$(python -c 'import sgl_kernel; print(sgl_kernel.get_include())')"""
    installed = _library.PACKAGE / "include"
    return os.fspath(installed if installed.exists() else _library.PACKAGE.parents[1] / "include")


for _name, _function in list(globals().items()):
    if isinstance(_function, types.FunctionType) and _function.__module__.startswith("sgl_kernel."):
        globals()[_name] = debug_utils.maybe_wrap_debug_kernel(_function, f"sgl_kernel.{_name}")
