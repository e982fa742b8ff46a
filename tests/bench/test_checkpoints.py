"""Families on disk: what is written is what was loaded, as far as its dtype can hold it."""

import pytest
import torch
from typer.testing import CliRunner

from specrouter_llm import SpecRouter
from specrouter_llm.bench.checkpoints import write_checkpoints
from specrouter_llm.bench.models import Models
from specrouter_llm.cli.app import app

IDS = [3, 17, 99, 5]


@pytest.mark.parametrize(("stored", "same"), [("float16", True), ("bfloat16", False)])
def test_a_family_is_loaded_again(stored, same, tmp_path):
    """The embedded family is stored in float16, so that loses nothing; it chats, and drafts, as before."""
    seen = []
    target, *drafts = write_checkpoints(Models.of("demo"), tmp_path, stored, advance=seen.append)
    assert ["target", "middle", "draft"] == [path.name for path in (target, *drafts)] == seen
    with SpecRouter.from_pretrained("demo", policy="off", progress=False) as demo:
        prompt = demo.encode([{"role": "user", "content": "What is 3 plus 4?"}])
        logits = demo.target_logits(IDS)
    with SpecRouter.from_pretrained(target, drafts, policy="off", progress=False) as engine:
        assert prompt == engine.encode([{"role": "user", "content": "What is 3 plus 4?"}])
        assert same == torch.equal(logits, engine.target_logits(IDS))
        assert torch.allclose(logits, engine.target_logits(IDS), atol=1.0)
        plain, drafted = (engine.generate([prompt], max_tokens=12, chain=chain)[0] for chain in (["target"], ["draft"]))
        assert plain.token_ids == drafted.token_ids
        assert drafted.stats.num_accepted_draft_tokens


def test_a_widened_model_says_so(tmp_path):
    """In its name, which is its label in reports."""
    (path,) = write_checkpoints(Models.of("demo/draft", [], widen="2M"), tmp_path, "bfloat16")
    assert path.name == "draft-widened"


def test_an_unknown_dtype_is_refused_before_anything_is_loaded(tmp_path):
    found = CliRunner().invoke(app, ["bench", "checkpoints", str(tmp_path), "--stored", "int8"])
    assert found.exit_code != 0
    assert not list(tmp_path.iterdir())
