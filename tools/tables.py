#!/usr/bin/env python3
"""Prints the tables of README.md and docs/performance.md from the code and from measured results, between `<!-- tables: NAME -->` and `<!-- end -->`.

usage: tables.py            rewrite the tables
       tables.py --check    fail when a table is not what the code and the results say

operators     from csrc/ops.def and csrc/torch/torch_ops.def, and the releases' lists in tests/api
comparison    ours beside another library, from the newest file benchmark/results/*.json that has one (record_results.py writes them)
performance   matrix products, the example and every large case, from the newest file of each device that has them
"""
import glob
import json
import os
import re
import statistics
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROW = re.compile(r'^OP\((\w+),\s*([A-Z |]+),', re.M)


# The family that a released operator without a row will belong to: the first pattern that its name contains.
TO_COME = [
    ("kvcache", "transfer_kv|store_"), ("rope", "dsv4|rotary"), ("mla", "mla|qkv_proj|dense_(decode|prefill)_fwd|sparse_(decode|prefill)_fwd"),
    ("allreduce", "all_?reduce|allgather|custom_ar|mscclpp|^initialize$"), ("speculative", "tree|segment_packbits"),
    ("sampling", "sampling|renorm|top_k_mask"), ("mamba", "conv1d|delta_rule|gdn|qkvzba"), ("attention", "attn|attention|fwd"),
    ("indexer", "fast_topk"), ("gguf", "ggml"), ("moe", "moe|topk|expert|grouped|group_mm"), ("hadamard", "hadamard"),
    ("gemm", "_mm|mm_|gemm|linear|awq|gptq|convert_|bmm"), ("quant", "quant"),
]


def rows_of_operators():
    """{family: [(name, devices)]}, from csrc/ops.def; those of csrc/torch/torch_ops.def are family "torch" """
    text = open(os.path.join(ROOT, "csrc/ops.def")).read() + "\n#if SGK_HAVE_TORCH\n" + open(os.path.join(ROOT, "csrc/torch/torch_ops.def")).read()
    rows, family = {}, ""
    for match in re.finditer(r"^#if SGK_HAVE_(\w+)|" + ROW.pattern, text, re.M):
        if match.group(1):
            family = match.group(1).lower()
        else:
            rows.setdefault(family, []).append((match.group(2), match.group(3)))
    return rows


def released_operators():
    """Every name that a release registers, from tests/api."""
    names = set()
    for path in glob.glob(os.path.join(ROOT, "tests/api/schemas-*.txt")):
        names |= {line.split("(")[0] for line in open(path) if line.strip()}
    return names


def parity():
    """{family: (released names that are done, released names that are not)}"""
    rows, released = rows_of_operators(), released_operators()
    family_of = {name: family for family, operators in rows.items() for name, _ in operators}
    found = {}
    for name in sorted(released):
        family = family_of.get(name) or next((family for family, pattern in TO_COME if re.search(pattern, name)), "others")
        found.setdefault(family, ([], []))[name not in family_of].append(name)
    return found


def operators():
    rows, counts = rows_of_operators(), parity()
    done, all_names = sum(len(done) for done, _ in counts.values()), len(released_operators())
    lines = [f"{done} of the {all_names} operator names that sgl-kernel 0.1.8, 0.3.21, 0.4.3 and the CPU wheel register are done; `pytest -s tests/test_parity.py -k done` names the others.", "",
             "| family | done of the released | operators, each on CPU and GPU |", "|---|---|---|"]
    for family in sorted(rows.keys() | counts.keys()):
        have, lack = counts.get(family, ([], []))
        names = [f"`{name}`" + ("" if {"CPU", "CUDA"} <= set(devices.replace("|", " ").split()) else f" ({devices})") for name, devices in rows.get(family, [])]
        lines.append(f"| {family} | {len(have)} of {len(have) + len(lack)} | {', '.join(names)} |")
    return lines


def results(kind):
    """The newest of each device that has this kind of figures."""
    found = [(path, json.load(open(path))) for path in glob.glob(os.path.join(ROOT, "benchmark/results/*.json"))]
    newest = {}
    for _, result in sorted(found, key=lambda item: (item[1]["date"], item[1].get("time", ""), item[0])):
        if kind in result:
            newest[result["device"]] = result
    return sorted(newest.items())


