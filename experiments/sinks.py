"""A positive control for attention sinks: a task on which a head has nothing to do most of the time, trained until a sink forms.

    python -m experiments.sinks                     # every run -> experiments/results/sinks.json (minutes each, one core)
    python -m experiments.sinks "relu-1 seed 0"     # one run

Bigram-Backcopy (Guo et al. 2024, arXiv 2410.13835): a text follows a table of bigrams, but after a trigger token the token before the
trigger comes again. A head is needed after triggers alone. Softmax makes it attend somewhere on all other tokens too: it parks on BOS,
whose value shrinks. Control: ReLU attention, which can attend to nothing; SGD beside Adam. The models are GPT-2s, so all of `interp` reads
the softmax ones; ReLU patterns come from the same forward and go through the same functions.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import Tensor

from interp.engine.seam import causal_mask

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

RESULTS = Path(__file__).parent / "results" / "sinks.json"
BOS = 0
EPS = 0.3
DORMANT = 0.5
"""A query is dormant where more than this share of its attention is on BOS."""


@dataclass(frozen=True)
class Config:
    """One trained model."""

    attention: str = "softmax"
    """softmax, or relu: max(score, 0) / keys seen (Wortsman et al. 2023), which need not sum to 1."""
    layers: int = 1
    optimizer: str = "adam"
    """adam (AdamW, weight decay 1e-4) or sgd (momentum 0.9)."""
    lr: float = 2e-3
    steps: int = 500
    batch: int = 48
    length: int = 32
    d_model: int = 64
    vocab: int = 32
    """BOS and 31 words."""
    triggers: int = 3
    """Words 1, 2, 3: the token before one of them follows it."""
    seed: int = 0


RUNS: Mapping[str, Config] = {
    **{f"{attention}-1 seed {seed}": Config(attention, seed=seed) for seed in range(2) for attention in ("softmax", "relu")},
    **{f"{attention}-3 seed 0": Config(attention, layers=3) for attention in ("softmax", "relu")},
    "softmax-1 sgd seed 0": Config(optimizer="sgd", lr=0.05),
}


@dataclass(frozen=True, eq=False)
class Task:
    """The table of bigrams, [word, next], with BOS's row first; BOS never comes again."""

    table: Tensor
    triggers: int

    @classmethod
    def make(cls, config: Config) -> "Task":
        generator = torch.Generator().manual_seed(1000 + config.seed)
        weights = torch.randn(config.vocab, config.vocab, generator=generator).mul(1.5).exp()
        weights[:, BOS] = 0
        weights[BOS, : config.triggers + 1] = 0  # a text does not begin with a trigger: it would repeat BOS
        return cls(weights / weights.sum(1, keepdim=True), config.triggers)

    def is_trigger(self, ids: Tensor) -> Tensor:
        return (ids >= 1) & (ids <= self.triggers)

    def sample(self, n: int, length: int, generator: torch.Generator) -> Tensor:
        """Texts [n, length] that begin with BOS."""
        ids = torch.full((n, length), BOS)
        for i in range(1, length):
            drawn = torch.multinomial(self.table[ids[:, i - 1]], 1, generator=generator)[:, 0]
            ids[:, i] = torch.where(self.is_trigger(ids[:, i - 1]), ids[:, i - 2], drawn)
        return ids

    def least_loss(self, ids: Tensor) -> float:
        """The loss of one who knows the rule and the table, nats per token."""
        before, after = ids[:, :-1], ids[:, 1:]
        return float(-self.table[before, after].log().masked_fill(self.is_trigger(before), 0.0).mean())


def relu_attention(_module: Any, q: Tensor, k: Tensor, v: Tensor, _mask: Any, scaling: float | None = None, **_: Any):
    """max(score, 0) over the number of keys that the query sees; with the pattern, for transformers' attention interface."""
    keep = causal_mask(q.shape[-2], k.shape[-2], q.device)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    pattern = torch.relu(scores).masked_fill(~keep, 0.0) / keep.sum(-1, keepdim=True)
    return (pattern @ v).transpose(1, 2), pattern


