"""Workloads: published file formats, categories, built-in prompts, and clear errors."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrouter_llm.bench.models import encode
from specrouter_llm.bench.texts import PROMPTS
from specrouter_llm.bench.workloads import built_in_prompts, in_turn, read_prompts, workload
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.testing import fake_engine
from specrouter_llm.text.tokenizer import Tokenizer

FORMATS = {
    "gsm8k.jsonl": ('{"question": "How many eggs?", "answer": "9"}\n', ["How many eggs?"]),
    "humaneval.jsonl": ('{"task_id": "H/0", "prompt": "def f():\\n    ", "entry_point": "f"}\n', ["def f():\n    "]),
    "mt_bench.jsonl": (
        '{"question_id": 81, "category": "writing", "turns": ["Write a post.", "Now shorter."]}\n',
        ["Write a post."],
    ),
    "mgsm_de.tsv": ("Wie viele Eier?\t9\nWie viele Tage?\t12\n", ["Wie viele Eier?", "Wie viele Tage?"]),
    "lines.txt": ("One prompt\n\nAnother prompt\n", ["One prompt", "Another prompt"]),
    "plain.jsonl": ('{"text": "line\\u2028separator"}\n{"prompt": "x"}\n', ["line\u2028separator", "x"]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_published_formats(tmp_path, name):
    """Each data set's own file gives its prompts, in order."""
    content, prompts = FORMATS[name]
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert prompts == read_prompts(path, 10)
    assert prompts[:1] == read_prompts(path, 1)


def test_a_category_of_spec_bench(tmp_path):
    """FILE#CATEGORY keeps one category; the workload is named after both."""
    path = tmp_path / "question.jsonl"
    records = [{"question_id": i, "category": c, "turns": [f"{c} {i}"]} for i, c in enumerate(["qa", "rag", "qa"])]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    chosen = workload(f"{path}#qa", 8)
    assert ("question#qa", ("qa 0", "qa 2"), 0.0) == (chosen.name, chosen.prompts, chosen.temperature)
    assert ("question", 3) == (workload(str(path), 8).name, len(workload(str(path), 8).prompts))
    with pytest.raises(InvalidParameterError, match="holds no prompts"):
        read_prompts(f"{path}#poetry", 8)


def test_a_file_name_may_hold_the_sign_of_a_category(tmp_path):
    path = tmp_path / "c#.txt"
    path.write_text("What is a delegate?", encoding="utf-8")
    assert ["What is a delegate?"] == read_prompts(path, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [("not json", "is not JSON"), ('["a"]', "is not a JSON object"), ('{"answer": "9"}', "has none of the fields")],
)
def test_unusable_lines_are_named(tmp_path, content, words):
    path = tmp_path / "broken.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidParameterError, match=words):
        read_prompts(path, 1)


def test_an_unknown_workload_names_the_known_ones():
    with pytest.raises(InvalidParameterError, match="no prompt file poems; built-in workloads: cot, code, rag"):
        workload("poems", 1)


def test_built_in_workloads():
    """Each has prompts without repetition; stories are sampled; the mixture begins with one of each."""
    for name, prompts in PROMPTS.items():
        assert len(set(map(str, prompts))) == len(prompts) >= 8, name
        assert tuple(prompts[:3]) == workload(name, 3).prompts
    assert (1.0, 0.0) == (workload("stories", 1).temperature, workload("cot", 1).temperature)
    assert (0.5, 7) == (lambda w: (w.temperature, w.max_tokens))(workload("cot", 1, temperature=0.5, max_tokens=7))
    assert [prompts[0] for prompts in PROMPTS.values()] == built_in_prompts(len(PROMPTS))


def test_an_edit_asks_for_a_word_that_its_text_has():
    for (message,) in PROMPTS["editing"]:
        instruction, passage = message["content"].split("\n")
        old, new = re.fullmatch("Rewrite the text with (.+) replaced by (.+):", instruction).groups()
        assert re.search(rf"\b{old}\b", passage)
        assert new not in passage


def test_a_quotation_is_longer_than_its_answer(models):
    """A chat with instructions and three passages; every one of them has more tokens than an answer by default."""
    pool = models.pool()
    tokenizer = Tokenizer(pool.tokenizer)
    pool.close()
    for system, user in PROMPTS["rag"]:
        assert ["system", "user"] == [system["role"], user["role"]]
        passages = re.findall(r"^\[\d\] (.+)$", user["content"], re.MULTILINE)
        assert 3 == len(set(passages))
        assert re.search("Question: Quote the (first|second|third) passage.$", user["content"])
        for passage in passages:
            assert workload("rag", 1).max_tokens <= len(tokenizer.encode(passage)) <= 120


def test_a_chat_is_rendered_by_the_template_and_else_read_as_text(models):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    with fake_engine() as engine:
        asked = []
        engine.encode = lambda prompt: asked.append(prompt) or [1]
        encode(engine, chat)
        encode(engine, "Why?")
        assert ["Be brief.\n\nWhy?", "Why?"] == asked
    with models.engine() as engine:
        assert engine.encode(chat) == encode(engine, chat)
        assert engine.encode([{"role": "user", "content": "Why?"}]) == encode(engine, "Why?")
        assert engine.encode("Why?") == encode(engine, "Why?", raw=True)


@given(st.lists(st.lists(st.integers())))
def test_taking_turns_loses_nothing(lists):
    """Everything once, each list's own order kept, and never two more of one than of another that goes on."""
    tagged = [[(i, j) for j in range(len(each))] for i, each in enumerate(lists)]
    mixed = in_turn(tagged)
    assert sorted(mixed) == [item for each in tagged for item in each]
    assert [j for _, j in mixed] == sorted(j for _, j in mixed)
