"""A Llama checkpoint on the operators of sgl_kernel: read it, run it.

Everything numeric in `Model.forward` is an operator of the library; torch holds the memory, looks up rows
and makes views. What cannot be run is refused with an `InputError` of one sentence before weights are read.
"""
import json
import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import safe_open
from sgl_kernel import FusedSetKVBufferArg, apply_rope_with_cos_sin_cache_inplace, fused_add_rmsnorm, linear, rmsnorm, silu_and_mul
from sgl_kernel.flash_attn import flash_attn_with_kvcache

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ROPE_FACTORS = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}


class InputError(Exception):
    """Something the user gave cannot be used; the message is one sentence for that user."""


def require(holds, message):
    if not holds:
        raise InputError(message)


@contextmanager
def refusal(message):
    """What any library has against a file, as one sentence; they share no class of errors."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{message}: {getattr(error, 'strerror', None) or error}") from None


def read_json(path):
    with refusal(f"cannot read {path}"):
        value = json.loads(path.read_text(encoding="utf-8"))
    require(isinstance(value, dict), f"{path} holds a {type(value).__name__}, expected an object")
    return value


def gib(size):
    return f"{size / 2**30:.3g} GiB"


def free_bytes(device):
    """Memory that can still be allocated; on a system that does not tell, no limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError, StopIteration):
        return next(int(line.split()[1]) * 1024 for line in open("/proc/meminfo") if line.startswith("MemAvailable:"))
    return 2**62


def read_config(folder):
    """What config.json and generation_config.json say about a Llama, in our names."""
    path, generation = folder / "config.json", folder / "generation_config.json"
    raw, wishes = read_json(path), read_json(generation) if generation.exists() else {}

    def size(key, default=None):
        value = default if raw.get(key) is None else raw[key]
        require(type(value) is int and value > 0, f"{path}: {key} is {value}, expected a positive integer")
        return value

    architecture = (raw.get("architectures") or [raw.get("model_type")])[0]
    require(architecture in ("LlamaForCausalLM", "llama"), f"{path}: architecture {architecture} is unknown, expected LlamaForCausalLM")
    require(not raw.get("quantization_config"), f"{path}: quantized checkpoints are not supported")
    require(raw.get("hidden_act", "silu") == "silu", f"{path}: hidden_act is {raw.get('hidden_act')}, expected silu")
    dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
    require(getattr(torch, dtype, None) in DTYPES.values(), f"{path}: dtype {dtype} is not supported, expected float32, float16 or bfloat16")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    require(kind in ROPE_FACTORS and rope.get("partial_rotary_factor", 1.0) == 1.0,
            f"{path}: rope scaling {rope} is unknown, expected {', '.join(ROPE_FACTORS)}")
    lacking = [factor for factor in ROPE_FACTORS[kind] if factor not in rope]
    require(not lacking, f"{path}: rope scaling {kind} lacks {', '.join(lacking)}")

    heads, hidden = size("num_attention_heads"), size("hidden_size")
    eos = wishes.get("eos_token_id", raw.get("eos_token_id"))
    c = SimpleNamespace(
        vocab=size("vocab_size"), hidden=hidden, intermediate=size("intermediate_size"), layers=size("num_hidden_layers"),
        heads=heads, kv_heads=size("num_key_value_heads", heads), head_dim=size("head_dim", hidden // heads),
        max_len=size("max_position_embeddings", 2048), eps=raw.get("rms_norm_eps", 1e-6), dtype=getattr(torch, dtype),
        rope={"rope_theta": raw.get("rope_theta", 10000.0), **rope, "rope_type": kind}, tied=raw.get("tie_word_embeddings", False),
        attention_bias=raw.get("attention_bias", False), mlp_bias=raw.get("mlp_bias", False),
        eos=frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos),
        sampling={name: wishes[name] for name in ("temperature", "top_k", "top_p") if wishes.get("do_sample") and name in wishes})
    require(c.heads % c.kv_heads == 0 and c.head_dim % 8 == 0 and c.head_dim <= 256,
            f"{path}: {c.heads} heads over {c.kv_heads} KV heads of size {c.head_dim} are not supported, expected whole groups and a head "
            "size that is a multiple of 8 up to 256")
    c.parameters = c.hidden * (c.vocab * (1 if c.tied else 2) + 1 + c.layers * (2 * c.head_dim * (c.heads + c.kv_heads) + 3 * c.intermediate + 2))
    return c