def make_model(config: Config) -> "GPT2LMHeadModel":
    """An untrained GPT-2 of the config, with one head per layer."""
    from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel

    AttentionInterface.register("relu-control", relu_attention)
    torch.manual_seed(config.seed)
    settings = GPT2Config(
        n_layer=config.layers, n_head=1, n_embd=config.d_model, vocab_size=config.vocab, n_positions=config.length, bos_token_id=BOS,
        eos_token_id=BOS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.1, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(settings)
    model.set_attn_implementation("relu-control" if config.attention == "relu" else "eager")
    return model


def train(config: Config) -> "tuple[GPT2LMHeadModel, Task]":
    """The trained model, in eval mode. Fresh texts in every step, all from the seed."""
    if config.attention not in ("softmax", "relu") or config.optimizer not in ("adam", "sgd"):
        raise ValueError(f"attention is softmax or relu and optimizer adam or sgd; given {config.attention!r} and {config.optimizer!r}.")
    task, model = Task.make(config), make_model(config)
    generator = torch.Generator().manual_seed(config.seed)
    parameters = list(model.parameters())
    optimizer = (
        torch.optim.AdamW(parameters, config.lr, betas=(0.9, 0.95), weight_decay=1e-4)
        if config.optimizer == "adam"
        else torch.optim.SGD(parameters, config.lr, momentum=0.9)
    )
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
    model.train()
    for _ in range(config.steps):
        ids = task.sample(config.batch, config.length, generator)
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        warmup.step()
    return model.eval(), task


def measure(model: "GPT2LMHeadModel", task: Task, config: Config, n: int = 256) -> dict[str, Any]:
    """Loss, and per layer the signs of a sink, on `n` fresh texts."""
    ids = task.sample(n, config.length, torch.Generator().manual_seed(999_983 + config.seed))
    with _recorded(model) as (values, streams), torch.no_grad():
        out = model(ids, use_cache=False, output_attentions=True)
    log_p = torch.log_softmax(out.logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    copied = (out.logits[:, :-1].argmax(-1) == ids[:, 1:])[task.is_trigger(ids[:, :-1])]
    rows = zip(out.attentions, values, streams, strict=True)
    return {
        "loss": float(-log_p.mean()), "least_loss": task.least_loss(ids), "copied": float(copied.double().mean()),
        "length": config.length, "eps": EPS, "texts": n,
        "layers": [_layer(pattern, value, stream, task.is_trigger(ids)) for pattern, value, stream in rows],
    }  # fmt: skip


def measure_with_interp(model: "GPT2LMHeadModel", task: Task, config: Config, n: int = 64) -> dict[str, Any]:
    """A softmax model, loaded by interp: its head report, what 8 bits cost, and that its patterns are those measured above."""
    import interp
    from interp import quant

    ids = task.sample(n, config.length, torch.Generator().manual_seed(424_242 + config.seed))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = interp.load(folder, device="cpu")
    prompts = interp.Prompts.from_ids(ids)
    report = quant.head_report(loaded, prompts, eps=EPS)
    with torch.no_grad():
        theirs = model(ids, use_cache=False, output_attentions=True).attentions
    ours = loaded.capture(prompts, ["blocks.*.attn.hook_pattern"]).values()
    columns = ("no_op", "sink_rate", "sink_mass", "value_sink_share", "loss_zero", "loss_mean", "loss_bos")
    return {
        "pattern_difference": max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True)),
        "heads": {name: [round(float(x), 5) for x in report[name].flatten()] for name in columns},
        "damage_w8a8": quant.evaluate(loaded, prompts, "w8a8").damage,
    }  # fmt: skip


def _layer(pattern: Tensor, value: Tensor, stream: Tensor, trigger: Tensor) -> dict[str, float]:
    """One layer's one head. pattern [text, 1, query, key]; value and stream [text, pos, d].

    Sinks are of the queries after BOS: a softmax gives A[0, 0] = 1, ReLU any number. Triggers are compared from position 2 on.
    """
    from interp.quant import sink_mass, sink_rate

    at_bos, total = pattern[:, 0, :, BOS], pattern[:, 0].sum(-1)
    own, trigger = pattern[:, 0].diagonal(dim1=-2, dim2=-1), trigger[:, 2:]
    bos_value, other_values = value[:, 0].norm(dim=-1).mean(), value[:, 1:].norm(dim=-1).mean()
    return {
        "sink_rate": float(sink_rate(pattern[:, :, 1:], EPS)[0]), "sink_mass": float(sink_mass(pattern[:, :, 1:]).mean()),
        "bos_share": float((at_bos / total.clamp(min=1e-9))[:, 2:].mean()), "total_attention": float(total[:, 2:].mean()),
        "bos_on_triggers": float(at_bos[:, 2:][trigger].mean()), "bos_elsewhere": float(at_bos[:, 2:][~trigger].mean()),
        "own_elsewhere": float(own[:, 2:][~trigger].mean()),
        "dormant_on_triggers": float((at_bos[:, 2:][trigger] > DORMANT).double().mean()),
        "dormant_elsewhere": float((at_bos[:, 2:][~trigger] > DORMANT).double().mean()),
        "value_bos": float(bos_value), "value_others": float(other_values), "value_ratio": float(bos_value / other_values),
        "stream_ratio": float(stream[:, 0].norm(dim=-1).mean() / stream[:, 1:].norm(dim=-1).mean()),
    }  # fmt: skip


@contextmanager
def _recorded(model: "GPT2LMHeadModel") -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Within it a forward leaves every layer's values [text, pos, d] and the stream after every block [text, pos, d]."""
    values: list[Tensor] = []
    streams: list[Tensor] = []
    handles = [b.attn.c_attn.register_forward_hook(lambda _, __, out: values.append(out.chunk(3, -1)[2])) for b in model.transformer.h]
    handles += [
        b.register_forward_hook(lambda _, __, out: streams.append(out[0] if isinstance(out, tuple) else out)) for b in model.transformer.h
    ]
    try:
        yield values, streams
    finally:
        for handle in handles:
            handle.remove()


def study(config: Config) -> dict[str, Any]:
    """One run: config, measures before and after training, seconds."""
    start = time.monotonic()
    untrained = measure(make_model(config).eval(), Task.make(config), config)
    model, task = train(config)
    found = {"config": asdict(config), "untrained": untrained, "trained": measure(model, task, config)}
    if config.attention == "softmax":
        found["interp"] = measure_with_interp(model, task, config)
    return found | {"seconds": round(time.monotonic() - start)}


def main(names: Annotated[list[str] | None, typer.Argument()] = None, out: Path = RESULTS) -> None:
    """Trains and measures; results of runs that are not named are kept."""
    torch.set_num_threads(1)
    for name in names or RUNS:
        found = json.loads(out.read_text()) if out.exists() else {"command": "python -m experiments.sinks", "runs": {}}
        found["runs"][name] = study(RUNS[name])
        out.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found["runs"][name]))


if __name__ == "__main__":
    typer.run(main)
