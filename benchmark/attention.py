#!/usr/bin/env python3
"""Attention over many queries: `sgl_kernel.flash_attn` of one or several libraries, and torch's (cuDNN).

    python benchmark/attention.py --library ours=python --library fa3=/path/of/another/sgl_kernel --json out.json

Each library runs in a process of its own, because both define the same names; the processes share one GPU and take turns. A figure is the
median over the rounds, a ratio the median of the ratios of paired rounds, above 1 where the first library is faster. Operations are those of the products
alone, of pairs of a query and a key that it sees. Inputs are random normal numbers, the same in every process; where few keys matter, queries are three times
as large. Results are compared before any is timed.
"""
import argparse
import itertools
import json
import statistics
import sys

from library import Library, Refused, microseconds, serve

DEVICE = "cuda"


def case(name, batch, length, heads, kv_heads, dim, dim_v=None, causal=True, window=-1, layout="dense", page=0, dtype="bfloat16", decodes=0, context=0, before=0, times=1):
    return dict(name=name, batch=batch, length=length, heads=heads, kv_heads=kv_heads, dim=dim, dim_v=dim_v or dim, causal=causal, window=window,
                layout=layout, page=page, dtype=dtype, decodes=decodes, context=context, before=before, times=times)


CASES = [
    case("causal 4x4096 32:32", 4, 4096, 32, 32, 128), case("full 4x4096 32:32", 4, 4096, 32, 32, 128, causal=False),
    case("causal 16x1024 32:8", 16, 1024, 32, 8, 128), case("full 16x1024 32:8", 16, 1024, 32, 8, 128, causal=False),
    case("causal 8x2048 32:8", 8, 2048, 32, 8, 128), case("causal 4x4096 32:8", 4, 4096, 32, 8, 128),
    case("causal 2x8192 32:8", 2, 8192, 32, 8, 128), case("full 2x8192 32:8", 2, 8192, 32, 8, 128, causal=False),
    case("causal 1x16384 32:8", 1, 16384, 32, 8, 128), case("causal 1x32768 32:8", 1, 32768, 32, 8, 128),
    case("causal 4x4096 32:32 x 64", 4, 4096, 32, 32, 64), case("full 4x4096 32:32 x 64", 4, 4096, 32, 32, 64, causal=False),
    case("causal 4x4096 16:16 x 192/128", 4, 4096, 16, 16, 192, 128), case("causal 4x4096 16:16 x 256", 4, 4096, 16, 16, 256),
    case("few keys matter, causal 4x4096 32:8", 4, 4096, 32, 8, 128, times=3), case("few keys matter, full 4x4096 32:32", 4, 4096, 32, 32, 128, causal=False, times=3),
    case("few keys matter, causal 4x4096 16:16 x 256", 4, 4096, 16, 16, 256, times=3),
    case("variable 8 up to 4096 32:8", 8, 4096, 32, 8, 128, layout="packed"),
    case("page 1, 4x4096 32:8", 4, 4096, 32, 8, 128, layout="paged", page=1), case("page 16, 4x4096 32:8", 4, 4096, 32, 8, 128, layout="paged", page=16),
    case("page 64, 4x4096 32:8", 4, 4096, 32, 8, 128, layout="paged", page=64), case("window 1024, 2x8192 32:8", 2, 8192, 32, 8, 128, window=1024),
    case("mixed: 8x2048 and 120 decodes at 4096 32:8", 8, 2048, 32, 8, 128, layout="paged", page=64, decodes=120, context=4096),
    case("chunk of 256 over 65536 32:8", 1, 256, 32, 8, 128, layout="paged", page=64, before=65280),
    case("e4m3 causal 4x4096 32:8", 4, 4096, 32, 8, 128, dtype="float8_e4m3fn"), case("e4m3 causal 1x16384 32:8", 1, 16384, 32, 8, 128, dtype="float8_e4m3fn"),
    case("e4m3 full 4x4096 32:32", 4, 4096, 32, 32, 128, causal=False, dtype="float8_e4m3fn"),
]


