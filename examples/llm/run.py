#!/usr/bin/env python3
"""Continue prompts with a Llama from a Hugging Face directory, on the operators of sgl_kernel alone."""
import argparse
import json
import sys
from pathlib import Path

try:
    import torch
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

    from engine import Engine, Request
    from llama import DTYPES, InputError, Model, refusal, require
except ImportError as error:
    print(f"run.py: error: {error}; `make run` (without VENV=none) installs what it takes", file=sys.stderr)
    sys.exit(2)

PROMPTS = ["And it came to pass in those days, that", "The LORD is my"]
# What a request may set, with the values it may take.
LIMITS = {"max_new_tokens": (int, 1, 2**31 - 1), "temperature": (float, 0, 1e4), "top_k": (int, 0, 2**31 - 1),
          "top_p": (float, 1e-6, 1), "seed": (int, 0, 2**63 - 1)}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(message)


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def parse(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("model", nargs="?", type=Path, default=Path(__file__).parent / "model", help="directory of the model")
    add("--prompt", action="append", default=[], help="may be given several times")
    add("--prompt-file", type=Path, help=f"one prompt a line; in a .jsonl file an object with prompt and any of {', '.join(LIMITS)}")
    add("--max-new-tokens", type=int, default=128)
    add("--temperature", type=float, help="0 takes the likeliest token; unset, generation_config.json decides")
    add("--top-k", type=int, help="draw from the k likeliest tokens, 0: from all; unset as above")
    add("--top-p", type=float, help="draw from the likeliest tokens that sum to p; unset as above")
    add("--seed", type=int, default=0, help="of the first prompt; the next one takes the next seed")
    add("--ignore-eos", action="store_true", help="do not stop at the end-of-text token")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    add("--dtype", choices=DTYPES, help="unset: that of the checkpoint")
    add("--max-batch", type=positive, default=32, help="requests that run at once")
    add("--prefill-chunk", type=positive, default=2048, help="prompt tokens in one forward pass")
    add("--page-size", type=positive, default=16, help="tokens in a page of the KV cache")
    add("--kv-tokens", type=positive, help="limit of the KV cache; unset: what the prompts need, within free memory")
    add("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args(argv)
    require(args.device == "cpu" or torch.cuda.is_available(), "--device is cuda, but torch finds no CUDA device here")
    return args


def read_prompts(args):
    """[{"prompt": text, and what this request alone sets}]"""
    prompts, path = [{"prompt": text} for text in args.prompt], args.prompt_file
    if not path:
        return prompts or [{"prompt": text} for text in PROMPTS]
    with refusal(f"cannot read {path}"):
        lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        with refusal(f"{path}, line {number} is not valid JSON"):
            own = json.loads(line) if path.suffix == ".jsonl" else {"prompt": line}
        require(isinstance(own, dict) and isinstance(own.get("prompt"), str) and not own.keys() - LIMITS - {"prompt"},
                f"{path}, line {number}: expected an object with prompt and any of {', '.join(LIMITS)}")
        prompts.append(own)
    require(prompts, f"{path} has no prompt")
    return prompts


def make_request(args, model, tokenizer, number, own):
    """The n-th request: the options, over them what this prompt sets, under them the checkpoint's own wishes."""
    options = {name: getattr(args, name) for name in LIMITS} | {"seed": args.seed + number}
    values = model.config.sampling | {name: value for name, value in options.items() if value is not None} | own
    ids = tokenizer.encode(values.pop("prompt")).ids
    for name, value in values.items():
        kind, low, high = LIMITS[name]
        require(not isinstance(value, bool) and isinstance(value, (int, kind)) and low <= value <= high,
                f"{name} of prompt {number + 1} is {value}, expected {kind.__name__} from {low} to {high}")
    require(0 < len(ids) < model.max_len, f"prompt {number + 1} has {len(ids)} tokens, the model takes 1 to {model.max_len - 1}")
    require(max(ids) < model.config.vocab,
            f"tokenizer.json gives token {max(ids)}, the model has {model.config.vocab}; they do not belong together")
    values["max_new_tokens"] = min(values["max_new_tokens"], model.max_len - len(ids))
    return Request(ids, stop=frozenset() if args.ignore_eos else model.config.eos, **values)


def generate(engine, requests, prompts, tokenizer, write):
    """The texts of all requests, written in the order of their prompts: the first unfinished one grows, the later ones wait."""
    texts = dict.fromkeys(requests, "")
    streams = {request: DecodeStream(ids=request.prompt, skip_special_tokens=True) for request in requests}
    for number, (request, own) in enumerate(zip(requests, prompts), 1):
        unwritten = f"[{number}] {own['prompt']}{texts[request]}"
        while not request.finish:
            known = len(texts[request])
            for served in engine.step():
                texts[served] += streams[served].step(tokenizer, served.output[-1]) or ""
            write(unwritten + texts[request][known:])
            unwritten = ""
        write(unwritten + "\n\n")
    return texts.values()


def run(args):
    with refusal(f"cannot read {args.model / 'tokenizer.json'}"):
        tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    prompts = read_prompts(args)
    model = Model(args.model, args.device, DTYPES.get(args.dtype))
    requests = [make_request(args, model, tokenizer, number, own) for number, own in enumerate(prompts)]
    engine = Engine(model, requests, args.page_size, args.max_batch, args.prefill_chunk, args.kv_tokens)
    texts = generate(engine, requests, prompts, tokenizer, lambda text: args.json or print(text, end="", flush=True))

    report = {"model": str(args.model), "parameters": model.config.parameters, "device": args.device,
              "dtype": str(model.dtype).removeprefix("torch."), "prefill": engine.prefill.report(), "decode": engine.decode.report()}
    if args.json:
        report["results"] = [
            {"prompt": own["prompt"], "text": text, "tokens": request.output, "finish": request.finish, "prompt_tokens": len(request.prompt),
             **{name: getattr(request, name) for name in LIMITS}} for own, text, request in zip(prompts, texts, requests)]
        print(json.dumps(report, indent=1))
    else:
        rates = "; ".join("{} {tokens} tokens in {seconds:.3f} s, {tokens_per_second:.0f} tokens/s".format(what, **report[what])
                          for what in ("prefill", "decode"))
        print(f"{model.config.parameters / 1e6:.1f} M parameters in {report['dtype']} on {args.device}: {rates}", file=sys.stderr)


def main(argv=None):
    try:
        run(parse(argv))
        return 0
    except InputError as error:
        message, code = error, 2
    except torch.OutOfMemoryError:
        message, code = "the GPU ran out of memory; lower --prefill-chunk, --max-batch or --kv-tokens", 2
    except (ImportError, RuntimeError) as error:        # an operator says what this machine, this build or this torch cannot do
        message, code = str(error).partition("\n")[0], 1
    except KeyboardInterrupt:
        return 130
    print(f"run.py: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
