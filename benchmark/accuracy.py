#!/usr/bin/env python3
"""Errors of `linear` and `fp8_scaled_mm` against float64, beside those of torch's products (oneDNN on the CPU, cuBLASLt on the GPU) on the same data.

    python benchmark/accuracy.py --device cpu --json out.json

    error of an element = (result - exact) / sum over k of |input[m, k] weight[n, k]|

in units of 2^-24, the rounding of one float32 operation: the result's own condition is divided out, and what is left is how sums were
formed and how the result was rounded. Data, each with K up to 65536:

    normal      random normal numbers
    scaled      normal numbers times 2^u, u uniform in [-8, 8], an element at a time
    cancelling  the second half of K repeats the first with the opposite sign, but for a change of 2^-6: most of every sum goes away
    positive    magnitudes of normal numbers: what is cut off in every step adds up (8-bit floats only)

Printed are root mean square and largest of both, and the ratio ours / torch of the first; above --limit the run fails.
"""
import argparse
import json
import sys

import torch

import sgl_kernel

DEPTHS = [128, 4096, 16384, 65536]
ROWS = [1, 4, 16, 64, 128]
COLUMNS = 256
FORMATS = {"f32": (torch.float32, torch.float32), "f16": (torch.float16, torch.float16), "bf16": (torch.bfloat16, torch.bfloat16),
           "bf16 to f32": (torch.bfloat16, torch.float32), "e4m3 to bf16": (torch.float8_e4m3fn, torch.bfloat16),
           "e4m3 to f32": (torch.float8_e4m3fn, torch.float32)}


def normal(rows, depth, device):
    return torch.randn(rows, depth, dtype=torch.float64, device=device)


def scaled(rows, depth, device):
    return normal(rows, depth, device) * torch.exp2(torch.rand(rows, depth, dtype=torch.float64, device=device) * 16 - 8)


def operands(data, rows, depth, dtype, device):
    """In the format already, so that exact products are the same for all."""
    x, w = ((scaled if data == "scaled" else normal)(n, depth, device) for n in (rows, COLUMNS))
    if data == "positive":
        x, w = x.abs(), w.abs()
    if dtype != torch.float8_e4m3fn or data == "scaled":
        x, w = x / 16, w / 16           # far from the end of the format's range
    if data == "cancelling":
        half = depth // 2
        x[:, half:] = x[:, :half]
        w[:, half:] = -w[:, :half] * (1 + 2**-6 * normal(COLUMNS, half, device))
    return x.to(dtype), w.to(dtype)


def theirs(x, w, out_dtype):
    if x.dtype == torch.float8_e4m3fn:
        one = torch.ones((), device=x.device)
        return torch._scaled_mm(x, w.t(), one, one, out_dtype=out_dtype)
    if out_dtype == x.dtype:
        return torch.nn.functional.linear(x, w)
    if x.device.type == "cuda":
        return torch.mm(x, w.t(), out_dtype=out_dtype)
    return torch.nn.functional.linear(x.to(out_dtype), w.to(out_dtype))


def ours(x, w, out_dtype):
    if x.dtype == torch.float8_e4m3fn:
        return sgl_kernel.fp8_scaled_mm(x, w.t(), torch.ones(1, device=x.device), torch.ones(1, device=x.device), out_dtype)
    return sgl_kernel.linear(x, w, out=torch.empty(x.shape[0], w.shape[0], dtype=out_dtype, device=x.device))


def measure(name, data, rows, depth, device):
    dtype, out_dtype = FORMATS[name]
    x, w = operands(data, rows, depth, dtype, device)
    exact, size = x.double() @ w.double().t(), x.double().abs() @ w.double().abs().t()
    result = {"format": name, "data": data, "rows": rows, "columns": COLUMNS, "depth": depth}
    for who, call in (("ours", ours), ("torch", theirs)):
        error = (call(x, w, out_dtype).double() - exact) / size * 2**24
        result[who] = {"rms": error.square().mean().sqrt().item(), "largest": error.abs().max().item()}
    result["ratio"] = result["ours"]["rms"] / result["torch"]["rms"] if result["torch"]["rms"] else float(result["ours"]["rms"] > 0)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=float, default=1.2, help="the ratio that fails (default: 1.2)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{'format':<12} {'data':<11} {'rows':>4} {'depth':>6} {'ours':>10} {'largest':>10} {'torch':>10} {'largest':>10} {'ratio':>6}")
    results = []
    for name in FORMATS:
        for data in ("normal", "scaled", "cancelling") + ("positive",) * name.startswith("e4m3"):
            for rows in ROWS:
                for depth in DEPTHS:
                    r = measure(name, data, rows, depth, arguments.device)
                    results.append(r)
                    print(f"{name:<12} {data:<11} {rows:>4} {depth:>6} {r['ours']['rms']:>10.4g} {r['ours']['largest']:>10.4g} "
                          f"{r['torch']['rms']:>10.4g} {r['torch']['largest']:>10.4g} {r['ratio']:>6.3f}", flush=True)
    worst = max(results, key=lambda r: r["ratio"])
    print(f"largest ratio {worst['ratio']:.3f}: {worst['format']}, {worst['data']}, {worst['rows']} x {COLUMNS} x {worst['depth']}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"device": arguments.device, "torch": torch.__version__, "seed": arguments.seed, "rows": results}, file, indent=1)
    if not worst["ratio"] <= arguments.limit:
        sys.exit(f"accuracy.py: above {arguments.limit}")


if __name__ == "__main__":
    main()
