"""Refusals that come before anything is loaded: code from a model's repository, pickled weights.

`from_pretrained` is called with `trust_remote_code=False` and `use_safetensors=True` as well. The checks here are a second,
independent line: flags nested in a configuration have defeated that default before (CVE-2026-4372, CVE-2026-5241).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specrouter_llm.errors import UnsafeModelError, UnsupportedModelError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_KERNEL_KEYS = ("attn_implementation", "experts_implementation")
_CONVERT = (
    "Convert it once, in an environment whose loss you can bear: "
    "AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False).save_pretrained(new_folder) writes safetensors"
)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse loading options that switch a protection off. Raises UnsafeModelError."""
    if options.get("trust_remote_code"):
        raise UnsafeModelError(
            f"model {name!r}: trust_remote_code=True is refused; code from a repository is never run"
        )
    if options.get("use_safetensors") is False:
        raise UnsafeModelError(
            f"model {name!r}: use_safetensors=False is refused; pickled weights can run code. {_CONVERT}"
        )
    if options.get("weights_only") is False:
        raise UnsafeModelError(f"model {name!r}: weights_only=False is refused; it would unpickle arbitrary objects")


def check_json(name: str, file_name: str, content: Mapping[str, Any]) -> None:
    """Refuse a configuration that asks for remote code at any depth. Raises UnsafeModelError naming file and key."""
    for path, reason in _dangers(content, ""):
        raise UnsafeModelError(f"model {name!r}: {file_name} has {path!r}, which {reason}; refused")


def check_folder(name: str, folder: Path) -> None:
    """Refuse a local folder whose only weights are pickles, and unmerged adapters."""
    if any(folder.glob("*.safetensors")):
        if (folder / "adapter_config.json").is_file():
            raise UnsupportedModelError(
                f"model {name!r}: {folder} holds an adapter (adapter_config.json); merge it into its base model first "
                "(merge_and_unload, then save_pretrained)"
            )
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise UnsafeModelError(pickle_message(name, f"{folder} has only pickled weights ({', '.join(pickles[:3])})"))


def pickle_message(name: str, found: str) -> str:
    """What to say about a model without safetensors weights."""
    return f"model {name!r}: {found}; unpickling can run any code, so only safetensors are loaded. {_CONVERT}"


def _dangers(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            here = f"{path}.{key}" if path else str(key)
            reason = _danger(str(key), item)
            if reason is not None:
                yield here, reason
            yield from _dangers(item, here)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _dangers(item, f"{path}[{index}]")


def _danger(key: str, item: Any) -> str | None:
    if key == "auto_map" and item:
        return "names Python code in the model's repository (remote code)"
    if key == "trust_remote_code" and item:
        return "asks to trust remote code"
    # "owner/kernel" there makes transformers fetch and import compiled code from that repository.
    if any(known in key for known in _KERNEL_KEYS) and "/" in str(item):
        return "names a kernel repository (remote code)"
    if key == "transformers_weights" and not str(item).endswith((".safetensors", ".safetensors.index.json")):
        return "points to weights that are not safetensors"
    return None
