"""csrc/torch: every kind of argument and result, ownership, errors. Uses the operators of csrc/torch/test_ops.def."""
import math
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
import sgl_kernel  # noqa: E402
from sgl_kernel import _library, _ops  # noqa: E402

ops = torch.ops.sgl_kernel_test
NUMBERS = 8


def told(op, *arguments, **options):
    """What an operator that writes numbers into its first argument wrote."""
    out = torch.full((NUMBERS,), math.nan, dtype=torch.float64)
    op(out, *arguments, **options)
    return [x for x in out.tolist() if not math.isnan(x)]


X = torch.arange(12.0).view(3, 4)
V = torch.arange(5.0)
W = torch.arange(7.0)


def test_tensors():
    assert told(ops.tensors, X, None, None) == [3, 4, 4, 1, -1, -1]
    assert told(ops.tensors, X.t(), V, V.clone()) == [4, 3, 1, 4, 5, 5]
    assert told(ops.tensors, X[1:, 1:3], V[:0], None) == [2, 2, 4, 1, 0, -1]
    assert told(ops.tensors, X[0, 0].expand(2, 7), None, None)[:4] == [2, 7, 0, 0]


def test_plain_numbers():
    assert told(ops.scalars, 2**40, -3, 0.5, True) == [2**40, -3, 0.5, 1]
    assert told(ops.scalars, True, torch.tensor(7), torch.tensor(2.0), 0) == [1, 7, 2, 0]
    assert told(ops.narrow, -2**31, None, 0.1) == [-2**31, 5, torch.tensor(0.1).item()]
    assert told(ops.narrow, 1, 2**31 - 1, -math.inf) == [1, 2**31 - 1, -math.inf]


def test_optionals():
    assert told(ops.optionals) == [-7, -7, 1, -7, -7, -7]
    assert told(ops.optionals, 0, 0.0, False, torch.float32, [], "a") == [0, 0, 0, 0, 0, ord("a")]
    assert told(ops.optionals, l=[4, 5, 6], t=torch.bfloat16) == [-7, -7, 1, 3, 3, -7]


def test_text_and_kinds():
    assert told(ops.text, "größe") == [7, ord("g")]
    assert told(ops.kinds, torch.float16, "cpu", torch.strided, torch.contiguous_format) == [2, 1, 0]
    assert told(ops.kinds, torch.float8_e4m3fn, "cuda:3", torch.strided, torch.channels_last) == [4, 2, 3]


def test_lists():
    assert told(ops.lists, [1, 2, 3], (0.5, 0.25), 9) == [3, 6, 2, 0.75, 2, 18]
    assert told(ops.lists, [], [], (1, 2)) == [0, 0, 0, 0, 2, 3]
    assert told(ops.tensor_lists, [X, V], [V], [None, X, None]) == [6, 17, 5, 12, 2, 0]
    assert told(ops.tensor_lists, [], [], []) == [0, 0, 0, 0, 0, 0]


def test_results():
    assert torch.equal(ops.one(V), V)
    assert torch.equal(ops.one.v1(V, 3), V)
    assert ops.shaped(X, 5).shape == (5, 4) and ops.shaped(X, 0, torch.int8).dtype == torch.int8
    copy, count = ops.several(V)
    assert torch.equal(copy, V) and count.shape == () and count.item() == 5
    assert ops.maybe(V, False)[1] is None and ops.maybe(V, True)[1].item() == 5
    items = ops.list_of_tensors(V)
    assert isinstance(items, list) and torch.equal(items[0], V) and items[1].tolist() == [5]
    assert ops.list_of_ints(-1) == [-1, 0, 1]
    assert ops.plain(-5, 2.5, True) == (-5, 2.5, True)
    assert ops.described(V.to(torch.float8_e5m2)) == (23, torch.device("cpu"))


def test_generator():
    def draw(generator):
        out = torch.zeros(64, dtype=torch.float64)
        ops.draw(out, generator)
        return out

    torch.manual_seed(3)
    first, second = draw(None), draw(None)
    torch.manual_seed(3)
    assert torch.equal(draw(None), first) and not torch.equal(first, second)
    assert 0.3 < first.mean() < 0.7 and first.min() >= 0 and first.max() <= 1
    if torch.__version__ >= "2.13":
        g = torch.Generator().manual_seed(11)
        a = draw(g)
        assert not torch.equal(draw(g), a)
        assert torch.equal(draw(torch.Generator().manual_seed(11)), a)


