"""The caller's end of a request: an iterator and an async iterator of deltas, a result, and a way to cancel."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from specrouter_llm.errors import ReentrantCallError
from specrouter_llm.runtime.openmp import release_team
from specrouter_llm.types import Completion, Delta, FinishReason

T = TypeVar("T")
K = TypeVar("K")


class Mailbox(Generic[T]):
    """Unbounded queue from the worker thread to its consumers: one that reads the items, or several that wait for the end.
    They may be threads, or tasks of any event loop."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._awaited: type | None = None
        """The consumer waits for an item of this kind and leaves the others lying; None: it waits for any."""
        self._ended = False
        self.writer: threading.Thread | None = None
        """Who puts items in: it can't wait for them."""

    def put(self, item: T) -> None:
        with self._lock:
            self._items.append(item)
            if self._awaited is not None and not isinstance(item, self._awaited):
                return  # waking a thread costs the models' thread time
            self._condition.notify()
            waiters, self._waiters = self._waiters, []
        _wake_all(waiters)

    def end(self) -> None:
        """The consumer has read the last item: others that wait get none."""
        with self._lock:
            self._ended = True
            self._condition.notify_all()
            waiters, self._waiters = self._waiters, []
        _wake_all(waiters)

    def unread(self, kind: type[K]) -> list[K]:
        """The items of this kind that nobody has read yet, left where they are; does not block."""
        with self._lock:
            return [item for item in self._items if isinstance(item, kind)]

    def is_awaited(self, kind: type) -> bool:
        """Whether an item of this kind may be read as soon as it is here: not while the consumer waits for another one."""
        return self._awaited is None or issubclass(kind, self._awaited)

    def get(self, awaited: type | None = None) -> T | None:
        """The next item, once there is one of the kind `awaited`, or None if somebody else has read the last; blocks.

        Raises:
            ReentrantCallError: the caller is who would have to put it in.
        """
        if not self._items:
            release_team()  # a thread that waits has no use for one
        with self._lock:
            self._awaited = awaited
            while not self._ready(awaited):
                self._check_caller()
                self._condition.wait()
            return self._items.popleft() if self._items else None

    def _ready(self, awaited: type | None) -> bool:
        if self._ended:
            return True
        return bool(self._items) if awaited is None else any(isinstance(item, awaited) for item in self._items)

    def _check_caller(self) -> None:
        if threading.current_thread() is self.writer:
            raise ReentrantCallError

    async def aget(self, awaited: type | None = None) -> T | None:
        """`get` without blocking the event loop."""
        while True:
            with self._lock:
                self._awaited = awaited
                if self._ready(awaited):
                    return self._items.popleft() if self._items else None
                self._check_caller()
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._waiters.append((loop, future))
            await future


def _wake_all(waiters: Sequence[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]]) -> None:
    for loop, future in waiters:
        with contextlib.suppress(RuntimeError):  # the consumer's event loop is closed: nobody is waiting any more
            loop.call_soon_threadsafe(_wake, future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Handle:
    """One submitted request. Iterate over it (`for` or `async for`) to stream, or ask for its `result()`.

    Any number of threads and tasks may wait for the result; who iterates should be alone, for others would take its deltas.

    A handle that is dropped, closed or left by an exception cancels its request; so does a cancelled task. An error of
    the request is raised by the iteration after everything that was produced has been delivered.
    """

    def __init__(self, mailbox: Mailbox[Delta | Completion], num_samples: int, cancel: Callable[[], None]) -> None:
        self._mailbox = mailbox
        self._num_samples = num_samples
        self._cancel = cancel
        self._completions: list[Completion] = []
        self._raised = False

    @property
    def done(self) -> bool:
        """Whether every sample has ended and been delivered."""
        return len(self._completions) == self._num_samples

    @property
    def ended(self) -> list[Completion]:
        """The samples that have ended, in order, delivered or not; does not block."""
        found = [*self._completions, *self._mailbox.unread(Completion)]
        return sorted(found, key=lambda completion: completion.index)

    def cancel(self) -> None:
        """Ends the request within one step; its slots are free then. Harmless when it has ended."""
        self._cancel()

    # ---------------------------------------------------------------- synchronous

    def __iter__(self) -> Handle:
        return self

    def __next__(self) -> Delta:
        while not self.done:
            delta = self._take(self._guarded_get(None))
            if delta is not None:
                return delta
        self._raise_failure()
        raise StopIteration

    def result(self) -> list[Completion]:
        """All samples, in order; blocks until they have ended. Failed ones carry their error."""
        while not self.done:
            self._take(self._guarded_get(Completion))
        return sorted(self._completions, key=lambda completion: completion.index)

    def _guarded_get(self, awaited: type | None) -> Delta | Completion | None:
        try:
            return self._mailbox.get(awaited)
        except ReentrantCallError:  # nobody has waited
            raise
        except BaseException:  # KeyboardInterrupt above all
            self.cancel()
            raise

    # ---------------------------------------------------------------- asynchronous

    def __aiter__(self) -> Handle:
        return self

    async def __anext__(self) -> Delta:
        while not self.done:
            delta = self._take(await self._guarded_aget(None))
            if delta is not None:
                return delta
        self._raise_failure()
        raise StopAsyncIteration

    async def aresult(self) -> list[Completion]:
        """`result()` without blocking the event loop; cancelling the task cancels the request."""
        while not self.done:
            self._take(await self._guarded_aget(Completion))
        return sorted(self._completions, key=lambda completion: completion.index)

    async def _guarded_aget(self, awaited: type | None) -> Delta | Completion | None:
        try:
            return await self._mailbox.aget(awaited)
        except ReentrantCallError:
            raise
        except BaseException:
            self.cancel()
            raise

    # ---------------------------------------------------------------- closing

    def close(self) -> None:
        self.cancel()

    async def aclose(self) -> None:
        self.cancel()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel()

    async def __aenter__(self) -> Handle:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        if not self.done:
            self._cancel()

    def _take(self, item: Delta | Completion | None) -> Delta | None:
        if isinstance(item, Delta):
            return item
        if item is not None:
            self._completions.append(item)
            if self.done:
                self._mailbox.end()
        return None

    def _raise_failure(self) -> None:
        failed = next((c for c in self._completions if c.finish_reason is FinishReason.ERROR), None)
        if failed is not None and not self._raised:
            self._raised = True
            failed.raise_for_error()
