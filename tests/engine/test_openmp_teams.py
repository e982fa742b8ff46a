"""Who has nothing to compute gives its OpenMP team back: whoever loaded, whoever waits, and an idle worker."""

import threading
import time

import pytest

from specrouter_llm.engine import handle, worker
from specrouter_llm.testing import fake_engine


@pytest.fixture
def released(monkeypatch):
    """Names of the threads that gave their team back, in order."""
    names = []
    for module in (worker, handle):
        monkeypatch.setattr(module, "release_team", lambda: names.append(threading.current_thread().name))
    return names


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition()


def test_teams_are_given_back(released):
    """Once where the engine is made, by whoever waits for an answer, and by the worker each time it runs out of work."""
    here = threading.current_thread().name
    with fake_engine() as engine:
        assert released[0] == here
        wait_for(lambda: released.count("specrouter") == 1)
        engine.generate([[1, 2, 3], [4]], max_tokens=4)
        assert released.count(here) >= 2
        wait_for(lambda: released.count("specrouter") == 2)
        time.sleep(5 * worker.IDLE_SECONDS)
        assert released.count("specrouter") == 2
