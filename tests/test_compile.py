"""What holds for every operator: opcheck, torch.compile, inference mode, side streams, CUDA graphs, arguments that must be refused."""
import math
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
import sgl_kernel  # noqa: E402
from samples import SAMPLES, random  # noqa: E402
from sgl_kernel import _library  # noqa: E402

TAKES_SEVERAL_DEVICES = {"copy_to_gpu_no_ce"}
# Their result is an argument's memory, which torch.compile does not take from an operator: tests/test_aliases.py, tests/test_flash_attn.py, tests/test_sparse_attn.py.
RETURN_AN_ARGUMENT = {"weak_ref_tensor", "timestep_embedding", "fwd", "fwd_sparse", "varlen_fwd_sparse"}
OPERATORS = [name + (f".{overload}" if overload else "") for name, overload in _library.torch_operators() if name not in RETURN_AN_ARGUMENT]


def operator(name):
    base, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.sgl_kernel, base), overload or "default")


def schema_arguments(name):
    return operator(name)._schema.arguments


def written(name):
    return [i for i, a in enumerate(schema_arguments(name)) if a.alias_info and a.alias_info.is_write]


def copies(arguments):
    return [a.clone() if isinstance(a, torch.Tensor) else copies(a) if isinstance(a, list) else a for a in arguments]


def plain(t):
    """Numbers that torch can compare: the bytes of 8-bit floats, and a number for NaN."""
    if t.is_floating_point() and t.element_size() == 1:
        return t.view(torch.uint8)
    return t.nan_to_num(nan=-7.0) if t.is_floating_point() else t


def written_tensors(name, arguments):
    return [t for i in written(name) for t in (arguments[i] if isinstance(arguments[i], list) else [arguments[i]])]


def run(op, name, arguments):
    """The results, and what the operator left in the arguments that it writes."""
    arguments = copies(arguments)
    result = op(*arguments)
    results = [] if result is None else list(result) if isinstance(result, (tuple, list)) else [result]
    return [r for r in results + written_tensors(name, arguments) if isinstance(r, torch.Tensor)]


def assert_same(got, expected):
    assert len(got) == len(expected) and got
    for g, e in zip(got, expected):
        assert torch.equal(plain(g), plain(e))


@pytest.fixture(params=OPERATORS)
def name(request):
    assert request.param in SAMPLES, f"tests/samples.py has no call of {request.param}"
    return request.param


def test_every_sample_is_of_an_operator():
    assert _library.families_left_out or not set(SAMPLES) - set(OPERATORS)


def test_sample_does_something(name, device):
    before = SAMPLES[name](4, device)
    after = run(operator(name), name, before)
    if written(name):
        initial = written_tensors(name, before)
        assert any(not torch.equal(plain(a), plain(b)) for a, b in zip(after[-len(initial):], initial))
    assert_same(run(operator(name), name, before), after)


def test_opcheck(name, device):
    # In-place operators compare with NaN-free outputs: what torch.empty holds is not compared, but may be NaN.
    arguments = SAMPLES[name](4, device)
    for i in written(name):
        if isinstance(arguments[i], torch.Tensor) and arguments[i].element_size() > 1:
            arguments[i].nan_to_num_(0, 0, 0)
    tests = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if any(isinstance(a, torch.Tensor) and a.is_floating_point() and a.element_size() == 1 for a in arguments):
        tests.remove("test_schema")         # it multiplies, which torch does not do with 8-bit floats
    torch.library.opcheck(operator(name), tuple(arguments), test_utils=tests)