def comparison():
    lines = []
    for device, result in results("comparison"):
        found = result["comparison"]
        ours, *others = found["libraries"]
        lines += [f"**{device}**, {result['date']}, commit {result['commit']}, `benchmark/elementwise.py`, {found['rounds']} paired rounds, copy {found['ceilings']['copy'] * 1e-9:.0f} GB/s, "
                  f"L = 0.74 us + bytes / copy. us of one call in a CUDA graph; above 1.00 the ratio says that {ours} is faster.", ""]
        lines += [f"| operator | tokens | MB moved | inputs | {ours}, us | share of L | " + " | ".join(f"{name}, us | ratio in a graph | ratio eager" for name in others) + " |",
                  "|---" * (6 + 3 * len(others)) + "|"]
        for row in found["rows"]:
            if ours not in row.get("graph", {}):
                continue
            us = row["graph"][ours]
            share = (0.74 + row["bytes"] / found["ceilings"]["copy"] * 1e6) / us
            cells = [row["operator"], f"{row['tokens']}", f"{row['bytes'] / 1e6:.1f}", row["inputs"], f"{us:.2f}", f"{share:.2f}"]
            for name in others:
                there = name in row["graph"]
                cells += [f"{row['graph'][name]:.2f}", f"{row['graph_ratio'][name]:.2f}", f"{row['eager_ratio'][name]:.2f}"] if there else ["none", "", ""]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines[:-1] or ["No results yet."]


def performance():
    """What moves or computes enough to be judged: 8 MB or more."""
    lines = []
    for kind, table in (("linear", linear_table), ("linear_models", linear_models_table), ("linear_rows", linear_uneven_table), ("linear_invariant", linear_invariant_table), ("dsv3", dsv3_table), ("scaled_mm", scaled_mm_table), ("block_mm", block_mm_table),
                        ("attention", attention_table), ("attention_decode", attention_decode_table), ("llm", llm_table), ("llm_large", llm_large_table), ("accuracy", accuracy_table),
                        ("block_accuracy", block_accuracy_table), ("attention_accuracy", attention_accuracy_table), ("elementwise_cpu", cpu_table), ("linear_cpu", linear_cpu_table),
                        ("attention_cpu", attention_cpu_table), ("bench", bench_table)):
        for device, result in results(kind):
            lines += [f"**{device}**, {result['date']}, commit {result['commit']}."] + table(result[kind])
    return lines[:-1] or ["No results yet."]


RATIO = "a ratio above 1 says that ours is faster"


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"] + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def number(value, form):
    return "" if value is None else format(value, form)


def digest(groups, best=True):
    """Geometric means and the least of ratios: {group: [{rival: ratio}]}, and beside each product's best rival where there are several."""
    rivals = list(dict.fromkeys(name for ratios in groups.values() for ratio in ratios for name in ratio))
    best = ["the best of them"] if best and len(rivals) > 1 else []
    rows = []
    for group, ratios in groups.items():
        row = [group]
        for of in [[ratio[name] for ratio in ratios if name in ratio] for name in rivals] + [[min(ratio.values()) for ratio in ratios]] * len(best):
            row += [f"{statistics.geometric_mean(of):.3f}", f"{min(of):.3f}"] if of else ["", ""]
        rows.append(row)
    return table(["geometric mean of ratios, and the least"] + [cell for name in rivals + best for cell in (name, "least")], rows)


def grouped(rows, name, ratio=lambda row: row["ratio"]):
    groups = {}
    for row in rows:
        groups.setdefault(name(row), []).append(ratio(row))
    return groups


def rows_of(row):
    return f"{row['rows']} rows"


def linear_ratios(row):
    return {"torch": row["long"]["ratio"], "torch, short": row["short"]["ratio"]}


def linear_rows(rows):
    return table(["M", "N", "K", "ours, us", "TFLOP/s", "TB/s of weights", "torch, us", "ratio", "short"],
                 [[f"{row['rows']}", f"{row['columns']}", f"{row['depth']}", f"{row['long']['us']['ours']:.1f}", f"{row['teraflops']['ours']:.0f}",
                   f"{row['weight_terabytes_per_second']['ours']:.2f}", f"{row['long']['us']['torch']:.1f}", f"{row['long']['ratio']:.3f}", f"{row['short']['ratio']:.3f}"] for row in rows])


def linear_table(linear):
    return ([f"`benchmark/linear.py`: bf16, {linear['rounds']} paired rounds, torch {linear['torch']} (cuBLASLt) in the same process, weights from memory; *short*: single graphs with pauses between them. {RATIO.capitalize()}.", ""]
            + digest(grouped(linear["rows"], rows_of, linear_ratios), best=False) + linear_rows(linear["rows"]))


