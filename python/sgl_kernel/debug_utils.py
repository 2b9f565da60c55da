"""The engine's log of kernel calls, around our functions where SGLANG_KERNEL_API_LOGLEVEL asks for it."""
from __future__ import annotations

import functools
import os
from typing import Any, Callable, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def _engine_log():
    """The engine's decorator; None when no log is wanted, or there is no engine to keep one."""
    try:
        if int(os.environ.get("SGLANG_KERNEL_API_LOGLEVEL", "0")) == 0:
            return None
        from sglang.kernel_api_logging import debug_kernel_api
    except Exception:       # a level that is no number, or an engine that is not there or not whole: run without
        return None
    return debug_kernel_api


@overload
def maybe_wrap_debug_kernel(func: F) -> F: ...


@overload
def maybe_wrap_debug_kernel(func: F, op_name: str) -> F: ...


@overload
def maybe_wrap_debug_kernel(*, op_name: str | None = None) -> Callable[[F], F]: ...


def maybe_wrap_debug_kernel(func: F | None = None, op_name: str | None = None) -> F | Callable[[F], F]:
    """`func` as it is, or logged once; without `func` a decorator."""
    if func is None:
        return functools.partial(maybe_wrap_debug_kernel, op_name=op_name)
    log = _engine_log()
    if log is None or getattr(func, "_debug_kernel_wrapped", False):
        return func
    logged = log(func, op_name=op_name)
    logged._debug_kernel_wrapped = True
    return logged
