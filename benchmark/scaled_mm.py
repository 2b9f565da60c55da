#!/usr/bin/env python3
"""Products of 8-bit numbers with a scale for each row and column, beside torch's and those of another build of sgl_kernel.

    python benchmark/scaled_mm.py --peer FOLDER --json out.json

FOLDER is a PYTHONPATH where `import sgl_kernel` is the other one; it runs in a process of its own, since both define the same operators. torch's
row-wise product is measured with and without its fast sums (8-bit floats only).

Each figure is the time of one call as a node of a CUDA graph, the median over rounds in which all take turns; a ratio is the median of the
ratios of one round, above 1 where ours is faster. In a long round calls follow each other for --milliseconds, so that the GPU runs at the
clock that its power allows; before a short one of a few calls it rests. Calls take copies of the operands in turn, so that they come from memory, not from
the L2 cache. Numbers are random normal ones; results are compared before any is timed.
"""
import argparse
import json
import statistics
import sys
import time

from library import Library, microseconds, serve

SHAPES = [(4096, 7168), (7168, 2048), (7168, 16384), (14336, 4096), (4096, 14336), (24576, 1536), (6144, 4096), (8192, 8192)]     # N, K
ROWS = [1, 16, 64, 128, 1024, 4096, 8192]


# ---- a process that has one sgl_kernel --------------------------------------------------------------------------------------------------

class Worker:
    def __init__(self, with_torch):
        import torch

        import sgl_kernel
        self.torch, self.sgl_kernel, self.with_torch, self.graphs = torch, sgl_kernel, with_torch, {}

    def operands(self, kind, rows, columns, depth, seed):
        torch = self.torch
        generator = torch.Generator(device="cuda").manual_seed(seed)
        x, w = (torch.randn(n, depth, device="cuda", generator=generator) for n in (rows, columns))
        x, w = ((40 * t).round().clamp(-127, 127).to(torch.int8) if kind == "int8" else t.to(torch.float8_e4m3fn) for t in (x, w))
        scales = [torch.rand(n, 1, device="cuda", generator=generator) / depth**0.5 for n in (rows, columns)]
        return x, w, *scales

    def prepare(self, kind, rows, columns, depth, copies, nodes):
        """Graphs of `nodes` calls; gives the errors of all that are measured here."""
        torch = self.torch
        sets = [self.operands(kind, rows, columns, depth, seed) for seed in range(copies)]
        run = self.sgl_kernel.int8_scaled_mm if kind == "int8" else self.sgl_kernel.fp8_scaled_mm
        calls = {"sgl_kernel": lambda x, w, sx, sw: run(x, w.t(), sx, sw, torch.bfloat16)}
        if self.with_torch and kind == "fp8":
            for name, fast in (("torch", False), ("torch fast", True)):
                calls[name] = lambda x, w, sx, sw, fast=fast: torch._scaled_mm(x, w.t(), sx, sw.t(), out_dtype=torch.bfloat16, use_fast_accum=fast)
        x, w, sx, sw = sets[0]
        some = slice(None, 512)
        exact = (x.float() * sx) @ (w[some].float() * sw[some]).t()
        errors, self.graphs = {}, {}
        for name, call in calls.items():
            try:
                errors[name] = ((call(*sets[0])[:, some].float() - exact).norm() / exact.norm()).item()
            except RuntimeError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for i in range(nodes):
                    call(*sets[i % copies])
            graph.replay()
            self.graphs[name] = graph
        torch.cuda.synchronize()
        self.sets = sets
        return errors

    def measure(self, name, replays, nodes):
        def work():
            for _ in range(replays):
                self.graphs[name].replay()
        return microseconds(work, replays * nodes)


# ---- the comparison ----------------------------------------------------------------------------------------------------------------------

def compare(libraries, kind, rows, columns, depth, arguments):
    copies = min(1 + int(3 * 60e6 // (depth * (rows + columns))), 24)
    nodes = copies * max(1, 4 // copies)
    errors, places = {}, {}
    for library in libraries:
        for name, error in library.ask("prepare", kind, rows, columns, depth, copies, nodes).items():
            label = library.name if name == "sgl_kernel" else name
            errors[label], places[label] = error, (library, name)
    result = {"kind": kind, "rows": rows, "columns": columns, "depth": depth, "errors": errors}
    for length in ("long", "short"):
        times = {label: [] for label in places}
        for i in range(arguments.rounds + 1):
            order = list(places)
            for label in order[i % len(order):] + order[:i % len(order)]:
                library, name = places[label]
                guess = 1e6 * 2 * rows * columns * depth / 1e15 + 3
                replays = max(1, round(arguments.milliseconds * 1e3 / nodes / guess)) if length == "long" else 1
                if length == "short":
                    time.sleep(arguments.rest)
                us = library.ask("measure", name, replays, nodes)
                if i:
                    times[label].append(us)
        result[length] = {"us": {label: statistics.median(t) for label, t in times.items()},
                          "ratio": {label: statistics.median(theirs / ours for ours, theirs in zip(times["ours"], t)) for label, t in times.items() if label != "ours"}}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="FOLDER", help="where the other sgl_kernel is")
    parser.add_argument("--kinds", nargs="+", default=["fp8", "int8"], choices=["fp8", "int8"])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, default=4, help="of a long round (default: 4)")
    parser.add_argument("--rest", type=float, default=0.02, help="seconds before a short round (default: 0.02)")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no shape after so many")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--with-torch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return serve(Worker(arguments.with_torch))
    import torch
    if not torch.cuda.is_available():
        parser.error("these figures need a GPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; ratios are the other's time over ours, of long and of short rounds")
    libraries = [Library("ours", "", "--with-torch")]
    if arguments.peer:
        libraries.append(Library("peer", arguments.peer))
    begin, results = time.monotonic(), []
    for kind in arguments.kinds:
        for rows in arguments.rows:
            of_rows = []
            for columns, depth in SHAPES:
                if time.monotonic() - begin > arguments.seconds:
                    break
                r = compare(libraries, kind, rows, columns, depth, arguments)
                of_rows.append(r)
                us = r["long"]["us"]["ours"]
                ratios = " ".join(f"{label} {ratio:.3f} {r['short']['ratio'][label]:.3f}" for label, ratio in r["long"]["ratio"].items())
                print(f"{kind} {rows:5} x {columns:5} x {depth:5}: {us:8.1f} us {2e-6 * rows * columns * depth / us:5.0f} TFLOP/s {1e-6 * columns * depth / us:5.2f} TB/s | "
                      f"{ratios} | errors " + " ".join(f"{label} {error:.5f}" for label, error in r["errors"].items()), flush=True)
            results += of_rows
            for label in {label: 0 for r in of_rows for label in r["long"]["ratio"]}:
                both = [[r[length]["ratio"][label] for r in of_rows if label in r[length]["ratio"]] for length in ("long", "short")]
                print(f"{kind} {rows:5} rows: {label}: geomean {statistics.geometric_mean(both[0]):.3f}, least {min(both[0]):.3f}; "
                      f"short {statistics.geometric_mean(both[1]):.3f}, {min(both[1]):.3f}", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rounds": arguments.rounds, "rows": results}, file, indent=1)


if __name__ == "__main__":
    main()
