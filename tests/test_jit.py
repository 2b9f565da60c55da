"""SGK_JIT=1: kernels compiled from their sources at run time, without a pack. Each process is a fresh one."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from sgl_kernel import _library  # noqa: E402

ROOT = Path(__file__).parents[1]
CODE = """
import sys
import torch, sgl_kernel
torch.manual_seed(1)
x, w = torch.randn(7, 512).bfloat16().cuda(), torch.randn(512).bfloat16().cuda()
torch.save([sgl_kernel.rmsnorm(x, w).cpu(), sgl_kernel.silu_and_mul(x).cpu()], sys.argv[1])
"""

pytestmark = pytest.mark.skipif(bool({"act", "norm"} & _library.families_left_out), reason="a family is left out")


def run(tmp_path, name, **environment):
    """What the process said, and its results where it had any."""
    (tmp_path / "no packs").mkdir(exist_ok=True)
    environment = {**os.environ, "SGK_VERBOSE": "1", "SGK_PACK_PATH": str(tmp_path / "no packs"), "SGK_SOURCE": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path / name)], env=environment, capture_output=True, text=True, timeout=300)
    return done.stderr, torch.load(tmp_path / name) if done.returncode == 0 else None


def test_compiled_at_run_time(gpu, tmp_path):
    packs = os.environ.get("SGK_PACK_PATH", str(_library.find("packs", "packs")))
    _, expected = run(tmp_path, "pack", SGK_JIT="0", SGK_PACK_PATH=packs)
    cache = str(tmp_path / "cache")
    said, got = run(tmp_path, "jit", SGK_JIT="1", SGK_JIT_CACHE=cache)
    assert got is not None, said
    assert "compiled norm/norm.cu" in said and "compiled act/act.cu" in said
    if expected:            # by another compiler, perhaps
        torch.testing.assert_close(got, expected)
    said, again = run(tmp_path, "again", SGK_JIT="1", SGK_JIT_CACHE=cache)
    assert "compiled" not in said and all(torch.equal(g, a) for g, a in zip(got, again)), said


def test_refusals_are_sentences(gpu, tmp_path):
    said, got = run(tmp_path, "none", SGK_JIT="1", SGK_NVRTC=str(tmp_path / "libnvrtc.so"))
    assert got is None and "rmsnorm: no NVRTC: " in said
    said, got = run(tmp_path, "none", SGK_JIT="1", SGK_SOURCE=str(tmp_path))
    assert got is None and "norm/norm.cu" in said
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    with open(tmp_path / "csrc/ops/norm/norm.cu", "a") as file:
        file.write("\nthis is not CUDA C\n")
    said, got = run(tmp_path, "none", SGK_JIT="1", SGK_SOURCE=str(tmp_path))
    assert got is None and "norm/norm.cu" in said and "error" in said
