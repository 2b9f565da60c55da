#!/usr/bin/env python3
"""Matrix products on the CPU beside oneDNN's, through torch, in one process and with the same threads.

    python benchmark/linear_cpu.py --threads 2 --json out.json

Each figure is the median over rounds in which all take turns; a ratio is the median of the ratios of paired rounds, above 1 where ours is
faster. Few rows take copies of the weight in turn, more of them than the caches hold, beside the read of as many bytes (torch.sum of f32). With
--ggml, libraries of ggml (libggml-base.so and libggml-cpu.so) multiply the same shapes in bf16 and q8_0. Inputs are random normal numbers; results
are compared before any is timed.
"""
import argparse
import ctypes
import json
import statistics
import time

import torch

import sgl_kernel
from library import processor

ops = torch.ops.sgl_kernel


def measure(calls, rounds):
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name in sorted(calls, reverse=bool(i % 2)):
            start = time.perf_counter()
            calls[name]()
            if i:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def medians(times):
    return {name: statistics.median(t) for name, t in times.items()}


def ratio(times, theirs, ours):
    return statistics.median(t / o for t, o in zip(times[theirs], times[ours]))


def error(result, expected):
    return ((result.float() - expected).norm() / expected.norm()).item()


class Ggml:
    """One product of ggml: weight [N, K] of a type by f32 [M, K], as its graph computes it."""
    BF16, Q8_0, F32 = 30, 8, 0

    def __init__(self, folder):
        self.base = ctypes.CDLL(f"{folder}/libggml-base.so", mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(f"{folder}/libggml-cpu.so")
        for name in ("ggml_init", "ggml_new_tensor_2d", "ggml_mul_mat", "ggml_new_graph", "ggml_get_data"):
            getattr(self.base, name).restype = ctypes.c_void_p
        self.base.ggml_nbytes.restype = ctypes.c_size_t
        self.base.ggml_quantize_chunk.restype = ctypes.c_size_t

    def product(self, kind, x, weight, threads):
        class Params(ctypes.Structure):
            _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        rows, depth, columns = x.shape[0], x.shape[1], weight.shape[0]
        context = pointer(self.base.ggml_init(Params(64 * 2**20 + 8 * (rows + columns) * depth + 8 * rows * columns, None, False)))
        w = pointer(self.base.ggml_new_tensor_2d(context, kind, long(depth), long(columns)))
        v = pointer(self.base.ggml_new_tensor_2d(context, self.F32, long(depth), long(rows)))
        out = pointer(self.base.ggml_mul_mat(context, w, v))
        graph = pointer(self.base.ggml_new_graph(context))
        self.base.ggml_build_forward_expand(graph, out)
        values = x.float().contiguous()
        ctypes.memmove(self.base.ggml_get_data(v), values.data_ptr(), values.numel() * 4)
        values = weight.float().contiguous()
        self.base.ggml_quantize_chunk(kind, pointer(values.data_ptr()), pointer(self.base.ggml_get_data(w)), long(0), long(columns), long(depth), None)
        result = torch.empty(rows, columns)

        def run():
            self.cpu.ggml_graph_compute_with_ctx(context, graph, threads)

        def read():
            ctypes.memmove(result.data_ptr(), self.base.ggml_get_data(out), result.numel() * 4)
            return result
        return run, read


def many_rows(rows, columns, depth, rounds, ggml, threads):
    x, w = torch.randn(rows, depth).bfloat16(), torch.randn(columns, depth).bfloat16()
    packed = ops.convert_weight_packed(w)
    calls = {"packed": lambda: ops.weight_packed_linear(x, packed, None, True), "linear": lambda: sgl_kernel.linear(x, w),
             "oneDNN": lambda: torch.nn.functional.linear(x, w)}
    expected = x.float() @ w.float().t()
    errors = {name: error(call(), expected) for name, call in calls.items()}

    w8 = torch.randint(-127, 128, (columns, depth), dtype=torch.int8)
    x8, s1, s2 = torch.randint(0, 256, (rows, depth), dtype=torch.uint8), torch.full((rows, 1), 0.02), torch.rand(columns, 1)
    packed8, theirs8, zero = ops.convert_weight_packed(w8), torch.ops.onednn.qlinear_prepack(w8.t().contiguous(), [rows, depth]), torch.zeros(columns, dtype=torch.int64)
    s2_flat = s2.flatten()
    calls8 = {"packed": lambda: ops.int8_scaled_mm_cpu(x8, packed8, s1, s2, None, torch.bfloat16, True),
              "with_quant": lambda: ops.int8_scaled_mm_with_quant(x, packed8, s2, None, torch.bfloat16, True),
              "oneDNN": lambda: torch.ops.onednn.qlinear_pointwise(x8, 0.02, 128, theirs8, s2_flat, zero, None, 1.0, 0, torch.bfloat16, "none", [], "")}
    expected8 = (x8.float() - 128) @ w8.float().t() * s1 * s2.t()
    errors8 = {name: error(calls8[name](), expected8) for name in ("packed", "oneDNN")}
    if ggml:
        for kind, name, into, errors_of in ((Ggml.BF16, "ggml", calls, errors), (Ggml.Q8_0, "ggml q8_0", calls8, errors8)):
            into[name], read = ggml.product(kind, x, w, threads)
            into[name]()
            errors_of[name] = error(read(), expected)
    result = {"rows": rows, "columns": columns, "depth": depth}
    for name, group, wrong in (("bf16", calls, errors), ("u8s8", calls8, errors8)):
        times = measure(group, rounds)
        result[name] = {"ms": medians(times), "least_ms": {n: min(t) for n, t in times.items()}, "errors": wrong,
                        "ratio": {f"{rival} / {ours}": ratio(times, rival, ours) for rival in group for ours in ("packed", "linear")
                                  if rival not in ("packed", "linear", "with_quant") and ours in group},
                        "teraflops": {n: 2e-9 * rows * columns * depth / ms for n, ms in medians(times).items()}}
    return result


def few_rows(rows, columns, depth, rounds, copies):
    """Each call reads all copies of a weight in turn."""
    x = torch.randn(rows, depth).bfloat16()
    n, scales8, no_zeros = columns * depth, torch.rand(columns, 1), torch.zeros(columns // 32, depth // 128, 32, dtype=torch.int8)

    def several(weight, bits):
        return [weight.clone() for _ in range(copies * 16 // bits)]

    def bytes_of(high, *shape):
        return torch.randint(0, high, shape, dtype=torch.uint8)
    weight, pack = torch.randn(columns, depth), ops.convert_weight_packed
    weights, halves, singles = several(weight.bfloat16(), 16), several(weight.half(), 16), several(weight, 32)
    packed, packed_fp8 = several(pack(weight.bfloat16()), 16), several(pack(weight.to(torch.float8_e4m3fn)), 8)
    packed_i8 = several(pack(torch.randint(-127, 128, (columns, depth), dtype=torch.int8)), 8)
    packed_mxfp4, packed_int4 = several(pack(bytes_of(256, columns, depth // 2)), 4), several(bytes_of(256, columns // 32, depth // 128, 16 * 128 + 128), 4)
    scales_fp8, scales_mxfp4, scales_int4 = torch.rand((columns + 127) // 128, (depth + 127) // 128), bytes_of(8, columns, depth // 32) + 120, torch.rand(columns // 32, depth // 128, 32)
    read = torch.randn(copies * n // 2)
    products = {
        "packed": (2 * n, lambda w: ops.weight_packed_linear(x, w, None, True), packed),
        "linear": (2 * n, lambda w: sgl_kernel.linear(x, w), weights),
        "linear f16": (2 * n, lambda w, x=x.half(): sgl_kernel.linear(x, w), halves),
        "linear f32": (4 * n, lambda w, x=x.float(): sgl_kernel.linear(x, w), singles),
        "oneDNN": (2 * n, lambda w: torch.nn.functional.linear(x, w), weights),
        "int8 packed": (n, lambda w: ops.int8_scaled_mm_with_quant(x, w, scales8, None, torch.bfloat16, True), packed_i8),
        "fp8 packed": (n, lambda w: ops.fp8_scaled_mm_cpu(x, w, scales_fp8, [128, 128], None, torch.bfloat16, True), packed_fp8),
        "mxfp4 packed": (n // 2 + n // 32, lambda w: ops.mxfp4_scaled_mm_cpu(x, w, scales_mxfp4, None, True), packed_mxfp4),
        "int4 packed": (packed_int4[0].numel() + scales_int4.numel() * 5, lambda w: ops.int4_scaled_mm_cpu(x, w, no_zeros, scales_int4, None), packed_int4),
    }
    calls = {"read": lambda: read.sum()} | {name: lambda run=run, each=each: [run(w) for w in each] for name, (_, run, each) in products.items()}
    moved = {"read": read.numel() * 4} | {name: size * len(each) for name, (size, _, each) in products.items()}
    times = measure(calls, rounds)
    return {"rows": rows, "columns": columns, "depth": depth, "gigabytes_per_second": {n: 1e-6 * moved[n] / ms for n, ms in medians(times).items()},
            "most_gigabytes_per_second": {n: 1e-6 * moved[n] / min(t) for n, t in times.items()},
            "share_of_read": {n: ratio(times, "read", n) * moved[n] / moved["read"] for n in calls if n != "read"}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="*", default=[512])
    parser.add_argument("--few", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--copies", type=int, default=6, help="of the weight, for few rows")
    parser.add_argument("--ggml", metavar="FOLDER", help="where libggml-base.so and libggml-cpu.so are")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ggml = Ggml(arguments.ggml) if arguments.ggml else None
    results = {"device": processor(arguments.threads), "torch": torch.__version__, "threads": arguments.threads, "rounds": arguments.rounds, "many": [], "few": []}
    for rows in arguments.rows:
        r = many_rows(rows, arguments.columns, arguments.depth, arguments.rounds, ggml, arguments.threads)
        results["many"].append(r)
        for kind in ("bf16", "u8s8"):
            figures = ", ".join(f"{n} {ms:.2f} ms (least {r[kind]['least_ms'][n]:.2f})" for n, ms in r[kind]["ms"].items())
            print(f"{kind} {rows} x {r['columns']} x {r['depth']}: {figures}; " + ", ".join(f"{n} {x:.3f}" for n, x in r[kind]["ratio"].items()), flush=True)
    for rows in arguments.few:
        r = few_rows(rows, arguments.columns, arguments.depth, arguments.rounds, arguments.copies)
        results["few"].append(r)
        print(f"{rows} rows: " + ", ".join(f"{n} {x:.1f} (most {r['most_gigabytes_per_second'][n]:.1f}) GB/s" for n, x in r["gigabytes_per_second"].items()) + "; of the read: "
              + ", ".join(f"{n} {x:.2f}" for n, x in r["share_of_read"].items()), flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
