"""The strongest paths that lead to a feature or a logit, found greedily backwards, and the graph that they make together.

A path goes through features and single heads: target <- feature <- head <- feature <- embedding. Its contribution is the part of the
target's value that took this way; the model being linear, contributions of all ways add up to the value, and those that are not followed
are kept as errors, biases and the rest (greedy search of Dunefsky et al. 2024, without its caps, and with inhibition).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuits.features.backward import Readouts
from circuits.features.decomposition import EXPANDABLE, Decomposition, Part, decompose, expand
from circuits.features.replacement import LocalReplacement

if TYPE_CHECKING:
    import networkx
    import pandas as pd

LEFT = {"error": ("error", "mlp"), "bias": ("dec_bias", "out_bias", "norm1_bias", "norm2_bias", "constant")}
"""What every step keeps beside the parts that are followed; the rest is "pruned"."""


@dataclass(frozen=True)
class Path:
    """Parts from next to the target down; `contribution` is what the whole way brings."""

    parts: tuple[Part, ...]

    @property
    def contribution(self) -> float:
        return self.parts[-1].contribution

    def __str__(self) -> str:
        return " <- ".join(part.id for part in self.parts)


@dataclass(frozen=True)
class Step:
    """One traced node of the search: what it is worth, which parts were kept, and what the others sum to."""

    path: Path | None
    """The way from the target; None: the target itself."""
    value: float
    kept: tuple[Part, ...]
    left: dict[str, float]


@dataclass(frozen=True)
class FeaturePaths:
    """Paths by number of steps, strongest first."""

    model: str
    target: str
    value: float
    paths: tuple[tuple[Path, ...], ...]
    steps: tuple[Step, ...]
    parts_seen: int
    """Parts that were weighed in all, of which paths keep some."""

    def top(self, n: int = 10) -> list[Path]:
        """Of all lengths, by size."""
        return sorted((path for some in self.paths for path in some), key=lambda path: -abs(path.contribution))[:n]

    def table(self) -> "pd.DataFrame":
        """One row per path."""
        import pandas as pd

        rows = [
            {"length": len(path.parts), "rank": rank, "path": str(path), "contribution": path.contribution}
            for some in self.paths
            for rank, path in enumerate(some)
        ]
        frame = pd.DataFrame(rows, columns=["length", "rank", "path", "contribution"])
        return frame.assign(target=self.target, value=self.value, model=self.model)

    def networkx(self) -> "networkx.DiGraph":
        """The paths merged by node: edges carry summed contributions, and errors, biases, what was pruned and what was not traced further
        are nodes, so that what flows into a node is what flows out of it."""
        import networkx

        graph = networkx.DiGraph(model=self.model, target=self.target, value=self.value)
        graph.add_node(self.target, kind="target")

        def flow(source: str, target: str, amount: float, kind: str) -> None:
            graph.add_node(source, kind=kind)
            before = graph.edges[source, target]["weight"] if graph.has_edge(source, target) else 0.0
            graph.add_edge(source, target, weight=before + amount)

        traced = {step.path for step in self.steps}
        for step in self.steps:
            own = self.target if step.path is None else step.path.parts[-1].id
            for part in step.kept:
                flow(part.id, own, part.contribution, part.kind)
                way = Path((*(step.path.parts if step.path else ()), part))
                if part.kind in EXPANDABLE and way not in traced:
                    flow("not traced", part.id, part.contribution, "rest")
            for kind, amount in step.left.items():
                if amount:
                    flow(kind, own, amount, "rest")
        return graph

    def to_json(self) -> str:
        paths = [
            {"parts": [vars(part) | {"id": part.id} for part in path.parts], "contribution": path.contribution} for path in self.top(10**6)
        ]
        return json.dumps({"model": self.model, "target": self.target, "value": self.value, "parts_seen": self.parts_seen, "paths": paths})


def feature_paths(
    run: LocalReplacement,
    target: Readouts,
    name: str = "target",
    length: int = 4,
    branches: int = 5,
    sign: int = 0,
    kinds: Sequence[str] = ("feature", "head", "skip", "embed", "pos_embed"),
) -> FeaturePaths:
    """Beam search backwards from one readout: of each length the `branches` paths that bring most, each traced on.

    sign   0 ranks by size, so that inhibition is seen; 1 keeps what raises the target, -1 what lowers it
    kinds  parts that a path may consist of; the others, such as errors, are summed

    Costs at most branches x length decompositions, each one product of the decoders active at a position and of the value vectors with
    one direction.
    """
    if length < 1 or branches < 1:
        raise ValueError(f"length and branches are whole numbers from 1; given {length!r} and {branches!r}.")
    frontier: list[tuple[Path | None, Readouts]] = [(None, target)]
    found: list[tuple[Path, ...]] = []
    steps: list[Step] = []
    seen = 0
    for _ in range(length):
        opened = [(path, reading, decompose(run, reading, name)) for path, reading in frontier]
        seen += sum(len(whole) for _, _, whole in opened)
        candidates = []
        for path, reading, whole in opened:
            parts = [part for part in whole.top(len(whole), sign) if part.kind in kinds][:branches]
            candidates += [(Path((*(path.parts if path else ()), part)), path, reading) for part in parts]
        candidates.sort(key=lambda each: -abs(each[0].contribution))
        best = candidates[:branches]
        for path, _, whole in opened:
            kept = tuple(way.parts[-1] for way, before, _ in best if before is path)
            steps.append(Step(path, whole.value, kept, _left(whole, kept)))
        if not best:
            break
        found.append(tuple(way for way, _, _ in best))
        frontier = [(way, expand(run, reading, way.parts[-1])) for way, _, reading in best if way.parts[-1].kind in EXPANDABLE]
    return FeaturePaths(run.model.name, name, float(target.values), tuple(found), tuple(steps), seen)


def _left(whole: Decomposition, kept: tuple[Part, ...]) -> dict[str, float]:
    """Errors, biases and the rest of a decomposition beside the kept parts."""
    left = {name: sum(float(whole.of(kind).sum()) for kind in kinds) for name, kinds in LEFT.items()}
    inside = [part for part in kept if part.kind in sum(LEFT.values(), ())]
    for name, kinds in LEFT.items():
        left[name] -= sum(part.contribution for part in inside if part.kind in kinds)
    others = sum(part.contribution for part in kept)
    return left | {"pruned": whole.value - others - sum(left.values())}
