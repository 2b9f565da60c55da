#!/usr/bin/env python3
"""Element-wise and quantising operators on the CPU beside torch's eager form, and beside what this machine's memory allows.

    python benchmark/elementwise_cpu.py --json out.json

Two sizes of every operator. `cached` is 64 tokens and some 4096 numbers each, which stay in the caches: the operator and torch take turns, and the
ratio is the median of the ratios of paired rounds; both make their own results where their functions do. `memory` is some 400 MB, far past the
caches: the bytes that must move, each once, over the time of the best call. Their share is what memory would need for them over what the operator
needs: what is updated in place at the rate of torch's negation in place (of a copy where that is faster), as much as is read and written elsewhere
at that of a copy, what is only read at that of a read. These take turns with the operator: the median of paired rounds, as other machines of the
same host take more or less of its memory all the time. Torch's form is one operator where torch has one; otherwise the fewest that give the result. Memory of freed results is kept,
so that no figure counts the first touch of a page.
"""
import argparse
import ctypes
import json
import statistics
import sys
import threading
from time import perf_counter

import torch
import torch.nn.functional as F

import sgl_kernel
from library import processor
from sgl_kernel.memory import set_kv_buffer_kernel

BF16, F32, E4M3 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
OPS = torch.ops.sgl_kernel


