"""Plans as files: a tuned plan written once, and applied anywhere (`model.generate`, `model.logits`, sweeps, `interp scale`).

    interp.save_plan("memory.json", tuned.plan, model, about={"purpose": "answers from the context"})
    plan = interp.load_plan("memory.json", model)
    model.generate(prompts, plan)

The file says which weights the plan was made for: heads of other weights play other roles, so there it is refused unless told otherwise.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.edits import Edit, Plan, as_plan, plan_from_json
from interp.models import Model
from interp.provenance import weights_hash
from interp.safefiles import write_text

FORMAT = "interp plan 1"


def save_plan(path: str | Path, plan: Edit | Sequence[Edit], model: Model, about: Mapping[str, Any] | None = None) -> Path:
    """Writes the plan, the model's name and a hash of its weights; tensors of more than 256 numbers go to files beside it.

    about  anything that JSON takes, such as where the plan comes from and what it was measured to do
    """
    path, edits = Path(path), as_plan(plan)
    for edit in edits:
        model.sites().get(edit.site)
    data = {"format": FORMAT, "model": model.name, "weights": weights_hash(model), "about": dict(about or {})}
    data["plan"] = [edit.to_json(path.parent) for edit in edits]
    write_text(path, json.dumps(data, indent=1) + "\n")
    return path


def load_plan(path: str | Path, model: Model, any_weights: bool = False) -> Plan:
    """The plan of a file. ValueError if it was made for other weights (`any_weights=True` takes it all the same) or names absent sites."""
    data = read_plan_file(path)
    if not any_weights and data["weights"] != weights_hash(model):
        raise ValueError(
            f"{path} holds a plan for {data['model']} (weights {data['weights']}); {model.name} has other weights, whose heads play other "
            "roles. any_weights=True applies it all the same."
        )
    plan = plan_from_json(json.dumps(data["plan"]), Path(path).parent)
    for edit in plan:
        model.sites().get(edit.site)
    return plan


def read_plan_file(path: str | Path) -> dict[str, Any]:
    """Everything that stands in a plan's file: format, model, weights, about, plan."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}.") from None
    needed = {"format", "model", "weights", "about", "plan"}
    if not isinstance(data, dict) or needed - set(data) or data["format"] != FORMAT:
        raise ValueError(f"{path} is no file of interp.save_plan: it needs {', '.join(sorted(needed))}, with format {FORMAT!r}.")
    return data
