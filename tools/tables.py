#!/usr/bin/env python3
"""Prints the tables of README.md from the code and from measured results, between `<!-- tables: NAME -->` and `<!-- end -->`.

usage: tables.py            rewrite the tables
       tables.py --check    fail when a table is not what the code and the results say

operators     from csrc/ops.def and the files of each family
performance   from the newest file benchmark/results/*.json of each device
"""
import glob
import json
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROW = re.compile(r'^OP\((\w+),\s*([A-Z |]+),.*?\b(sgk_\w+)\(', re.M | re.S)


def operators():
    text = open(os.path.join(ROOT, "csrc/ops.def")).read()
    lines = ["| operator | family | CPU | GPU |", "|---|---|---|---|"]
    family = ""
    for match in re.finditer(r"^#if SGK_HAVE_(\w+)|" + ROW.pattern, text, ROW.flags):
        if match.group(1):
            family = match.group(1).lower()
            continue
        name, devices, function = match.groups()[1:]
        folder = os.path.join(ROOT, "csrc/ops", family)
        vector = has_vector_version(folder, family, function.removeprefix("sgk_"))
        cpu = ("reference, AVX2, AVX-512, AVX-512 BF16" if vector else "reference, in parallel") if "CPU" in devices else ""
        gpu = "sm_80 and newer" if "CUDA" in devices and glob.glob(folder + "/*.cu") else ""
        lines.append(f"| `{name}` | {family} | {cpu} | {gpu} |")
    return lines


def has_vector_version(folder, family, function):
    """Whether a *_cpu.c holds it: under the C function's name, the beginning of that name, or the family's."""
    found = [name for f in glob.glob(folder + "/*_cpu.c") for name in re.findall(r"SGK_CPU_FN\((\w+)\)", open(f).read())]
    return any(name == family or function == name or function.startswith(name + "_") for name in found)


def performance():
    newest = {}
    for path in sorted(glob.glob(os.path.join(ROOT, "benchmark/results/*.json"))):
        result = json.load(open(path))
        if "table" in result:
            newest[result["device"]] = result
    lines = []
    for device, result in sorted(newest.items()):
        lines += [f"**{device}**, {result['date']}, commit {result['commit']}, `{result['command']}`. {result['note']}", ""]
        header = result["table"]["header"]
        lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in result["table"]["rows"]]
        lines.append("")
    return lines[:-1] or ["No results yet."]


def main():
    path = os.path.join(ROOT, "README.md")
    before = text = open(path).read()
    for name, make in (("operators", operators), ("performance", performance)):
        start, end = f"<!-- tables: {name} -->\n", "<!-- end -->"
        head, rest = text.split(start)
        text = head + start + "\n".join(make()) + "\n" + end + rest.split(end, 1)[1]
    if text == before:
        return
    if "--check" in sys.argv:
        sys.exit("README.md: its tables are not what the code and the results say; run tools/tables.py")
    open(path, "w").write(text)


if __name__ == "__main__":
    main()
