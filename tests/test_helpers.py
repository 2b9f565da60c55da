"""The helper modules of the released package: utils, scalar_type, debug_utils, load_utils, test_utils."""
import os
import subprocess
import sys
import types
import weakref

import pytest
import sgl_kernel
from sgl_kernel import _ops, debug_utils, load_utils, scalar_type, test_utils, utils
from sgl_kernel.scalar_type import NanRepr, ScalarType, scalar_types

torch = _ops.torch
needs_torch = pytest.mark.skipif(torch is None, reason=_ops.reason)


def test_import_without_torch():
    code = ("import sys; sys.modules['torch'] = None\n"
            "from sgl_kernel import _ops, debug_utils, load_utils, scalar_type, test_utils, testing, utils\n"
            "assert _ops.torch is None and scalar_type.scalar_types.uint4b8.max() == 7 and load_utils._get_compute_capability() is None\n"
            "assert not utils.is_arch_support_pdl() and debug_utils.maybe_wrap_debug_kernel(len) is len")
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- utils -----------------------------------------------------------------------------------------------------------------------

def test_cache_once():
    calls = []

    @utils.cache_once
    def square(x, add=0):
        calls.append(x)
        return x * x + add

    assert [square(3), square(3), square(4), square(3, add=1)] == [9, 9, 16, 10] and calls == [3, 4, 3]


@needs_torch
def test_cache_once_under_compile():
    @utils.cache_once
    def offset():
        return len(os.environ)      # what torch does not trace

    @torch.compile(fullgraph=True, backend="eager")
    def add(x):
        return x + offset()

    assert torch.equal(add(torch.zeros(3)), torch.full((3,), float(offset())))


@needs_torch
def test_the_other_utils():
    assert utils._to_tensor_scalar_tuple(0.5) == (None, 0.5)
    t = torch.ones(2)
    assert utils._to_tensor_scalar_tuple(t)[0] is t and utils._to_tensor_scalar_tuple(t)[1] == 0
    a = utils._get_cache_buf("test", 64, torch.device("cpu"))
    assert a.dtype == torch.uint8 and a.numel() == 64
    assert utils._get_cache_buf("test", 128, torch.device("cpu")) is a
    assert utils._get_cache_buf("other", 128, torch.device("cpu")).numel() == 128
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
    assert utils.is_arch_support_pdl() == (major >= 9) and utils.is_hopper_arch() == (major == 9)
    if major:
        assert utils.get_cuda_stream() == torch.cuda.current_stream().cuda_stream


# ---- scalar_type -----------------------------------------------------------------------------------------------------------------

# str, bits, least, largest, id: worked out by hand from the formats' definitions.
FORMATS = {
    "int4": ("int4", 4, -8, 7, 3 << 8 | 1 << 16 | 1 << 50),
    "uint4": ("uint4", 4, 0, 15, 4 << 8 | 1 << 50),
    "int8": ("int8", 8, -128, 127, 7 << 8 | 1 << 16 | 1 << 50),
    "uint8": ("uint8", 8, 0, 255, 8 << 8 | 1 << 50),
    "float8_e4m3fn": ("float8_e4m3fn", 8, -448.0, 448.0, 4 | 3 << 8 | 1 << 16 | 1 << 49 | 2 << 50),
    "float8_e5m2": ("float8_e5m2", 8, -57344.0, 57344.0, 5 | 2 << 8 | 1 << 16 | 1 << 50),
    "float16_e8m7": ("float16_e8m7", 16, -255 * 2.0 ** 120, 255 * 2.0 ** 120, 8 | 7 << 8 | 1 << 16 | 1 << 50),
    "float16_e5m10": ("float16_e5m10", 16, -65504.0, 65504.0, 5 | 10 << 8 | 1 << 16 | 1 << 50),
    "float6_e3m2f": ("float6_e3m2f", 6, -28.0, 28.0, 3 | 2 << 8 | 1 << 16 | 1 << 49),
    "float4_e2m1f": ("float4_e2m1f", 4, -6.0, 6.0, 2 | 1 << 8 | 1 << 16 | 1 << 49),
    "uint2b2": ("uint2b2", 2, -2, 1, 2 << 8 | 2 << 17 | 1 << 50),
    "uint3b4": ("uint3b4", 3, -4, 3, 3 << 8 | 4 << 17 | 1 << 50),
    "uint4b8": ("uint4b8", 4, -8, 7, 4 << 8 | 8 << 17 | 1 << 50),
    "uint8b128": ("uint8b128", 8, -128, 127, 8 << 8 | 128 << 17 | 1 << 50),
}