def dynamic_dimensions(name, device):
    """Per argument, the dimensions that follow n."""
    small, large = SAMPLES[name](4, device), SAMPLES[name](5, device)
    return [[d for d in range(a.ndim) if a.shape[d] != b.shape[d]] if isinstance(a, torch.Tensor) else [] for a, b in zip(small, large)]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_with_dynamic_shapes(name, device, backend):
    op, dynamic = operator(name), dynamic_dimensions(name, device)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(op_as_function(op), fullgraph=True, backend=count)
    for n in (4, 7, 12, 9):
        arguments = SAMPLES[name](n, device)
        expected = run(op, name, arguments)

        def traced(*given):
            for argument, dims in zip(given, dynamic):
                for d in dims:
                    torch._dynamo.mark_dynamic(argument, d)
            return compiled(*given)

        assert_same(run(traced, name, arguments), expected)
    # torch takes a Python int for a constant until it has seen it change, whatever the operator: one graph more.
    ints = any(type(a) is int and a != b for a, b in zip(SAMPLES[name](4, device), SAMPLES[name](5, device)))
    assert len(graphs) == 1 + ints, f"{len(graphs)} graphs were compiled for four sizes"


def op_as_function(op):
    def call(*arguments):
        return op(*arguments)
    return call


def test_inference_mode(name, device):
    arguments = SAMPLES[name](4, device)
    expected = run(operator(name), name, arguments)
    with torch.inference_mode():
        got = run(operator(name), name, arguments)
    assert_same([g.clone() for g in got], expected)


def test_inputs_may_require_grad(name, device):
    arguments = SAMPLES[name](4, device)
    expected = run(operator(name), name, arguments)
    for i, _ in tensors(name, arguments):
        if i not in written(name) and arguments[i].is_floating_point():
            arguments[i].requires_grad_()
    assert_same([g.detach() for g in run(operator(name), name, arguments)], expected)


# ---- refusals --------------------------------------------------------------------------------------------------------------------

def tensors(name, arguments):
    """Places of tensor arguments; second, whether None is legal there."""
    return [(i, "Optional" in str(a.type)) for i, a in enumerate(schema_arguments(name)) if isinstance(arguments[i], torch.Tensor)]


def refused(op, arguments, kind=RuntimeError):
    before = copies(arguments)
    with pytest.raises(kind) as caught:
        op(*arguments)
    for a, b in zip(arguments, before):
        if isinstance(a, torch.Tensor) and a.device.type != "meta":
            assert a.dtype.is_complex or torch.equal(plain(a), plain(b))
    return str(caught.value)


def test_none_for_a_tensor(name, device):
    for i, optional in tensors(name, SAMPLES[name](4, device)):
        arguments = SAMPLES[name](4, device)
        arguments[i] = None
        if not any(isinstance(a, torch.Tensor) for a in arguments):
            refused(operator(name), arguments)      # torch finds no device to ask, and says so itself
        elif not optional:
            assert refused(operator(name), arguments) == f"{name.partition('.')[0]}: {schema_arguments(name)[i].name} is None, expected a tensor"


def test_wrong_dtype(name, device):
    for i, _ in tensors(name, SAMPLES[name](4, device)):
        arguments = SAMPLES[name](4, device)
        arguments[i] = arguments[i].to(torch.complex64)
        message = refused(operator(name), arguments)
        # One C function may serve several operators: it says its own name.
        assert name.startswith(message.partition(":")[0]) and f": {schema_arguments(name)[i].name} has dtype " in message, message


def test_meta_among_the_arguments(name, device):
    places = tensors(name, SAMPLES[name](4, device))
    if len(places) == 1 and not written(name):      # a functional operator of one tensor: its fake answers, as it should
        arguments = SAMPLES[name](4, device)
        arguments[places[0][0]] = arguments[places[0][0]].to("meta")
        results = operator(name)(*arguments)
        assert all(result.is_meta for result in (results if isinstance(results, tuple) else (results,)))
        return
    for i, _ in places:
        arguments = SAMPLES[name](4, device)
        arguments[i] = arguments[i].to("meta")
        refused(operator(name), arguments)      # NotImplementedError is one


