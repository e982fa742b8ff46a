"""The generators: right answers are accepted, wrong ones are not, and evaluation sees other words than training."""

from __future__ import annotations

import itertools
import random

import pytest

from examples.train_family import prose
from examples.train_family.dialogue import calling, calls_equal, json_is, last_number
from examples.train_family.skills import SKILLS
from examples.train_family.tokenizer import CHAT_TEMPLATE, train_tokenizer
from examples.train_family.words import Words

EVERY_SKILL = pytest.mark.parametrize("skill", sorted(SKILLS))
DRAWS = ("name", "place", "things", "thing", "animal", "job", "verb", "object", "quality")


def dialogues(skill, count, *, held_out=False, seed=0):
    words = Words(random.Random(seed), held_out=held_out)
    return [SKILLS[skill](words) for _ in range(count)]


@EVERY_SKILL
@pytest.mark.parametrize("held_out", [False, True])
def test_the_own_answer_is_right(skill, held_out):
    for dialogue in dialogues(skill, 300, held_out=held_out):
        assert dialogue.accepts(dialogue.answer), dialogue


@EVERY_SKILL
def test_the_answer_to_another_question_is_seldom_right(skill):
    several = dialogues(skill, 400)
    wrongly = sum(one.accepts(other.answer) for one, other in itertools.pairwise(several))
    # A story without a subject is any story, some greetings and receipts are alike, and sums may agree.
    assert wrongly < (320 if skill == "stories" else 60)


@EVERY_SKILL
def test_an_empty_answer_is_wrong(skill):
    assert not any(dialogue.accepts("") for dialogue in dialogues(skill, 50))


@EVERY_SKILL
def test_a_seed_decides_everything(skill):
    assert dialogues(skill, 20, seed=3)[-1].messages == dialogues(skill, 20, seed=3)[-1].messages


def drawn(words, count):
    """Words of every kind, by kind, in lower case."""
    return {draw: {getattr(words, draw)().lower() for _ in range(count)} for draw in (*DRAWS, "invented")}


def test_evaluation_sees_other_words():
    """A word that one list keeps for evaluation is not drawn from another one either."""
    trained = drawn(Words(random.Random(1), pieces=["qu", "zor"]), 3000)
    evaluated = drawn(Words(random.Random(2), held_out=True), 500)
    del evaluated["invented"]
    assert not set.union(*trained.values()) & set.union(*evaluated.values())
    assert all(len(words) >= 4 for words in evaluated.values())


def test_pieces_spell_no_word_of_the_evaluation():
    held_out = Words(random.Random(0), held_out=True)
    kept = {held_out.verb() for _ in range(500)}
    words = Words(random.Random(1), pieces=[*sorted(kept), "qu", "zor"])
    drawn = {words.verb() for _ in range(4000)}
    assert not drawn & kept
    assert {"quzor", "ququ"} & drawn, "pieces are used"
    assert any(word.startswith(name) for word in drawn for name in kept), "tokens of kept words are met, in other words"


def test_words_of_a_document_may_be_few():
    """In about half of the documents names come from a handful; which ones differs."""
    words = Words(random.Random(4), pieces=["qu", "zor", "pli"])
    narrow = []
    for _ in range(200):
        words.begin()
        names = {words.name() for _ in range(60)}
        if len(names) <= 8:
            narrow.append(frozenset(names))
    assert 60 < len(narrow) < 140
    assert len(set(narrow)) == len(narrow)


def test_prose_is_split_too():
    assert len(prose.sentences()) > 1000
    trained, evaluated = (Words(random.Random(int(held_out)), held_out=held_out) for held_out in (False, True))
    assert not {trained.sentence() for _ in range(2000)} & {evaluated.sentence() for _ in range(300)}


@EVERY_SKILL
def test_nothing_of_the_langchain_suite_is_in_the_data(skill):
    """Its tools and questions, so that passing it says something."""
    theirs = (
        "magic_function",
        "magic function",
        "get_weather",
        "weather",
        "你好啊集团",
        "customer_name",
        "joke",
        "San Francisco",
    )
    for dialogue in dialogues(skill, 500):
        text = f"{dialogue.messages} {dialogue.tools}"
        assert not any(word in text for word in theirs)


def test_a_call_is_judged_by_name_and_arguments():
    judge = calls_equal(calling(("pay", {"n": 3})))
    assert judge('<tool_call>\n{"name": "pay", "arguments": {"n": 3}}\n</tool_call>')
    for wrong in (
        '<tool_call>\n{"name": "pay", "arguments": {"n": 4}}\n</tool_call>',
        '<tool_call>\n{"name": "pays", "arguments": {"n": 3}}\n</tool_call>',
        '<tool_call>\n{"name": "pay", "arguments": {"n": 3}\n</tool_call>',
        '<tool_call>\n{"name": "pay", "arguments": {"n": 3}}\n</tool_call>\n<tool_call>\n{}\n</tool_call>',
        "pay 3",
    ):
        assert not judge(wrong)


def test_numbers_and_json():
    assert last_number("6 x 7 = 42.\nThe answer is 1,042") == "1042"
    assert last_number("none") is None
    assert json_is({"a": 1})('{"a":1}')
    assert not json_is({"a": 1})("{'a': 1}")


@EVERY_SKILL
def test_a_prompt_is_the_beginning_of_its_dialogue(skill):
    """What the engine is asked with is what training saw before the answer."""
    tokenizer = train_tokenizer([], 320)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    for dialogue in dialogues(skill, 50):
        tools = dialogue.tools or None
        whole = tokenizer.apply_chat_template(dialogue.messages, tools=tools, tokenize=False)
        prompt = tokenizer.apply_chat_template(dialogue.prompt, tools=tools, tokenize=False, add_generation_prompt=True)
        assert whole == f"{prompt}{dialogue.answer}<|end|>\n"


def test_a_text_without_a_word_to_replace_is_repeated(monkeypatch):
    monkeypatch.setattr(Words, "sentence", lambda self: "(a, b).")
    monkeypatch.setattr("examples.train_family.skills.editing._text", lambda words: words.sentence())
    assert {dialogue.answer for dialogue in dialogues("editing", 20)} == {"(a, b)."}
