"""examples/llm against transformers, on tiny Llamas made here with random weights."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
safetensors_torch = pytest.importorskip("safetensors.torch")

EXAMPLE = Path(__file__).parent.parent / "examples" / "llm"
sys.path.insert(0, str(EXAMPLE))
import engine as engine_module  # noqa: E402
import llama  # noqa: E402
import run  # noqa: E402
import sgl_kernel  # noqa: E402
from engine import Engine, Request  # noqa: E402
from llama import Batch, Model  # noqa: E402
from sgl_kernel import _library, _ops  # noqa: E402

pytestmark = pytest.mark.skipif(bool({"act", "attention", "gemm", "norm", "rope", "sampling"} & _library.families_left_out),
                                reason="a family is left out")
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
TEXT = "In the beginning was the word, and the word was with them in the city by the river of the great valley. " * 4
VOCAB = 320

# A large initializer_range keeps attention and rope from being nearly uniform, where mistakes would not show.
COMMON = dict(vocab_size=VOCAB, hidden_size=128, intermediate_size=352, num_hidden_layers=3, max_position_embeddings=512,
              initializer_range=0.15, bos_token_id=0, eos_token_id=1)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
KINDS = {
    "llama2": dict(num_attention_heads=4, num_key_value_heads=4),
    "llama3": dict(num_attention_heads=8, num_key_value_heads=2, head_dim=32, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "linear": dict(num_attention_heads=2, num_key_value_heads=1, attention_bias=True, mlp_bias=True,
                   rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
}


def make_tokenizer(folder):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator([TEXT], tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))


def make_model(folder, **options):
    torch.manual_seed(5)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:     # norms and biases start as ones and zeros, which would hide a swap
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return model


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = {}
    for kind, options in KINDS.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        make_model(made[kind], **options)
    return made


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the llama3 model that a test may damage."""
    return Path(shutil.copytree(folders["llama3"], tmp_path / "model"))


def reference(folder, device, dtype=torch.float32):
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()


