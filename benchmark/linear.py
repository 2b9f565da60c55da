#!/usr/bin/env python3
"""`linear` beside torch's (cuBLASLt) on the projections of large models, in bf16, in one process.

    python benchmark/linear.py --json out.json

Each figure is the time of one call as a node of a CUDA graph, the median over rounds in which the two take turns; the ratio is the median
of the ratios of paired rounds, above 1 where ours is faster. Long rounds last some milliseconds, so that power limits large products as it does
in a server; short ones are a single graph after a pause. Calls take copies of input and weight in turn, so that weights come from
memory, not from the L2 cache. Inputs are random normal numbers; results are compared before any is timed. With --pdl ours use programmatic
dependent launch (torch's have no such switch); with --batch-invariant a row's bits do not depend on how many there
are, which shows what that costs.
"""
import argparse
import json
import os
import statistics
import time

import torch
from library import microseconds

# N, K
SHAPES = {
    "grid": [(4096, 7168), (7168, 2048), (7168, 16384), (14336, 4096), (4096, 14336), (24576, 1536), (6144, 4096), (8192, 8192)],
    "llama3_8b": [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)],
    "llama3_8b_tp8": [(768, 4096), (4096, 512), (3584, 4096), (4096, 1792), (16032, 4096)],
    "llama3_70b": [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)],
    "llama3_70b_tp8": [(1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584)],
    "qwen3_30b_a3b": [(5120, 2048), (2048, 4096), (128, 2048), (151936, 2048)],
    "deepseek_v3": [(2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (36864, 7168), (7168, 18432), (4096, 7168), (7168, 2048), (256, 7168)],
}
ROWS = [1, 16, 64, 128, 1024, 4096, 8192]
VOCABULARY = 100000         # columns of a head; it never sees many rows


def capture(call, sets, nodes):
    for s in sets:
        call(*s)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(nodes):
            call(*sets[i % len(sets)])
    return graph


def measure(rows, columns, depth, arguments, pool):
    """The operands are pieces of the pool of random numbers: each call's another one."""
    import sgl_kernel
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    each = depth * (rows + columns)
    count = min(1 + -(-3 * cache // (2 * each)), len(pool) // each)
    nodes = count * max(1, (12 if 2e-15 * each * rows < 1e-4 else 4) // count)
    sets = []
    for i in range(count):
        x, w = pool[i * each:(i + 1) * each].split([depth * rows, depth * columns])
        sets.append((x.view(rows, depth), w.view(columns, depth), torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")))
    calls = {"ours": lambda x, w, out: sgl_kernel.linear(x, w, out=out), "torch": lambda x, w, out: torch.mm(x, w.t(), out=out)}
    x, w, out = sets[0]
    some = slice(None) if columns <= 16384 else torch.randint(columns, (16384,), device="cuda").sort().values
    expected = x.float() @ w[some].float().t()
    error = ((sgl_kernel.linear(x, w)[:, some].float() - expected).norm() / expected.norm()).item()
    graphs = {name: capture(call, sets, nodes) for name, call in calls.items()}
    result = {"rows": rows, "columns": columns, "depth": depth, "error": error}
    seconds = max(rows * 2e-15, 5e-13) * columns * depth
    for length in ("long", "short"):
        replays = max(1, round(arguments.milliseconds * 1e-3 / (nodes * seconds))) if length == "long" else 1
        times = {name: [] for name in calls}
        for i in range(arguments.rounds + 1):
            for name in sorted(calls, reverse=bool(i % 2)):
                if length == "short":
                    time.sleep(arguments.rest)
                us = microseconds(lambda: [graphs[name].replay() for _ in range(replays)], nodes * replays)
                if i:
                    times[name].append(us)
        result[length] = {"us": {name: statistics.median(t) for name, t in times.items()}, "ratio": statistics.median(theirs / ours for ours, theirs in zip(times["ours"], times["torch"]))}
    us = result["long"]["us"]
    return result | {"teraflops": {name: 2e-6 * rows * columns * depth / t for name, t in us.items()},
                     "weight_terabytes_per_second": {name: 2e-6 * columns * depth / t for name, t in us.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--milliseconds", type=float, default=20, help="of a long round (default: 20)")
    parser.add_argument("--rest", type=float, default=0.01, help="seconds before a short round (default: 0.01)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["grid"], metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("--pdl", action="store_true")
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    os.environ["TRTLLM_ENABLE_PDL"] = str(int(arguments.pdl))
    os.environ["SGK_BATCH_INVARIANT"] = str(int(arguments.batch_invariant))
    if not torch.cuda.is_available():
        parser.error("these figures need a GPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; ratios are torch's time over ours{', ours with programmatic launch' if arguments.pdl else ''}")
    shapes = {shape: [name for name in arguments.shapes if shape in SHAPES[name]] for name in arguments.shapes for shape in SHAPES[name]}
    pool = torch.empty(max(4 * torch.cuda.get_device_properties(0).L2_cache_size, max((n + max(arguments.rows)) * k for n, k in shapes)), dtype=torch.bfloat16, device="cuda").normal_()
    results = []
    for rows in arguments.rows:
        for (columns, depth), names in shapes.items():
            if columns > VOCABULARY and rows > 512:
                continue
            r = measure(rows, columns, depth, arguments, pool) | {"shapes": names}
            results.append(r)
            print(f"{rows:5} x {columns:5} x {depth:5}: ours {r['long']['us']['ours']:8.1f} us {r['teraflops']['ours']:4.0f} TFLOP/s {r['weight_terabytes_per_second']['ours']:5.2f} TB/s of weights, "
                  f"torch {r['long']['us']['torch']:8.1f} us, ratio {r['long']['ratio']:.3f}, short {r['short']['ratio']:.3f}, error {r['error']:.4f}", flush=True)
        for length in ("long", "short"):
            of_rows = [r[length]["ratio"] for r in results if r["rows"] == rows]
            print(f"{rows:5} rows, {length}: geomean {statistics.geometric_mean(of_rows):.3f}, least {min(of_rows):.3f}", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rounds": arguments.rounds, "pdl": arguments.pdl, "batch_invariant": arguments.batch_invariant, "rows": results}, file, indent=1)


if __name__ == "__main__":
    main()
