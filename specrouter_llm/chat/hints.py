"""What other libraries' arguments are called here: for errors that people who come from them meet."""

from __future__ import annotations

from collections.abc import Iterable

_RENAMED = {
    "do_sample": "temperature, 0 for greedy",
    "eos_token_id": "stop_token_ids",
    "max_completion_tokens": "max_tokens",
    "max_length": "max_tokens, which does not count the prompt",
    "max_new_tokens": "max_tokens",
    "max_time": "timeout",
    "min_length": "min_tokens, which does not count the prompt",
    "min_new_tokens": "min_tokens",
    "model_id": "model",
    "model_name": "model",
    "model_path": "model",
    "num_return_sequences": "n",
    "repo_id": "model",
    "stop_sequence": "stop",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stopping_ids": "stop_token_ids",
}
_LOADING = {
    "batch_size": "max_batch",
    "device": "device",
    "device_map": "device_map",
    "dtype": "dtype",
    "max_batch": "max_batch",
    "max_context": "max_context",
    "memory_budget": "memory_budget",
    "n_ctx": "max_context",
    "quantization_config": "quantization_config",
    "revision": "revision",
    "torch_dtype": "dtype",
}
_HOLDERS = ("generate_kwargs", "generation_config", "model_kwargs", "pipeline_kwargs")
_COUNTERPARTS = {
    **{name: f"use {ours}" for name, ours in _RENAMED.items()},
    **{name: f'use engine_kwargs={{"{ours}": ...}} when the model is made' for name, ours in _LOADING.items()},
    **dict.fromkeys(
        _HOLDERS, "name what it holds: max_tokens, temperature, ...; engine_kwargs is for what loads the model"
    ),
    **dict.fromkeys(("return_full_text", "skip_prompt"), "leave it out, an answer never repeats its prompt"),
    **dict.fromkeys(("tokenizer", "tokenizer_kwargs", "tokenizer_name"), "leave it out, the model's own is used"),
    **dict.fromkeys(("is_chat_model", "is_function_calling_model"), "leave it out, the model's chat template says it"),
    "tokenizer_outputs_to_remove": "leave it out, the engine takes what it needs",
}


def counterpart(name: str) -> str | None:
    """What to do instead of giving this argument of transformers, its adapters or a server: "use max_tokens".

    None for a name that is not in the table.
    """
    return _COUNTERPARTS.get(name)


def counterparts(names: Iterable[str]) -> str:
    """What an error about these names adds: " (max_new_tokens: use max_tokens)"; nothing if none is in the table."""
    known = [f"{name}: {advice}" for name in names if (advice := counterpart(name)) is not None]
    return f" ({'; '.join(known)})" if known else ""
