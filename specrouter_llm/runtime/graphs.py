"""The graph runner: on one CUDA device, the whole forward of a small step is one recorded graph.

Launching the few hundred kernels of a forward one by one takes longer than running them over a few tokens. A graph is
recorded per bucket (a padded number of tokens, a padded context) when it is first needed, and replayed with other inputs
at the same addresses. Longer steps, which are prefill, run as in `EagerRunner`, on the same cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.buckets import CANONICAL_TOKENS, TOKENS, Bucket, bucket_for, canonical_bucket, launches
from specrouter_llm.runtime.cache import SlotCache
from specrouter_llm.runtime.probe import PROBE_LENGTH, is_canonical
from specrouter_llm.runtime.runner import EagerRunner
from specrouter_llm.runtime.static_batch import StaticBatch, TileAttention
from specrouter_llm.types import Guarantee

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_GRAPHS = 32
"""Recorded at a time; the one that was used longest ago makes room."""
_WARM_UP = 2

Replay: TypeAlias = Callable[[], Tensor]


class Capture(Protocol):
    """Records a function of tensors at fixed addresses."""

    def __call__(self, run: Replay) -> Replay:
        """Runs `run` at least once; what comes back does the same work again and returns the same, overwritten tensor."""
        ...


class CudaCapture:
    """Records CUDA graphs of one device; they share their memory, so only one may be replayed at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Replay) -> Replay:
        with torch.cuda.device(self._device):
            stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):  # kernels are built and workspaces made before anything is recorded
                for _ in range(_WARM_UP):
                    run()
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                output = run()

        def replay() -> Tensor:
            with torch.cuda.device(self._device):
                graph.replay()
            return output

        return replay


class _Recorded(NamedTuple):
    batch: StaticBatch
    replay: Replay


class GraphRunner(EagerRunner):
    """An unmodified Hugging Face model whose small steps are replayed. Its cache has its full size from the start."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        *,
        num_slots: int,
        context_length: int,
        capture: Capture,
        attention: TileAttention,
        strict: bool = False,
    ) -> None:
        """`strict` runs every forward in launches of CANONICAL_TOKENS tokens, padded if there are fewer.

        The bits of a matrix product depend on the number of rows, not on what the rows hold or which one it is; so a
        token's logits then depend on its row's tokens alone, wherever a probe finds that to hold.

        Raises:
            UnsupportedModelError: through the cache its logits differ from its own.
            RuntimeError: the forward cannot be recorded.
        """
        self._capture = capture
        self._attention = attention
        self._strict = strict
        self._recorded: OrderedDict[Bucket, _Recorded] = OrderedDict()
        super().__init__(name, model, num_slots=num_slots, context_length=context_length)
        if strict:
            self.guarantee = self._probed()
            self._cache = self._new_cache(num_slots, context_length)

    def _probed(self) -> Guarantee:
        length = min(PROBE_LENGTH, self.context_length)
        self._cache = self._new_cache(2, length)
        try:
            return "bitwise" if is_canonical(self.forward, self.vocab_size, length) else "near-tie"
        except Exception:
            self.close()
            raise

    def _new_cache(self, num_slots: int, length: int) -> SlotCache:
        self._recorded.clear()
        return SlotCache(self._num_layers, num_slots, length, trash=TOKENS[-1])

    def _forward(self, spans: Sequence[Span]) -> Tensor:
        if self._strict:
            parts = launches(spans, CANONICAL_TOKENS)
            return torch.cat([self._launch(part, canonical_bucket(part, self._cache.capacity)) for part in parts])
        bucket = bucket_for(spans, self._cache.capacity)
        return super()._forward(spans) if bucket is None else self._launch(spans, bucket)

    def _launch(self, spans: Sequence[Span], bucket: Bucket) -> Tensor:
        self._cache.expect(spans)
        recorded = self._recorded.get(bucket)
        if recorded is None:
            recorded = self._record(bucket, spans)
        self._recorded.move_to_end(bucket)
        wanted = recorded.batch.fill(spans)
        logits = recorded.replay().index_select(0, wanted)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _record(self, bucket: Bucket, spans: Sequence[Span]) -> _Recorded:
        """Records the bucket's graph, running over `spans`: what that writes is what the step will write again."""
        cache = self._cache
        batch = StaticBatch(bucket, cache, self._device, self._attention)

        def run() -> Tensor:
            cache.context = batch
            logits = self._model(
                input_ids=batch.ids[None],
                position_ids=batch.positions[None],
                past_key_values=cache,
                use_cache=True,
                spec=batch,
            ).logits[0]
            return cache.nan_where_broken(logits, batch.slots, batch.positions, bucket.extent)

        batch.fill(spans)
        while len(self._recorded) >= MAX_GRAPHS:
            self._recorded.popitem(last=False)
        self._recorded[bucket] = _Recorded(batch, self._capture(run))
        return self._recorded[bucket]

    def close(self) -> None:
        self._recorded.clear()
        super().close()
