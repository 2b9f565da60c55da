"""Finds libsgl_kernel.so and declares the few functions that Python calls. No torch here."""
import ctypes
import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
UNSUPPORTED = -2        # SGK_UNSUPPORTED


def find(name, beside_library):
    """A file of this package; in a development build (SGK_LIBRARY) it lies at `beside_library` from the library."""
    override = os.environ.get("SGK_LIBRARY")
    return Path(override).resolve().parent / beside_library if override else PACKAGE / name


def _load():
    path = find("libsgl_kernel.so", os.path.basename(os.environ.get("SGK_LIBRARY", "")))
    if not path.exists():
        raise ImportError(f"sgl_kernel: {path} does not exist; install the wheel, or run `make build` and set SGK_LIBRARY to its libsgl_kernel.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"sgl_kernel: {path} cannot be loaded: {error}") from None
    for function in ("sgk_version", "sgk_last_error", "sgk_families_left_out", "sgk_torch_name"):
        getattr(library, function).restype = ctypes.c_char_p
    library.sgk_torch_name.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    return path, library


path, library = _load()
version = library.sgk_version().decode()
families_left_out = frozenset(library.sgk_families_left_out().decode().split())


def last_error():
    return library.sgk_last_error().decode()


def torch_operators():
    """("silu_and_mul", ""), ("silu_and_mul", "v0_1_8"), ...: what binding registers."""
    overload = ctypes.c_char_p()
    names, i = [], 0
    while name := library.sgk_torch_name(i, ctypes.byref(overload)):
        names.append((name.decode(), overload.value.decode()))
        i += 1
    return names
