"""OpenMP teams: one thread's helpers do not outlive its work, so that another's may wait actively."""

import time
from pathlib import Path

import pytest
import torch

from specrouter_llm.runtime import openmp


def threads_of_this_process():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))


def loop_in_parallel():
    torch.set_num_threads(2)
    torch.randn(64, 4096).softmax(-1)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(
    openmp._pause() is None or not Path("/proc/self/status").exists(), reason="GNU's OpenMP on Linux only"
)
def test_helpers_end_and_come_back(two_threads):
    """The team is gone afterwards, and the next loop has one again; twice does no harm."""
    loop_in_parallel()
    openmp.release_team()
    time.sleep(0.1)
    without = threads_of_this_process()
    loop_in_parallel()
    assert threads_of_this_process() == without + 1
    openmp.release_team()
    openmp.release_team()
    deadline = time.monotonic() + 5
    while threads_of_this_process() > without and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threads_of_this_process() == without
    loop_in_parallel()
    assert threads_of_this_process() == without + 1
    openmp.release_team()


def test_nothing_happens_where_the_library_is_unknown(monkeypatch):
    monkeypatch.setattr(openmp, "_pause", lambda: None)
    openmp.release_team()


def test_a_forked_process_is_left_alone(monkeypatch):
    monkeypatch.setattr(openmp, "_pause", lambda: pytest.fail)
    monkeypatch.setattr(openmp, "_PROCESS", -1)
    openmp.release_team()