def test_mixed_devices(name, gpu):
    arguments = SAMPLES[name](4, gpu)
    places = [i for i, _ in tensors(name, arguments)]
    if len(places) < 2 or name in TAKES_SEVERAL_DEVICES:
        return
    for i in places:
        arguments = SAMPLES[name](4, gpu)
        arguments[i] = arguments[i].cpu()
        message = refused(operator(name), arguments)
        assert "the CPU" in message and "CUDA device" in message, message


def test_numbers_out_of_range(name, device):
    for i, argument in enumerate(schema_arguments(name)):
        arguments = SAMPLES[name](4, device)
        if isinstance(arguments[i], float):
            arguments[i] = 1e300
            message = refused(operator(name), arguments)
            assert message == f"{name.partition('.')[0]}: {argument.name} is 1e+300, expected a number within the range of float32"


# ---- streams and graphs ----------------------------------------------------------------------------------------------------------

def test_side_stream(name, gpu):
    arguments = SAMPLES[name](64, gpu)
    expected = run(operator(name), name, arguments)
    stream = torch.cuda.Stream()
    held = torch.cuda.Event()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)       # what follows must wait for this, and so must not have run on the default stream
        late = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        got = run(operator(name), name, late)
        held.record()
    held.synchronize()
    assert_same(got, expected)


