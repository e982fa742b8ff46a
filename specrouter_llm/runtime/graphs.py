"""The graph runner: on one CUDA device, the whole forward of a small step is one recorded graph.

Launching the few hundred kernels of a forward one by one takes longer than running them over a few tokens. A graph is
recorded per bucket (a padded number of tokens, a padded context) when it is first needed, and replayed with other inputs
at the same addresses. Longer steps, which are prefill, are several launches.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

from specrouter_llm.runtime.attention import STORAGE_STEP
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.buckets import (
    CANONICAL_TOKENS,
    TOKENS,
    Bucket,
    bucket_for,
    launches,
    loop_buckets,
)
from specrouter_llm.runtime.cache import SlotCache
from specrouter_llm.runtime.draft_loop import MOST_CHOICES, DraftLoop, Keys, LoopShape
from specrouter_llm.runtime.parity import LENGTHS, check_parity, probe_inputs
from specrouter_llm.runtime.probe import PROBE_LENGTH, is_stable_in
from specrouter_llm.runtime.runner import EagerRunner
from specrouter_llm.runtime.static_batch import StaticBatch, TileAttention
from specrouter_llm.sampling.row import GREEDY, Warp
from specrouter_llm.types import Guarantee

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_GRAPHS = 32
"""Forwards recorded at a time; the one that was used longest ago makes room."""
MAX_LOOPS, LOOP_IDLE = 16, 256
"""Loops recorded at a time; another shape takes the place of one that was not launched during the last so many. Callers choose
temperatures freely, and more of them in turn than there is room for would record a graph at every step."""
_CHECKED_LENGTHS = (LENGTHS, (40, 10), (110, 50), (220, 30))
"""Pairs of inputs whose launches hold up to 16, 32, 64, 128 and 256 tokens."""

Replay: TypeAlias = Callable[[], Tensor]
BatchForward: TypeAlias = Callable[[StaticBatch, Tensor, SlotCache], Tensor]
"""Logits [tokens of the bucket, V] of the ids [tokens] at the batch's places; writes the cache."""


class Capture(Protocol):
    """Records a function of tensors at fixed addresses."""

    def __call__(self, run: Replay) -> Replay:
        """Runs `run` at least once; what comes back does the same work again and returns the same, overwritten tensor."""
        ...


_recording = threading.Lock()


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Where all graphs of a device are recorded, one at a time: cuBLAS keeps 32 MiB for every stream it has ever met."""
    return torch.cuda.Stream(device)


class CudaCapture:
    """Records CUDA graphs of one device; they share their memory, so only one may be replayed at a time.

    Sharing needs one stream for all: memory of the pool, and the workspaces of matrix products, belong to a stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, run: Replay) -> Replay:
        with _recording, torch.cuda.device(self._device):
            stream, current = _recording_stream(self._device), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):  # kernels are built and workspaces made before anything is recorded
                run()
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool(), stream=stream, capture_error_mode="thread_local"):
                    output = run()
            finally:  # where recording fails, torch may leave the thread on the stream that others record on
                torch.cuda.set_stream(current)
        self._graphs.add(graph)

        def replay() -> Tensor:
            with torch.cuda.device(self._device):
                graph.replay()
            return output

        return replay

    def _pool(self) -> tuple[int, int]:
        """That of any graph still there: a pool must not be used again once its last graph is gone."""
        pool: tuple[int, int] = next((graph.pool() for graph in self._graphs), None) or torch.cuda.graph_pool_handle()
        return pool


Inputs = TypeVar("Inputs")


