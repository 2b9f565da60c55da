#!/usr/bin/env python3
"""Prefill and decode tokens/s of examples/llm and of transformers: same model, prompts and device, rounds in turn.

Both decode greedily a fixed number of tokens for prompts of one length, so transformers needs no padding, and
both get one untimed round. Its loop is forward passes over its default cache, without the cost of `generate`.
"""
import argparse
import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers

EXAMPLE = Path(__file__).parent.parent / "examples" / "llm"
sys.path.insert(0, str(EXAMPLE))
from engine import Engine, Request  # noqa: E402
from llama import InputError, Model  # noqa: E402
from run import DTYPES  # noqa: E402


def clock(device):
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(model, prompts, count):
    """(seconds of prefill, seconds of decode, tokens). Building the engine is not timed: a server does it once."""
    requests = [Request(list(ids), max_new_tokens=count) for ids in prompts]
    engine = Engine(model, requests, max_batch=len(requests), prefill_chunk=sum(map(len, prompts)))
    while engine.busy:
        engine.step()
    assert engine.decode.tokens == len(prompts) * (count - 1)
    return engine.prefill.seconds, engine.decode.seconds, [request.output for request in requests]


@torch.inference_mode()
def theirs(model, prompts, count, device):
    start = clock(device)
    step = model(torch.tensor(prompts, device=device), use_cache=True, logits_to_keep=1)
    best = step.logits[:, -1].argmax(-1, keepdim=True)
    output = [best.tolist()]            # read back every step, as streaming and stopping need it
    middle = clock(device)
    for _ in range(count - 1):
        step = model(best, past_key_values=step.past_key_values, use_cache=True)
        best = step.logits[:, -1].argmax(-1, keepdim=True)
        output.append(best.tolist())
    tokens = [[row[0] for row in column] for column in zip(*output)]
    return middle - start, clock(device) - middle, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=EXAMPLE / "model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="unset: that of the checkpoint")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="prompts at once")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    args = parser.parse_args()
    if min(*args.batch, args.prompt_tokens, args.new_tokens - 1, args.rounds) < 1:
        parser.error("sizes and rounds are at least 1, --new-tokens at least 2")

    try:
        model = Model(args.model, args.device, DTYPES.get(args.dtype))
    except InputError as error:
        parser.error(str(error))
    if args.prompt_tokens + args.new_tokens > model.max_len:
        parser.error(f"the model takes {model.max_len} tokens")
    peer = transformers.LlamaForCausalLM.from_pretrained(args.model, dtype=model.dtype).to(args.device).eval()

    results = []
    for batch in args.batch:
        draw = random.Random(1)
        prompts = [[draw.randrange(3, model.config.vocab) for _ in range(args.prompt_tokens)] for _ in range(batch)]
        runs = {"ours": lambda: ours(model, prompts, args.new_tokens),
                "transformers": lambda: theirs(peer, prompts, args.new_tokens, args.device)}
        texts = {name: function()[2] for name, function in runs.items()}
        seconds = {name: [] for name in runs}
        for round in range(args.rounds):
            for name in sorted(runs, reverse=bool(round % 2)):
                seconds[name].append(runs[name]()[:2])
        same = sum(a == b for x, y in zip(*texts.values()) for a, b in zip(x, y)) / (batch * args.new_tokens)
        for i, (phase, tokens) in enumerate([("prefill", batch * args.prompt_tokens), ("decode", batch * (args.new_tokens - 1))]):
            rate = {name: tokens / statistics.median(pair[i] for pair in pairs) for name, pairs in seconds.items()}
            spread = {name: max(pair[i] for pair in pairs) / min(pair[i] for pair in pairs) for name, pairs in seconds.items()}
            results.append({"phase": phase, "batch": batch, "tokens": tokens, "tokens_per_second": rate, "slowest_over_fastest": spread,
                            "ratio": rate["ours"] / rate["transformers"], "same_tokens": same})
            print(f"{phase:8} batch {batch:3}: ours {rate['ours']:9.0f} tokens/s, transformers {rate['transformers']:9.0f} tokens/s, "
                  f"ratio {results[-1]['ratio']:5.2f}, {same:.0%} of the tokens equal", flush=True)

    if args.json:
        where = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
        args.json.write_text(json.dumps({
            "model": args.model.name, "parameters": model.config.parameters, "device": args.device, "hardware": where,
            "threads": torch.get_num_threads(), "dtype": str(model.dtype).removeprefix("torch."), "torch": torch.__version__,
            "transformers": transformers.__version__, "rounds": args.rounds, "prompt_tokens": args.prompt_tokens,
            "new_tokens": args.new_tokens, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
