"""From nothing to a family: tokenizer, corpus, target, drafters, cards. Every stage is kept and not done twice."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.train_family.config import FamilyConfig, Shape, Training
from examples.train_family.corpus import Corpus, Source, build_corpus, render
from examples.train_family.learner import Learner, new_model
from examples.train_family.tokenizer import load_tokenizer, train_tokenizer
from examples.train_family.training import Done, Run, imitating, predicting

_TOKENIZER_DOCUMENTS = 20_000
_SHARD = "15MB"
"""Most of one file of weights: small enough for what moves files from a machine that trains to another one."""
TARGET = "target"


class Build:
    """A build in the folder `work`; finished models stand in its subfolder `family`."""

    def __init__(self, config: FamilyConfig, work: Path) -> None:
        if config.kept and config.begin_with is None:
            raise ValueError("these settings keep a share of earlier weights: say whose with --begin-with FOLDER")
        self.config = config
        self.work = work
        work.mkdir(parents=True, exist_ok=True)
        self._check_same_config()

    @property
    def family(self) -> Path:
        return self.work / "family"

    def run(self) -> None:
        """All stages in order; those that are finished are left as they are."""
        tokenizer = self.tokenizer()
        corpus = self._corpus(tokenizer)
        torch.manual_seed(self.config.seed)
        target = self._learner(TARGET, self.config.target, self.config.train, tokenizer)
        run = self._run(self.config.train, corpus, tokenizer, TARGET)
        self._note(TARGET, *run.train(TARGET, [target], predicting(target)), target)
        self._keep(target.model)
        self._export(TARGET, target.model, tokenizer)

        target.model.requires_grad_(False)
        students = {
            name: self._learner(name, shape, self.config.distil, tokenizer)
            for name, shape in self.config.drafters.items()
        }
        run = self._run(self.config.distil, corpus, tokenizer, "drafters")
        learnt = run.train(" + ".join(students), list(students.values()), imitating(list(students.values()), target))
        for name, student in students.items():
            self._note(name, *learnt, student)
            self._export(name, student.model, tokenizer)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        folder = self.work / "tokenizer"
        if self.config.begin_with is not None:
            folder = self.config.begin_with / TARGET
        elif not folder.exists():
            # A throw-away tokenizer renders the chats; only its template matters.
            plain = train_tokenizer([], 256 + 64)
            documents = itertools.islice(
                Source(self.config, random.Random(self.config.seed - 1)).documents(), _TOKENIZER_DOCUMENTS
            )
            trained = train_tokenizer((render(document, plain) for document in documents), self.config.vocab_size)
            trained.save_pretrained(folder)
        return load_tokenizer(folder)

    def _corpus(self, tokenizer: PreTrainedTokenizerFast) -> Corpus:
        path = self.work / "corpus.npz"
        if not path.exists():
            build_corpus(self.config, tokenizer).save(path)
        return Corpus.load(path)

    def _learner(self, name: str, shape: Shape, settings: Training, tokenizer: PreTrainedTokenizerFast) -> Learner:
        model = new_model(shape, tokenizer)
        if self.config.begin_with is not None:
            model.load_state_dict(self._earlier(name))
        return Learner(model, settings, self.config.device)

    def _earlier(self, name: str) -> dict[str, torch.Tensor]:
        """Weights of a member of the family that this one begins with."""
        assert self.config.begin_with is not None
        model = LlamaForCausalLM.from_pretrained(self.config.begin_with / name, dtype=torch.float32)
        return model.state_dict()

    @torch.no_grad()
    def _keep(self, target: LlamaForCausalLM) -> None:
        """Moves the trained target back towards what it began with, by the configured share."""
        if self.config.kept and self.config.begin_with is not None:
            earlier = self._earlier(TARGET)
            for name, weight in target.named_parameters():
                weight.lerp_(earlier[name].to(weight), self.config.kept)

    def _run(self, settings: Training, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, name: str) -> Run:
        return Run(
            settings,
            corpus,
            self.work / f"{name}.pt",
            tokenizer.pad_token_id,
            self.config.seed,
            self.config.prompt_share,
            self.config.device,
        )

    def _export(self, name: str, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        """The model in float16 with its tokenizer, as `from_pretrained` reads it."""
        folder = self.family / name
        half = LlamaForCausalLM(model.config).to(torch.float16)
        half.load_state_dict(model.state_dict())
        half.generation_config = GenerationConfig.from_model_config(half.config)
        half.save_pretrained(folder, max_shard_size=_SHARD)
        tokenizer.save_pretrained(folder)

    def _note(self, name: str, done: Done, loss: float, learner: Learner) -> None:
        """Keeps what the cards say of a run; a run that was finished before keeps its loss."""
        path = self.work / "training.json"
        notes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        notes[name] = {
            "parameters": sum(parameter.numel() for parameter in learner.model.parameters()),
            "training_loss": notes[name]["training_loss"] if math.isnan(loss) and name in notes else loss,
            "tokens": done.tokens,
            "steps": done.step,
            "seconds": round(done.seconds),
        }
        path.write_text(json.dumps(notes, indent=2), encoding="utf-8")

    def _check_same_config(self) -> None:
        path = self.work / "config.json"
        text = self.config.model_dump_json(indent=2)
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{self.work} holds a build of another configuration; use another folder or delete it")
        path.write_text(text, encoding="utf-8")
