"""Serves requests on a model: admits them to the paged KV cache, prefills in chunks, decodes in a batch, samples."""
import random
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch
from sgl_kernel import softmax, top_k_top_p_sampling_from_probs

from llama import Batch, free_bytes, gib, require


@dataclass(eq=False)
class Request:
    prompt: list                  # token ids
    max_new_tokens: int = 128
    temperature: float = 0.0      # 0: always the likeliest token
    top_k: int = 0                # 0: all tokens
    top_p: float = 1.0
    seed: int = 0                 # each request draws from its own generator, so its text does not depend on the others
    stop: frozenset = frozenset()
    output: list = field(default_factory=list)
    finish: str = None            # "stop" or "length", once finished
    pages: list = None            # of the cache, while running
    cached: int = 0               # tokens in the cache
    generator: random.Random = None     # of the seeds of its draws

    @property
    def prefilling(self):
        return self.cached < len(self.prompt)


PADDING = Request([0], pages=[0])       # a row of a batch that belongs to nobody; page 0 is given to no one else


class Draws(NamedTuple):
    """How a token is chosen from each row of logits."""
    temperatures: torch.Tensor    # [r] float32; 0: the likeliest token
    top_k: torch.Tensor           # [r] int32
    top_p: torch.Tensor           # [r] float32
    seeds: torch.Tensor           # [r] int64

    @classmethod
    def of(cls, requests):
        """The next ones of these requests."""
        columns = zip(*((request.temperature, request.top_k, request.top_p, request.generator.getrandbits(63) if request.temperature else 0)
                        for request in requests))
        return cls(*(torch.tensor(column, dtype=dtype) for column, dtype in zip(columns, (torch.float32, torch.int32, torch.float32, torch.int64))))

    def to(self, device):
        return Draws(*(part.to(device) for part in self))


@torch.inference_mode()
def choose(logits, draws):
    """A token of each row; without draws the likeliest ones. At temperature 0 all of a row's probability is the likeliest token's, which is then drawn."""
    if draws is None:
        return logits.argmax(1)
    return top_k_top_p_sampling_from_probs(softmax(logits, draws.temperatures), draws.top_k, draws.top_p, seed=draws.seeds)


@dataclass
class Meter:
    tokens: int = 0
    seconds: float = 0.0

    def report(self):
        return {"tokens": self.tokens, "seconds": round(self.seconds, 6), "tokens_per_second": round(self.tokens / (self.seconds or 1), 1)}


class DecodeGraphs:
    """The decode step recorded as CUDA graphs for batches of powers of two. A graph replays fixed addresses: its inputs are static
    buffers, all but the page table in one piece, together with what the choice of tokens reads, that is filled by one copy."""

    def __init__(self, model, cache, max_batch, table_width):
        self.sizes = [1 << i for i in range((max_batch - 1).bit_length() + 1)]
        most, ints, pool = self.sizes[-1], dict(dtype=torch.int32, device=model.device), None
        starts, table = torch.arange(most + 1, **ints), torch.zeros(most, table_width, **ints)
        self.recorded, self.table = {}, None
        for n in reversed(self.sizes):      # the largest first: the smaller ones fit into its memory pool
            inputs = torch.zeros(12 * n, **ints)
            host = torch.empty_like(inputs, device="cpu", pin_memory=True)
            tokens, positions, slots, lengths, *draws = self.parts(inputs)
            lengths.fill_(1)
            batch, draws = Batch(tokens, positions, slots, starts[:n + 1], lengths, table[:n], max_seqlen_q=1), Draws(*draws)
            model.forward(batch, cache)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = model.forward(batch, cache)
            pool = graph.pool()
            self.recorded[n] = graph, batch, draws, inputs, host, logits        # the graph reads all of the batch

    @staticmethod
    def parts(inputs):
        """Tokens, positions, slots and lengths of a batch; temperatures, top k, top p and seeds of its draws."""
        n = len(inputs) // 12
        tokens, positions, slots, seeds = inputs[:8 * n].view(torch.int64).view(4, n)
        lengths, top_k, temperatures, top_p = inputs[8 * n:].view(4, n)
        return tokens, positions, slots, lengths, temperatures.view(torch.float32), top_k, top_p.view(torch.float32), seeds

    def padding(self, count):
        """How many rows a batch lacks of the next recorded size."""
        return next(size for size in self.sizes if size >= count) - count

    def run(self, batch, draws):
        """The tokens chosen for a batch in host memory."""
        graph, static, static_draws, inputs, host, logits = self.recorded[len(batch.tokens)]
        for part, value in zip(self.parts(host), (batch.tokens, batch.positions, batch.slots, batch.cache_seqlens, *(draws or ()))):
            part.copy_(value)
        inputs.copy_(host, non_blocking=True)
        if batch.page_table is not self.table:
            self.table = batch.page_table
            static.page_table.copy_(self.table)
        graph.replay()
        return choose(logits, draws and static_draws)


