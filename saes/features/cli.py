"""`interp features`: what the features of a coder stand for, as static pages or for one prompt. It parses, calls the library and shows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.terminal import refusals, show, table, visible, write_json

if TYPE_CHECKING:
    from interp.models import Model
    from saes.coders import Coder

app = typer.Typer(
    name="features", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Features of sparse dictionaries: dashboards as static pages, activations on a prompt.",
)  # fmt: skip

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Bundled name, folder or hub name.")]
CoderName = Annotated[str, typer.Argument(metavar="CODER", help="A layer of the bundled transcoders, such as 2, or the folder of a coder.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder that gets index.html, a page per feature, and the data.")]
Atlas = Annotated[int | None, typer.Option("--atlas", min=2, help="Look at so many documents of the demo models' corpus, with labels.")]
Text = Annotated[Path | None, typer.Option("--text", help="Look at texts: a file of lines, .jsonl or .parquet.")]
Top = Annotated[int, typer.Option(min=1, help="Strongest documents of each feature.")]
PerBand = Annotated[int, typer.Option("--per-band", min=1, help="Documents of each of five bands of its range.")]
Only = Annotated[str, typer.Option("--features", help="Such as 0,17; default: all that are ever active.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Json = Annotated[bool, typer.Option("--json", help="Pure JSON on standard output, for scripts.")]


@app.command()
def export(
    model: ModelName, coder: CoderName, out: Out, atlas: Atlas = None, text: Text = None, top: Top = 12, per_band: PerBand = 3,
    features: Only = "", device: Device = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Dashboards as static pages: an index that searches and sorts, a page per feature, and the data that `load_reports` reads."""
    with refusals():
        from interp.models import load
        from saes.features.export import export_html
        from saes.features.reporting import feature_reports

        loaded = load(model, device)
        found, chosen = _coder(model, coder), _numbers(features)
        documents, variables = _documents(loaded, atlas, text)
        (reports,) = feature_reports(loaded, found, documents, top=top, per_band=per_band, variables=variables, progress=not as_json)
        index = export_html(reports, out, chosen, progress=not as_json)
        reports.save(out)
    if as_json:
        counts = {"features": len(reports), "alive": len(reports.alive), "tokens": reports.statistics.tokens}
        write_json({"index": str(index), "pages": len(chosen if chosen is not None else reports.alive), **counts})
        return
    show(f"{len(reports.alive)} of {len(reports)} features are active on {reports.statistics.tokens} tokens.", f"Written: {index}")


@app.command()
def active(
    model: ModelName, coder: CoderName, prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
    top: Annotated[int, typer.Option(min=1, help="How many features of each token.")] = 5, device: Device = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """The features that each token of a prompt activates most."""
    with refusals():
        from interp.models import load
        from saes.features.activations import feature_activations

        found = feature_activations(load(model, device), _coder(model, coder), prompt)
    if as_json:
        write_json(found.table().to_dict("records"))
        return
    rows: list[tuple[Any, ...]] = []
    for pos, values in enumerate(found.dense()):
        best = values.argsort(kind="stable")[::-1]
        strongest = [f"{i} ({values[i]:.2f})" for i in best[:top] if values[i] > 0]
        rows.append((pos, visible(found.tokens[0][pos]), int((values > 0).sum()), "  ".join(strongest)))
    show(table(f"Features of {found.site}, {found.model}", ("pos", "token", "active", f"strongest {top}"), rows, right=("pos", "active")))


def _coder(model: str, name: str) -> "Coder":
    """A layer's bundled transcoder, or what lies in a folder."""
    from saes.formats import load
    from saes.zoo import bundled

    if not name.isdigit() or Path(name).exists():
        return load(name)
    coders = bundled(model)
    if int(name) >= len(coders):
        raise ValueError(f"There is no layer {name}: transcoders of the layers 0-{len(coders) - 1} of {model} are bundled.")
    return coders[int(name)]


def _documents(model: "Model", atlas: int | None, text: Path | None) -> tuple[Any, Any]:
    """(documents, their variables where they are known)."""
    from interp.store.texts import atlas_documents, read_texts

    if (atlas is None) == (text is None):
        raise ValueError("Give one of --atlas N and --text FILE.")
    if text is not None:
        return read_texts(text), None
    from saes.features.atlas import atlas_sample, atlas_variables

    return atlas_documents(model, atlas or 2), atlas_variables(atlas_sample(atlas or 2))


def _numbers(text: str) -> list[int] | None:
    try:
        return [int(part) for part in text.split(",") if part.strip()] or None
    except ValueError:
        raise ValueError(f"--features takes numbers with commas, such as 0,17; given {text!r}.") from None
