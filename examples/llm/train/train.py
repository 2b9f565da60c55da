"""Train the small Llama that ships with this example, from one text file to a Hugging Face model directory.

    python train.py --text kjv.txt --out model --device cuda --sample

Plain torch: the model is written out below under the names of Hugging Face's Llama, so its state_dict is
the checkpoint. README.md says where the text comes from and what the run reached.
"""

import argparse
import hashlib
import json
import math
import platform
import random
import time
from pathlib import Path

import safetensors.torch
import tokenizers
import torch
import torch.nn.functional as F
from torch import nn

BOS, EOS = "<s>", "</s>"        # ids 0 and 1

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


# ---- model: attribute names are the checkpoint's names ------------------------------------------------------

class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        # f32 under autocast too: the sum of squares is where bf16 would lose most
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


def rope_tables(config, length, device):
    d = config["head_dim"]
    frequency = config["rope_theta"] ** (-torch.arange(0, d, 2, device=device, dtype=torch.float32) / d)
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        self.dropout = dropout
        self.q_proj = nn.Linear(c["hidden_size"], self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(c["hidden_size"], self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(c["hidden_size"], self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, c["hidden_size"], bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        group = self.heads // self.kv_heads
        y = F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1),
                                           is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c, dropout)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = MLP(c)
        self.drop = nn.Dropout(dropout)

    def forward(self, x, cos, sin):
        x = x + self.drop(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))


class Body(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, dropout) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.drop = nn.Dropout(dropout)


class Llama(nn.Module):
    def __init__(self, config, dropout=0.0):
        super().__init__()
        self.config = config
        self.model = Body(config, dropout)
        residual = config["initializer_range"] / math.sqrt(2 * config["num_hidden_layers"])
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # the two projections that write to the residual stream start smaller, so that depth does not inflate it
                nn.init.normal_(p, std=residual if name.endswith(("o_proj.weight", "down_proj.weight"))
                                else config["initializer_range"])

    def forward(self, ids):
        cos, sin = rope_tables(self.config, ids.shape[1], ids.device)
        x = self.model.drop(self.model.embed_tokens(ids))
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)        # tied embeddings


# ---- text ---------------------------------------------------------------------------------------------------

def read_documents(path):
    documents = [d.strip() for d in path.read_text(encoding="utf-8").split("\n\n")]
    return [d for d in documents if d]


def split(documents, fraction, seed):
    """Hold out whole documents, so that no held-out sentence has its neighbours in the training text."""
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    held = set(order[:max(1, round(fraction * len(documents)))])
    return ([d for i, d in enumerate(documents) if i not in held],
            [d for i, d in enumerate(documents) if i in held])


def train_tokenizer(documents, vocab_size):
    """Byte-level BPE: all 256 bytes are in the vocabulary, so every input encodes and nothing is unknown."""
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    t.train_from_iterator(documents, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    t.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, t.token_to_id(BOS))])
    if t.get_vocab_size() != vocab_size:
        raise SystemExit(f"train: the text gives a vocabulary of {t.get_vocab_size()} tokens, "
                         f"expected {vocab_size}; it needs more text")
    return t


def encode(tokenizer, documents):
    """Token ids of each document, without BOS, with EOS at its end."""
    eos = tokenizer.token_to_id(EOS)
    return [e.ids + [eos] for e in tokenizer.encode_batch(documents, add_special_tokens=False)]


def windows(documents, context, start=0):
    """[N, context + 1] ids. Every window begins with BOS, wherever the text was cut: generation begins so too.
    Consecutive windows share one token, so each token is predicted exactly once."""
    stream = torch.tensor([i for d in documents for i in d], dtype=torch.int64)[start:]
    count = (len(stream) - 1) // context
    if count < 1:
        raise SystemExit(f"train: {len(stream)} tokens are fewer than one window of {context} + 1")
    rows = torch.stack([stream[n * context:n * context + context + 1] for n in range(count)])
    rows[:, 0] = CONFIG["bos_token_id"]
    return rows


def batches(documents, context, size, generator):
    """Endless epochs: documents in a new order and cut at a new offset each time, so no two epochs look alike."""
    while True:
        order = torch.randperm(len(documents), generator=generator).tolist()
        start = int(torch.randint(context, (1,), generator=generator))
        rows = windows([documents[i] for i in order], context, start)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        for n in range(0, len(rows) - size + 1, size):
            yield rows[n:n + size]


# ---- training -----------------------------------------------------------------------------------------------

