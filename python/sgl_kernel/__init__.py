"""Compute kernels for LLM serving: the Python API of sgl-kernel on libsgl_kernel.so.

Importing registers torch.ops.sgl_kernel.* where torch 2.10 or newer is installed. Without it `import sgl_kernel` works and every
function that needs torch says so when it is called.
"""
import os

from sgl_kernel import _library

__version__ = _library.version

from sgl_kernel.attention import merge_state, merge_state_v2
from sgl_kernel.elementwise import (
    FusedSetKVBufferArg,
    apply_rope_with_cos_sin_cache_inplace,
    concat_mla_absorb_q,
    concat_mla_k,
    copy_to_gpu_no_ce,
    downcast_fp8,
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
)
from sgl_kernel.gemm import (
    linear,
    sgl_per_tensor_quant_fp8,
    sgl_per_token_group_quant_8bit,
    sgl_per_token_group_quant_fp8,
    sgl_per_token_group_quant_int8,
    sgl_per_token_quant_fp8,
    shuffle_rows,
)
from sgl_kernel.grammar import apply_token_bitmask_inplace_cuda
from sgl_kernel.memory import set_kv_buffer_kernel
from sgl_kernel.moe import apply_shuffle_mul_sum, fused_qk_norm_rope, moe_sum, moe_sum_reduce
from sgl_kernel.sampling import softmax, top_k_top_p_sampling_from_probs


def get_include():
    """The folder of sgl_kernel.h and sgl_kernel/*.h, for C programs: -I$(python -c 'import sgl_kernel; print(sgl_kernel.get_include())')"""
    installed = _library.PACKAGE / "include"
    return os.fspath(installed if installed.exists() else _library.PACKAGE.parents[1] / "include")
