"""`interp train`: sparse autoencoders, transcoders and crosscoders of a model, live or from a store. It parses, calls and shows."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.terminal import refusals, show, table, write_json

if TYPE_CHECKING:
    from interp.models import Model
    from interp.prompts import Prompts
    from interp.store import Store
    from interp.store.documents import Documents
    from saes.coders import Coder
    from saes.config import Config
    from saes.crosscoders import Block

app = typer.Typer(
    name="train", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Train sparse dictionaries of a model: autoencoders of any site, transcoders of its MLPs, crosscoders of several sites.",
)  # fmt: skip

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Bundled name, folder or hub name.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder that gets the coders' folders, training.jsonl and the checkpoint.")]
Text = Annotated[Path | None, typer.Option("--text", help="Train on texts: a file of lines, .jsonl or .parquet.")]
Atlas = Annotated[int | None, typer.Option("--atlas", min=1, help="Train on so many documents of the demo models' corpus.")]
StoreDir = Annotated[Path | None, typer.Option("--store", help="Train on what `interp harvest` stored.")]
Kind = Annotated[str, typer.Option(help="topk, batchtopk, jumprelu, relu, gated, matryoshka.")]
JointKind = Annotated[str, typer.Option("--kind", help="topk, batchtopk, jumprelu, relu.")]
Features = Annotated[int, typer.Option("--features", "-m", min=1, help="Size of the dictionary.")]
Active = Annotated[int, typer.Option("-k", min=1, help="Active features per token.")]
Steps = Annotated[int, typer.Option(min=0)]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Tokens of a step.")]
Rate = Annotated[float | None, typer.Option("--lr", help="Learning rate (default: by the dictionary's size).")]
Seed = Annotated[int, typer.Option()]
Format = Annotated[str, typer.Option(help="workbench, saelens or circuit-tracer.")]
Log = Annotated[str | None, typer.Option("--log", help="Metrics also to tensorboard:DIR or wandb:PROJECT.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Json = Annotated[bool, typer.Option("--json", help="Pure JSON on standard output, for scripts.")]


MEASURED = 128
"""Documents that coders are measured on."""
EVERY = 200
"""Steps between two checkpoints."""


@app.command()
def transcoder(
    model: ModelName, out: Out, layers: Annotated[str, typer.Option(help="Such as 0,2,5; default: every layer.")] = "",
    skip: Annotated[bool, typer.Option("--skip", help="A linear map beside the features.")] = False,
    text: Text = None, atlas: Atlas = None, store: StoreDir = None, kind: Kind = "topk", features: Features = 4096,
    k: Active = 32, steps: Steps = 10_000, batch_size: Batch = 1024, lr: Rate = None, seed: Seed = 0,
    format: Format = "workbench", log: Log = None, device: Device = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Transcoders of MLPs, all trained from one forward of the model: normalised input in, what the MLP adds to the stream out."""
    with refusals():
        from interp.models import load
        from saes.config import Config
        from saes.training import mlp_transcoders

        loaded = load(model, device)
        base = Config(kind, features, k, steps, batch_size, lr, seed, skip=skip)  # type: ignore[arg-type]
        configs = mlp_transcoders(loaded, base, _layers(layers, loaded.n_layers))
        _train(loaded, configs, _Data(text, atlas, store), out, format, as_json, log)