def prompts(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def generate(model, requests, **options):
    engine = Engine(model, requests, **options)
    engine.cache.fill_(float("nan"))     # whatever is read before it was written shows
    while engine.busy:
        engine.step()
    assert sorted(engine.free) == list(range(1, engine.cache.shape[2])), "pages are lost"
    return [request.output for request in requests]


def greedy(model, ids, count):
    return generate(model, [Request(list(ids), max_new_tokens=count)])[0]


def our_logits(model, ids):
    """All logits of one sequence, in one prefill over a cache whose pages are in no order."""
    page_size, pages = 8, -(-len(ids) // 8)
    cache = model.new_cache(pages + 3, page_size)
    cache.fill_(float("nan"))
    order = torch.randperm(pages + 2, generator=torch.Generator().manual_seed(2))[:pages].to(torch.int32) + 1
    at = torch.arange(len(ids))
    batch = Batch(torch.tensor(ids), at, order[at // page_size].long() * page_size + at % page_size,
                  torch.tensor([0, len(ids)], dtype=torch.int32), torch.tensor([len(ids)], dtype=torch.int32),
                  order[None], max_seqlen_q=len(ids))
    return model.forward(batch.to(model.device), cache).float()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_logits(folders, kind, dtype, device):
    """f32: rounding only. Half formats: no further from f32 than twice what transformers is in that format."""
    [ids] = prompts(137)
    batch = torch.tensor([ids], device=device)
    with torch.no_grad():
        exact = reference(folders[kind], device).double()(batch).logits[0].float()
        peer = reference(folders[kind], device, dtype)(batch).logits[0].float()
    ours = our_logits(Model(folders[kind], device, dtype), ids)
    allowed = 2 * (peer - exact).abs().max() + 1e-4 * exact.abs().max()
    assert (ours - exact).abs().max() <= allowed
    assert (ours - exact).abs().mean() <= 1.5 * (peer - exact).abs().mean() + 1e-5 * exact.abs().mean()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_equal(folders, kind, device):
    """64 tokens in f32 of prompts of different lengths, run at once by us and one by one by transformers."""
    batch = prompts(1, 16, 5, 77, 33)
    peer = reference(folders[kind], device)
    want = []
    for ids in batch:
        tokens = torch.tensor([ids], device=device)
        with torch.no_grad():
            for _ in range(64):
                best = peer(tokens).logits[0, -1].argmax()
                tokens = torch.cat((tokens, best.view(1, 1)), dim=1)
        want.append(tokens[0, len(ids):].tolist())
    assert len({tuple(tokens) for tokens in want}) == len(want), "texts that do not depend on the prompt prove nothing"
    model = Model(folders[kind], device, torch.float32)
    assert generate(model, [Request(ids, max_new_tokens=64) for ids in batch]) == want


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [dict(prefill_chunk=7), dict(prefill_chunk=64, page_size=1), dict(max_batch=2), dict(kv_tokens=160)],
                         ids=str)
def test_schedule_does_not_change_the_text(folders, options, device):
    """Chunked prefill, another page size, a small batch and a cache that holds one request at a time: the same tokens."""
    model = Model(folders["llama3"], device, torch.float32)

    def requests():
        drawn = [Request(ids, max_new_tokens=20, temperature=0.8, seed=3) for ids in prompts(30, 3)]
        return [Request(ids, max_new_tokens=20 + i) for i, ids in enumerate(prompts(100, 1, 14))] + drawn

    assert generate(model, requests(), **options) == generate(model, requests())


@pytest.mark.parametrize("device", DEVICES)
def test_chunked_prefill_logits(folders, device):
    """The first token after a chunked prefill comes from the logits of the whole prompt."""
    model = Model(folders["llama2"], device, torch.float32)
    [ids] = prompts(150)
    whole = our_logits(model, ids)
    assert greedy(model, ids, 1) == [int(whole[-1].argmax())]
    for chunk in (1, 13, 149):
        assert generate(model, [Request(ids, max_new_tokens=1)], prefill_chunk=chunk) == [[int(whole[-1].argmax())]]


class PaddedDecode(engine_module.DecodeGraphs):
    """Decodes as the graphs do, padding included, but step by step: what a CPU can show of them."""

    def __init__(self, model, cache):
        self.model, self.cache, self.sizes, self.seen = model, cache, [4, 16], set()

    def run(self, batch, draws):
        self.seen.add(len(batch.tokens))
        buffer = torch.zeros(12 * len(batch.tokens), dtype=torch.int32)
        values = batch.tokens, batch.positions, batch.slots, batch.cache_seqlens, *(draws or ())
        for part, value in zip(self.parts(buffer), values):
            part.copy_(value)
        assert all(torch.equal(part, value) for part, value in zip(self.parts(buffer), values)), "the parts of the graph's inputs overlap"
        logits = self.model.forward(batch.to(self.model.device), self.cache)
        return engine_module.choose(logits, draws and draws.to(self.model.device))


@pytest.mark.parametrize("device", DEVICES)
def test_padding_does_not_change_the_text(folders, device):
    model = Model(folders["llama3"], device, torch.float32)

    def requests():
        return [Request(ids, max_new_tokens=12 + 3 * i, temperature=i % 2, seed=i) for i, ids in enumerate(prompts(20, 3, 9, 30, 1))]

    padded = Engine(model, requests())
    kept = list(padded.waiting)
    padded.graphs = PaddedDecode(model, padded.cache)
    while padded.busy:
        padded.step()
    assert padded.graphs.seen == {4, 16}
    assert [request.output for request in kept] == generate(model, requests())


@pytest.mark.parametrize("device", DEVICES)
def test_seeds(folders, device):
    """A seed gives the same text again, whoever else runs; another seed another one; top_k = 1 is greedy."""
    model = Model(folders["llama2"], device, torch.float32)
    [ids, other] = prompts(9, 21)

    def drawn(seed, **options):
        return Request(list(ids), max_new_tokens=24, seed=seed, **{"temperature": 1.0, **options})

    [alone] = generate(model, [drawn(7)])
    beside = generate(model, [Request(other, max_new_tokens=30), drawn(8), drawn(7), drawn(7, top_k=1), drawn(9, top_p=1e-6)])
    assert beside[2] == alone
    assert beside[1] != alone
    assert beside[3] == beside[4] == greedy(model, ids, 24) != alone


@pytest.mark.parametrize("device", DEVICES)
def test_top_k_is_respected(folders, device):
    model = Model(folders["llama2"], device, torch.float32)
    [ids] = prompts(12)
    likely = set(our_logits(model, ids)[-1].topk(3).indices.tolist())
    first = {tokens[0] for tokens in generate(model, [
        Request(list(ids), max_new_tokens=1, temperature=2.0, top_k=3, seed=seed) for seed in range(40)])}
    assert first <= likely and len(first) > 1


@pytest.mark.parametrize("device", DEVICES)
def test_stop(folders, device):
    model = Model(folders["llama2"], device, torch.float32)
    [ids] = prompts(12)
    free = greedy(model, ids, 20)
    stop = free[6]
    requests = [Request(list(ids), max_new_tokens=20, stop=frozenset([stop, 5])), Request(list(ids), max_new_tokens=20)]
    requests.append(Request(list(ids), max_new_tokens=20, stop=frozenset(range(VOCAB))))
    outputs = generate(model, requests)
    assert outputs[2] == free[:1] and requests[2].finish == "stop"
    assert outputs[0] == free[:free.index(stop) + 1] and requests[0].finish == "stop"
    assert outputs[1] == free and requests[1].finish == "length"


def test_eos_list_of_generation_config(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 9], "do_sample": True, "temperature": 0.6}))
    config = llama.read_config(folder)
    assert config.eos == {1, 9} and config.sampling == {"temperature": 0.6}
    (folder / "generation_config.json").unlink()
    assert llama.read_config(folder).eos == {1}


