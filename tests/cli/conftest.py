"""Runs commands."""

from __future__ import annotations

import io
import sys

import pytest

from specrouter_llm.cli import main


@pytest.fixture
def specrouter(monkeypatch, capsys):
    """Runs the command's entry point; returns (exit status, stdout, stderr)."""

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["specrouter", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        return (status, *capsys.readouterr())

    return run
