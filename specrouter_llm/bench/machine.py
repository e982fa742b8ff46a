"""What a measurement ran on: enough to judge it and to run it again, nothing that names a host, a user or a folder."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

import psutil

from specrouter_llm.runtime.processor import processor_name


def machine() -> dict[str, Any]:
    """Processor, memory, threads and versions, as plain JSON types."""
    import torch
    import transformers

    import specrouter_llm

    return {
        "cpu": processor_name(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "specrouter_llm": specrouter_llm.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def command_line(arguments: Sequence[str]) -> str:
    """A command as it was typed, with the folders of files replaced by PATH."""
    program, *rest = arguments
    return shlex.join([PurePath(program).name, *(_without_folder(argument) for argument in rest)])


def _without_folder(argument: str) -> str:
    """`--prompts=/home/me/questions.jsonl` as `--prompts=PATH/questions.jsonl`; names such as `demo/draft` stay."""
    option, equals, value = argument.rpartition("=") if argument.startswith("-") else ("", "", argument)
    path = PurePath(value)
    if path.is_absolute() or value.startswith("~") or ".." in path.parts:
        value = f"PATH/{path.name}"
    return f"{option}{equals}{value}"
