"""Operators whose result is an argument's memory."""
import pytest

torch = pytest.importorskip("torch")
from sgl_kernel import timestep_embedding, weak_ref_tensor  # noqa: E402


def embedding(t, dim, flip, shift, scale):
    half = dim // 2
    angle = scale * t.double()[:, None] * 10000.0 ** (-torch.arange(half, device=t.device, dtype=torch.float64) / (half - shift))
    return torch.cat((angle.cos(), angle.sin()) if flip else (angle.sin(), angle.cos()), 1)


@pytest.mark.parametrize("flip, shift, scale", [(False, 0.0, 1), (True, 1.0, 0.5), (False, 0.0, 1000)])
def test_timestep_embedding(device, flip, shift, scale):
    for t in (torch.tensor([0, 1, 999], device=device), torch.tensor([0.25, 512.5, 1000], device=device)):
        expected = embedding(t, 64, flip, shift, scale)
        torch.testing.assert_close(timestep_embedding(t, 64, flip, shift, scale).double(), expected, rtol=0, atol=2e-7)
        torch.testing.assert_close(timestep_embedding(t, 64, flip, shift, scale, dtype=torch.bfloat16).double(), expected, rtol=0, atol=2e-3)


def test_timestep_embedding_returns_its_output(device):
    t, output = torch.tensor([3.0, 4.0], device=device), torch.zeros(2, 16, device=device)
    result = torch.ops.sgl_kernel.timestep_embedding(t, output, 16, False, 0.0, 1.0, 10000)
    assert result is output or result.data_ptr() == output.data_ptr()
    assert torch.equal(output, timestep_embedding(t, 16))
    with pytest.raises(RuntimeError, match="timestep_embedding: output has size 16 in dimension 1, expected 32, which dim is"):
        torch.ops.sgl_kernel.timestep_embedding(t, output, 32, False, 0.0, 1.0, 10000)


def test_timestep_embedding_compiles(device):
    t = torch.arange(5.0, device=device)
    assert torch.equal(torch.compile(timestep_embedding, fullgraph=True, backend="aot_eager")(t, 32, True), timestep_embedding(t, 32, True))


def test_weak_ref_tensor_passes_others_on():
    assert weak_ref_tensor(None) is None and weak_ref_tensor(7) == 7


def test_weak_ref_tensor(gpu):
    memory = torch.cuda.memory_allocated()
    owner = torch.arange(24.0, device=gpu).view(4, 6)
    for tensor in (owner, owner.t(), owner[1:, ::2], owner[:0], owner.view(torch.int32), owner[2, 3]):
        weak = weak_ref_tensor(tensor)
        assert weak.data_ptr() == tensor.data_ptr() and weak.shape == tensor.shape and weak.stride() == tensor.stride()
        assert weak.dtype == tensor.dtype and weak.device == tensor.device and torch.equal(weak, tensor)
    weak_ref_tensor(owner).fill_(7)
    assert (owner == 7).all()
    del owner, tensor
    assert torch.cuda.memory_allocated() == memory
