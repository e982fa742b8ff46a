"""The worker thread: owns the models, admits rows to slots, runs steps, delivers what they commit.

Between two steps requests join and leave, cancellations and deadlines take effect, and long prompts take in a chunk.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import torch

from specrouter_llm.engine.prefill import CatchUp
from specrouter_llm.engine.request import Request, Sample
from specrouter_llm.errors import (
    CallbackError,
    EngineClosedError,
    ModelFailure,
    QueueFullError,
    ReentrantCallError,
    RequestFailedError,
    told,
)
from specrouter_llm.executor import Executor, RowOutcome, StepResult
from specrouter_llm.router import ChainRouter
from specrouter_llm.runtime.openmp import release_team
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import Reasons, RowObservation, RowView, StepObservation
from specrouter_llm.state.manager import SlotStatus, StateManager
from specrouter_llm.state.row import Row
from specrouter_llm.types import FinishReason, Guarantee, LevelStep, StepInfo

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.002
"""Without work for so long, the worker gives its OpenMP team back: until then its helpers wait actively, at the expense of
whoever computes now."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine at this moment, and what it has done so far."""

    num_running: int
    """Samples that own a slot."""
    num_waiting: int
    """Samples that wait for one."""
    num_free_slots: int
    num_cached_slots: int
    """Slots without an owner whose tokens may be reused."""
    num_finished: int
    """Samples that have ended, however."""
    num_steps: int
    num_committed_tokens: int


