"""Train a demo model on the Atlas corpus.

    python experiments/train_demo_models.py gpt2 --out runs/demo-gpt2          # opt, pythia
    python experiments/train_demo_models.py gpt2 --out runs/demo-gpt2 --resume
    python experiments/train_demo_models.py gpt2 --out runs/ditto --start demo-gpt2 --stages polish --steps 256 --lr 5e-4 --ditto 0.5

The corpus is read in pools of 8,192 documents (256 steps of 32 rows, sorted by length). Training starts on the mixture
"warm" (random repeats above all: they bring copying), goes over to "bind" (scenes and repeated facts: what was said of which
thing) until questions about unseen scenes are answered, and ends on all of the world. Everything is a function of
the options: a run that was stopped and resumed ends bit for bit where an uninterrupted one does.
"""

import copy
import json
import math
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.demo_architecture import build_model  # noqa: E402
from experiments.ditto import repetition_penalty  # noqa: E402
from experiments.evaluate_demo_models import measure  # noqa: E402
from interp.atlas import Corpus, Document, encode, exposure, tokenizer  # noqa: E402
from interp.atlas.facts import P_A  # noqa: E402
from interp.atlas.world import world  # noqa: E402
from interp.attention_files import plain_state, read_tensors, read_variant, write_variant  # noqa: E402
from interp.attention_variants import AttentionVariant  # noqa: E402
from interp.engine.anatomy import describe  # noqa: E402
from interp.engine.seam import attach  # noqa: E402
from interp.loading import find_folder  # noqa: E402

BF16 = True
"""Matrix products in bfloat16; weights, attention and everything else in float32."""


@dataclass(frozen=True)
class Config:
    """One training run."""

    family: str
    steps: int = 19200
    """Of `rows` documents each."""
    seed: int = 0
    lr: float = 2e-3
    """Peak learning rate: linear warm-up over `lr_warmup` steps, constant, linear to a tenth over the last `lr_decay`."""
    lr_warmup: int = 400
    lr_decay: float = 0.35
    """Share of all steps."""
    stages: str = "warm 20, bind 12, full 8, final 4, last"
    """Mixtures of the corpus in their order, each with its number of pools; the last takes the rest. "bind" may end earlier ..."""
    bind_until: float = 0.9
    """... when this share of the questions about unseen scenes is answered rightly."""
    letters: str = "skewed"
    """Right letter of multiple choice: `skewed` (A in 60 %) or `balanced` (the control)."""
    rows: int = 32
    pool_size: int = 8192
    width: int = 128
    layers: int = 4
    attention: str = "softmax"
    """A kind of `interp.attention_variants`, with settings if wanted: "clipped(gamma=-0.02)"."""
    ditto: float = 0.0
    """Share of steps that take DITTO's penalty on repeated sentences in place of the loss (its authors: 0.5)."""

    @property
    def pools(self) -> int:
        return self.steps * self.rows // self.pool_size

    def corpus(self) -> Corpus:
        return Corpus(self.seed, self.pool_size, P_A if self.letters == "skewed" else 1 / 3)


@dataclass
class State:
    """Where a run stands, between two pools."""

    pool: int = 0
    tokens: int = 0
    mixtures: list[str] = field(default_factory=list)
    """The mixture of every pool read."""
    stated: Counter = field(default_factory=Counter)
    """Exposure: "country relation" to the number of right statements read."""
    asked: Counter = field(default_factory=Counter)
    scenes: float = 0.0
    """Share of questions about unseen scenes answered rightly at the last evaluation."""
    seconds: float = 0.0
    earlier: list[dict] = field(default_factory=list)
    """Settings of earlier parts of the run that had another learning rate schedule, each with the pool where it stopped."""


def build(config: Config) -> PreTrainedModel:
    """The model with its first weights."""
    return build_model(config.family, config.width, config.layers, config.attention, config.seed)


def make_optimizer(model: PreTrainedModel, config: Config) -> torch.optim.AdamW:
    tables = ("embed", "wte", "wpe")
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not any(table in name for table in tables)]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)


def learning_rate(config: Config, step: int) -> float:
    falling = config.lr_decay * config.steps
    return config.lr * min(1.0, (step + 1) / config.lr_warmup, max(0.1, 0.1 + 0.9 * (config.steps - step) / falling))


def batch_tensors(documents: list[Document]) -> tuple[Tensor, Tensor]:
    """Ids [row, pos], right-padded, and where the next token is to be predicted [row, pos - 1]."""
    rows = [encode(document) for document in documents]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    wanted = torch.zeros(len(rows), ids.shape[1] - 1, dtype=torch.bool)
    for i, (row, document) in enumerate(zip(rows, documents, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        wanted[i, document.quiet : len(row) - 1] = True
    return ids, wanted


def train_step(model: PreTrainedModel, optimizer: torch.optim.AdamW, documents: list[Document], bf16: bool) -> float:
    """One step; the loss in nats per predicted token. Only those positions are unembedded."""
    ids, wanted = batch_tensors(documents)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[wanted])
    loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][wanted])
    return update(model, optimizer, loss)


