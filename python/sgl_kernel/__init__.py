"""Compute kernels for LLM serving: the Python API of sgl-kernel on libsgl_kernel.so.

Importing registers torch.ops.sgl_kernel.* where torch 2.10 or newer is installed. Without it `import sgl_kernel` works and every
function that needs torch says so when it is called.
"""
import os

from sgl_kernel import _library

__version__ = _library.version

from sgl_kernel.elementwise import fused_add_rmsnorm, rmsnorm, rotary_embedding, silu_and_mul
from sgl_kernel.gemm import linear
from sgl_kernel.memory import set_kv_buffer_kernel
from sgl_kernel.sampling import softmax, top_k_top_p_sampling_from_probs


def get_include():
    """The folder of sgl_kernel.h and sgl_kernel/*.h, for C programs: -I$(python -c 'import sgl_kernel; print(sgl_kernel.get_include())')"""
    installed = _library.PACKAGE / "include"
    return os.fspath(installed if installed.exists() else _library.PACKAGE.parents[1] / "include")
