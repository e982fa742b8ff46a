"""`specrouter demo`: three answers, target-only beside speculative, token by token the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from specrouter_llm.cli import routing
from specrouter_llm.cli.options import PoolOptions
from specrouter_llm.cli.outputs import writing
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.types import ChatMessage, Completion

_DOCUMENTS = (
    "The old lighthouse stood at the end of the road, and every evening the keeper climbed the stairs with a lamp in his "
    "hand, so that the ships could find their way home through the dark.",
    "Anna works as a baker in Oslo and moved there in 1987.",
    "The shells in the shop of Tom cost 70 dollars each.",
)


@dataclass(frozen=True, slots=True)
class Task:
    """One of the demo's prompts and the chain that is shown on it."""

    title: str
    prompt: str | list[ChatMessage]
    chain: tuple[str, ...]
    windows: tuple[int, ...]
    documents: tuple[str, ...] = ()
    temperature: float = 0.0


def _chat(text: str) -> list[ChatMessage]:
    return [{"role": "user", "content": text}]


TASKS = (
    Task(
        "chain of thought",
        _chat("Sam buys 3 boxes of stickers. Each box holds 8 stickers. How many stickers does Sam have in all?"),
        ("demo/draft",),
        (3,),
    ),
    Task(
        "documents",
        [
            {"role": "system", "content": "Answer the question using only the context."},
            *_chat(
                "Context:\n"
                + "\n".join(f"[{i}] {text}" for i, text in enumerate(_DOCUMENTS, 1))
                + "\n\nQuestion: Where does Anna work?"
            ),
        ],
        ("ngram",),
        (8,),
        _DOCUMENTS,
    ),
    Task("story at T = 0.7", _chat("Tell me a short story."), ("demo/draft",), (3,), (), 0.7),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """One task, decoded both ways."""

    title: str
    target: str
    plain: Completion
    speculative: Completion

    @property
    def identical(self) -> bool:
        return self.plain.token_ids == self.speculative.token_ids

    @property
    def speedup(self) -> float:
        """Decoding rate of the speculative run over that of the plain one."""
        plain = self.plain.timings.tokens_per_second
        return self.speculative.timings.tokens_per_second / plain if plain else 0.0


def run(widen: str | None, *, max_tokens: int, as_json: bool, plot: Path | None = None) -> int:
    """Runs the demo; returns 1 if any pair of answers differs, else 0."""
    console = Console(quiet=as_json)
    pairs: list[Pair] = []
    pools = [PoolOptions("demo", widen=size) for size in ((None, widen) if widen else (None,))]
    for options in pools:
        options.sources()  # a size that cannot be is told before the first answers, not after them
    for options in pools:
        progress = not as_json and sys.stderr.isatty()
        with options.engine(progress=progress, max_batch=1, prefix_reuse=False, policy="fixed") as engine:
            label = engine.labels[engine.target]
            console.print()
            console.rule(f"[bold]{label}")
            _warm_up(engine)
            pairs += [_show_task(engine, task, label, console, max_tokens) for task in TASKS]
    if as_json:
        print(json.dumps([_as_dict(pair) for pair in pairs]))
    else:
        console.print()
        console.print(_table(pairs))
        same = all(pair.identical for pair in pairs)
        console.print("Every pair of answers is identical, token by token." if same else "[bold red]Answers differ.")
    if plot is not None:
        _plot_routing(widen, max_tokens, plot)
        console.print(f"The routing over time is drawn in {plot.name}.")
    return 0 if all(pair.identical for pair in pairs) else 1


def _plot_routing(widen: str | None, max_tokens: int, path: Path) -> None:
    """The same prompts twice, chains left to the adaptive policy."""
    prompts = [
        (task.title, task.prompt, {"draft_sources": task.documents, "temperature": task.temperature, "seed": 3})
        for task in TASKS
    ]
    with PoolOptions("demo", widen=widen).engine(progress=False, max_batch=1, policy="adaptive") as engine:
        legs = routing.record(engine, prompts * 2, max_tokens)
        label = engine.labels[engine.target]
    with writing(path):
        routing.plot(legs, label, path)


def _warm_up(engine: SpecRouter) -> None:
    for task in TASKS:
        engine.generate("warm up", max_tokens=4, chain=task.chain)


def _show_task(engine: SpecRouter, task: Task, label: str, console: Console, max_tokens: int) -> Pair:
    """Streams the plain answer, then the speculative one beside it; one after the other, so that neither slows the other."""
    texts = ["", ""]
    titles = ["target only", " > ".join([*task.chain, "target"])]
    completions: list[Completion] = []
    console.print()
    live = Live(_panels(task.title, titles, texts), console=console, refresh_per_second=12, transient=False)
    with live:
        for side in (0, 1):
            chosen: dict[str, Any] = {"speculation": False}
            if side:
                chosen = {"chain": task.chain, "windows": task.windows, "draft_sources": task.documents}
            handle = engine.stream(task.prompt, max_tokens=max_tokens, temperature=task.temperature, seed=3, **chosen)
            for delta in handle:
                texts[side] += delta.text
                if console.is_terminal:
                    live.update(_panels(task.title, titles, texts))
            completions.append(handle.result()[0].raise_for_error())
            titles[side] += f" - {completions[-1].timings.tokens_per_second:.0f} tokens/s"
            live.update(_panels(task.title, titles, texts))
    return Pair(task.title, label, *completions)


def _panels(title: str, titles: Sequence[str], texts: Sequence[str]) -> Any:
    panels = [Panel(text or " ", title=name) for name, text in zip(titles, texts, strict=True)]
    return Panel(Columns(panels, equal=True, expand=True), title=f"[bold]{title}", border_style="dim")


def _table(pairs: Sequence[Pair]) -> Table:
    table = Table(title="Target-only beside speculative: tokens per second")
    for column in ("target", "task", "tokens", "same", "plain", "spec.", "ratio", "accepted/drafted"):
        table.add_column(column, justify="left" if column in ("target", "task") else "right")
    for pair in pairs:
        stages = pair.speculative.stats.chain[:-1]
        table.add_row(
            pair.target.removeprefix("demo/"),
            pair.title,
            str(len(pair.plain.token_ids)),
            "yes" if pair.identical else "NO",
            f"{pair.plain.timings.tokens_per_second:.0f}",
            f"{pair.speculative.timings.tokens_per_second:.0f}",
            f"{pair.speedup:.2f}",
            ", ".join(f"{s.model.removeprefix('demo/')} {s.accepted}/{s.proposed}" for s in stages)
            or "nothing drafted",
        )
    return table


def _as_dict(pair: Pair) -> dict[str, Any]:
    stages = pair.speculative.stats.chain
    return {
        "target": pair.target,
        "task": pair.title,
        "text": pair.plain.text,
        "tokens": len(pair.plain.token_ids),
        "identical": pair.identical,
        "plain_tokens_per_second": pair.plain.timings.tokens_per_second,
        "speculative_tokens_per_second": pair.speculative.timings.tokens_per_second,
        "ratio": pair.speedup,
        "chain": [{"model": s.model, "role": s.role, "proposed": s.proposed, "accepted": s.accepted} for s in stages],
    }
