"""A call of every operator, for the tests that hold for all of them.

SAMPLES[operator](n, device) makes the positional arguments of a legal call whose result depends on nothing but them; sizes
that follow n are those that torch.compile must keep dynamic.
"""
import torch

F32 = torch.float32


def random(*shape, device, dtype=F32, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(device, dtype)


def ints(values, device, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype, device=device)


def rope(n, device):
    angle = random(64, 8, device="cpu")
    return [torch.arange(n, device=device) % 64, random(n, 4 * 16, device=device), random(n, 2 * 16, device=device, seed=1), 16,
            torch.cat((angle.cos(), angle.sin()), 1).to(device), True]


def multimodal_rope(n, device):
    positions, *rest = rope(n, device)
    return [torch.stack((positions, positions * 3 % 64, positions * 7 % 64)), *rest[:4], [4, 2, 2], False, True]


def vision_rope(n, device):
    return [random(n, 3, 24, device=device), random(n, 3, 24, device=device, seed=1), random(n, 24, device=device, seed=2), random(n, 24, device=device, seed=3)]


def pool(n):
    """Places of a cache for which n says how many are used: so many for all small n, whose tensors keep their size."""
    return 64 if n <= 16 else 4 * n


def store(n, device):
    return [torch.zeros(pool(n), 2, 16, device=device), torch.zeros(pool(n), 2, 16, device=device), torch.arange(n, device=device) * 2,
            random(n, 2, 16, device=device), random(n, 2, 16, device=device, seed=1)]


def attention(n, device):
    """One sequence of n queries and 2 n keys, packed."""
    q, k, v = random(n, 4, 16, device=device), random(2 * n, 2, 16, device=device, seed=1), random(2 * n, 2, 16, device=device, seed=2)
    out, lse = torch.empty_like(q), torch.empty(4, n, device=device)
    return [out, lse, q, k, v, None, ints([0, n], device), ints([0, 2 * n], device), None, None, n, 2 * n, None, None, None, None, None, None,
            None, True, -1, -1, 0, 0.0, 1, None, 0]


def attention_append(n, device):
    """Two sequences whose cache takes one new token each."""
    q = random(2, 1, 4, 16, device=device)
    k, v = random(2, 2 * n, 2, 16, device=device, seed=1), random(2, 2 * n, 2, 16, device=device, seed=2)
    k_new, v_new = random(2, 1, 2, 16, device=device, seed=3), random(2, 1, 2, 16, device=device, seed=4)
    return [torch.empty_like(q), torch.empty(2, 4, 1, device=device), q, k, v, k_new, v_new, None, None, None, None, ints([3, n], device), None,
            None, None, None, None, None, None, None, None, None, None, True, -1, -1, 0, 0.0, True, 1, None, 0]


def attention_cpu_varlen(n, device):
    """As attention(), with the query i at place i."""
    out, lse, q, k, v, *_ = attention(n, device)
    return [q, k, v, ints([0, n], device), ints([0, 2 * n], device), max(16, n), max(32, 2 * n), True]


def attention_pool(n, device):
    """Two requests of n + 1 and 3 tokens in a pool."""
    places, tokens = pool(n), pool(n) // 3
    cache = [random(places, 2, 16, device=device, seed=i) for i in (1, 2)]
    where = [(torch.arange(2 * tokens, device=device) * 7 % places).view(2, tokens), torch.tensor([1, 0], device=device), torch.tensor([n + 1, 3], device=device)]
    return cache, where


def decode_attention(n, device):
    (k, v), where = attention_pool(n, device)
    return [random(2, 4, 16, device=device), k, v, torch.empty(2, 4, 16, device=device), random(2, 2, 16, device=device, seed=3), random(2, 2, 16, device=device, seed=4),
            where[0][where[1], where[2] - 1], torch.empty(2, 4, 1, 17, device=device), *where, 0.25, 0.0, False, 0, None, None]


def extend_attention(n, device):
    """n new tokens of the first request, which has one more, and two of the second."""
    (k, v), where = attention_pool(n, device)
    q = random(n + 2, 4, 16, device=device)
    return [q, random(n + 2, 2, 16, device=device, seed=3), random(n + 2, 2, 16, device=device, seed=4), torch.empty_like(q), k, v, *where,
            torch.tensor([n, 2], device=device), torch.tensor([0, n], device=device), 16, 0.25, 0.0, False, 0, None, None]


def sparse(n, device):
    """n queries of one list, which has one block and three columns."""
    q, k, v = random(1, n, 2, 16, device=device, dtype=torch.float16), *(random(1, 90, 2, 16, device=device, dtype=torch.float16, seed=i) for i in (1, 2))
    lists = [ints([[[1]] * 2], device), ints([[[[4]]] * 2], device), ints([[[3]] * 2], device), ints([[[[70, 75, 89]]] * 2], device)]
    return [torch.empty_like(q), torch.empty(1, 2, n, device=device), q, k, v, *lists, None, None, None, None, -1, -1, 0.0, 0.25, False, 0.0]


def slash_lists(n, device):
    """n heads of 130 tokens with two lines and two slashes each."""
    lists = [torch.full((1, n, 3, *more), 9, dtype=torch.int32, device=device) for more in ((), (2,), (), (2,))]
    return lists + [ints([130], device), ints([130], device), ints([[[1, 70]] * n], device), ints([[[65, 0]] * n], device)]


def lightning(n, device):
    q, k, v = (random(n, 2, 1, 16, device=device, seed=i) for i in range(3))
    return [q, k, v, random(n, 2, 16, 16, device=device), random(2, 1, 1, device=device), torch.empty(n, 2, 1, 16, device=device), torch.empty(n, 2, 16, 16, device=device)]


def attention_metadata(n, device):
    return [2, 1, 64, 4, 2, 16, 16, torch.bfloat16, ints([3, n], device), None, None, None, None, None, None, 0, True, -1, -1, 0, False, 5, None, 0]


def fp8(*shape, device, dtype=torch.float8_e4m3fn, seed=0):
    return random(*shape, device="cpu", seed=seed).to(dtype).to(device)


def scaled_product(n, device, dtype):
    """mat_b is column-major."""
    x, w = random(n, 48, device="cpu"), random(24, 48, device="cpu", seed=1)
    x, w = ((20 * t).round().to(dtype) if dtype == torch.int8 else t.to(dtype) for t in (x, w))
    return [x.to(device), w.to(device).t(), random(n, 1, device=device, seed=2), random(24, 1, device=device, seed=3), torch.bfloat16,
            random(24, device=device, dtype=torch.bfloat16, seed=4)]


def batched_product(n, device, *more):
    A, B = fp8(n, 5, 32, device=device), fp8(n, 24, 32, device=device, dtype=torch.float8_e5m2, seed=1)
    return [A, B.transpose(1, 2), torch.empty(n, 5, 24, device=device, dtype=torch.bfloat16), random(1, device=device), random(1, device=device, seed=1),
            torch.empty(8, dtype=torch.uint8, device=device), 0, *more]


def sampling(n, device):
    """Top-k of 1, so that the seeds that torch draws do not matter."""
    return [random(n, 40, device=device).softmax(1), torch.full((n,), -1, dtype=torch.int32, device=device), None, None, 1.0, None, 0.9, True, None]


def sampling_seeded(n, device):
    return [random(n, 40, device=device).softmax(1), torch.full((n,), -1, dtype=torch.int32, device=device), None, None, 10, None, 0.9, False,
            torch.tensor([12345], device=device)]


def downcast(n, device):
    k, v = random(n, 2, 8, device=device, dtype=torch.bfloat16), random(n, 2, 8, device=device, dtype=torch.bfloat16, seed=1)
    outs = [torch.zeros(2 * n + 1, 2, 8, dtype=torch.uint8, device=device) for _ in range(2)]
    return [k, v, *outs, torch.ones(1, device=device), torch.full((1,), 0.5, device=device), torch.arange(n, device=device), 2, 1]


def shuffle_sum(n, device):
    return [random(3 * n, 24, device=device), torch.empty(n, 24, device=device), ints([(7 * i + 1) % (3 * n) for i in range(3 * n)], device),
            random(3 * n, device=device)]


def int4_words(device):
    """AWQ's weight, zeros and scales of [64, 32] in groups of 32."""
    generator = torch.Generator().manual_seed(5)
    words = [torch.randint(-2**31, 2**31, shape, generator=generator).to(device, torch.int32) for shape in ((64, 4), (2, 4))]
    return [*words, random(2, 32, device=device), 0]


def int4_packed(device):
    """What convert_weight_packed_scale_zp would give, as random bytes whose sums are not looked at elsewhere."""
    return list(torch.ops.sgl_kernel.convert_weight_packed_scale_zp(*int4_words(device)))


def i8_packed(device):
    weight = torch.randint(-128, 128, (32, 64), generator=torch.Generator().manual_seed(6)).to(device, torch.int8)
    return torch.ops.sgl_kernel.convert_weight_packed(weight)


def latent_projection(n, device, fused):
    """hidden 64, ranks 32 and 32, two heads of 32 and a rope of 16."""
    shapes = [(80, 64), (96, 32)] if fused else [(32, 64), (96, 32), (48, 64)]
    weights = [random(*shape, device=device, seed=i) / 8 for i, shape in enumerate(shapes)]
    rest = [random(2, 32, 32, device=device), random(32, device=device), random(32, device=device, seed=1), torch.arange(n, device=device), random(64, 16, device=device)]
    scales = [None] * (3 if fused else 4)
    return [random(n, 64, device=device), *weights, *rest, 1e-6, False, False, *scales, True, None, *([32, 32, 16] if fused else [])]


def softmax(n, device):
    return [torch.empty(n, 40, device=device), random(n, 40, device=device), None, 0.7]


def rows(n, device):
    """Rows to normalise, and a weight."""
    return random(n, 48, device=device, seed=1), random(48, device=device)

def merge(n, device):
    return [random(n, 4, 16, device=device), random(n, 4, device=device, seed=1), random(n, 4, 16, device=device, seed=2),
            random(n, 4, device=device, seed=3), torch.empty(n, 4, 16, device=device), torch.empty(n, 4, device=device)]



def bitmask(n, device):
    return [random(n, 40, device=device), ints([[0x0f0f0f0f, 0x55]], device).repeat(n, 1), None]



def apply_rope(n, device, *rest):
    angle = random(64, 8, device="cpu")
    q, k = random(n, 4, 16, device=device), random(n, 2, 16, device=device, seed=1)
    return [q, k, torch.empty_like(q), torch.empty_like(k), torch.cat((angle.cos(), angle.sin()), 1).to(device), torch.arange(n, device=device) % 64, False, *rest]


def apply_rope_fused(n, device):
    return apply_rope(n, device, False, random(n, 2, 16, device=device, seed=2), torch.zeros(pool(n), 2, 16, device=device),
                      torch.zeros(pool(n), 2, 16, device=device), torch.arange(n, device=device) * 2)



def qk_norm_rope(n, device):
    bf16 = torch.bfloat16
    return [random(n, 5 * 64, device=device, dtype=bf16), 2, 1, 2, 64, 1e-6, random(64, device=device, dtype=bf16), random(64, device=device, dtype=bf16, seed=1),
            10000.0, True, torch.arange(n, device=device, dtype=torch.int32), 4.0, 2.0, 9.0, 1.1, 32]


def dsv4(n, device):
    """Frequencies and positions."""
    return random(64, 64, device=device), torch.arange(n, dtype=torch.int32, device=device) % 64


def dsv4_q(n, device):
    q = random(n, 3, 128, device=device, dtype=torch.bfloat16)
    return [q, torch.empty_like(q), *dsv4(n, device), 1e-6]


def dsv4_k(n, device):
    bf16 = torch.bfloat16
    return [random(n, 512, device=device, dtype=bf16), random(512, device=device, dtype=bf16), *dsv4(n, device),
            torch.arange(n, dtype=torch.int32, device=device) * 2, torch.zeros(64, 2880, dtype=torch.uint8, device=device), 1e-6, 4]


def dsv4_indexer(n, device):
    bf16 = torch.bfloat16
    return [random(n, 3, 128, device=device, dtype=bf16), torch.zeros(n, 3, 128, dtype=torch.uint8, device=device), random(n, 3, device=device, dtype=bf16),
            torch.zeros(n, 3, 1, device=device), 0.25, *dsv4(n, device)]


def quantised(n, dim, groups, device, dtype=torch.float8_e4m3fn, words=F32):
    """Zeros for codes and scales."""
    return [torch.zeros(n, dim, device=device).to(dtype), torch.zeros(n, groups, dtype=words, device=device)]


def embed(n, device):
    return [random(n, 3, 2, 4, 4, device=device), random(5, 3, 2, 4, 4, device=device), random(5, device=device), False]


def codes(*shape, device, seed=0):
    return (random(*shape, device="cpu", seed=seed) * 4).to(torch.float8_e4m3fn).to(device)


def scales(*shape, device, seed=0):
    return random(*shape, device=device, seed=seed).abs()


def block_scaled(n, device):
    """a, its scales, b, its scales, as DeepGEMM takes them."""
    return [codes(n, 256, device=device), scales(n, 2, device=device), codes(24, 256, device=device, seed=1), scales(1, 2, device=device, seed=1)]


def block_scaled_groups(n, device):
    """The same for three groups, of n rows each."""
    return [codes(3 * n, 256, device=device), scales(3 * n, 2, device=device), codes(3, 24, 256, device=device, seed=1), scales(3, 1, 2, device=device, seed=1)]


def grouped_sizes(n, device, rows=24):
    return ints([[n, rows, 256], [0, rows, 256], [n, rows, 256]], device), ints([0, n, 2 * n], device)


def grouped_offsets(n, device):
    a, sa, b, sb = block_scaled_groups(n, device)
    return torch.zeros(3 * n, 24, device=device, dtype=torch.bfloat16), a, b.transpose(1, 2), sa, sb.transpose(1, 2), *grouped_sizes(n, device)


def blockwise_grouped(n, device):
    out, a, b, sa, sb, sizes, offsets = grouped_offsets(n, device)
    spare = [torch.zeros(3, dtype=torch.int64, device=device) for _ in range(8)]
    layouts = [torch.zeros(3, 5, dtype=torch.int32, device=device) for _ in range(2)]
    return [out, *spare[:5], a, b, sa, sb, *spare[5:], *layouts, sizes, offsets, torch.zeros(16, dtype=torch.uint8, device=device)]


def es_grouped(n, device):
    out, a, b, sa, sb, sizes, offsets = grouped_offsets(n, device)
    spare = [torch.zeros(3, dtype=torch.int64, device=device) for _ in range(3)]
    return [out, a, b, sa, sb, *spare, sizes, offsets, torch.zeros(16, dtype=torch.uint8, device=device)]


def mx_rows(n, device):
    """Sizes of three experts, their first rows, those of their scales; and how many rows of scales there are."""
    each = -(-n // 128) * 128
    return *grouped_sizes(n, device, 128), ints([0, each, each], device), 2 * each


def mx_mm(n, device):
    *sizes, rows = mx_rows(n, device)
    exponents = torch.full((rows, 8), 126, dtype=torch.uint8, device=device), torch.full((3, 128, 8), 128, dtype=torch.uint8, device=device)
    return [codes(3 * n, 256, device=device), codes(3, 128, 256, device=device, seed=1).transpose(1, 2), exponents[0], exponents[1].transpose(1, 2),
            torch.zeros(3 * n, 128, device=device, dtype=torch.bfloat16), *sizes]


def mx_quant(n, device):
    *sizes, rows = mx_rows(n, device)
    return [random(3 * n, 256, device=device, dtype=torch.bfloat16), *sizes, torch.zeros(3 * n, 256, device=device).to(torch.float8_e4m3fn),
            torch.zeros(rows, 8, dtype=torch.uint8, device=device)]


def masked_groups(n, device):
    """Three groups of n + 1 rows, of which some count."""
    return ([codes(3, n + 1, 256, device=device), scales(3, n + 1, 2, device=device), codes(3, 24, 256, device=device, seed=1),
             scales(3, 1, 2, device=device, seed=1)], [ints([n, 0, 1], device), 2])


def contiguous_layout(n, device):
    """One group in rows 0 to n - 1 after a block of 128 of another."""
    return ints([2] * 128 + [0] * n, device)


def products(device):
    """Two products, whatever n is."""
    half = dict(device=device, dtype=torch.float16)
    return [[random(5, 48, **half), random(3, 40, **half)], [random(16, 48, seed=1, **half), random(24, 40, seed=1, **half)],
            [torch.zeros(5, 16, **half), torch.zeros(3, 24, **half)], torch.float16, 0, 0]


def images(n, device):
    """Two images, whatever n is."""
    pixels = [torch.arange(3 * h * w, device=device).mul(37).remainder(256).to(torch.uint8).view(3, h, w) for h, w in ((20, 31), (9, 8))]
    return [pixels, True, True, 256, 4096, "bicubic", True, 1 / 255, True, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], 4, 2, 2, True, torch.float32]


SAMPLES = {
    "rmsnorm": lambda n, device: [torch.empty(n, 48, device=device), random(n, 48, device=device), random(48, device=device), 1e-6, False],
    "fused_add_rmsnorm": lambda n, device: [random(n, 48, device=device), random(n, 48, device=device, seed=1), random(48, device=device), 1e-6, False],
    "gemma_rmsnorm": lambda n, device: [torch.empty(n, 48, device=device), *rows(n, device), 1e-6, False],
    "gemma_fused_add_rmsnorm": lambda n, device: [random(n, 48, device=device), *rows(n, device), 1e-6, False],
    "rmsnorm_cpu": lambda n, device: [*rows(n, device), 1e-6],
    "gemma_rmsnorm_cpu": lambda n, device: [*rows(n, device), 1e-6],
    "gemma3_rmsnorm_cpu": lambda n, device: [random(2, 3, n, 48, device=device), random(48, device=device), 1e-6],
    "gemma4_rmsnorm_cpu": lambda n, device: [*rows(n, device), 1e-6, 0.5, True],
    "l2norm_cpu": lambda n, device: [random(n, 48, device=device), 1e-6],
    "fused_add_rmsnorm_cpu": lambda n, device: [random(n, 48, device=device), *rows(n, device), 1e-6],
    "gemma_fused_add_rmsnorm_cpu": lambda n, device: [random(n, 48, device=device), *rows(n, device), 1e-6],
    "fused_rmsnorm_gated_cpu": lambda n, device: [*rows(n, device), random(n, 48, device=device, seed=2), 1e-6],
    "layernorm_cpu": lambda n, device: [*rows(n, device), random(48, device=device, seed=2), 1e-6],
    "fused_add_layernorm_cpu": lambda n, device: [random(n, 48, device=device), *rows(n, device), None, 1e-6],
    "silu_and_mul": lambda n, device: [torch.empty(n, 24, device=device), random(n, 48, device=device)],
    "silu_and_mul.v0_1_8": lambda n, device: [torch.empty(n, 24, device=device), random(n, 48, device=device), 0],
    "silu_and_mul_experts": lambda n, device: [torch.zeros(n, 24, device=device), random(n, 48, device=device), ints([3, -1] * n, device), 2],
    "silu_and_mul_cpu": lambda n, device: [random(n, 48, device=device)],
    "gelu_and_mul": lambda n, device: [torch.empty(n, 24, device=device), random(n, 48, device=device)],
    "gelu_and_mul.v0_1_8": lambda n, device: [torch.empty(n, 24, device=device), random(n, 48, device=device), 0],
    "gelu_and_mul_cpu": lambda n, device: [random(n, 48, device=device)],
    "gelu_tanh_and_mul": lambda n, device: [torch.empty(n, 24, device=device), random(n, 48, device=device)],
    "gelu_tanh_and_mul.v0_1_8": lambda n, device: [torch.empty(n, 24, device=device), random(n, 48, device=device), 0],
    "gelu_tanh_and_mul_cpu": lambda n, device: [random(n, 48, device=device)],
    "timestep_embedding_out": lambda n, device: [torch.empty(n, 24, device=device), random(n, device=device), 24, True, 0.5, 1000.0, 10000],
    "gelu_quick": lambda n, device: [torch.empty(n, 24, device=device), random(n, 24, device=device)],
    "concat_mla_k": lambda n, device: [torch.empty(n, 4, 24, device=device), random(n, 4, 16, device=device), random(n, 1, 8, device=device)],
    "concat_mla_absorb_q": lambda n, device: [random(n, 4, 16, device=device), random(n, 4, 8, device=device), torch.empty(n, 4, 24, device=device)],
    "copy_to_gpu_no_ce": lambda n, device: [ints(range(1, n + 1), "cpu"), torch.zeros(n, dtype=torch.int32, device=device)],
    "downcast_fp8": downcast,
    "shuffle_rows": lambda n, device: [random(9, 24, device=device), ints([(5 * i + 2) % 9 for i in range(n)], device), torch.empty(n, 24, device=device)],
    "apply_shuffle_mul_sum": shuffle_sum,
    "moe_sum": lambda n, device: [random(n, 3, 24, device=device), torch.empty(n, 24, device=device)],
    "moe_sum_reduce": lambda n, device: [random(n, 3, 24, device=device), torch.empty(n, 24, device=device), 2.5],
    "rotary_embedding": rope,
    "rotary_embedding_cpu": rope,
    "multimodal_rotary_embedding": multimodal_rope,
    "multimodal_rotary_embedding_cpu": multimodal_rope,
    "apply_rotary_pos_emb": vision_rope,
    "apply_rotary_pos_emb_cpu": vision_rope,
    "fused_qk_norm_rope": qk_norm_rope,
    "apply_rope_pos_ids_cos_sin_cache": apply_rope_fused,
    "apply_rope_pos_ids_cos_sin_cache.v0_1_8": lambda n, device: apply_rope(n, device, 0),
    **{f"fast_hadamard_transform{form}": lambda n, device: [random(n, 40, device=device), 0.125] for form in ("", "_12N", "_20N", "_28N", "_40N")},
    "dsv4_fused_q_norm_rope": dsv4_q,
    "dsv4_fused_k_norm_rope_flashmla": dsv4_k,
    "dsv4_fused_q_indexer_rope_hadamard_quant": dsv4_indexer,
    "linear": lambda n, device: [torch.empty(n, 24, device=device), random(n, 48, device=device), random(24, 48, device=device), random(24, device=device)],
    "fp8_scaled_mm": lambda n, device: scaled_product(n, device, torch.float8_e4m3fn),
    "int8_scaled_mm": lambda n, device: scaled_product(n, device, torch.int8),
    "bmm_fp8": batched_product,
    "bmm_fp8.v0_1_8": lambda n, device: batched_product(n, device, 0),
    "linear_batched": lambda n, device: [torch.empty(3, n, 24, device=device), random(3, n, 48, device=device), random(3, 24, 48, device=device), None],
    "dsv3_router_gemm": lambda n, device: [torch.empty(n, 24, device=device), random(n, 48, device=device), random(24, 48, device=device)],
    "dsv3_fused_a_gemm": lambda n, device: [torch.empty(n, 24, device=device), random(n, 48, device=device), random(24, 48, device=device).T],
    "convert_weight_packed": lambda n, device: [random(32 * n, 48, device=device, dtype=torch.bfloat16)],
    "convert_scale_packed": lambda n, device: [ints([i % 251 for i in range(96 * n)], device, torch.uint8).view(32 * n, 3)],
    "convert_weight_packed_scale_zp": lambda n, device: int4_words(device),
    "weight_packed_linear": lambda n, device: [random(n, 48, device=device), random(32, 48, device=device), random(32, device=device), True],
    "fused_linear_sigmoid_mul": lambda n, device: [random(n, 48, device=device), random(48, 1, device=device), None, True, random(n, 32, device=device)],
    "bmm_cpu": lambda n, device: [torch.empty(2, n, 32, device=device), random(2, n, 48, device=device), random(2, 32, 48, device=device), True, None],
    "int8_scaled_mm_cpu": lambda n, device: [ints([i % 256 for i in range(64 * n)], device, torch.uint8).view(n, 64), i8_packed(device),
                                             random(n, 1, device=device), random(32, 1, device=device), None, torch.float16, True],
    "int8_scaled_mm_with_quant": lambda n, device: [random(n, 64, device=device), i8_packed(device), random(32, device=device), random(32, device=device), F32, True],
    "fp8_scaled_mm_cpu": lambda n, device: [random(n, 160, device=device), random(64, 160, device=device).to(torch.float8_e4m3fn), random(2, 2, device=device),
                                            [32, 128], random(64, device=device), F32, True],
    "mxfp4_scaled_mm_cpu": lambda n, device: [random(n, 64, device=device), ints([i % 256 for i in range(1024)], device, torch.uint8).view(32, 32),
                                              ints([120 + i % 9 for i in range(64)], device, torch.uint8).view(32, 2), None, True],
    "int4_scaled_mm_cpu": lambda n, device: [random(n, 64, device=device), *int4_packed(device), None],
    "qkv_proj_with_rope": lambda n, device: latent_projection(n, device, False),
    "qkv_proj_with_rope_fused_weight": lambda n, device: latent_projection(n, device, True),
    "conv3d_embed_cpu": embed,
    "fp8_blockwise_scaled_mm": lambda n, device: [codes(n, 256, device=device), codes(24, 256, device=device, seed=1).t(), scales(2, n, device=device).t(),
                                                  scales(1, 2, device=device, seed=1).t(), torch.bfloat16],
    "fp8_blockwise_scaled_grouped_mm": blockwise_grouped,
    "es_fp8_blockwise_scaled_grouped_mm": es_grouped,
    "es_sm100_mxfp8_blockscaled_grouped_mm": mx_mm,
    "es_sm100_mxfp8_blockscaled_grouped_quant": mx_quant,
    "cublas_grouped_gemm": lambda n, device: products(device),
    "fp8_gemm_nt": lambda n, device: [torch.zeros(n, 24, device=device, dtype=torch.bfloat16), *block_scaled(n, device)],
    "m_grouped_fp8_gemm_nt_contiguous": lambda n, device: [
        torch.zeros(128 + n, 24, device=device, dtype=torch.bfloat16), codes(128 + n, 256, device=device), scales(128 + n, 2, device=device),
        *block_scaled_groups(n, device)[2:], contiguous_layout(n, device), False],
    "m_grouped_fp8_gemm_nt_masked": lambda n, device: [torch.zeros(3, n + 1, 24, device=device, dtype=torch.bfloat16), *masked_groups(n, device)[0],
                                                       *masked_groups(n, device)[1]],
    "m_grouped_bf16_gemm_nt_contiguous": lambda n, device: [
        torch.zeros(128 + n, 24, device=device, dtype=torch.bfloat16), random(128 + n, 48, device=device, dtype=torch.bfloat16),
        random(3, 24, 48, device=device, dtype=torch.bfloat16, seed=1), contiguous_layout(n, device), False],
    "m_grouped_bf16_gemm_nt_masked": lambda n, device: [
        torch.zeros(3, n + 1, 24, device=device, dtype=torch.bfloat16), random(3, n + 1, 48, device=device, dtype=torch.bfloat16),
        random(3, 24, 48, device=device, dtype=torch.bfloat16, seed=1), *masked_groups(n, device)[1]],
    "conv3d_embed_weight_pack": lambda n, device: embed(n, device)[:1],
    "image_preprocess_cpu": images,
    "store_kv_cache": store,
    "store_cache_cpu": lambda n, device: [*store(n, device)[3:], *store(n, device)[:3], 32],
    "flash_attn": attention,
    "flash_attn_append": attention_append,
    "decode_attention_cpu": decode_attention,
    "extend_attention_cpu": extend_attention,
    "fwd_sparse_out": sparse,
    "convert_vertical_slash_indexes": lambda n, device: [*slash_lists(n, device), 130, 64, 64, True],
    "convert_vertical_slash_indexes_mergehead": lambda n, device: [*slash_lists(n, device), ints([1] * n, device), ints([2] * n, device), 130, 64, 64, True],
    "lightning_attention_decode": lightning,
    "get_scheduler_metadata": attention_metadata,
    "flash_attn_varlen_func": attention_cpu_varlen,
    "merge_state": merge,
    "merge_state_v2": merge,
    "apply_token_bitmask_inplace_cuda": bitmask,
    "softmax": softmax,
    "top_k_top_p_sampling_from_probs": sampling,
    "top_k_top_p_sampling_from_probs_seeded": sampling_seeded,
    "sgl_per_token_quant_fp8": lambda n, device: [random(n, 48, device=device), *quantised(n, 48, 1, device)],
    "sgl_per_tensor_quant_fp8": lambda n, device: [random(n, 48, device=device), *quantised(n, 48, 1, device)[:1], torch.zeros(1, device=device), False],
    "sgl_per_token_group_quant_8bit": lambda n, device: [random(n, 48, device=device), *quantised(n, 48, 2, device, words=torch.int32), 8, 1e-10, -448.0, 448.0, True],
    "sgl_per_token_group_quant_8bit_v2": lambda n, device: [random(n, 96, device=device), *quantised(n, 48, 3, device, torch.int8), 16, 1e-10,
                                                            -128.0, 127.0, False, True, None],
    "sgl_per_token_group_quant_fp8": lambda n, device: [random(n, 48, device=device), *quantised(n, 48, 2, device), 24, 1e-10, -448.0, 448.0],
    "sgl_per_token_group_quant_int8": lambda n, device: [random(n, 48, device=device), *quantised(n, 48, 2, device, torch.int8), 24, 1e-10, -128.0, 127.0],
    "fused_rmsnorm_quant": lambda n, device: [random(n, 48, device=device), *quantised(n, 48, 3, device), random(48, device=device), 16, 1e-6, 1e-10,
                                              -448.0, 448.0, False, False],
    "fused_add_rmsnorm_quant": lambda n, device: [random(n, 48, device=device), random(n, 48, device=device, seed=1),
                                                  *quantised(n, 48, 1, device, words=torch.int32), random(48, device=device), 16, 1e-6, 1e-10, -448.0, 448.0,
                                                  True, False],
    "per_token_quant_int8_cpu": lambda n, device: [random(n, 48, device=device, dtype=torch.bfloat16)],
}
