"""The study of quantizable transformers: its rows are what the library measures, its intervals those of Student's t."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from experiments import quantizable_transformers as study
from experiments.train_demo_models import Config as Training
from experiments.train_demo_models import train
from interp import quant

TINY = {"steps": 8, "pool_size": 64, "rows": 32, "width": 16, "layers": 2, "stages": "warm"}
SMALL = {"prompts": 12, "rounded": 6, "calibration": 6, "draws": 2, "heads": 6, "length": 16, "schemes": ("w8a8",)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the runs, tiny, as the study finds them; the others are missing."""
    root = tmp_path_factory.mktemp("runs")
    for variant in ("vanilla", "gated"):
        folder = study.folder_of(variant, 0, root)
        train(Training("opt", **TINY, attention=study.VARIANTS[variant]), folder, evaluate_every=9, n=4, stop_after=1)
        (folder / "finished").touch()
    return root


def test_a_row_is_what_the_library_measures_on_documents_that_no_training_read(runs: Path):
    config = study.Config(str(study.folder_of("gated", 0, runs) / "model"), 0, **SMALL)
    row = study.summary_of("attention-variants", config, study.measure, runs)
    model = interp.load(config.model)
    prompts = study.held_out("full", study.POOL, 12)
    losses = [-model.logits(p).log_softmax(-1)[0, :-1].gather(1, p.ids[0, 1:, None]) for p in (prompts[i] for i in range(len(prompts)))]
    assert row["loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert row["inf_norm_block"] == quant.activation_statistics(model, prompts).inf_norm["block"]
    heads = study.held_out("full", study.POOL, 6, 16)
    assert heads.lengths.tolist() == [16] * 6
    site = "blocks.1.attn.hook_pattern"
    assert row["sink_rate_by_head"][1] == quant.sink_rate(model.capture(heads, [site])[site]).tolist()
    drawn = [
        quant.evaluate(model, study.held_out("full", study.POOL, 6), "w8a8", calibration=study.held_out("full", study.POOL + i, 6))
        for i in (1, 2)
    ]
    assert row["w8a8_damage"] == pytest.approx(sum(x.damage for x in drawn) / 2, abs=1e-5)


def test_rows_are_those_of_finished_runs_and_each_is_measured_once(runs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study, "BUNDLED", ())
    monkeypatch.setattr(study, "UNTRAINED", ("softmax-1",))
    asked = []

    def fake(config, model, run):
        asked.append((model.attention.kind, config.attention))
        return {"loss": 1.0 + len(asked)}

    monkeypatch.setattr(study, "measure", fake)
    first, again = (list(study.rows(runs, smoke=False)) for _ in range(2))
    assert first == again and asked == [("softmax", None), ("softmax", "softmax-1"), ("gated-linear", None), ("softmax", "softmax-1")]
    groups = [("trained", "vanilla"), ("untrained use", "softmax-1"), ("trained", "gated"), ("untrained use of demo-opt", "softmax-1")]
    assert [(r["group"], r["variant"]) for r in first] == groups


def test_intervals_and_differences_are_over_seeds():
    frame = pd.DataFrame(
        [{"group": "trained", "variant": v, "seed": s, "loss": x} for v, found in (("vanilla", (1.0, 2.0, 4.0)), ("gated", (1.5, 2.0, 3.0)))
         for s, x in enumerate(found)]
    )  # fmt: skip
    found = study.summary(frame)
    json.dumps(found, allow_nan=False)
    vanilla = next(row for row in found["means"] if row["variant"] == "vanilla")["loss"]
    half = 4.302652729911275 * math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2 / 3)  # Student's t, 2 degrees of freedom
    assert (vanilla["mean"], vanilla["low"], vanilla["high"]) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half))
    (difference,) = found["minus_vanilla"]
    assert difference["variant"] == "gated" and difference["loss"]["mean"] == pytest.approx((0.5 + 0.0 - 1.0) / 3)
    assert study.interval([3.0]) == {"mean": 3.0, "low": None, "high": None}