def linear_models_table(linear):
    behind = sorted((row for row in linear["rows"] if row["long"]["ratio"] < 0.97), key=lambda row: row["long"]["ratio"])
    names = list(dict.fromkeys(name for row in linear["rows"] for name in row["shapes"]))
    return ([f"`benchmark/linear.py --shapes {' '.join(names)}`: {len({(row['columns'], row['depth']) for row in linear['rows']})} N and K of these models, and the products of them with a ratio below 0.97.", ""]
            + digest(grouped(linear["rows"], rows_of, linear_ratios), best=False) + (linear_rows(behind) if behind else []))


def linear_uneven_table(linear):
    worst = sorted(linear["rows"], key=lambda row: row["long"]["ratio"])[:12]
    return (["`benchmark/linear.py --rows ...`: numbers of rows as they come in a server, where a tile is seldom whole, and the twelve products with the least ratio.", ""]
            + digest(grouped(linear["rows"], rows_of, linear_ratios), best=False) + linear_rows(worst))


def linear_invariant_table(linear):
    return (["`benchmark/linear.py --batch-invariant`: a row's bits do not depend on M, in a run of its own.", ""]
            + digest(grouped(linear["rows"], rows_of, lambda row: {"torch": row["long"]["ratio"]})))


def dsv3_table(rows):
    names = list(rows[0]["us"])
    return ([f"`benchmark/dsv3.py`: nodes of a graph, weights from memory; {RATIO}.", ""]
            + table(["operator", "tokens"] + [f"{name}, us" for name in names] + [f"ratio, {name}" for name in names[1:]],
                    [[row["operator"], f"{row['tokens']}"] + [f"{row['us'][name]:.2f}" for name in names] + [f"{row['ratio'][name]:.3f}" for name in names[1:]] for row in rows]))


def scaled_mm_table(mm):
    rivals = {"peer": "sglang-kernel", "torch fast": "torch, fast sums", "torch": "torch, exact sums"}
    names = [name for key, name in rivals.items() if any(key in row["long"]["ratio"] for row in mm["rows"])]
    ratios = {name: key for key, name in rivals.items()}
    return ([f"`benchmark/scaled_mm.py`: `fp8_scaled_mm` and `int8_scaled_mm`, a scale a row and a column, out in bf16, {mm['rounds']} paired rounds, weights from memory, turns of some milliseconds; "
             f"*short*: single graphs with pauses between them, beside sglang-kernel. Errors are relative, beside f64. {RATIO.capitalize()}.", ""]
            + digest(grouped(mm["rows"], lambda row: f"{row['kind']}, {rows_of(row)}", lambda row: {rivals[name]: ratio for name, ratio in row["long"]["ratio"].items()}))
            + table(["numbers", "M", "N", "K", "ours, us", "TFLOP/s"] + [f"ratio, {name}" for name in names] + ["short", "error", "error of sglang-kernel"],
                    [[row["kind"], f"{row['rows']}", f"{row['columns']}", f"{row['depth']}", f"{row['long']['us']['ours']:.1f}",
                      f"{2e-6 * row['rows'] * row['columns'] * row['depth'] / row['long']['us']['ours']:.0f}"]
                     + [number(row["long"]["ratio"].get(ratios[name]), ".3f") for name in names]
                     + [number(row["short"]["ratio"].get("peer"), ".3f"), f"{row['errors']['ours']:.5f}", number(row["errors"].get("peer"), ".5f")] for row in mm["rows"]]))


def block_mm_table(mm):
    names = list(dict.fromkeys(name for row in mm["rows"] for name in row["ratio"]))

    def product(row):
        return rows_of(row) if row["kind"] == "dense" else "groups"
    return ([f"`benchmark/block_mm.py`: 8-bit floats with scales of 1 x 128 by 128 x 128, {mm['rounds']} paired rounds; torch is cuBLASLt. {RATIO.capitalize()}.", ""]
            + digest(grouped(mm["rows"], product))
            + table(["kind", "groups x M", "N", "K", "ours, us", "TFLOP/s"] + [f"ratio, {name}" for name in names],
                    [[row["kind"], f"{row['groups']} x {row['rows']}" if row["groups"] else f"{row['rows']}", f"{row['columns']}", f"{row['depth']}", f"{row['us']['ours']:.1f}",
                      f"{row['teraflops']['ours']:.0f}"] + [number(row["ratio"].get(name), ".3f") for name in names] for row in mm["rows"]]))


