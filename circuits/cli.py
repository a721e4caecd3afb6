"""`interp circuit`: finds, evaluates and compares circuits. It parses, calls the library and shows."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.terminal import refusals, show, table, write_json

if TYPE_CHECKING:
    from circuits.tasks import Task
    from interp.models import Model

app = typer.Typer(
    name="circuit", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Which edges of a model do a task: find them, measure how faithful they are, compare two files of scores (MIB's JSON).",
)  # fmt: skip

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Bundled name, folder or hub name.")]
TaskName = Annotated[str, typer.Option("--task", "-t", help="ioi, greater-than, colored-objects ... or a CSV file of pairs.")]
Rows = Annotated[int, typer.Option("--prompts", "-n", min=1, help="How many pairs of prompts.")]
Seed = Annotated[int, typer.Option(help="Draws the prompts and the random circuits.")]
Ablation = Annotated[str, typer.Option(help="What a removed edge carries: patch, zero, mean, positional-mean.")]
RankBy = Annotated[str | None, typer.Option("--rank-by", help="absolute or signed (default: what the scores say).")]
Json = Annotated[bool, typer.Option("--json", help="Pure JSON on standard output, for scripts.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
SIZES = "0.01,0.02,0.05,0.1,0.2,0.5,1"


@app.command()
def find(
    model: ModelName, task: TaskName = "ioi",
    method: Annotated[str, typer.Option("--method", "-m", help="eap-ig-inputs, eap, relp, exact ...")] = "eap-ig-inputs",
    size: Annotated[float, typer.Option("--size", "-s", help="Share of the edges, in (0, 1].")] = 0.1,
    steps: Annotated[int, typer.Option(min=1, help="Of the interpolating methods.")] = 5,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write all scores, and what is in the circuit, as MIB's JSON.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many edges to list.")] = 10,
    prompts: Rows = 64, seed: Seed = 0, ablation: Ablation = "patch", rank_by: RankBy = None, device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Scores all edges of a model on a task and keeps the best."""
    with refusals():
        from circuits.edges.attribution import attribute
        from circuits.evaluation.faithfulness import measure_circuits

        loaded, pairs = _load(model, task, prompts, seed, device)
        scores = attribute(loaded, pairs, method, ablation=ablation, steps=steps)  # type: ignore[arg-type]
        circuit = scores.circuit(size, rank_by)  # type: ignore[arg-type]
        measured = measure_circuits(loaded, pairs, [circuit], ablation)  # type: ignore[arg-type]
        faithful = float(measured.faithfulness[0])
        if out is not None:
            scores.to_mib(out, circuit)
    names = circuit.names()
    best = sorted(((abs(scores[name]), name) for name in names), reverse=True)
    heads = [f"{layer}.{head}" for layer, head in circuit.heads]
    if as_json:
        found: dict[str, Any] = {"model": loaded.name, "task": pairs.name, "prompts": len(pairs), "method": method, "ablation": ablation}
        found |= {"size": size, "n_edges": circuit.n_edges, "of": circuit.graph.n_edges, "heads": circuit.heads, "faithfulness": faithful}
        write_json(found | {"metric": measured.metric, "unit": measured.unit, "edges": {name: scores[name] for name in names}})
        return
    show(f"{circuit.n_edges} of {circuit.graph.n_edges} edges, faithfulness {faithful:.3f} (0: every edge ablated, 1: the whole model)")
    show("Measured on the prompts that the scores are from; `interp circuit evaluate` takes others.", "")
    show(f"Heads: {' '.join(heads) or 'none'}", "")
    rows = [(name, f"{scores[name]:+.4f}") for _, name in best[:top]]
    show(table(f"Strongest edges: {len(rows)} of {circuit.n_edges}", ("edge", f"score ({scores.header.unit})"), rows))
    if out is not None:
        show("", f"Written: {out}")