def test_sharded_and_untied_names(folders, tmp_path):
    """Several files behind an index give what one file gives."""
    reference(folders["linear"], "cpu").save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    [ids] = prompts(20)
    whole = our_logits(Model(folders["linear"], "cpu"), ids)
    assert torch.equal(our_logits(Model(tmp_path, "cpu"), ids), whole)


def test_old_rope_keys(folder):
    """Checkpoints from before rope_parameters write rope_theta and rope_scaling."""
    [ids] = prompts(90)
    new = our_logits(Model(folder, "cpu"), ids)
    edit(folder, rope_parameters=None, rope_theta=500000.0, rope_scaling={k: v for k, v in LLAMA3.items() if k != "rope_theta"})
    assert torch.equal(our_logits(Model(folder, "cpu"), ids), new)
    edit(folder, rope_scaling=None)
    assert not torch.equal(our_logits(Model(folder, "cpu"), ids), new)


# The command line


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("device", DEVICES)
def test_json_output(folders, capsys, tmp_path, device):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "the city", "temperature": 0.9, "seed": 4, "max_new_tokens": 5}\n\n{"prompt": "the word"}\n')
    arguments = [str(folders["llama3"]), "--device", device, "--prompt", "In the beginning", "--prompt-file", str(file),
                 "--max-new-tokens", "9", "--ignore-eos", "--temperature", "0", "--json"]
    assert run.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert [len(result["tokens"]) for result in report["results"]] == [9, 5, 9]
    assert [result["temperature"] for result in report["results"]] == [0, 0.9, 0]
    assert [result["seed"] for result in report["results"]] == [0, 4, 2]
    assert report["prefill"]["tokens"] == sum(result["prompt_tokens"] for result in report["results"])
    assert report["decode"]["tokens"] == 8 + 4 + 8 and report["decode"]["tokens_per_second"] > 0
    tokenizer = tokenizers.Tokenizer.from_file(str(folders["llama3"] / "tokenizer.json"))
    for result in report["results"]:
        assert tokenizer.decode(result["tokens"]).startswith(result["text"]) and result["text"]


def test_text_output(folders, capsys):
    arguments = [str(folders["llama2"]), "--device", "cpu", "--max-new-tokens", "12", "--prompt", "In the", "--prompt", "the great"]
    assert run.main([*arguments, "--json"]) == 0
    texts = [result["text"] for result in json.loads(capsys.readouterr().out)["results"]]
    assert run.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out == f"[1] In the{texts[0]}\n\n[2] the great{texts[1]}\n\n"
    assert "prefill" in printed.err and "tokens/s" in printed.err


