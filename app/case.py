"""What a person looks at, as one frozen object: address bar, cache keys, Python snippet and command line are all made of it."""

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.edits import Plan

OFF = "~"  # before an edit that is kept but switched off
MEASURES = ("zero", "mean", "direct", "bos", "entropy", "previous", "induction", "copying")
SECTIONS = ("patch", "circuit")
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern")
PER_HEAD = ("z", "q", "k", "v", "pattern")
PAIR = "pair"  # the task that is the two prompts of the page themselves
TASKS = ("ioi", "greater-than", "factual-recall", "conflict", "anchored-bias", "colored-objects", "induction", PAIR)
METHODS = ("eap-ig-inputs", "eap", "relp", "clean-corrupted", "eap-ig-activations", "ifr")
PROMPTS = (16, 32, 64)
OUTLIER_PARTS = ("sizes", "heads", "trace", "bits", "remedies")
FEATURE_PARTS = ("dashboard", "prompt", "graph")
FEATURE_ORDERS = ("label", "density", "maximum", "number")
CLAMP_WHERE = ("all", "last")
HEAD_COLUMNS = (
    "no_op", "loss_zero", "loss_mean", "loss_bos", "sink_rate", "sink_mass", "delimiter_mass", "value_sink_share", "output_norm",
    "output_to_layer", "output_to_stream", "row_entropy", "score_range",
)  # fmt: skip
SINK_SHARES = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OUTPUT_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 10.0)
COSTS = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
SCHEMES = ("w8a8", "w8a8-percentile", "w8a8-token", "w8", "a8", "w6a6", "w4a8", "w4", "llm.int8")
FRACTIONS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class PatchMap:
    """Which activations are swapped between the two prompts, and how the effects are shown."""

    site: str = "resid_pre"
    """One of SITES."""
    grid: str = "pos"
    """pos: layer by position; head: layer by head, for PER_HEAD sites."""
    way: str = "denoise"
    """denoise: A's activations into the run on B; noise: B's into the run on A."""
    unit: str = "share"
    """share of the difference between the two runs, or logits."""
    cell: str = ""
    """The cell in focus, "2.10": layer, then position or head; empty for none."""

    @property
    def axes(self) -> tuple[str, str]:
        """What the map really is: a site without heads is shown by position."""
        return ("layer", "head") if self.grid == "head" and self.site in PER_HEAD else ("layer", "pos")

    @property
    def direction(self) -> str:
        """As the library names it."""
        return "clean->corrupt" if self.way == "denoise" else "corrupt->clean"

    @property
    def place(self) -> tuple[int, int] | None:
        """The cell in focus as (row, column)."""
        row, _, column = self.cell.partition(".")
        return (int(row), int(column)) if row.isdigit() and column.isdigit() else None


@dataclass(frozen=True)
class CircuitView:
    """Which circuit is shown, and what is done with it."""

    task: str = "ioi"
    """One of TASKS."""
    method: str = "eap-ig-inputs"
    """One of METHODS."""
    prompts: int = 32
    """Pairs that find it; as many others measure it."""
    size: float = 0.1
    """Nominal share of the edges, one of FRACTIONS."""
    run: str = "only"
    """only: all edges outside the circuit are ablated; without: those of the circuit."""
    node: str = ""
    """The node in focus, "a1.h2"; empty for none."""
    other: str = ""
    """What it is compared with, "task/method"; empty for nothing."""

    @property
    def compared(self) -> "CircuitView | None":
        """The other circuit, of the same size and from as many prompts."""
        task, _, method = self.other.partition("/")
        return CircuitView(task, method, self.prompts, self.size) if self.other else None


@dataclass(frozen=True)
class OutlierView:
    """What is looked at on the page of outliers, and which head counts as doing nothing."""

    part: str = "sizes"
    """One of OUTLIER_PARTS."""
    texts: int = 32
    """Documents that are measured, one of PROMPTS."""
    column: str = "no_op"
    """What the table of heads is coloured by, a column of quant.head_report."""
    sink: float = 0.25
    """A no-op head has at least this share of its attention on sinks, one of SINK_SHARES ..."""
    output: float = 0.2
    """... writes less than this share of the stream's norm, one of OUTPUT_SHARES ..."""
    cost: float = 0.01
    """... and the loss changes by less than this without it, nats per token, one of COSTS."""
    place: str = ""
    """The dimension that is traced, "2.14": layer, then dimension of the stream it leaves; empty for the largest."""
    scheme: str = "w8a8"
    """One of SCHEMES."""

    @property
    def layer_dim(self) -> tuple[int, int] | None:
        layer, _, dim = self.place.partition(".")
        return (int(layer), int(dim)) if layer.isdigit() and dim.isdigit() else None

    @property
    def mended_scheme(self) -> str:
        """The scheme that remedies are tried on: LLM.int8 is a remedy itself."""
        return "w8a8" if self.scheme == "llm.int8" else self.scheme


@dataclass(frozen=True)
class FeatureView:
    """Which feature of the model's transcoders is looked at, and what it is clamped to."""

    part: str = "dashboard"
    """One of FEATURE_PARTS."""
    layer: int = 0
    name: str = ""
    """The feature in focus, "2.117": layer, then feature; empty for the first of the layer."""
    order: str = "label"
    """How the features of a layer are listed, one of FEATURE_ORDERS."""
    clamp: float = -1.0
    """The activation that the feature is held at, in units of its own; below 0: the largest one seen."""
    where: str = "all"
    """At all positions or at the last one, one of CLAMP_WHERE."""
    coders: str = ""
    """A folder with one transcoder per layer; empty for the bundled ones."""

    @property
    def layer_feature(self) -> tuple[int, int] | None:
        layer, _, feature = self.name.partition(".")
        return (int(layer), int(feature)) if layer.isdigit() and feature.isdigit() else None


