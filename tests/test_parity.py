"""Names, schemas and Python signatures equal those of the releases (tests/api/), but for the differences listed here with their reason."""
import ast
import importlib
import inspect
import pkgutil
import sys
import textwrap
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
import sgl_kernel  # noqa: E402
from sgl_kernel import _library  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import tables  # noqa: E402

API = Path(__file__).parent / "api"
RELEASES = ["0.4.3", "0.3.21", "0.1.8"]       # the newest first
CPU_RELEASE = "cpu-0.4.3"

# Operators that no release has.
OWN_OPERATORS = {
    "multimodal_rotary_embedding": "multimodal_rotary_embedding_cpu without results, which are its arguments: torch.compile takes it",
    "apply_rotary_pos_emb": "the same of apply_rotary_pos_emb_cpu",
    "linear": "input @ weight.T + bias, which the releases leave to torch",
    "linear_batched": "the same with a weight for each product of a batch",
    "softmax": "softmax with temperature, which the releases leave to torch",
    "flash_attn": "what flash_attn_with_kvcache and flash_attn_varlen_func run: torch.compile takes it, and not the released `fwd`",
    "flash_attn_append": "the same, with new keys and values written into the cache",
    "fwd_sparse_out": "what fwd_sparse and varlen_fwd_sparse run: torch.compile takes it",
    "convert_vertical_slash_indexes": "released with a schema that names two arguments q_seqlens, which torch's parser refuses; the second is kv_seqlens here",
    "convert_vertical_slash_indexes_mergehead": "the same",
    "get_scheduler_metadata": "released, and missing from the lists of schemas",
    "silu_and_mul_experts": "silu_and_mul for rows of the experts that are here, which the engine compiles for itself",
    "gelu_quick": "released for ROCm alone",
    "timestep_embedding_out": "timestep_embedding as torch.compile takes it: the released operator returns its argument",
    "fused_rmsnorm_quant": "seen between two releases, and in none",
    "fused_add_rmsnorm_quant": "the same",
    "cublas_grouped_gemm": "of releases before 0.1.8",
    **dict.fromkeys(["fp8_gemm_nt", "m_grouped_fp8_gemm_nt_contiguous", "m_grouped_fp8_gemm_nt_masked", "m_grouped_bf16_gemm_nt_contiguous",
                     "m_grouped_bf16_gemm_nt_masked"], "what sgl_kernel.deep_gemm calls: DeepGEMM's products"),
    "top_k_top_p_sampling_from_probs_seeded": "the released operator with its seeds as a tensor, for graphs and for torch before 2.13",
}
# Arguments that an operator writes and the release did not mark: without the mark a compiled graph drops the call.
OWN_MARKS = {
    "fwd": {"k", "v"},
    "decode_attention_cpu": {"k_cache", "v_cahce"},
    "rotary_embedding_cpu": {"query", "key"},
    "multimodal_rotary_embedding_cpu": {"query", "key"},
    "apply_rotary_pos_emb_cpu": {"query", "key"},
    "fused_add_layernorm_cpu": {"residual"},
    "apply_token_bitmask_inplace_cuda": {"logits"},
    "sgl_per_token_group_quant_fp8": {"output_q", "output_s"},
    "sgl_per_token_group_quant_int8": {"output_q", "output_s"},
    "store_kv_cache": {"k_cache", "v_cache"},
    "top_k_top_p_sampling_from_probs": {"output"},
    "downcast_fp8": {"k_out", "v_out"},
    "timestep_embedding": {"output"},
    "shuffle_rows": {"output"},
    "apply_shuffle_mul_sum": {"output"},
    "moe_sum_reduce": {"output"},
    "fp8_blockwise_scaled_grouped_mm": {"output"},
    "es_fp8_blockwise_scaled_grouped_mm": {"output"},
    "es_sm100_mxfp8_blockscaled_grouped_mm": {"d"},
    "es_sm100_mxfp8_blockscaled_grouped_quant": {"quant_output", "scale_factor"},
}
# Public Python functions that no release has.
OWN_FUNCTIONS = {
    "gemm.linear": "as the operator",
    "gemm.cublas_grouped_gemm": "as the operator",
    "sampling.softmax": "as the operator",
    "elementwise.gelu_quick": "as the operator",
    "elementwise.fused_rmsnorm_quant": "as the operator",
    "elementwise.fused_add_rmsnorm_quant": "as the operator",
}
# Parameters of ours behind the released ones, keyword only.
OWN_PARAMETERS = {
    "elementwise.silu_and_mul": {"expert_ids", "expert_step"},
    "sampling.top_k_top_p_sampling_from_probs": {"seed"},
}
# What 0.1.8 and 0.3.21 call otherwise, and how that call is served.
OLDER_PYTHON = {
    "gemm.sgl_per_token_group_quant_int8": "by position; the keywords int8_min and int8_max of 0.1.8 are fp8_min and fp8_max, as in 0.3.21",
}


