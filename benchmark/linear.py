#!/usr/bin/env python3
"""`linear` beside torch's (cuBLASLt) on the projections of large models, in bf16, in one process.

    python benchmark/linear.py --json out.json

Each figure is the time of one call as a node of a CUDA graph, the median over rounds in which the two take turns; the ratio is the median
of the ratios of paired rounds, above 1 where ours is faster. Calls take copies of input and weight in turn, so that weights come from
memory, not from the L2 cache. Inputs are random normal numbers; results are compared before any is timed.
"""
import argparse
import json
import math
import statistics

import torch

import sgl_kernel

SHAPES = [(4096, 7168), (7168, 2048), (7168, 16384), (14336, 4096), (4096, 14336), (24576, 1536), (6144, 4096), (8192, 8192)]     # N, K
ROWS = [1, 16, 64, 128, 1024, 4096, 8192]


def capture(call, sets, nodes):
    for s in sets:
        call(*s)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(nodes):
            call(*sets[i % len(sets)])
    return graph


def elapsed(graph, nodes):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / nodes


def measure(rows, columns, depth, rounds):
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = 1 + -(-3 * cache // (2 * depth * (rows + columns)))
    nodes = count * max(1, 12 // count)
    sets = [(torch.randn(rows, depth, device="cuda").bfloat16(), torch.randn(columns, depth, device="cuda").bfloat16() / math.sqrt(depth),
             torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")) for _ in range(count)]
    calls = {"ours": lambda x, w, out: sgl_kernel.linear(x, w, out=out), "torch": lambda x, w, out: torch.mm(x, w.t(), out=out)}
    x, w, out = sets[0]
    expected = x.float() @ w.float().t()
    error = ((sgl_kernel.linear(x, w).float() - expected).norm() / expected.norm()).item()
    graphs = {name: capture(call, sets, nodes) for name, call in calls.items()}
    times = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name in sorted(calls, reverse=bool(i % 2)):
            us = elapsed(graphs[name], nodes)
            if i:
                times[name].append(us)
    us = {name: statistics.median(t) for name, t in times.items()}
    return {"rows": rows, "columns": columns, "depth": depth, "error": error, "us": us,
            "ratio": statistics.median(theirs / ours for ours, theirs in zip(times["ours"], times["torch"])),
            "teraflops": {name: 2e-6 * rows * columns * depth / t for name, t in us.items()},
            "weight_terabytes_per_second": {name: 2e-6 * columns * depth / t for name, t in us.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("these figures need a GPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; ratios are torch's time over ours")
    results = []
    for rows in arguments.rows:
        for columns, depth in SHAPES:
            r = measure(rows, columns, depth, arguments.rounds)
            results.append(r)
            print(f"{rows:5} x {columns:5} x {depth:5}: ours {r['us']['ours']:8.1f} us {r['teraflops']['ours']:4.0f} TFLOP/s {r['weight_terabytes_per_second']['ours']:5.2f} TB/s of weights, "
                  f"torch {r['us']['torch']:8.1f} us, ratio {r['ratio']:.3f}, error {r['error']:.4f}", flush=True)
        of_rows = [r["ratio"] for r in results if r["rows"] == rows]
        print(f"{rows:5} rows: geomean {statistics.geometric_mean(of_rows):.3f}, least {min(of_rows):.3f}", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rounds": arguments.rounds, "rows": results}, file, indent=1)


if __name__ == "__main__":
    main()
