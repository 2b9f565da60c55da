#!/usr/bin/env python3
"""Tries an installed wheel where there is neither torch nor a GPU. usage: try_wheel.py WHEEL"""
import os
import subprocess
import sys

wheel = sys.argv[1]
name, size = os.path.basename(wheel), os.path.getsize(wheel)
assert "-py3-none-" in name, f"{name} is not tagged py3-none"
assert size <= 10_000_000, f"{name} has {size} bytes, expected at most 10 MB"

import sgl_kernel  # noqa: E402

assert "torch" not in sys.modules
assert sgl_kernel.__version__ == name.split("-")[1], sgl_kernel.__version__
try:
    sgl_kernel.rmsnorm(None, None)
except Exception as error:  # noqa: BLE001
    assert "torch" in str(error), error
    print(f"rmsnorm without torch: {type(error).__name__}: {error}")
else:
    sys.exit("rmsnorm ran without torch")
command = os.path.join(os.path.dirname(sys.executable), "sgl-kernel")
subprocess.run([command, "info"], check=True)
subprocess.run([command, "check", "--only=rmsnorm", "--small", "--seed=1611"], check=True)
print(f"{name}: {size / 1e6:.2f} MB, version {sgl_kernel.__version__}")
