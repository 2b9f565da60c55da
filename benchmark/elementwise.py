#!/usr/bin/env python3
r"""Element-wise and quantising operators over the number of tokens, for one or several libraries that answer `import sgl_kernel`.

    python benchmark/elementwise.py --library ours=python --library "ours without PDL=python,TRTLLM_ENABLE_PDL=0" \
                                    --library theirs=/path/of/another/sgl_kernel --json out.json --plot plots/

Each library runs in a process of its own, because both define the same names; the processes share one GPU and take turns. A figure is the
median over the rounds, of which each gives the best of a few; a ratio is the median of the ratios of paired rounds. `graph` is the time of one call as a node of a CUDA graph,
`eager` that of one call among up to 20 enqueued from Python. Where all tensors of a call would stay in the L2 cache, calls take copies of
them in turn ("rotated"); below 8 MB they stay in it ("cached"). Inputs are random. Sums of the results of all libraries are compared before any is timed.
"""
import argparse
import json
import os
import statistics
import sys

from library import Library, Refused, microseconds, serve

TOKENS = (1, 64, 1024, 8192, 16384)


# ---- operators: make(library, torch, tokens) returns what one call reads and writes, the call, the bytes it must move, and its results ----------------------

class Operator:
    def __init__(self, make, tokens=TOKENS, exact=False):
        self.make, self.tokens, self.exact = make, tokens, exact