class Worker:
    """One thread that runs everything. All public methods may be called from any thread."""

    def __init__(
        self,
        executor: Executor,
        state: StateManager,
        router: ChainRouter,
        *,
        levels: Sequence[str],
        guarantee: Guarantee,
        max_queue: int,
        prefill_chunk: int,
        on_stopped: Callable[[], None],
    ) -> None:
        """`on_stopped` runs in the thread when it ends, after which nothing touches the models any more."""
        self._executor = executor
        self._state = state
        self._router = router
        self._levels = tuple(levels)
        self._guarantee = guarantee
        self._max_queue = max_queue
        self._prefill_chunk = prefill_chunk
        self._on_stopped = on_stopped
        self._lock = threading.RLock()
        """Taken by itself where nobody waits: a condition is Python code around it."""
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[Sample] = deque()
        self._running: list[Sample] = []
        self._calls: list[Callable[[], None]] = []
        self._row_ids = itertools.count()
        self._closing = False
        self._process = os.getpid()
        self._num_finished = self._num_steps = self._num_committed = 0
        self._between = 0.0
        """Seconds that were spent on choosing, delivering and learning since the last step."""
        release_team()  # of whoever has loaded the models
        self._thread = threading.Thread(target=self._run, name="specrouter", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------- other threads

    def submit(self, samples: Sequence[Sample]) -> None:
        """Queues all samples of one request.

        Raises:
            EngineClosedError, QueueFullError: nothing was queued.
        """
        self._check_process()
        with self._lock:
            self._check_open()
            waiting = sum(not sample.request.cancelled.is_set() for sample in self._waiting)
            if waiting and waiting + len(samples) > self._max_queue:
                raise QueueFullError(
                    f"{waiting} samples are waiting and the queue holds {self._max_queue}; "
                    "try again later, or raise max_queue"
                )
            for sample in samples:
                sample.request.queued(self._thread)
            self._waiting.extend(samples)
            self._changed.notify()

    def call(self, function: Callable[[], T]) -> T:
        """Runs a function in the worker's thread, between two steps, and returns or raises what it does.

        Raises:
            EngineClosedError: the engine is closed.
            ReentrantCallError: this is the worker's thread, in a callback.
        """
        self._check_process()
        self.check_caller()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        release_team()
        with self._lock:
            self._check_open()
            self._calls.append(run)
            self._changed.notify()
        return future.result()

    def wake(self) -> None:
        """Makes an idle worker look at cancellations."""
        with self._lock:
            self._changed.notify()

    def stats(self) -> EngineStats:
        with self._lock:
            return EngineStats(
                num_running=len(self._running),
                num_waiting=len(self._waiting),
                num_free_slots=len(self._state.slots(SlotStatus.FREE)),
                num_cached_slots=len(self._state.slots(SlotStatus.CACHED)),
                num_finished=self._num_finished,
                num_steps=self._num_steps,
                num_committed_tokens=self._num_committed,
            )

    @property
    def closing(self) -> bool:
        """Whether no more requests are taken."""
        return self._closing

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Ends all requests as cancelled, and the thread, and waits for that. Idempotent; called by a callback it takes effect
        after the step."""
        if os.getpid() != self._process:  # a forked process has a copy of the engine without its thread
            return
        with self._lock:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def check_caller(self) -> None:
        """Raises ReentrantCallError in the worker's own thread, which cannot wait for itself."""
        if threading.current_thread() is self._thread:
            raise ReentrantCallError

    def _check_open(self) -> None:
        if self._closing:
            raise EngineClosedError("the engine is closed; make a new one to go on")

    def _check_process(self) -> None:
        """Before any lock is taken: it may have been held when the process was forked."""
        if os.getpid() != self._process:
            raise EngineClosedError(
                f"the engine runs in process {self._process}, from which this one was forked: its thread stayed there; "
                'make an engine in this process, and start it by the method "spawn"'
            )

    # ---------------------------------------------------------------- the loop

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._next_turn():
                    self._guarded_turn()
        finally:
            with self._lock:
                self._closing = True
                calls = self._calls
            try:
                for call in calls:
                    call()
                self._end(lambda sample: (FinishReason.CANCELLED, None))
            finally:
                self._on_stopped()

    def _next_turn(self) -> bool:
        """Waits for work, runs what was called for, and says whether to go on."""
        with self._lock:
            patience: float | None = IDLE_SECONDS
            while not (self._waiting or self._running or self._calls or self._closing):
                if not self._changed.wait(patience):
                    release_team()  # others may compute now
                    patience = None
            calls, self._calls = self._calls, []
            closing = self._closing
        for call in calls:
            call()
        return not closing

    def _guarded_turn(self) -> None:
        try:
            self._turn()
        except BaseException as error:  # a bug of ours must end the requests, not hang their callers
            logger.exception("the worker failed; all running requests end with an error")
            failure = _internal(error)
            self._end(lambda sample: (FinishReason.ERROR, failure) if sample.row is not None else None)

    def _turn(self) -> None:
        """One round: leave, join, catch up, step."""
        now = time.monotonic()
        self._end(lambda sample: _ended_from_outside(sample, now))
        self._admit()
        catch_up = CatchUp(self._executor, self._state, self._prefill_chunk)
        ready: list[Sample] = []
        for sample in list(self._running):
            row = _row(sample)
            try:
                if catch_up.fits(self._router.target, row):
                    ready.append(sample)
            except RequestFailedError as error:
                self._fail(sample, error)
        if ready:
            self._step(ready, self._plans(ready, catch_up))

    def _end(self, verdict: Callable[[Sample], tuple[FinishReason, Exception | None] | None]) -> None:
        """Ends every sample, waiting or running, for which `verdict` gives a reason."""
        with self._lock:
            ending = [(s, v) for s in (*self._waiting, *self._running) if (v := verdict(s)) is not None]
            gone = {id(sample) for sample, _ in ending}
            if gone:
                self._waiting = deque(s for s in self._waiting if id(s) not in gone)
        for sample, (reason, error) in ending:
            sample.finish(reason, error)
            self._retire(sample)

    def _admit(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or len(self._running) >= self._state.num_slots:
                    return
                sample = self._waiting.popleft()
                slot, reused = self._state.admit(sample.request.prompt_ids)
                try:
                    row = _new_row(sample, slot, self._state.tokens(slot), next(self._row_ids))
                except Exception as error:
                    self._state.discard(slot)
                    self._fail(sample, _internal(error))
                    continue
                sample.admit(row, reused[self._router.target])
                self._running.append(sample)

    def _plans(self, ready: Sequence[Sample], catch_up: CatchUp) -> list[Plan]:
        """Each row's plan for this step: no drafting before the first token, no level that still lags too far."""
        rows = [_row(sample) for sample in ready]
        views = [_view(row) for row in rows]
        started = perf_counter()
        plans = self._router.plans(views, [sample.request.plan for sample in ready])
        self._between += perf_counter() - started
        return [
            catch_up.trimmed(plan, row) if sample.started else self._router.target_only
            for sample, row, plan in zip(ready, rows, plans, strict=True)
        ]

    def _step(self, ready: Sequence[Sample], plans: Sequence[Plan]) -> None:
        rows = [_row(sample) for sample in ready]
        result = self._executor.step(rows, plans, self._router.reconsider, self._router.asides())
        done = perf_counter()
        self._num_steps += 1
        observations = []
        for sample, outcome in zip(ready, result.outcomes, strict=True):
            if outcome.error is not None:
                self._fail(sample, outcome.error)
                continue
            try:
                observations.append(self._deliver(sample, outcome, result))
            except Exception as error:
                logger.exception("what a step has brought cannot be delivered")
                self._fail(sample, _internal(error))
        seconds = self._between + result.seconds
        self._router.observe(StepObservation(tuple(observations), result.forwards, seconds, self._between))
        self._between = perf_counter() - done
        for sample in ready:  # only now: whoever has the result may count on the policy having seen all of it
            if sample.finish_reason is not None and sample in self._running:
                self._retire(sample)

    def _deliver(self, sample: Sample, outcome: RowOutcome, result: StepResult) -> RowObservation:
        """Commits what the stop conditions leave of a step, and passes it on."""
        row = outcome.row
        taken, text = sample.accept(outcome.token_ids)
        self._executor.commit(row, taken)
        for trial in outcome.trials:
            final = trial.upper == self._router.target
            accepted = min(trial.accepted, len(taken)) if final else trial.accepted  # a stop may cut an accepted run
            row.count(trial.lower, trial.proposed, accepted, final=final)
        row.travel(outcome.plan.levels, len(taken), result.seconds)
        self._num_committed += len(taken)
        sample.emit(taken, text, sample.logprobs_of(taken, outcome.logits))
        error = self._call_back(sample, outcome, taken, result)
        if error is not None and sample.finish_reason is None:
            self._fail(sample, error)
        finished = sample.finish_reason is not None
        return RowObservation(
            row.row_id, outcome.plan, outcome.trials, len(taken), finished, outcome.scores, outcome.asides
        )

    def _call_back(
        self, sample: Sample, outcome: RowOutcome, taken: Sequence[int], result: StepResult
    ) -> CallbackError | None:
        on_step = sample.request.on_step
        if on_step is None:
            return None
        levels = []
        for level in outcome.plan.levels[:-1]:
            mine = [trial for trial in outcome.trials if trial.lower == level]
            levels.append(LevelStep(level, sum(t.proposed for t in mine), sum(t.accepted for t in mine)))
        times = tuple(result.seconds_per_level.items())
        info = StepInfo(sample.index, outcome.plan.levels, tuple(levels), tuple(taken), result.seconds, times)
        try:
            on_step(info)
        except BaseException as error:  # the user's code, sys.exit included: its failure is this request's alone
            logger.debug("on_step raised", exc_info=True)
            return CallbackError(f"on_step raised {told(error)}")
        return None

    def _fail(self, sample: Sample, error: Exception) -> None:
        if isinstance(error, ModelFailure):
            error = error.released()
        sample.finish(FinishReason.ERROR, error)
        self._retire(sample)

    def _retire(self, sample: Sample) -> None:
        """The sample has ended: its slot is free, its completion is delivered."""
        with self._lock:
            if sample in self._running:
                self._running.remove(sample)
                slot = _row(sample).slot
                if sample.finish_reason is FinishReason.ERROR:
                    self._state.discard(slot)
                else:
                    self._state.release(slot)
            self._num_finished += 1
        sample.request.mailbox.put(sample.completion(self._guarantee, self._levels, self._reasons(sample)))

    def _reasons(self, sample: Sample) -> Reasons:
        """What the policy has to say about a row that it chose for."""
        if sample.row is None or sample.request.plan is not None:
            return Reasons()
        return self._router.reasons(sample.row.row_id)


def _ended_from_outside(sample: Sample, now: float) -> tuple[FinishReason, Exception | None] | None:
    request: Request = sample.request
    if request.cancelled.is_set():
        return FinishReason.CANCELLED, None
    if request.deadline is not None and now >= request.deadline:
        return FinishReason.TIMEOUT, None
    return None


def _internal(error: BaseException) -> RequestFailedError:
    return RequestFailedError(f"internal error: {told(error)}")


def _view(row: Row) -> RowView:
    temperature = row.sampler.params.temperature
    return RowView(row.row_id, len(row.token_ids), row.remaining, temperature, continues=not row.sampler.contextual)


def _row(sample: Sample) -> Row:
    assert sample.row is not None, "a sample without a slot took part in a step"
    return sample.row


def _new_row(sample: Sample, slot: int, tokens: list[int], row_id: int) -> Row:
    request = sample.request
    sampler = RowSampler(
        request.params,
        seed=request.seed,
        sample=sample.index,
        prompt_ids=request.prompt_ids,
        end_ids=request.end_ids,
        bad_words=request.bad_words,
        constraint=request.constraint(),
    )
    return Row(
        slot=slot,
        token_ids=tokens,
        num_prompt_tokens=len(tokens),
        sampler=sampler,
        max_length=len(tokens) + request.max_output,
        end_ids=request.end_ids,
        draft_sources=request.draft_sources,
        row_id=row_id,
    )
