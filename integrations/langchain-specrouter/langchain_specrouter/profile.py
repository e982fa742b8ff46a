"""What LangChain may assume about a model: `BaseChatModel.profile`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from specrouter_llm.chat import model_info

if TYPE_CHECKING:
    from langchain_core.language_models import ModelProfile

    from specrouter_llm import SpecRouter


def assumed_profile(model: str) -> ModelProfile:
    """What holds for every model that the engine runs; the rest is known once the model is loaded."""
    constrained = find_spec("llguidance") is not None
    return {
        "name": model,
        "text_inputs": True,
        "text_outputs": True,
        "image_inputs": False,
        "audio_inputs": False,
        "video_inputs": False,
        "pdf_inputs": False,
        "image_outputs": False,
        "audio_outputs": False,
        "video_outputs": False,
        "tool_calling": True,
        "tool_choice": constrained,
        "tool_call_streaming": True,
        "structured_output": constrained,
        "temperature": True,
        "open_weights": True,
    }


def loaded_profile(model: str, engine: SpecRouter) -> ModelProfile:
    """The profile of a loaded model."""
    info = model_info(engine)
    return {
        **assumed_profile(model),
        "max_input_tokens": info.context_length,
        "max_output_tokens": info.context_length,
        "tool_calling": info.supports_tools,
        "reasoning_output": info.supports_reasoning,
    }