# ---- operators -------------------------------------------------------------------------------------------------------------------

def released_schemas(release):
    schemas = [torch._C.parse_schema(line) for line in (API / f"schemas-{release}.txt").read_text().splitlines() if line]
    return {schema.name: schema for schema in schemas}


RELEASED = {release: released_schemas(release) for release in [*RELEASES, CPU_RELEASE]}
UNION = set().union(*RELEASED.values())
OURS = {}
for operator_name, operator_overload in _library.torch_operators():
    OURS.setdefault(operator_name, {})[operator_overload] = getattr(getattr(torch.ops.sgl_kernel, operator_name), operator_overload or "default")._schema


def call_of(schema):
    """All that a caller sees of a schema: names, types, defaults, results."""
    arguments = [(a.name, str(a.type), a.kwarg_only, a.default_value if a.has_default_value() else "required") for a in schema.arguments]
    return arguments, [str(r.type) for r in schema.returns]


def marks(schema):
    return {a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write}


def releases_of(name):
    """The release that `.default` follows, and those whose call differs from every newer one's."""
    found = [release for release in [*RELEASES, CPU_RELEASE] if name in RELEASED[release]]
    distinct = []
    for release in found:
        if all(call_of(RELEASED[release][name]) != call_of(RELEASED[other][name]) for other in distinct):
            distinct.append(release)
    return distinct


@pytest.mark.parametrize("name", OURS)
def test_schema(name):
    if name not in UNION:
        assert name in OWN_OPERATORS, f"{name} is in no release and not in OWN_OPERATORS above"
        assert set(OURS[name]) == {""}
        return
    distinct = releases_of(name)
    overloads = {"" if i == 0 else "v" + release.replace(".", "_"): release for i, release in enumerate(distinct)}
    assert set(OURS[name]) == set(overloads), f"overloads of {name}: a call that an older release takes is one of its own"
    for overload, release in overloads.items():
        ours, theirs = OURS[name][overload], RELEASED[release][name]
        assert call_of(ours) == call_of(theirs), f"{name}.{overload or 'default'} differs from release {release}"
        assert marks(ours) - marks(theirs) <= OWN_MARKS.get(name, set()), f"{name} marks arguments that release {release} does not"
        assert marks(theirs) <= marks(ours), f"{name} lacks marks of release {release}"


def test_lists_of_differences_hold_what_is_true():
    for name in OWN_OPERATORS:
        assert name not in UNION, f"{name} is in a release"
    for name, arguments in OWN_MARKS.items():
        newest = RELEASED[releases_of(name)[0]][name]
        assert not arguments & marks(newest), f"{name}: the release marks these itself"


def test_done():
    """With -s: what is done and what is missing, family by family."""
    found = tables.parity()
    older = sum(len(overloads) - 1 for overloads in OURS.values())
    print(f"\noperators: {sum(len(done) for done, _ in found.values())} of the {len(UNION)} released names are done, {older} of their older schemas, "
          f"and {len(set(OURS) - UNION)} of our own: {', '.join(sorted(set(OURS) - UNION))}")
    for family, (done, missing) in sorted(found.items()):
        print(f"  {family:12} {len(done):3} of {len(done) + len(missing):3}" + ("   missing: " + ", ".join(missing) if missing else ""))
    done = {name for names, _ in found.values() for name in names}
    assert done | {name for _, names in found.values() for name in names} == UNION
    assert _library.families_left_out or done == set(OURS) & UNION

    functions = {name for name in set().union(*PYTHON.values()) if not name.startswith(".")}       # those at the root are of a module
    missing = sorted(functions - set(FUNCTIONS))
    print(f"Python functions: {len(functions) - len(missing)} of the {len(functions)} released ones   missing: {', '.join(missing)}")


# ---- Python ----------------------------------------------------------------------------------------------------------------------

