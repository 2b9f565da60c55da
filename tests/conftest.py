"""Shared by the tests: torch with the binding's test operators, and the devices of this machine."""
import os

os.environ.setdefault("SGK_TEST_OPS", "1")     # before sgl_kernel registers its operators

import pytest

try:
    import torch
    DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
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
