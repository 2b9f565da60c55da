#!/usr/bin/env python3
"""Attention on the CPU beside torch's scaled_dot_product_attention and beside what this machine's memory allows.

    python benchmark/attention_cpu.py --threads 2 --json out.json

All calls of a case take turns; a figure is the median over the rounds, a ratio the median of the ratios of paired rounds, above 1 where ours is faster. Decode
reads keys and values once, and torch.sum reads as many bytes of f32 from the same memory: the share of read is that call's time over ours. Torch has no paged form:
beside pages it attends to the same keys laid side by side. Keys and values are bf16 unless a case says otherwise; results are compared before any is timed.
"""
import argparse
import json
import statistics
from time import perf_counter

import torch
import torch.nn.functional as F

from library import processor
from sgl_kernel.flash_attn import flash_attn_with_kvcache

BF16 = torch.bfloat16
DECODE = [          # batch, context, heads, key heads, head size, page size (0: dense), format
    (16, 4096, 32, 8, 128, 0, BF16), (16, 4096, 32, 8, 128, 64, BF16), (16, 4096, 32, 8, 128, 16, BF16), (16, 4096, 32, 8, 128, 1, BF16),
    (1, 8192, 32, 8, 128, 0, BF16), (8, 4096, 28, 4, 128, 0, BF16), (4, 4096, 32, 32, 128, 0, BF16), (8, 4096, 32, 8, 64, 0, BF16),
    (8, 4096, 32, 8, 128, 0, torch.float16), (4, 4096, 32, 8, 128, 0, torch.float32), (16, 4096, 32, 8, 128, 0, torch.float8_e4m3fn),
]
PREFILL = [(1, 2048, 32, 8, 128), (1, 512, 32, 8, 128), (4, 512, 32, 32, 64)]


def random(*shape, dtype=BF16):
    """Normal numbers; those of a large tensor repeat."""
    count = torch.Size(shape).numel()
    numbers = torch.randn(min(count, (1 << 20) + 7))
    return numbers.to(dtype).view(torch.uint8).repeat(-(-count // numbers.numel())).view(dtype)[:count].view(shape)


def measure(calls, rounds):
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for i in range(rounds):
        for name in sorted(calls, reverse=bool(i % 2)):
            start = perf_counter()
            calls[name]()
            times[name].append((perf_counter() - start) * 1e3)
    row = {"milliseconds": {name: statistics.median(t) for name, t in times.items()}, "least_milliseconds": {name: min(t) for name, t in times.items()}}
    for name in times:
        if name != "ours":
            row["share_of_read" if name == "read" else "ratio"] = statistics.median(t / o for t, o in zip(times[name], times["ours"]))
    return row


def close(ours, theirs):
    error = ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()
    assert error < 2e-2, error
    return error


def decode(case, rounds):
    batch, context, heads, kv_heads, dim, page, dtype = case
    q, k, v = random(batch, 1, heads, dim, dtype=dtype), random(batch, context, kv_heads, dim, dtype=dtype), random(batch, context, kv_heads, dim, dtype=dtype)
    used, options = torch.full((batch,), context, dtype=torch.int32), {}
    cache = k, v
    if page:
        order = torch.randperm(batch * context // page)
        cache = [torch.zeros(k.shape, dtype=dtype).view(-1, page, kv_heads, dim) for _ in range(2)]     # a pool's memory is touched in order
        for to, t in zip(cache, (k, v)):
            to[order] = t.view(-1, page, kv_heads, dim)
        options = {"page_table": order.int().view(batch, -1)}
    memory = [t.view(torch.uint8).view(-1).view(torch.float32) for t in cache]
    calls = {"ours": lambda: flash_attn_with_kvcache(q, *cache, cache_seqlens=used, causal=True, **options), "read": lambda: [t.sum() for t in memory]}
    error = None
    if dtype is not torch.float8_e4m3fn:                                # which torch's function does not take
        group = q.view(batch, kv_heads, -1, dim)                        # a group's heads as queries of one head: many times as fast as enable_gqa
        calls["torch"] = lambda: F.scaled_dot_product_attention(group, k.transpose(1, 2), v.transpose(1, 2)).view(q.shape)
        error = close(calls["ours"](), calls["torch"]())
    row = measure(calls, rounds)
    read = 2 * k.numel() * k.element_size()
    return {"case": [*case[:-1], str(dtype).removeprefix("torch.")], "bytes": read, "error": error, "gigabytes_per_second": {n: 1e-6 * read / ms for n, ms in row["milliseconds"].items()}} | row


def prefill(case, rounds):
    batch, length, heads, kv_heads, dim = case
    q, k, v = random(batch, length, heads, dim), random(batch, length, kv_heads, dim), random(batch, length, kv_heads, dim)
    used, heads_first = torch.full((batch,), length, dtype=torch.int32), [t.transpose(1, 2) for t in (q, k, v)]
    calls = {"ours": lambda: flash_attn_with_kvcache(q, k, v, cache_seqlens=used, causal=True), "torch": lambda: F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=heads != kv_heads).transpose(1, 2)}
    error = close(calls["ours"](), calls["torch"]())
    row = measure(calls, rounds)
    operations = 2 * batch * heads * dim * length * (length + 1)
    return {"case": case, "error": error, "gigaflops": {n: 1e-6 * operations / ms for n, ms in row["milliseconds"].items()}} | row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="the first case of each kind alone")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    results = {"device": processor(arguments.threads), "torch": torch.__version__, "threads": arguments.threads, "rounds": arguments.rounds, "decode": [], "prefill": []}
    with torch.inference_mode():
        for case in DECODE[:1] if arguments.quick else DECODE:
            row = decode(case, arguments.rounds)
            results["decode"].append(row)
            figures = ", ".join(f"{n} {ms:.2f} ms (least {row['least_milliseconds'][n]:.2f})" for n, ms in row["milliseconds"].items())
            print(f"decode {' '.join(map(str, row['case'])):40} {figures}; {row['gigabytes_per_second']['ours']:.1f} GB/s, {row['share_of_read']:.3f} of the read"
                  + (f", {row['ratio']:.2f} times as fast as torch" if "ratio" in row else ""), flush=True)
        for case in PREFILL[:1] if arguments.quick else PREFILL:
            row = prefill(case, arguments.rounds)
            results["prefill"].append(row)
            figures = ", ".join(f"{n} {ms:.2f} ms" for n, ms in row["milliseconds"].items())
            print(f"prefill {' '.join(map(str, case)):39} {figures}; {row['gigaflops']['ours']:.0f} GFLOP/s, {row['ratio']:.2f} times as fast as torch", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
