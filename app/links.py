"""The address bar: the one place where a Case becomes a query string and comes back.

    ?model=demo-opt&a=When John and Mary ...&t=Mary&f=John&e=a2.1*0.5,~a1.0:mean&head=2.1&by=direct
    ?a=...&b=When John and Anna ...&t=Mary&f=John&site=z&grid=head&cell=2.1            the two prompts of a patch, and a cell of its map
    ?part=heads&sink=0.4&output=0.05&cost=0.001            which heads count as doing nothing; dim=2.14: a dimension
    ?show=circuit&task=ioi&method=relp&size=0.05&run=without&vs=colored-objects/relp

What equals the default is left out. A value that cannot be used is dropped and said, never a traceback.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from urllib.parse import urlencode

from app.case import (
    CLAMP_WHERE,
    COSTS,
    FEATURE_ORDERS,
    FEATURE_PARTS,
    FRACTIONS,
    HEAD_COLUMNS,
    MEASURES,
    METHODS,
    OFF,
    OUTLIER_PARTS,
    OUTPUT_SHARES,
    PROMPTS,
    SCHEMES,
    SECTIONS,
    SINK_SHARES,
    SITES,
    TASKS,
    Case,
)  # fmt: skip

KEYS = {
    "model": "model", "prompt": "a", "corrupt": "b", "target": "t", "foil": "f", "edits": "e", "head": "head", "measure": "by",
    "section": "show", "patch.site": "site", "patch.grid": "grid", "patch.way": "way", "patch.unit": "unit", "patch.cell": "cell",
    "circuit.task": "task", "circuit.method": "method", "circuit.prompts": "n", "circuit.size": "size", "circuit.run": "run",
    "circuit.node": "node", "circuit.other": "vs", "outlier.part": "part", "outlier.texts": "texts", "outlier.column": "column",
    "outlier.sink": "sink", "outlier.output": "output", "outlier.cost": "cost", "outlier.place": "dim", "outlier.scheme": "scheme",
    "feature.part": "features", "feature.layer": "layer", "feature.name": "feature", "feature.order": "order", "feature.clamp": "clamp",
    "feature.where": "where", "feature.coders": "coders",
}  # fmt: skip
QUESTION = ("prompt", "corrupt", "target", "foil")
"""What belongs together: a prompt of one's own always comes with its words, and with its second prompt or none."""
CHOICES: Mapping[str, tuple[object, ...]] = {
    "measure": MEASURES, "section": SECTIONS, "patch.site": SITES, "patch.grid": ("pos", "head"), "patch.way": ("denoise", "noise"),
    "patch.unit": ("share", "logits"), "circuit.task": TASKS, "circuit.method": METHODS, "circuit.prompts": PROMPTS,
    "circuit.size": FRACTIONS, "circuit.run": ("only", "without"), "outlier.part": OUTLIER_PARTS, "outlier.texts": PROMPTS,
    "outlier.sink": SINK_SHARES, "outlier.output": OUTPUT_SHARES, "outlier.cost": COSTS, "outlier.scheme": SCHEMES,
    "outlier.column": HEAD_COLUMNS, "feature.part": FEATURE_PARTS, "feature.order": FEATURE_ORDERS, "feature.where": CLAMP_WHERE,
}  # fmt: skip
PAIRS = {"head": "LAYER.HEAD, such as 2.1", "patch.cell": "ROW.COLUMN, such as 2.10", "outlier.place": "LAYER.DIMENSION, such as 2.14",
         "feature.name": "LAYER.FEATURE, such as 2.117"}  # fmt: skip
LONGEST = 4000  # characters of a prompt in a link


@dataclass(frozen=True)
class Read:
    """What a query string says: fields of a Case by dotted name, and what in it could not be used."""

    fields: dict[str, object]
    problems: tuple[str, ...]


def query(case: Case, default: Case) -> dict[str, str]:
    """The query parameters of a case; what equals `default` is left out."""
    asked = {name for name in KEYS if value(case, name) != value(default, name) and name != "edits"} | ({"edits"} if case.edits else set())
    if asked & set(QUESTION):
        asked = asked - {"corrupt"} | {name for name in QUESTION if name != "corrupt" or case.corrupt}
    return {key: _text(value(case, name)) for name, key in KEYS.items() if name in asked}