def released_functions(release):
    """{"elementwise.rmsnorm": its ast.FunctionDef, or the name it is an alias of}"""
    functions = {}
    for line in (API / f"python-{release}.txt").read_text().splitlines():
        if not line or line.endswith("(class)"):
            continue
        if " = " in line.split("(")[0]:
            name, target = line.split(" = ")
            functions[name.removeprefix("sgl_kernel.")] = target
            continue
        path, _, signature = line.partition("(")
        module, _, name = path.removeprefix("sgl_kernel.").rpartition(".")
        functions[f"{module}.{name}"] = ast.parse(f"def {name}({signature}: ...").body[0]
    return functions


def parameters_of_ast(definition):
    a = definition.args
    defaults = [None] * (len(a.args) - len(a.defaults)) + [ast.unparse(d) for d in a.defaults]
    listed = [(p.arg, "any", d, p.annotation) for p, d in zip(a.args, defaults)]
    listed += [(p.arg, "keyword", d and ast.unparse(d), p.annotation) for p, d in zip(a.kwonlyargs, a.kw_defaults)]
    return listed, definition.returns


def definition_of(function):
    """A function's own source line, read as the releases' lines are."""
    source = inspect.getsource(inspect.unwrap(function))
    return next(node for node in ast.walk(ast.parse(textwrap.dedent(source))) if isinstance(node, ast.FunctionDef))


def text(annotation):
    return annotation and ast.unparse(annotation)


PYTHON = {release: released_functions(release) for release in RELEASES}
MODULES = [m.name.removeprefix("sgl_kernel.") for m in pkgutil.walk_packages(sgl_kernel.__path__, "sgl_kernel.")]
MODULES = [name for name in MODULES if not name.startswith("_") and name not in ("cli", "deep_gemm")]       # deep_gemm: another package's names
FUNCTIONS = {}
for module_name in MODULES:
    module = importlib.import_module(f"sgl_kernel.{module_name}")
    for function_name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and (not function_name.startswith("_") or f"{module_name}.{function_name}" in PYTHON["0.4.3"]):
            FUNCTIONS[f"{module_name}.{function_name}"] = function


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature(name):
    newest = next((PYTHON[release][name] for release in RELEASES if name in PYTHON[release]), None)
    if newest is None:
        assert name in OWN_FUNCTIONS, f"{name} is in no release and not in OWN_FUNCTIONS above"
        return
    if isinstance(newest, str):     # an alias
        assert FUNCTIONS[name] is getattr(inspect.getmodule(FUNCTIONS[name]), newest)
        return
    (ours, our_return), (theirs, their_return) = parameters_of_ast(definition_of(FUNCTIONS[name])), parameters_of_ast(newest)
    ours = [p for p in ours if p[1] != "keyword" or p[0] not in OWN_PARAMETERS.get(name, ())]

    def value(default):
        """A constant of torch's stands behind `torch and`, because the package is imported without torch, too."""
        return default and (default.removeprefix("torch and ") if "torch." in default else ast.literal_eval(default))

    assert [p[:2] for p in ours] == [p[:2] for p in theirs], "names, order and kind of the parameters"
    assert [value(p[2]) for p in ours] == [value(p[2]) for p in theirs], "defaults"
    assert [text(p[3]) for p in ours] == [text(p[3]) for p in theirs], "annotations"
    assert text(our_return) == text(their_return), "the result's annotation"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_older_calls_are_understood(name):
    """Every call that an older release took binds to our parameters with the same meaning."""
    ours, _ = parameters_of_ast(definition_of(FUNCTIONS[name]))
    names = [p[0] for p in ours]
    for release in RELEASES:
        older = PYTHON[release].get(name)
        if older is None or isinstance(older, str) or name in OLDER_PYTHON:
            continue
        theirs, _ = parameters_of_ast(older)
        assert {p[0] for p in theirs} <= set(names), f"release {release}"
        required = [p[0] for p in theirs if p[1] == "any" and p[2] is None]
        assert names[:len(required)] == required, f"release {release}: positional arguments"
        assert all(p[2] is not None or p[0] in {q[0] for q in theirs} for p in ours), f"release {release}: new required parameters"


def test_public_names_are_at_the_root():
    module_only = {"flash_attn", "sparse_flash_attn", "memory", "utils", "testing.rotary_embedding", "test_utils", "debug_utils", "kvcacheio"}
    for name in FUNCTIONS:
        module_name, _, function_name = name.rpartition(".")
        if module_name not in module_only:
            assert getattr(sgl_kernel, function_name, None) is FUNCTIONS[name], f"python/sgl_kernel/__init__.py does not import {function_name}"
