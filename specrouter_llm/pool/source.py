"""Where a model comes from: a local folder, a name in (or for) the Hugging Face cache, or the embedded family."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from transformers.utils import cached_file

from specrouter_llm.config import ModelSpec, default_name
from specrouter_llm.errors import ModelLoadError, ModelNotFoundError, SpecRouterError
from specrouter_llm.pool import safety
from specrouter_llm.pool.demo import demo_folder, is_demo

_HUB_OPTIONS = ("cache_dir", "token", "local_files_only", "proxies")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that was found and whose configuration files passed the safety checks; nothing is loaded yet."""

    name: str
    """Name of the member in the pool."""
    location: str
    """A folder, or a hub name: what `from_pretrained` is given."""
    folder: Path
    """The local folder, or the cache folder that `config.json` of a hub model lies in."""
    is_local: bool
    hub_options: Mapping[str, Any]
    config: Mapping[str, Any]
    """`config.json` as it is written."""
    has_tokenizer: bool

    @property
    def weight_files(self) -> list[Path]:
        """Safetensors files that are on this machine, sorted; empty if any part of them is missing."""
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            shards = sorted({self.folder / shard for shard in _read_json(self.name, index)["weight_map"].values()})
            return shards if all(shard.is_file() for shard in shards) else []
        return sorted(self.folder.glob("*.safetensors"))


def find_checkpoint(spec: ModelSpec, revision: str | None = None) -> Checkpoint:
    """Locate the model of `spec` (its source must be a name or a path) and check its files for remote code and pickles.

    Raises ModelNotFoundError, UnsafeModelError, UnsupportedModelError (an adapter) or ModelLoadError (broken files).
    """
    name = default_name(spec)
    safety.check_options(name, spec.model_kwargs)
    hub_options = {key: spec.model_kwargs[key] for key in _HUB_OPTIONS if key in spec.model_kwargs}
    hub_options["revision"] = spec.revision or revision
    folder = _local_folder(spec, name)
    if folder is not None:
        safety.check_folder(name, folder)
    location = str(spec.source) if folder is None else str(folder)
    config_file = _find_config(name, location, folder, hub_options)
    config = _read_json(name, config_file)
    safety.check_json(name, "config.json", config)
    tokenizer_config = _find(location, folder, "tokenizer_config.json", hub_options)
    if tokenizer_config is not None:
        safety.check_json(name, "tokenizer_config.json", _read_json(name, tokenizer_config))
    has_tokenizer = tokenizer_config is not None or any(
        _find(location, folder, file_name, hub_options) for file_name in _TOKENIZER_FILES
    )
    return Checkpoint(
        name=name,
        location=location,
        folder=config_file.parent,
        is_local=folder is not None,
        hub_options=hub_options,
        config=config,
        has_tokenizer=has_tokenizer,
    )


def _local_folder(spec: ModelSpec, name: str) -> Path | None:
    """The folder that the source means, or None if it is a name to look up."""
    source = spec.source
    if isinstance(source, str) and is_demo(source):
        return demo_folder(source.partition("/")[2] or "target")
    assert isinstance(source, (str, Path))
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelNotFoundError(
            f"model {name!r}: {path} is a file; pass the folder that holds config.json and safetensors"
        )
    if isinstance(source, Path) or _looks_like_path(source):
        raise ModelNotFoundError(f"model {name!r}: there is no folder {path.absolute()}")
    return None


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "~", os.sep)) or source.count("/") > 1 or "\\" in source or not source.strip()


def _find_config(name: str, location: str, folder: Path | None, hub_options: Mapping[str, Any]) -> Path:
    if folder is not None:
        path = folder / "config.json"
        if not path.is_file():
            raise ModelLoadError(f"model {name!r}: {folder} has no config.json")
        return path
    try:
        found = cached_file(location, "config.json", **hub_options)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(_not_found_message(location, hub_options, error)) from None
    assert found is not None
    return Path(found)


def _not_found_message(location: str, hub_options: Mapping[str, Any], error: Exception) -> str:
    message = f"no model {location!r}: there is no local folder of that name, and "
    if constants.HF_HUB_OFFLINE or hub_options.get("local_files_only"):
        return (
            f"{message}it is not in the local Hugging Face cache ({constants.HF_HUB_CACHE}); nothing is downloaded in "
            "offline mode (HF_HUB_OFFLINE=1, or local_files_only=True in the model_kwargs of a ModelSpec)"
        )
    return f"{message}the Hugging Face hub did not provide it: {first_line(error)}"


def _find(location: str, folder: Path | None, file_name: str, hub_options: Mapping[str, Any]) -> Path | None:
    """`file_name` of the model, or None if it has no such file."""
    if folder is not None:
        path = folder / file_name
        return path if path.is_file() else None
    found = cached_file(
        location,
        file_name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub_options,
    )
    return None if found is None else Path(found)


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"model {name!r}: {path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelLoadError(f"model {name!r}: {path} does not hold a JSON object")
    return content


def first_line(error: Exception) -> str:
    """The first line that says something of an error's message; libraries add whole paragraphs."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def rewrap(name: str, action: str, error: Exception) -> SpecRouterError:
    """`error` of a library as a ModelLoadError in one line; errors of this package pass unchanged."""
    if isinstance(error, SpecRouterError):
        return error
    return ModelLoadError(f"model {name!r}: {action} failed: {type(error).__name__}: {first_line(error)}")
