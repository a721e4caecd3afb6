"""`interp quant`: outliers, no-op heads, and what few bits cost. It parses, calls the library and shows."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.terminal import cell, refusals, show, table, write_json

if TYPE_CHECKING:
    import pandas as pd

    from interp.models import Model
    from interp.prompts import Prompts

app = typer.Typer(
    name="quant", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Outliers, heads that do nothing, and what few bits cost: a report, each tensor alone, a whole scheme, what helps.",
)  # fmt: skip

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Bundled name, folder or hub name.")]
Text = Annotated[Path | None, typer.Option("--text", help="Measure on texts: a file of lines, .jsonl or .parquet.")]
Atlas = Annotated[int | None, typer.Option("--atlas", min=1, help="Measure on so many documents of the demo models' corpus.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many texts, and as many others for ranges.")]
SchemeName = Annotated[str, typer.Option("--scheme", "-s", help="w8a8, w8a8-percentile, w8a8-token, w8, a8, w6a6, w4a8, w4, llm.int8.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Json = Annotated[bool, typer.Option("--json", help="Pure JSON on standard output, for scripts.")]
SIZES = {
    "tensor": "tensor", "absmax": "largest", "p50": "median", "p99.9": "99.9 %", "kurtosis": "kurtosis", "massive": "massive",
    "outliers": "over 6 s", "top_dim": "top dim",
}  # fmt: skip
HEADS = {
    "layer": "layer", "head": "head", "no_op": "no-op", "loss_zero": "lost", "sink_rate": "sink rate", "sink_mass": "sink mass",
    "value_sink_share": "of values", "output_to_stream": "output/stream",
}  # fmt: skip
TENSORS = {"tensor": "tensor", "only": "alone", "only_kl": "KL alone", "without": "all but it", "predicted": "estimate"}
REMEDIES = {
    "remedy": "remedy", "loss_float": "loss", "loss_quantized": "rounded", "kl": "KL", "recovered": "recovered", "bulk_sqnr": "bulk dB",
    "inf_norm": "largest",
}  # fmt: skip


@app.command()
def report(
    model: ModelName, text: Text = None, atlas: Atlas = None, limit: Limit = 64, scheme: SchemeName = "w8a8",
    html: Annotated[Path | None, typer.Option("--html", help="Also write one self-contained page with figures.")] = None,
    device: Device = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Sizes of all tensors, every head, the largest dimension's producers and consumers, and the cost of a scheme."""
    with refusals():
        from interp import quant
        from interp.quant.html_report import write_html
        from interp.quant.schemes import scheme_of

        scheme_of(scheme)  # refused now, not after all that comes before it
        loaded, data = _open(model, text, atlas, limit, device)
        found: dict[str, Any] = {
            "sizes": quant.activation_statistics(loaded, data.prompts, progress=not as_json),
            "heads": quant.head_report(loaded, data.prompts, progress=not as_json),
        }
        if loaded.n_layers > 1:
            found["trace"] = quant.trace(loaded, data.prompts, progress=not as_json)
        found["bits"] = quant.evaluate(loaded, data.prompts, scheme, calibration=data.calibration)
        if html is not None:
            write_html(html, loaded.name, data.said, found)
    if as_json:
        write_json(
            {"model": loaded.name, "documents": data.said, **{name: _plain(json.loads(one.to_json())) for name, one in found.items()}}
        )
        return
    show(f"{loaded.name} on {data.said}", "")
    sizes = found["sizes"]
    norms = ", ".join(f"{name} {value:.4g}" for name, value in sizes.inf_norm.items())
    dims = ", ".join(map(str, sizes.outlier_dimensions)) or "none"
    show(_frame("Sizes", sizes.table(), SIZES))
    show(f"Max inf-norm: {norms}. Mean kurtosis (paper): {sizes.mean_kurtosis:.1f}. LLM.int8 outlier dimensions: {dims}.", "")
    show(_frame("Heads (lost: nats per token without it)", found["heads"].table(), HEADS), "")
    if "trace" in found:
        traced = found["trace"]
        title = f"Who writes dimension {traced.dim} after layer {traced.layer} (mean {float(traced.value.mean()):.1f})?"
        rows = [(p.component, f"{p.contribution:+.2f}", cell(p.silenced)) for p in traced.producers]
        show(table(title, ("component", "addend", "change when silenced"), rows, right=("addend", "change when silenced")))
        show(f"Loss {traced.loss:.4f}; without it {traced.loss_without:.4f}; without random others {traced.loss_random:.4f}.", "")
    _bits(found["bits"])
    if html is not None:
        show("", f"Written: {html}")


