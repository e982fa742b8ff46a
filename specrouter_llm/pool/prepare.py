"""All that can be known and refused about a member before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from specrouter_llm.config import ModelSpec, default_name
from specrouter_llm.errors import InvalidParameterError, UnsupportedModelError
from specrouter_llm.pool.budget import MemberNeeds, cache_bytes_per_token
from specrouter_llm.pool.checks import Vocabulary, check_architecture, check_modules, model_class_of
from specrouter_llm.pool.loading import LoadPlan, load_config, load_model, load_tokenizer, require_weights
from specrouter_llm.pool.placement import Placement
from specrouter_llm.pool.quantization import check_target_modules, check_target_quantization
from specrouter_llm.pool.source import Checkpoint, find_checkpoint
from specrouter_llm.pool.weights import WeightCount, count_weights, empty_model, parse_dtype, short_dtype, stored_dtype
from specrouter_llm.pool.widen import widen, widened_config
from specrouter_llm.types import NO_PACKING, Packing, PackingBytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Defaults:
    """Arguments of `ModelPool.load` for members whose spec does not say otherwise."""

    dtype: str | torch.dtype | None = None
    quantization_config: Any = None
    revision: str | None = None
    packing: Packing | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A member that passed every check that needs no weights."""

    name: str
    spec: ModelSpec
    tokenizer: PreTrainedTokenizerBase | None
    vocabulary: Vocabulary
    num_parameters: int
    needs: MemberNeeds
    model: PreTrainedModel | None
    """The model that the caller loaded, else None."""
    checkpoint: Checkpoint | None
    config: PreTrainedConfig
    """Of the model as it is stored, before widening."""
    plan: LoadPlan
    dtype: torch.dtype
    """Of the arithmetic, whatever the weights are loaded in."""

    def load(self) -> PreTrainedModel:
        """The model in eval mode without gradients, widened if the spec says so."""
        model = self.model
        if model is None:
            assert self.checkpoint is not None
            model = load_model(self.checkpoint, self.config, self.plan)
        return model if self.spec.widen is None else widen(model, self.spec.widen)


def prepare(spec: ModelSpec, placement: Placement, defaults: Defaults, *, is_target: bool) -> Prepared:
    """Find and check one member. Raises the errors of `errors.ModelLoadError`'s family, or InvalidParameterError."""
    if isinstance(spec.source, (str, bytes)) or hasattr(spec.source, "__fspath__"):
        return _prepare_checkpoint(spec, placement, defaults, is_target=is_target)
    if not isinstance(spec.source, torch.nn.Module) or not hasattr(spec.source, "config"):
        raise InvalidParameterError(
            f"a model must be a name, a folder, a ModelSpec or a loaded PreTrainedModel, got {type(spec.source).__name__}"
        )
    return _prepare_loaded(spec, placement, defaults, is_target=is_target)


def _prepare_checkpoint(spec: ModelSpec, placement: Placement, defaults: Defaults, *, is_target: bool) -> Prepared:
    checkpoint = find_checkpoint(spec, defaults.revision)
    name = checkpoint.name
    config = load_config(checkpoint)
    model_class = model_class_of(name, config)
    check_architecture(name, config, model_class)
    stored = getattr(config, "quantization_config", None)
    asked = spec.quantization_config or (defaults.quantization_config if is_target else None)
    for quantization in (stored, asked) if is_target else ():
        check_target_quantization(name, quantization)
    if spec.widen is not None and (stored is not None or asked is not None):
        raise InvalidParameterError(f"model {name!r}: a quantised model cannot be widened")
    require_weights(checkpoint)
    quantized = stored is not None or asked is not None
    plan = _load_plan(spec, placement, defaults, asked, "auto" if quantized else None)
    dtype = parse_dtype(plan.dtype) or stored_dtype(config, checkpoint.weight_files)
    final = config if spec.widen is None else widened_config(config, spec.widen)
    if quantized:
        defaults = replace(defaults, packing=None)
    held = short_dtype(checkpoint) if _packs(defaults, plan) and dtype == torch.float32 and spec.widen is None else None
    plan, empty, packed = _shape(final, model_class, plan, defaults, dtype, held)
    check_modules(name, empty)
    # Weights that are stored quantised have their size on disk; those quantised while loading have not.
    weights = count_weights(empty, asked or stored, checkpoint.weight_files if stored is not None else ())
    tokenizer = spec.tokenizer if spec.tokenizer is not None else load_tokenizer(checkpoint)
    return _prepared(
        spec, name, final, dtype, plan, weights, tokenizer, packed, checkpoint=checkpoint, stored_config=config
    )


def _load_plan(
    spec: ModelSpec, placement: Placement, defaults: Defaults, quantization: Any, dtype: str | None
) -> LoadPlan:
    """The spec's dtype, else the pool's, else `dtype`, else float32 on a CPU (the exact path) and the stored one elsewhere."""
    on_cpu = placement.device is not None and torch.device(placement.device).type == "cpu"
    chosen = spec.dtype or defaults.dtype or dtype or ("float32" if on_cpu else "auto")
    return LoadPlan(
        dtype=parse_dtype(chosen) or "auto",
        device=placement.device,
        device_map=placement.device_map,
        quantization_config=quantization,
        model_kwargs=spec.model_kwargs,
    )


