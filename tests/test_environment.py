"""The variables of the environment, each in a fresh process, as HACKING.md lists them."""
import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
from sgl_kernel import _library  # noqa: E402

pytestmark = pytest.mark.skipif("norm" in _library.families_left_out, reason="the family is left out")
CODE = "import torch, sgl_kernel; print(sgl_kernel.rmsnorm(torch.ones(2, 8), torch.ones(8)).sum().item())"


def run(*command, **environment):
    done = subprocess.run([sys.executable, *command], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_verbose_and_level():
    done = run("-c", CODE, SGK_VERBOSE="1", SGK_CPU="ref")
    assert "rmsnorm: cpu, ref" in done.stderr and float(done.stdout) == pytest.approx(16, rel=1e-5)
    assert "rmsnorm: cpu" not in run("-c", CODE, SGK_VERBOSE="0").stderr


def test_a_level_that_is_none():
    done = run("-c", CODE, SGK_CPU="sse9")
    assert "SGK_CPU is 'sse9', expected one of ref" in done.stderr and float(done.stdout) == pytest.approx(16, rel=1e-5)


@pytest.mark.skipif(not _library.find("bin/sgk-check", "sgk-check").exists(), reason="this build has no sgk-check")
def test_threads_of_the_own_pool():
    for threads in (1, 3):
        facts = json.loads(run("-m", "sgl_kernel", "info", "--only=rmsnorm_f32_3x", "--json", SGK_NUM_THREADS=str(threads), SGK_CPU="ref").stdout)
        assert facts["CPU level"] == f"ref, {threads} threads"


def test_the_library_by_name(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import sgl_kernel"], env={**os.environ, "SGK_LIBRARY": str(tmp_path / "none.so")}, capture_output=True, text=True)
    assert done.returncode and f"{tmp_path / 'none.so'} does not exist" in done.stderr
