"""From a checked checkpoint to a model in memory, and to its tokenizer. The only place that calls `from_pretrained`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from specrouter_llm.errors import ModelLoadError, ModelNotFoundError, UnsafeModelError, UnsupportedModelError
from specrouter_llm.pool.safety import pickle_message
from specrouter_llm.pool.source import Checkpoint, first_line, rewrap

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_NO_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"
"""transformers' switch for loading in the calling thread."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How one member is loaded, after the defaults of the pool were filled in."""

    dtype: str | torch.dtype
    """"auto" or a torch dtype."""
    device: str | None
    """One device for the whole model; None if `device_map` spreads it."""
    device_map: str | dict[str, Any] | None = None
    quantization_config: Any = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)


def load_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The config object of `checkpoint`. Raises UnsupportedModelError for an unknown `model_type`."""
    kind = checkpoint.config.get("model_type")
    try:
        return AutoConfig.from_pretrained(checkpoint.location, trust_remote_code=False, **checkpoint.hub_options)
    except Exception as error:
        if kind is None or (isinstance(error, (KeyError, ValueError)) and "model type" in str(error)):
            raise UnsupportedModelError(
                f"model {checkpoint.name!r}: this version of transformers does not know model_type {kind!r} of its config.json"
            ) from None
        raise rewrap(checkpoint.name, "reading config.json", error) from error


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the weights, or None if there are no tokenizer files. Raises ModelLoadError."""
    if not checkpoint.has_tokenizer:
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.location, trust_remote_code=False, **checkpoint.hub_options
        )
    except Exception as error:
        raise rewrap(checkpoint.name, "loading the tokenizer", error) from error
    return tokenizer


def require_weights(checkpoint: Checkpoint) -> None:
    """Raise ModelLoadError if a local folder has no weights, or not all shards of them."""
    if checkpoint.is_local and not checkpoint.weight_files:
        index = checkpoint.folder / "model.safetensors.index.json"
        missing = f"not all files that {index.name} lists" if index.is_file() else "no weights (no *.safetensors file)"
        raise ModelLoadError(f"model {checkpoint.name!r}: {checkpoint.folder} has {missing}")


def load_model(checkpoint: Checkpoint, config: PreTrainedConfig, plan: LoadPlan) -> PreTrainedModel:
    """Load the weights into a model in eval mode without gradients.

    `config` is the one that was checked: what lies on the disk or the hub by now is not read again.
    Raises ModelLoadError (also if weights are missing from the files: transformers would invent random ones),
    UnsafeModelError if a hub model has only pickles.
    """
    options = {**plan.model_kwargs, **checkpoint.hub_options}
    options.update(trust_remote_code=False, use_safetensors=True)
    if plan.quantization_config is not None:
        options["quantization_config"] = plan.quantization_config
    if plan.device_map is not None:
        options["device_map"] = plan.device_map
    elif plan.device is not None and torch.device(plan.device).type != "cpu":
        options["device_map"] = {"": plan.device}  # straight onto the device, and what bitsandbytes requires
    try:
        with _in_one_thread() if "device_map" not in options else nullcontext():
            model, info = AutoModelForCausalLM.from_pretrained(
                checkpoint.location, config=config, dtype=plan.dtype, output_loading_info=True, **options
            )
    except Exception as error:
        if isinstance(error, OSError) and "safetensors" in str(error) and not checkpoint.weight_files:
            raise UnsafeModelError(
                pickle_message(checkpoint.name, f"{checkpoint.location} has no safetensors")
            ) from None
        if isinstance(error, OSError) and not checkpoint.is_local and not checkpoint.weight_files:
            raise ModelNotFoundError(
                f"model {checkpoint.name!r}: its weights could not be fetched: {first_line(error)}"
            ) from error
        raise rewrap(checkpoint.name, "loading the weights", error) from error
    _require_complete(checkpoint.name, info)
    return freeze(model)


@contextmanager
def _in_one_thread() -> Iterator[None]:
    """Keeps transformers from loading in threads: each has a heap of its own, which holds on to what was freed in it.

    A pool of 900 MiB on a CPU took 80 more than it was accounted for. On other devices threads are worth it.
    """
    before = os.environ.get(_NO_THREADS)
    os.environ[_NO_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_THREADS]
        else:
            os.environ[_NO_THREADS] = before


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """`model` itself, in eval mode and with gradients switched off."""
    model.eval()
    model.requires_grad_(False)
    return model


def _require_complete(name: str, info: Mapping[str, Any]) -> None:
    for key, what in (("missing_keys", "are missing from the checkpoint"), ("mismatched_keys", "have another shape")):
        found = sorted(str(entry) for entry in info.get(key) or ())
        if found:
            shown = ", ".join(found[:3]) + (" ..." if len(found) > 3 else "")
            raise ModelLoadError(f"model {name!r}: {len(found)} weights {what}: {shown}")
    if info.get("error_msgs"):
        raise ModelLoadError(f"model {name!r}: loading the weights failed: {info['error_msgs'][0]}")


@contextmanager
def quiet_transformers(progress: bool) -> Iterator[None]:
    """Silence the bars of transformers; with `progress` those of hub downloads, which may take long, stay."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    downloads_shown = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()  # the hub's too
    if progress and downloads_shown:
        enable_progress_bars()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()  # the hub's too
        if not downloads_shown:
            disable_progress_bars()
        elif not was_enabled:
            enable_progress_bars()
