"""Finding models, and refusing unsafe ones before anything is loaded."""

import json
import pickle
import runpy
import shutil

import pytest
import torch

from specrouter_llm.config import ModelSpec
from specrouter_llm.errors import ModelLoadError, ModelNotFoundError, UnsafeModelError, UnsupportedModelError
from specrouter_llm.pool import ModelPool


def load(source, drafts=None, **options):
    return ModelPool.load(source, drafts, progress=False, **options)


def test_an_unknown_name_says_where_was_looked(monkeypatch):
    """A name that nothing resolves is reported with the cache and the offline mode, without a chain of hub errors."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError) as caught:
        load("nobody/no-such-model")
    text = str(caught.value)
    assert "'nobody/no-such-model'" in text
    assert "no local folder" in text
    assert "HF_HUB_OFFLINE=1, or local_files_only=True in the model_kwargs of a ModelSpec" in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("source", ["/no/such/folder", "./missing", "a/b/c"])
def test_a_missing_folder_is_reported_as_a_folder(source):
    """What looks like a path is not looked up on the hub."""
    with pytest.raises(ModelNotFoundError, match="there is no folder /"):
        load(source)


def test_a_file_is_not_a_model(tmp_path):
    """A single file (GGUF, for example) is refused with what to pass instead."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match="is a file; pass the folder"):
        load(file)


def test_an_unknown_member_of_the_family():
    """The message lists the members that there are."""
    with pytest.raises(ModelNotFoundError, match="demo/huge; it has demo/target, demo/middle, demo/draft"):
        load("demo/huge")


def test_a_folder_without_config(tmp_path):
    """A folder that holds no model at all is named."""
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        load(tmp_path)


def test_a_folder_without_weights(save_model):
    """A config without weights is not loaded with random ones."""
    folder = save_model("empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"model 'empty': .* has no weights \(no \*\.safetensors file\)"):
        load(folder)


def test_a_missing_shard(save_model):
    """An index that lists a file that is not there is reported before loading."""
    folder = save_model("sharded")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {
        "metadata": {},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"has not all files that model\.safetensors\.index\.json lists"):
        load(folder)


def test_missing_weights_are_not_invented(save_model, edit_json):
    """A checkpoint with one layer less than its config is refused; transformers would fill in random weights."""
    folder = save_model("thin")
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(
        ModelLoadError, match=r"model 'thin': 9 weights are missing from the checkpoint: model\.layers\.2"
    ):
        load(folder)


def test_a_truncated_weight_file(save_model):
    """A cut-off download is reported in one line with the model's name."""
    folder = save_model("cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"model 'cut': loading the weights failed: ") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_broken_json(save_model):
    """A config that is not JSON is named with its path."""
    folder = save_model("broken")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"config\.json cannot be read as JSON"):
        load(folder)


def test_an_unknown_model_type(save_model, edit_json):
    """An architecture that transformers does not know is named."""
    folder = save_model("alien")
    edit_json(folder / "config.json", model_type="alien")
    with pytest.raises(UnsupportedModelError, match="does not know model_type 'alien'"):
        load(folder)


def test_only_pickled_weights(save_model):
    """Pickles are refused with a way to convert them, and are not opened."""
    folder = save_model("pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeModelError) as caught:
        load(folder)
    text = str(caught.value)
    assert "has only pickled weights (pytorch_model.bin)" in text
    assert "save_pretrained(new_folder) writes safetensors" in text


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling_trap.Trap"}}, "auto_map"),
        ({"text_config": {"auto_map": {"AutoConfig": "modeling_trap.Trap"}}}, "text_config.auto_map"),
        ({"parts": [{"auto_map": {"AutoConfig": "modeling_trap.Trap"}}]}, "parts[0].auto_map"),
        ({"vision": {"trust_remote_code": True}}, "vision.trust_remote_code"),
        ({"_attn_implementation": "somebody/kernel"}, "_attn_implementation"),
        ({"transformers_weights": "adapter_model.bin"}, "transformers_weights"),
    ],
)
def test_remote_code_in_the_config(save_model, edit_json, changes, path):
    """Every way to ask for foreign code or pickles from config.json is refused, at any depth, naming the key."""
    folder = save_model("remote")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(UnsafeModelError) as caught:
        load(folder)
    assert f"config.json has {path!r}, which " in str(caught.value)


def test_remote_code_in_the_tokenizer_config(save_model, edit_json):
    """A tokenizer that comes with code is refused too."""
    folder = save_model("remote")
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["trap.Tokenizer", None]})
    with pytest.raises(UnsafeModelError, match=r"tokenizer_config\.json has 'auto_map', which names Python code"):
        load(folder)


def test_a_booby_trapped_folder_is_never_imported(save_model, edit_json, tmp_path, monkeypatch):
    """Python files and pickles that would leave a marker when run leave none, in whatever way the folder is used."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = save_model("trap")
    marker = tmp_path / "marker"
    trap = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    for name in ("modeling_trap.py", "configuration_trap.py", "tokenization_trap.py", "__init__.py"):
        (folder / name).write_text(trap)
    classes = {"AutoConfig": "configuration_trap.Trap", "AutoModelForCausalLM": "modeling_trap.Trap"}
    edit_json(folder / "config.json", auto_map=classes, model_type="trap")
    with pytest.raises(UnsafeModelError):
        load(folder)
    with pytest.raises(UnsafeModelError):
        load(ModelSpec(folder, model_kwargs={"trust_remote_code": True}))
    edit_json(folder / "config.json", auto_map=None, model_type="llama")
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_trap.Trap", None]})
    with pytest.raises(UnsafeModelError):
        load(folder)
    edit_json(folder / "tokenizer_config.json", auto_map=None)
    (folder / "pytorch_model.bin").write_bytes(f"cos\nmkdir\n(S{str(marker)!r}\ntR.".encode())
    load(folder).close()
    assert not marker.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert marker.is_dir()  # the trap was armed
    marker.rmdir()
    runpy.run_path(str(folder / "modeling_trap.py"))
    assert marker.exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [({"trust_remote_code": True}, "trust_remote_code"), ({"use_safetensors": False}, "use_safetensors")],
)
def test_protections_cannot_be_switched_off(save_model, options, word):
    """`model_kwargs` do not get around the refusals."""
    with pytest.raises(UnsafeModelError, match=f"{word}=.* is refused"):
        load(ModelSpec(save_model("plain"), model_kwargs=options))


def test_an_adapter_is_refused(save_model):
    """An adapter folder would pull in its base model unchecked."""
    folder = save_model("adapter")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="holds an adapter"):
        load(folder)


def test_a_name_in_the_local_cache_is_loaded(save_model, tmp_path, make_tokenizer):
    """A hub name resolves through the Hugging Face cache with the ordinary layout, tokenizer included."""
    folder = save_model("plain")
    repository = tmp_path / "hub" / "models--owner--tiny"
    commit = "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    options = {"cache_dir": str(tmp_path / "hub"), "local_files_only": True}
    pool = load(ModelSpec("owner/tiny", model_kwargs=options))
    assert pool.target.name == "tiny"
    assert pool.tokenizer.get_vocab() == make_tokenizer().get_vocab()
    expected = load(folder).target.model
    ids = torch.arange(8)[None]
    assert torch.equal(expected(ids).logits, pool.target.model(ids).logits)


def test_a_folder_without_tokenizer_is_legal(save_model):
    """An engine can work on token ids alone."""
    pool = load(save_model("bare", tokenizer=None))
    assert pool.tokenizer is None
    assert pool.target.eos_token_ids == {2}