def test_scratch_and_loop():
    assert told(ops.scratch, 4096) == [1, 2, 1]
    for n in (0, 1, 15, 16, 17, 100_000):
        out = torch.zeros(n, dtype=torch.float64)
        ops.loop(out)
        assert (out == 1).all()


# ---- ownership: every kind of slot, many times, without growth -------------------------------------------------------------------

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


OUT = torch.zeros(NUMBERS, dtype=torch.float64)
CALLS = {
    "tensors": lambda: ops.tensors(OUT, X, None, None),
    "tensors, optional": lambda: ops.tensors(OUT, X, V, W),
    "scalars": lambda: ops.scalars(OUT, 1, 2, 0.5, True),
    "optionals, none": lambda: ops.optionals(OUT),
    "optionals, all": lambda: ops.optionals(OUT, 1, 0.5, True, torch.float16, [1, 2, 3], "text of more than the fifteen letters kept inline"),
    "narrow": lambda: ops.narrow(OUT, 1, 2, 0.5),
    "text": lambda: ops.text(OUT, "text of more than the fifteen letters kept inline"),
    "kinds": lambda: ops.kinds(OUT, torch.float16, "cpu", torch.strided, torch.contiguous_format),
    "lists": lambda: ops.lists(OUT, [1, 2, 3], [0.5, 0.25], 9),
    "tensor_lists": lambda: ops.tensor_lists(OUT, [X, V], [V], [None, X]),
    "draw": lambda: ops.draw(OUT, None),
    "scratch": lambda: ops.scratch(OUT, 4096),
    "one": lambda: ops.one(V),
    "several": lambda: ops.several(V),
    "maybe, none": lambda: ops.maybe(V, False),
    "maybe, made": lambda: ops.maybe(V, True),
    "list_of_tensors": lambda: ops.list_of_tensors(V),
    "list_of_ints": lambda: ops.list_of_ints(1),
    "plain": lambda: ops.plain(1, 0.5, True),
    "described": lambda: ops.described(V),
}
if torch.__version__ >= "2.13":
    GENERATOR = torch.Generator()
    CALLS["draw, generator"] = lambda: ops.draw(OUT, GENERATOR)


def grown(call, times):
    for _ in range(2000):
        call()
    before = resident()
    for _ in range(times):
        call()
    return resident() - before


@pytest.mark.parametrize("name", CALLS)
def test_no_leak(name):
    # The smallest thing that can be lost is a box of 32 bytes a call: 3.2 MB.
    assert grown(CALLS[name], 100_000) < 1_500_000


def refused(call):
    with pytest.raises(RuntimeError):
        call()


BAD_CALLS = {
    "C call": lambda: ops.fail(V, V, [X, V], "text of more than the fifteen letters kept inline", -1),
    "undefined tensor": lambda: ops.fail(None, V, [X, V], "text of more than the fifteen letters kept inline", -1),
    "range": lambda: ops.fail(V, V, [X, V], "text of more than the fifteen letters kept inline", 2**40),
    "result": lambda: ops.shaped(X, -1),
    "list": lambda: ops.tensor_lists(OUT, [X, X.to(torch.complex128)], [V], [None]),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_no_leak_when_refused(name):
    # What is lost would be a tensor handle and more: at least 64 bytes a call, 1.9 MB.
    assert grown(lambda: refused(BAD_CALLS[name]), 30_000) < 1_000_000


def test_leak_test_notices():
    kept = []
    assert grown(lambda: kept.append(bytearray(8)), 100_000) > 1_500_000


# ---- errors ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("call, message", [
    (lambda: ops.tensors(OUT, None, V, None), "tensors: x is None, expected a tensor"),
    (lambda: ops.narrow(OUT, 2**31, None, 0.0), "narrow: n is 2147483648, expected a number that fits in 32 bits"),
    (lambda: ops.narrow(OUT, 0, -2**31 - 1, 0.0), "narrow: m is -2147483649, expected a number that fits in 32 bits"),
    (lambda: ops.narrow(OUT, 0, None, 1e39), "narrow: x is 1e+39, expected a number within the range of float32"),
    (lambda: ops.optionals(OUT, x=-1e300), "optionals: x is -1e+300, expected a number within the range of float32"),
    (lambda: ops.text(OUT, "a\0b"), "text: mode holds a NUL character, expected text"),
    (lambda: ops.one(V.to(torch.complex128)), "one: x has a dtype that no operator takes (torch's code 10), expected a float, an integer or bool"),
    (lambda: ops.tensor_lists(OUT, [V, V.to(torch.complex128)], [], []),
     "tensor_lists: x[1] has a dtype that no operator takes (torch's code 10), expected a float, an integer or bool"),
    (lambda: ops.shaped(X, 1, torch.complex64), "shaped: dtype is a dtype that no operator makes (torch's code 9), expected a float or an integer"),
    (lambda: ops.shaped(X, -1), "shaped: result 0 would have size -1 in dimension 0, expected a size that memory can hold"),
    (lambda: ops.shaped(X, 2**62), "shaped: result 0 would have size 4611686018427387904 in dimension 0, expected a size that memory can hold"),
    (lambda: ops.shaped(X.to(torch.int16), 1), "shaped: x has dtype i16, expected one of this library's number formats"),
    (lambda: ops.fail(V, None, [], "", -4), "fail: status is -4, as asked for"),
])
def test_error_text(call, message):
    with pytest.raises(RuntimeError) as caught:
        call()
    assert str(caught.value) == message
    assert caught.type is RuntimeError