def attention_table(attention):
    rows = [row for row in attention["rows"] if "us" in row]
    names = list(dict.fromkeys(name for row in rows for name in row["ratio"]))
    return ([f"`benchmark/attention.py`: many queries, {attention['rounds']} paired rounds; a case is batch x length and heads:key heads, head size 128 and bf16 where nothing else is said. {RATIO.capitalize()}.", ""]
            + table(["case", "ours, us", "TFLOP/s"] + [f"ratio, {name}" for name in names],
                    [[row["case"]["name"], f"{row['us']['ours']:.0f}", f"{row['teraflops']['ours']:.0f}"] + [number(row["ratio"].get(name), ".3f") for name in names] for row in rows]))


def attention_decode_table(decode):
    names = list(dict.fromkeys(name for row in decode["rows"] for name in row["ratio"]))
    rows = []
    for row in decode["rows"]:
        batch, context, heads, kv_heads, dim, page, dtype = row["case"]
        rows.append([f"{batch} x {context}, {heads}:{kv_heads} x {dim}", f"{page}", dtype, f"{row['us']['ours']:.1f}", f"{row['bytes'] / row['us']['ours'] / 1e6:.2f}"]
                    + [number(row["ratio"].get(name), ".3f") for name in names])
    return ([f"`benchmark/attention_decode.py`: one query a sequence, nodes of a graph, keys and values from memory, {decode['rounds']} paired rounds. {RATIO.capitalize()}.", ""]
            + table(["batch x keys, heads x size", "page", "format", "ours, us", "TB/s"] + [f"ratio, {name}" for name in names], rows))


def accuracy_table(accuracy):
    """The largest ratio of root mean squares for each format and kind of data, over rows and depths."""
    worst = {}
    for row in accuracy["rows"]:
        key = row["format"], row["data"]
        if key not in worst or row["ratio"] > worst[key]["ratio"]:
            worst[key] = row
    other = "oneDNN" if accuracy["device"] == "cpu" else "cuBLASLt"
    rows, depths = ([f"{n}" for n in sorted({row[name] for row in accuracy["rows"]})] for name in ("rows", "depth"))
    return ([f"`benchmark/accuracy.py --device {accuracy['device']}`: errors beside float64 in units of 2^-24 of the sum of magnitudes, torch {accuracy['torch']} ({other}) on the same data; of {', '.join(rows[:-1])} and {rows[-1]} rows and "
             f"K of {', '.join(depths[:-1])} and {depths[-1]} that with the largest ratio.", ""]
            + table(["format", "data", "rows", "K", "ours, rms", f"{other}, rms", "ratio"],
                    [[*key, f"{row['rows']}", f"{row['depth']}", f"{row['ours']['rms']:.4g}", f"{row['torch']['rms']:.4g}", f"{row['ratio']:.3f}"] for key, row in worst.items()]))


def block_accuracy_table(mm):
    names = list(dict.fromkeys(name for row in mm["accuracy"] for name in row["errors"]))
    return (["`benchmark/block_mm.py --accuracy`: errors beside float64 in the same units, scales over 20 powers of two; torch is cuBLASLt.", ""]
            + table(["data", "K"] + names, [["positive" if row["positive"] else "normal", f"{row['depth']}"] + [number(row["errors"].get(name), ".1f") for name in names] for row in mm["accuracy"]]))


def attention_accuracy_table(accuracy):
    names = list(dict.fromkeys(name for row in accuracy["rows"] for name in row["errors"]))
    return (["`benchmark/attention_accuracy.py`: relative errors beside float64 on the data that it describes.", ""]
            + table(["format", "head sizes", "data"] + names + [f"ours over {name}" for name in names[1:]],
                    [[row["case"][0], f"{row['case'][1]}/{row['case'][2]}", row["case"][3]] + [number(row["errors"].get(name), ".5f") for name in names]
                     + [number(row["ratio"].get(name), ".3f") for name in names[1:]] for row in accuracy["rows"]]))


