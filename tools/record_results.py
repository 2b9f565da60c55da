#!/usr/bin/env python3
"""Puts the results of one run on one machine into benchmark/results/DATE-DEVICE.json, from which tables.py prints.

usage: record_results.py --commit COMMIT [--date DATE] [--time TIME] [--bench BENCH.json] [--llm LLM.json] [--llm-large LLM.json ...] [--comparison COMPARE.json] [--linear LINEAR.json]
                         [--linear-models LINEAR.json] [--linear-rows LINEAR.json] [--linear-invariant LINEAR.json]
                         [--linear-cpu CPU.json] [--elementwise-cpu CPU.json] [--dsv3 DSV3.json] [--scaled-mm MM.json] [--block-mm MM.json]
                         [--attention ATTENTION.json] [--attention-decode DECODE.json] [--attention-cpu CPU.json]
                         [--accuracy ERRORS.json] [--block-accuracy ERRORS.json] [--attention-accuracy ERRORS.json] [--tests TEST_GPU.json]

BENCH.json is what `sgk-check --bench --json` wrote, COMPARE.json what `benchmark/elementwise.py --json` did, LLM.json what `benchmark/bench_llm.py` did (several with --random), TEST_GPU.json what tools/test_gpu.py did;
LINEAR.json of --linear-models is with --shapes, of --linear-rows with --rows, of --linear-invariant with --batch-invariant, ERRORS.json of --block-accuracy is of block_mm.py --accuracy; the others are from the benchmark of the same name.
"""
import argparse
import datetime
import json
import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def device_of(result):
    if "bench" in result:
        return result["bench"]["gpu"] or "CPU " + result["bench"]["cpu"]
    if "comparison" in result:
        return result["comparison"]["ceilings"]["device"]
    return next(result[name] for name in ("linear", "linear_models", "linear_rows", "linear_invariant", "linear_cpu", "elementwise_cpu", "dsv3", "scaled_mm", "block_mm", "attention", "attention_decode", "attention_cpu", "accuracy", "block_accuracy", "attention_accuracy", "tests") if name in result)["device"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", required=True, help="what was built")
    now = datetime.datetime.now(datetime.timezone.utc)
    parser.add_argument("--date", default=now.date().isoformat())
    parser.add_argument("--time", default=f"{now:%H:%M}", help="of that day (UTC): the later of a day's results are printed")
    names = ("bench", "llm", "comparison", "linear", "linear_models", "linear_rows", "linear_invariant", "linear_cpu", "elementwise_cpu", "dsv3", "scaled_mm", "block_mm", "attention", "attention_decode", "attention_cpu", "accuracy", "block_accuracy", "attention_accuracy", "tests")
    for name in names:
        parser.add_argument("--" + name.replace("_", "-"), type=argparse.FileType())
    parser.add_argument("--llm-large", type=argparse.FileType(), nargs="+")
    arguments = parser.parse_args()
    result = {"date": arguments.date, "time": arguments.time, "commit": arguments.commit}
    for name in names:
        file = getattr(arguments, name)
        if file:
            result[name] = json.load(file)
    if arguments.llm_large:
        result["llm_large"] = [json.load(file) for file in arguments.llm_large]
    device = device_of(result)
    result = {"device": device} | result
    path = os.path.join(ROOT, "benchmark/results", f"{arguments.date}-{re.sub('[^a-z0-9]+', '-', device.lower())}.json")
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    print(path)


if __name__ == "__main__":
    main()
