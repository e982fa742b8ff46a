"""Which models may be in a pool: architectures whose state can be rolled back row by row, and one vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from specrouter_llm.errors import UnsupportedModelError, VocabularyMismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# A list of what is known to work, not of what is known to fail: transformers adds kinds of layers with every release.
_KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
_RECURRENT_LAYERS = ("linear", "mamba", "conv", "recurrent", "hybrid")
_BATCH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


def model_class_of(name: str, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that `AutoModelForCausalLM` loads for `config`. Raises UnsupportedModelError if there is none."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(
            f"model {name!r}: {config.model_type!r} is not a causal language model of transformers"
        )
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    classes = list(found) if isinstance(found, (list, tuple)) else [found]
    wanted = getattr(config, "architectures", None) or []
    chosen: type[PreTrainedModel] = next((each for each in classes if each.__name__ in wanted), classes[0])
    return chosen


def check_architecture(name: str, config: PreTrainedConfig, model_class: type[PreTrainedModel] | None = None) -> None:
    """Refuse a model that cannot be decoded losslessly in ragged batches with rollback, as far as its config tells.

    `model_class` is looked up if not given. Raises UnsupportedModelError with the model's name and the reason.
    """
    model_class = model_class or model_class_of(name, config)
    text = config.get_text_config(decoder=True)
    for rule in _CONFIG_RULES:
        reason = rule(config, text, model_class)
        if reason is not None:
            raise UnsupportedModelError(f"model {name!r} ({model_class.__name__}) is not supported: {reason}")


def check_modules(name: str, model: PreTrainedModel) -> None:
    """Refuse what only the modules show (they may be on the `meta` device): attention sinks. Raises UnsupportedModelError."""
    for parameter, _ in model.named_parameters():
        if parameter.rsplit(".", 1)[-1] in ("sinks", "sink"):
            raise UnsupportedModelError(
                f"model {name!r} ({type(model).__name__}) is not supported: it uses attention sinks ({parameter}), "
                "which this engine's attention does not compute"
            )


def _encoder_decoder(config: Any, text: Any, model_class: type) -> str | None:
    if config.is_encoder_decoder:
        return "it is an encoder-decoder model; only decoder-only models are"
    # BERT and its relatives can be built as decoders, but read in both directions unless told otherwise.
    if getattr(text, "is_decoder", None) is False and type(text) in MODEL_FOR_MASKED_LM_MAPPING:
        return "it is an encoder (is_decoder is false)"
    if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        return "its attention is bidirectional"
    return None


def _recurrent(config: Any, text: Any, model_class: type) -> str | None:
    if getattr(model_class, "_is_stateful", False):
        return "it keeps a recurrent state, which cannot be rolled back to an earlier token"
    return None


def _layer_types(config: Any, text: Any, model_class: type) -> str | None:
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    for kind in kinds:
        if any(word in kind for word in _RECURRENT_LAYERS):
            return f"it has {kind!r} layers, whose recurrent state cannot be rolled back to an earlier token"
        if kind == "chunked_attention":
            return "it uses chunked attention ('chunked_attention' layers)"
        if kind not in _KNOWN_LAYERS:
            return f"it has {kind!r} layers, a kind of attention that this engine does not know"
    return None


def _shared_layers(config: Any, text: Any, model_class: type) -> str | None:
    count = getattr(text, "num_kv_shared_layers", 0) or 0
    return f"its last {count} layers share keys and values with earlier ones" if count > 0 else None


def _latent_attention(config: Any, text: Any, model_class: type) -> str | None:
    if getattr(text, "kv_lora_rank", None):
        return "it caches keys and values in a latent form (kv_lora_rank), which this engine's attention does not read"
    return None


def _rope(config: Any, text: Any, model_class: type) -> str | None:
    for source in (getattr(text, "rope_parameters", None), getattr(text, "rope_scaling", None)):
        for kind in _rope_types(source):
            if kind in _BATCH_DEPENDENT_ROPE:
                return f"its positions use {kind!r} RoPE, whose frequencies depend on the longest row of the batch"
    return None


def _rope_types(parameters: Any) -> Iterator[str]:
    """Every RoPE type in `parameters`: one dict, or one per layer type (transformers v5)."""
    if isinstance(parameters, Mapping):
        kind = parameters.get("rope_type") or parameters.get("type")
        if isinstance(kind, str):
            yield kind
        for value in parameters.values():
            yield from _rope_types(value)


def _attention_interface(config: Any, text: Any, model_class: type) -> str | None:
    if getattr(model_class, "_supports_attention_backend", False):
        return None
    return (
        "its attention is not exchangeable (not on transformers' AttentionInterface; ALiBi models, for example, are not), "
        "so rows of different length cannot share a forward pass"
    )


_CONFIG_RULES: tuple[Callable[[Any, Any, type], str | None], ...] = (
    _encoder_decoder,
    _recurrent,
    _layer_types,
    _shared_layers,
    _latent_attention,
    _rope,
    _attention_interface,
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What `check_vocabulary` compares of one model."""

    model: str
    size: int
    """Width of the logits: `vocab_size` of the text config."""
    tokens: Mapping[int, str] | None
    """Token string of each id, added tokens included; None without a tokenizer."""

    @classmethod
    def of(cls, model: str, size: int, tokenizer: PreTrainedTokenizerBase | None) -> Vocabulary:
        """The vocabulary of `model`, with logits `size` wide."""
        if tokenizer is None:
            return cls(model, size, None)
        return cls(model, size, {token_id: token for token, token_id in tokenizer.get_vocab().items()})


def check_vocabulary(target: Vocabulary, draft: Vocabulary) -> None:
    """Refuse a pair whose token ids mean different tokens.

    Ids that both tokenizers define must be the same tokens; tails and padding may differ, and so may the widths of the logits.
    Without a tokenizer on either side there is nothing to compare. What a tokenizer does with special ids is not compared.
    Raises VocabularyMismatchError.
    """
    if target.tokens is None or draft.tokens is None:
        return
    differing = [i for i, token in target.tokens.items() if draft.tokens.get(i, token) != token]
    if differing:
        first = min(differing)
        raise VocabularyMismatchError(
            f"models {target.model!r} and {draft.model!r} have different vocabularies: {len(differing)} token ids differ, "
            f"the first is id {first}: {target.tokens[first]!r} in {target.model!r}, {draft.tokens[first]!r} in "
            f"{draft.model!r}. Drafting across vocabularies is not supported yet; use a draft of the target's family"
        )
