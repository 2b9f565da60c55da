#!/usr/bin/env python3
"""Attention of one query over a paged cache, `sgl_kernel.flash_attn.flash_attn_with_kvcache` of one or several libraries.

    python benchmark/attention_decode.py --library ours=python --library fa3=/path/of/another/sgl_kernel --json out.json

Each library runs in a process of its own, because both define the same names; the processes share one GPU and take turns. A figure is the time of one
call as a node of a CUDA graph whose calls read copies of the cache in turn, 300 MB and more of them, so that L2 holds none; the median over the rounds. A
ratio is the median of the ratios of paired rounds, above 1 where the first library is faster. Inputs are random normal numbers, the same in every
process; sums of the results are printed.
"""
import argparse
import json
import statistics
import sys

from library import Library, microseconds, serve

CASES = [           # batch, context, heads, key heads, head size, page size, format
    (128, 4096, 32, 8, 128, 64, "bfloat16"), (128, 4096, 32, 8, 128, 16, "bfloat16"), (128, 4096, 32, 8, 128, 1, "bfloat16"),
    (64, 8192, 64, 8, 128, 64, "bfloat16"), (256, 1024, 28, 4, 128, 1, "bfloat16"), (128, 4096, 32, 32, 128, 16, "bfloat16"),
    (16, 8192, 32, 8, 128, 64, "bfloat16"), (64, 1024, 32, 8, 128, 64, "bfloat16"), (8, 4096, 32, 8, 128, 16, "bfloat16"),
    (1, 131072, 32, 8, 128, 64, "bfloat16"), (1, 8192, 32, 8, 128, 64, "bfloat16"), (1, 2048, 32, 8, 128, 64, "bfloat16"),
    (128, 4096, 8, 1, 128, 64, "bfloat16"), (64, 4096, 32, 8, 64, 16, "bfloat16"), (32, 4096, 16, 2, 256, 16, "bfloat16"),
    (128, 4096, 32, 8, 128, 64, "float8_e4m3fn"), (128, 4096, 32, 8, 128, 1, "float8_e4m3fn"),
]
CACHE_BYTES = 300_000_000


# ---- a process that has one library -----------------------------------------------------------------------------------------------------------

def prepare(torch, case):
    from sgl_kernel.flash_attn import flash_attn_with_kvcache
    batch, context, heads, kv_heads, dim, page, dtype = case
    generator = torch.Generator(device="cuda").manual_seed(7)

    def random(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, generator=generator).to(getattr(torch, dtype))
    pages = batch * context // page
    bytes_read = 2 * batch * context * kv_heads * dim * (1 if dtype.startswith("float8") else 2)
    caches = [(random(pages, page, kv_heads, dim), random(pages, page, kv_heads, dim)) for _ in range(max(1, min(8, -(-CACHE_BYTES // bytes_read))))]
    q = random(batch, 1, heads, dim)
    table = torch.randperm(pages, device="cuda", generator=generator).int().view(batch, -1)
    used = torch.full((batch,), context, dtype=torch.int32, device="cuda")
    calls = len(caches) * (max(1, 16 // len(caches)) if bytes_read < 2e9 else 2)

    def call(i):
        return flash_attn_with_kvcache(q, *caches[i % len(caches)], cache_seqlens=used, page_table=table, causal=True)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        call(0)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for i in range(calls):
                out = call(i)
    graph.replay()
    torch.cuda.synchronize()
    return graph, calls, bytes_read, out, call              # the graph reads what `call` holds


class Worker:
    def __init__(self):
        import torch
        self.torch, self.prepared = torch, None

    def prepare(self, case):
        self.prepared = None
        self.torch.cuda.empty_cache()
        self.prepared = prepare(self.torch, case)
        return {"bytes": self.prepared[2], "sum": self.prepared[3].float().sum().item()}

    def time(self):
        graph, calls = self.prepared[:2]
        graph.replay()
        return microseconds(graph.replay, calls)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", action="append", metavar="NAME=FOLDER[,VARIABLE=VALUE...]",
                        help="the folder that holds sgl_kernel, and its environment; the first one is compared with the others")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=argparse.FileType("w"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return serve(Worker())
    import torch
    if not torch.cuda.is_available():
        sys.exit("attention_decode.py: torch sees no GPU")
    libraries = [Library.given(text) for text in arguments.library or ["ours=python"]]
    rows = []
    for case in CASES:
        facts = {library.name: library.ask("prepare", case) for library in libraries}
        times = {library.name: [] for library in libraries}
        for _ in range(arguments.rounds):
            for library in libraries:
                times[library.name].append(library.ask("time"))
        first = libraries[0].name
        row = {"case": case, "bytes": facts[first]["bytes"], "us": {name: statistics.median(t) for name, t in times.items()},
               "sums": {name: f["sum"] for name, f in facts.items()},
               "ratio": {name: statistics.median(b / a for a, b in zip(times[first], t)) for name, t in times.items() if name != first}}
        rows.append(row)
        others = ", ".join(f"{name} {row['us'][name]:.2f} us (ratio {ratio:.3f})" for name, ratio in row["ratio"].items())
        print(f"{' '.join(map(str, case)):44} {row['us'][first]:9.2f} us {row['bytes'] / row['us'][first] / 1e6:5.2f} TB/s  {others}", flush=True)
    if arguments.json:
        json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rounds": arguments.rounds, "rows": rows}, arguments.json, indent=1)


if __name__ == "__main__":
    main()