def rope_table(config):
    """[max_len, head_dim]: the cosines, then the sines, of every position; computed once, when the model is loaded."""
    rope = config.rope
    frequency = rope["rope_theta"] ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    if rope["rope_type"] == "linear":
        frequency /= rope["factor"]
    if rope["rope_type"] == "llama3":       # long waves are slowed by the factor, short ones kept, those between blended
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope.get("original_max_position_embeddings", config.max_len) * frequency / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = keep * frequency + (1 - keep) * frequency / rope["factor"]
    angle = torch.arange(config.max_len, dtype=torch.float32)[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def open_weights(folder):
    """{name of a tensor: the open safetensors file that holds it}"""
    index = folder / "model.safetensors.index.json"
    files = sorted(set(read_json(index).get("weight_map", {}).values())) if index.exists() else ["model.safetensors"]
    holder = {}
    for file in (folder / Path(name).name for name in files):
        require(file.exists(), f"{file} is missing; weights are read from model.safetensors or the files its index names")
        with refusal(f"{file} is not a readable safetensors file"):
            opened = safe_open(file, framework="pt")
        holder |= dict.fromkeys(opened.keys(), opened)
    return holder


@dataclass
class Batch:
    """One forward pass over `b` sequences, their new tokens laid end to end."""
    tokens: torch.Tensor          # [T] int64
    positions: torch.Tensor       # [T] int64, within the sequence
    slots: torch.Tensor           # [T] int64, where the cache keeps the token: page * page_size + offset
    cu_seqlens_q: torch.Tensor    # [b + 1] int32, where each sequence's new tokens begin
    cache_seqlens: torch.Tensor   # [b] int32, length of each sequence, new tokens included
    page_table: torch.Tensor      # [b, pages] int32
    max_seqlen_q: int
    rows: torch.Tensor = None     # [r] int64, tokens whose logits are wanted; None for all

    def to(self, device):
        return Batch(**{name: value.to(device) if torch.is_tensor(value) else value for name, value in vars(self).items()})


class Model:
    def __init__(self, folder, device="cpu", dtype=None):
        self.config = c = read_config(Path(folder))
        self.device, self.dtype, self.max_len = torch.device(device), dtype or c.dtype, c.max_len
        self.cache_bytes = 2 * c.layers * c.kv_heads * c.head_dim * self.dtype.itemsize     # of one token
        self.files = open_weights(Path(folder))
        need, free = c.parameters * self.dtype.itemsize, free_bytes(self.device)
        require(need <= free, f"too little memory for the weights: they take {gib(need)}, {self.device} has {gib(free)} free")

        self.embedding = self.load({"model.embed_tokens.weight": c.vocab}, c.hidden)
        self.head = self.embedding if c.tied else self.load({"lm_head.weight": c.vocab}, c.hidden)
        self.final_norm = self.load({"model.norm.weight": c.hidden})
        self.rope = rope_table(c).to(self.device)
        self.layers = []
        for prefix in (f"model.layers.{i}." for i in range(c.layers)):
            attention, mlp, q, kv = prefix + "self_attn.", prefix + "mlp.", c.heads * c.head_dim, c.kv_heads * c.head_dim
            self.layers.append(SimpleNamespace(
                attention_norm=self.load({prefix + "input_layernorm.weight": c.hidden}),
                qkv=self.projection(attention, {"q": q, "k": kv, "v": kv}, c.hidden, c.attention_bias),
                output=self.projection(attention, {"o": c.hidden}, q, c.attention_bias),
                mlp_norm=self.load({prefix + "post_attention_layernorm.weight": c.hidden}),
                gate_up=self.projection(mlp, {"gate": c.intermediate, "up": c.intermediate}, c.hidden, c.mlp_bias),
                down=self.projection(mlp, {"down": c.hidden}, c.intermediate, c.mlp_bias)))
        del self.files

    def load(self, rows, *columns):
        """The named tensors, each with its number of rows, one below the other in one tensor."""
        stacked = torch.empty(sum(rows.values()), *columns, dtype=self.dtype, device=self.device)
        for name, part in zip(rows, stacked.split(list(rows.values()))):
            require(name in self.files, f"the checkpoint lacks the tensor {name}")
            tensor = self.files[name].get_tensor(name)
            require(tensor.shape == part.shape and tensor.dtype in DTYPES.values(),
                    f"tensor {name} is {tensor.dtype} {list(tensor.shape)}, expected float32, float16 or bfloat16 {list(part.shape)}")
            part.copy_(tensor)
        return stacked

    def projection(self, prefix, rows, columns, bias):
        """A weight and its bias; projections of the same input are stacked into one."""
        weight, biases = ({f"{prefix}{name}_proj.{kind}": size for name, size in rows.items()} for kind in ("weight", "bias"))
        return self.load(weight, columns), self.load(biases) if bias else None

    def new_cache(self, pages, page_size):
        """Room for the keys and values of all layers, in pages of `page_size` tokens."""
        c = self.config
        return torch.empty(c.layers, 2, pages, page_size, c.kv_heads, c.head_dim, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def forward(self, batch, cache):
        """Logits [r, vocab] of the wanted tokens; keys and values of all new tokens go into the cache."""
        c, kv = self.config, self.config.kv_heads * self.config.head_dim
        next_norms = [layer.attention_norm for layer in self.layers[1:]] + [self.final_norm]
        residual = self.embedding[batch.tokens]
        x = rmsnorm(residual, self.layers[0].attention_norm, c.eps)
        for layer, next_norm, (keys, values) in zip(self.layers, next_norms, cache):
            q, k, v = linear(x, *layer.qkv).split([c.heads * c.head_dim, kv, kv], dim=1)
            store = FusedSetKVBufferArg(v, keys.view(-1, kv), values.view(-1, kv), None, None, batch.slots)
            apply_rope_with_cos_sin_cache_inplace(batch.positions, q, k, c.head_dim, self.rope, fused_set_kv_buffer_arg=store)
            attended = flash_attn_with_kvcache(
                q.unflatten(1, (c.heads, c.head_dim)), keys, values, cache_seqlens=batch.cache_seqlens, page_table=batch.page_table,
                cu_seqlens_q=batch.cu_seqlens_q, max_seqlen_q=batch.max_seqlen_q, causal=True)
            x = linear(attended.flatten(1), *layer.output)
            fused_add_rmsnorm(x, residual, layer.mlp_norm, c.eps)
            x = linear(silu_and_mul(linear(x, *layer.gate_up)), *layer.down)
            fused_add_rmsnorm(x, residual, next_norm, c.eps)
        return linear(x if batch.rows is None else x[batch.rows], self.head)