def refused(capsys, *arguments, code=2):
    """The one sentence of a refusal."""
    capsys.readouterr()
    assert run.main([str(argument) for argument in arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("run.py: error: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("changes, words", [
    ({"architectures": ["MixtralForCausalLM"]}, "architecture MixtralForCausalLM"),
    ({"quantization_config": {"bits": 4}}, "quantized"),
    ({"hidden_act": "gelu"}, "hidden_act is gelu"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "rope scaling"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor"),
    ({"num_hidden_layers": "three"}, "num_hidden_layers is three"),
    ({"num_hidden_layers": 4}, "lacks the tensor model.layers.3"),
    ({"hidden_size": 0}, "hidden_size is 0"),
    ({"head_dim": 30}, "size 30"),
    ({"num_key_value_heads": 3}, "3 KV heads"),
    ({"num_key_value_heads": 4}, "k_proj.weight is"),
    ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ({"vocab_size": 100}, "embed_tokens.weight is"),
])
def test_bad_config(folder, capsys, changes, words):
    edit(folder, **changes)
    assert words in refused(capsys, folder, "--device", "cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_and_broken_file(folder, capsys, name):
    (folder / name).write_text('{"cut": ')
    assert name in refused(capsys, folder, "--device", "cpu")
    (folder / name).unlink()
    assert name in refused(capsys, folder, "--device", "cpu")


def test_missing_shard_and_quantized_weight(folder, capsys):
    tensors = safetensors_torch.load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    safetensors_torch.save_file({**tensors, name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
    assert f"{name} is torch.int8" in refused(capsys, folder, "--device", "cpu")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: "part-1.safetensors"}}))
    assert "part-1.safetensors is missing" in refused(capsys, folder, "--device", "cpu")


@pytest.mark.parametrize("arguments, words", [
    (["--prompt", "word " * 600], "prompt 1 has"),
    (["--prompt", "In", "--kv-tokens", "16"], "too little memory for the KV cache"),
    (["--prompt-file", "/nonexistent"], "/nonexistent"),
    (["--temperature", "-1"], "temperature of prompt 1 is -1.0"),
    (["--temperature", "nan"], "temperature of prompt 1 is nan"),
    (["--temperature", "warm"], "--temperature"),
    (["--top-p", "0"], "top_p"),
    (["--top-k", "-2"], "top_k"),
    (["--max-new-tokens", "0"], "max_new_tokens"),
    (["--page-size", "0"], "--page-size: 0 is less than 1"),
    (["--device", "tpu"], "--device"),
    (["--nonsense"], "--nonsense"),
])
def test_bad_option(folders, capsys, arguments, words):
    assert words in refused(capsys, folders["llama2"], "--device", "cpu", *arguments)


@pytest.mark.parametrize("line, words", [
    ('{"prompt": "x", "temprature": 1}', "line 1"), ('["x"]', "line 1"), ("{", "line 1 is not valid JSON"),
    ('{"prompt": "x", "seed": "one"}', "seed of prompt 1 is one"), ("", "has no prompt")])
def test_bad_prompt_file(folders, capsys, tmp_path, line, words):
    (tmp_path / "prompts.jsonl").write_text(line + "\n")
    assert words in refused(capsys, folders["llama2"], "--device", "cpu", "--prompt-file", tmp_path / "prompts.jsonl")


def test_too_little_memory(folders, capsys, monkeypatch):
    need = llama.read_config(folders["llama2"]).parameters * 4
    monkeypatch.setattr(llama, "free_bytes", lambda device: need - 1)
    assert "too little memory for the weights" in refused(capsys, folders["llama2"], "--device", "cpu")
    monkeypatch.undo()
    monkeypatch.setattr(engine_module, "free_bytes", lambda device: 100_000)
    assert "too little memory for the KV cache" in refused(capsys, folders["llama2"], "--device", "cpu")


def test_foreign_tokenizer(folder, capsys):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"valley{i}" for i in range(VOCAB)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert "do not belong together" in refused(capsys, folder, "--device", "cpu", "--prompt", f"the valley{VOCAB - 1}")


def test_no_cuda(folders, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in refused(capsys, folders["llama2"], "--device", "cuda")


def unsupported(*_):
    raise NotImplementedError("rmsnorm: no pack serves this GPU, expected sm80.pack")


def short_weight(x, weight, eps):
    return sgl_kernel.rmsnorm(x, weight[1:].clone(), eps)


@pytest.mark.parametrize("operator, words", [
    (unsupported, "rmsnorm: no pack serves this GPU, expected sm80.pack"),
    (short_weight, "rmsnorm: weight has size 127 in dimension 0, expected 128")])
def test_refusal_of_an_operator(folders, capsys, monkeypatch, operator, words):
    """What an operator cannot do ends as one sentence, too; with another exit code, because the user did nothing wrong."""
    monkeypatch.setattr(llama, "rmsnorm", operator)
    assert words in refused(capsys, folders["llama2"], "--device", "cpu", code=1)


def test_left_out_family(folders, capsys, monkeypatch):
    monkeypatch.setattr(_library, "families_left_out", frozenset(["gemm"]))
    monkeypatch.setattr(llama, "linear", _ops.provided_by("gemm")(sgl_kernel.linear))
    assert "linear is not in this build of sgl_kernel" in refused(capsys, folders["llama2"], "--device", "cpu", code=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_missing_pack(folders, tmp_path):
    environment = {**os.environ, "SGK_PACK_PATH": str(tmp_path), "SGK_JIT": "0"}
    done = subprocess.run([sys.executable, EXAMPLE / "run.py", folders["llama2"], "--device", "cuda"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.startswith("run.py: error: ") and str(tmp_path) in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_exit_code_of_the_program(tmp_path):
    done = subprocess.run([sys.executable, EXAMPLE / "run.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and "tokenizer.json" in done.stderr and "Traceback" not in done.stderr
