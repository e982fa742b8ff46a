"""How many bytes a model's parameters will take, found without loading them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from specrouter_llm.errors import InvalidParameterError, ModelLoadError
from specrouter_llm.pool.quantization import stored_bits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from specrouter_llm.pool.source import Checkpoint

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class WeightCount:
    """Size of a model that is not loaded yet."""

    num_parameters: int
    num_bytes: int


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """`dtype` as torch's, None for "auto". Raises InvalidParameterError."""
    if dtype == "auto":
        return None
    parsed = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(parsed, torch.dtype) or str(parsed).removeprefix("torch.") not in DTYPES:
        raise InvalidParameterError(f"dtype must be 'auto' or one of {', '.join(DTYPES)}, got {dtype!r}")
    return parsed


def stored_dtype(config: PreTrainedConfig, weight_files: Sequence[Path]) -> torch.dtype:
    """The dtype that "auto" means for a checkpoint: what its config says, else that of its first floating tensor."""
    stated = getattr(config, "dtype", None)
    if isinstance(stated, str):
        stated = parse_dtype(stated)
    if isinstance(stated, torch.dtype):
        return stated
    for path in weight_files:
        for entry in _header(path).values():
            if entry.get("dtype") in _FLOATS:
                return _FLOATS[entry["dtype"]]
    return torch.float32


def short_dtype(checkpoint: Checkpoint) -> torch.dtype | None:
    """The dtype of 16 bits that all tensors of a checkpoint have; None if they have another or several, or if it is not known.

    What has not been downloaded yet is asked about on the hub.
    """
    if checkpoint.is_local or checkpoint.weight_files:
        headers = map(_header, checkpoint.weight_files)
        found = {entry["dtype"] for header in headers for key, entry in header.items() if key != "__metadata__"}
    else:
        found = _on_the_hub(checkpoint)
    dtype = _FLOATS[found.pop()] if len(found) == 1 and found <= _FLOATS.keys() else torch.float32
    return dtype if dtype.itemsize == 2 else None


def _on_the_hub(checkpoint: Checkpoint) -> set[str]:
    """The dtypes of its tensors; none if the hub does not tell."""
    options = {key: checkpoint.hub_options[key] for key in ("revision", "token") if key in checkpoint.hub_options}
    if checkpoint.hub_options.get("local_files_only"):
        return set()
    try:
        return set(HfApi().get_safetensors_metadata(checkpoint.location, **options).parameter_count)
    except (OSError, NotASafetensorsRepoError, SafetensorsParsingError):  # OSError: not there, no network, offline
        return set()


def empty_model(config: PreTrainedConfig, model_class: type[PreTrainedModel], dtype: torch.dtype) -> PreTrainedModel:
    """The model of `config` on the `meta` device: every shape, no memory. Takes well below a second for large models."""
    with torch.device("meta"):
        return model_class._from_config(copy.deepcopy(config), dtype=dtype)  # it writes the dtype into its config


def count_weights(model: PreTrainedModel, quantization: Any = None, weight_files: Sequence[Path] = ()) -> WeightCount:
    """Parameters and bytes of `model` (it may be on `meta`); tied weights count once.

    With a `quantization` config the bytes are those of the checkpoint's tensors if `weight_files` (already quantised) are
    given, else an estimate from the bits of the config, without scales.
    """
    parameters = list(model.parameters())
    count = sum(each.numel() for each in parameters)
    plain = sum(each.numel() * each.element_size() for each in parameters)
    if quantization is None:
        return WeightCount(count, plain)
    if weight_files:
        return WeightCount(count, sum(_tensor_bytes(path) for path in weight_files))
    bits = stored_bits(quantization)
    if bits is None:
        return WeightCount(count, plain)
    head = model.get_output_embeddings()
    linear = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    saved = sum(weight.numel() * weight.element_size() - weight.numel() * bits // 8 for weight in linear)
    return WeightCount(count, plain - saved)


def _tensor_bytes(path: Path) -> int:
    entries = (entry for key, entry in _header(path).items() if key != "__metadata__")
    return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries)


def _header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: an unsigned 64-bit little-endian length, then that many bytes of JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= path.stat().st_size - 8:
                raise ValueError("its header is cut off")
            content = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} is not a readable safetensors file: {error}") from None
    assert isinstance(content, dict)
    return content