@pytest.mark.parametrize("name", FORMATS)
def test_scalar_types(name):
    t, (text, bits, least, largest, number) = getattr(scalar_types, name), FORMATS[name]
    assert (str(t), repr(t), t.size_bits, t.min(), t.max(), t.id) == (text, f"ScalarType.{text}", bits, least, largest, number)
    assert ScalarType.from_id(number) == t and hash(ScalarType.from_id(number)) == hash(t)
    assert t.is_floating_point() == name.startswith("float") != t.is_integer()
    assert t.is_signed() == (not name.startswith("u")) and t.has_bias() == ("b" in name)
    if t.is_floating_point():
        assert t.has_infs() == t.is_ieee_754() == (not name.endswith(("f", "fn"))) and t.has_nans() == (not name.endswith("f"))


def test_every_name_is_tested():
    assert {name for name in vars(scalar_types) if not name.startswith("_")} == {*FORMATS, "bfloat16", "float16"}
    assert scalar_types.bfloat16 is scalar_types.float16_e8m7 and scalar_types.float16 is scalar_types.float16_e5m10


@needs_torch
@pytest.mark.parametrize("name, dtype", [("float8_e4m3fn", "float8_e4m3fn"), ("float8_e5m2", "float8_e5m2"), ("bfloat16", "bfloat16"), ("float16", "float16")])
def test_ranges_are_those_of_torch(name, dtype):
    info = torch.finfo(getattr(torch, dtype))
    assert (getattr(scalar_types, name).min(), getattr(scalar_types, name).max()) == (info.min, info.max)


def test_scalar_type_edges():
    assert ScalarType.float_IEEE754(11, 52).max() == sys.float_info.max
    assert ScalarType.from_id(ScalarType.uint(4, -3).id) == ScalarType.uint(4, -3) and ScalarType.uint(4, -3).max() == 18
    for unknown in (0, -1, 1 << 58 | 4 << 8, 4 << 8 | 3 << 50):
        with pytest.raises(ValueError, match=f"id {unknown}"):
            ScalarType.from_id(unknown)
    with pytest.raises(TypeError):
        len(scalar_types.int4)
    with pytest.raises(AttributeError):
        scalar_types.int4.bias = 1
    for call in (lambda: ScalarType.float_IEEE754(0, 3), lambda: ScalarType.float_(4, 3, False, NanRepr.IEEE_754), lambda: ScalarType.float_IEEE754(12, 3).max()):
        with pytest.raises(AssertionError):
            call()
    assert [r.value for r in (NanRepr.NONE, NanRepr.IEEE_754, NanRepr.EXTD_RANGE_MAX_MIN)] == [0, 1, 2] and scalar_type.NanRepr is NanRepr


# ---- debug_utils -----------------------------------------------------------------------------------------------------------------

@pytest.fixture
def engine(monkeypatch):
    """An engine whose log notes what it wraps and what is called."""
    module, events = types.ModuleType("sglang.kernel_api_logging"), []

    def debug_kernel_api(function, op_name=None):
        events.append(("wrap", op_name))

        def logged(*arguments):
            events.append(("call", op_name))
            return function(*arguments)
        return logged

    module.debug_kernel_api = debug_kernel_api
    monkeypatch.setitem(sys.modules, "sglang", types.ModuleType("sglang"))
    monkeypatch.setitem(sys.modules, "sglang.kernel_api_logging", module)
    debug_utils._engine_log.cache_clear()
    yield events
    debug_utils._engine_log.cache_clear()


@pytest.mark.parametrize("level", [None, "0", "loud"])
def test_no_log_is_wanted(engine, monkeypatch, level):
    monkeypatch.delenv("SGLANG_KERNEL_API_LOGLEVEL", raising=False)
    if level is not None:
        monkeypatch.setenv("SGLANG_KERNEL_API_LOGLEVEL", level)
    assert debug_utils.maybe_wrap_debug_kernel(abs) is abs and debug_utils.maybe_wrap_debug_kernel(op_name="x")(abs) is abs and not engine


def test_log(engine, monkeypatch):
    monkeypatch.setenv("SGLANG_KERNEL_API_LOGLEVEL", "1")
    once = debug_utils.maybe_wrap_debug_kernel(abs, "sgl_kernel.abs")
    assert once(-3) == 3 and debug_utils.maybe_wrap_debug_kernel(once, "again") is once

    @debug_utils.maybe_wrap_debug_kernel(op_name="sgl_kernel.neg")
    def neg(x):
        return -x

    assert neg(4) == -4 and debug_utils.maybe_wrap_debug_kernel(abs)(-1) == 1
    assert engine == [("wrap", "sgl_kernel.abs"), ("call", "sgl_kernel.abs"), ("wrap", "sgl_kernel.neg"), ("call", "sgl_kernel.neg"), ("wrap", None), ("call", None)]