PRODUCTS = re.compile("gemm|_mm_|linear|attn|attention|moe_cpu|conv|probe_")        # what has a table of its own beside others, or none
AT_MOST = [     # of large cases: names, MB they move at least, and the time they may take over L
    (re.compile(r"(gemma_)?(fused_add_)?rmsnorm_(bf16|f16|f32)_"), 64, 1.08),
    (re.compile(r"(silu|gelu|gelu_tanh)_and_mul_"), 64, 1.05),
    (re.compile(r"(rotary_embedding|fused_qk_norm_rope|concat_mla_k|merge_state_v2|moe_sum_reduce)_.*(4096|8192|16384)x"), 32, 1.12),
    (re.compile(r"sgl_per_token(_group)?_quant_\w*_16384x"), 64, 1.10),
]


def bench_table(bench):
    on_gpu = bool(bench["ceilings"]["gpu"])
    ceilings = bench["ceilings"]["gpu" if on_gpu else "cpu"]
    text = (f"`sgl-kernel bench --from 8`: copy {ceilings['copy_gigabytes_per_second']:.0f} GB/s, read {ceilings['read_gigabytes_per_second']:.0f} GB/s "
            f"at {ceilings['bytes'] >> 20} MB")
    if on_gpu:
        text += (f", an empty kernel in a graph {ceilings['empty_microseconds']:.2f} us; a call from C {ceilings['call_microseconds']:.2f} us, "
                 f"the driver's launch alone {ceilings['driver_launch_microseconds']:.2f} us")
    rows, held, wanted = [], 0, 0
    for row in bench["rows"]:
        if (row["bytes"] or 0) < 32e6 or not row["share"] or PRODUCTS.search(row["case"]):
            continue
        us = row["microseconds_graph"] or row["microseconds"]
        most = next((most for name, least, most in AT_MOST if name.match(row["case"]) and row["bytes"] >= least * 1e6), None)
        wanted += most is not None
        held += most is not None and 1 / row["share"] <= most
        rows.append([row["case"], f"{row['bytes'] / 1e6:.0f}", f"{us:.1f}", f"{row['gigabytes_per_second']:.0f}", f"{row['gigabytes_per_second'] / ceilings['copy_gigabytes_per_second']:.2f}",
                     f"{1 / row['share']:.3f}", f"{most:.2f}" if most and on_gpu else ""])
    text += (". Cases that move 32 MB or more, but for products and attention; inputs from memory, as nodes of a graph. L is the empty kernel and the bytes at the rate of a copy, of a read for what writes next to nothing."
             + (f" {held} of {wanted} cases with a bound keep it." if on_gpu and wanted else ""))
    return [text, ""] + table(["case", "MB", "us", "GB/s", "of the copy", "time / L", "at most"], rows)


def cpu_table(cpu):
    limits = cpu["ceilings"]
    lines = [f"`benchmark/elementwise_cpu.py`: bf16 where nothing else is said, torch {cpu['torch']}. `64 tokens`: what stays in the caches, {cpu['rounds']} paired rounds, a ratio above 1 "
             f"says that ours is faster than torch's eager form. `memory`: some 400 MB, the bytes that must move over the best time, and what memory would need for them over what ours needs (share): "
             f"what is updated in place at the rate of such an update, what is read and written at a copy's, what is only read at a read's, which take turns with the operator "
             f"(alone at the start {limits['update'] * 1e-9:.0f}, {limits['copy'] * 1e-9:.0f} and {limits['read'] * 1e-9:.0f} GB/s): "
             f"medians of paired rounds.", ""]
    lines += ["| operator | 64 tokens, us | torch, us | ratio | memory, ms | GB/s | share |", "|---|---|---|---|---|---|---|"]
    for row in cpu["rows"]:
        memory = f"{row['milliseconds']:.1f} | {row['gigabytes_per_second']:.1f} | {row['share']:.2f}" if "share" in row else " | | "
        lines.append(f"| {row['operator']} | {row['ours_microseconds']:.1f} | {row['torch_microseconds']:.1f} | {row['ratio']:.2f} | {memory} |")
    return lines + [""]