@app.command()
def sae(
    model: ModelName, out: Out, site: Annotated[list[str], typer.Option("--site", "-s", help="A site or pattern; may be repeated.")],
    text: Text = None, atlas: Atlas = None, store: StoreDir = None, kind: Kind = "topk", features: Features = 4096,
    k: Active = 32, steps: Steps = 10_000, batch_size: Batch = 1024, lr: Rate = None, seed: Seed = 0,
    format: Format = "workbench", log: Log = None, device: Device = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Autoencoders of sites such as "blocks.*.hook_resid_post", all trained from one forward of the model."""
    with refusals():
        from interp.models import load
        from saes.config import Config

        loaded = load(model, device)
        base = Config(kind, features, k, steps, batch_size, lr, seed)  # type: ignore[arg-type]
        configs = [replace(base, input_site=s.name) for s in loaded.sites().expand(site)]
        _train(loaded, configs, _Data(text, atlas, store), out, format, as_json, log)


@app.command()
def clt(
    model: ModelName, out: Out, layers: Annotated[str, typer.Option(help="Neighbouring ones, such as 2,3,4; default: every layer.")] = "",
    skip: Annotated[bool, typer.Option("--skip", help="Linear maps beside the features.")] = False,
    text: Text = None, atlas: Atlas = None, store: StoreDir = None, kind: JointKind = "topk", features: Features = 4096,
    k: Active = 32, steps: Steps = 10_000, batch_size: Batch = 1024, lr: Rate = None, seed: Seed = 0,
    format: Annotated[str, typer.Option(help="workbench or circuit-tracer.")] = "workbench", log: Log = None, device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """A cross-layer transcoder: features of each layer's MLP input write to its output and all later ones. -m and -k: of a layer."""
    with refusals():
        from interp.models import load
        from saes.config import Config
        from saes.crosscoders import clt_blocks

        loaded = load(model, device)
        config = Config(kind, features, k, steps, batch_size, lr, seed, skip=skip)  # type: ignore[arg-type]
        blocks = clt_blocks(loaded, _layers(layers, loaded.n_layers))
        _train_blocks(loaded, blocks, config, _Data(text, atlas, store), out, "cross-layer-transcoder", format, as_json, log)


@app.command()
def crosscoder(
    model: ModelName, out: Out, site: Annotated[list[str], typer.Option("--site", "-s", help="A site or pattern; may be repeated.")],
    causal: Annotated[bool, typer.Option("--causal", help="A code of each site, for it and those after it.")] = False,
    text: Text = None, atlas: Atlas = None, store: StoreDir = None, kind: JointKind = "topk", features: Features = 4096,
    k: Active = 32, steps: Steps = 10_000, batch_size: Batch = 1024, lr: Rate = None, seed: Seed = 0,
    log: Log = None, device: Device = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """A crosscoder: one code that reads several sites at once, such as "blocks.*.hook_resid_post", and reconstructs all of them."""
    with refusals():
        from interp.models import load
        from saes.config import Config
        from saes.crosscoders import crosscoder_blocks

        loaded = load(model, device)
        config = Config(kind, features, k, steps, batch_size, lr, seed)  # type: ignore[arg-type]
        blocks = crosscoder_blocks([s.name for s in loaded.sites().expand(site)], causal)
        _train_blocks(loaded, blocks, config, _Data(text, atlas, store), out, "crosscoder", "workbench", as_json, log)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A .pt of transcoder_circuits, dictionary_learning or OpenAI's sparse_autoencoder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that gets the coder.")],
    format: Format = "workbench",
    normalized: Annotated[
        bool, typer.Option("--normalized", help="Take an OpenAI top-k coder as one of rows that are normalised.")
    ] = False,
) -> None:
    """A pickled coder made into safetensors, once; nothing of the file is run."""
    with refusals():
        from saes.formats.pickled import convert as convert_file

        coder = convert_file(file, out, format, normalized=normalized)
        show("", f"Written: {out} ({coder.extra_repr()})")


@dataclass(frozen=True)
class _Data:
    """What was given to train on: exactly one."""

    text: Path | None
    atlas: int | None
    store: Path | None

    def read(self, model: "Model") -> "tuple[Store | None, Documents]":
        """(the store, if it is one, documents)."""
        from interp.store import open_store
        from interp.store.documents import as_documents
        from interp.store.texts import atlas_documents, read_texts

        if sum(x is not None for x in (self.text, self.atlas, self.store)) != 1:
            raise ValueError("Give one of --text FILE, --atlas N and --store DIR.")
        if self.store is not None:
            store = open_store(self.store, model)
            return store, store.documents
        if self.text is not None:
            return None, as_documents(model, read_texts(self.text))
        return None, atlas_documents(model, self.atlas or 1)

    def measured(self, model: "Model", documents: "Documents") -> "tuple[Prompts, str]":
        """Prompts to measure on, and what they are: new ones of the atlas, else the last that were trained on."""
        from interp.store.texts import atlas_documents

        if self.atlas is not None:
            return atlas_documents(model, MEASURED, seed=2).prompts(range(MEASURED)), "new documents"
        first = max(0, len(documents) - MEASURED)
        return documents.prompts(range(first, len(documents))), "documents that were trained on"


def _train(model: "Model", configs: "list[Config]", data: _Data, out: Path, format: str, as_json: bool, where: str | None) -> None:
    from saes.formats import WRITERS
    from saes.loggers import logger
    from saes.training import train

    if format not in WRITERS:  # said before hours of training, not after
        raise ValueError(f"No format {format!r} to write: there are {', '.join(WRITERS)}.")
    metrics = (out / "training.jsonl", *((logger(where),) if where else ()))
    store, documents = data.read(model)
    checkpoint = out / "checkpoint.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"progress": True, "metrics": metrics, "checkpoint": checkpoint, "checkpoint_every": EVERY}
    coders = train(store, configs, **options) if store is not None else train(model, configs, documents, **options)
    assert isinstance(coders, list)
    folders = [coder.save(out / str(coder.target_site), format) for coder in coders]
    checkpoint.unlink(missing_ok=True)
    _report(model, coders, folders, *data.measured(model, documents), as_json)


def _report(model: "Model", coders: "list[Coder]", folders: list[Path], prompts: "Prompts", what: str, as_json: bool) -> None:
    """What each coder is worth."""
    from saes.evaluation import evaluate

    found = [evaluate(model, coder, prompts) for coder in coders]
    rows: list[dict[str, Any]] = [{"folder": str(f), "site": e.target_site, **e.summary()} for f, e in zip(folders, found, strict=True)]
    if as_json:
        write_json([_plain(row) for row in rows])
        return
    columns = ("l0", "fvu", "ce_recovered", "kl", "dead_fraction")
    cells = [(row["site"], *(f"{row[c]:.3f}" for c in columns)) for row in rows]
    title = f"{len(rows)} coders of {model.name}, measured on {found[0].tokens} tokens of {what}"
    show(table(title, ("site", *columns), cells, right=columns))
    show("", f"Written: {folders[0].parent}")


def _train_blocks(
    model: "Model", blocks: "tuple[Block, ...]", config: "Config", data: _Data, out: Path, name: str, format: str, as_json: bool,
    where: str | None,
) -> None:  # fmt: skip
    from saes.crosscoders import evaluate_crosscoder, train_crosscoder
    from saes.formats.crosscoders import check_writable
    from saes.loggers import logger

    check_writable(blocks, config.skip, format)
    metrics = (out / "training.jsonl", *((logger(where),) if where else ()))
    store, documents = data.read(model)
    checkpoint = out / "checkpoint.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    source, given = (store, None) if store is not None else (model, documents)
    options: dict[str, Any] = {"progress": True, "metrics": metrics, "checkpoint": checkpoint, "checkpoint_every": EVERY}
    found = train_crosscoder(source, blocks, config, given, **options)
    folder = found.save(out / name, format)
    checkpoint.unlink(missing_ok=True)
    prompts, what = data.measured(model, documents)
    measured = evaluate_crosscoder(model, found, prompts)
    frame = measured.table().drop(columns=["model", "coder", "tokens"])
    if as_json:
        write_json({"folder": str(folder), **_plain(measured.summary()), "sites": [_plain(row) for row in frame.to_dict("records")]})
        return
    columns = ("block_l0", "l0", "fvu", "ce_recovered_alone", "dead_fraction")
    cells = [(row["site"], *(f"{row[c]:.3f}" for c in columns)) for row in frame.to_dict("records")]
    show(table(f"{found}, measured on {measured.tokens} tokens of {what}", ("site", *columns), cells, right=columns))
    losses = f"CE {measured.ce_clean:.3f} -> {measured.ce_replaced:.3f} nats per token, {measured.ce_recovered:.3f} recovered"
    show("", f"All sites replaced: {losses}, KL {measured.kl:.3f}; {measured.total_l0:.1f} active features per token in all.")
    show("", f"Written: {folder}")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """NaN as null, which JSON knows."""
    return {name: None if value != value else value for name, value in values.items()}


def _layers(text: str, n_layers: int) -> list[int] | None:
    try:
        chosen = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--layers takes numbers with commas, such as 0,2,5; given {text!r}.") from None
    if wrong := [layer for layer in chosen if not 0 <= layer < n_layers]:
        raise ValueError(f"There is no layer {wrong[0]}: the model has layers 0-{n_layers - 1}.")
    return chosen or None
