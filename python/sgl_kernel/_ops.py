"""Registers the library's operators with torch, and hands them to the modules of this package.

`torch` is None and `reason` says why where torch cannot be used; importing this package works all the same.
"""
import functools
import importlib.util

from sgl_kernel import _library

NEEDED = (2, 10)

torch = None
reason = "torch is not installed"


def _import_torch():
    global torch, reason
    if importlib.util.find_spec("torch") is None:
        return
    try:
        import torch as found
        version = tuple(int(part) for part in found.__version__.split(".")[:2])
    except Exception as error:      # a broken installation raises whatever its loader raises
        reason = f"torch is installed but cannot be imported: {error}"
        return
    if version < NEEDED:
        reason = f"torch {found.__version__} is too old"
        return
    torch = found


def _refuse_second_owner():
    """Torch would replace the other library's kernels by ours, or abort the process: neither may happen unnoticed."""
    for name in dict.fromkeys(name for name, _ in _library.torch_operators()):
        if torch._C._jit_get_schemas_for_operator(f"sgl_kernel::{name}"):
            raise RuntimeError(
                f"sgl_kernel: torch.ops.sgl_kernel.{name} was already registered by another library; uninstall the package that "
                "provides it (sgl-kernel, sglang-kernel or sglang-kernel-cpu), or import only one of the two in this process")


def _bind():
    global torch, reason
    _import_torch()
    if torch is None or _library.library.sgk_torch_bound():
        return
    _refuse_second_owner()
    if _library.library.sgk_torch_bind() != 0:
        torch, reason = None, _library.last_error()


_bind()


def translated(op):
    """`op` for positional arguments; what this machine or this build cannot run raises NotImplementedError, not torch's RuntimeError."""
    def call(*arguments):
        try:
            return op(*arguments)
        except RuntimeError as error:
            if _library.library.sgk_torch_last_status() == _library.UNSUPPORTED and str(error) == _library.last_error():
                raise NotImplementedError(str(error)) from None
            raise

    return call


def operator(name, overload="default"):
    """torch.ops.sgl_kernel.<name> as a function of positional arguments; None where it does not exist."""
    packet = getattr(torch.ops.sgl_kernel, name, None) if torch else None
    return packet and translated(getattr(packet, overload))


def provided_by(family):
    """Marks a public function that needs torch and the operators of one family. It costs nothing where both are there."""
    def mark(function):
        if torch is None:
            error, message = ImportError, f"{function.__name__} needs torch {NEEDED[0]}.{NEEDED[1]} or newer: {reason}"
        elif family in _library.families_left_out:
            error, message = NotImplementedError, (f"{function.__name__} is not in this build of sgl_kernel: "
                                                   f"it was configured with SGL_KERNEL_ENABLE_{family.upper()}=OFF")
        else:
            return function

        @functools.wraps(function)
        def refuse(*_, **__):
            raise error(message)
        return refuse
    return mark


def register_fake(name, namespace="sgl_kernel"):
    """Gives a functional operator its fake: what torch.compile runs to learn the outputs' shapes and dtypes.

    A fake that an engine registers later replaces this one. Tensors on several devices are refused, because torch runs the fake in
    place of the operator when a meta tensor is among the arguments, and would do nothing without a word."""
    def register(fake):
        if torch is None or getattr(getattr(torch.ops, namespace), name, None) is None:
            return fake
        qualified = f"{namespace}::{name}"

        @functools.wraps(fake)
        def checked(*arguments, **options):
            devices = {a.device for a in (*arguments, *options.values()) if isinstance(a, torch.Tensor)}
            if len(devices) > 1:
                raise RuntimeError(f"{name}: tensors are on {', '.join(sorted(map(str, devices)))}, expected one device")
            return fake(*arguments, **options)

        fragment = torch.library.Library(namespace, "FRAGMENT")
        torch.library.register_fake(qualified, checked, lib=fragment)
        _fragments[qualified] = fragment
        _let_others_replace(qualified)
        return fake
    return register


def register_decomposition(name, overload="default"):
    """Tells torch.compile, in whose graphs no operator hands an argument back, how such a one is written with others. Eager calls stay as they are."""
    def register(decomposition):
        packet = getattr(torch.ops.sgl_kernel, name, None) if torch else None
        if packet is not None:
            getattr(packet, overload).py_impl(torch._C.DispatchKey.CompositeImplicitAutograd)(decomposition)
        return decomposition
    return register


_fragments = {}


def _let_others_replace(qualified):
    """The holder of an operator's fake takes one and refuses a second. Ours makes room: it was only a default."""
    holder = torch._library.simple_registry.singleton.find(qualified).fake_impl
    register = holder.register

    def replace(*arguments, **options):
        del holder.register
        _fragments.pop(qualified)._destroy()
        return register(*arguments, **options)

    holder.register = replace
