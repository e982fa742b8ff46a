"""What a quantisation config means: does a row's result depend on its batch-mates, and how small are the weights.

A drafter may be quantised in any way: its proposals are verified. For the target, scales that are computed from the whole
batch of activations at run time would let one request change another's logits. Scales that were fixed at calibration do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from specrouter_llm.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DYNAMIC_MODULES = ("torch.ao.nn.quantized.dynamic", "torch.nn.quantized.dynamic")
_ACTIVATION_KEYS = ("input_activations", "input_tensors")
_PER_TENSOR = ("tensor", "per_tensor")


def check_target_quantization(name: str, quantization: Any) -> None:
    """Refuse a target whose activations are quantised with scales shared by the batch. Raises UnsupportedModelError.

    `quantization` is the `quantization_config` of `config.json`, or an object of transformers for it, or None.
    """
    reason = None if quantization is None else _shared_scale(_as_mapping(quantization))
    if reason is not None:
        raise UnsupportedModelError(
            f"model {name!r} is not supported as target: {reason}, so a row's result would depend on the other rows of the "
            "batch. As a drafter it is fine; for the target use weight-only or per-token quantisation"
        )


def check_target_modules(name: str, model: PreTrainedModel) -> None:
    """The same for a loaded model whose layers were replaced by torch's dynamic int8 ones."""
    for module_name, module in model.named_modules():
        if type(module).__module__.startswith(_DYNAMIC_MODULES):
            raise UnsupportedModelError(
                f"model {name!r} is not supported as target: {module_name} is dynamically quantised with one activation "
                "scale per tensor, so a row's result would depend on the other rows of the batch"
            )


def stored_bits(quantization: Any) -> int | None:
    """Bits per weight of linear layers that loading with `quantization` will leave, or None if the config does not tell."""
    content = _as_mapping(quantization)
    if content.get("load_in_4bit"):
        return 4
    if content.get("load_in_8bit"):
        return 8
    for key in ("bits", "nbits", "weights"):
        if isinstance(content.get(key), int):
            return int(content[key])
    text = f"{content.get('weights', '')} {content.get('quant_type', '')} {content.get('quant_method', '')}".lower()
    return next(
        (bits for bits in (4, 8) if f"int{bits}" in text or f"fp{bits}" in text or f"float{bits}" in text), None
    )


def _as_mapping(quantization: Any) -> Mapping[str, Any]:
    # `vars` and not `to_dict`: for torchao the latter needs torchao, and loses the granularity that is looked at here.
    content = quantization if isinstance(quantization, Mapping) else vars(quantization)
    return {key.lstrip("_"): value for key, value in content.items()}  # bitsandbytes' objects store `_load_in_8bit`


def _shared_scale(content: Mapping[str, Any]) -> str | None:
    method = str(getattr(content.get("quant_method"), "value", content.get("quant_method", "")))
    if content.get("load_in_8bit") and float(content.get("llm_int8_threshold", 6.0)) > 0:
        return "bitsandbytes int8 picks outlier columns from the whole batch (set llm_int8_threshold=0 to avoid it)"
    kind = str(content.get("quant_type", ""))
    if method == "torchao" and "Float8DynamicActivation" in kind and "PerRow" not in kind:
        return "torchao quantises its activations to float8 with one scale per tensor"
    for scheme in _activation_schemes(content):
        shape = str(scheme.get("strategy", scheme.get("qscheme", "")))
        if shape in _PER_TENSOR and scheme.get("dynamic", scheme.get("is_dynamic", False)):
            return f"{method or 'its quantisation'} uses one dynamic activation scale per tensor"
    return None


def _activation_schemes(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in _ACTIVATION_KEYS and isinstance(item, Mapping):
                yield item
            yield from _activation_schemes(item)
