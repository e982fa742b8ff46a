"""The two runs: the target learns from the corpus, and the drafters from the target, all of them on one teacher's pass."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from examples.train_family.config import Training
from examples.train_family.corpus import Batch, Corpus, batches
from examples.train_family.learner import Learner, distillation_loss, prediction_loss

_SAVE_SECONDS = 240.0
_SHOWN_EVERY = 20
"""Steps between two looks at the loss: a look waits for the device, which works ahead otherwise."""


@dataclass(frozen=True, slots=True)
class Portion:
    """A micro-batch on the device, and the positions whose successors are to be learnt."""

    inputs: torch.Tensor
    places: torch.Tensor
    """As indices through the rows of `inputs`."""
    following: torch.Tensor


@dataclass(frozen=True, slots=True)
class Done:
    """How far a run is."""

    step: int = 0
    micro: int = 0
    """Micro-batches taken from the stream."""
    tokens: int = 0
    seconds: float = 0.0


Losses = Callable[[Portion], list[torch.Tensor]]
"""One summed loss for every learner."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run of training over a corpus; `path` holds its state, from which an interrupted run goes on."""

    settings: Training
    corpus: Corpus
    path: Path
    pad: int
    seed: int
    prompt_share: float
    device: str = "cpu"

    def train(self, name: str, learners: list[Learner], losses: Losses) -> tuple[Done, float]:
        """Trains until the configured tokens are seen, or the configured time is over.

        Returns how far it came, and the mean loss per learnt position of the last tenth of the steps; not a number if
        there was none left.
        """
        done = self._restore(learners)
        stream = itertools.islice(
            batches(self.corpus, self.settings.micro_tokens, self.pad, self.seed), done.micro, None
        )
        recent: list[torch.Tensor] = []
        before = time.monotonic() - done.seconds
        saved = done.seconds
        with tqdm(total=self.settings.tokens, initial=done.tokens, unit="token", unit_scale=True, desc=name) as bar:
            while (progress := self._progress(done)) < 1.0:
                portions, seen = self._portions(stream, done.step)
                recent.append(self._step(learners, losses, portions, done.step, progress))
                done = Done(done.step + 1, done.micro + len(portions), done.tokens + seen, time.monotonic() - before)
                bar.update(seen)
                if done.step % _SHOWN_EVERY == 0:
                    bar.set_postfix(loss=f"{torch.stack(recent[-_SHOWN_EVERY:]).mean():.3f}", refresh=False)
                if done.seconds - saved > _SAVE_SECONDS or self._progress(done) >= 1.0:
                    self._save(done, learners)
                    saved = done.seconds
        last = recent[-max(1, len(recent) // 10) :]
        return done, float(torch.stack(last).mean()) if last else float("nan")

    def _progress(self, done: Done) -> float:
        """Share of the run that is over, by tokens or by time, whichever is further."""
        share = done.tokens / self.settings.tokens
        return share if self.settings.seconds is None else max(share, done.seconds / self.settings.seconds)

    def _portions(self, stream: Iterator[Batch], step: int) -> tuple[list[Portion], int]:
        """The micro-batches of a step, and how many real tokens they hold."""
        rng = np.random.default_rng((self.seed, step))
        portions, padded, seen = [], 0, 0
        while padded < self.settings.batch_tokens:
            batch = next(stream)
            chosen = batch.learnt | (rng.random(batch.tokens.shape) < self.prompt_share)
            chosen &= batch.real
            portions.append(self._portion(batch, chosen[:, 1:]))
            padded += batch.tokens.size
            seen += int(batch.real.sum())
        return portions, seen

    def _portion(self, batch: Batch, chosen: np.ndarray[Any, Any]) -> Portion:
        # Found on the host: a device would have to be waited for, since it alone knew how many there are.
        places = np.flatnonzero(chosen)
        following = batch.tokens[:, 1:].ravel()[places]
        return Portion(self._there(batch.tokens[:, :-1]), self._there(places), self._there(following))

    def _there(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """On the device; a copy from pinned memory is not waited for."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor if self.device == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _step(
        self, learners: list[Learner], losses: Losses, portions: list[Portion], step: int, progress: float
    ) -> torch.Tensor:
        """Learns from the portions; returns the mean loss of a learner per position, on the device."""
        count = sum(len(portion.following) for portion in portions)
        total = torch.zeros((), device=self.device)
        for portion in portions:
            summed = torch.stack(losses(portion)).sum() / count
            summed.backward()
            total += summed.detach() / len(learners)
        for learner in learners:
            learner.step(step, progress)
        return total

    def _save(self, done: Done, learners: list[Learner]) -> None:
        part = self.path.with_suffix(".part")
        torch.save({"done": asdict(done), "learners": [learner.state() for learner in learners]}, part)
        part.rename(self.path)

    def _restore(self, learners: list[Learner]) -> Done:
        if not self.path.exists():
            return Done()
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        for learner, saved in zip(learners, state["learners"], strict=True):
            learner.restore(saved)
        return Done(**state["done"])


def predicting(learner: Learner) -> Losses:
    """The loss of a model that learns from text."""
    return lambda portion: [prediction_loss(learner.logits(portion.inputs, portion.places), portion.following)]


def imitating(students: list[Learner], teacher: Learner) -> Losses:
    """The losses of students that learn a teacher's distribution, from one pass of the teacher."""

    def losses(portion: Portion) -> list[torch.Tensor]:
        with torch.no_grad():
            taught = teacher.logits(portion.inputs, portion.places)
        return [distillation_loss(student.logits(portion.inputs, portion.places), taught) for student in students]

    return losses
