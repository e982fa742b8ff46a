"""The command line. Nothing heavy is imported before a command runs."""

from __future__ import annotations


def main() -> None:
    """Entry point. Errors of the engine end in one line on stderr and status 2."""
    import sys

    from specrouter_llm.cli.app import app
    from specrouter_llm.errors import SpecRouterError

    try:
        app()
    except SpecRouterError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