@app.command()
def evaluate(
    model: ModelName, file: Annotated[Path, typer.Argument(help="Scores of the edges: MIB's JSON, such as `find --out` writes.")],
    task: TaskName = "ioi", sizes: Annotated[str, typer.Option(help="Growing shares of the edges, with commas.")] = SIZES,
    random: Annotated[int, typer.Option(min=0, help="How many random rankings beside it.")] = 3,
    prompts: Rows = 64, seed: Seed = 1, ablation: Ablation = "patch", rank_by: RankBy = None, device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """The faithfulness of the circuits that a file of scores chooses, size by size."""
    with refusals():
        from circuits.edges.scores import EdgeScores
        from circuits.evaluation.faithfulness import faithfulness

        wanted, scores = _sizes(sizes), EdgeScores.from_mib(file)
        loaded, pairs = _load(model, task, prompts, seed, device)
        curve = faithfulness(loaded, pairs, scores, ablation, rank_by, sizes=wanted, n_random=random, seed=seed)  # type: ignore[arg-type]
    if as_json:
        write_json(json.loads(curve.to_json()) | {"prompts": len(pairs), "scores_of": scores.header.model})
        return
    if scores.header.model not in ("unstated", loaded.name):
        show(f"NOTE: these scores were made on {scores.header.model}; here they choose circuits of {loaded.name}.", "")
    frame = curve.table()
    columns = ["size", "edges", "faithfulness", "low", "high", *(["random"] if random else [])]
    rows = [[f"{row[c]:g}" if c in ("size", "edges") else f"{row[c]:.3f}" for c in columns] for row in frame.to_dict("records")]
    show(table(f"{pairs.name} on {loaded.name}, {len(pairs)} prompts, ablation {ablation}", columns, rows, right=columns))
    show("", f"CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f} (areas over the share of edges)")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Scores of the edges: MIB's JSON.")],
    second: Annotated[Path, typer.Argument(help="Other scores of the same graph.")],
    sizes: Annotated[str, typer.Option(help="Shares of the edges or heads, with commas.")] = "0.01,0.02,0.05,0.1",
    unit: Annotated[str, typer.Option(help="edges or heads")] = "edges",
    rank_by: RankBy = None, as_json: Json = False,
) -> None:  # fmt: skip
    """How much two circuits share, beside what random ones of their size would."""
    with refusals():
        from circuits.edges.scores import EdgeScores
        from circuits.reuse.overlap import overlap_of_scores

        a, b = (EdgeScores.from_mib(path) for path in (first, second))
        found = overlap_of_scores(a, b, _sizes(sizes), unit, rank_by)  # type: ignore[arg-type]
    if as_json:
        write_json({"unit": unit, "of": found.n, "sizes": json.loads(found.to_json())})
        return
    columns = ("size", "k", "shared", "overlap", "chance", "95 % of random sets", "p")
    rows = [
        (f"{r['fraction']:g}", r["k"], r["shared"], f"{r['overlap']:.3f}", f"{r['chance']:.3f}",
         f"{r['chance_low']:.3f} - {r['chance_high']:.3f}", f"{r['p']:.2g}")
        for r in found.table().to_dict("records")
    ]  # fmt: skip
    show(table(f"Shared {unit} of {found.n}", columns, rows, right=columns))


@app.command()
def features(
    model: ModelName, text: Annotated[str, typer.Argument(help="One prompt.")],
    answers: Annotated[str, typer.Option(help="A token, or CORRECT,INCORRECT; none: the likeliest next tokens.")] = "",
    coders: Annotated[Path | None, typer.Option(help="Folder with a folder for each MLP's transcoder (default: bundled).")] = None,
    max_nodes: Annotated[int, typer.Option(min=0, help="Features to trace.")] = 500,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the whole graph as JSON.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many nodes to list.")] = 15, device: Device = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Which transcoder features, tokens and errors bring the next token about: the feature graph of a prompt."""
    with refusals():
        import saes
        from circuits.features import feature_graph
        from interp.models import load
        from interp.safefiles import write_text

        loaded = load(model, device)
        own = saes.bundled(loaded.name) if coders is None else [saes.load(folder) for folder in _coder_folders(coders)]
        ids = tuple(_token(loaded, word) for word in answers.split(",")) if answers else None
        graph = feature_graph(loaded, text, own, ids[0] if ids is not None and len(ids) == 1 else ids, max_nodes=max_nodes)  # type: ignore[arg-type]
        if out is not None:
            write_text(out, graph.to_json())
    if as_json:
        write_json(json.loads(graph.to_json()))
        return
    show(f"{graph.n_features} of {graph.n_active} active features, {graph.n_edges} edges", "")
    show(f"Replacement score {graph.scores.replacement:.3f}, completeness score {graph.scores.completeness:.3f}", "")
    rows = [(id, graph[id].label, "" if (p := graph[id].pos) is None else graph.words[p], f"{part:.3f}") for id, part in graph.top(top)]
    show(table(f"Most influence: {len(rows)} of {len(graph.nodes)} nodes", ("node", "label", "at", "influence"), rows))
    if out is not None:
        show("", f"Written: {out}")


def _coder_folders(folder: Path) -> list[Path]:
    """What `interp train transcoder MODEL --out FOLDER` writes: a folder for each coder, whatever its name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; `interp train transcoder MODEL --out {folder}` writes one.")
    found = sorted(inside for inside in folder.iterdir() if inside.is_dir() and not inside.name.startswith("."))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no folders of coders; give the one that `interp train transcoder MODEL --out FOLDER` wrote."
        )
    return found


def _load(name: str, task: str, n: int, seed: int, device: str) -> "tuple[Model, Task]":
    from circuits.tasks import Task
    from circuits.tasks import task as make
    from interp.models import load

    model = load(name, device)
    return model, Task.from_csv(task, model) if task.endswith(".csv") else make(task, model, n, seed)


def _token(model: "Model", word: str) -> int:
    ids = model.encode(word, bos=False).rows()[0]
    if len(ids) != 1:
        raise ValueError(f"An answer is one token; {word!r} has {len(ids)} in {model.name}.")
    return ids[0]


def _sizes(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--sizes takes fractions with commas, such as {SIZES}; given {text!r}.") from None