def test_status_chooses_the_exception():
    call = lambda status: ops.fail(V, None, [], "", status)  # noqa: E731
    assert _ops.operator("no_such_operator") is None
    for status, kind in ((-1, RuntimeError), (_library.UNSUPPORTED, NotImplementedError), (-4, RuntimeError)):
        with pytest.raises(RuntimeError) as caught:
            _ops.translated(call)(status)
        assert caught.type is kind and str(caught.value) == f"fail: status is {status}, as asked for"
    # An error of torch's own after an unsupported call stays what it is.
    with pytest.raises(RuntimeError) as caught:
        _ops.translated(call)(_library.UNSUPPORTED)
    with pytest.raises(RuntimeError) as caught:
        _ops.translated(lambda: ops.fail(V))()
    assert caught.type is RuntimeError and "missing value" in str(caught.value)


def test_sparse_and_meta_are_refused():
    with pytest.raises(NotImplementedError):
        ops.one(torch.eye(3).to_sparse())
    with pytest.raises(NotImplementedError):
        ops.one(V.to("meta"))


def test_nothing_is_registered_twice():
    assert _library.library.sgk_torch_bind() == 0
    assert told(ops.scalars, 1, 2, 3.0, False) == [1, 2, 3, 0]


# ---- processes -------------------------------------------------------------------------------------------------------------------

def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)


def test_forked_child():
    code = """
import os, torch, sgl_kernel
n = 1_000_000
out = torch.zeros(n, dtype=torch.float64)
torch.ops.sgl_kernel_test.loop(out)     # torch's pool has threads now
pid = os.fork()
if pid == 0:
    torch.ops.sgl_kernel_test.loop(out)
    os._exit(0 if (out[:8].tolist() == [2.0] * 8 and out[-1].item() == 2.0) else 1)
_, status = os.waitpid(pid, 0)
assert status == 0, status
torch.ops.sgl_kernel_test.loop(out)
assert (out == 2).all()                 # the child had its own copy
print("fine")
"""
    result = python(code)
    assert result.returncode == 0 and result.stdout == "fine\n", result.stderr


def test_second_owner_is_told():
    name = _library.torch_operators()[0][0]
    code = f"""
import torch
theirs = torch.library.Library("sgl_kernel", "FRAGMENT")
theirs.define("{name}(Tensor x) -> Tensor")
theirs.impl("{name}", lambda x: x + 1, "CPU")
try:
    import sgl_kernel
except RuntimeError as error:
    print(error)
assert torch.ops.sgl_kernel.{name}(torch.ones(1)).item() == 2
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"sgl_kernel: torch.ops.sgl_kernel.{name} was already registered by another library; uninstall")


def test_without_torch(tmp_path):
    """A torch that cannot be imported, or is too old, leaves a package that imports and says what is missing."""
    code = """
