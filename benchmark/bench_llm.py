#!/usr/bin/env python3
"""Prefill and decode tokens/s of examples/llm and of transformers: same model, prompts and device, rounds in turn.

Both decode a fixed number of tokens for prompts of one length, so transformers needs no padding, and both get one untimed round: the
likeliest ones, or with --temperature drawn ones. Its loop is forward passes over its default cache and, where tokens are drawn, what
`generate` applies to logits, without the cost of `generate`.

--random NAME takes the shape of a large model, with random weights made on the device: what its sizes cost, without its files. Decoding at
batch 1 is then also compared with what reading its bytes takes (all weights but the embedding, and the cache) at the rate of torch's sum.
"""
import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers

EXAMPLE = Path(__file__).parent.parent / "examples" / "llm"
sys.path.insert(0, str(EXAMPLE))
import llama  # noqa: E402
from engine import Engine, Request  # noqa: E402
from llama import InputError, Model  # noqa: E402
from run import DTYPES  # noqa: E402


RANDOM = {
    "llama3-8b": dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                      num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=500000.0,
                      tie_word_embeddings=False, torch_dtype="bfloat16"),
}


class RandomWeights(dict):
    """Every tensor that a model of this configuration asks for."""

    def __init__(self, c, device):
        self.c, self.device = c, device

    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return SimpleNamespace(get_tensor=self.make)

    def make(self, name):
        c, kind = self.c, name.split(".")[-2]
        if kind.endswith("norm"):
            return torch.ones(c.hidden, dtype=c.dtype, device=self.device)
        kv, q = c.kv_heads * c.head_dim, c.heads * c.head_dim
        shape = {"embed_tokens": (c.vocab, c.hidden), "lm_head": (c.vocab, c.hidden), "q_proj": (q, c.hidden), "k_proj": (kv, c.hidden), "v_proj": (kv, c.hidden),
                 "o_proj": (c.hidden, q), "gate_proj": (c.intermediate, c.hidden), "up_proj": (c.intermediate, c.hidden), "down_proj": (c.hidden, c.intermediate)}[kind]
        return torch.empty(shape, dtype=c.dtype, device=self.device).normal_(std=shape[-1] ** -0.5)


def random_model(name, device, length):
    """Ours, and that of transformers with the very same weights; both take sequences of at least this length."""
    shape = RANDOM[name] | {"max_position_embeddings": max(length, RANDOM[name]["max_position_embeddings"])}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        llama.open_weights = lambda folder: RandomWeights(llama.read_config(folder), device)
        model = Model(folder, device)
    config = transformers.LlamaConfig(**{k: v for k, v in shape.items() if k not in ("architectures", "model_type", "torch_dtype")})
    with torch.device("meta"):
        peer = transformers.LlamaForCausalLM(config)
    c, weights = model.config, {"model.embed_tokens.weight": model.embedding, "lm_head.weight": model.head, "model.norm.weight": model.final_norm}
    kv, q = c.kv_heads * c.head_dim, c.heads * c.head_dim
    for i, layer in enumerate(model.layers):
        parts = {"input_layernorm": layer.attention_norm, "post_attention_layernorm": layer.mlp_norm, "self_attn.o_proj": layer.output[0], "mlp.down_proj": layer.down[0]}
        parts |= dict(zip(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), layer.qkv[0].split([q, kv, kv])))
        parts |= dict(zip(("mlp.gate_proj", "mlp.up_proj"), layer.gate_up[0].split(c.intermediate)))
        weights |= {f"model.layers.{i}.{part}.weight": tensor for part, tensor in parts.items()}
    peer.load_state_dict(weights, assign=True)
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config=config).to(device)
    return model, peer.eval()


def read_rate(device):
    """Bytes a second of torch's sum of 2 GiB."""
    x = torch.ones(1 << 30, dtype=torch.bfloat16, device=device)
    times = []
    for _ in range(8):
        start = clock(device)
        x.sum()
        times.append(clock(device) - start)
    return x.numel() * 2 / min(times)


def clock(device):
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(model, prompts, count, chunk, sampling):
    """(seconds of prefill, seconds of decode, tokens). Building the engine is not timed: a server does it once."""
    requests = [Request(list(ids), max_new_tokens=count, seed=seed, **sampling) for seed, ids in enumerate(prompts)]
    engine = Engine(model, requests, max_batch=len(requests), prefill_chunk=chunk or sum(map(len, prompts)))
    while engine.busy:
        engine.step()
    assert engine.decode.tokens == len(prompts) * (count - 1)
    return engine.prefill.seconds, engine.decode.seconds, [request.output for request in requests]


