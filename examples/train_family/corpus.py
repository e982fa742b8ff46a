"""Documents as tokens: generated from a seed, rendered by the chat template, with the positions that are worth learning."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from examples.train_family import prose
from examples.train_family.config import FamilyConfig
from examples.train_family.dialogue import Dialogue, assistant, number_is, user
from examples.train_family.skills import SKILLS
from examples.train_family.tokenizer import END, word_pieces
from examples.train_family.words import Words

MAX_TOKENS = 1024
"""Longer documents are left out."""
PART = 2_000_000
"""Tokens of a corpus that are made in one go."""
_CHUNK = 500
_LENGTHS = (32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024)
"""Lengths to which the rows of a batch are padded: few shapes, little padding."""
_ANSWER = re.compile(r"<\|assistant\|>\n(.*?<\|end\|>)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Corpus:
    """All documents end to end; document i is `tokens[starts[i]:starts[i + 1]]`."""

    tokens: NDArray[np.uint16]
    learnt: NDArray[np.bool_]
    """Whether a position belongs to an answer."""
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def save(self, path: Path) -> None:
        # Written aside and renamed: a build that was stopped here finds the whole or nothing.
        part = path.with_suffix(".part.npz")
        np.savez(part, tokens=self.tokens, learnt=self.learnt, starts=self.starts)
        part.rename(path)

    @classmethod
    def load(cls, path: Path) -> Corpus:
        with np.load(path) as arrays:
            return cls(arrays["tokens"], arrays["learnt"], arrays["starts"])


class Source:
    """Draws documents of the configured mixture."""

    def __init__(self, config: FamilyConfig, rng: random.Random, pieces: Sequence[str] = ()) -> None:
        """`pieces`: see `Words`."""
        self._words = Words(rng, pieces=pieces)
        self._gsm8k = gsm8k(config.gsm8k) if config.gsm8k is not None and config.gsm8k.exists() else []
        shares = {name: share for name, share in config.mixture.items() if name != "gsm8k" or self._gsm8k}
        self._names, self._shares = list(shares), list(shares.values())
        unknown = set(self._names) - set(SKILLS) - {"gsm8k", "prose"}
        if unknown:
            raise ValueError(f"the mixture names {sorted(unknown)}; it may hold {sorted(SKILLS)}, 'gsm8k' and 'prose'")

    def documents(self) -> Iterator[Dialogue | str]:
        """Chats and plain texts without end."""
        rng = self._words.rng
        while True:
            (name,) = rng.choices(self._names, self._shares)
            if name == "prose":
                yield rng.choice(prose.docstrings())
            elif name == "gsm8k":
                yield rng.choice(self._gsm8k)
            else:
                self._words.begin()
                yield SKILLS[name](self._words)


def gsm8k(path: Path) -> list[Dialogue]:
    """The problems of a GSM8K file, without its calculator marks."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        answer = re.sub(r"<<.*?>>", "", row["answer"]).replace("#### ", "The answer is ")
        value = answer.rsplit(" ", 1)[-1].replace(",", "")
        judge = number_is(int(value)) if re.fullmatch(r"-?\d+", value) else None
        found.append(Dialogue([user(row["question"]), assistant(answer)], is_right=judge))
    return found


def render(document: Dialogue | str, tokenizer: PreTrainedTokenizerFast) -> str:
    """The document's text, control tokens spelt out."""
    if isinstance(document, str):
        return f"{tokenizer.bos_token}{document}{END}"
    text: str = tokenizer.apply_chat_template(document.messages, tools=document.tools or None, tokenize=False)
    return text.rstrip("\n")


def build_corpus(config: FamilyConfig, tokenizer: PreTrainedTokenizerFast) -> Corpus:
    """The configured corpus, made in parts of PART tokens, each from a seed of its own, by all the machine's cores."""
    sizes = [min(PART, config.corpus_tokens - done) for done in range(0, config.corpus_tokens, PART)]
    parts = []
    with tqdm(total=config.corpus_tokens, unit="token", unit_scale=True, desc="corpus") as bar:
        for part in _parts(config, tokenizer, sizes):
            parts.append(part)
            bar.update(len(part.tokens))
    return joined(parts)