class Recordings(Generic[Inputs]):
    """Graphs by shape, with their inputs; the one that was used longest ago makes room."""

    def __init__(self, capture: Capture, limit: int) -> None:
        self._capture = capture
        self._limit = limit
        self._known: OrderedDict[Hashable, tuple[Inputs, Sequence[Replay]]] = OrderedDict()
        self._last: dict[Hashable, int] = {}
        """When each was last used."""
        self._uses = 0

    def admits(self, shape: Hashable, idle: int) -> bool:
        """Asks for a use: a shape is known, or there is room, or the one that was used longest ago was not when `idle` others
        were asked for."""
        if shape in self._known or len(self._known) < self._limit:
            return True
        if self._uses - self._last[next(iter(self._known))] >= idle:
            return True
        self._uses += 1  # refusals are uses, too: else nothing would ever become old while only they come
        return False

    def of(
        self, shape: Hashable, make: Callable[[], Inputs], *runs: Callable[[Inputs], Tensor]
    ) -> tuple[Inputs, Sequence[Replay]]:
        """The shape's inputs, to be filled, and what replays each of `runs` over them; any replay overwrites what the last
        one returned.

        A shape that is not known is recorded over the inputs as they are made: of no row, so that nothing is written.
        """
        known = self._known.pop(shape, None)
        if known is None:
            inputs = make()
            known = inputs, [self._capture(functools.partial(run, inputs)) for run in runs]
        self._known[shape] = known
        self._uses += 1
        self._last[shape] = self._uses
        if len(self._known) > self._limit:  # only after recording, which has waited until no graph is running
            oldest, _ = self._known.popitem(last=False)
            del self._last[oldest]
        return known

    def clear(self) -> None:
        self._known.clear()
        self._last.clear()


def by_modules(model: PreTrainedModel) -> BatchForward:
    """The model's own forward, whatever its architecture."""

    def forward(batch: StaticBatch, ids: Tensor, cache: SlotCache) -> Tensor:
        logits: Tensor = model(
            input_ids=ids[None],
            position_ids=batch.positions[None],
            past_key_values=cache,
            use_cache=True,
            spec=batch,
        ).logits[0]
        return logits

    return forward


