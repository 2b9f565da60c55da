#!/usr/bin/env python3
"""dsv3_router_gemm and dsv3_fused_a_gemm over 1 to 16 tokens, for one or several libraries that answer `import sgl_kernel`.

    python benchmark/dsv3.py --library ours=python --library theirs=/path/of/another/sgl_kernel --json out.json

Each library runs in a process of its own, because both define the same names; the processes share one GPU and take turns. A figure is the
time of one call as a node of a CUDA graph whose calls take copies of the weights in turn, so that weights come from memory; the median over
rounds, and a ratio is the median of the ratios of paired rounds. Each uses programmatic dependent launch where that is its default, or as --pdl says. Sums of results are compared before any is timed.
"""
import argparse
import json
import statistics

from library import Library, microseconds, serve

K = 7168
CASES = [(operator, tokens) for operator in ("router_bf16", "router_f32", "fused_a") for tokens in (1, 2, 4, 8, 16)]


class Worker:
    def __init__(self):
        import torch
        import sgl_kernel
        self.torch, self.library = torch, sgl_kernel

    def prepare(self, operator, tokens):
        torch, columns = self.torch, 2112 if operator == "fused_a" else 256
        torch.manual_seed(tokens)
        x = torch.randn(tokens, K, device="cuda").bfloat16()
        copies = 1 + 3 * torch.cuda.get_device_properties(0).L2_cache_size // (2 * K * columns)
        weights = [torch.randn(columns, K, device="cuda").bfloat16() / 80 for _ in range(copies)]
        out = torch.empty(tokens, columns, device="cuda", dtype=torch.bfloat16)
        if operator == "fused_a":
            def call(w):
                return self.library.dsv3_fused_a_gemm(x, w.t(), out)
        else:
            out_dtype = torch.float32 if operator == "router_f32" else torch.bfloat16

            def call(w):
                return self.library.dsv3_router_gemm(x, w, out_dtype)
        total = call(weights[0]).double().sum().item()
        self.nodes = copies * max(1, 60 // copies)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for w in weights[:3]:
                call(w)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for i in range(self.nodes):
                call(weights[i % copies])
        self.time()
        return total

    def time(self):
        return microseconds(self.graph.replay, self.nodes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", action="append", metavar="NAME=FOLDER", help="the first one's time is divided into the others'")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pdl", choices=["0", "1"], help="TRTLLM_ENABLE_PDL of all libraries")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return serve(Worker())
    libraries = {name: Library(name, folder, **({"TRTLLM_ENABLE_PDL": arguments.pdl} if arguments.pdl else {})) for name, folder in (text.split("=", 1) for text in arguments.library)}
    results = []
    for operator, tokens in CASES:
        totals = {name: library.ask("prepare", operator, tokens) for name, library in libraries.items()}
        times = {name: [] for name in libraries}
        for i in range(arguments.rounds):
            for name in sorted(libraries, reverse=bool(i % 2)):
                times[name].append(libraries[name].ask("time"))
        first = next(iter(times))
        us = {name: statistics.median(t) for name, t in times.items()}
        ratio = {name: statistics.median(a / b for a, b in zip(t, times[first])) for name, t in times.items() if name != first}
        results.append({"operator": operator, "tokens": tokens, "pdl": arguments.pdl, "us": us, "ratio": ratio, "sum": totals})
        print(f"{operator:12} {tokens:3} tokens: " + ", ".join(f"{name} {t:6.2f} us" for name, t in us.items())
              + "".join(f", {name} / {first} {r:.3f}" for name, r in ratio.items()) + ", sums " + " ".join(f"{t:.2f}" for t in totals.values()), flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
