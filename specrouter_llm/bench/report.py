"""`specrouter report`: result files joined into one HTML page that needs nothing beside itself."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from specrouter_llm.bench.experiments import module_of, showing, table_of
from specrouter_llm.bench.plots import check_plot
from specrouter_llm.errors import MissingDependencyError

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .15rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }
td.right, th.right { text-align: right; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; font-size: 13px; }
dd { margin: 0; }
code { font-size: 13px; overflow-wrap: anywhere; }
img { max-width: 100%; }
"""


def page(results: Sequence[tuple[Path, Mapping[str, Any]]]) -> str:
    """An HTML document of (file, result) pairs, with plots where matplotlib is installed.

    Raises:
        InvalidParameterError: the rows of a result are not what its experiment writes; the message names the file.
    """
    try:
        check_plot(Path("plot.svg"))
        plots, note = True, ""
    except MissingDependencyError as error:
        plots, note = False, f"<p>Without plots: {html.escape(str(error))}</p>"
    sections = []
    for path, content in results:
        with showing(path):
            sections.append(_section(path.stem, content, plots))
    names = [path.stem for path, _ in results]
    contents = "".join(f'<li><a href="#{_anchor(name)}">{html.escape(name)}</a></li>' for name in names)
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>specrouter-llm: results</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>specrouter-llm: results</h1>\n{note}<ul>{contents}</ul>\n"
        f"{body}\n</body>\n</html>\n"
    )


def _anchor(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _section(name: str, content: Mapping[str, Any], plots: bool) -> str:
    tables = "\n".join(_html(table) for table in tables_in(table_of(content)))
    return (
        f'<section id="{_anchor(name)}">\n<h2>{html.escape(name)}: {html.escape(content["experiment"])}</h2>\n'
        f"<p><code>{html.escape(content['command'])}</code></p>\n{_plot(content) if plots else ''}\n{tables}\n"
        f"<h3>Settings</h3>\n{_pairs(content['settings'])}\n<h3>Machine and versions</h3>\n{_pairs(content['machine'])}\n"
        "</section>"
    )


def _pairs(values: Mapping[str, Any]) -> str:
    pairs = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in values.items())
    return f"<dl>{''.join(pairs)}</dl>"


def _plot(content: Mapping[str, Any]) -> str:
    """The experiment's plot as an image within the page; nothing if it has none, or nothing to draw."""
    draw = getattr(module_of(content["experiment"]), "plot", None)
    if draw is None or not content["rows"]:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plot.svg"
        draw(content["rows"], path)
        image = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{html.escape(content["experiment"])}" src="data:image/svg+xml;base64,{image}">'


def tables_in(shown: Any) -> Iterator[Table]:
    """The tables in what an experiment shows."""
    if isinstance(shown, Table):
        yield shown
    elif isinstance(shown, Group):
        for each in shown.renderables:
            yield from tables_in(each)


def _html(table: Table) -> str:
    columns = table.columns
    head = "".join(_cell("th", column.header, column.justify) for column in columns)
    rows = zip(*(column.cells for column in columns), strict=True)
    body = "\n".join(
        "<tr>" + "".join(_cell("td", cell, c.justify) for cell, c in zip(row, columns, strict=True)) + "</tr>"
        for row in rows
    )
    caption = f"<caption>{html.escape(str(table.title))}</caption>" if table.title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _cell(tag: str, content: Any, justify: str) -> str:
    return f"<{tag}{' class=right' if justify == 'right' else ''}>{html.escape(str(content))}</{tag}>"