def random(*shape, dtype=BF16):
    """Normal numbers; those of a large tensor repeat."""
    count = 1
    for n in shape:
        count *= n
    if count <= 1 << 20:
        return torch.randn(shape).to(dtype)
    return torch.randn(1 << 20).to(dtype).repeat(-(-count // (1 << 20)))[:count].view(shape)


def size(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


class Case:
    """`ours` and `torch` are calls without arguments; `reads` and `writes` are bytes, `in_place` those written where they were read, True for all."""

    def __init__(self, ours, theirs, reads, writes, in_place=0):
        self.ours, self.torch, self.reads, self.writes = ours, theirs, reads, writes
        self.in_place = writes if in_place is True else in_place


# ---- operators: make(tokens, cached) -----------------------------------------------------------------------------------------------------------------

def rms_norm(x, w, eps=1e-6):
    return F.rms_norm(x, (x.shape[-1],), w, eps)


def norm(name, dtype=BF16):
    def make(tokens, cached):
        f, shift = getattr(sgl_kernel, name), 1 if name.startswith("gemma") else 0
        x, w, out = random(tokens, 4096, dtype=dtype), random(4096, dtype=dtype), None if cached else torch.empty(tokens, 4096, dtype=dtype)
        return Case(lambda: f(x, w, 1e-6, out), lambda: rms_norm(x, w + 1 if shift else w), size(x, w), size(x))
    return make


def add_norm(name):
    def make(tokens, cached):
        f, shift = getattr(sgl_kernel, name), 1 if name.startswith("gemma") else 0
        x, r, w = random(tokens, 4096), random(tokens, 4096), random(4096)

        def theirs():
            r.add_(x)
            x.copy_(rms_norm(r, w + 1 if shift else w))
        return Case(lambda: f(x, r, w), theirs, size(x, r, w), size(x, r), True)
    return make


def l2norm(tokens, cached):
    x = random(tokens, 4096)
    return Case(lambda: OPS.l2norm_cpu(x, 1e-6), lambda: F.normalize(x, dim=-1), size(x), size(x))


def gated_norm(tokens, cached):
    x, w, gate = random(tokens * 32, 128), random(128), random(tokens * 32, 128)
    return Case(lambda: OPS.fused_rmsnorm_gated_cpu(x, w, gate, 1e-6), lambda: rms_norm(x, w) * F.silu(gate), size(x, w, gate), size(x))


def layer_norm(tokens, cached):
    x, w, b = random(tokens, 4096), random(4096), random(4096)
    return Case(lambda: OPS.layernorm_cpu(x, w, b, 1e-6), lambda: F.layer_norm(x, (4096,), w, b, 1e-6), size(x, w, b), size(x))


def add_layer_norm(tokens, cached):
    x, r, w = random(tokens, 4096), random(tokens, 4096), random(4096)

    def theirs():
        r.add_(x)
        return F.layer_norm(r, (4096,), w, None, 1e-6)
    return Case(lambda: OPS.fused_add_layernorm_cpu(x, r, w, None, 1e-6), theirs, size(x, r, w), size(x, r), size(r))


def gated(name, act, dtype=BF16):
    def make(tokens, cached):
        f = getattr(sgl_kernel, name)
        x, out = random(tokens, 8192, dtype=dtype), None if cached else torch.empty(tokens, 4096, dtype=dtype)
        return Case(lambda: f(x, out), lambda: act(x[:, :4096]) * x[:, 4096:], size(x), size(x) // 2)
    return make


def gelu_quick(tokens, cached):
    x, out = random(tokens, 4096), None if cached else torch.empty(tokens, 4096, dtype=BF16)
    return Case(lambda: sgl_kernel.gelu_quick(x, out), lambda: x * torch.sigmoid(1.702 * x), size(x), size(x))


def timestep(tokens, cached):
    t = random(tokens, dtype=F32)
    frequencies = torch.exp(-torch.arange(2048) / 2048 * 9.21)

    def theirs():
        angle = t[:, None] * frequencies
        return torch.cat((angle.cos(), angle.sin()), 1)
    return Case(lambda: sgl_kernel.timestep_embedding(t, 4096), theirs, size(t), 4 * 4096 * tokens)


def angles(dtype, rotary=128):
    angle = torch.outer(torch.arange(4096.0), 1e4 ** (-torch.arange(rotary // 2) / (rotary // 2)))
    return torch.cat((angle.cos(), angle.sin()), 1).to(dtype)


def rotate(x, cos, sin):
    """[tokens, heads, 128] in place, by halves"""
    a, b = x[..., :64], x[..., 64:]
    x.copy_(torch.cat((a * cos - b * sin, b * cos + a * sin), -1))


def rope(tokens, cached):
    q, k, cache, positions = random(tokens, 32 * 128), random(tokens, 8 * 128), angles(BF16), torch.randint(4096, (tokens,))

    def theirs():
        cos, sin = cache[positions].unsqueeze(1).chunk(2, -1)
        rotate(q.view(tokens, 32, 128), cos, sin), rotate(k.view(tokens, 8, 128), cos, sin)
    return Case(lambda: sgl_kernel.rotary_embedding(positions, q, k, 128, cache), theirs, size(q, k, positions), size(q, k), True)


def rope_store(tokens, cached):
    q, k, v = random(tokens, 32 * 128), random(tokens, 8 * 128), random(tokens, 8 * 128)
    cache, positions, place = angles(F32), torch.randint(4096, (tokens,)), torch.randperm(tokens)
    buffers = [torch.zeros(tokens, 8 * 128, dtype=BF16) for _ in range(2)]
    fused = sgl_kernel.FusedSetKVBufferArg(v, *buffers, None, None, place)

    def theirs():
        cos, sin = cache[positions].unsqueeze(1).chunk(2, -1)
        rotate(q.view(tokens, 32, 128), cos, sin), rotate(k.view(tokens, 8, 128), cos, sin)
        buffers[0][place], buffers[1][place] = k, v
    return Case(lambda: sgl_kernel.apply_rope_with_cos_sin_cache_inplace(positions, q, k, 128, cache, True, fused), theirs,
                size(q, k, v, positions, place), size(q, k, *buffers), size(q, k))


def mrope(tokens, cached):
    q, k, cache, positions = random(tokens, 32 * 128), random(tokens, 8 * 128), angles(BF16), torch.randint(4096, (3, tokens))

    def theirs():
        cos, sin = (torch.cat([part[i] for i, part in enumerate(half.split([16, 24, 24], -1))], -1).unsqueeze(1)
                    for half in cache[positions].chunk(2, -1))
        rotate(q.view(tokens, 32, 128), cos, sin), rotate(k.view(tokens, 8, 128), cos, sin)
    return Case(lambda: OPS.multimodal_rotary_embedding(positions, q, k, 128, cache, [16, 24, 24], False, True), theirs, size(q, k, positions), size(q, k), True)


def vision_rope(tokens, cached):
    q, k, cos, sin = random(tokens, 16, 128), random(tokens, 16, 128), random(tokens, 128, dtype=F32), random(tokens, 128, dtype=F32)

    def theirs():
        for x in (q, k):
            turned = torch.cat((-x[..., 64:], x[..., :64]), -1)
            x.copy_(x * cos.unsqueeze(1) + turned * sin.unsqueeze(1))
    return Case(lambda: OPS.apply_rotary_pos_emb(q, k, cos, sin), theirs, size(q, k, cos, sin), size(q, k), True)


def qk_norm_rope(tokens, cached):
    weights = [torch.ones(128, dtype=BF16) for _ in range(2)]           # in place again and again: others would drive elements into the subnormal numbers
    qkv, positions, cache = random(tokens, 48 * 128), torch.randint(4096, (tokens,), dtype=torch.int32), angles(F32)

    def theirs():
        heads = qkv.view(tokens, 48, 128)
        cos, sin = cache[positions].unsqueeze(1).chunk(2, -1)
        for part, w in ((heads[:, :32], weights[0]), (heads[:, 32:40], weights[1])):
            part.copy_(rms_norm(part, w))
            rotate(part, cos, sin)
    return Case(lambda: sgl_kernel.fused_qk_norm_rope(qkv, 32, 8, 8, 128, 1e-6, *weights, 1e4, True, positions, 1.0, 1.0, 1.0, 1.0), theirs,
                size(qkv) * 40 // 48 + size(positions), size(qkv) * 40 // 48, True)


def codes(x, scale):
    return (x.float() / scale).clamp(-448, 448).to(E4M3)


def per_token(tokens, cached):
    x, q, s = random(tokens, 4096), torch.empty(tokens, 4096, dtype=E4M3), torch.empty(tokens, 1)

    def theirs():
        s.copy_(x.abs().amax(-1, keepdim=True).float() / 448)
        q.copy_(codes(x, s))
    return Case(lambda: sgl_kernel.sgl_per_token_quant_fp8(x, q, s), theirs, size(x), size(q, s))


def per_token_int8(tokens, cached):
    x = random(tokens, 4096)

    def theirs():
        s = x.abs().amax(-1, keepdim=True).float() / 127
        return (x.float() / s).round().add(128).to(torch.uint8), s
    return Case(lambda: OPS.per_token_quant_int8_cpu(x), theirs, size(x), size(x) // 2 + 4 * tokens)


def per_tensor(static):
    def make(tokens, cached):
        x, q = random(tokens, 4096), torch.empty(tokens, 4096, dtype=E4M3)
        s = x.abs().amax().float().view(1) / 448                        # what a calibration finds

        def theirs():
            if not static:
                s.copy_(x.abs().amax().float() / 448)
            q.copy_(codes(x, s))
        return Case(lambda: sgl_kernel.sgl_per_tensor_quant_fp8(x, q, s, static), theirs, size(x) * (1 if static else 2), size(q))
    return make


def per_group(v2, kind=E4M3, ue8m0=False, silu=False):
    def make(tokens, cached):
        x, q = random(tokens, 8192 if silu else 4096), torch.empty(tokens, 4096, dtype=kind)
        s = torch.empty(tokens, 8, dtype=torch.int32) if ue8m0 else torch.empty(tokens, 32)
        most = 448.0 if kind == E4M3 else 127.0
        least = -448.0 if kind == E4M3 else -128.0

        def theirs():
            y = (F.silu(x[:, :4096]) * x[:, 4096:] if silu else x).view(tokens, 32, 128)
            scale = y.abs().amax(-1, keepdim=True).float() / most
            if ue8m0:
                scale = torch.exp2(torch.ceil(torch.log2(scale)))
                s.copy_((torch.log2(scale).int() + 127).to(torch.uint8).view(tokens, 32).view(torch.int32))
            else:
                s.copy_(scale.squeeze(-1))
            q.copy_((y.float() / scale).clamp(least, most).to(kind).view(tokens, 4096))

        def ours():
            if v2:
                OPS.sgl_per_token_group_quant_8bit_v2(x, q, s, 128, 1e-10, least, most, ue8m0, silu, None)
            else:
                OPS.sgl_per_token_group_quant_8bit(x, q, s, 128, 1e-10, least, most, ue8m0)
        return Case(ours, theirs, size(x), size(q, s))
    return make


def norm_quant(add):
    def make(tokens, cached):
        x, r, w, q, s = random(tokens, 4096), random(tokens, 4096), random(4096), torch.empty(tokens, 4096, dtype=E4M3), torch.empty(tokens, 32)
        rest = (w, 128, 1e-10, -448.0, 448.0, False)

        def theirs():
            if add:
                r.add_(x)
            y = rms_norm(r if add else x, w).view(tokens, 32, 128)
            scale = y.abs().amax(-1, keepdim=True).float() / 448
            s.copy_(scale.squeeze(-1))
            q.copy_(codes(y, scale).view(tokens, 4096))
        if add:
            return Case(lambda: sgl_kernel.fused_add_rmsnorm_quant(x, r, q, s, *rest), theirs, size(x, r, w), size(r, q, s))
        return Case(lambda: sgl_kernel.fused_rmsnorm_quant(x, q, s, *rest), theirs, size(x, w), size(q, s))
    return make


def concat_k(tokens, cached):
    k, nope, turned = torch.empty(tokens, 32, 192, dtype=BF16), random(tokens, 32, 128), random(tokens, 1, 64)

    def theirs():
        k[..., :128], k[..., 128:] = nope, turned
    return Case(lambda: sgl_kernel.concat_mla_k(k, nope, turned), theirs, size(nope, turned), size(k))


def concat_q(tokens, cached):
    a, b = random(tokens, 8, 512), random(tokens, 8, 64)
    return Case(lambda: sgl_kernel.concat_mla_absorb_q(a, b), lambda: torch.cat((a, b), -1), size(a, b), size(a, b))


def downcast(tokens, cached):
    k, v = random(tokens, 8, 256), random(tokens, 8, 256)
    outs = [torch.zeros(tokens, 8, 256, dtype=torch.uint8) for _ in range(2)]
    scales, place = [torch.full((1,), 0.5) for _ in range(2)], torch.randperm(tokens)

    def theirs():
        for x, out, scale in zip((k, v), outs, scales):
            out[place] = (x / scale.to(BF16)).clamp(-448, 448).to(E4M3).view(torch.uint8)
    return Case(lambda: sgl_kernel.downcast_fp8(k, v, *outs, *scales, place), theirs, size(k, v, place), size(*outs))


def store(operator):
    def make(tokens, cached):
        k, v = random(tokens, 8, 256), random(tokens, 8, 256)
        k_cache, v_cache, place = torch.zeros_like(k), torch.zeros_like(v), torch.randperm(tokens)

        def theirs():
            k_cache[place], v_cache[place] = k, v
        if operator:
            return Case(lambda: OPS.store_cache_cpu(k, v, k_cache, v_cache, place, 2048), theirs, size(k, v, place), size(k, v))
        return Case(lambda: set_kv_buffer_kernel(k_cache, v_cache, place, k, v), theirs, size(k, v, place), size(k, v))
    return make


def shuffle(tokens, cached):
    x, places, out = random(tokens, 4096), torch.randperm(tokens).int(), torch.empty(tokens, 4096, dtype=BF16)
    return Case(lambda: sgl_kernel.shuffle_rows(x, places, (tokens, 4096)) if cached else OPS.shuffle_rows(x, places, out), lambda: x[places], size(x, places), size(x))


def shuffle_sum(tokens, cached):
    x, out, factors = random(tokens * 4, 4096), torch.empty(tokens, 4096, dtype=BF16), random(tokens * 4)
    places = torch.randperm(tokens * 4).int()
    return Case(lambda: sgl_kernel.apply_shuffle_mul_sum(x, out, places, factors),
                lambda: out.copy_((x[places].view(tokens, 4, 4096) * factors.view(tokens, 4, 1)).sum(1)), size(x, places, factors), size(out))


def moe_sum(reduce):
    def make(tokens, cached):
        x, out = random(tokens, 8, 4096), torch.empty(tokens, 4096, dtype=BF16)
        if reduce:
            return Case(lambda: sgl_kernel.moe_sum_reduce(x, out, 2.5), lambda: torch.sum(x, 1, out=out).mul_(2.5), size(x), size(out))
        return Case(lambda: sgl_kernel.moe_sum(x, out), lambda: torch.sum(x, 1, out=out), size(x), size(out))
    return make


def merge(name):
    def make(tokens, cached):
        v = [random(tokens, 32, 128) for _ in range(2)] + [torch.empty(tokens, 32, 128, dtype=BF16)]
        s = [random(tokens, 32, dtype=F32) for _ in range(2)] + [torch.empty(tokens, 32)]
        f = getattr(sgl_kernel, name)

        def theirs():
            torch.logaddexp(s[0], s[1], out=s[2])
            v[2].copy_(v[0] * torch.exp(s[0] - s[2]).unsqueeze(-1) + v[1] * torch.exp(s[1] - s[2]).unsqueeze(-1))
        return Case(lambda: f(v[0], s[0], v[1], s[1], v[2], s[2]), theirs, size(*v[:2], *s[:2]), size(v[2], s[2]))
    return make


def hadamard(name, order, width):
    def make(tokens, cached):
        x, f = random(tokens, width), getattr(sgl_kernel, name)
        matrix = torch.randint(0, 2, (width, width)).mul(2).sub(1).to(BF16) if cached else None
        return Case(lambda: f(x, 0.015), lambda: F.linear(x, matrix) * 0.015, size(x), size(x))
    return make


def dsv4_tables(tokens):
    angle = torch.outer(torch.arange(4096.0), 1e4 ** (-torch.arange(32) / 32))
    return torch.stack((angle.cos(), angle.sin()), -1).flatten(1), torch.randint(4096, (tokens,), dtype=torch.int32)


def turn_pairs(x, table, positions):
    """The last 64 elements of [..., heads, dim] by pairs of neighbours."""
    pairs = torch.view_as_complex(x[..., -64:].float().unflatten(-1, (32, 2)))
    turned = torch.view_as_real(pairs * torch.view_as_complex(table[positions].view(-1, 1, 32, 2)))
    return torch.cat((x[..., :-64], turned.flatten(-2).to(x.dtype)), -1)


def dsv4_q(tokens, cached):
    q, (table, positions) = random(tokens, 32, 128), dsv4_tables(tokens)
    out = torch.empty_like(q)
    return Case(lambda: sgl_kernel.dsv4_fused_q_norm_rope(q, table, positions, 1e-6, out), lambda: turn_pairs(F.rms_norm(q, (128,), None, 1e-6), table, positions),
                size(q, positions), size(q))


def dsv4_k(tokens, cached):
    tokens *= 8
    kv, w, (table, positions) = random(tokens, 512), random(512), dsv4_tables(tokens)
    place, cache = torch.arange(tokens, dtype=torch.int32), torch.zeros(-(-tokens // 64), -(-64 * 584 // 576) * 576, dtype=torch.uint8)

    def theirs():
        y = turn_pairs(rms_norm(kv, w).unsqueeze(1), table, positions).squeeze(1)
        groups = y[:, :448].view(tokens, 7, 64)
        scale = torch.exp2(torch.ceil(torch.log2(groups.abs().amax(-1, keepdim=True).float() / 448)))
        return codes(groups, scale), scale, y[:, 448:].contiguous()
    return Case(lambda: sgl_kernel.dsv4_fused_k_norm_rope_flashmla(kv, w, table, positions, place, cache, 1e-6, 64), theirs, size(kv, positions, place), 584 * tokens)


def dsv4_indexer(tokens, cached):
    q, w, (table, positions) = random(tokens, 32, 128), random(tokens, 32), dsv4_tables(tokens)
    codes_out, weights = torch.empty(tokens, 32, 128, dtype=E4M3), torch.empty(tokens, 32, 1)
    matrix = torch.randint(0, 2, (128, 128)).mul(2).sub(1).to(BF16)

    def theirs():
        y = F.linear(turn_pairs(q, table, positions), matrix)
        scale = y.abs().amax(-1, keepdim=True).float() / 448
        weights.copy_(w.unsqueeze(-1) * 0.25 * scale)
        codes_out.copy_(codes(y, scale))
    return Case(lambda: sgl_kernel.dsv4_fused_q_indexer_rope_hadamard_quant(q, codes_out, w, weights, 0.25, table, positions), theirs,
                size(q, w, positions), size(codes_out, weights))


def bitmask(tokens, cached):
    x, mask = random(tokens, 4096), torch.randint(-2**31, 2**31, (tokens, 128), dtype=torch.int64).int()
    bits = torch.arange(32, dtype=torch.int32)
    return Case(lambda: sgl_kernel.apply_token_bitmask_inplace_cuda(x, mask),
                lambda: x.masked_fill_((mask.unsqueeze(-1) >> bits & 1).view(tokens, 4096) == 0, float("-inf")), size(x, mask), size(x), True)


OPERATORS = {
    "rmsnorm": norm("rmsnorm"),
    "rmsnorm f32": norm("rmsnorm", F32),
    "gemma_rmsnorm": norm("gemma_rmsnorm"),
    "fused_add_rmsnorm": add_norm("fused_add_rmsnorm"),
    "gemma_fused_add_rmsnorm": add_norm("gemma_fused_add_rmsnorm"),
    "l2norm_cpu": l2norm,
    "fused_rmsnorm_gated_cpu": gated_norm,
    "layernorm_cpu": layer_norm,
    "fused_add_layernorm_cpu": add_layer_norm,
    "silu_and_mul": gated("silu_and_mul", F.silu),
    "silu_and_mul f32": gated("silu_and_mul", F.silu, F32),
    "gelu_and_mul": gated("gelu_and_mul", F.gelu),
    "gelu_tanh_and_mul": gated("gelu_tanh_and_mul", lambda x: F.gelu(x, approximate="tanh")),
    "gelu_quick": gelu_quick,
    "timestep_embedding": timestep,
    "rotary_embedding": rope,
    "apply_rope with KV store": rope_store,
    "multimodal_rotary_embedding": mrope,
    "apply_rotary_pos_emb": vision_rope,
    "fused_qk_norm_rope": qk_norm_rope,
    "per_token_quant_fp8": per_token,
    "per_token_quant_int8_cpu": per_token_int8,
    "per_tensor_quant_fp8, static": per_tensor(True),
    "per_tensor_quant_fp8": per_tensor(False),
    "per_token_group_quant fp8": per_group(False),
    "per_token_group_quant fp8 ue8m0": per_group(False, ue8m0=True),
    "per_token_group_quant int8": per_group(False, torch.int8),
    "per_token_group_quant v2 fp8": per_group(True),
    "per_token_group_quant v2 fp8 silu": per_group(True, silu=True),
    "fused_rmsnorm_quant": norm_quant(False),
    "fused_add_rmsnorm_quant": norm_quant(True),
    "concat_mla_k": concat_k,
    "concat_mla_absorb_q": concat_q,
    "downcast_fp8": downcast,
    "store_kv_cache": store(False),
    "store_cache_cpu": store(True),
    "shuffle_rows": shuffle,
    "apply_shuffle_mul_sum": shuffle_sum,
    "moe_sum": moe_sum(False),
    "moe_sum_reduce": moe_sum(True),
    "merge_state": merge("merge_state"),
    "merge_state_v2": merge("merge_state_v2"),
    "hadamard_transform": hadamard("hadamard_transform", 1, 4096),
    "hadamard_transform_28n": hadamard("hadamard_transform_28n", 28, 3584),
    "dsv4_fused_q_norm_rope": dsv4_q,
    "dsv4_fused_k_norm_rope_flashmla": dsv4_k,
    "dsv4_fused_q_indexer_rope_hadamard_quant": dsv4_indexer,
    "apply_token_bitmask_inplace": bitmask,
}
# What has no large form worth a figure: it computes, or torch has no eager form of it.
COMPUTES = {"timestep_embedding"}


# ---- measuring ----------------------------------------------------------------------------------------------------------------------------------------

def seconds(call, times):
    start = perf_counter()
    for _ in range(times):
        call()
    return (perf_counter() - start) / times


def times_for(call, least):
    """How many calls take that many seconds."""
    call()
    times = 1
    while (taken := seconds(call, times)) * times < least / 2:
        times *= 2
    return max(1, round(least / taken))


def paired(case, rounds):
    many = [times_for(call, 2e-3) for call in (case.ours, case.torch)]
    ours, theirs = zip(*[(seconds(case.ours, many[0]), seconds(case.torch, many[1])) for _ in range(rounds)])
    return {"ours_microseconds": statistics.median(ours) * 1e6, "torch_microseconds": statistics.median(theirs) * 1e6,
            "ratio": statistics.median(t / o for o, t in zip(ours, theirs))}


class Ceilings:
    """What this machine's memory allows: calls that copy, read, and update in place, and the bytes that each moves."""

    def __init__(self, count=1 << 28):
        libc = ctypes.CDLL(None)
        libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        a, b = torch.ones(count // 4, dtype=torch.int32), torch.zeros(count // 4, dtype=torch.int32)
        threads, part = torch.get_num_threads(), count // torch.get_num_threads()

        def memcpy():
            work = [threading.Thread(target=libc.memcpy, args=(b.data_ptr() + i * part, a.data_ptr() + i * part, part)) for i in range(threads)]
            [t.start() for t in work]
            [t.join() for t in work]

        rows, order = [t.view(-1, 1024) for t in (a, b)], torch.arange(count // 4096, dtype=torch.int32)
        copies = {"memcpy": memcpy, "torch": lambda: b.copy_(a), "shuffle_rows": lambda: OPS.shuffle_rows(rows[0], order, rows[1])}
        self.copies = {name: 2 * count / taken for name, taken in best(copies).items()}
        self.calls = {"copy": copies[max(self.copies, key=self.copies.get)], "read": lambda: torch.sum(a.view(F32)), "update": lambda: a.neg_()}
        self.moved = {"copy": 2 * count, "read": count, "update": 2 * count}
        self.count, self.rates = count, {name: self.moved[name] / taken for name, taken in best(self.calls).items()}

    def bytes_of(self, case):
        """How many bytes of a case are measured by each."""
        copied = case.writes - case.in_place
        read = max(0, case.reads - case.in_place - copied)
        parts = {"update" if self.rates["update"] > self.rates["copy"] else "copy": 2 * case.in_place}
        parts["copy"] = parts.get("copy", 0) + case.reads + case.writes - 2 * case.in_place - read
        return {name: n for name, n in (parts | {"read": read}).items() if n}

    def seconds_now(self, case):
        """What memory needs at this moment."""
        return sum(n / self.rate_now(name) for name, n in self.bytes_of(case).items())

    def rate_now(self, name):
        return self.moved[name] / seconds(self.calls[name], 1)


def best(calls):
    """The best time of each; they take turns."""
    for call in calls.values():
        call()
    rounds = [[seconds(call, 1) for call in calls.values()] for _ in range(9)]
    return dict(zip(calls, map(min, zip(*rounds))))


def keep_freed_memory():
    """Tells glibc to take large blocks from the heap and never to give them back."""
    trim_threshold, mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(-2, 1 << 28)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT")
    parser.add_argument("--sizes", choices=["cached", "memory", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()
    limits = Ceilings()
    print(f"{processor(torch.get_num_threads())}, torch {torch.__version__}: copy {limits.rates['copy'] * 1e-9:.1f} GB/s "
          f"({', '.join(f'{name} {c * 1e-9:.1f}' for name, c in limits.copies.items())}), read {limits.rates['read'] * 1e-9:.1f} GB/s, in place {limits.rates['update'] * 1e-9:.1f} GB/s", flush=True)
    rows = []
    with torch.inference_mode():
        for name, make in OPERATORS.items():
            if arguments.only and not any(text in name for text in arguments.only):
                continue
            row = {"operator": name}
            if arguments.sizes != "memory":
                row |= paired(make(64, True), arguments.rounds)
            if arguments.sizes != "cached" and name not in COMPUTES:
                small = make(64, False)
                tokens = int(400e6 / (small.reads + small.writes) * 64)
                case = make(tokens, False)
                case.ours()
                moved = case.reads + case.writes
                rounds = [(limits.seconds_now(case), seconds(case.ours, 1)) for _ in range(arguments.rounds)]
                taken, ceiling = min(ours for _, ours in rounds), min(limit for limit, _ in rounds)
                row |= {"tokens": tokens, "bytes": moved, "milliseconds": taken * 1e3, "gigabytes_per_second": moved / taken * 1e-9, "ceiling": limits.bytes_of(case),
                        "ceiling_gigabytes_per_second": moved / ceiling * 1e-9, "share": statistics.median(limit / ours for limit, ours in rounds)}
                del case
            rows.append(row)
            text = f"{name:42}"
            if "ratio" in row:
                text += f" cached {row['ours_microseconds']:8.1f} us, torch {row['torch_microseconds']:8.1f} us, x{row['ratio']:5.2f};"
            if "share" in row:
                text += f" memory {row['milliseconds']:6.1f} ms, {row['gigabytes_per_second']:5.1f} GB/s, {row['share']:.2f} of {' and '.join(row['ceiling'])}"
            print(text, flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"device": processor(torch.get_num_threads()), "torch": torch.__version__, "rounds": arguments.rounds,
                       "ceilings": {"bytes": limits.count, **limits.rates, "copies": limits.copies}, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
