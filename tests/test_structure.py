"""The shape of the package: dependencies in one direction, small files, the public surface, and a light import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import specrouter_llm

PACKAGE = Path(specrouter_llm.__file__).parent

# A room may import from rooms of a lower rank, and from itself. docs/design/architecture.md draws this table.
RANKS = {
    "errors": 0,
    "types": 0,
    "config": 1,
    "sampling": 1,
    "text": 1,
    "scheduling": 1,
    "pool": 2,
    "runtime": 2,
    "structured": 2,
    "telemetry": 2,
    "state": 3,
    "drafting": 4,
    "verification": 4,
    "executor": 5,
    "router": 5,
    "engine": 6,
    "bench": 7,
    "chat": 7,
    "testing": 7,
    "cli": 8,
}
MAY_IMPORT_TRANSFORMERS = {"pool", "runtime", "text", "cli", "bench"}
NO_TORCH = {"errors", "types", "config", "scheduling", "router"}


def modules():
    """(room, file, names imported at module level or inside functions, of type checking left out)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        room = relative.parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, path, imports(ast.parse(path.read_text(encoding="utf-8")))


def imports(tree):
    """Dotted names of all imports that can run."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
            skipped.update(id(inner) for inner in ast.walk(node))
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_every_room_has_a_rank():
    """A new room must take its place in the order."""
    assert set(RANKS) >= {room for room, _, _ in modules()}


def test_dependencies_go_one_way():
    """No room imports a room of its own rank or above."""
    wrong = []
    for room, path, names in modules():
        for name in names:
            parts = name.split(".")
            if parts[0] == "specrouter_llm" and len(parts) > 1 and parts[1] != room and RANKS[parts[1]] >= RANKS[room]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_transformers_stays_in_its_rooms():
    """Only the rooms that load models, run them or encode text know transformers."""
    outside = {
        str(path.relative_to(PACKAGE))
        for room, path, names in modules()
        for name in names
        if name.split(".")[0] == "transformers" and room not in MAY_IMPORT_TRANSFORMERS
    }
    assert outside == set()


def test_scheduling_knows_no_tensors():
    """Plans and policies are numbers and names: they can be simulated without torch."""
    knowing = {
        str(path.relative_to(PACKAGE)) for room, path, names in modules() if room in NO_TORCH and "torch" in names
    }
    assert knowing == set()


def test_files_stay_small():
    """One noun, one file: none over 450 lines."""
    long = {path.name: n for _, path, _ in modules() if (n := len(path.read_text(encoding="utf-8").splitlines())) > 450}
    assert long == {}


def test_all_is_the_public_surface():
    """Every public name can be imported, and `__all__` is sorted."""
    assert sorted(specrouter_llm.__all__) == specrouter_llm.__all__
    for name in specrouter_llm.__all__:
        assert getattr(specrouter_llm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = specrouter_llm.nothing


@pytest.mark.parametrize("statement", ["import specrouter_llm", "from specrouter_llm import SamplingParams, Plan"])
def test_importing_the_package_does_not_import_torch(statement):
    """torch is loaded when an engine is made, not before."""
    check = f"import sys; {statement}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_the_command_line_starts_without_torch():
    """`specrouter --help` needs no model library."""
    check = (
        "import sys; sys.argv = ['specrouter', '--help']\n"
        "from specrouter_llm.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert output.strip().splitlines()[-1] == "False"
    assert "generate" in output
