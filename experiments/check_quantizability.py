"""Do the figures published for real checkpoints come out of your copies of them? A row per figure: pass, fail, or what is missing.

    python -m experiments.check_quantizability --text wikitext2-test.txt                  # every checkpoint of the rows
    python -m experiments.check_quantizability gpt2 --text wikitext2-test.txt --windows 20
    python -m experiments.check_quantizability gpt2 --weights ./my-gpt2 --out checks.json

The text is wikitext-2's raw test split, its lines joined by two newlines. Rows: experiments/configs/quantizability_published.json.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from interp.quant.published import PublishedTable, check_published, read_published
from interp.terminal import refusals

ROWS = Path(__file__).parent / "configs" / "quantizability_published.json"
COLORS = {"pass": "green", "fail": "red", "excluded": "dim"}


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Checkpoints of the rows; all by default.")] = None,
    text: Annotated[Path | None, typer.Option(help="A text file.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A folder with the weights of the one model named.")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Only so many windows of the text.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    rows: Annotated[Path, typer.Option(help="Published rows.")] = ROWS,
    out: Annotated[Path | None, typer.Option(help="Also write the table to this JSON file.")] = None,
) -> None:
    """Prints the table; exit code 1 if any figure fails."""
    with refusals():
        published = read_published(rows)
    names = models or list(dict.fromkeys(row.model for row in published))
    if weights is not None and len(names) != 1:
        raise typer.BadParameter(f"--weights is for one model; given {len(names)}.")
    content = None if text is None else text.read_text(encoding="utf-8")
    with refusals():
        tables = [check_published(name, published, content, weights=weights, device=device, windows=windows) for name in names]
    for found in tables:
        for line in shown(found):
            Console().print(line, highlight=False, soft_wrap=True)
    if out is not None:
        out.write_text(json.dumps([json.loads(found.to_json()) for found in tables], indent=1) + "\n", encoding="utf-8")
    if any(check.status == "fail" for found in tables for check in found.checks):
        raise typer.Exit(1)


def shown(found: PublishedTable) -> Iterator[str]:
    """One line per figure, for a terminal; what is missing is said once."""
    missing = set()
    yield f"[bold]{found.model}[/]" + ("" if found.windows is None else f", {found.windows} windows of the text")
    for check in found.checks:
        row = check.row
        how = ", ".join(f"{k} {v}" for k, v in row.arguments.items())
        target = "" if row.target is None else f" {row.target:g}" + ("" if row.tolerance is None else f" +- {row.tolerance:g}")
        measured = "" if check.measured is None else f", measured {check.measured:.4g}"
        said = f": {escape(check.said)}" if check.said and check.said not in missing else ""
        missing.add(check.said)
        color = COLORS.get(check.status, "yellow")
        yield f"  [{color}]{check.status:13}[/] {row.quantity}{f' ({how})' if how else ''}{target}{measured} ({row.confidence}){said}"


if __name__ == "__main__":
    typer.run(main)
