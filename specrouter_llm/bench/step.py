"""`specrouter bench step`: what verifying n tokens costs over one, and how near a plain step is to its floor.

The floor of a decoding step is the time it takes to read the weights once: their bytes over the rate at which the model's
device reads memory. That rate is measured in the same rounds, by summing a float32 tensor far larger than any cache (on a
CPU with all of torch's threads). Where the runner knows its matrix products, they alone, with nothing between them, say how
much of the distance is theirs. Everything takes turns in rotating order, twice in a turn, of which the second counts, and
figures are medians of ratios within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from transformers import DynamicCache

from specrouter_llm.bench.bootstrap import Interval, median_of_ratios
from specrouter_llm.bench.models import Models
from specrouter_llm.bench.plots import new_figure, reach, save_figure
from specrouter_llm.config import EngineConfig
from specrouter_llm.engine.calibration import pool_runners
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.engine.worker import IDLE_SECONDS
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.pool.pool import ModelPool
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.graphs import GraphRunner
from specrouter_llm.runtime.openmp import release_team
from specrouter_llm.runtime.runner import Runner
from specrouter_llm.runtime.select import packing_bytes
from specrouter_llm.sampling.params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = (1, 2, 4, 8, 16)
READ_BYTES = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}
"""Size of the tensor that is summed, by kind of device; on a GPU large enough that launching the sum does not count."""
_DECODED = 9
"""Tokens of an answer of the engine: one from the prefill, eight steps."""
_WARM_UP = 2
OURS, PEER, STEP, READ, PRODUCTS = "specrouter", "transformers", "engine", "read", "products"

Clocked = Callable[[], float]
"""Runs something and returns its seconds."""


def measure(
    models: Models,
    *,
    tokens: Sequence[int] = TOKENS,
    context: int = 256,
    rounds: int = 30,
    peer: bool = True,
    read_bytes: int | None = None,
    advance: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the floor rests on, and one row per runner and number of tokens, and one per comparison with the floor.

    Raises:
        InvalidParameterError: the model's context is too short, or 1 is not among the tokens.
    """
    if 1 not in tokens:
        raise InvalidParameterError(f"the cost of n tokens is compared with that of 1: give 1 too, got {list(tokens)}")
    alone = replace(models, drafts=())
    with _engine(alone) as (engine, runner, weight_bytes, device):
        if context + max(tokens) > engine.max_context:
            raise InvalidParameterError(
                f"the context of {engine.max_context} tokens is too short for {context} and more"
            )
        read_bytes = read_bytes or READ_BYTES.get(device.type, READ_BYTES["cpu"])
        actions: dict[tuple[str, int], Clocked] = {
            (READ, 1): _reading(read_bytes, device),
            (STEP, 1): _decoding(engine, context),
        }
        actions |= {(OURS, n): _forward(runner, n, context) for n in tokens}
        products = {(PRODUCTS, n): _products(runner, n) for n in tokens}
        actions |= {key: clocked for key, clocked in products.items() if clocked is not None}
        other = alone.pool() if peer else None
        if other is not None:
            actions |= {(PEER, n): _peer_forward(other, n, context) for n in tokens}
        seconds: dict[tuple[str, int], list[float]] = {key: [] for key in actions}
        keys = list(actions)
        for turn in range(-_WARM_UP, rounds):
            first = turn % len(keys)
            for key in (*keys[first:], *keys[:first]):
                release_team()
                time.sleep(2 * IDLE_SECONDS)  # until the engine's thread has given its team back too
                actions[key]()
                taken = actions[key]()
                if turn >= 0:
                    seconds[key].append(taken)
            advance("rounds")
        label = engine.labels[engine.target]
        if other is not None:
            other.close()
    floor = [weight_bytes / read_bytes * taken for taken in seconds[READ, 1]]
    settings = {
        "target": label,
        "device": device.type,
        "read_bytes": read_bytes,
        "weight_bytes": weight_bytes,
        "read_gib_per_second": round(read_bytes / 2**30 / statistics.median(seconds[READ, 1]), 3),
        "floor_ms": round(1e3 * statistics.median(floor), 4),
    }
    return settings, _rows(seconds, floor)


def _rows(seconds: Mapping[tuple[str, int], Sequence[float]], floor: Sequence[float]) -> list[dict[str, Any]]:
    rows = []
    for (runner, count), taken in seconds.items():
        if runner == READ:
            continue
        row: dict[str, Any] = {"runner": runner, "tokens": count, "ms": round(1e3 * statistics.median(taken), 4)}
        if runner != STEP:
            row["over_one"] = median_of_ratios(taken, seconds[runner, 1]).as_dict()
        if count == 1:
            row["over_floor"] = median_of_ratios(taken, floor).as_dict()
        if runner == OURS and (PEER, count) in seconds:
            row["peer_over_ours"] = median_of_ratios(seconds[PEER, count], taken).as_dict()
        rows.append(row)
    return rows