def _parts(config: FamilyConfig, tokenizer: PreTrainedTokenizerFast, sizes: Sequence[int]) -> Iterator[Corpus]:
    made = partial(_part, config, tokenizer)
    workers = min(len(sizes), _cores())
    if workers == 1:
        yield from map(made, range(len(sizes)), sizes)
        return
    # Processes that start afresh: what was forked from threads of torch or of the tokenizer might wait for ever.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_alone) as pool:
        yield from pool.map(made, range(len(sizes)), sizes)


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _alone() -> None:
    """One thread for each process's tokenizer."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _part(config: FamilyConfig, tokenizer: PreTrainedTokenizerFast, number: int, size: int) -> Corpus:
    """Part `number`, of about `size` tokens."""
    documents = Source(config, random.Random(f"{config.seed} {number}"), word_pieces(tokenizer)).documents()
    ids: list[NDArray[np.uint16]] = []
    marks: list[NDArray[np.bool_]] = []
    made = 0
    while made < size:
        texts = [render(next(documents), tokenizer) for _ in range(_CHUNK)]
        for text, encoded in zip(
            texts, tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False), strict=True
        ):
            if len(encoded.ids) <= MAX_TOKENS and made < size:
                ids.append(np.array(encoded.ids, dtype=np.uint16))
                marks.append(_learnt(text, encoded.offsets))
                made += len(encoded.ids)
    starts = np.concatenate([[0], np.cumsum([len(document) for document in ids])])
    return Corpus(np.concatenate(ids), np.concatenate(marks), starts)


def joined(parts: Sequence[Corpus]) -> Corpus:
    """The documents of all parts, in order."""
    ends = np.cumsum([0, *(len(part.tokens) for part in parts)])
    starts = [part.starts[:-1] + begin for part, begin in zip(parts, ends[:-1], strict=True)]
    return Corpus(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.learnt for part in parts]),
        np.concatenate([*starts, ends[-1:]]),
    )


def _learnt(text: str, offsets: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which tokens a model should learn to say: the answers of a chat with their end, all of a plain text."""
    begins = np.array([begin for begin, _ in offsets])
    answers = [match.span(1) for match in _ANSWER.finditer(text)] or [(0, len(text))]
    marked = np.zeros(len(offsets), dtype=np.bool_)
    for begin, end in answers:
        marked |= (begins >= begin) & (begins < end)
    return marked


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of documents, padded: `tokens` int64 [rows, length], `learnt` and `real` bool of the same shape."""

    tokens: NDArray[np.int64]
    learnt: NDArray[np.bool_]
    real: NDArray[np.bool_]


def batches(corpus: Corpus, micro_tokens: int, pad: int, seed: int) -> Iterator[Batch]:
    """Micro-batches of about `micro_tokens` positions for ever, in an order that only `seed` decides.

    Each holds documents of nearly one length, so that hardly anything is padding and attention stays within a document.
    """
    rng = np.random.default_rng(seed)
    lengths = np.diff(corpus.starts)
    bucket = np.searchsorted(_LENGTHS, lengths)
    while True:
        groups: list[NDArray[np.int64]] = []
        for index, length in enumerate(_LENGTHS):
            members = rng.permutation(np.flatnonzero(bucket == index))
            rows = max(1, micro_tokens // length)
            groups += [members[i : i + rows] for i in range(0, len(members), rows)]
        for group in rng.permutation(len(groups)):
            yield _padded(corpus, groups[group], pad)


def _padded(corpus: Corpus, members: NDArray[np.int64], pad: int) -> Batch:
    lengths = np.diff(corpus.starts)[members]
    # To the bucket's own length: kernels are made per shape, and the shapes are few.
    shape = (len(members), _LENGTHS[int(np.searchsorted(_LENGTHS, lengths.max()))])
    tokens, learnt = np.full(shape, pad, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for row, member in enumerate(members):
        span = slice(corpus.starts[member], corpus.starts[member + 1])
        tokens[row, : lengths[row]] = corpus.tokens[span]
        learnt[row, : lengths[row]] = corpus.learnt[span]
    return Batch(tokens, learnt, np.arange(shape[1]) < lengths[:, None])
