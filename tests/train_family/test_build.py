"""From a configuration to models that load: corpus, batches, training that can be interrupted."""

from __future__ import annotations

import itertools
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from examples.train_family import training
from examples.train_family.build import Build
from examples.train_family.cards import write_cards
from examples.train_family.config import FamilyConfig
from examples.train_family.corpus import MAX_TOKENS, Source, batches, build_corpus, gsm8k, render
from examples.train_family.dialogue import Dialogue, written
from examples.train_family.evaluate import Family, agreement, losses, right_answers
from examples.train_family.tokenizer import train_tokenizer, word_pieces

SHAPE = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
TINY = {
    "vocab_size": 512,
    "corpus_tokens": 300_000,
    "mixture": {"arithmetic": 0.4, "tools": 0.3, "chat": 0.2, "prose": 0.1},
    "target": {"hidden_size": 64, "num_hidden_layers": 2, **SHAPE},
    "drafters": {
        "middle": {"hidden_size": 32, "num_hidden_layers": 1, **SHAPE},
        "draft": {"hidden_size": 32, "num_hidden_layers": 1, **SHAPE},
    },
    "train": {"tokens": 20_000, "batch_tokens": 2048, "micro_tokens": 1024},
    "distil": {"tokens": 8_000, "batch_tokens": 2048, "micro_tokens": 1024},
}
CONFIG = FamilyConfig.model_validate(TINY)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Tom has 3 apples.", '{"name": "pay"}'], 400)


@pytest.fixture(scope="module")
def corpus(tokenizer):
    return build_corpus(CONFIG, tokenizer)


def test_answers_and_nothing_else_are_learnt(tokenizer, corpus):
    drawn = Source(CONFIG, random.Random(f"{CONFIG.seed} 0"), word_pieces(tokenizer)).documents()
    documents = (d for d in drawn if len(tokenizer(render(d, tokenizer)).input_ids) <= MAX_TOKENS + 1)
    for index in range(200):
        document = next(documents)
        span = slice(corpus.starts[index], corpus.starts[index + 1])
        tokens, learnt = corpus.tokens[span], corpus.learnt[span]
        assert tokenizer.decode(tokens.tolist()) == render(document, tokenizer)
        if isinstance(document, Dialogue):
            said = "".join(written(m) + "<|end|>" for m in document.messages if m["role"] == "assistant")
            assert tokenizer.decode(tokens[learnt].tolist()) == said
        else:
            assert learnt.all()


def test_parts_are_the_same_from_any_number_of_processes(tokenizer, corpus, monkeypatch):
    """Parts have seeds of their own, and stand in order."""
    monkeypatch.setattr("examples.train_family.corpus.PART", len(corpus.tokens))
    first = len(corpus.tokens)
    both = build_corpus(CONFIG.model_copy(update={"corpus_tokens": first + 5_000}), tokenizer)
    assert len(both.tokens) >= first + 5_000
    assert both.starts[-1] == len(both.tokens) == len(both.learnt)
    assert np.array_equal(both.tokens[:first], corpus.tokens)
    assert np.array_equal(both.starts[: len(corpus) + 1], corpus.starts)
    assert not np.array_equal(both.tokens[first : first + 1_000], corpus.tokens[:1_000])


def test_a_run_ends_when_its_time_is_over(tmp_path, monkeypatch):
    """The rates have come down by then, and a run that is over is not taken up again."""
    clock = itertools.count()
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: 0.05 * next(clock)))
    short = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"tokens": 10**9, "seconds": 2.0})})
    Build(short, tmp_path).run()
    state = torch.load(tmp_path / "target.pt", weights_only=True)
    assert state["done"]["step"] == 40
    rates = [group["lr"] for optimizer in state["learners"][0]["optimizers"] for group in optimizer["param_groups"]]
    assert max(rates) < 0.1 * short.train.muon_lr
    Build(short, tmp_path).run()
    assert torch.load(tmp_path / "target.pt", weights_only=True)["done"] == state["done"]


def test_every_document_comes_once_in_each_pass(tokenizer, corpus):
    stream = batches(corpus, 2048, tokenizer.pad_token_id, seed=1)
    seen, rows = 0, 0
    while rows < len(corpus):
        batch = next(stream)
        rows += len(batch.tokens)
        seen += int(batch.real.sum())
        assert not (batch.learnt & ~batch.real).any()
    assert (rows, seen) == (len(corpus), len(corpus.tokens))