@needs_torch
@pytest.mark.parametrize("level", ["0", "3"])
def test_exports_are_logged(tmp_path, level):
    """In a fresh process: the functions at the root and those of flash_attn, each by its name."""
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    (tmp_path / "sglang" / "kernel_api_logging.py").write_text(
        "names = []\ndef debug_kernel_api(function, op_name=None):\n    names.append(op_name)\n    return lambda *a, **k: function(*a, **k)\n")
    code = ("import sgl_kernel, sgl_kernel.flash_attn, sys\n"
            "log = sys.modules.get('sglang.kernel_api_logging')\n"
            "names = log.names if log else []\n"
            "assert all(n is None or hasattr(sgl_kernel, n.removeprefix('sgl_kernel.')) for n in names) and len(set(names)) == len(names) - names.count(None) + (None in names)\n"
            "print('sgl_kernel.rmsnorm' in names, names.count(None), getattr(sgl_kernel.silu_and_mul, '_debug_kernel_wrapped', False))")
    environment = {**os.environ, "SGLANG_KERNEL_API_LOGLEVEL": level, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    out = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout
    assert out == ("True 2 True\n" if level == "3" else "False 0 False\n")


# ---- memory, spatial -------------------------------------------------------------------------------------------------------------

@needs_torch
def test_weak_ref_tensor(device):
    from sgl_kernel.memory import weak_ref_tensor
    x = torch.arange(24.0, device=device).view(4, 6)[1:, ::2]
    weak = weak_ref_tensor(x)
    assert weak.data_ptr() == x.data_ptr() and weak.stride() == x.stride() and weak.dtype == x.dtype and weak.device == x.device and torch.equal(weak, x)
    weak[0, 0] = -1
    assert x[0, 0] == -1 and sgl_kernel.weak_ref_tensor("text") == "text" and weak_ref_tensor(torch.ones((), device=device)).shape == ()
    owner = weakref.ref(x.untyped_storage())
    del x
    assert owner() is None, "the reference keeps the memory"


def test_sm_available():
    if torch and torch.cuda.is_available():
        assert sgl_kernel.get_sm_available() == sgl_kernel.get_sm_available(0) == torch.cuda.get_device_properties(0).multi_processor_count
    else:
        with pytest.raises((ImportError, RuntimeError, AssertionError)):
            sgl_kernel.get_sm_available()


# ---- load_utils ------------------------------------------------------------------------------------------------------------------

def test_load_utils():
    assert sgl_kernel.common_ops is load_utils._load_architecture_specific_ops() and load_utils._preload_cuda_library() is None
    if torch and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        assert load_utils._get_compute_capability() == 10 * major + minor
    else:
        assert load_utils._get_compute_capability() is None


# ---- test_utils ------------------------------------------------------------------------------------------------------------------

def flags(mode=None, silu=False):
    return {"masked_layout_mode": mode, "fuse_silu_and_mul": silu}


@needs_torch
def test_quant_test_data():
    x, mask = test_utils.create_per_token_group_quant_test_data(50, 64, 1, flags(silu=True))
    assert x.shape == (50, 128) and x.dtype == torch.bfloat16 and mask is None
    assert torch.equal(x, test_utils.create_per_token_group_quant_test_data(50, 64, 1, flags(silu=True))[0])
    for mode in ("balanced", "imbalanced", "extreme"):
        x, mask = test_utils.create_per_token_group_quant_test_data(700, 4, 72, flags(mode))
        assert x.shape == (4, 768 * 72, 4) and mask.shape == (4,) and mask.dtype == torch.int32 and mask.sum() == 700 and (mask >= 0).all()
        spread = int(mask.max() - mask.min())
        assert spread == 700 if mode == "extreme" else spread <= 1 if mode == "balanced" else 1 < spread < 700
    with pytest.raises(NotImplementedError, match="masked_layout_mode is odd"):
        test_utils.create_per_token_group_quant_test_data(7, 4, 288, flags("odd"))


@needs_torch
@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_tiny_differences(dtype):
    codes = torch.arange(20000, dtype=torch.int32).remainder(100).to(torch.int8)

    def close(count, step, size=20000):
        other = codes[:size].clone()
        other[:count] += step
        try:
            test_utils.assert_all_close_or_tiny_diff(*(c.view(getattr(torch, dtype)) for c in (codes[:size], other)))
        except AssertionError as error:
            assert f"of {size} codes" in str(error)
            return False
        return True

    assert close(0, 0) and close(99, 1) and not close(100, 1) and not close(1, 2) and close(0, 0, 0)
    assert close(163, 1, 4096) and not close(164, 1, 4096)
    with pytest.raises(AssertionError, match="int8 .4. and"):
        test_utils.assert_all_close_or_tiny_diff(codes[:4], codes[:5])
    with pytest.raises(NotImplementedError, match="torch.int32"):
        test_utils.assert_all_close_or_tiny_diff(codes.int(), codes.int())