@dataclass(frozen=True)
class Case:
    """A model, a prompt, the two words compared, the edits, and what is looked at."""

    model: str
    """A bundled name, a folder, or a hub name."""
    prompt: str = ""
    target: str = ""
    """The right next word; "#17" is a token id."""
    foil: str = ""
    """The wrong next word that it is compared with."""
    edits: tuple[str, ...] = ()
    """Short texts such as "a9.6*0.5" (see interp.shorthand); "~" before one switches it off."""
    head: str = ""
    """The head in focus, "9.6"; empty for none."""
    measure: str = "zero"
    """What the head grid shows; one of MEASURES."""
    corrupt: str = ""
    """Prompt B, whose activations are swapped with the prompt's; empty for none."""
    section: str = "patch"
    """What the page of patching and circuits shows; one of SECTIONS."""
    patch: PatchMap = PatchMap()
    circuit: CircuitView = CircuitView()
    outlier: OutlierView = OutlierView()
    feature: FeatureView = FeatureView()

    @property
    def active(self) -> str:
        """The edits that are switched on, as one short text."""
        return ",".join(edit for edit in self.edits if not edit.startswith(OFF))

    def plan(self) -> "Plan":
        """The edits that are switched on. ValueError quotes an edit that cannot be read."""
        from interp.shorthand import parse_edits

        return parse_edits(self.active)

    def clean(self) -> "Case":
        """The same without edits."""
        return replace(self, edits=())

    @property
    def layer_head(self) -> tuple[int, int] | None:
        """The head in focus as (layer, head)."""
        layer, _, head = self.head.partition(".")
        return (int(layer), int(head)) if layer.isdigit() and head.isdigit() else None

    def factor(self, head: tuple[int, int]) -> float:
        """By what the edits scale this head: 1 where none does, 0 where it is zeroed."""
        from interp.shorthand import parse_edit

        text = next((edit for edit in self.edits if is_of_head(edit, head)), None)
        if text is None or text.startswith(OFF):
            return 1.0
        edit = parse_edit(text)
        return float(edit.value) if edit.op == "scale" else 0.0 if edit.op == "zero" else 1.0

    def with_head_edit(self, head: tuple[int, int], operation: str | None) -> "Case":
        """This head's edit replaced by `operation` ("*0.5", ":mean"), or taken away by None."""
        text = f"a{head[0]}.{head[1]}{operation}" if operation is not None else None
        kept = [text if is_of_head(edit, head) else edit for edit in self.edits]
        if text is not None and text not in kept:
            kept.append(text)
        return replace(self, edits=tuple(dict.fromkeys(edit for edit in kept if edit is not None)))

    def without_edit(self, index: int) -> "Case":
        return replace(self, edits=self.edits[:index] + self.edits[index + 1 :])

    def with_edit_switched(self, index: int) -> "Case":
        """One edit switched off, or on again."""
        edit = self.edits[index]
        switched = edit.removeprefix(OFF) if edit.startswith(OFF) else OFF + edit
        return replace(self, edits=(*self.edits[:index], switched, *self.edits[index + 1 :]))

    def python(self) -> str:
        """A script that computes the numbers shown, with the library alone."""
        lines = [f"    interp.{edit!r},\n" for edit in self.plan()]
        edits = f"(\n{''.join(lines)})" if lines else "()"
        ids = prompt_ids(self.prompt)
        prompts = f"model.encode([{self.prompt!r}])" if ids is None else f"interp.Prompts.from_ids([{ids}])"
        return f"""import interp
from interp.tokens import token_id

model = interp.load({self.model!r})
prompts = {prompts}
target, foil = token_id(model, {self.target!r}), token_id(model, {self.foil!r})
edits = {edits}

result = interp.sweep(model, prompts, [edits], interp.logit_diff([target], [foil]))
clean, edited = float(result.clean[0]), float(result.values[0, 0])
print(f"logit difference: {{clean:.4f}} -> {{edited:.4f}}")
"""

    def command(self) -> str:
        """The same on the command line."""
        ids = prompt_ids(self.prompt)
        prompt = [self.prompt] if ids is None else [" ".join(map(str, ids)), "--ids"]
        words = ["interp", "logits", self.model, *prompt, "--target", self.target, "--foil", self.foil]
        return shlex.join(words + (["--edit", self.active] if self.active else []))


def prompt_ids(text: str) -> list[int] | None:
    """The ids of a prompt that is written as "#5 #9"; None for ordinary text."""
    words = text.split()
    return [int(word[1:]) for word in words] if words and all(w.startswith("#") and w[1:].isdigit() for w in words) else None


def is_of_head(edit: str, head: tuple[int, int]) -> bool:
    """Is this short text an edit of the head's output, at all positions?"""
    text, name = edit.removeprefix(OFF), f"a{head[0]}.{head[1]}"
    return text.startswith(name) and text[len(name) :][:1] in ("*", ":", "+", "=") and "@" not in text
