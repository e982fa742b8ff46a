"""The two runs: the target learns from the corpus, and the drafters from the target, all of them on one teacher's pass."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from examples.train_family.config import Training
from examples.train_family.corpus import Batch, Corpus, batches
from examples.train_family.learner import Learner, distillation_loss, prediction_loss

_SAVE_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Portion:
    """A micro-batch on the device, and the positions whose successors are to be learnt."""

    inputs: torch.Tensor
    chosen: torch.Tensor
    following: torch.Tensor


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

    def train(self, name: str, learners: list[Learner], losses: Losses) -> float:
        """Trains until the configured tokens are seen; returns the mean loss per learnt position of the last tenth."""
        done = self._restore(learners)
        stream = itertools.islice(
            batches(self.corpus, self.settings.micro_tokens, self.pad, self.seed), done["micro"], None
        )
        recent: list[float] = []
        saved = time.monotonic()
        with tqdm(total=self.settings.tokens, initial=done["tokens"], unit="token", unit_scale=True, desc=name) as bar:
            while done["tokens"] < self.settings.tokens:
                portions, seen = self._portions(stream, done["step"])
                progress = done["tokens"] / self.settings.tokens
                recent.append(self._step(learners, losses, portions, done["step"], progress))
                done = {
                    "step": done["step"] + 1,
                    "micro": done["micro"] + len(portions),
                    "tokens": done["tokens"] + seen,
                }
                bar.update(seen)
                bar.set_postfix(loss=f"{np.mean(recent[-50:]):.3f}", refresh=False)
                if time.monotonic() - saved > _SAVE_SECONDS or done["tokens"] >= self.settings.tokens:
                    self._save(done, learners)
                    saved = time.monotonic()
        return float(np.mean(recent[-max(1, len(recent) // 10) :])) if recent else float("nan")

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
        tokens = torch.from_numpy(batch.tokens).to(self.device)
        wanted = torch.from_numpy(chosen).to(self.device)
        return Portion(tokens[:, :-1], wanted, tokens[:, 1:][wanted])

    def _step(
        self, learners: list[Learner], losses: Losses, portions: list[Portion], step: int, progress: float
    ) -> float:
        count = sum(len(portion.following) for portion in portions)
        total = 0.0
        for portion in portions:
            summed = torch.stack(losses(portion)).sum() / count
            summed.backward()
            total += summed.item() / len(learners)
        for learner in learners:
            learner.step(step, progress)
        return total

    def _save(self, done: dict[str, int], learners: list[Learner]) -> None:
        part = self.path.with_suffix(".part")
        torch.save({"done": done, "learners": [learner.state() for learner in learners]}, part)
        part.rename(self.path)

    def _restore(self, learners: list[Learner]) -> dict[str, int]:
        if not self.path.exists():
            return {"step": 0, "micro": 0, "tokens": 0}
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        for learner, saved in zip(learners, state["learners"], strict=True):
            learner.restore(saved)
        done: dict[str, int] = state["done"]
        return done


def predicting(learner: Learner) -> Losses:
    """The loss of a model that learns from text."""
    return lambda portion: [prediction_loss(learner.logits(portion.inputs, portion.chosen), portion.following)]


def imitating(students: list[Learner], teacher: Learner) -> Losses:
    """The losses of students that learn a teacher's distribution, from one pass of the teacher."""

    def losses(portion: Portion) -> list[torch.Tensor]:
        with torch.no_grad():
            taught = teacher.logits(portion.inputs, portion.chosen)
        return [distillation_loss(student.logits(portion.inputs, portion.chosen), taught) for student in students]

    return losses
