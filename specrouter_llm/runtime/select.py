"""Which runner a model gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specrouter_llm.runtime.lean import LeanRunner, can_run_lean
from specrouter_llm.runtime.packing import packable
from specrouter_llm.runtime.runner import EagerRunner, Runner

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_runner(
    name: str, model: PreTrainedModel, *, num_slots: int, context_length: int, pack: bool, keep: bool
) -> Runner:
    """The fastest runner that the model, its dtype and its device allow.

    Args:
        pack: whether linear weights may be packed at all; without it every model runs as transformers has it.
        keep: the model belongs to a caller and must stay usable, so that packed weights are a second copy.

    Raises:
        UnsupportedModelError: the model's logits through our cache differ from its own.
    """
    if pack and can_run_lean(model):
        return LeanRunner(name, model, num_slots=num_slots, context_length=context_length, keep=keep)
    replace = pack and not keep and packable(model)
    return EagerRunner(name, model, num_slots=num_slots, context_length=context_length, pack=replace)
