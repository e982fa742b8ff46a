"""The embedded model family: three small Llama models with one tokenizer, shipped inside the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from specrouter_llm.errors import ModelNotFoundError

DEMO = "demo"
DEMO_MEMBERS = ("target", "middle", "draft")
"""Members of the family, largest first; `demo` alone means `demo/target`."""


def is_demo(source: object) -> bool:
    """True for the reserved names `demo` and `demo/...` (a folder of that name is reached as `./demo`)."""
    return isinstance(source, str) and source.split("/", 1)[0] == DEMO


def full_demo_name(source: str) -> str:
    """`demo` as `demo/target`; any other name unchanged."""
    return f"{DEMO}/{DEMO_MEMBERS[0]}" if source == DEMO else source


def demo_folder(member: str) -> Path:
    """The folder of `member` (one of `DEMO_MEMBERS`), readable by `from_pretrained`.

    Raises ModelNotFoundError for another name, and when the package was installed without its data.
    """
    if member not in DEMO_MEMBERS:
        known = ", ".join(f"{DEMO}/{name}" for name in DEMO_MEMBERS)
        raise ModelNotFoundError(f"the embedded family has no member {DEMO}/{member}; it has {known}")
    folder = Path(str(files("specrouter_llm") / "data" / DEMO / member))
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"the embedded model {DEMO}/{member} is missing from this installation ({folder})")
    return folder
