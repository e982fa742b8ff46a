"""SpecRouter, the engine: what users, adapters and the command line call."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from specrouter_llm.config import EngineConfig, ModelSource, default_name, spec_of
from specrouter_llm.drafting.proposer import Proposer
from specrouter_llm.engine.calibration import in_order, pool_runners
from specrouter_llm.engine.handle import Handle
from specrouter_llm.engine.intake import Intake, RequestOptions, with_changes
from specrouter_llm.engine.options import engine_config
from specrouter_llm.engine.policies import PolicyName, check_policy, known_calibration, policy_of, proposers_of
from specrouter_llm.engine.request import Request, Sample
from specrouter_llm.engine.worker import EngineStats, Worker
from specrouter_llm.errors import InvalidParameterError, QueueFullError
from specrouter_llm.executor import Executor
from specrouter_llm.pool.budget import MemoryReport
from specrouter_llm.pool.generation import recommended
from specrouter_llm.pool.pool import ModelPool
from specrouter_llm.router import ChainRouter
from specrouter_llm.runtime.runner import Runner
from specrouter_llm.runtime.select import packing_bytes
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.scheduling.adaptive import AdaptivePolicy
from specrouter_llm.scheduling.explanation import Explanation
from specrouter_llm.scheduling.policy import FixedPolicy, Policy
from specrouter_llm.state.manager import StateManager
from specrouter_llm.text.stream import TextStream
from specrouter_llm.text.tokenizer import Tokenizer
from specrouter_llm.types import Completion, Guarantee, Prompt, StepInfo

_QUEUE_POLL_S = 0.002
"""How often a call with more prompts than the queue holds looks for room."""


class SpecRouter:
    """A target model, any number of drafters, and one thread that decodes requests in continuous batches.

    Speculation changes how fast an answer comes, never what it says: the target's choices are what is committed.

    Use `from_pretrained`, or give the parts yourself (tests do). All methods may be called from any thread and any event
    loop, but not in a process that was forked from the engine's. Close the engine, or use it as a context manager, to give the
    memory back.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        *,
        target: str,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: Collection[int] = (),
        max_context: int,
        config: EngineConfig | None = None,
        proposers: Sequence[Proposer] | None = None,
        policy: Policy | None = None,
        labels: Mapping[str, str] | None = None,
        memory: MemoryReport | None = None,
        default_params: SamplingParams | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """`runners` are ordered from the smallest drafter to the target; `max_context` counts prompt + output tokens.

        What `default_params` say holds for requests that do not say it.
        Without a policy one chain serves all: that of the config, or the smallest drafter with a window of 4.
        """
        self.config = config or EngineConfig()
        self.max_context = max_context
        self.target = target
        self.tokenizer = tokenizer
        self.labels = {**{name: name for name in runners}, **(labels or {})}
        """How reports call each model: a widened one says so."""
        self.memory = memory
        """What weights and caches of the pool were summed up to; None for runners of one's own."""
        self.default_params = default_params or SamplingParams()
        """What requests are given that do not say it: `params.over(engine.default_params)` is what acts. Its
        `model_fields_set` names what was taken from the model."""
        free = {p.name: p for p in proposers_of(proposers)}
        _check_names(runners, free)
        models = [*(name for name in runners if name != target), target]
        self._router = ChainRouter(models, free, policy=policy)
        default = self._router.resolve(self.config.chain, self.config.windows, self.config.speculation or False)
        if default is not None:
            self._router.use(FixedPolicy(default))
        self._policy = policy
        self._runners = dict(runners)
        self._state = state = StateManager(runners, self.config.max_batch, prefix_reuse=self.config.prefix_reuse)
        self.levels = (*free, *models)
        """Names of all levels that a chain may use, the target last."""
        self.guarantee: Guarantee = runners[target].guarantee
        self._worker = Worker(
            Executor(state, runners, free, target),
            state,
            self._router,
            levels=self.levels,
            guarantee=self.guarantee,
            max_queue=self.config.max_queue,
            prefill_chunk=self.config.prefill_chunk,
            on_stopped=partial(_release, list(runners.values()), on_close),
        )
        vocab_size = runners[target].vocab_size
        self._intake = Intake(
            self._router,
            tokenizer,
            vocab_size=vocab_size,
            eos_ids=frozenset(i for i in eos_token_ids if i < vocab_size),  # some configurations name others
            max_context=max_context,
            default_params=self.default_params,
        )
        self._closer = weakref.finalize(self, self._worker.close)

    @classmethod
    def from_pretrained(
        cls,
        target: ModelSource,
        drafts: Sequence[ModelSource] | None = None,
        *,
        dtype: Any = None,
        device: Any = None,
        device_map: Any = None,
        quantization_config: Any = None,
        revision: str | None = None,
        policy: Policy | PolicyName = "adaptive",
        calibration: str | Path | None = None,
        proposers: Sequence[Proposer] | None = None,
        progress: bool = True,
        **config: Any,
    ) -> SpecRouter:
        """Loads a pool of models and starts the engine.

        Args:
            target: name, local folder, `ModelSpec` or loaded model whose answers are wanted; "demo" is the embedded family.
            drafts: smaller models with the same vocabulary, in any order.
            dtype, device, device_map, quantization_config, revision: as in transformers, for members that do not say
                otherwise; quantization_config is the target's.
            policy: who chooses chains where neither a request nor `chain` does: "adaptive" measures the models at start-up
                (in about two seconds) and chooses from what it sees; "fixed" is one chain for all, the smallest drafter
                with a window of 4; "off" drafts nothing; or any other object with `plan` and `observe`.
            calibration: what `specrouter calibrate --out` wrote, for the adaptive policy to start from without measuring.
            proposers: model-free drafters; n-gram lookup by default.
            progress: whether to show a progress bar while loading.
            config: fields of `EngineConfig` (max_batch, max_context, memory_budget, chain, windows, speculation, ...).

        Raises:
            InvalidParameterError: an unknown or impossible option.
            ModelLoadError: a model cannot be loaded; the subclass and the message say why.
        """
        settings = engine_config(config)
        check_policy(policy, settings)
        names = [default_name(spec_of(source)) for source in (target, *(drafts or ()))]
        _check_names(names, [proposer.name for proposer in proposers_of(proposers)])
        known = known_calibration(calibration, policy, settings)
        pool = ModelPool.load(
            target,
            drafts,
            dtype=dtype,
            device=device,
            device_map=device_map,
            quantization_config=quantization_config,
            revision=revision,
            max_batch=settings.max_batch,
            max_context=settings.max_context,
            memory_budget=settings.memory_budget,
            packing=packing_bytes if settings.pack else None,
            progress=progress,
        )
        runners: dict[str, Runner] = {}
        try:
            runners = pool_runners(pool, num_slots=settings.max_batch, pack=settings.pack, strict=settings.strict)
            return cls(
                runners,
                target=pool.target.name,
                tokenizer=Tokenizer(pool.tokenizer) if pool.tokenizer is not None else None,
                eos_token_ids=pool.target.eos_token_ids,
                max_context=pool.max_context,
                config=settings,
                proposers=proposers,
                policy=policy_of(policy, settings, pool, runners, known, proposers, progress=progress),
                labels={member.name: member.label for member in in_order(pool)},
                memory=pool.memory,
                default_params=recommended(pool.target) if settings.generation_config == "model" else None,
                on_close=pool.close,
            )
        except BaseException:  # Ctrl-C while it measures, too
            _release(list(runners.values()), pool.close)
            raise

    # ---------------------------------------------------------------- generation

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None, **options: Any
    ) -> list[Completion]:
        """Completions of one prompt or of many, n per prompt, prompt by prompt; blocks until all have ended.

        A prompt is text, a list of token ids, or a list of chat messages. A request that fails has its error in its
        completion and leaves the others alone. `options` are those of `submit`, and sampling parameters.

        Raises:
            InvalidParameterError: before anything runs.
            ReentrantCallError: in `on_step`, which the engine waits for.
        """
        self._worker.check_caller()
        requests = self._intake.requests(prompts, params, options)
        with _all_or_none() as handles:
            for request in requests:
                while (handle := self._offer(request, may_wait=bool(handles))) is None:
                    time.sleep(_QUEUE_POLL_S)
                handles.append(handle)
            return [completion for handle in handles for completion in handle.result()]

    async def agenerate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None, **options: Any
    ) -> list[Completion]:
        """`generate` without blocking the event loop; cancelling the task cancels its requests."""
        self._worker.check_caller()
        requests = await asyncio.to_thread(self._intake.requests, prompts, params, options)  # long prompts, grammars
        with _all_or_none() as handles:
            for request in requests:
                while (handle := self._offer(request, may_wait=bool(handles))) is None:
                    await asyncio.sleep(_QUEUE_POLL_S)
                handles.append(handle)
            return [completion for handle in handles for completion in await handle.aresult()]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Handle:
        """An iterator of deltas of one prompt. Dropping, closing or leaving it cancels the request."""
        return self.submit(prompt, params, **options)

    def astream(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Handle:
        """An async iterator of deltas of one prompt (the same object as `stream`)."""
        return self.submit(prompt, params, **options)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        chain: Sequence[str] | None = None,
        windows: Sequence[int] | None = None,
        speculation: bool | None = None,
        draft_sources: Sequence[str | Sequence[int]] = (),
        prediction: str | Sequence[int] | None = None,
        timeout: float | None = None,
        on_step: Callable[[StepInfo], None] | None = None,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        keep_special_tokens: Sequence[str] = (),
        **sampling: Any,
    ) -> Handle:
        """Queues one prompt and returns at once.

        Args:
            params: sampling parameters; single ones may be given, or changed, as keyword arguments. What is not said is
                taken from `default_params`.
            chain, windows: forces a chain (lowest level first) and the tokens each level below the target offers.
            speculation: False decodes plainly; None and True leave it to the engine.
            draft_sources: documents or tool outputs that the answer may quote; only speed depends on them.
            prediction: what the answer is expected to be like; only speed depends on it.
            timeout: seconds from now on after which the request ends with what it has.
            on_step: called in the engine's thread after each step of this request. It may submit and cancel; what waits for the
                engine (generate, a result, explain) raises ReentrantCallError in it.
            tools, template_kwargs: tool definitions and further variables for the chat template.
            keep_special_tokens: special tokens that the text shall show, such as those that mark tool calls.

        Raises:
            InvalidParameterError, InvalidPromptError, ContextOverflowError: nothing was queued.
            QueueFullError, EngineClosedError: nothing was queued.
        """
        options = RequestOptions(
            chain=chain,
            windows=windows,
            speculation=speculation,
            draft_sources=draft_sources,
            prediction=prediction,
            timeout=timeout,
            on_step=on_step,
            tools=tools,
            template_kwargs=template_kwargs,
            keep_special_tokens=keep_special_tokens,
        )
        return self._submit(self._intake.request(prompt, with_changes(params, sampling), options))

    # ---------------------------------------------------------------- inspection

    def encode(
        self,
        prompt: Prompt,
        *,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids that a prompt becomes. Raises like `submit`."""
        return self._intake.encode(prompt, tools, template_kwargs)

    def target_logits(self, token_ids: Sequence[int]) -> Tensor:
        """The target's raw logits [V] after these tokens, computed between two steps.

        Raises:
            InvalidPromptError, ContextOverflowError: nothing was computed.
            EngineClosedError, ReentrantCallError: the engine is closed, or it is what waits: in `on_step`.
            RuntimeError: every slot is taken.
        """
        ids = self._intake.context(token_ids)

        def compute() -> Tensor:
            slot, _ = self._state.admit(ids)
            try:
                runner = self._runners[self.target]
                return runner.forward([self._state.span(self.target, slot, (), 1)])[0].clone()
            finally:
                self._state.discard(slot)

        return self._worker.call(compute)

    def explain(self) -> Explanation | None:
        """What the adaptive policy knows and why it chooses what it chooses, now; None with any other policy.

        Raises:
            EngineClosedError, ReentrantCallError: the engine is closed, or it is what waits: in `on_step`.
        """
        policy = self._policy
        return self._worker.call(policy.explain) if isinstance(policy, AdaptivePolicy) else None

    @property
    def dtype(self) -> str:
        """What the target computes in: "float32", "bfloat16", ..."""
        return self._runners[self.target].dtype

    @property
    def stats(self) -> EngineStats:
        """What is running and waiting now, and what has been done so far."""
        return self._worker.stats()

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests. Its memory is given back when `close` has returned."""
        return self._worker.closing

    def close(self) -> None:
        """Cancels what is running, ends the thread and gives the memory back. Idempotent; called in `on_step`, it takes effect
        after the step."""
        self._worker.close()
        if self._worker.ended:
            self._closer.detach()

    def __enter__(self) -> SpecRouter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ---------------------------------------------------------------- queueing

    def _submit(self, request: Request) -> Handle:
        tokenizer = self.tokenizer
        if tokenizer is not None and request.keep_special_tokens:
            tokenizer = tokenizer.keeping(request.keep_special_tokens)
        samples = [
            Sample(request, index, TextStream(tokenizer, request.prompt_ids, request.params.stop))
            for index in range(request.params.n)
        ]
        self._worker.submit(samples)

        def cancel() -> None:  # holds the engine: a stream keeps the engine it comes from alive
            request.cancelled.set()
            self._worker.wake()

        return Handle(request.mailbox, request.params.n, cancel)

    def _offer(self, request: Request, *, may_wait: bool) -> Handle | None:
        """Submits, or returns None if the queue is full and the call has begun: it must not lose what it has started."""
        try:
            return self._submit(request)
        except QueueFullError:
            if may_wait:
                return None
            raise


@contextmanager
def _all_or_none() -> Iterator[list[Handle]]:
    """The handles of one call: who stops waiting for one of them, by Ctrl-C too, waits for none, and they are cancelled."""
    handles: list[Handle] = []
    try:
        yield handles
    except BaseException:
        for handle in handles:
            handle.cancel()
        raise


def _release(runners: Sequence[Runner], on_close: Callable[[], None] | None) -> None:
    for runner in runners:
        runner.close()
    if on_close is not None:
        on_close()


def _check_names(models: Iterable[str], proposers: Iterable[str]) -> None:
    """A chain is a list of names."""
    if taken := set(models).intersection(proposers):
        raise InvalidParameterError(
            f"a model and a model-free proposer are both called {min(taken)!r}: give the model another name, as "
            "ModelSpec(source, name=...)"
        )
