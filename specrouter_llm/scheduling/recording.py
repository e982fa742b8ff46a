"""Recorded answers: real models' choices at every place of real texts, for the simulator.

A recording holds no text. At each place of an answer it says which class of tokens every model chose there, after the true
ones: 0 is the target's own choice, equal numbers are equal tokens; and of model-free levels, how long their proposal was and
how much of it was right. That is all a chain needs as long as its tokens are the target's. Behind the first one that is not
the target rejects the rest, whatever it is; what middle levels say to each other there is taken to be what they said at that
place of the true text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.scheduling.latency import LatencyModel
from specrouter_llm.scheduling.simulation import SimulatedLookup, SimulatedModel, SimulatedPool, SimulatedRow

_PLACES = 1 << 20


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """One answer of n tokens."""

    num_prompt_tokens: int
    choices: Mapping[str, Sequence[int]]
    """[n] of each drafter: 0 where it chose what the target did."""
    lookups: Mapping[str, Sequence[tuple[int, int]]]
    """[n] of each model-free level: tokens proposed there, and how many of them, from the first, the target chose, too."""

    def __len__(self) -> int:
        return len(next(iter((*self.choices.values(), *self.lookups.values()))))


@dataclass(frozen=True, slots=True)
class TimedModel(SimulatedModel):
    """A model that takes what a latency model says of forwards; drafting in loops costs no less."""

    name: str = ""
    latency: LatencyModel = field(default_factory=LatencyModel)

    def seconds(self, tokens: int, context: int, rows: int = 1) -> float:
        return self.latency.seconds(self.name, tokens, context, rows)


@dataclass(frozen=True)
class RecordedPool(SimulatedPool):
    """Levels that choose what was recorded."""

    answers: Sequence[RecordedAnswer] = ()

    @classmethod
    def of(cls, answers: Sequence[RecordedAnswer], target: str, latency: LatencyModel) -> RecordedPool:
        """The levels of the recording, at these latencies.

        Args:
            answers: all of the same levels, the drafters smallest first.

        Raises:
            InvalidParameterError: no answer, or a model whose latency is not known.
        """
        if not answers:
            raise InvalidParameterError("a recording needs at least one answer")
        names = [*answers[0].choices, target]
        missing = [name for name in names if not latency.knows(name)]
        if missing:
            raise InvalidParameterError(f"no latency of {missing}; calibrate the pool that was recorded")
        models = {name: TimedModel(latency.seconds(name, 1), 0.0, name=name, latency=latency) for name in names}
        lookups = {name: SimulatedLookup(0.0, 0.0, 0.0) for name in answers[0].lookups}
        return cls(models, lookups, overhead=latency.overhead.seconds(drafted=True), answers=answers)

    def calibration(self) -> LatencyModel:
        """What a calibration of these levels says: of its own, for who corrects it."""
        measured = next(model.latency for model in self.models.values() if isinstance(model, TimedModel))
        return LatencyModel.from_json(json.dumps(json.loads(measured.to_json()) | {"loops": {}}))

    def requests(self) -> list[SimulatedRow]:
        """A row for every answer."""
        return [SimulatedRow(i, answer.num_prompt_tokens, len(answer)) for i, answer in enumerate(self.answers)]

    def start(self, seed: int, row_id: int) -> int:
        return row_id * _PLACES

    def after(self, context: int, token: int) -> int:
        return context + 1

    def choice(self, name: str, context: int, hardness: float) -> int:
        answer, place = self._at(context)
        return 0 if name == self.target or place >= len(answer) else answer.choices[name][place]

    def look_up(self, name: str, context: int, want: int, hardness: float) -> list[int]:
        answer, place = self._at(context)
        length, right = answer.lookups[name][place] if place < len(answer) else (0, 0)
        return [0 if i < right else -1 for i in range(min(want, length))]

    def _at(self, context: int) -> tuple[RecordedAnswer, int]:
        row, place = divmod(context, _PLACES)
        return self.answers[row], place


def save(answers: Sequence[RecordedAnswer], path: Path) -> None:
    """Writes a recording as JSON; `load` reads it."""
    rows = [
        {"prompt": answer.num_prompt_tokens, "choices": dict(answer.choices), "lookups": dict(answer.lookups)}
        for answer in answers
    ]
    path.write_text(json.dumps({"version": 1, "answers": rows}, separators=(",", ":")) + "\n", encoding="utf-8")


def load(path: Path) -> list[RecordedAnswer]:
    """Raises:
    InvalidParameterError: not what `save` writes.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != 1:
            raise InvalidParameterError(f"a recording of version {data['version']!r}; this release reads 1")
        return [_answer(row) for row in data["answers"]]
    except InvalidParameterError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidParameterError(f"{path} is not a recording: {error!r}") from error


def _answer(row: Mapping[str, object]) -> RecordedAnswer:
    choices, lookups = row["choices"], row["lookups"]
    if not isinstance(choices, dict) or not isinstance(lookups, dict):
        raise TypeError("choices and lookups are objects by level")
    found = RecordedAnswer(int(str(row["prompt"])), choices, {k: [(n, m) for n, m in v] for k, v in lookups.items()})
    if len({len(some) for some in (*choices.values(), *lookups.values())}) != 1:
        raise ValueError("every level of an answer has as many places")
    return found