def sequences(c):
    """Queries and keys of each: `batch` with `before` more of the other than of the one, then those that decode."""
    lengths = [c["length"] * (i * 5 % c["batch"] + 1) // c["batch"] if c["layout"] == "packed" else c["length"] for i in range(c["batch"])]
    return [(n, n + c["before"]) for n in lengths] + [(1, c["context"])] * c["decodes"]


def operations(c):
    pairs = 0
    for queries, keys in sequences(c):
        if c["window"] >= 0:
            pairs += sum(min(i + 1, c["window"] + 1) for i in range(keys - queries, keys))
        else:
            pairs += queries * keys - (queries * (queries - 1) // 2 if c["causal"] else 0)
    return 2 * pairs * c["heads"] * (c["dim"] + c["dim_v"])


# ---- a process that has one library -----------------------------------------------------------------------------------------------------------------

def prepare(torch, library, c):
    torch.manual_seed(7)
    dtype = getattr(torch, c["dtype"])
    queries, keys = zip(*sequences(c))
    rows, b, n = sum(queries), c["batch"], c["length"]
    q, k, v = (torch.randn(*shape, device=DEVICE).to(dtype) for shape in ((rows, c["heads"], c["dim"]), (sum(keys), c["kv_heads"], c["dim"]), (sum(keys), c["kv_heads"], c["dim_v"])))

    def ints(values):
        return torch.tensor(values, dtype=torch.int32, device=DEVICE)

    if c["times"] != 1:
        q *= c["times"]
    cu = ints([0, *itertools.accumulate(queries)])
    window = (c["window"], 0) if c["window"] >= 0 else (-1, -1)
    if library == "cudnn":
        if c["layout"] != "dense" or c["window"] >= 0 or c["dtype"] == "float8_e4m3fn":
            return None
        import torch.nn.functional as F
        from torch.nn.attention import SDPBackend, sdpa_kernel
        q, k, v = (t.view(b, n, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))

        def call():
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, is_causal=c["causal"], enable_gqa=c["heads"] != c["kv_heads"]).transpose(1, 2).reshape(rows, c["heads"], c["dim_v"])
        return call
    from sgl_kernel.flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
    if c["layout"] == "packed":
        return lambda: flash_attn_varlen_func(q, k, v, cu, cu, n, n, causal=c["causal"], window_size=window)
    if c["layout"] == "dense":
        q, k, v = (t.view(b, n, *t.shape[1:]) for t in (q, k, v))
        return lambda: flash_attn_with_kvcache(q, k, v, causal=c["causal"], window_size=window).reshape(rows, c["heads"], c["dim_v"])
    page = c["page"]
    pages = [count // page for count in keys]
    order = torch.randperm(sum(pages), device=DEVICE)
    k, v = (torch.empty_like(t).view(-1, page, *t.shape[1:]).index_copy_(0, order, t.view(-1, page, *t.shape[1:])) for t in (k, v))
    table = torch.zeros(len(pages), max(pages), dtype=torch.int32, device=DEVICE)
    for row, numbers in zip(table, order.int().split(pages)):
        row[:len(numbers)] = numbers
    used = ints(keys)
    return lambda: flash_attn_with_kvcache(q, k, v, cache_seqlens=used, page_table=table, cu_seqlens_q=cu, max_seqlen_q=n, causal=c["causal"], window_size=window)


class Worker:
    def __init__(self, library):
        import torch
        self.torch, self.library = torch, library

    def prepare(self, c):
        """Some of the results, to be compared; None where the library has no such call."""
        self.call = prepare(self.torch, self.library, c)
        if not self.call:
            return None
        out = self.call()
        self.torch.cuda.synchronize()
        some = out[:: max(1, out.shape[0] // 64), 0].float().flatten()[:4096].tolist()
        for _ in range(2):
            self.call()
        self.torch.cuda.synchronize()
        return some

    def time(self, calls):
        def work():
            for _ in range(calls):
                self.call()
        return microseconds(work, calls)


# ---- the comparison ----------------------------------------------------------------------------------------------------------------------------------

def measure(c, libraries, rounds, milliseconds):
    results, refused = {}, {}
    for library in libraries:
        try:
            some = library.ask("prepare", c)
            (results if some else refused)[library.name] = some or "not asked"
        except Refused as error:            # one library may not take what the other does
            refused[library.name] = str(error)
    running = [x for x in libraries if x.name in results]
    if not running:
        return {"case": c, "refused": refused}
    first = results[running[0].name]
    apart = {x.name: max(abs(p - q) for p, q in zip(first, results[x.name])) for x in running[1:]}
    calls = {x.name: max(1, round(milliseconds * 1e3 / x.ask("time", 2))) for x in running}
    times = {x.name: [] for x in running}
    for i in range(rounds):
        for x in running if i % 2 == 0 else running[::-1]:
            times[x.name].append(x.ask("time", calls[x.name]))
    us = {name: statistics.median(t) for name, t in times.items()}
    return {"case": c, "us": us, "teraflops": {name: operations(c) / t * 1e-6 for name, t in us.items()}, "apart": apart, "refused": refused,
            "ratio": {x.name: statistics.median(b / a for a, b in zip(times[running[0].name], times[x.name])) for x in running[1:]}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", action="append", metavar="NAME=FOLDER[,VARIABLE=VALUE...]",
                        help="the folder that holds sgl_kernel, and its environment; may be repeated. The first one is compared with the others")
    parser.add_argument("--no-cudnn", action="store_true")
    parser.add_argument("--only", action="append", default=[], help="cases whose name contains it; may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, default=20, help="of one library's turn in a round")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", choices=["sgl_kernel", "cudnn"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return serve(Worker(arguments.worker))
    libraries = [Library.given(text, "sgl_kernel") for text in arguments.library or ["ours="]]
    if not arguments.no_cudnn:
        libraries.append(Library("cudnn", "", "cudnn"))
    results = []
    for c in CASES:
        if arguments.only and not any(text in c["name"] for text in arguments.only):
            continue
        r = measure(c, libraries, arguments.rounds, arguments.milliseconds)
        results.append(r)
        figures = [f"{name} {t:5.0f} TFLOP/s" + (f" (ratio {r['ratio'][name]:.3f})" if name in r["ratio"] else "") for name, t in r.get("teraflops", {}).items()]
        print(f"{c['name']:32} " + ", ".join(figures) + "".join(f"; {name}: {why}" for name, why in r["refused"].items() if why != "not asked"), flush=True)
    if arguments.json:
        import torch
        with open(arguments.json, "w") as file:
            json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rounds": arguments.rounds, "rows": results}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