def _shape(
    config: PreTrainedConfig,
    model_class: type[PreTrainedModel],
    plan: LoadPlan,
    defaults: Defaults,
    dtype: torch.dtype,
    held: torch.dtype | None,
) -> tuple[LoadPlan, PreTrainedModel, PackingBytes]:
    """The model of `config` on `meta`, its weights in `held` where a runner can compute with them in `dtype`; how to load it,
    and what packing takes."""
    if held is not None:
        empty = empty_model(config, model_class, held)
        packed = _packing(defaults, empty, plan, dtype, keep=False)
        if packed is not None:
            return replace(plan, dtype=held), empty, packed
    empty = empty_model(config, model_class, dtype)
    return plan, empty, _packing(defaults, empty, plan, dtype, keep=False) or NO_PACKING


def _prepare_loaded(spec: ModelSpec, placement: Placement, defaults: Defaults, *, is_target: bool) -> Prepared:
    name = default_name(spec)
    model: Any = spec.source
    check_architecture(name, model.config, type(model))
    check_modules(name, model)
    if is_target:
        check_target_quantization(name, getattr(model.config, "quantization_config", None))
        check_target_modules(name, model)
    _require_as_asked(name, spec, model, defaults)
    device = "" if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1 else str(model.device)
    _require_device(name, model, placement, device)
    config, shape = model.config, model
    if spec.widen is not None:
        config = widened_config(model.config, spec.widen)
        shape = empty_model(config, type(model), model.dtype)
    plan = LoadPlan(dtype=model.dtype, device=device or None)
    packed = _packing(defaults, shape, plan, model.dtype, keep=spec.widen is None) or NO_PACKING
    return _prepared(
        spec, name, config, model.dtype, plan, count_weights(shape), spec.tokenizer, packed, model=model,
        stored_config=model.config,
    )  # fmt: skip


def _packs(defaults: Defaults, plan: LoadPlan) -> bool:
    """Whether runners that pack weights may come; only a CPU's do."""
    return defaults.packing is not None and plan.device is not None and torch.device(plan.device).type == "cpu"


def _packing(
    defaults: Defaults, shape: PreTrainedModel, plan: LoadPlan, dtype: torch.dtype, *, keep: bool
) -> PackingBytes | None:
    """What packing takes beside a member's own weights; see `Packing`."""
    if not _packs(defaults, plan):
        return NO_PACKING
    assert defaults.packing is not None
    return defaults.packing(shape, keep, dtype)


def _require_as_asked(name: str, spec: ModelSpec, model: Any, defaults: Defaults) -> None:
    """A loaded model is used as it is, never copied or converted."""
    asked = spec.dtype or defaults.dtype
    dtype = None if asked is None else parse_dtype(asked)
    if dtype is not None and dtype != model.dtype:
        raise InvalidParameterError(
            f"model {name!r} is loaded already, as {model.dtype}; it is used without a copy, so dtype={asked!r} cannot be "
            f"met. Convert it first (model.to({dtype})) or pass its name"
        )
    if spec.quantization_config is not None:
        raise InvalidParameterError(f"model {name!r} is loaded already; quantization_config cannot be applied to it")


def _require_device(name: str, model: Any, placement: Placement, device: str) -> None:
    """A loaded model is where it is. `placement` is empty unless the caller asked for a device or a map."""
    elsewhere = placement.device is not None and torch.device(placement.device) != model.device
    if elsewhere or placement.device_map is not None:
        asked = placement.device or placement.device_map
        raise InvalidParameterError(
            f"model {name!r} is loaded already, on {device or 'several devices'}; it is used without a copy, so {asked!r} "
            "cannot be met. Move it first (model.to(device)) or pass its name"
        )


def _prepared(
    spec: ModelSpec,
    name: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    plan: LoadPlan,
    weights: WeightCount,
    tokenizer: PreTrainedTokenizerBase | None,
    packing: PackingBytes,
    *,
    stored_config: PreTrainedConfig,
    model: PreTrainedModel | None = None,
    checkpoint: Checkpoint | None = None,
) -> Prepared:
    text = config.get_text_config(decoder=True)
    context = getattr(text, "max_position_embeddings", None)
    if not isinstance(context, int) or context < 1:
        raise UnsupportedModelError(f"model {name!r}: its config states no max_position_embeddings")
    needs = MemberNeeds(
        name=name,
        device=plan.device or "",
        weight_bytes=weights.num_bytes,
        cache_bytes_per_token=cache_bytes_per_token(config, dtype.itemsize),
        context_length=context,
        packing=packing,
    )
    return Prepared(
        name=name,
        spec=replace(spec, name=name),
        tokenizer=tokenizer,
        vocabulary=Vocabulary.of(name, text.vocab_size, tokenizer),
        num_parameters=weights.num_parameters,
        needs=needs,
        model=model,
        checkpoint=checkpoint,
        config=stored_config,
        plan=plan,
        dtype=dtype,
    )