@torch.no_grad()
def token_losses(model, rows, args):
    """Loss of each predicted token, [N, context], f32 on the CPU."""
    model.eval()
    losses = []
    for row in rows.split(args.batch):
        row = row.to(args.device)
        with autocast(args):
            logits = model(row[:, :-1])
        losses.append(F.cross_entropy(logits.float().flatten(0, 1), row[:, 1:].flatten(),
                                      reduction="none").view(row.shape[0], -1).cpu())
    model.train()
    return torch.cat(losses)


def autocast(args):
    return torch.autocast("cuda", torch.bfloat16, enabled=args.device.startswith("cuda"))


def train(model, documents, held_rows, args):
    """Returns the state with the least held-out loss, its step and loss, and the curve."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    gains = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": args.weight_decay},
                                   {"params": gains, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.95), fused=args.device.startswith("cuda"))
    warmup = max(1, min(200, args.steps // 10))

    def schedule(step):
        if step < warmup:
            return (step + 1) / warmup
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, args.steps - warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    source = batches(documents, args.context, args.batch, torch.Generator().manual_seed(args.seed))
    every = max(10, args.steps // 25)
    best, best_step, best_state, curve = math.inf, 0, None, []
    running = torch.zeros((), device=args.device)
    counted, started = 0, time.time()
    for step in range(1, args.steps + 1):
        rows = next(source)
        if args.device.startswith("cuda"):
            rows = rows.pin_memory().to(args.device, non_blocking=True)
        with autocast(args):
            logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        running += loss.detach()
        counted += 1
        if step % every == 0 or step == args.steps:
            held = token_losses(model, held_rows, args).mean().item()
            shown = running.item() / counted
            seconds = time.time() - started
            curve.append({"step": step, "train_loss": round(shown, 4), "held_out_loss": round(held, 4)})
            if held < best:
                best, best_step = held, step
                best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
            print(f"step {step:5d}/{args.steps}  train {shown:.4f}  held-out {held:.4f}  "
                  f"{step * args.batch * args.context / seconds / 1e3:.0f}k tokens/s  {seconds:.0f} s", flush=True)
            running.zero_()
            counted = 0
    if best_state is None:
        raise SystemExit("train: the held-out loss was never finite; lower --lr")
    return best_state, best_step, curve, time.time() - started


# ---- the model directory ------------------------------------------------------------------------------------

def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save(out, state, tokenizer):
    out.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to("cpu", torch.bfloat16).contiguous() for k, v in state.items()}
    safetensors.torch.save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)       # safetensors writes it for its owner alone
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "config.json", CONFIG)
    write_json(out / "generation_config.json", {
        "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.8, "top_p": 0.9})
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS,
        "clean_up_tokenization_spaces": False, "model_max_length": CONFIG["max_position_embeddings"]})


def load(out):
    """The saved model, its bf16 weights widened to f32."""
    model = Llama(json.loads((out / "config.json").read_text()))
    model.load_state_dict({k: v.float() for k, v in safetensors.torch.load_file(out / "model.safetensors").items()})
    return model.eval()


@torch.no_grad()
def compare_with_transformers(out, ids):
    """Largest difference between our logits and those of transformers, both in f32 from the saved files."""
    try:
        import transformers
    except ImportError:
        print("transformers is not installed: the saved directory was not compared with it")
        return None
    theirs, info = transformers.LlamaForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    wrong = [k for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[k]]
    if wrong:
        raise SystemExit(f"train: transformers reports {wrong[0]} {sorted(info[wrong[0]])} in {out}, expected none")
    text = "And it came to pass, that he said unto them, 1 + 1 = 2 \u2026"
    if transformers.AutoTokenizer.from_pretrained(out)(text).input_ids != \
            tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")).encode(text).ids:
        raise SystemExit(f"train: transformers reads another tokenizer from {out} than the tokenizers library does")
    ours, reference = load(out)(ids), theirs.eval()(ids).logits
    difference = (ours - reference).abs().max().item()
    if not difference < 1e-3 * reference.abs().max().item():
        raise SystemExit(f"train: logits differ from transformers by {difference:g}, "
                         f"expected less than a thousandth of the largest, {reference.abs().max().item():g}")
    return {"version": transformers.__version__, "positions": ids.shape[1], "max_abs_logit_difference": difference}


@torch.no_grad()
def sample(model, tokenizer, prompt, tokens, seed, temperature=0.8, top_p=0.9):
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt).ids
    for _ in range(tokens):
        logits = model(torch.tensor([ids], device=model.model.norm.weight.device))[0, -1].float().cpu()
        p, order = (logits / temperature).softmax(-1).sort(descending=True)
        p[p.cumsum(-1) - p > top_p] = 0
        ids.append(int(order[torch.multinomial(p, 1, generator=generator)]))
        if ids[-1] == model.config["eos_token_id"]:
            break
    return tokenizer.decode(ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="paragraphs a line, blank line between documents")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--source", default="King James Bible, Debian package bible-kjv-text 4.38",
                        help="where the text comes from, for training.json")
    parser.add_argument("--seed", type=int, default=1611)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8, help="windows a step")
    parser.add_argument("--context", type=int, default=CONFIG["max_position_embeddings"], help="tokens a window")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.3)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--held-out", type=float, default=0.05, help="share of the documents held out")
    parser.add_argument("--sample", action="store_true", help="print three sampled continuations at the end")
    args = parser.parse_args()
    if not 1 <= args.context <= CONFIG["max_position_embeddings"]:
        parser.error(f"--context is {args.context}, expected 1 to {CONFIG['max_position_embeddings']}")
    if args.steps < 1 or args.batch < 1:
        parser.error(f"--steps is {args.steps} and --batch {args.batch}, expected at least 1 each")

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    documents = read_documents(args.text)
    # the split has a seed of its own: runs with different seeds are judged on the same chapters
    train_documents, held_documents = split(documents, args.held_out, seed=1)
    tokenizer = train_tokenizer(train_documents, CONFIG["vocab_size"])
    train_ids, held_ids = encode(tokenizer, train_documents), encode(tokenizer, held_documents)
    train_tokens, held_tokens = sum(map(len, train_ids)), sum(map(len, held_ids))
    if train_tokens <= (args.batch + 2) * args.context:
        raise SystemExit(f"train: {train_tokens} training tokens are too few for --batch {args.batch} windows "
                         f"of {args.context}")
    held_rows = windows(held_ids, args.context)
    bytes_a_token = sum(len(d.encode()) for d in held_documents) / held_tokens
    model = Llama(CONFIG, args.dropout).to(args.device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(train_documents)} training documents, {train_tokens} tokens; {len(held_documents)} held out, "
          f"{held_tokens} tokens of {bytes_a_token:.2f} bytes; {parameters} parameters; "
          f"{args.steps * args.batch * args.context / train_tokens:.1f} epochs", flush=True)

    state, step, curve, seconds = train(model, train_ids, held_rows, args)
    save(args.out, state, tokenizer)

    # what is reported is measured on the saved weights, after their rounding to bf16
    saved = load(args.out).to(args.device)
    held = token_losses(saved, held_rows, args)
    seen = token_losses(saved, windows(train_ids, args.context)[:len(held_rows)], args)
    bands = [(a, b) for a, b in ((0, 64), (64, 256), (256, 512), (512, 1024), (1024, 2048)) if b <= args.context]
    print(f"kept step {step}: held-out {held.mean():.4f} nats a token "
          f"({held.mean() / math.log(2) / bytes_a_token:.3f} bits a byte), training text {seen.mean():.4f}")
    agreement = compare_with_transformers(args.out, held_rows[:1, :min(1024, args.context)])
    print(f"against transformers: {agreement}")

    write_json(args.out / "training.json", {
        "source": args.source,
        "text_sha256": hashlib.sha256(args.text.read_bytes()).hexdigest(),
        "seed": args.seed,
        "parameters": parameters,
        "steps": args.steps,
        "kept_step": step,
        "batch": args.batch,
        "context": args.context,
        "tokens_trained": args.steps * args.batch * args.context,
        "training_tokens": train_tokens,
        "held_out_tokens": held_tokens,
        "held_out_documents": len(held_documents),
        "optimizer": {"name": "AdamW", "betas": [0.9, 0.95], "lr": args.lr, "schedule": "linear warm-up, cosine to 1 %",
                      "weight_decay": args.weight_decay, "gradient_clip": 1.0, "dropout": args.dropout},
        "saved_weights": {
            "held_out_loss": round(held.mean().item(), 4),
            "held_out_bits_a_byte": round(held.mean().item() / math.log(2) / bytes_a_token, 4),
            "training_text_loss": round(seen.mean().item(), 4),
            "held_out_loss_by_position": {f"{a}-{b - 1}": round(held[:, a:b].mean().item(), 4) for a, b in bands}},
        "curve": curve,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "tokenizers": tokenizers.__version__, "safetensors": safetensors.__version__},
        "transformers_comparison": agreement,
    })
    size = sum(f.stat().st_size for f in args.out.iterdir())
    print(f"wrote {args.out}: {size / 2**20:.2f} MiB")

    if args.sample:
        for n, prompt in enumerate(("In the beginning", "And the king said unto his servants,", "Blessed is the man")):
            print(f"\n--- {prompt!r}\n{sample(saved, tokenizer, prompt, 160, args.seed + n)}")


if __name__ == "__main__":
    main()
