"""The C program of examples/c: compiled against the headers and the library that Python found, and run."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sgl_kernel import _library, get_include

SOURCE = Path(__file__).parents[1] / "examples" / "c" / "rmsnorm.c"
COMPILERS = {"c11": os.environ.get("CC", "cc").split(), "c++17": os.environ.get("CXX", "c++").split()}


@pytest.mark.parametrize("standard", COMPILERS)
@pytest.mark.skipif("norm" in _library.families_left_out, reason="this build leaves the norm family out")
def test_rmsnorm(tmp_path, standard):
    compiler, language = COMPILERS[standard], "c" if standard == "c11" else "c++"
    if not shutil.which(compiler[0]):
        pytest.skip(f"no {compiler[0]}")
    folder, program = _library.path.parent, tmp_path / "rmsnorm"
    subprocess.run([*compiler, f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{get_include()}", "-x", language, SOURCE, "-x", "none", f"-L{folder}", "-lsgl_kernel",
                    f"-Wl,-rpath,{folder}", "-ldl", "-lm", "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == f"SGL Kernel {_library.version}"
    # sin(0..3) / sqrt(mean of sin^2) times the weights 1, 1.01, 1.02, 1.03; over a row the mean is close to a half
    figures = [float(text) for text in lines[1].removeprefix("CPU: output[0][0..3] = ").split()]
    assert figures == pytest.approx([0.0, 1.2043, 1.3143, 0.2060], abs=2e-4)
    assert lines[2] == "refused: rmsnorm: weight has size 255 in dimension 0, expected 256 from [D]"
    assert lines[3].startswith("GPU: ")