def size(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def norm(name, hidden, add):
    def make(library, torch, tokens):
        f = getattr(library, name)
        x, w = torch.randn(tokens, hidden).bfloat16(), torch.randn(hidden).bfloat16()
        if add:
            residual = torch.randn(tokens, hidden).bfloat16()
            return [x, residual, w], lambda x, r, w: f(x, r, w), 2 * size(x, residual) + size(w), [0, 1]
        return [x, w, torch.empty_like(x)], lambda x, w, out: f(x, w, 1e-6, out), 2 * size(x) + size(w), [2]
    return make


def gated(name, width):
    def make(library, torch, tokens):
        f = getattr(library, name)
        x, out = torch.randn(tokens, 2 * width).bfloat16(), torch.empty(tokens, width).bfloat16()
        return [x, out], lambda x, out: f(x, out), size(x, out), [1]
    return make


def rotary(library, torch, tokens):
    positions = torch.randperm(32768)[:tokens] if tokens <= 32768 else torch.randint(32768, (tokens,))
    q, k = torch.randn(tokens, 32 * 128).bfloat16(), torch.randn(tokens, 8 * 128).bfloat16()
    angle = torch.outer(torch.arange(32768.0), 1e4 ** (-torch.arange(64) / 64))
    cache = torch.cat((angle.cos(), angle.sin()), 1).bfloat16()
    return ([positions, q, k, cache], lambda p, q, k, c: library.rotary_embedding(p, q, k, 128, c, True),
            2 * size(q, k) + size(positions) + min(size(cache), 256 * tokens), [1, 2])


def qk_norm_rope(library, torch, tokens):
    qkv, weights = torch.randn(tokens, 48 * 128).bfloat16(), [torch.randn(128).bfloat16() for _ in range(2)]
    positions = torch.randint(32768, (tokens,), dtype=torch.int32)

    def call(qkv, q_weight, k_weight, positions):
        library.fused_qk_norm_rope(qkv, 32, 8, 8, 128, 1e-6, q_weight, k_weight, 1e4, True, positions, 1.0, 1.0, 1.0, 1.0)
    return [qkv, *weights, positions], call, 2 * size(qkv) * 40 // 48 + size(positions), [0]


def concat_mla_k(library, torch, tokens):
    k, nope, rope = torch.empty(tokens, 128, 192).bfloat16(), torch.randn(tokens, 128, 128).bfloat16(), torch.randn(tokens, 1, 64).bfloat16()
    return [k, nope, rope], library.concat_mla_k, size(k, nope, rope), [0]


def per_token_quant(library, torch, tokens):
    x, q, s = torch.randn(tokens, 7168).bfloat16(), torch.empty(tokens, 7168).to(torch.float8_e4m3fn), torch.empty(tokens, 1)
    return [x, q, s], library.sgl_per_token_quant_fp8, size(x, q, s), [1, 2]


def group_quant(enable_v2):
    def make(library, torch, tokens):
        x, q, s = torch.randn(tokens, 7168).bfloat16(), torch.empty(tokens, 7168).to(torch.float8_e4m3fn), torch.empty(tokens, 56)

        def call(x, q, s):
            library.sgl_per_token_group_quant_fp8(x, q, s, 128, 1e-10, -448.0, 448.0, False, enable_v2=enable_v2)
        return [x, q, s], call, size(x, q, s), [1, 2]
    return make


def silu_group_quant(library, torch, tokens):
    x, q = torch.randn(tokens, 7168).bfloat16(), torch.empty(tokens, 3584).to(torch.float8_e4m3fn)
    s = torch.zeros(7, tokens, dtype=torch.int32).t()           # four exponents a word, columns one after the other: of a multiple of 4 tokens

    def call(x, q, s):
        library.sgl_per_token_group_quant_8bit(x, q, s, 128, 1e-10, -448.0, 448.0, True, True, enable_v2=True)
    return [x, q, s], call, size(x, q, s), [1, 2]


def merge_state(library, torch, tokens):
    v = [torch.randn(tokens, 32, 128).bfloat16() for _ in range(2)] + [torch.empty(tokens, 32, 128).bfloat16()]
    s = [torch.randn(tokens, 32) for _ in range(2)] + [torch.empty(tokens, 32)]
    return ([*v, *s], lambda va, vb, v, sa, sb, s: library.merge_state_v2(va, sa, vb, sb, v, s), size(*v, *s), [2, 5])


def moe_sum_reduce(library, torch, tokens):
    x, out = torch.randn(tokens, 8, 7168).bfloat16(), torch.empty(tokens, 7168).bfloat16()
    return [x, out], lambda x, out: library.moe_sum_reduce(x, out, 2.5), size(x, out), [1]


def norm_quant_rope(library, torch, tokens):
    """A chain of three kernels, as in front of an attention."""
    norm_tensors, _, norm_bytes, _ = norm("rmsnorm", 4096, False)(library, torch, tokens)
    rope_tensors, _, rope_bytes, _ = rotary(library, torch, tokens)
    q, s = torch.empty(tokens, 4096).to(torch.float8_e4m3fn), torch.empty(tokens, 32)

    def call(x, w, out, q, s, positions, query, key, cache):
        library.rmsnorm(x, w, 1e-6, out)
        library.sgl_per_token_group_quant_fp8(out, q, s, 128, 1e-10, -448.0, 448.0, False, enable_v2=True)
        library.rotary_embedding(positions, query, key, 128, cache, True)
    return norm_tensors + [q, s] + rope_tensors, call, norm_bytes + size(norm_tensors[2], q, s) + rope_bytes, [2, 4, 6]


def token_bitmask(library, torch, tokens):
    logits, mask = torch.randn(tokens, 131072).bfloat16(), torch.randint(-2**31, 2**31, (tokens, 4096), dtype=torch.int64).int()
    return [logits, mask], library.apply_token_bitmask_inplace_cuda, 2 * size(logits) + size(mask), [0]     # random bits: what is written was read before


OPERATORS = {
    "rmsnorm_4096": Operator(norm("rmsnorm", 4096, False)),
    "rmsnorm_7168": Operator(norm("rmsnorm", 7168, False), (64, 4096, 16384)),
    "rmsnorm_8192": Operator(norm("rmsnorm", 8192, False), (64, 65536)),
    "fused_add_rmsnorm_4096": Operator(norm("fused_add_rmsnorm", 4096, True)),
    "fused_add_rmsnorm_7168": Operator(norm("fused_add_rmsnorm", 7168, True), (64, 4096, 16384)),
    "fused_add_rmsnorm_8192": Operator(norm("fused_add_rmsnorm", 8192, True), (64, 65536)),
    "gemma_rmsnorm_4096": Operator(norm("gemma_rmsnorm", 4096, False)),
    "gemma_fused_add_rmsnorm_4096": Operator(norm("gemma_fused_add_rmsnorm", 4096, True)),
    "silu_and_mul_14336": Operator(gated("silu_and_mul", 14336), (1, 64, 1024, 8192)),
    "silu_and_mul_4096": Operator(gated("silu_and_mul", 4096), (64, 65536)),
    "gelu_and_mul_14336": Operator(gated("gelu_and_mul", 14336), (1, 64, 8192)),
    "gelu_tanh_and_mul_14336": Operator(gated("gelu_tanh_and_mul", 14336), (1, 64, 8192)),
    "rotary_embedding": Operator(rotary, (1, 64, 1024, 8192)),
    "fused_qk_norm_rope": Operator(qk_norm_rope, (1, 64, 1024, 8192)),
    "concat_mla_k": Operator(concat_mla_k, (1, 64, 1024, 8192), exact=True),
    "sgl_per_token_quant_fp8_7168": Operator(per_token_quant),
    "sgl_per_token_group_quant_fp8_7168": Operator(group_quant(False)),
    "sgl_per_token_group_quant_fp8_v2_7168": Operator(group_quant(True)),
    "silu_group_quant_fp8_v2_3584": Operator(silu_group_quant, (4, 64, 1024, 16384)),
    "merge_state_v2": Operator(merge_state, (1, 64, 1024, 8192)),
    "moe_sum_reduce_8x7168": Operator(moe_sum_reduce, (1, 64, 1024, 8192)),
    "norm_quant_rope": Operator(norm_quant_rope, (1, 64, 1024)),
    "apply_token_bitmask_131072": Operator(token_bitmask, (1, 64), exact=True),
}


# ---- a process that has one library -------------------------------------------------------------------------------------------------------------------

class Worker:
    def __init__(self):
        import torch

        import sgl_kernel
        self.torch, self.library, self.sets = torch, sgl_kernel, []
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})         # libraries take turns on one core: cores are not equally fast

    def prepare(self, name, tokens):
        """The case's tensors on the GPU, copies of them, a graph. Answers with a digest of the results."""
        torch = self.torch
        self.sets, self.graph = [], None
        torch.cuda.empty_cache()
        torch.manual_seed(tokens)
        torch.set_default_device("cuda")
        first, call, self.bytes, results = OPERATORS[name].make(self.library, torch, tokens)
        torch.set_default_device(None)
        originals = [t.clone() for t in first]
        call(*first)
        values = [first[i].float().flatten().double() for i in results]
        digest = [[float(v.sum()), float(v.abs().sum()), float(v[:: max(1, v.numel() // 97)].square().sum())] if torch.isfinite(v).all() else
                  [float(torch.isfinite(v).sum()), 0.0, float(v[torch.isfinite(v)].abs().sum())] for v in values]
        total, cache = size(*first), torch.cuda.get_device_properties(0).L2_cache_size
        count = 1 if total < 8 << 20 or total >= 4 * cache else 1 + -(-3 * cache // total)
        self.sets = [[t.clone() for t in originals] for _ in range(count)]
        self.call, self.nodes = call, -(-max(10, min(200, (1 << 30) // self.bytes)) // count) * count
        for s in self.sets:
            call(*s)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for i in range(self.nodes):
                call(*self.sets[i % count])
        self.graph.replay()
        return {"digest": digest, "bytes": self.bytes, "inputs": "cached" if total < 8 << 20 else "rotated" if count > 1 else "larger than L2"}

    def time(self):
        calls = min(20, self.nodes)

        def eager():
            for i in range(calls):
                self.call(*self.sets[i % len(self.sets)])
        times = 100 if self.bytes < 32 << 20 else 3         # what disturbs a host's clock only ever adds, for milliseconds at a time
        return {"graph": min(microseconds(self.graph.replay, self.nodes) for _ in range(3)), "eager": min(microseconds(eager, calls) for _ in range(times))}

    def ceilings(self):
        torch = self.torch
        a, flag = torch.full((1 << 28,), 0x3c3c3c3c, dtype=torch.int64, device="cuda"), torch.zeros(1, device="cuda")
        b = torch.empty_like(a)
        copy = sorted(microseconds(lambda: b.copy_(a), 1) for _ in range(9))[4]
        graph = torch.cuda.CUDAGraph()
        flag.add_(1)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for _ in range(50):
                flag.add_(1)
        graph.replay()
        node = sorted(microseconds(graph.replay, 50) for _ in range(9))[4]
        del a, b
        torch.cuda.empty_cache()
        return {"copy": 2 * (8 << 28) / copy * 1e6, "node": node, "device": torch.cuda.get_device_name(), "torch": torch.__version__}


# ---- the comparison -----------------------------------------------------------------------------------------------------------------------------------

def same(a, b, exact):
    """Digests of rounded results: sums agree as far as single roundings that fall the other way allow."""
    bound = 0 if exact else 2e-3
    return all(abs(x[1] - y[1]) <= bound * max(abs(x[1]), 1e-3) and abs(x[2] - y[2]) <= 2e-2 * max(abs(x[2]), 1e-3) for x, y in zip(a, b))


def measure(libraries, name, tokens, rounds):
    prepared, row = {}, {"operator": name, "tokens": tokens, "failed": {}}
    for i, library in enumerate(libraries):
        try:
            prepared[i] = library.ask("prepare", name, tokens)
        except Refused as error:            # the library lacks the operator, or does not take the case: that is a result
            row["failed"][library.name] = str(error)
    able = list(prepared)
    if not able:
        return row
    row |= {"bytes": prepared[able[0]]["bytes"], "inputs": prepared[able[0]]["inputs"]}
    row["agree"] = all(same(prepared[able[0]]["digest"], prepared[i]["digest"], OPERATORS[name].exact) for i in able)
    times = {i: [] for i in able}
    for _ in range(rounds):
        for i in able:
            times[i].append(libraries[i].ask("time"))
    for mode in ("graph", "eager"):
        row[mode] = {libraries[i].name: statistics.median(t[mode] for t in times[i]) for i in able}
        if able[0] == 0:
            row[mode + "_ratio"] = {libraries[i].name: statistics.median(theirs[mode] / ours[mode] for ours, theirs in zip(times[0], times[i])) for i in able[1:]}
    return row


def plot(rows, names, ceilings, folder):
    """GB/s over tokens, a line a library, a picture an operator."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    os.makedirs(folder, exist_ok=True)
    for operator in {row["operator"]: None for row in rows}:
        figure, axes = pyplot.subplots(figsize=(6, 4))
        for name in names:
            points = [(row["tokens"], row["bytes"] / row["graph"][name] * 1e-3) for row in rows if row["operator"] == operator and name in row.get("graph", {})]
            if points:
                axes.plot(*zip(*points), marker="o", label=name)
        axes.axhline(ceilings["copy"] * 1e-9, linestyle="--", color="gray", label="copy of 2 GB")
        axes.set(xscale="log", xlabel="tokens", ylabel="GB/s, in a graph", title=operator, ylim=(0, None))
        axes.legend()
        figure.tight_layout()
        figure.savefig(os.path.join(folder, f"{operator}.png"), dpi=110)
        pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", action="append", metavar="NAME=FOLDER[,VARIABLE=VALUE...]",
                        help="the folder that holds a package sgl_kernel, and its environment; the first library is what the others are compared with")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FOLDER")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return serve(Worker())
    libraries = [Library.given(text) for text in arguments.library or ["sgl_kernel="]]
    try:
        ceilings = libraries[0].ask("ceilings")
    except Refused as error:
        sys.exit(f"elementwise: these figures need a GPU: {error}")
    names = [library.name for library in libraries]
    print(f"{ceilings['device']}, torch {ceilings['torch']}: copy {ceilings['copy'] * 1e-9:.0f} GB/s, a small kernel of torch as a graph node {ceilings['node']:.2f} us; "
          f"L = 0.74 us + bytes / copy; ratios are {' and '.join(names[1:]) or 'nothing'} over {names[0]}")
    rows = []
    for name, operator in OPERATORS.items():
        if arguments.only and not any(text in name for text in arguments.only):
            continue
        for tokens in operator.tokens:
            row = measure(libraries, name, tokens, arguments.rounds)
            rows.append(row)
            if "graph" not in row:
                print(f"{name:38} {tokens:6}  {row['failed']}")
                continue
            text = f"{name:38} {tokens:6} {row['bytes'] / 1e6:8.1f} MB {row['inputs']:14}"
            for library in names:
                if library in row["graph"]:
                    limit = 0.74 + row["bytes"] / ceilings["copy"] * 1e6
                    text += f" {library} {row['graph'][library]:7.2f} us ({row['graph'][library] / limit:4.2f} L), eager {row['eager'][library]:7.2f};"
            text += "".join(f" x{ratio:.2f} graph, x{row['eager_ratio'][library]:.2f} eager" for library, ratio in row.get("graph_ratio", {}).items())
            print(text + ("" if row["agree"] else "  RESULTS DIFFER") + (f"  {row['failed']}" if row["failed"] else ""), flush=True)
        if arguments.json:                  # each time: a run that is cut leaves what it has
            with open(arguments.json, "w") as file:
                json.dump({"ceilings": ceilings, "libraries": names, "rounds": arguments.rounds, "rows": rows}, file, indent=1)
    if arguments.plot:
        plot([row for row in rows if "graph" in row], names, ceilings, arguments.plot)
    return int(any(not row.get("agree", True) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