def link(base: str, case: Case, default: Case) -> str:
    """The whole address."""
    parameters = query(case, default)
    return f"{base.split('?')[0]}?{urlencode(parameters)}" if parameters else base.split("?")[0]


def read(parameters: Mapping[str, str]) -> Read:
    """Fields of a Case from query parameters."""
    names = {key: name for name, key in KEYS.items()}
    found: dict[str, object] = {}
    problems = [f"The link holds {key!r}, which means nothing here; it was left out." for key in parameters if key not in names]
    for key, name in names.items():
        if key in parameters:
            value, problem = _value(name, str(parameters[key]))
            if problem:
                problems.append(problem)
            if value is not None:
                found[name] = value
    return Read(found, tuple(problems))


def apply(found: Read, default: Case) -> Case:
    """The default case with what a link says."""
    case = default
    if "prompt" in found.fields and "corrupt" not in found.fields:
        case = replace(case, corrupt="")
    for name, value in found.fields.items():
        case = put(case, name, value)
    return case


def put(case: Case, name: str, value: object) -> Case:
    """The case with one field changed; "patch.site" is a field of a field."""
    outer, _, inner = name.partition(".")
    return replace(case, **{outer: replace(getattr(case, outer), **{inner: value}) if inner else value})  # type: ignore[arg-type]


def value(case: Case, name: str) -> object:
    return attrgetter(name)(case)


def _text(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, text: str) -> tuple[object, str | None]:
    if name in CHOICES:
        return _choice(name, text)
    match name:
        case "edits":
            return _edits(text)
        case "head" | "patch.cell" | "outlier.place" | "feature.name":
            if _pair(text):
                return text, None
            return None, f"The link's {KEYS[name]} {text!r:.40} is not {PAIRS[name]}; none is selected."
        case "feature.layer":
            good = text.isascii() and text.isdigit() and len(text) < 6
            return (int(text), None) if good else (None, f"The link's layer {text!r:.40} is no number; layer 0 is shown.")
        case "feature.clamp":
            try:
                value = float(text)
            except ValueError:
                value = float("nan")
            good = 0 <= value < 1e6
            return (
                (value, None)
                if good
                else (None, f"The link's clamp {text!r:.40} is no activation (0 or more); the largest one seen is taken.")
            )
        case "circuit.other":
            task, _, method = text.partition("/")
            good = task in TASKS and method in METHODS
            return (text, None) if good else (None, f"The link compares with {text!r:.40}, which is not TASK/METHOD, such as ioi/eap.")
        case "prompt" | "corrupt" if len(text) > LONGEST:
            return None, f"The link's prompt has {len(text):,} characters; at most {LONGEST:,} are read."
    return text, None


def _choice(name: str, text: str) -> tuple[object, str | None]:
    """One of a few values, which need not be text."""
    found = next((choice for choice in CHOICES[name] if _text(choice) == text), None)
    if found is not None:
        return found, None
    return None, f"The link asks for {KEYS[name]}={text[:40]!r}; there are {', '.join(map(_text, CHOICES[name]))}."


def _pair(text: str) -> bool:
    """Two numbers with a dot between them."""
    first, _, second = text.partition(".")
    return all(part.isascii() and part.isdigit() and len(part) < 6 for part in (first, second))


def _edits(text: str) -> tuple[tuple[str, ...], str | None]:
    """The edits that can be read, each in its one form, and what cannot."""
    if not text.strip():
        return (), None
    from interp.shorthand import format_edit, parse_edit

    kept, problems = [], []
    for part in text.split(","):
        off = OFF if part.strip().startswith(OFF) else ""
        try:
            kept.append(off + format_edit(parse_edit(part.strip().removeprefix(OFF))))
        except ValueError as error:
            problems.append(str(error))
    return tuple(dict.fromkeys(kept)), " ".join(problems) or None