def test_a_seed_decides_the_order(tokenizer, corpus):
    def beginning(seed):
        return [b.tokens for b in itertools.islice(batches(corpus, 2048, tokenizer.pad_token_id, seed), 20)]

    assert all(np.array_equal(a, b) for a, b in zip(beginning(1), beginning(1), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(beginning(1), beginning(2), strict=True))


def test_an_interrupted_build_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SAVE_SECONDS", 0.0)
    Build(CONFIG, tmp_path / "whole").run()

    class Stop(Exception):
        pass

    predicting = training.predicting

    def stopping(learner):
        inner, calls = predicting(learner), itertools.count()

        def losses(portion):
            if next(calls) == 9:
                raise Stop
            return inner(portion)

        return losses

    monkeypatch.setattr("examples.train_family.build.predicting", stopping)
    with pytest.raises(Stop):
        Build(CONFIG, tmp_path / "stopped").run()
    monkeypatch.setattr("examples.train_family.build.predicting", predicting)
    Build(CONFIG, tmp_path / "stopped").run()
    for name in ("target", "drafters"):
        states = [torch.load(tmp_path / kind / f"{name}.pt", weights_only=True) for kind in ("whole", "stopped")]
        assert all(states[0]["done"][count] == states[1]["done"][count] for count in ("step", "micro", "tokens"))
        for one, other in zip(*(state["learners"] for state in states), strict=True):
            assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])

    further = CONFIG.model_copy(update={"seed": 3, "begin_with": tmp_path / "whole" / "family"})
    Build(further, tmp_path / "further").run()
    notes = [json.loads((tmp_path / kind / "training.json").read_text()) for kind in ("whole", "further")]
    assert notes[1]["target"]["training_loss"] < notes[0]["target"]["training_loss"]

    with pytest.raises(ValueError, match="another configuration"):
        Build(CONFIG.model_copy(update={"seed": 2}), tmp_path / "whole")
    family = Family.of(tmp_path / "whole" / "family")
    results = {"right": right_answers(family, 4), "nats_per_byte": losses(family, 2), "agreement": agreement(family, 2)}
    assert set(results["right"]) >= {"arithmetic", "stories"}
    assert all(value > 0 for row in results["nats_per_byte"].values() for value in row.values())
    assert {row["temperature"] for row in results["agreement"]["chat"]} == {0.0, 1.0}
    write_cards(tmp_path / "whole" / "family", [tmp_path / "further", tmp_path / "whole"], results)
    assert (tmp_path / "whole" / "family" / "target" / "README.md").read_text().count(" M tokens, ") == 2
    assert "| arithmetic |" in (tmp_path / "whole" / "family" / "draft" / "README.md").read_text()
    assert "draft → target" in (tmp_path / "whole" / "family" / "README.md").read_text()


def test_a_target_keeps_a_share_of_what_it_began_with(tmp_path):
    """The finished target lies between the weights begun with and the trained ones; drafters learn from that one."""
    Build(CONFIG, tmp_path / "first").run()
    further = CONFIG.model_copy(update={"seed": 3, "begin_with": tmp_path / "first" / "family"})
    Build(further, tmp_path / "trained").run()
    Build(further.model_copy(update={"kept": 0.25}), tmp_path / "between").run()
    first, trained, between = (
        LlamaForCausalLM.from_pretrained(tmp_path / kind / "family" / "target", dtype=torch.float32).state_dict()
        for kind in ("first", "trained", "between")
    )
    expected = {name: 0.25 * first[name] + 0.75 * trained[name] for name in first}

    def distance(one, other):
        return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5

    assert distance(between, expected) < 0.1 * distance(between, trained)  # weights are stored in float16
    drafts = [
        (tmp_path / kind / "family" / "draft" / "model.safetensors").read_bytes() for kind in ("trained", "between")
    ]
    assert drafts[0] != drafts[1]


def test_what_is_kept_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="--begin-with"):
        Build(CONFIG.model_copy(update={"kept": 0.25}), tmp_path)


def test_training_lowers_the_loss(tmp_path):
    longer = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"tokens": 120_000})})
    Build(longer, tmp_path).run()
    assert json.loads((tmp_path / "training.json").read_text())["target"]["training_loss"] < 0.8 * np.log(512)


def test_gsm8k_is_read_without_its_marks(tmp_path):
    row = {"question": "How many?", "answer": "2 * 3 = <<2*3=6>>6\n#### 6"}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row))
    (dialogue,) = gsm8k(path)
    assert dialogue.answer == "2 * 3 = 6\nThe answer is 6"
    assert dialogue.accepts("So it is 6.")
    assert not dialogue.accepts("So it is 7.")


def test_an_unknown_source_is_named():
    with pytest.raises(ValueError, match="juggling"):
        Source(CONFIG.model_copy(update={"mixture": {"juggling": 1.0}}), random.Random(0))
