"""Which library serves this process. Ours is one file for every GPU, found and bound when the package is imported."""
from sgl_kernel import _ops


def _get_compute_capability():
    """90 for 9.0; None without a GPU."""
    torch = _ops.torch
    if torch is None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _load_architecture_specific_ops():
    """What `sgl_kernel.common_ops` is: the module that registered the operators."""
    return _ops


def _preload_cuda_library():
    """Nothing: the library needs no CUDA runtime, and finds the driver when it is first called."""
