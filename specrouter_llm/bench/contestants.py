"""The contestants of our engine: plain decoding, static chains, and the adaptive policy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from specrouter_llm.bench.contest import Contestant, Decoding, Job
from specrouter_llm.bench.llamacpp import LLAMA_CPP, llama_cpp_peers
from specrouter_llm.bench.models import Models
from specrouter_llm.bench.peers import KINDS, peers_of
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.scheduling.plan import Plan

PLAIN, ROUTED = "plain", "routed"
WINDOWS, LOOKUP_WINDOWS = (2, 4, 6, 8), (8, 16)
"""Of drafters and of lookup, with everything asked for; else 4 and 8."""


@dataclass(frozen=True, slots=True)
class EngineContestant:
    """An engine, and how its requests are to be decoded."""

    name: str
    kind: str
    engine: SpecRouter
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `submit`."""

    @property
    def family(self) -> str:
        """Plain decoding is the static chain without drafts."""
        return "routed" if self.kind == "routed" else "static chain"

    def decode(self, jobs: Sequence[Job]) -> Decoding:
        started = time.perf_counter()
        handles = [self.engine.submit(job.prompt_ids, job.params, **self.options) for job in jobs]
        completions = tuple(handle.result()[0].raise_for_error() for handle in handles)
        seconds = time.perf_counter() - started
        tokens = [completion.token_ids for completion in completions]
        return Decoding(
            token_ids=tuple(tokens),
            seconds=seconds,
            decode_seconds=max(completion.timings.decode_s for completion in completions),
            decode_tokens=sum(len(ids) - 1 for ids in tokens),
            target_steps=sum(completion.stats.num_target_steps - 1 for completion in completions),
            completions=completions,
        )


@dataclass(frozen=True, slots=True)
class Chain:
    """A static chain: levels below the target, lowest first, and what each may offer."""

    levels: tuple[str, ...]
    windows: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Chain:
        """`ngram@8,demo/draft@4`, lowest level first.

        Raises:
            InvalidParameterError: it is not of this form.
        """
        parts = [part.strip().rpartition("@") for part in text.split(",")]
        if not all(name and window.isdigit() for name, _, window in parts):
            raise InvalidParameterError(
                f"a chain is LEVEL@WINDOW, lowest first, separated by commas (ngram@8,demo/draft@4); got {text!r}"
            )
        return cls(tuple(name for name, _, _ in parts), tuple(int(window) for _, _, window in parts))

    @property
    def label(self) -> str:
        return " > ".join(f"{name}@{window}" for name, window in zip(self.levels, self.windows, strict=True))


def default_chains(engine: SpecRouter, everything: bool = False) -> list[Chain]:
    """Every level below the target alone, the smallest model with a long window too, the two smallest models in one chain, and
    lookup below the smallest model.

    `everything` runs the single ones with several windows.
    """
    models = [name for name in engine.levels[:-1] if name in engine.labels]
    lookups = [name for name in engine.levels[:-1] if name not in engine.labels]
    found = [Chain((name,), (window,)) for name in lookups for window in LOOKUP_WINDOWS[: 2 if everything else 1]]
    for name in models:
        windows = WINDOWS if everything else (4, 8) if name == models[0] else (4,)
        found += [Chain((name,), (window,)) for window in windows]
    if len(models) > 1:
        found.append(Chain((models[0], models[1]), (3, 4)))
    found += [Chain((lookup, models[0]), (7, 8)) for lookup in lookups if models]
    return found


@contextmanager
def contestants_of(
    models: Models,
    *,
    chains: Sequence[Chain] | None = None,
    peers: Sequence[str] = (),
    everything: bool = False,
    max_batch: int = 1,
    max_context: int | None = None,
) -> Iterator[tuple[SpecRouter, list[Contestant]]]:
    """The engine that decodes plainly, and everyone. Prefixes are not reused: the contestants get the same prompts.

    The routed contestant has an engine of its own: a policy also learns from the steps of forced chains.

    Raises:
        InvalidParameterError: a chain that the engine does not have, or an unknown peer.
    """
    with ExitStack() as stack:
        options: dict[str, Any] = {"max_batch": max_batch, "max_context": max_context, "prefix_reuse": False}
        engine = stack.enter_context(models.engine(**options))
        static = list(chains) if chains is not None else default_chains(engine, everything)
        _check(engine, static)
        theirs = _peers(models, peers, everything, stack)
        routed = stack.enter_context(models.engine(**options, policy="adaptive"))
        ours = [
            EngineContestant(PLAIN, "plain", engine, {"speculation": False}),
            *(
                EngineContestant(
                    chain.label, "static", engine, {"chain": list(chain.levels), "windows": list(chain.windows)}
                )
                for chain in static
            ),
            EngineContestant(ROUTED, "routed", routed),
        ]
        yield engine, [*theirs, *ours]


def _peers(models: Models, kinds: Sequence[str], everything: bool, stack: ExitStack) -> list[Contestant]:
    """Raises:
    InvalidParameterError: an unknown peer.
    """
    known = (*KINDS, LLAMA_CPP)
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise InvalidParameterError(f"unknown peer {unknown[0]!r}; known: {', '.join(known)}")
    found: list[Contestant] = []
    if any(kind in KINDS for kind in kinds):
        found += stack.enter_context(peers_of(models, kinds, everything=everything))
    if LLAMA_CPP in kinds:
        found += stack.enter_context(llama_cpp_peers(models))
    return found


def _check(engine: SpecRouter, chains: Sequence[Chain]) -> None:
    for chain in chains:
        for name in chain.levels:
            if name not in engine.levels[:-1]:
                raise InvalidParameterError(
                    f"unknown level {name!r} in chain {chain.label!r}; this engine has: {', '.join(engine.levels[:-1])}"
                )
        Plan.chain([*chain.levels, engine.target], chain.windows)
