"""Model cards: what a member was made from, how, and what it can do, from a build's notes and an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

_HEAD = "---\nlicense: apache-2.0\nlanguage: en\npipeline_tag: text-generation\n---\n"
_DATA = """## Data

Every chat is made by a generator of this repository (`examples/train_family/skills`): word problems solved aloud, questions
about numbered passages, calls of tools that exist only in their prompt, JSON that follows a schema, words as JSON, texts to
edit, chats of several turns, short stories, small Python functions. Passages hold sentences without sense and sentences of
the docstrings of Python's standard library (PSF licence), whose docstrings are also learnt as they are. If GSM8K's training
problems (MIT) were given to the build, they are among the chats. Nothing was taken from a benchmark's test set or from
LangChain's suite.
"""
_LICENCE = "## Licence\n\nMade by this project, Apache-2.0, like the code.\n"


@dataclass(frozen=True, slots=True)
class _Build:
    """What a build left in its folder."""

    config: Mapping[str, Any]
    notes: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, folder: Path) -> _Build:
        texts = ((folder / name).read_text(encoding="utf-8") for name in ("config.json", "training.json"))
        return cls(*(json.loads(text) for text in texts))


def write_cards(family: Path, folders: Sequence[Path], results: Mapping[str, Any]) -> None:
    """Writes README.md beside every member in `family`, and one for the family.

    `folders` are those of its builds, the one it comes from last (their `config.json` and `training.json` are read),
    `results` an evaluation's JSON.
    """
    builds = [_Build.of(folder) for folder in folders]
    for name in builds[-1].notes:
        text = _HEAD + _member(name, builds, results, family / name)
        (family / name / "README.md").write_text(text, encoding="utf-8")
    (family / "README.md").write_text(_HEAD + _family(builds, results, family), encoding="utf-8")


def _run(name: str, build: _Build) -> str:
    """What one build taught a member."""
    run = build.config["train"] if name == "target" else build.config["distil"]
    note = build.notes[name]
    kept = build.config.get("kept", 0.0) if name == "target" else 0.0
    averaged = f" Finished as {1 - kept:g} of that and {kept:g} of the weights before it." if kept else ""
    return (
        f"- {note['tokens'] / 1e6:.1f} M tokens, at least {run['batch_tokens']} positions a step, on "
        f"{build.config['device']}, Muon {run['muon_lr']:g} and AdamW {run['adam_lr']:g}; loss over the last tenth "
        f"{note['training_loss']:.3f} nats per position.{averaged}"
    )


def _member(name: str, builds: Sequence[_Build], results: Mapping[str, Any], folder: Path) -> str:
    config = builds[-1].config
    shape = _shapes(config)[name]
    taught = (
        "the corpus" if name == "target" else "the target's distributions on the corpus (Kullback-Leibler divergence)"
    )
    parameters = builds[-1].notes[name]["parameters"]
    rows = [
        f"# {name}: {parameters / 1e6:.2f} M parameters, {_megabytes(folder):.1f} MB in float16",
        "",
        f"Llama architecture: {_shape(shape)}, heads of 64, tied embeddings, vocabulary {config['vocab_size']}, context 2048 "
        "(documents in training were of at most 1,024 tokens).",
        "A **demonstration** model for tests and examples. Do not rely on its answers.",
        "",
        f"Learnt from {taught}, with float32 weights and bfloat16 products:",
        "",
        *(_run(name, build) for build in builds if name in build.notes),
        "",
        _DATA,
        "## Held-out loss",
        "",
        "Nats per byte of the right answer, in held-out dialogues:",
        "",
        *_table(("skill", "nats per byte"), [(k, f"{v:.3f}") for k, v in results["nats_per_byte"][name].items()]),
        "",
        _LICENCE,
    ]
    return "\n".join(rows)


def _family(builds: Sequence[_Build], results: Mapping[str, Any], family: Path) -> str:
    config, notes = builds[-1].config, builds[-1].notes
    members = [
        (
            f"`{name}`",
            f"{note['parameters'] / 1e6:.2f} M",
            _shape(_shapes(config)[name]),
            f"{_megabytes(family / name):.1f}",
        )
        for name, note in notes.items()
    ]
    right = [
        (skill, f"{100 * row['right'] / row['asked']:.0f} %", str(row["asked"]))
        for skill, row in results["right"].items()
    ]
    rows = [
        "# The embedded demo family",
        "",
        "Small Llama models that share one tokenizer, so that the engine, its demo and its tests work on real weights with "
        "nothing to download.",
        "They are a **demonstration**: they answer short questions of a few kinds and are often wrong elsewhere. "
        "Each folder is complete and has a card of its own.",
        "",
        *_table(("folder", "parameters", "shape", "MB, float16"), members),
        "",
        "- Chat: roles `<|system|> <|user|> <|assistant|> <|tool|>`, begin `<|bos|>`, end `<|end|>`, padding `<|pad|>`; tools "
        "between `<tools>` and `</tools>`, calls between `<tool_call>` and `</tool_call>` (the Hermes form).",
        f"- Made by `python -m examples.train_family build` in {len(builds)} run{'s' * (len(builds) > 1)}; every member's card "
        "says which.",
        "",
        "## Right answers of the target",
        "",
        "Greedy, on held-out dialogues, whose words are kept out of the lists that training draws from "
        "(`python -m examples.train_family evaluate`):",
        "",
        *_table(("skill", "right", "asked"), right),
        "",
        "## How often the members agree",
        "",
        "On the target's own answers to such dialogues. The match is what speculation gets, 1 - TV what rejection sampling "
        "would.",
        "",
        *_table(("skill", "T", "pair", "match", "1 - TV"), _agreement(results["agreement"])),
        "",
        _DATA,
        _LICENCE,
    ]
    return "\n".join(rows)


def _agreement(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            skill,
            f"{row['temperature']:g}",
            f"{row['lower']} → {row['upper']}",
            f"{row['observed_match']['value']:.2f}",
            f"{row['one_minus_tv']['value']:.2f}",
        )
        for skill, rows in found.items()
        for row in rows
    ]


def _shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"target": config["target"], **config["drafters"]}


def _shape(shape: Mapping[str, Any]) -> str:
    heads = f"{shape['num_attention_heads']} heads on {shape['num_key_value_heads']}"
    return f"{shape['num_hidden_layers']} layers x {shape['hidden_size']}, {heads}"


def _megabytes(folder: Path) -> float:
    numbers = 0
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as weights:
            numbers += sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 - not a dict
    return 2 * numbers / 1e6


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ("---",) * len(columns), *rows)]
