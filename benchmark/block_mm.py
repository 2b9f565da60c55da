#!/usr/bin/env python3
"""Block-scaled products of e4m3, dense and grouped, beside DeepGEMM's, torch's (cuBLASLt) and sglang-kernel's.

    python benchmark/block_mm.py --json out.json --deep-gemm FOLDER --sglang FOLDER
    python benchmark/block_mm.py --accuracy

FOLDER holds the package `deep_gemm`, or another `sgl_kernel`; that one runs in a process of its own. Each figure is the time of one call as a node of a
CUDA graph, the median over rounds in which all take turns; a ratio is the median of the ratios of paired rounds, above 1 where ours is faster.
Calls take copies of their arguments in turn, so that weights come from memory, not from the L2 cache. Inputs are random normal numbers.

--accuracy: errors against float64, divided by the sum of the magnitudes of the products, root mean square in units of 2^-24; scales vary over 2^+-10.
"""
import argparse
import json
import statistics
import sys

import torch
from library import Library, Refused, microseconds, serve

E4M3 = torch.float8_e4m3fn
SHAPES = [(4096, 7168), (7168, 2048), (7168, 16384), (14336, 4096), (4096, 14336), (24576, 1536), (6144, 4096), (8192, 8192)]     # N, K
ROWS = [1, 16, 64, 128, 1024, 4096, 8192]
GROUPED = [("contiguous", 8, 1024, 4096, 7168), ("contiguous", 32, 256, 4096, 7168), ("contiguous", 32, 128, 7168, 2048), ("masked", 64, 16, 4096, 7168),
           ("masked", 256, 4, 4096, 7168), ("masked", 32, 64, 7168, 2048), ("offsets", 8, 1024, 4096, 7168), ("offsets", 32, 256, 4096, 7168), ("offsets", 64, 16, 4096, 7168)]


# ---- arguments -------------------------------------------------------------------------------------------------------------------

def codes(*shape, positive=False):
    x = torch.randn(shape, device="cuda")
    return (x.abs() if positive else x).to(E4M3)


def scales(*shape, spread=0):
    return torch.exp2((torch.rand(shape, device="cuda") * 2 - 1) * spread)