@contextmanager
def _engine(models: Models) -> Iterator[tuple[SpecRouter, Runner, int, torch.device]]:
    """The target alone as an engine of one row; its runner, to be called while the engine is idle; what it reads, where."""
    pool = models.pool(packing=packing_bytes)
    weight_bytes = bytes_read(pool.target.model)  # before packing drops the plain weights
    device = pool.target.model.device
    runners = pool_runners(pool, num_slots=1, pack=True)
    weight_bytes = getattr(runners[pool.target.name], "weight_bytes", weight_bytes)  # it may keep them in fewer
    with SpecRouter(
        runners,
        target=pool.target.name,
        max_context=pool.max_context,
        config=EngineConfig(max_batch=1, prefix_reuse=False),
        proposers=[],
        labels={pool.target.name: pool.target.label},
        on_close=pool.close,
    ) as engine:
        yield engine, runners[pool.target.name], weight_bytes, device


def bytes_read(model: PreTrainedModel) -> int:
    """Bytes of the weights that a step of one token reads: all, but for an embedding that is not the output head too."""
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    total = sum(parameter.nbytes for parameter in model.parameters())
    return int(total if tied else total - embedding.nbytes)


def _ids(vocab_size: int, count: int) -> list[int]:
    return [(7 * i + 11) % vocab_size for i in range(count)]


def _reading(num_bytes: int, device: torch.device) -> Clocked:
    memory = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)

    def read() -> float:
        started = time.perf_counter()
        memory.sum().item()
        return time.perf_counter() - started

    return read


def _forward(runner: Runner, tokens: int, context: int) -> Clocked:
    """A forward of our runner. What the slot holds does not matter for its time."""
    span = Span(0, context, _ids(runner.vocab_size, tokens), tokens)

    def forward() -> float:
        started = time.perf_counter()
        runner.forward([span])[0, 0].item()  # .item() waits for the device
        return time.perf_counter() - started

    return forward


def _products(runner: Runner, tokens: int) -> Clocked | None:
    """The matrix products of a forward and nothing else, where the runner can tell them."""
    if isinstance(runner, GraphRunner):
        return _replayed(runner.products(tokens))
    if not hasattr(runner, "matrices"):
        return None
    pairs = [(matrix, torch.ones(tokens, matrix.in_features)) for matrix in runner.matrices]

    def multiply() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            for matrix, rows in pairs:
                matrix(rows)
        return time.perf_counter() - started

    return multiply


def _replayed(replay: Callable[[], torch.Tensor] | None) -> Clocked | None:
    def multiply() -> float:
        assert replay is not None
        started = time.perf_counter()
        replay().flatten()[0].item()  # .item() waits for the device
        return time.perf_counter() - started

    return multiply if replay is not None else None


def _decoding(engine: SpecRouter, context: int) -> Clocked:
    """A step of the engine that decodes plainly, everything between two forwards included."""
    prompt = _ids(engine.target_logits([1]).shape[0], context)
    params = SamplingParams(max_tokens=_DECODED, ignore_eos=True)

    def step() -> float:
        completion = engine.generate([prompt], params, speculation=False)[0].raise_for_error()
        return completion.timings.decode_s / (len(completion.token_ids) - 1)

    return step


def _peer_forward(pool: ModelPool, tokens: int, context: int) -> Clocked:
    """A forward of transformers with its own attention, cache and unpacked weights."""
    member = pool.target
    model, device = member.model, member.model.device
    model.set_attn_implementation("sdpa")
    cache = DynamicCache(config=model.config)
    new = torch.tensor([_ids(member.vocab_size, tokens)], device=device)
    with torch.inference_mode():
        model(torch.tensor([_ids(member.vocab_size, context)], device=device), past_key_values=cache, use_cache=True)

    def forward() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            logits = model(new, past_key_values=cache, use_cache=True).logits
            logits[0, 0, 0].item()
        taken = time.perf_counter() - started
        cache.crop(-tokens)  # removes so many
        return taken

    return forward


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for people."""
    shown = Table(
        title="A forward of n tokens: medians, and medians of ratios within a round (95 % bootstrap intervals)"
    )
    for column in ("runner", "tokens", "ms", "n over 1", "over the floor", "transformers / ours"):
        shown.add_column(column, justify="left" if column == "runner" else "right")
    for row in rows:
        figures = (row.get(name) for name in ("over_one", "over_floor", "peer_over_ours"))
        shown.add_row(
            row["runner"],
            str(row["tokens"]),
            f"{row['ms']:.2f}",
            *(str(Interval(**figure)) if figure is not None else "-" for figure in figures),
        )
    return shown


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The cost of n tokens over that of one, by runner."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for runner in (OURS, PEER):
        mine = sorted((row for row in rows if row["runner"] == runner), key=lambda row: int(row["tokens"]))
        ratios = [row["over_one"] for row in mine]
        if mine:
            places, values = [row["tokens"] for row in mine], [ratio["value"] for ratio in ratios]
            axes.errorbar(places, values, reach(ratios), marker="o", label=runner)
    axes.set_xlabel("tokens in one forward")
    axes.set_ylabel("time over that of one token")
    axes.set_ylim(bottom=0)
    axes.legend()
    save_figure(figure, path)
