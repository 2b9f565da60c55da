"""The command sgl-kernel: info, check, bench."""
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
import sgl_kernel  # noqa: E402
from sgl_kernel import _library  # noqa: E402

pytestmark = pytest.mark.skipif(not _library.find("bin/sgk-check", "sgk-check").exists() or "norm" in _library.families_left_out,
                                reason="this build has no sgk-check or no norms")


def sgl_kernel_command(*arguments):
    return subprocess.run([sys.executable, "-m", "sgl_kernel", *arguments], capture_output=True, text=True, timeout=500)


def test_version():
    assert sgl_kernel_command("--version").stdout == f"sgl-kernel {sgl_kernel.__version__}\n"


def test_info():
    result = sgl_kernel_command("info", "--only=rmsnorm")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"sgl-kernel {sgl_kernel.__version__}, {_library.path}\n")
    for word in ("CPU level", "GPU", "packs", "torch", "operators registered", "fused_add_rmsnorm"):
        assert word in result.stdout, result.stdout


def test_info_as_json():
    result = sgl_kernel_command("info", "--only=rmsnorm", "--json")
    facts = json.loads(result.stdout)
    assert facts["version"] == sgl_kernel.__version__
    assert {"rmsnorm", "fused_add_rmsnorm"} <= {v["operator"] for v in facts["versions"]}


@pytest.mark.skipif("gemm" in _library.families_left_out, reason="the family is left out")
def test_info_for_a_shape():
    result = sgl_kernel_command("info", "--op=linear", "--shape=100,4096,512", "--json")
    versions = json.loads(result.stdout)["versions"]
    assert versions and all(v["operator"] == "linear" and "100x4096x512" in v["example"] for v in versions)
    for option, words in (("--shape=4,0", "--shape=4,0 is not a list of 1 to 8 sizes"), ("--shape=4", "linear takes three sizes, rows, columns and depth")):
        refused = sgl_kernel_command("info", "--op=linear", option)
        assert refused.returncode and words in refused.stderr, refused.stderr


def test_check_passes_its_options_and_code_on():
    result = sgl_kernel_command("check", "--list")
    assert result.returncode == 0 and "rmsnorm" in result.stdout
    assert sgl_kernel_command("check", "--no-such-option").returncode == 2


def test_processes_that_share_the_cases(tmp_path):
    program, options = str(_library.find("bin/sgk-check", "sgk-check")), ["--only=rmsnorm", "--level=ref", "--small", "--seed=3"]
    results = []
    for jobs in (1, 3):
        subprocess.run([program, *options, f"--jobs={jobs}", f"--json={tmp_path}/{jobs}.json"], check=True, capture_output=True)
        results.append(json.loads((tmp_path / f"{jobs}.json").read_text()))
    assert results[0]["cases"] == results[1]["cases"] > 10


def test_bench(tmp_path):
    written, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    result = sgl_kernel_command("bench", "--only=rmsnorm_f32", "--level=avx2", "--level=ref", f"--json={written}", f"--plot={picture}")
    assert result.returncode == 0, result.stderr
    found = json.loads(written.read_text())
    assert found["rows"] and all("rmsnorm" in row["case"] for row in found["rows"])
    assert "rmsnorm" in result.stdout and "GB/s" in result.stdout
    pytest.importorskip("matplotlib")
    assert os.path.getsize(picture) > 5000


@pytest.mark.parametrize("options, words", [
    (["--only=nonsense", "--level=ref"], "sgl-kernel: no case to time on this machine: nonsense, --level ref; `sgl-kernel info` names all operators"),
    (["--level=nonsense"], "sgk-check: --level=nonsense is none of "),
    (["--json=/no/such/folder/bench.json"], "sgl-kernel: /no/such/folder/bench.json cannot be written"),
    (["--plot=/"], "sgl-kernel: / cannot be written"),
])
def test_bench_refuses(options, words):
    result = sgl_kernel_command("bench", *options)
    assert result.returncode and result.stderr.startswith(words) and len(result.stderr.splitlines()) == 1, result.stderr


@pytest.mark.skipif(not sgl_kernel._ops.torch.cuda.is_available(), reason="needs a GPU")
def test_bench_of_the_gpu_in_turns(tmp_path):
    rows = []
    for jobs in (1, 3):
        written = tmp_path / f"{jobs}.json"
        result = sgl_kernel_command("bench", "--only=add_rmsnorm", "--from=8", "--level=cuda", f"--jobs={jobs}", f"--json={written}")
        assert result.returncode == 0, result.stderr
        found = json.loads(written.read_text())
        assert found["gpu"] and found["ceilings"]["gpu"]["copy_gigabytes_per_second"] > 0
        rows.append([row["case"] for row in found["rows"]])
    assert rows[0] == rows[1] and len(rows[0]) > 2


def test_unknown_argument_is_one_sentence():
    result = sgl_kernel_command("info", "--nonsense")
    assert result.returncode == 2 and result.stderr.endswith("error: unknown arguments: --nonsense\n")
