"""What the machine's processor calls itself."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """The model; Linux keeps it in a file, elsewhere Python knows something like it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