import sgl_kernel
print(sgl_kernel.__version__)
try:
    sgl_kernel.rmsnorm(None, None)
except ImportError as error:
    print(error)
"""
    (tmp_path / "torch").mkdir()
    for source, reason in (("raise ImportError('broken')", "torch is installed but cannot be imported: broken"),
                           ("__version__ = '2.9.1+cpu'", "torch 2.9.1+cpu is too old")):
        (tmp_path / "torch" / "__init__.py").write_text(source)
        result = python(code, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{sgl_kernel.__version__}\nrmsnorm needs torch 2.10 or newer: {reason}\n"
    hidden = "import sys, importlib.util\nfind = importlib.util.find_spec\n" \
             "importlib.util.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
    result = python(hidden + code)
    assert result.stdout == f"{sgl_kernel.__version__}\nrmsnorm needs torch 2.10 or newer: torch is not installed\n"


def test_missing_library(tmp_path):
    result = python("import sgl_kernel", SGK_LIBRARY=str(tmp_path / "libsgl_kernel.so"))
    assert result.returncode != 0
    assert f"ImportError: sgl_kernel: {tmp_path}/libsgl_kernel.so does not exist" in result.stderr


def test_version_is_one():
    text = open(os.path.join(os.path.dirname(__file__), "..", "VERSION")).read().strip()
    assert sgl_kernel.__version__ == text


def test_include_folder():
    assert os.path.exists(os.path.join(sgl_kernel.get_include(), "sgl_kernel.h"))


def test_a_family_that_is_left_out(monkeypatch):
    monkeypatch.setattr(_library, "families_left_out", frozenset(["norm"]))
    left_out = _ops.provided_by("norm")(sgl_kernel.rmsnorm)
    with pytest.raises(NotImplementedError) as caught:
        left_out(V, V)
    assert str(caught.value) == "rmsnorm is not in this build of sgl_kernel: it was configured with SGL_KERNEL_ENABLE_NORM=OFF"
    assert _ops.provided_by("act")(V) is V


# ---- fakes -----------------------------------------------------------------------------------------------------------------------

def test_an_engine_may_replace_a_fake():
    code = """
import torch, sgl_kernel
from sgl_kernel import _ops
_ops.register_fake("one", "sgl_kernel_test")(lambda x: torch.empty_like(x))
op = torch.ops.sgl_kernel_test.one
assert op(torch.ones(3, device="meta")).shape == (3,)
assert torch.compile(lambda x: op(x) + 1, fullgraph=True, backend="aot_eager")(torch.ones(3)).tolist() == [2, 2, 2]
torch._dynamo.reset()
try:
    torch.ops.sgl_kernel_test.several.default      # no fake: unaffected
    _ops.register_fake("tensors", "sgl_kernel_test")(lambda out, x, y, z: None)
    torch.ops.sgl_kernel_test.tensors(torch.ones(8), torch.ones(2, 2, device="meta"), None, None)
except RuntimeError as error:
    print(error)
seen = []
@torch.library.register_fake("sgl_kernel_test::one")
def theirs(x):
    seen.append(1)
    return torch.empty_like(x)
assert torch.compile(lambda x: op(x) + 1, fullgraph=True, backend="aot_eager")(torch.ones(3)).tolist() == [2, 2, 2]
assert seen and op(torch.ones(3, device="meta")).shape == (3,)
for name in {name for name, _ in sgl_kernel._library.torch_operators()}:      # ours are in place and have no fake
    torch.library.register_fake(f"sgl_kernel::{name}")(lambda *arguments: None)
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "tensors: tensors are on cpu, meta, expected one device\n"


def test_results_that_are_an_argument():
    x, out = torch.arange(12.0), torch.zeros(12)
    result = ops.given(x, out)
    assert result.data_ptr() == out.data_ptr() and torch.equal(out, x)
    with pytest.raises(RuntimeError):
        ops.given(x, torch.zeros(5))
    strided = x.view(3, 4).t()[1:]
    weak = ops.weak(strided)
    assert weak.data_ptr() == strided.data_ptr() and weak.shape == strided.shape and weak.stride() == strided.stride()
    assert weak.untyped_storage()._cdata != strided.untyped_storage()._cdata
    weak.zero_()
    assert x.view(3, 4)[:, 1:].abs().sum() == 0