def chooser(sampling):
    """Tokens [batch, 1] of logits [batch, vocab], as transformers chooses them."""
    if not sampling["temperature"]:
        return lambda logits: logits.argmax(-1, keepdim=True)
    warpers = [transformers.TemperatureLogitsWarper(sampling["temperature"])]
    if sampling["top_k"]:
        warpers.append(transformers.TopKLogitsWarper(sampling["top_k"]))
    if sampling["top_p"] < 1:
        warpers.append(transformers.TopPLogitsWarper(sampling["top_p"]))
    processors = transformers.LogitsProcessorList(warpers)
    return lambda logits: torch.multinomial(processors(None, logits.float()).softmax(-1), 1)


@torch.inference_mode()
def theirs(model, prompts, count, device, choose):
    start = clock(device)
    step = model(torch.tensor(prompts, device=device), use_cache=True, logits_to_keep=1)
    chosen = choose(step.logits[:, -1])
    output = [chosen.tolist()]          # read back every step, as streaming and stopping need it
    middle = clock(device)
    for _ in range(count - 1):
        step = model(chosen, past_key_values=step.past_key_values, use_cache=True)
        chosen = choose(step.logits[:, -1])
        output.append(chosen.tolist())
    tokens = [[row[0] for row in column] for column in zip(*output)]
    return middle - start, clock(device) - middle, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=EXAMPLE / "model")
    parser.add_argument("--random", choices=RANDOM, help="instead of a model: random weights of that shape")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="unset: that of the checkpoint")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="prompts at once")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prefill-chunk", type=int, default=0, help="prompt tokens in one forward pass of ours; 0: all")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest tokens")
    parser.add_argument("--top-k", type=int, default=0, help="0: all tokens")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    args = parser.parse_args()
    if min(*args.batch, args.prompt_tokens, args.new_tokens - 1, args.rounds) < 1:
        parser.error("sizes and rounds are at least 1, --new-tokens at least 2")

    peer = None
    try:
        if args.random:
            model, peer = random_model(args.random, args.device, args.prompt_tokens + args.new_tokens)
        else:
            model = Model(args.model, args.device, DTYPES.get(args.dtype))
    except InputError as error:
        parser.error(str(error))
    if args.prompt_tokens + args.new_tokens > model.max_len:
        parser.error(f"the model takes {model.max_len} tokens")
    rate_of_reading = read_rate(args.device) if args.random else None
    if peer is None:
        peer = transformers.LlamaForCausalLM.from_pretrained(args.model, dtype=model.dtype).to(args.device).eval()

    sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    results = []
    for batch in args.batch:
        draw = random.Random(1)
        prompts = [[draw.randrange(3, model.config.vocab) for _ in range(args.prompt_tokens)] for _ in range(batch)]
        runs = {"ours": lambda: ours(model, prompts, args.new_tokens, args.prefill_chunk, sampling),
                "transformers": lambda: theirs(peer, prompts, args.new_tokens, args.device, chooser(sampling))}
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
            if args.random and phase == "decode":
                c, length = model.config, args.prompt_tokens + args.new_tokens / 2
                read = (c.parameters - c.vocab * c.hidden) * model.dtype.itemsize + batch * length * model.cache_bytes
                results[-1] |= {"bytes_a_step": read, "bytes_a_second": rate_of_reading, "share_of_reading": read / rate_of_reading * rate["ours"] / batch}
            print(f"{phase:8} batch {batch:3}: ours {rate['ours']:9.0f} tokens/s, transformers {rate['transformers']:9.0f} tokens/s, "
                  f"ratio {results[-1]['ratio']:5.2f}" + ("" if args.temperature else f", {same:.0%} of the tokens equal")
                  + (f", {results[-1]['share_of_reading']:.3f} of reading {read / 1e9:.2f} GB a step at {rate_of_reading / 1e12:.2f} TB/s" if "share_of_reading" in results[-1] else ""), flush=True)

    if args.json:
        where = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
        args.json.write_text(json.dumps({
            "model": args.random or args.model.name, "parameters": model.config.parameters, "device": args.device, "hardware": where,
            "threads": torch.get_num_threads(), "dtype": str(model.dtype).removeprefix("torch."), "torch": torch.__version__,
            "transformers": transformers.__version__, "rounds": args.rounds, "prompt_tokens": args.prompt_tokens,
            "new_tokens": args.new_tokens, "prefill_chunk": args.prefill_chunk, **sampling, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
