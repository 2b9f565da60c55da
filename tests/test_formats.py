"""Number formats against ml_dtypes: every code, and f32 patterns everywhere (all 2^32 of them with SGK_EXHAUSTIVE=1)."""
import ctypes
import os

import pytest

np = pytest.importorskip("numpy")
ml_dtypes = pytest.importorskip("ml_dtypes")
from sgl_kernel import _library  # noqa: E402


class Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int32)]


class DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):     # DLTensor
    _fields_ = [("data", ctypes.c_void_p), ("device", Device), ("ndim", ctypes.c_int32), ("dtype", DataType),
                ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


CODES = {np.dtype(t): code for t, code in [
    (np.float32, (2, 32)), (np.float64, (2, 64)), (np.float16, (2, 16)), (ml_dtypes.bfloat16, (4, 16)), (ml_dtypes.float8_e4m3fn, (10, 8)),
    (ml_dtypes.float8_e5m2, (12, 8)), (np.int8, (0, 8)), (np.uint8, (1, 8)), (np.int32, (0, 32)), (np.int64, (0, 64)), (np.bool_, (6, 8))]}
SMALL = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)]
EXHAUSTIVE = os.environ.get("SGK_EXHAUSTIVE") == "1"


def tensor(array):
    return Tensor(array.ctypes.data, Device(1, 0), array.ndim, DataType(*CODES[array.dtype], 1), (ctypes.c_int64 * array.ndim)(*array.shape), None, 0)


def convert(array, dtype):
    out = np.empty(array.shape, dtype)
    status = _library.library.sgk_convert(ctypes.byref(tensor(out)), ctypes.byref(tensor(array)), None)
    assert status == 0, _library.last_error()
    return out


def bits(array):
    return array.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize])


def assert_same(got, want):
    """Equal bits, except that one NaN is as good as another."""
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan)
    differ = (bits(got) != bits(want)) & ~nan
    assert not differ.any(), f"{differ.sum()} differ, the first at {differ.argmax()}: {got[differ][0]}, expected {want[differ][0]}"


def wide(dtype, to):
    """All codes of a format in a wider one, by ml_dtypes or numpy."""
    codes = np.arange(2 ** (8 * dtype.itemsize), dtype=np.uint32).astype(f"u{dtype.itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):
        return codes, codes.astype(to)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("to", [np.float32, np.float64])
def test_every_code(dtype, to):
    codes, values = wide(dtype, to)
    assert_same(convert(codes, to), values)
    back = convert(values, dtype)
    nan = np.isnan(values)
    assert np.array_equal(bits(back)[~nan], bits(codes)[~nan])
    assert np.isnan(back[nan].astype(np.float32)).all()


def patterns():
    if EXHAUSTIVE:
        for start in range(0, 2**32, 2**24):
            yield np.arange(start, start + 2**24, dtype=np.uint32)
        return
    yield np.arange(0, 2**32, 1021, dtype=np.uint64).astype(np.uint32)
    # around every pattern of the upper 16 bits, where the 16-bit formats have their numbers and their middles
    upper = np.arange(2**16, dtype=np.uint32) << 16
    for offset in (0, 1, 2, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff, 0x0fff, 0x1000, 0x1001, 0x3000, 0x2fff):
        yield upper + np.uint32(offset)
    yield np.random.default_rng(0).integers(0, 2**32, 2**20, dtype=np.uint32)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_f32_to_format(dtype):
    for block in patterns():
        values = block.view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            want = values.astype(dtype)
        assert_same(convert(values, dtype).astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16)], ids=str)
def test_f64_rounds_once(dtype):
    """numpy goes from f64 to f16 in one step; through f32 the middles would be lost."""
    _, values = wide(dtype, np.float64)
    values = np.unique(values[np.isfinite(values)])
    middles = (values[1:] + values[:-1]) / 2
    for near in (middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf), middles * (1 + 1e-13)):
        assert_same(convert(near, dtype), near.astype(dtype))


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_against_torch(dtype):
    torch = pytest.importorskip("torch")
    kind = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}[str(dtype)]
    _, values = wide(np.dtype(ml_dtypes.bfloat16), np.float32)
    if kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        values = values[np.abs(values) <= 440]      # beyond the largest number torch's releases differ from one another
    want = torch.from_numpy(values).to(kind).float().numpy()
    assert_same(convert(values, dtype).astype(np.float32), want)


def test_integers():
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300, 3e9, -3e9, 1e30, np.inf, -np.inf, np.nan], np.float32)
    assert convert(values, np.dtype(np.int8)).tolist() == [0, 2, 2, 0, -2, 127, -128, 127, -128, 127, 127, -128, 0]
    assert convert(values, np.dtype(np.uint8)).tolist() == [0, 2, 2, 0, 0, 255, 0, 255, 0, 255, 255, 0, 0]
    assert convert(values, np.dtype(np.int32)).tolist()[5:] == [300, -300, 2**31 - 1, -2**31, 2**31 - 1, 2**31 - 1, -2**31, 0]
    assert convert(values, np.dtype(np.int64)).tolist()[7:] == [3 * 10**9, -3 * 10**9, 2**63 - 1, 2**63 - 1, -2**63, 0]
    assert convert(values, np.dtype(np.bool_)).tolist() == [True] * 13
    wide_integers = np.random.default_rng(0).integers(-2**63, 2**63, 10000, dtype=np.int64)
    assert_same(convert(wide_integers, np.dtype(np.float64)), wide_integers.astype(np.float64))
    assert_same(convert(wide_integers, np.dtype(np.float32)), wide_integers.astype(np.float32))


def test_refusals():
    a, b = np.zeros(4, np.float32), np.zeros(5, np.float32)
    call = _library.library.sgk_convert
    assert call(ctypes.byref(tensor(b)), ctypes.byref(tensor(a)), None) == -1
    assert "convert: output has size 5" in _library.last_error()
    assert call(ctypes.byref(tensor(a)), None, None) == -1
    assert "convert: input is null" in _library.last_error()
