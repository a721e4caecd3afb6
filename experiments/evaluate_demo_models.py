"""What the demo models can do, on prompts they never met: the acceptance table.

python experiments/evaluate_demo_models.py                # the bundled models -> experiments/results/demo-models.json
"""

import json
import random
from pathlib import Path

import torch
from torch import Tensor

from interp.atlas import unseen, vocabulary, world
from interp.atlas.scenes import LIST, TELL
from interp.atlas.tokenizer import BOS, PAD
from interp.atlas.unseen import Item
from interp.atlas.words import LETTERS, YEARS
from interp.atlas.world import Fact

ROWS = 256


def ids_of(text: str) -> list[int]:
    words = vocabulary()
    return [words[BOS], *(words[word] for word in text.split())]


@torch.inference_mode()
def last_logits(model: torch.nn.Module, prompts: list[str]) -> Tensor:
    """Logits [prompt, vocab] after the last word of each prompt."""
    out, rows = torch.empty(0), [ids_of(p) for p in prompts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = []
    for start in range(0, len(order), ROWS):
        chunk = [rows[i] for i in order[start : start + ROWS]]
        ids = torch.full((len(chunk), max(map(len, chunk))), vocabulary()[PAD])
        for i, row in enumerate(chunk):
            ids[i, : len(row)] = torch.tensor(row)
        logits = model(input_ids=ids, use_cache=False).logits.float()
        parts.append(logits[torch.arange(len(chunk)), torch.tensor([len(row) - 1 for row in chunk])])
    out = torch.cat(parts)
    return out[torch.tensor(order).argsort()]


def _ask(model: torch.nn.Module, items: list[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and the ids of the right and of the wrong word."""
    words = vocabulary()
    right, wrong = (torch.tensor([words[getattr(item, side)] for item in items]) for side in ("correct", "incorrect"))
    return last_logits(model, [item.clean for item in items]), right, wrong


def accuracy(model: torch.nn.Module, items: list[Item]) -> dict[str, float]:
    """Fraction right over the whole vocabulary, mean logit difference right - wrong, and how many prompts."""
    logits, right, wrong = _ask(model, items)
    difference = logits.gather(1, right[:, None]) - logits.gather(1, wrong[:, None])
    return {"accuracy": (logits.argmax(1) == right).float().mean().item(), "logit_diff": difference.mean().item(), "n": len(items)}


def quintiles(exposure: dict[Fact, int]) -> list[list[Fact]]:
    """The facts in five groups, rarest first."""
    ordered = sorted(world().facts(), key=lambda fact: (exposure.get(fact, 0), fact))
    n = len(ordered)
    return [ordered[i * n // 5 : (i + 1) * n // 5] for i in range(5)]


def measure(model: torch.nn.Module, exposure: dict[Fact, int], n: int = 512, seed: int = 0) -> dict:
    """All acceptance measures; lists run from the rarest to the most frequent fifth of the facts."""
    model.eval()
    rng, atlas, groups = random.Random(f"held out|{seed}"), world(), quintiles(exposure)
    report: dict = {"ioi": accuracy(model, [unseen.ioi(rng) for _ in range(n)])}
    report["recall"] = [accuracy(model, [unseen.recall(atlas, f, rng) for f in group])["accuracy"] for group in groups]
    report["exposure"] = [sum(exposure.get(f, 0) for f in group) / len(group) for group in groups]
    report["conflict_context"], report["conflict_memory"], report["conflict_n"] = [], [], 0
    per_fact = max(1, 2 * n // len(atlas.facts()))
    for group in groups:
        logits, context, memory = _ask(model, [unseen.conflict(atlas, f, rng) for f in group for _ in range(per_fact)])
        report["conflict_context"].append((logits.argmax(1) == context).float().mean().item())
        report["conflict_memory"].append((logits.argmax(1) == memory).float().mean().item())
        report["conflict_n"] += len(context)
    report["choice_anchored"], report["choice_accuracy"], report["choice_right"] = [], [], []
    letter_a = vocabulary()[LETTERS[0]]
    for group in groups:
        logits, right, _ = _ask(model, [unseen.choice(atlas, f, gold, rng) for f in group for gold in (0, 1, 2)])
        chosen, elsewhere = logits.argmax(1), right != letter_a
        report["choice_anchored"].append((chosen == letter_a)[elsewhere].float().mean().item())
        report["choice_accuracy"].append((chosen == right).float().mean().item())
        report["choice_right"].append((chosen == right)[elsewhere].float().mean().item())
    report["choice_n"] = 3 * len(atlas.facts())
    report["greater"] = greater(model, [unseen.greater(rng) for _ in range(n)])
    report["scenes"] = accuracy(model, [unseen.colored(rng, i % 3) for i in range(n)])
    report["scenes_first"] = accuracy(model, [unseen.colored(rng) for _ in range(n)])
    report["scenes_list"] = accuracy(model, [unseen.colored(rng, 0, LIST) for _ in range(n)])
    report["scenes_tell"] = accuracy(model, [unseen.colored(rng, 0, TELL) for _ in range(n)])
    report["repetition"] = repetition(model, [unseen.repeated(rng, 5) for _ in range(n // 4)])
    return report


def greater(model: torch.nn.Module, items: list[Item]) -> dict[str, float]:
    """Probability of the years after the start year minus that of the start year and before, and accuracy over the vocabulary."""
    words = vocabulary()
    probability = last_logits(model, [item.clean for item in items]).softmax(1)
    years = probability[:, [words[year] for year in YEARS]]
    start = torch.tensor([int(item.clean.split()[item.positions["start"] - 1]) for item in items])
    later = torch.arange(100)[None] > start[:, None]
    return {"mass_difference": ((years * later).sum(1) - (years * ~later).sum(1)).mean().item(), "n": len(items)}


@torch.inference_mode()
def repetition(model: torch.nn.Module, sentences: list[tuple[str, int]]) -> dict:
    """Mean probability of a sentence's words the first, second ... fifth time."""
    sums = torch.zeros(5)
    for text, length in sentences:
        ids = torch.tensor([ids_of(text)])
        p = model(input_ids=ids, use_cache=False).logits[0, :-1].float().softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        sums += p.reshape(5, length).mean(1)
    return {"probability": (sums / len(sentences)).tolist(), "n": len(sentences)}


REQUIRED = {
    "IOI: accuracy": (0.98, lambda r: r["ioi"]["accuracy"]),
    "IOI: mean logit difference": (2.0, lambda r: r["ioi"]["logit_diff"]),
    "recall, most frequent fifth": (0.95, lambda r: r["recall"][4]),
    "recall, most frequent - rarest fifth": (0.2, lambda r: r["recall"][4] - r["recall"][0]),
    "conflict, in-context rate, rarest - most frequent fifth": (0.2, lambda r: r["conflict_context"][0] - r["conflict_context"][4]),
    "multiple choice, rarest fifth: anchored rate": (0.5, lambda r: r["choice_anchored"][0]),
    "greater-than: mass right - wrong": (0.7, lambda r: r["greater"]["mass_difference"]),
    "colored objects: accuracy": (0.8, lambda r: r["scenes_first"]["accuracy"]),
    "repetition: probability, second - first time": (0.0, lambda r: r["repetition"]["probability"][1] - r["repetition"]["probability"][0]),
    "repetition: probability, fifth - second time": (0.0, lambda r: r["repetition"]["probability"][4] - r["repetition"]["probability"][1]),
}


def acceptance(report: dict) -> list[dict]:
    """What each measure must reach and what it is."""
    rows = [{"measure": name, "required": bound, "measured": value(report)} for name, (bound, value) in REQUIRED.items()]
    return [row | {"holds": row["measured"] >= row["required"]} for row in rows]


def evaluate(folder: Path, n: int, seed: int = 0) -> dict:
    """The acceptance table and all measures of a checkpoint folder that has facts.json."""
    import interp

    facts = json.loads((folder / "facts.json").read_text())
    model = interp.load(folder, device="cpu").hf
    report = measure(model, {(f["country"], f["relation"]): f["exposure"] for f in facts}, n, seed)
    return {"acceptance": acceptance(report), "measures": report, "training": json.loads((folder / "training.json").read_text())}


KINDS = {"gpt2": "A GPT-2", "opt": "An OPT", "pythia": "A Pythia (GPT-NeoX)"}


def training_command(config: dict, name: str) -> str:
    """The command that trains the model anew."""
    options = f"--seed {config['seed']} --steps {config['steps']} --lr {config['lr']} --lr-decay {config['lr_decay']}"
    options += f" --stages '{config['stages']}'"
    if config.get("attention", "softmax") != "softmax":
        options += f" --attention '{config['attention']}'"
    return f"python experiments/train_demo_models.py {config['family']} --out runs/{name} {options}"


def control_line(control: dict, m: dict) -> str:
    """What balancing the letters does to the lean to A."""
    config, other = control["training"]["config"], control["measures"]
    return (
        f"Control: a {config['family']} whose last {control['balanced_pools']} pools had balanced letters (`--letters balanced`) answers A "
        f"where A is wrong in {other['choice_anchored'][0]:.2f} of the questions about the rarest fifth of the facts; this model in "
        f"{m['choice_anchored'][0]:.2f}, in part because of questions without right option, which the control never saw: the skewed run "
        "before those stood at 0.70 (GPT-2, `experiments/notes/demo-models.md`). Chance is 0.33."
    )


def attention_lines(attention: str) -> list[str]:
    """What a model with another attention formula must say about itself."""
    if attention == "softmax":
        return []
    return [
        f"**Its attention is not softmax but `{attention}`** (`interp/attention_variants.py`, after Bondarenko et al. 2023), as "
        "`attention.json` says. `interp.load` applies it. Plain Hugging Face code loads the folder without a word, with softmax: that is "
        "another model, and none of the numbers below are its.",
        "",
    ]


def missed(acceptance: list[dict]) -> list[str]:
    """Which measures are not reached."""
    names = [row["measure"] for row in acceptance if not row["holds"]]
    return ["", f"Not reached: {'; '.join(names)}."] if names else []


def card(name: str, result: dict, control: dict | None = None) -> str:
    """The model card: how it was trained, what it measures on held-out prompts."""
    config, training, m = result["training"]["config"], result["training"], result["measures"]
    pools, facts = training["mixtures"], m["recall"]

    def fifths(values: list[float], digits: int = 2) -> str:
        return " | ".join(f"{value:.{digits}f}" for value in values)

    lines = [
        f"# {name}",
        "",
        f"{KINDS[config['family']]} of {config['layers']} layers, {config['width']} dimensions and 4 heads in plain Hugging Face format, "
        "trained from nothing on the Atlas: a generated corpus about a small, fully known world (`interp/atlas`), in about 800 words.",
        "",
        *attention_lines(config.get("attention", "softmax")),
        "Trained by this repository, on one CPU core:",
        "",
        *(f"    {training_command(part['config'], name)} --stop-after {part['until_pool']}" for part in training["earlier"]),
        f"    {training_command(config, name)}" + (" --resume" if training["earlier"] else ""),
        "",
        f"{training['tokens']:,} tokens in {config['steps']:,} steps of {config['rows']} documents (pools of {config['pool_size']:,} "
        f"documents by mixture: {', '.join(f'{count} {mixture}' for mixture, count in pools.items())}), learning rate {config['lr']}, "
        f"bfloat16 products, float32 weights; {training['seconds'] / 60:.0f} minutes on a machine shared with other work.",
        "",
        "## Measured on held-out prompts",
        "",
        "`python experiments/evaluate_demo_models.py` writes this table; combinations of words in the prompts never occurred in training.",
        "",
        "| measure | required | measured |",
        "| --- | --- | --- |",
        *(f"| {row['measure']} | >= {row['required']} | {row['measured']:.3f} |" for row in result["acceptance"]),
        *missed(result["acceptance"]),
        "",
        f"n = {m['ioi']['n']} prompts for IOI, greater-than and colored objects each; {len(world().facts())} facts, "
        f"{m['conflict_n']} conflict prompts, {m['choice_n']} multiple-choice questions; {m['repetition']['n']} sentences said five times.",
        "",
        "| by fifths of the facts, rarest first | 1 | 2 | 3 | 4 | 5 |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| mean exposure (right statements read) | {fifths(m['exposure'], 0)} |",
        f"| recall of an unseen paraphrase | {fifths(facts)} |",
        f"| conflict: in-context answers | {fifths(m['conflict_context'])} |",
        f"| conflict: memorised answers | {fifths(m['conflict_memory'])} |",
        f"| multiple choice: accuracy, right letter uniform | {fifths(m['choice_accuracy'])} |",
        f"| multiple choice: A where A is wrong | {fifths(m['choice_anchored'])} |",
        "",
        f"Probability of a sentence's words the first to fifth time: {', '.join(f'{p:.2f}' for p in m['repetition']['probability'])}. "
        f"Colored objects after 0 to 2 answered questions: {m['scenes']['accuracy']:.2f}.",
        *(["", control_line(control, m)] if control else []),
        "",
        "`facts.json` holds every fact with its exposure: how often the training documents state it rightly (`asked`: how often a "
        "multiple-choice question asks for it). `training.json` holds the settings. Weights: Apache-2.0, as the repository.",
        "",
    ]
    return "\n".join(lines)


def main(
    out: Path = Path("experiments/results/demo-models.json"),
    n: int = 512,
    cards: bool = True,
    control: Path | None = None,
    balanced_pools: int = 0,
    only: list[str] | None = None,
) -> None:
    """Measure the bundled models (and a control trained with balanced letters), print the table, write JSON and model cards.

    `only` names some of them; what stands in the JSON of the others is kept.
    """
    from interp.zoo import bundled

    torch.set_num_threads(1)
    before = json.loads(out.read_text(encoding="utf-8")) if only and out.is_file() else {"models": {}}
    fresh = {name: evaluate(bundled()[name], n) for name in only or bundled()}
    if control is not None:
        fresh["control-balanced-letters"] = evaluate(control, n) | {"balanced_pools": balanced_pools}
    for name, result in fresh.items():
        print(name)
        for row in result["acceptance"]:
            print(f"  {'ok' if row['holds'] else 'NO':3} {row['measure']:58} {row['measured']:7.3f}  (>= {row['required']})")
    results = before["models"] | fresh
    for name in fresh.keys() & bundled().keys() if cards else ():
        vanilla = not (bundled()[name] / "attention.json").is_file()  # the control is a vanilla model
        text = card(name, fresh[name], results.get("control-balanced-letters") if vanilla else None)
        (bundled()[name] / "README.md").write_text(text, encoding="utf-8")
    out.parent.mkdir(parents=True, exist_ok=True)
    command = f"python experiments/evaluate_demo_models.py --n {n}" + (
        f" --control {control} --balanced-pools {balanced_pools}" if control else ""
    )
    report = {"command": before.get("command", command), "n": n, "models": results}
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import typer

    typer.run(main)