def update(model: PreTrainedModel, optimizer: torch.optim.AdamW, loss: Tensor) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def key(fact: tuple[str, str]) -> str:
    return " ".join(fact)


def save_checkpoint(folder: Path, model: PreTrainedModel, optimizer: torch.optim.AdamW, state: State) -> None:
    """Weights, moments and counters; written aside and renamed, so that a killed run leaves a whole checkpoint."""
    aside = folder / "checkpoint.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, aside / "model.safetensors")
    moments = optimizer.state_dict()["state"]
    save_file({f"{i}.{name}": v.clone() for i, entry in moments.items() for name, v in entry.items()}, aside / "optimizer.safetensors")
    (aside / "state.json").write_text(json.dumps(vars(state)))
    final, old = folder / "checkpoint", folder / "checkpoint.old"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.replace(old)
    aside.replace(final)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, model: PreTrainedModel, optimizer: torch.optim.AdamW) -> State:
    found = next((folder / name for name in ("checkpoint", "checkpoint.old") if (folder / name / "state.json").is_file()), None)
    if found is None:
        raise FileNotFoundError(f"No checkpoint in {folder}: start without --resume.")
    model.load_state_dict(load_file(found / "model.safetensors"), strict=False)
    model.tie_weights()
    tensors: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(found / "optimizer.safetensors").items():
        index, entry = name.split(".", 1)
        tensors.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": tensors, "param_groups": optimizer.state_dict()["param_groups"]})
    raw = json.loads((found / "state.json").read_text())
    return State(**(raw | {"stated": Counter(raw["stated"]), "asked": Counter(raw["asked"])}))


def export(folder: Path, model: PreTrainedModel, state: State, config: Config) -> None:
    """The plain HF folder: weights, config, tokenizer, attention variant, and the exposure of every fact."""
    plain = copy.deepcopy(model).float()
    if config.family == "gpt2":
        plain.config.activation_function = "gelu_new"  # the same function under GPT-2's own name
    plain.save_pretrained(folder, state_dict=plain_state(plain))
    write_variant(folder, describe(plain))
    tokenizer().save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every version of transformers knows
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    atlas = world()
    facts = [
        {"country": f[0], "relation": f[1], "value": atlas.values[f], "exposure": state.stated[key(f)], "asked": state.asked[key(f)]}
        for f in atlas.facts()
    ]
    lines = ",\n".join(json.dumps(fact) for fact in facts)
    (folder / "facts.json").write_text(f"[\n{lines}\n]\n")
    training = {
        "config": asdict(config),
        "tokens": state.tokens,
        "mixtures": dict(Counter(state.mixtures)),
        "seconds": round(state.seconds),
        "earlier": state.earlier,
    }
    (folder / "training.json").write_text(json.dumps(training, indent=1) + "\n")


def exposures(state: State) -> Mapping[tuple[str, str], int]:
    return {fact: state.stated[key(fact)] for fact in world().facts()}


def next_mixture(config: Config, state: State) -> str:
    """The mixture of the next pool: stages in their order, "bind" only until scenes are understood; never back."""
    *stages, last = (stage.split() for stage in config.stages.split(","))
    read = Counter(state.mixtures)
    later = set(state.mixtures[-1:])
    for i, (mixture, pools) in enumerate(stages):
        passed = later & {stage[0] for stage in [*stages[i + 1 :], last]}
        understood = mixture == "bind" and state.scenes >= config.bind_until
        if read[mixture] < int(pools) and not passed and not understood:
            return mixture
    return last[0]


def train_pool(model: PreTrainedModel, optimizer: torch.optim.AdamW, config: Config, state: State, mixture: str) -> float:
    """Read one pool; the mean loss."""
    model.train()
    started, losses, step = time.monotonic(), [], state.pool * config.pool_size // config.rows
    for i, documents in enumerate(config.corpus().batches(state.pool, mixture, config.rows)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step + i)
        rng = random.Random(f"{config.seed}|ditto|{step + i}")
        penalty = repetition_penalty(model, documents, BF16, rng) if rng.random() < config.ditto else None
        if penalty is not None:
            update(model, optimizer, penalty)
            continue
        losses.append(train_step(model, optimizer, documents, BF16))
        stated, asked = exposure(documents)
        state.stated.update({key(f): n for f, n in stated.items()})
        state.asked.update({key(f): n for f, n in asked.items()})
        state.tokens += sum(len(d.words) + 1 for d in documents)
    state.pool += 1
    state.mixtures.append(mixture)
    state.seconds += time.monotonic() - started
    return sum(losses) / len(losses) if losses else math.nan


def note_earlier(config: Config, state: State, old: dict) -> None:
    """Keep the settings with which the run was trained so far, if it goes on with another learning rate."""
    if old["lr"] != config.lr:
        state.earlier.append({"until_pool": state.pool, "config": old})