@app.command()
def evaluate(
    model: ModelName, text: Text = None, atlas: Atlas = None, limit: Limit = 64, scheme: SchemeName = "w8a8", device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Loss, KL and the precision of every tensor of a scheme; ranges are found on other texts."""
    with refusals():
        from interp import quant

        loaded, data = _open(model, text, atlas, limit, device)
        found = quant.evaluate(loaded, data.prompts, scheme, calibration=data.calibration)
    if as_json:
        write_json(_plain(json.loads(found.to_json())) | {"documents": data.said})
        return
    _bits(found)
    order = found.table().sort_values("bulk_sqnr").head(12)
    columns = {"activation": "activation", "bulk_sqnr": "bulk", "sqnr": "all entries"}
    show("", _frame(f"Signal to noise (dB): the worst {len(order)} of {len(found.activations)} activations", order, columns))


@app.command()
def sensitivity(
    model: ModelName, text: Text = None, atlas: Atlas = None, limit: Limit = 32, scheme: SchemeName = "w8a8",
    top: Annotated[int, typer.Option(min=1, help="Tensors shown.")] = 20, device: Device = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Each tensor rounded alone, and all but it: which one hurts? Beside it the estimate from gradients."""
    with refusals():
        from interp import quant

        loaded, data = _open(model, text, atlas, limit, device)
        found = quant.sensitivity(loaded, data.prompts, scheme, calibration=data.calibration, progress=not as_json)
    if as_json:
        write_json(_plain(json.loads(found.to_json())) | {"documents": data.said})
        return
    frame = found.table().sort_values("only_kl", ascending=False)
    title = f"{loaded.name}, {scheme}: the worst {min(top, len(frame))} of {len(frame)} tensors, nats per token"
    show(_frame(title, frame.head(top), TENSORS))
    show(f"Sum of all alone {found.additive:+.4f}, all together {found.damage:+.4f}; rank correlation of estimate and measurement "
         f"{found.rank_correlation:.2f}. Measured on {data.said}.")  # fmt: skip


@app.command()
def remedy(
    model: ModelName, text: Text = None, atlas: Atlas = None, limit: Limit = 32, scheme: SchemeName = "w8a8",
    plan: Annotated[list[Path] | None, typer.Option("--plan", "-p", help="A JSON file of remedies in order; may be repeated.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write one self-contained page with a figure.")] = None,
    device: Device = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """The scheme without and with remedies: clipping, kept features, smoothing, rotation, position 0; or plans of one's own."""
    with refusals():
        from interp import quant
        from interp.quant.html_report import write_html
        from interp.quant.remedies.standard import standard_remedies

        loaded, data = _open(model, text, atlas, limit, device)
        left_out: tuple[str, ...] = ()
        if plan:
            plans = tuple(quant.remedies_from_json(_read(path)) for path in plan)
        else:
            plans, left_out = standard_remedies(loaded, scheme)
        found = quant.remedy(loaded, data.prompts, plans, scheme, calibration=data.calibration, progress=not as_json)
        if html is not None:
            write_html(html, loaded.name, data.said, {"remedies": found})
    if as_json:
        write_json(_plain(json.loads(found.to_json())) | {"documents": data.said, "left_out": left_out})
        return
    show(_frame(f"{loaded.name}, {scheme}, on {data.said}: nats per token", found.table(), REMEDIES))
    show(f"Least KL: {found.best.name}. recovered: share of the KL without remedies that is gone.")
    for reason in left_out:
        show(f"Left out: {reason}")
    if html is not None:
        show("", f"Written: {html}")


@dataclass(frozen=True)
class _Data:
    """What is measured on, and what ranges are found on."""

    prompts: "Prompts"
    calibration: "Prompts"
    said: str


def _open(name: str, text: Path | None, atlas: int | None, limit: int, device: str) -> "tuple[Model, _Data]":
    from interp.models import load
    from interp.quant.held_out import held_out
    from interp.store.documents import as_documents
    from interp.store.texts import atlas_documents, read_texts

    if (text is None) == (atlas is None):
        raise ValueError("Give one of --text FILE and --atlas N.")
    loaded = load(name, device)
    if text is None:
        atlas_documents(loaded, 1)  # refuses a model of other words
        found = held_out(atlas or 1)
        return loaded, _Data(found.prompts, found.calibration, f"{atlas} documents of the demo models' corpus, ranges on {atlas} others")
    texts = list(read_texts(text, limit=2 * limit))
    if not texts:
        raise ValueError(f"{text} has no texts; at least two are needed, one of them to find ranges on.")
    documents = as_documents(loaded, texts)
    n, said = len(documents) // 2, f"{len(documents) // 2} texts of {text.name}"
    if n < 1:
        raise ValueError(f"{text} has {len(documents)} text(s); at least two are needed, one of them to find ranges on.")
    prompts, calibration = (documents.prompts(range(first, 2 * n, 2)) for first in (0, 1))
    return loaded, _Data(prompts, calibration, f"{said}, ranges on {n} others")


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"No file {path} with a plan of remedies (quant.remedies_to_json writes one).")
    return path.read_text(encoding="utf-8")


def _bits(found: Any) -> None:
    low, high = found.interval()
    n = len(found.n_tokens)
    spread = f"95 % interval {low:+.4f} to {high:+.4f}, {n} texts" if math.isfinite(low) else f"{n} text: no interval"
    show(f"{found.model}, rounded: loss {found.loss:.4f} -> {found.loss_quantized:.4f} nats per token ({found.damage:+.4f}, "
         f"{spread}), KL {found.kl:.5f}, {found.agreement:.1%} of likeliest next tokens stay; "
         f"{len(found.weights)} weights and {len(found.activations)} activations rounded, ranges on {found.calibrated_on}.")  # fmt: skip


def _frame(title: str, frame: "pd.DataFrame", columns: dict[str, str]) -> Any:
    """Columns of a data frame under shorter names, as a table of the terminal."""
    numbers = [shown for name, shown in columns.items() if frame[name].dtype.kind in "if"]
    rows = [[cell(value) for value in row] for row in zip(*(frame[name].tolist() for name in columns), strict=True)]
    return table(title, list(columns.values()), rows, right=numbers)


def _plain(value: Any) -> Any:
    """JSON without NaN and infinities, which scripts cannot read."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
