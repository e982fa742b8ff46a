"""Shared engines: one per configuration, made once, made anew when closed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from specrouter_llm.chat import EngineKey, close_shared, shared_engine
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.errors import InvalidParameterError, ModelNotFoundError


class FakeEngine:
    """What the registry needs to know of an engine."""

    closed = False

    def close(self):
        self.closed = True


@pytest.fixture
def loaded(monkeypatch):
    """The engines that were loaded, slowly, instead of real ones."""
    engines = []
    lock = threading.Lock()

    def load(target, drafts, **options):
        time.sleep(0.05)
        with lock:
            engines.append(FakeEngine())
        return engines[-1]

    monkeypatch.setattr(SpecRouter, "from_pretrained", load)
    close_shared()
    yield engines
    close_shared()


def test_one_load_for_many_threads(loaded):
    with ThreadPoolExecutor(8) as threads:
        engines = list(threads.map(lambda _: shared_engine("a", ["b"], max_batch=2), range(8)))
    assert len(loaded) == 1
    assert all(engine is engines[0] for engine in engines)


def test_every_difference_makes_another_engine(loaded):
    """Order of drafts, type and value of options; the order of options does not count."""
    engines = [
        shared_engine("a"),
        shared_engine("b"),
        shared_engine("a", []),
        shared_engine("a", ["b", "c"]),
        shared_engine("a", ["c", "b"]),
        shared_engine("a", max_batch=1),
        shared_engine("a", max_batch=True),
        shared_engine("a", memory_budget={"cpu": "1GiB"}),
        shared_engine("a", chain=["ngram"], windows=[3]),
    ]
    assert len({id(engine) for engine in engines}) == len(engines) == len(loaded)
    assert shared_engine("a", windows=[3], chain=["ngram"]) is engines[-1]
    assert shared_engine("a", memory_budget={"cpu": "1GiB"}) is engines[-2]
    assert EngineKey.of("a", ["b"], {"x": 1}) == EngineKey.of("a", ("b",), {"x": 1})


def test_a_closed_engine_is_made_anew(loaded):
    first, other = shared_engine("a"), shared_engine("b")
    first.close()
    second = shared_engine("a")
    assert second is not first
    close_shared(second)
    assert (True, False) == (second.closed, other.closed)
    assert shared_engine("a") is not second
    close_shared()
    assert all(engine.closed for engine in loaded)
    stranger = FakeEngine()
    close_shared(stranger)
    assert not stranger.closed


def test_a_failed_load_is_tried_again(loaded, monkeypatch):
    load = SpecRouter.from_pretrained

    def fail(*configuration, **options):
        raise ModelNotFoundError("not there")

    monkeypatch.setattr(SpecRouter, "from_pretrained", fail)
    with pytest.raises(ModelNotFoundError):
        shared_engine("a")
    monkeypatch.setattr(SpecRouter, "from_pretrained", load)
    assert shared_engine("a") is loaded[0]


@pytest.mark.parametrize(
    ("target", "drafts", "options", "message"),
    [
        (None, None, {}, "target's name or folder"),
        ("", None, {}, "target's name or folder"),
        ("a", "b", {}, "must be a list"),
        ("a", None, {"policy": {1, 2}}, "cannot be compared by value"),
    ],
)
def test_wrong_configurations(loaded, target, drafts, options, message):
    with pytest.raises(InvalidParameterError, match=message):
        shared_engine(target, drafts, **options)
    assert loaded == []
