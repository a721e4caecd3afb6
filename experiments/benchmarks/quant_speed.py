"""What the measurements of quantizability cost at the size of GPT-2 small, in forwards of the same tokens; one thread.

    python -m experiments.benchmarks.quant_speed                       # writes experiments/results/quant-speed.json
    python -m experiments.benchmarks.quant_speed statistics gradient   # some parts; the others of the file are kept

Random weights; processor seconds, which other programs on the machine disturb less than the clock. Targets: statistics of all tensors
within 1.3 bare forwards (which compute logits; the statistics need none); the gradient estimate of every head's ablation within 4; the 144
exact ablations of the loss of every token at 80 % of the bound of their matrix products or better. The bound: the products that no exact
method avoids (for a head of layer l the output projection and MLP of l, the blocks after it, and the logits of all tokens), at the speed
of the machine's own product of the same shape.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

import interp
from experiments.benchmarks.machine import describe_machine
from interp import Prompts, quant
from interp.sweeps import _most_tokens

RESULTS = Path(__file__).parents[1] / "results" / "quant-speed.json"
LAYERS, HEADS, D, VOCAB = 12, 12, 768, 50257
TARGETS = {"statistics_forwards": 1.3, "gradient_forwards": 4.0, "ablations_share_of_bound": 0.8}
MANY, FEW = (2, 128), (1, 32)
"""Prompts and tokens of the statistics and the gradient, and of the ablations."""


def main(
    parts: Annotated[list[str] | None, typer.Argument(help="statistics, gradient, ablations")] = None, out: Path = RESULTS, rounds: int = 2
) -> None:
    """Measures each part `rounds` times and writes all values."""
    torch.set_num_threads(1)
    model = make_model()
    found = json.loads(out.read_text()) if out.exists() else {}
    for part in parts or PARTS:
        found[part] = [PARTS[part](model) for _ in range(rounds)]
        print(part, json.dumps(found[part], indent=1))
    head = {"machine": describe_machine(), "command": "python -m experiments.benchmarks.quant_speed", "targets": TARGETS}
    shape = {"layers": LAYERS, "heads": HEADS, "d_model": D, "vocab": VOCAB, "statistics_prompts": MANY, "ablations_prompts": FEW}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(head | {"model": shape} | {part: found[part] for part in PARTS if part in found}, indent=1) + "\n")


def measure_statistics(model: interp.Model) -> dict[str, float]:
    """quant.activation_statistics against a bare forward with the logits of all tokens."""
    prompts = random_prompts(MANY)
    work, forward = beside(lambda: quant.activation_statistics(model, prompts), lambda: bare_forward(model, prompts))
    return {"seconds": work, "forward_s": forward, "statistics_forwards": work / forward}


def measure_gradient(model: interp.Model) -> dict[str, float]:
    """quant.head_gradient against a bare forward."""
    prompts = random_prompts(MANY)
    work, forward = beside(lambda: quant.head_gradient(model, prompts), lambda: bare_forward(model, prompts))
    return {"seconds": work, "forward_s": forward, "gradient_forwards": work / forward}


def measure_ablations(model: interp.Model) -> dict[str, float]:
    """Every head's z set to zero, the loss of every token, in one sweep."""
    prompts = random_prompts(FEW)
    before = bound_seconds(model, prompts)
    start = time.process_time()
    interp.sweep_heads(model, prompts, interp.loss(), "zero")
    work = time.process_time() - start
    bound = (before + bound_seconds(model, prompts)) / 2
    flops = [sum(2 * a * b * n for (a, b), n in products(kind).items()) for kind in ("ablations", "forward")]
    return {"seconds": work, "bound_s": bound, "ablations_share_of_bound": bound / work, "bound_in_forwards": flops[0] / flops[1]}


PARTS = {"statistics": measure_statistics, "gradient": measure_gradient, "ablations": measure_ablations}


def beside(work: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Medians of three runs each, alternating, after one of each that is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(4):
        for call, found in zip((work, other), times, strict=True):
            start = time.process_time()
            call()
            if i:
                found.append(time.process_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def bare_forward(model: interp.Model, prompts: Prompts) -> None:
    """The Hugging Face model's own forward."""
    with torch.no_grad():
        model.hf(prompts.ids, use_cache=False)


def products(kind: str) -> dict[tuple[int, int], int]:
    """(d_in, d_out) -> how often a token goes through that matrix, for the 144 ablations and the clean run, or for one forward."""
    if kind == "forward":
        return {(D, 3 * D): LAYERS, (D, D): LAYERS, (D, 4 * D): LAYERS, (4 * D, D): LAYERS, (D, VOCAB): 1}
    whole = HEADS * sum(LAYERS - 1 - layer for layer in range(LAYERS)) + LAYERS  # blocks after the head's, and the clean run
    own = HEADS * LAYERS  # the head's own block after z
    return {
        (D, 3 * D): whole, (D, D): whole + own, (D, 4 * D): whole + own, (4 * D, D): whole + own, (D, VOCAB): HEADS * LAYERS + 1,
    }  # fmt: skip


def bound_seconds(model: interp.Model, prompts: Prompts) -> float:
    """The ablations' matrix products at the measured speed of products of as many tokens as a chunk of the sweep has."""
    tokens = min(_most_tokens(model), HEADS * LAYERS * prompts.width)
    rate = {shape: product_seconds(tokens, *shape) / tokens for shape in products("ablations")}
    return sum(n * rate[shape] for shape, n in products("ablations").items()) * int(prompts.lengths.sum())


def product_seconds(n: int, d_in: int, d_out: int) -> float:
    """Best of three of one matrix product with bias."""
    x, weight, bias = torch.randn(n, d_in), torch.randn(d_in, d_out), torch.randn(d_out)
    times = []
    for _ in range(3):
        start = time.process_time()
        torch.addmm(bias, x, weight)
        times.append(time.process_time() - start)
    return min(times)


def random_prompts(shape: tuple[int, int]) -> Prompts:
    return Prompts.from_ids(torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(0)))


def make_model() -> interp.Model:
    """A random GPT-2 small."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(GPT2Config(n_layer=LAYERS, n_head=HEADS, n_embd=D, vocab_size=VOCAB)).save_pretrained(folder)
        return interp.load(folder, device="cpu")


if __name__ == "__main__":
    typer.run(main)