def linear_cpu_table(cpu):
    lines = [f"`benchmark/linear_cpu.py`: torch {cpu['torch']} (oneDNN) in turn with ours; `packed` has weights that were packed before, `linear` has them as they are. A ratio above 1 says that ours is faster.", ""]
    lines += ["| M x N x K | format | version | ms | TFLOP/s | ratio to oneDNN |", "|---|---|---|---|---|---|"]
    for row in cpu["many"]:
        for kind in ("bf16", "u8s8"):
            for name, ms in row[kind]["ms"].items():
                ratio = row[kind]["ratio"].get(f"oneDNN / {name}")
                lines.append(f"| {row['rows']} x {row['columns']} x {row['depth']} | {kind} | {name} | {ms:.2f} | {row[kind]['teraflops'][name]:.2f} | {f'{ratio:.3f}' if ratio else ''} |")
    names = [name for name in cpu["few"][0]["share_of_read"]]
    lines += ["", "Few rows, weights from memory: share of the GB/s of a plain read that takes turns with them.", "", "| M | read, GB/s | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for row in cpu["few"]:
        lines.append(f"| {row['rows']} | {row['gigabytes_per_second']['read']:.1f} | " + " | ".join(f"{row['share_of_read'][name]:.2f}" for name in names) + " |")
    return lines + [""]


def attention_cpu_table(cpu):
    lines = [f"`benchmark/attention_cpu.py`: torch {cpu['torch']} (its fastest form of `scaled_dot_product_attention`) and a plain read of as many bytes in turn with ours, medians of {cpu['rounds']} rounds.", ""]
    lines += ["| decode: batch x keys, heads x size | page | format | ms | GB/s | share of the read | times as fast as torch |", "|---|---|---|---|---|---|---|"]
    for row in cpu["decode"]:
        batch, keys, heads, kv_heads, dim, page, dtype = row["case"]
        ratio = f"{row['ratio']:.1f}" if row.get("ratio") else ""
        lines.append(f"| {batch} x {keys}, {heads}:{kv_heads} x {dim} | {page or 'none'} | {dtype} | {row['milliseconds']['ours']:.2f} | {row['gigabytes_per_second']['ours']:.1f} | "
                     f"{row['share_of_read']:.2f} | {ratio} |")
    lines += ["", "| prefill, causal: batch x length, heads x size | ms | GFLOP/s | torch, ms | times as fast |", "|---|---|---|---|---|"]
    for row in cpu["prefill"]:
        batch, length, heads, kv_heads, dim = row["case"]
        lines.append(f"| {batch} x {length}, {heads}:{kv_heads} x {dim} | {row['milliseconds']['ours']:.2f} | {row['gigaflops']['ours']:.0f} | {row['milliseconds']['torch']:.1f} | {row['ratio']:.2f} |")
    return lines + [""]


def llm_table(llm):
    lines = [f"`benchmark/bench_llm.py`: the example and transformers {llm['transformers']} on the shipped model ({llm['parameters'] / 1e6:.1f} million parameters, "
             f"{llm['dtype']}, {llm['device']}, {llm['threads']} threads), tokens per second, medians of {llm['rounds']} rounds in turn.", ""]
    lines += ["| phase | batch | ours | transformers | ratio |", "|---|---|---|---|---|"]
    for row in llm["results"]:
        lines.append(f"| {row['phase']} | {row['batch']} | {row['tokens_per_second']['ours']:.0f} | {row['tokens_per_second']['transformers']:.0f} | {row['ratio']:.2f} |")
    return lines + [""]


def llm_large_table(runs):
    first = runs[0]
    lines = [f"`benchmark/bench_llm.py --random`: the same with random weights in the shape of {first['model']} ({first['parameters'] / 1e9:.1f} billion parameters, {first['dtype']}). "
             "`share`: a step's bytes, weights and cache, at the rate of torch's sum, over the step's time.", ""]
    lines += ["| prompt tokens | a pass | phase | batch | ours | transformers | ratio | share |", "|---|---|---|---|---|---|---|---|"]
    for run in runs:
        for row in run["results"]:
            lines.append(f"| {run['prompt_tokens']} | {run['prefill_chunk'] or 'all'} | {row['phase']} | {row['batch']} | {row['tokens_per_second']['ours']:.0f} | "
                         f"{row['tokens_per_second']['transformers']:.0f} | {row['ratio']:.2f} | {row.get('share_of_reading', '') and format(row['share_of_reading'], '.2f')} |")
    return lines + [""]


TABLES = {"README.md": (operators, comparison), "docs/performance.md": (performance,)}


def main():
    for file, tables in TABLES.items():
        path = os.path.join(ROOT, file)
        before = text = open(path).read()
        for make in tables:
            start, end = f"<!-- tables: {make.__name__} -->\n", "<!-- end -->"
            head, rest = text.split(start)
            text = head + start + "\n".join(make()) + "\n" + end + rest.split(end, 1)[1]
        if text == before:
            continue
        if "--check" in sys.argv:
            sys.exit(f"{file}: its tables are not what the code and the results say; run tools/tables.py")
        open(path, "w").write(text)


if __name__ == "__main__":
    main()
