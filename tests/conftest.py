"""Shared by the tests: torch with the binding's test operators, and the devices of this machine."""
import os
import tempfile

os.environ.setdefault("SGK_TEST_OPS", "1")     # before sgl_kernel registers its operators
inductor_cache = tempfile.TemporaryDirectory() # what an earlier run compiled would hide a fake that has changed since
os.environ["TORCHINDUCTOR_CACHE_DIR"] = inductor_cache.name

import pytest

from sgl_kernel import _library

LEFT_OUT = _library.families_left_out          # some tests change it

try:
    import torch
    DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    from torch._functorch import config
    config.error_on_custom_op_aliasing = True  # as it will be: now torch warns, unless the environment has CI
except ImportError:
    DEVICES = ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def gpu():
    if "cuda" not in DEVICES:
        pytest.skip("needs a GPU")
    return torch.device("cuda")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """In a build without some family, a test that needs it is skipped by what it ran into."""
    try:
        return (yield)
    except Exception as error:
        said = str(error)
        if LEFT_OUT and ("is not in this build of sgl_kernel" in said or "'_OpNamespace' 'sgl_kernel' object has no attribute" in said):
            pytest.skip(f"a family is left out: {said.partition(chr(10))[0]}")
        raise
