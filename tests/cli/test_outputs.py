"""Where commands write: refused before any work if it cannot be, told in one line if it fails all the same."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from specrouter_llm.cli.app import app
from specrouter_llm.cli.outputs import checked_file, checked_folder
from specrouter_llm.errors import InvalidParameterError, SpecRouterError

POOL = ("--target", "demo/middle", "--draft", "demo/draft")
WITH_OUT = [
    ("verify", "--out"),
    ("calibrate", "--out"),
    ("calibrate", "--plot"),
    ("demo", "--plot"),
    *(("bench", name, "--out") for name in ("match", "rejection", "off", "speed", "batch", "step", "strict")),
    *(
        ("bench", name, option)
        for name in ("acceptance", "calibration", "overhead", "memory")
        for option in ("--out", "--plot")
    ),
    ("bench", "gpu", "--out"),
    ("bench", "recording"),
    ("report",),
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in an empty folder where nothing can be loaded; errors are raised."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False)

    return call


@pytest.mark.parametrize("command", WITH_OUT, ids=" ".join)
def test_a_path_that_cannot_be_is_refused_before_anything_is_loaded(run, tmp_path, monkeypatch, command):
    """A file in the way of the folder; no command has got as far as a model."""
    for name in ("pool.pool.ModelPool.load", "engine.spec_router.SpecRouter.from_pretrained"):
        monkeypatch.setattr(f"specrouter_llm.{name}", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "file").write_text("in the way")
    path = "file/page.html" if command == ("report",) else "file/new.png"
    with pytest.raises(InvalidParameterError, match=r"cannot be written: .*file is not a folder"):
        run(*command, path, *(("a.json",) if command == ("report",) else ()))


def test_what_may_be_written(tmp_path, monkeypatch):
    """A new file in a new folder, and one that is there; no folder for a file, no file for a folder."""
    for path in (tmp_path / "new" / "a.json", Path("a.json")):
        assert path == checked_file(path)
    (tmp_path / "old.json").write_text("")
    assert tmp_path / "old.json" == checked_file(tmp_path / "old.json")
    assert tmp_path / "a" / "b" == checked_folder(tmp_path / "a" / "b")
    assert checked_file(None) is None
    with pytest.raises(InvalidParameterError, match="is a folder"):
        checked_file(tmp_path)
    with pytest.raises(InvalidParameterError, match="is a file"):
        checked_folder(tmp_path / "old.json")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InvalidParameterError, match="no permission for"):
        checked_file(tmp_path / "new.json")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (
            ("verify", *POOL, "--limit", "1", "--max-tokens", "2", "--chain", "ngram", "--json", "--out", "a.json"),
            "reports",
        ),
        (("calibrate", *POOL, "--seconds", "0.1", "--json", "--out", "a.json"), "demo/draft"),
        (("bench", "match", *POOL, "--limit", "1", "--max-tokens", "2", "--out", "a.json"), "1-TV"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_what_was_measured_is_shown_before_it_is_written(run, monkeypatch, capsys, command, shown):
    """A full disk costs the file, not the result."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SpecRouterError, match=r"a\.json could not be written: No space left on device") as failure:
        app(list(command), standalone_mode=False)
    assert not isinstance(failure.value, OSError)
    output = capsys.readouterr().out
    assert shown in output
    if "--json" in command:
        json.loads(output)
