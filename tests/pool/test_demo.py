"""The embedded family, from the package's own data."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specrouter_llm.errors import ModelNotFoundError
from specrouter_llm.pool import DEMO_MEMBERS, ModelPool, demo_folder


def test_the_whole_family_is_loaded_by_its_name():
    """`demo` is the target with both drafts, in float32 although stored in 16 bit, with one vocabulary."""
    pool = ModelPool.load("demo", device="cpu", max_batch=2, progress=False)
    assert list(pool.members) == ["demo/target", "demo/middle", "demo/draft"]
    assert [member.num_parameters for member in pool.members.values()] == [15_341_952, 3_262_208, 893_568]
    assert {torch.float32} == {member.model.dtype for member in pool.members.values()}
    assert pool.max_context == pool.target.context_length == 2048
    assert pool.target.eos_token_ids == {pool.tokenizer.convert_tokens_to_ids("<|end|>")}
    assert not any(member.widened for member in pool.members.values())


def test_the_family_writes_text():
    """The target continues a chat with words of its training domains, through the shipped template, and ends."""
    pool = ModelPool.load("demo/target", device="cpu", progress=False)
    assert pool.drafts == ()
    chat = [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many apples does he have?"}]
    ids = pool.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = pool.target.model.generate(**ids, max_new_tokens=60, do_sample=False, pad_token_id=6)[
        0, ids["input_ids"].shape[1] :
    ]
    assert "The answer is" in pool.tokenizer.decode(out)


@pytest.mark.parametrize("member", DEMO_MEMBERS)
def test_each_folder_is_complete(member):
    """Plain transformers reads a member's folder with nothing else."""
    folder = demo_folder(member)
    assert AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).config.vocab_size == 4096
    assert len(AutoTokenizer.from_pretrained(folder)) == 4096


def test_a_member_that_does_not_exist():
    """The members are listed."""
    with pytest.raises(ModelNotFoundError, match="demo/target, demo/middle, demo/draft"):
        demo_folder("huge")
