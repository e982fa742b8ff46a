"""What a family can do: right answers per skill, loss per domain, and how often its members agree."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.train_family.dialogue import Dialogue
from examples.train_family.skills import SKILLS
from examples.train_family.words import Words
from specrouter_llm import SamplingParams, SpecRouter
from specrouter_llm.bench.match import measure
from specrouter_llm.bench.models import Models
from specrouter_llm.chat import ChatRequest, submit

MAX_TOKENS = 200
_SEED = 90_001
"""Far from every seed of a corpus; the words of held-out dialogues are others anyway."""


def held_out(skill: str, count: int) -> list[Dialogue]:
    """`count` dialogues of one skill, from words that training never saw."""
    words = Words(random.Random(f"{_SEED} {skill}"), held_out=True)
    return [SKILLS[skill](words) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Family:
    """Folders of a target and its drafters."""

    target: Path
    drafters: Sequence[Path]

    @classmethod
    def of(cls, folder: Path) -> Family:
        """The family in `folder`, members in subfolders `target`, `middle` and `draft`."""
        return cls(folder / "target", [folder / "middle", folder / "draft"])

    @property
    def members(self) -> list[Path]:
        return [self.target, *self.drafters]


def prompt_ids(tokenizer: Any, dialogue: Dialogue) -> list[int]:
    """The prompt through the family's own chat template."""
    text = tokenizer.apply_chat_template(
        dialogue.prompt, tools=dialogue.tools or None, tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def right_answers(family: Family, count: int) -> dict[str, dict[str, Any]]:
    """Per skill: how many of `count` greedy answers are right, and one wrong one; tool dialogues by what they end with.

    Tool dialogues are asked twice: as plain text, and as a chat, in which a call that has begun is held to the tools' names and
    schemas, as it is for whoever uses tools through this package.
    """
    tokenizer = AutoTokenizer.from_pretrained(family.target)
    found: dict[str, dict[str, Any]] = {}
    with SpecRouter.from_pretrained(
        str(family.target), policy="off", progress=False, max_batch=8, max_queue=count
    ) as engine:
        for skill in tqdm(SKILLS, desc="answers"):
            dialogues = held_out(skill, count)
            prompts = [prompt_ids(tokenizer, dialogue) for dialogue in dialogues]
            texts = [answer.text for answer in engine.generate(prompts, max_tokens=MAX_TOKENS)]
            _judge(found, skill, dialogues, texts)
            if skill == "tools":
                _judge(found, skill, dialogues, _chatted(engine, dialogues), " (chat)")
    return found


def _judge(
    found: dict[str, dict[str, Any]], skill: str, dialogues: Sequence[Dialogue], texts: Sequence[str], how: str = ""
) -> None:
    """Counts the right ones among the answers."""
    for dialogue, text in zip(dialogues, texts, strict=True):
        row = found.setdefault(_kind(skill, dialogue) + how, {"asked": 0, "right": 0})
        row["asked"] += 1
        if dialogue.accepts(text):
            row["right"] += 1
        else:
            row.setdefault("wrong", {"wanted": dialogue.answer, "said": text})


def _chatted(engine: SpecRouter, dialogues: Sequence[Dialogue]) -> list[str]:
    """Answers through the chat interface, as the model spells them."""
    handles = [
        submit(
            engine,
            ChatRequest(
                messages=dialogue.prompt,
                tools=[{"type": "function", "function": tool} for tool in dialogue.tools],
                params=SamplingParams(max_tokens=MAX_TOKENS),
            ),
        )
        for dialogue in dialogues
    ]
    return [handle.result()[0].completion.text for handle in handles]


def _kind(skill: str, dialogue: Dialogue) -> str:
    if skill != "tools":
        return skill
    if "tool_calls" in dialogue.messages[-1]:
        return "tools: a call"
    return "tools: a result" if dialogue.prompt[-1]["role"] == "tool" else "tools: no call"


def losses(family: Family, count: int) -> dict[str, dict[str, float]]:
    """Per member and skill: nats per byte of the right answer, which vocabularies of other sizes share."""
    found: dict[str, dict[str, float]] = {}
    for folder in family.members:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        found[folder.name] = {skill: _loss(model, tokenizer, held_out(skill, count)) for skill in SKILLS}
    return found


def _loss(model: Any, tokenizer: Any, dialogues: Sequence[Dialogue]) -> float:
    nats, size = 0.0, 0
    for dialogue in dialogues:
        prompt = prompt_ids(tokenizer, dialogue)
        answer = [*tokenizer(dialogue.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        nats += torch.nn.functional.cross_entropy(logits.float(), torch.tensor(answer), reduction="sum").item()
        size += len(dialogue.answer.encode())
    return nats / size


def agreement(family: Family, count: int) -> dict[str, list[dict[str, Any]]]:
    """Per skill: rows of `specrouter bench match` on the target's own answers, greedy and at T = 1."""
    models = Models(str(family.target), [str(folder) for folder in family.drafters])
    tokenizer = AutoTokenizer.from_pretrained(family.target)
    found = {}
    for skill in tqdm(SKILLS, desc="agreement"):
        prompts = [prompt_ids(tokenizer, dialogue) for dialogue in held_out(skill, count)]
        found[skill] = measure(models, prompts, temperatures=(0.0, 1.0), max_tokens=64)
    return found
