"""Which runner a model gets."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from specrouter_llm.runtime.graphs import BatchForward, CudaCapture, GraphRunner, by_modules
from specrouter_llm.runtime.lean import LeanRunner, can_run_lean, lean_shapes
from specrouter_llm.runtime.llama_like import MODEL_TYPES, SILU
from specrouter_llm.runtime.packing import is_plain, kernel_bytes, own_the_rest, packable, plain_linears
from specrouter_llm.runtime.runner import EagerRunner, Runner, head_shapes
from specrouter_llm.runtime.static_batch import TileAttention
from specrouter_llm.types import NO_PACKING, PackingBytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def make_runner(
    name: str,
    model: PreTrainedModel,
    *,
    num_slots: int,
    context_length: int,
    pack: bool,
    keep: bool,
    strict: bool = False,
    dtype: torch.dtype | None = None,
) -> Runner:
    """The fastest runner that the model, its dtype and its device allow.

    Args:
        dtype: of the arithmetic; the model's own by default, and what `packing_bytes` has an answer for.
        pack: whether linear weights may be packed at all; without it every model runs as transformers has it.
        keep: the model belongs to a caller and must stay usable, so that packed weights are a second copy.
        strict: on a CUDA device, run every forward so that bits do not depend on the batch; see `GraphRunner`.

    Raises:
        UnsupportedModelError: the model's logits through our cache differ from its own.
    """
    if pack:
        dtype = dtype or model.dtype
        if dtype == torch.float32 and not keep and is_plain(model, dtype=model.dtype):
            own_the_rest(model)
        if _can_compile(model, dtype):
            return _compiled_runner(name, model, num_slots=num_slots, context_length=context_length, keep=keep)
        if can_run_lean(model):
            return LeanRunner(name, model, num_slots=num_slots, context_length=context_length, keep=keep)
    runner: Runner | None = None
    if _is_on_one_cuda_device(model):
        runner = _graph_runner(name, model, num_slots, context_length, strict)
    if runner is None:
        replace = pack and not keep and packable(model)
        runner = EagerRunner(name, model, num_slots=num_slots, context_length=context_length, pack=replace)
    if strict and runner.guarantee != "bitwise":
        logger.warning("%s: strict=True, but its bits depend on the batch here; the guarantee is near-tie", name)
    return runner


def _can_compile(model: PreTrainedModel, dtype: torch.dtype, device: str = "cpu") -> bool:
    """Whether the compiled runner knows the architecture, can compute with the weights in this dtype and can be had; for
    `device` see `packable`."""
    known = model.config.model_type in MODEL_TYPES and model.config.hidden_act in SILU and dtype == torch.float32
    return known and is_plain(model, device, model.dtype) and _is_uniform(model) and _holds(model.dtype)


def _is_uniform(model: PreTrainedModel) -> bool:
    """Whether all parameters are of one dtype, every id of the head has an embedding, and the head has no bias: compiled code
    asks none of that."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    known = head.bias is None and embedding.num_embeddings >= head.out_features
    return known and all(parameter.dtype == model.dtype for parameter in model.parameters())


def _holds(dtype: torch.dtype) -> bool:
    """Whether compiled code can be had, and reads weights that are stored so."""
    if not has_compiler():
        return False
    from specrouter_llm.runtime.panels import HELD

    return dtype in HELD


def _compiled_runner(name: str, model: PreTrainedModel, **options: Any) -> Runner:
    from specrouter_llm.runtime.compiled import CompiledRunner

    return CompiledRunner(name, model, **options)


@functools.cache
def has_compiler() -> bool:
    """Whether numba and the OpenMP that it needs are here; compiles, if that was never done on this machine."""
    if importlib.util.find_spec("numba") is None:
        logger.warning('numba is not installed: models on the CPU run slower; pip install "specrouter-llm[cpu]"')
        return False
    started = time.perf_counter()
    try:
        importlib.import_module("specrouter_llm.runtime.compiled")
    except Exception as error:  # another OpenMP, a directory for numba's cache that cannot be written, an odd processor
        logger.warning("models on the CPU run uncompiled, and slower: %s", error)
        return False
    logger.debug("the compiled forward was ready after %.1f s", time.perf_counter() - started)
    return True


def _is_on_one_cuda_device(model: PreTrainedModel) -> bool:
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    spread = any(hasattr(module, "_hf_hook") for module in model.modules())
    return not spread and len(devices) == 1 and devices.pop().type == "cuda"


def _graph_runner(
    name: str, model: PreTrainedModel, num_slots: int, context_length: int, strict: bool
) -> GraphRunner | None:
    """A runner with recorded graphs; None, with the reason in the log, where triton or the model does not allow them."""
    try:
        from specrouter_llm.runtime import fused, triton_attention
    except ImportError:
        logger.warning("%s runs without CUDA graphs: triton is not installed", name)
        return None
    device = model.get_input_embeddings().weight.device
    if not all(triton_attention.agrees(device, model.dtype, *shape) for shape in head_shapes(model)):
        logger.warning("%s runs without CUDA graphs: its attention cannot be run by triton here", name)
        return None
    attention = triton_attention.tile_attention
    ways: list[tuple[Callable[[PreTrainedModel], BatchForward], TileAttention]] = [(by_modules, attention)]
    if fused.can_fuse(model):
        ways.insert(0, (fused.FusedForward, functools.partial(attention, fill=False)))
    reason = ""
    for make, attend in ways:
        try:
            return GraphRunner(
                name,
                model,
                num_slots=num_slots,
                context_length=context_length,
                capture=CudaCapture(device),
                attention=attend,
                recorded=make(model),
                strict=strict,
            )
        except Exception as error:  # a forward that waits for the device, allocates beside the graph, or differs
            logger.warning(
                "%s: no graphs with %s: %s", name, make.__name__, error, exc_info=logger.isEnabledFor(logging.DEBUG)
            )
            reason = f"{type(error).__name__}: {error}"
    logger.warning("%s runs without CUDA graphs: %s", name, reason)
    return None


def packing_bytes(model: PreTrainedModel, keep: bool, dtype: torch.dtype) -> PackingBytes | None:
    """What `make_runner` takes on a CPU beside the model's own weights; see `types.Packing`.

    What is packed replaces what it was made from, but for an output head that is tied to the embedding, and for a model
    that must stay usable.
    """
    device = model.get_input_embeddings().weight.device.type
    plain = plain_linears(model)
    matrices, kernels = sum(linear.weight.nbytes for linear in plain), NO_PACKING.kernels
    if _can_compile(model, dtype, device):
        from specrouter_llm.runtime.compiled import compiled_bytes

        matrices = compiled_bytes(model)
    elif model.dtype != dtype:
        return None
    elif can_run_lean(model, device):
        kernels = kernel_bytes(lean_shapes(model))
    elif keep or not packable(model, device):
        return NO_PACKING
    else:
        kernels = kernel_bytes({(linear.in_features, linear.out_features) for linear in plain})
    embedding = model.get_input_embeddings().weight
    freed = 0 if keep else sum(linear.weight.nbytes for linear in plain if linear.weight is not embedding)
    return PackingBytes(matrices - freed, kernels)
