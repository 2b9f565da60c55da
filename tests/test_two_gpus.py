"""Two GPUs in one process: work goes where the tensors are, whichever device is current, also from several threads and into a capture."""
import subprocess
import sys
import threading

import pytest

torch = pytest.importorskip("torch")
import sgl_kernel  # noqa: E402
from sgl_kernel import _library  # noqa: E402

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="needs two GPUs"),
              pytest.mark.skipif("norm" in _library.families_left_out, reason="the family is left out")]


def case(seed, device):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(33, 512, generator=generator).to(device), torch.randn(512, generator=generator).to(device)]


def test_where_the_tensors_are():
    torch.cuda.set_device(0)
    expected = sgl_kernel.rmsnorm(*case(1, "cuda:0"))
    got = sgl_kernel.rmsnorm(*case(1, "cuda:1"))
    assert got.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    assert torch.equal(got.cpu(), expected.cpu())
    side = torch.cuda.Stream("cuda:1")
    with torch.cuda.stream(side):
        again = sgl_kernel.rmsnorm(*case(1, "cuda:1"))
    side.synchronize()
    assert torch.equal(again.cpu(), expected.cpu())


def test_mixed_devices_are_refused():
    x, w = case(2, "cuda:0")
    with pytest.raises(RuntimeError, match="rmsnorm: .* is on CUDA device 1, expected CUDA device 0 like"):
        torch.ops.sgl_kernel.rmsnorm(torch.empty_like(x), x, w.to("cuda:1"), 1e-6, False)


def test_threads_on_both():
    expected = {seed: sgl_kernel.rmsnorm(*case(seed, "cuda:0")).cpu() for seed in range(8)}
    wrong = []

    def work(seed):
        for i in range(100):
            device = f"cuda:{(seed + i) % 2}"
            if not torch.equal(sgl_kernel.rmsnorm(*case(seed, device)).cpu(), expected[seed]):
                wrong.append((seed, i, device))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_first_call_inside_a_capture_on_the_second():
    code = """
import torch, sgl_kernel
torch.cuda.set_device(1)
x, w = torch.randn(5, 64, device="cuda:1"), torch.randn(64, device="cuda:1")
out = torch.empty_like(x)
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    sgl_kernel.rmsnorm(x, w, out=out)
graph.replay()
assert torch.equal(out, sgl_kernel.rmsnorm(x, w)), "the replay differs"
assert torch.equal(out.cpu(), sgl_kernel.rmsnorm(x.to("cuda:0"), w.to("cuda:0")).cpu()), "the devices differ"
print("fine")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout == "fine\n", result.stderr