class Engine:
    """`step()` until it is no longer `busy`; prompts go before decoding, first come first served."""

    def __init__(self, model, requests, page_size=16, max_batch=32, prefill_chunk=2048, kv_tokens=None):
        self.model, self.page_size, self.prefill_chunk = model, page_size, prefill_chunk
        self.max_batch = max(1, min(max_batch, len(requests)))
        needs = sorted(map(self.pages_needed, requests), reverse=True) or [1]
        self.cache = model.new_cache(1 + self.choose_pages(needs, kv_tokens), page_size)
        self.free = list(range(1, self.cache.shape[2]))
        self.waiting, self.running = deque(requests), []
        self.table_width, self.table_of, self.table = needs[0], None, None
        self.prefill, self.decode = Meter(), Meter()
        self.graphs = DecodeGraphs(model, self.cache, self.max_batch, self.table_width) if model.device.type == "cuda" else None

    def pages_needed(self, request):
        return -(-(len(request.prompt) + request.max_new_tokens) // self.page_size)

    def choose_pages(self, needs, kv_tokens):
        """Enough for all that may run at once, less where memory or `kv_tokens` says so, but never less than one request."""
        page = self.page_size * self.model.cache_bytes
        room = min(int(0.9 * free_bytes(self.model.device)) // page - 1, (kv_tokens or 2**62) // self.page_size)
        require(room >= needs[0], f"too little memory for the KV cache: the longest request needs {needs[0] * self.page_size} tokens "
                                  f"({gib(needs[0] * page)}), there is room for {max(0, room) * self.page_size}")
        return min(sum(needs[:self.max_batch]), room)

    @property
    def busy(self):
        return bool(self.waiting or self.running)

    def step(self):
        """Run one batch; returns the requests that got a token, which is the last of their output."""
        start = time.perf_counter()
        self.admit()
        work, meter, graphs = self.next_chunk(), self.prefill, None
        if not work:
            work, meter, graphs = [(request, range(request.cached, request.cached + 1)) for request in self.running], self.decode, self.graphs
        padding = graphs.padding(len(work)) if graphs else 0
        batch = self.make_batch(work + [(PADDING, range(1))] * padding)
        for request, span in work:
            request.cached = span.stop
        served = [request for request, _ in work if not request.prefilling]
        draws = Draws.of(served + [PADDING] * padding) if any(request.temperature for request in served) else None
        if graphs:
            tokens = graphs.run(batch, draws)
        else:
            logits = self.model.forward(batch.to(self.model.device), self.cache)
            tokens = choose(logits, draws and draws.to(self.model.device)) if served else torch.empty(0)
        for request, token in zip(served, tokens.tolist()):
            self.give(request, token)
        meter.tokens += sum(len(span) for _, span in work)
        meter.seconds += time.perf_counter() - start
        return served

    def admit(self):
        """A request gets all the pages it can ever need, so that none has to be stopped half way."""
        while self.waiting and len(self.running) < self.max_batch and self.pages_needed(self.waiting[0]) <= len(self.free):
            request = self.waiting.popleft()
            request.pages = [self.free.pop() for _ in range(self.pages_needed(request))]
            request.generator = random.Random(request.seed)
            self.running.append(request)

    def next_chunk(self):
        """The next prompt tokens to prefill, at most `prefill_chunk` over all requests: [(request, range of positions)]."""
        work, room = [], self.prefill_chunk
        for request in self.running:
            if request.prefilling and room:
                work.append((request, range(request.cached, min(request.cached + room, len(request.prompt)))))
                room -= len(work[-1][1])
        return work

    def make_batch(self, work):
        """The spans of `work`, laid end to end; the token at a position behind the prompt is the last one of the output."""
        (requests, spans), size = zip(*work), self.page_size
        tokens = [token for request, span in work for token in request.prompt[span.start:span.stop] or request.output[-1:]]
        positions = [i for span in spans for i in span]
        slots = [request.pages[i // size] * size + i % size for request, span in work for i in span]
        starts = list(accumulate(map(len, spans), initial=0))
        rows = [end - 1 for (request, span), end in zip(work, starts[1:]) if span.stop >= len(request.prompt)]
        if self.table_of != requests:       # pages are given once, so the table changes only when the batch does
            self.table_of, self.table = requests, torch.zeros(len(requests), self.table_width, dtype=torch.int32)
            for row, request in zip(self.table, requests):
                row[:len(request.pages)] = torch.tensor(request.pages)
        return Batch(torch.tensor(tokens), torch.tensor(positions), torch.tensor(slots), torch.tensor(starts, dtype=torch.int32),
                     torch.tensor([span.stop for span in spans], dtype=torch.int32), self.table, max(map(len, spans)),
                     None if len(rows) == len(tokens) else torch.tensor(rows, dtype=torch.int64))

    def give(self, request, token):
        request.output.append(token)
        if token in request.stop or len(request.output) == request.max_new_tokens:
            request.finish = "stop" if token in request.stop else "length"
            self.running.remove(request)
            self.free += request.pages
            request.pages = None