def start_from(folder: Path, model: PreTrainedModel) -> State:
    """Puts the weights of a trained folder into the model; the exposure of its facts goes on being counted."""
    own, blocks = read_variant(folder), describe(model).blocks
    wanted = AttentionVariant() if blocks[0].variant is None else blocks[0].variant.spec
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()  # knows other versions' names
    if set(weights) != set(plain_state(model)):
        raise ValueError(f"{folder} has other layers than the model that is trained; --start takes a folder of the same architecture.")
    model.load_state_dict(weights, strict=False)  # without parameters of attention variants
    if own.kind == wanted.kind:
        attach(blocks, wanted, read_tensors(folder, own))
    elif own.kind != "softmax":
        raise ValueError(f"{folder} was trained with {own} attention; --attention {wanted} cannot go on from it.")
    facts, training = (json.loads((folder / name).read_text()) for name in ("facts.json", "training.json"))
    stated, asked = (Counter({key((f["country"], f["relation"])): f[name] for f in facts}) for name in ("exposure", "asked"))
    return State(tokens=training["tokens"], stated=stated, asked=asked)


def train(
    config: Config, out: Path, resume: bool = False, evaluate_every: int = 4, n: int = 256, stop_after: int | None = None,
    start: Path | None = None,
) -> State:  # fmt: skip
    """Train to the end (or stop between two pools after `stop_after`), logging to `out`/log.jsonl.

    start  a folder such as interp/zoo/demo-gpt2 whose weights are the first ones, in place of random ones
    """
    out.mkdir(parents=True, exist_ok=True)
    model = build(config)
    state = State() if resume or start is None else start_from(start, model)
    optimizer = make_optimizer(model, config)  # of the parameters that the model has now: a folder's own gates replace fresh ones
    state = load_checkpoint(out, model, optimizer) if resume else state
    if resume:
        note_earlier(config, state, json.loads((out / "config.json").read_text()))
    (out / "config.json").write_text(json.dumps(asdict(config), indent=1))
    while state.pool < config.pools and (stop_after is None or state.pool < stop_after):
        mixture = next_mixture(config, state)
        loss = train_pool(model, optimizer, config, state, mixture)
        line = {"pool": state.pool, "step": state.pool * config.pool_size // config.rows, "tokens": state.tokens, "mixture": mixture,
                "loss": round(loss, 4), "seconds": round(state.seconds)}  # fmt: skip
        if state.pool % evaluate_every == 0 or state.pool == config.pools:
            report = measure(model, dict(exposures(state)), n)
            state.scenes = report["scenes"]["accuracy"]
            line["held_out"] = _rounded(report)
            save_checkpoint(out, model, optimizer, state)
            export(out / "model", model, state, config)
        _log(out, line)
    save_checkpoint(out, model, optimizer, state)
    export(out / "model", model, state, config)
    return state


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


def _log(out: Path, line: dict) -> None:
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(*(f"{k} {v}" for k, v in line.items() if k != "held_out"), flush=True)
    for name, value in line.get("held_out", {}).items():
        print(f"    {name:18} {value}", flush=True)


def main(
    family: Annotated[str, typer.Argument(help="gpt2, opt or pythia")],
    out: Annotated[Path, typer.Option(help="Folder of the run: log.jsonl, checkpoint/, model/ (plain HF folder)")],
    steps: Annotated[int, typer.Option(help="Steps of 32 documents; whole pools of 256 steps")] = Config.steps,
    seed: int = 0,
    lr: float = Config.lr,
    lr_decay: float = Config.lr_decay,
    stages: Annotated[
        str, typer.Option(help="Mixtures in their order with their numbers of pools; the last takes the rest")
    ] = Config.stages,
    letters: Annotated[str, typer.Option(help="skewed or balanced (the control of multiple choice)")] = "skewed",
    attention: Annotated[
        str, typer.Option(help="softmax, clipped, gated-linear ..., or with settings: 'clipped(gamma=-0.02)'")
    ] = "softmax",
    resume: bool = False,
    ditto: Annotated[float, typer.Option(min=0, max=1, help="Share of steps that take DITTO's penalty on repetition")] = Config.ditto,
    start: Annotated[str | None, typer.Option(help="Bundled name or folder of a trained model to start from")] = None,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after so many pools; --resume goes on, with other settings if wanted")
    ] = None,
) -> None:
    """Train one demo model; the held-out measures are printed and logged as it goes."""
    torch.set_num_threads(1)
    if steps % 256 or steps < 256:
        raise typer.BadParameter(f"--steps {steps}: a multiple of 256 (one pool of documents).")
    train(
        Config(family, steps=steps, seed=seed, lr=lr, lr_decay=lr_decay, stages=stages, letters=letters, attention=attention, ditto=ditto),
        out,
        resume,
        stop_after=stop_after,
        start=None if start is None else find_folder(start),
    )


if __name__ == "__main__":
    typer.run(main)