def test_cuda_graph(name, gpu):
    arguments = SAMPLES[name](64, gpu)
    expected = run(operator(name), name, arguments)
    static = copies(arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = operator(name)(*static)
    for given, fresh in zip(static, arguments):
        for to, source in zip(given, fresh) if isinstance(given, list) else [(given, fresh)]:
            if isinstance(to, torch.Tensor):
                to.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    results = [] if result is None else list(result) if isinstance(result, (tuple, list)) else [result]
    assert_same([r for r in results + written_tensors(name, static) if isinstance(r, torch.Tensor)], expected)


FRESH_PROCESSES = 12


@pytest.mark.parametrize("part", range(FRESH_PROCESSES))
def test_first_call_inside_a_capture(part, gpu):
    """Fresh processes: the library starts, and each operator's kernels are loaded, while torch's default, global capture is under way."""
    names = OPERATORS[part::FRESH_PROCESSES]
    code = f"""
import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
import torch
import sgl_kernel
from samples import SAMPLES
bits = {{1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}}
for name in {names!r}:
    arguments = SAMPLES[name](64, "cuda")
    base, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.sgl_kernel, base), overload or "default")
    fresh = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op(*arguments)
    graph.replay()
    op(*fresh)
    torch.cuda.synchronize()
    assert all(torch.equal(a.view(bits[a.element_size()]), b.view(bits[b.element_size()])) for a, b in zip(arguments, fresh) if isinstance(a, torch.Tensor)), name
    print(name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout.split() == names, result.stderr


# ---- the Python functions --------------------------------------------------------------------------------------------------------

def layer(x, residual, norm, gate_up, down):
    """A piece of a model through the public functions, allocations included."""
    sgl_kernel.fused_add_rmsnorm(x, residual, norm)
    hidden = sgl_kernel.silu_and_mul(sgl_kernel.linear(x, gate_up))
    return sgl_kernel.rmsnorm(sgl_kernel.linear(hidden, down), norm)


@pytest.mark.skipif(bool({"norm", "act", "gemm"} & _library.families_left_out), reason="a family is left out")
def test_functions_compile(device):
    weights = [random(32, device=device), random(2 * 48, 32, device=device) / 8, random(32, 48, device=device) / 8]
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("inductor")(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=count)
    for n in (4, 9, 6):
        x, residual = random(n, 32, device=device), random(n, 32, device=device, seed=1)
        expected_x, expected_residual = x.clone(), residual.clone()
        expected = layer(expected_x, expected_residual, *weights)
        for t in (x, residual):
            torch._dynamo.mark_dynamic(t, 0)
        assert torch.equal(compiled(x, residual, *weights), expected)
        assert torch.equal(x, expected_x) and torch.equal(residual, expected_residual)
    assert len(graphs) == 1


@pytest.mark.skipif("norm" in _library.families_left_out, reason="the family is left out")
def test_rmsnorm_is_right(device):
    x, w = random(7, 40, device=device), random(40, device=device)
    expected = torch.nn.functional.rms_norm(x, (40,), w, 1e-6)
    assert torch.allclose(sgl_kernel.rmsnorm(x, w), expected, atol=1e-5)
    out = torch.empty_like(x)
    assert sgl_kernel.rmsnorm(x, w, out=out) is out and torch.allclose(out, expected, atol=1e-5)
    assert math.isfinite(out.sum().item())


@pytest.mark.skipif("act" in _library.families_left_out, reason="the family is left out")
def test_silu_and_mul_checks(device):
    x = random(3, 16, device=device)
    expected = torch.nn.functional.silu(x[:, :8]) * x[:, 8:]
    assert torch.allclose(sgl_kernel.silu_and_mul(x), expected, atol=1e-6)
    with pytest.raises(ValueError, match="The pointers must be multiple of 16 bytes."):
        sgl_kernel.silu_and_mul(random(3, 6, device=device))
    for out in (torch.empty(8), torch.empty(4, 8), torch.empty(3, 7)):
        with pytest.raises(AssertionError, match="!="):
            sgl_kernel.silu_and_mul(x, out.to(device))


@pytest.mark.skipif("kvcache" in _library.families_left_out, reason="the family is left out")
def test_set_kv_buffer(device):
    from sgl_kernel.memory import set_kv_buffer_kernel
    k, v, loc = random(3, 2, 8, device=device), random(3, 2, 8, device=device, seed=1), torch.tensor([5, 0, 9], device=device)
    for fallback in (False, True):
        k_cache, v_cache = torch.zeros(12, 2, 8, device=device), torch.zeros(12, 2, 8, device=device)
        set_kv_buffer_kernel(k_cache, v_cache, loc, k, v, fallback=fallback)
        assert torch.equal(k_cache[loc], k) and torch.equal(v_cache[loc], v)
        assert k_cache.count_nonzero() == k.count_nonzero()


@pytest.mark.skipif("moe" in _library.families_left_out, reason="shuffle_rows is left out")
def test_waits_for_the_kernel_before(name, gpu):
    """Launched early, behind a long kernel of ours that writes its tensors last, it reads none of them too soon."""
    arguments = SAMPLES[name](4, gpu)
    expected = run(operator(name), name, arguments)
    places = [i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.is_cuda and a.numel() and a.is_contiguous()]
    if not places:
        return
    width, long, offset, tail, spots = 4096, 1 << 16, 0, [], {}
    for i in places:
        raw = arguments[i].flatten().view(torch.uint8)
        spots[i] = (offset, len(raw))
        tail.append(torch.nn.functional.pad(raw, (0, -len(raw) % 256)))
        offset += len(tail[-1])
    tail = torch.nn.functional.pad(torch.cat(tail), (0, -offset % width)).view(-1, width)
    source = torch.cat((torch.zeros(64, width, dtype=torch.uint8, device=gpu), tail))
    rows = torch.cat((torch.arange(long, device=gpu) % 64, torch.arange(64, 64 + len(tail), device=gpu))).int()
    target = torch.empty(len(rows), width, dtype=torch.uint8, device=gpu)
    for _ in range(3):
        target.zero_()
        late = copies(arguments)
        for i, (start, size) in spots.items():
            late[i] = target[long:].flatten()[start:start + size].view(arguments[i].dtype).view(arguments[i].shape)
        torch.cuda.synchronize()
        torch.ops.sgl_kernel.shuffle_rows.default(source, rows, target)
        result = operator(name)(*late)
        results = [] if result is None else list(result) if isinstance(result, (tuple, list)) else [result]
        assert_same([r for r in results + [late[i] for i in written(name)] if isinstance(r, torch.Tensor)], expected)
