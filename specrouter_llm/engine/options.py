"""Options of `SpecRouter.from_pretrained`: sorted out, and what others call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specrouter_llm.config import EngineConfig
from specrouter_llm.errors import InvalidParameterError

_LOADING = frozenset(
    {
        *("dtype", "device", "device_map", "quantization_config", "revision"),
        *("policy", "calibration", "proposers", "progress"),
    }
)
"""The options beside the fields of EngineConfig."""


def engine_config(options: Mapping[str, Any]) -> EngineConfig:
    """The options that are fields of EngineConfig.

    Raises:
        InvalidParameterError: there is no such option, or it has an impossible value.
    """
    fields = EngineConfig.__dataclass_fields__
    for name in sorted(options.keys() - fields.keys()):
        hint = f": {counterpart}" if (counterpart := _counterpart(name)) else ""
        known = ", ".join(sorted(_LOADING.union(fields)))
        raise InvalidParameterError(f"unknown engine option {name!r}{hint}; known: {known}")
    return EngineConfig(**options)


def _counterpart(name: str) -> str:
    """What to do about an option of transformers, vLLM or llama.cpp; empty for others."""
    if name in _OF_MODEL:
        return (
            f"it belongs to one model, as SpecRouter.from_pretrained(ModelSpec(source, model_kwargs={{{name!r}: ...}})) "
            "(and so for each of the drafts)"
        )
    return _COUNTERPARTS.get(name, "")


_OF_MODEL = frozenset({"cache_dir", "local_files_only", "proxies", "token"})
"""They change what is found, not how it is run."""
_BITS = "quantization_config=BitsAndBytesConfig({}=True), or another of transformers' configs, says it"
_CONTEXT = "max_context says it"
_BATCH = "max_batch says it: the rows that are decoded together"
_ATTENTION = "leave it out: the engine has an attention of its own"
_SAFETENSORS = "leave it out: only safetensors are loaded"
_COUNTERPARTS = {
    "torch_dtype": "it is called dtype",
    "load_in_4bit": _BITS.format("load_in_4bit"),
    "load_in_8bit": _BITS.format("load_in_8bit"),
    "attn_implementation": _ATTENTION,
    "use_flash_attention_2": _ATTENTION,
    "trust_remote_code": "leave it out: code from a model's repository is never run",
    "use_safetensors": _SAFETENSORS,
    "low_cpu_mem_usage": "leave it out: weights are loaded like that anyway",
    "use_cache": "leave it out: there is always a cache",
    "tokenizer": "it belongs to one model, as SpecRouter.from_pretrained(ModelSpec(source, tokenizer=...))",
    "batch_size": _BATCH,
    "max_num_seqs": _BATCH,
    "max_model_len": _CONTEXT,
    "n_ctx": _CONTEXT,
    "gpu_memory_utilization": "memory_budget says it, in bytes or as '20GiB'",
}
