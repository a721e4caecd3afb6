"""Plans of remedies as data: one after another in the order given, to JSON and back."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from interp.quant.remedies.attention_formula import AttentionFormula
from interp.quant.remedies.head_edits import EditHeads
from interp.quant.remedies.ranges import Clip, FirstPosition, Granularity, KeepFeatures, Leave
from interp.quant.remedies.rotation import Rotate
from interp.quant.remedies.setup import Remedy, Setup
from interp.quant.remedies.smoothing import Smooth

REMEDIES: Mapping[str, type] = {
    cls.kind: cls for cls in (Clip, Granularity, FirstPosition, KeepFeatures, Leave, Smooth, Rotate, EditHeads, AttentionFormula)
}  # fmt: skip
"""Kind of remedy, as JSON names it -> its class."""

RemedyPlan = tuple[Remedy, ...]


def as_remedies(given: "Remedy | Sequence[Remedy]") -> RemedyPlan:
    """A plan of one remedy or of a sequence of remedies."""
    plan = tuple(given) if isinstance(given, list | tuple) else (given,)
    for item in plan:
        if type(item) not in REMEDIES.values():
            raise ValueError(f"A plan holds remedies ({', '.join(cls.__name__ for cls in REMEDIES.values())}); given {item!r:.80}.")
    return plan  # type: ignore[return-value]


def apply_plan(plan: RemedyPlan, setup: Setup) -> Setup:
    for item in plan:
        setup = item.apply(setup)
    return setup


def plan_name(plan: RemedyPlan) -> str:
    return " + ".join(item.name for item in plan) or "none"


def remedies_to_json(plan: "Remedy | Sequence[Remedy]") -> str:
    return json.dumps([{"remedy": item.kind, **asdict(item)} for item in as_remedies(plan)])  # type: ignore[call-overload]


def remedies_from_json(text: str) -> RemedyPlan:
    """The plan that `remedies_to_json` wrote. ValueError for unknown remedies or fields."""
    try:
        data = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"Not JSON ({error}): {text!r:.80}") from None
    if not isinstance(data, list):
        raise ValueError(f"A plan of remedies is a JSON list; given {type(data).__name__}.")
    return tuple(_remedy(item) for item in data)


def _remedy(data: Any) -> Remedy:
    kind = data.get("remedy") if isinstance(data, Mapping) else data
    if not isinstance(data, Mapping) or not isinstance(kind, str) or kind not in REMEDIES:
        near = difflib.get_close_matches(str(kind), REMEDIES, n=1)
        raise ValueError(f"No remedy {kind!r:.60}{f'; did you mean {near[0]!r}' if near else ''}? There are {', '.join(REMEDIES)}.")
    cls = REMEDIES[kind]
    names = [f.name for f in fields(cls)]
    if unknown := sorted(set(data) - {"remedy", *names}):
        raise ValueError(f"{kind!r} has {', '.join(names)}; given {', '.join(unknown)} as well.")
    return cls(**{key: _tuples(value) for key, value in data.items() if key != "remedy"})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
