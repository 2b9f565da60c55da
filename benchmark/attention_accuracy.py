#!/usr/bin/env python3
"""Errors of attention against float64, of one or several libraries on the same data.

    python benchmark/attention_accuracy.py --library ours=python --library fa3=/path/of/another/sgl_kernel --json out.json

    error = norm(result - exact) / norm(exact), exact from the same numbers in float64; e4m3 with descales of 1

Two key heads, as many heads again for queries. Data:

    normal           random normal numbers, 128 queries over 4096 keys
    long             the same over 131072 keys
    causal           1024 queries over as many keys
    spread           queries three times as large: few keys have most of the weight
    outliers         few channels carry the scores, and one of the queries' has a mean
    causal outliers  both
    mean             values of mean 1
    near, far        four keys with 8 nats more, the last or the first ones, and all others still count (16384 keys)
    ..., decoding    each query is the only one of its sequence, and all sequences have the same pages of 64 keys

Each library runs in a process of its own. Above --limit times the error of any other library the run fails.
"""
import argparse
import itertools
import json
import sys

from library import Library, Refused, serve

DATA = ["normal", "long", "causal", "spread", "outliers", "causal outliers", "mean", "near", "far"]
SIZES = {"bfloat16": [(64, 64), (128, 128), (192, 128), (256, 256)], "float16": [(128, 128)], "float8_e4m3fn": [(64, 64), (128, 128), (192, 128)]}
DECODING = ", decoding"
DECODED = [(dtype, dim, dim, data + DECODING) for dtype, dims in {"bfloat16": [64, 128, 256], "float16": [128]}.items() for dim, data in itertools.product(dims, DATA) if "causal" not in data]
CASES = [(dtype, *size, data) for dtype, sizes in SIZES.items() for size, data in itertools.product(sizes, DATA)] + DECODED
HEADS, KEY_HEADS = 4, 2


# ---- a process that has one library -----------------------------------------------------------------------------------------------------------------

def operands(torch, dtype, dim, dim_v, data):
    generator = torch.Generator().manual_seed(11)
    keys = {"long": 131072, "near": 16384, "far": 16384}.get(data, 1024 if "causal" in data else 4096)
    queries = keys if "causal" in data else 128
    q, k, v = (torch.randn(rows, heads, size, generator=generator) for rows, heads, size in ((queries, HEADS, dim), (keys, KEY_HEADS, dim), (keys, KEY_HEADS, dim_v)))
    if data == "spread":
        q *= 3
    if "outliers" in data:
        k[:, :, :4] *= 8
        q[:, :, 0] += 2
    if data == "mean":
        v += 1
    if data in ("near", "far"):
        q[:, :, 5], k[:, :, 5] = 4, 0
        k[slice(keys - 4, keys) if data == "near" else slice(4), :, 5] = 8 * dim**0.5 / 4
    return (t.to(getattr(torch, dtype)).cuda() for t in (q, k, v))


class Worker:
    def __init__(self):
        import torch
        self.torch = torch

    def error(self, dtype, dim, dim_v, data):
        from sgl_kernel.flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
        torch = self.torch
        q, k, v = operands(torch, dtype, dim, dim_v, data.removesuffix(DECODING))
        causal = "causal" in data
        if data.endswith(DECODING):
            used = torch.full((len(q),), len(k), dtype=torch.int32, device="cuda")
            table = torch.arange(len(k) // 64, dtype=torch.int32, device="cuda").repeat(len(q), 1)
            out = flash_attn_with_kvcache(q[:, None], *(t.view(-1, 64, *t.shape[1:]) for t in (k, v)), cache_seqlens=used, page_table=table)
        else:
            ends = [torch.tensor([0, len(t)], dtype=torch.int32, device="cuda") for t in (q, k)]
            out = flash_attn_varlen_func(q, k, v, *ends, len(q), len(k), causal=causal)
        out = (out[0] if isinstance(out, tuple) else out).double().view(len(q), HEADS, dim_v)
        off = size = 0
        for head in range(HEADS):
            at = head * KEY_HEADS // HEADS
            scores = q[:, head].double() @ k[:, at].double().t() * dim**-0.5
            if causal:
                scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
            exact = scores.softmax(-1) @ v[:, at].double()
            off, size = off + (out[:, head] - exact).square().sum().item(), size + exact.square().sum().item()
        return (off / size)**0.5


# ---- the comparison ----------------------------------------------------------------------------------------------------------------------------------

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", action="append", metavar="NAME=FOLDER[,VARIABLE=VALUE...]", help="the folder that holds sgl_kernel, and its environment; the first one is judged")
    parser.add_argument("--limit", type=float, default=1.1, help="times another library's error that fails (default: 1.1)")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return serve(Worker())
    import torch
    if not torch.cuda.is_available():
        parser.error("these figures need a GPU")
    libraries = [Library.given(text) for text in arguments.library or ["ours="]]
    rows = []
    for case in CASES:
        errors = {}
        for library in libraries:
            try:
                errors[library.name] = library.ask("error", *case)
            except Refused as error:
                print(f"  {library.name}: {error}", flush=True)
        ours = errors.get(libraries[0].name)
        ratio = {name: ours / error for name, error in errors.items() if ours is not None and name != libraries[0].name}
        rows.append({"case": case, "errors": errors, "ratio": ratio})
        print(f"{case[0]:14} {case[1]:3}/{case[2]:3} {case[3]:20}" + "".join(f" {name} {error:.6f}" for name, error in errors.items()) + "".join(f", of {name}'s {r:.3f}" for name, r in ratio.items()), flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, file, indent=1)
    beyond = [row for row in rows if row["ratio"] and max(row["ratio"].values()) > arguments.limit]
    for row in beyond:
        print(f"above {arguments.limit}: {row['case']} {row['ratio']}", file=sys.stderr)
    return int(bool(beyond))


if __name__ == "__main__":
    sys.exit(main())