class GraphRunner(EagerRunner):
    """A Hugging Face model whose small steps are replayed. Its cache has its full size from the start."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        *,
        num_slots: int,
        context_length: int,
        capture: Capture,
        attention: TileAttention,
        recorded: BatchForward | None = None,
        strict: bool = False,
    ) -> None:
        """`recorded` is the forward, by default the model's own.

        `strict` asks, by a probe, whether a token's logits have the same bits in every launch, as products of our own have.
        Where they do not, every launch is padded to CANONICAL_TOKENS tokens, and the probe asks again: the bits of a library's
        matrix product depend on the number of rows, not on what they hold or which one it is.

        Raises:
            UnsupportedModelError: through the cache its logits differ from its own, or its forward cannot be recorded.
            RuntimeError: that was seen only in the probe of strict mode.
        """
        self._attention = attention
        self._capture = capture
        self._recorded = recorded or by_modules(model)
        self._sizes: Sequence[int] = TOKENS
        self._forwards: Recordings[StaticBatch] = Recordings(capture, MAX_GRAPHS)
        self._loops: Recordings[DraftLoop] = Recordings(capture, MAX_LOOPS)
        super().__init__(name, model, num_slots=num_slots, context_length=context_length)
        if recorded is not None:
            self._check_recorded()
            self._cache = self._new_cache(num_slots, context_length)
        if strict:
            self.guarantee = self._probed()
            self._cache = self._new_cache(num_slots, context_length)
        self.token_sizes = self._sizes

    def _check_recorded(self) -> None:
        """Compares it with the modules' forward over the same cache: the check at load is left out for a model in use.

        In launches of few and of many tokens: kernels differ by how many they take.
        """
        try:
            for lengths in _CHECKED_LENGTHS:
                inputs = probe_inputs(self.vocab_size, [min(length, self.context_length) for length in lengths])
                self._cache = self._new_cache(len(inputs), STORAGE_STEP)
                with torch.inference_mode():
                    expected = [EagerRunner._forward(self, [Span(0, 0, ids, len(ids))]) for ids in inputs]
                check_parity(self.name, self.forward, inputs, expected, self._model.dtype)
        except Exception:
            self.close()
            raise

    def _probed(self) -> Guarantee:
        """Chooses the numbers of tokens of strict mode; where none keeps bits, there is no such mode."""
        length = min(PROBE_LENGTH, self.context_length)
        try:
            for sizes in (TOKENS, (CANONICAL_TOKENS,)):
                self._sizes, self._cache = sizes, self._new_cache(2, length)
                if is_stable_in(self.forward, self.vocab_size, length, sizes):
                    return "bitwise"
        except Exception:
            self.close()
            raise
        self._sizes = TOKENS
        return "near-tie"

    def _new_cache(self, num_slots: int, length: int) -> SlotCache:
        self._forwards.clear()
        self._loops.clear()
        return SlotCache(self._num_layers, num_slots, length, trash=TOKENS[-1])

    def _forward(self, spans: Sequence[Span]) -> Tensor:
        bucket = bucket_for(spans, self._cache.capacity, self._sizes)
        if bucket is not None:
            return self._launch(spans, bucket)
        return torch.cat([self._forward(part) for part in launches(spans, self._sizes[-1])])

    def ahead(self, spans: Sequence[Span], chosen: Tensor) -> Tensor | None:
        """See `AheadRunner`; its inputs are filled behind the forward before it, in the order of the stream."""
        bucket = bucket_for(spans, self._cache.capacity, self._sizes)
        if bucket is None or max(span.end for span in spans) > self.context_length:
            return None
        with torch.inference_mode():
            return self._launch(spans, bucket, chosen)

    def _launch(self, spans: Sequence[Span], bucket: Bucket, ids: Tensor | None = None) -> Tensor:
        """`ids` [tokens of the spans], if the spans do not know them."""
        self._cache.expect(spans)
        batch, (replay,) = self._forwards.of(
            bucket,
            lambda: StaticBatch.empty(bucket, self._cache, self._device, self._attention),
            lambda batch: self._logits(batch, batch.ids),
        )
        batch.fill(spans)
        if ids is not None:
            batch.ids[: len(ids)].copy_(ids.clamp_min(0))  # what is not a choice must still be a token
        logits = replay()
        wanted = logits.index_select(0, batch.wanted[: sum(span.num_logits for span in spans)])
        return wanted if wanted.dtype == torch.float64 else wanted.float()

    def loops(self, warp: Warp) -> bool:
        """Where there is one number of tokens only, the loop's are others."""
        return self._sizes is TOKENS

    def loop(self, spans: Sequence[Span], count: int, warp: Warp, keys: Sequence[Keys]) -> Tensor | None:
        """See `LoopingRunner`."""
        buckets = loop_buckets(spans, count, self._cache.capacity)
        if buckets is None or count > MOST_CHOICES or not self.loops(warp):
            return None
        shape = LoopShape(*buckets, warp)
        if not self._loops.admits(shape, LOOP_IDLE):
            return None
        with torch.inference_mode():
            self._cache.expect([replace(span, token_ids=[*span.token_ids, *[0] * (count - 1)]) for span in spans])
            loop, (start, go_on) = self._loops.of(
                shape,
                lambda: DraftLoop(shape, self._cache, self._device, self._attention),
                lambda loop: loop.start(self._logits),
                lambda loop: loop.go_on(self._logits),
            )
            loop.fill(spans, keys)
            chosen = start()
            for _ in range(count - 1):
                chosen = go_on()
            return chosen[:count, : len(spans)].t().clone()

    def record(self, *, loops: bool) -> None:
        """Records what is launched at first, so that no request waits for it: any number of tokens, short contexts.

        `loops` for a model that proposes. Slot 0 must be free.
        """
        for tokens in self._sizes:
            if tokens <= self.context_length:
                self.forward([Span(0, 0, [0] * tokens, 1)])
        for tokens in TOKENS[1:3] if loops else ():  # what one row lacks fits in these
            if tokens <= self.context_length:
                self.loop([Span(0, 0, [0] * tokens, 1)], 1, GREEDY, [[]])

    def _logits(self, batch: StaticBatch, ids: Tensor) -> Tensor:
        """The forward that is recorded: logits [tokens of the bucket, V] of the ids [tokens] at the batch's places."""
        self._cache.context = batch
        logits = self._recorded(batch, ids, self._cache)
        return self._cache.nan_where_broken(logits, batch.slots, batch.positions, batch.bucket.extent)

    def products(self, tokens: int) -> Replay | None:
        """What replays the matrix products of a forward alone, where the forward is one that can tell them: to measure."""
        products: Callable[[int], Replay] | None = getattr(self._recorded, "products", None)
        return self._capture(products(tokens)) if products is not None else None

    def close(self) -> None:
        self._forwards.clear()
        self._loops.clear()
        del self._recorded
        super().close()