def rows_side_by_side(s):
    """The layout that all of them take: M along memory, padded to 16 bytes."""
    aligned = -(-s.shape[-2] // 4) * 4
    padded = torch.zeros(*s.shape[:-2], s.shape[-1], aligned, device="cuda").transpose(-1, -2)[..., :s.shape[-2], :]
    return padded.copy_(s)


def blocks(n):
    return -(-n // 128)


def arguments(kind, groups, rows, n, k, spread=0, positive=False):
    total = rows if kind == "dense" else groups * rows
    b_shape = (n, k) if kind == "dense" else (groups, n, k)
    a_shape = (groups, max(128, blocks(rows) * 128), k) if kind == "masked" else (total, k)
    out = {"a": codes(*a_shape, positive=positive), "b": codes(*b_shape, positive=positive), "sb": scales(*b_shape[:-2], blocks(n), blocks(k), spread=spread)}
    sa = scales(*a_shape[:-1], blocks(k), spread=spread)
    out["sa"] = sa.contiguous() if kind == "offsets" else rows_side_by_side(sa)
    out["d"] = torch.zeros(*a_shape[:-1], n, device="cuda", dtype=torch.bfloat16)
    if kind == "contiguous":
        out["layout"] = torch.arange(groups, device="cuda", dtype=torch.int32).repeat_interleave(rows)
    elif kind == "masked":
        out["layout"] = torch.full((groups,), rows, device="cuda", dtype=torch.int32)
    elif kind == "offsets":
        out["sizes"] = torch.tensor([[rows, n, k]] * groups, device="cuda", dtype=torch.int32)
        out["offsets"] = torch.arange(groups, device="cuda", dtype=torch.int32) * rows
        out["pointers"] = [torch.zeros(groups, device="cuda", dtype=torch.int64) for _ in range(5)]
        out["strides"] = [torch.full((groups,), s, device="cuda", dtype=torch.int64) for s in (k, k, n)]
        out["layouts"] = [torch.zeros(groups, 5, device="cuda", dtype=torch.int32) for _ in range(2)]
        out["workspace"] = torch.empty(90_000_000, device="cuda", dtype=torch.uint8)
    out["rows"] = rows
    return out


def deep_gemm_call(package, kind):
    new = hasattr(package, "fp8_gemm_nt")
    if kind == "dense":
        call = package.fp8_gemm_nt if new else package.gemm_fp8_fp8_bf16_nt
        return lambda x: call((x["a"], x["sa"]), (x["b"], x["sb"]), x["d"])
    if kind == "contiguous":
        call = package.m_grouped_fp8_gemm_nt_contiguous if new else package.m_grouped_gemm_fp8_fp8_bf16_nt_contiguous
        return lambda x: call((x["a"], x["sa"]), (x["b"], x["sb"]), x["d"], x["layout"])
    if kind == "masked":
        call = package.m_grouped_fp8_gemm_nt_masked if new else package.m_grouped_gemm_fp8_fp8_bf16_nt_masked
        return lambda x: call((x["a"], x["sa"]), (x["b"], x["sb"]), x["d"], x["layout"], x["rows"])
    return None


def sgl_kernel_call(package, kind):
    if kind == "dense":
        return lambda x: package.fp8_blockwise_scaled_mm(x["a"], x["b"].t(), x["sa"], x["sb"].t(), torch.bfloat16)
    if kind == "offsets":
        return lambda x: package.fp8_blockwise_scaled_grouped_mm(
            x["d"], *x["pointers"], x["a"], x["b"].transpose(1, 2), x["sa"], x["sb"].transpose(1, 2), *x["strides"], *x["layouts"], x["sizes"], x["offsets"],
            x["workspace"])
    return None


def torch_call(kind):
    if kind != "dense":
        return None
    return lambda x: torch._scaled_mm(x["a"], x["b"].t(), scale_a=x["sa"], scale_b=x["sb"].t(), out_dtype=torch.bfloat16, out=x["d"])


# ---- clock -----------------------------------------------------------------------------------------------------------------------

class Contender:
    """Calls of one library, recorded in a graph."""

    def __init__(self, call, sets):
        self.nodes = len(sets) * max(1, 12 // len(sets))
        for x in sets:
            call(x)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for i in range(self.nodes):
                call(sets[i % len(sets)])

    def us(self):
        return microseconds(self.graph.replay, self.nodes)


def sets_of(case):
    kind, groups, rows, n, k = case
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = min(24, 1 + -(-3 * cache // (k * (groups * n + max(1, groups) * rows))))
    return [arguments(*case) for _ in range(count)]


class Worker:
    """sglang-kernel's calls: its package has the name of ours, so it has a process of its own."""

    def __init__(self):
        import sgl_kernel
        self.sgl_kernel, self.contender = sgl_kernel, None

    def case(self, case):
        self.contender = None
        self.contender = Contender(sgl_kernel_call(self.sgl_kernel, case[0]), sets_of(case))

    def us(self):
        return self.contender.us()

    def accuracy(self, k, positive):
        return error_of(sgl_kernel_call(self.sgl_kernel, "dense"), accuracy_arguments(k, positive))


def measure(case, rivals, rounds):
    import sgl_kernel.deep_gemm as ours
    import sgl_kernel
    kind, groups, rows, n, k = case
    sets = sets_of(case)
    calls = {"ours": deep_gemm_call(ours, kind) or sgl_kernel_call(sgl_kernel, kind), "torch": torch_call(kind),
             "DeepGEMM": deep_gemm_call(rivals["DeepGEMM"], kind) if rivals.get("DeepGEMM") else None}
    contenders = {}
    for name, call in calls.items():
        try:
            if call:
                contenders[name] = Contender(call, sets).us
        except Exception as error:
            torch.cuda.synchronize()
            print(f"  {name}: {str(error).splitlines()[0]}", flush=True)
    other = rivals.get("sglang-kernel")
    if other and sgl_kernel_call(sgl_kernel, kind):
        try:
            other.ask("case", case)
            contenders["sglang-kernel"] = lambda: other.ask("us")
        except Refused as error:
            print(f"  sglang-kernel: {error}", flush=True)
    times = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name in sorted(contenders, reverse=bool(i % 2)):
            us = contenders[name]()
            if i:
                times[name].append(us)
    us = {name: statistics.median(t) for name, t in times.items()}
    total = rows if kind == "dense" else groups * rows
    return {"kind": kind, "groups": groups, "rows": rows, "columns": n, "depth": k, "us": us,
            "ratio": {name: statistics.median(theirs / mine for mine, theirs in zip(times["ours"], t)) for name, t in times.items() if name != "ours"},
            "teraflops": {name: 2e-6 * total * n * k / t for name, t in us.items()},
            "weight_terabytes_per_second": {name: 1e-6 * max(1, groups) * n * k / t for name, t in us.items()}}


def show(r):
    name = f"{r['kind']:10} " + (f"{r['groups']:3} x " if r["groups"] else "") + f"{r['rows']:5} x {r['columns']:5} x {r['depth']:5}"
    rest = ", ".join(f"{who} {r['us'][who]:8.1f} us ({ratio:.3f})" for who, ratio in r["ratio"].items())
    print(f"{name}: ours {r['us']['ours']:8.1f} us {r['teraflops']['ours']:5.0f} TFLOP/s {r['weight_terabytes_per_second']['ours']:5.2f} TB/s of weights; {rest}", flush=True)


def geomean(name, results):
    for rival in sorted({who for r in results for who in r["ratio"]}):
        ratios = [r["ratio"][rival] for r in results if rival in r["ratio"]]
        print(f"{name}, {rival}: geomean {statistics.geometric_mean(ratios):.3f}, least {min(ratios):.3f}", flush=True)
    best = [min(r["ratio"].values()) for r in results if r["ratio"]]
    if best:
        print(f"{name}, the best of them: geomean {statistics.geometric_mean(best):.3f}, least {min(best):.3f}", flush=True)


# ---- accuracy --------------------------------------------------------------------------------------------------------------------

def accuracy_arguments(k, positive):
    torch.manual_seed(k)
    return arguments("dense", 0, 64, 256, k, spread=10, positive=positive)


def error_of(call, x):
    result = call(x)
    result = x["d"] if result is None else result
    a = x["a"].double() * x["sa"].double().repeat_interleave(128, 1)
    b = x["b"].double() * x["sb"].double().repeat_interleave(128, 0)[:x["b"].shape[0]].repeat_interleave(128, 1)
    return (((result.double() - a @ b.t()) / (a.abs() @ b.abs().t())).square().mean().sqrt() * 2**24).item()


def accuracy(rivals):
    import sgl_kernel.deep_gemm as ours
    rows = []
    for positive in (False, True):
        for k in (128, 4096, 16384, 65536):
            x = accuracy_arguments(k, positive)
            errors = {"ours": error_of(deep_gemm_call(ours, "dense"), x)}
            for name, call in (("torch", torch_call("dense")), ("DeepGEMM", rivals.get("DeepGEMM") and deep_gemm_call(rivals["DeepGEMM"], "dense"))):
                try:
                    if call:
                        errors[name] = error_of(call, x)
                except Exception as error:
                    print(f"  {name}: {str(error).splitlines()[0]}", flush=True)
            if rivals.get("sglang-kernel"):
                try:
                    errors["sglang-kernel"] = rivals["sglang-kernel"].ask("accuracy", k, positive)
                except Refused as error:
                    print(f"  sglang-kernel: {error}", flush=True)
            rows.append({"depth": k, "positive": positive, "errors": errors})
            print(f"K {k:6} {'positive' if positive else 'normal  '}: " + ", ".join(f"{who} {e:.1f}" for who, e in errors.items()), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deep-gemm", metavar="FOLDER")
    parser.add_argument("--sglang", metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--shapes", type=int, nargs="*", default=range(len(SHAPES)), help="which of the N x K")
    parser.add_argument("--grouped", type=int, nargs="*", default=range(len(GROUPED)), help="which of the grouped products")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("these figures need a GPU")
    if options.worker:
        return serve(Worker())
    rivals = {}
    if options.deep_gemm:
        sys.path.append(options.deep_gemm)
        import deep_gemm
        rivals["DeepGEMM"] = deep_gemm
    if options.sglang:
        rivals["sglang-kernel"] = Library("sglang-kernel", options.sglang)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; ratios are the other's time over ours", flush=True)
    results, errors = [], []
    if options.accuracy:
        errors = accuracy(rivals)
    else:
        for rows in options.rows:
            of_rows = []
            for i in options.shapes:
                of_rows.append(measure(("dense", 0, rows, *SHAPES[i]), rivals, options.rounds))
                show(of_rows[-1])
            geomean(f"{rows} rows", of_rows)
            results += of_rows
        of_groups = []
        for i in options.grouped:
            of_groups.append(measure(GROUPED[i], rivals, options.rounds))
            show(of_groups[-1])
        if of_groups:
            geomean("grouped", of_groups)
        results += of_groups
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rounds": options.rounds, "rows": results, "accuracy": errors}, file, indent=1)


if __name__ == "__main__":
    main()
