"""Tasks and circuits: which parts of a model do the work."""

from circuits import bias, recall, repetition, reuse
from circuits.edges.attribution import attribute
from circuits.edges.circuit import Circuit
from circuits.edges.graph import Graph
from circuits.edges.pruning import EdgePruning, prune_edges
from circuits.edges.scores import EdgeScores, Header
from circuits.edges.search import acdc, smallest
from circuits.evaluation.compare import completeness, head_recovery, minimality, recovery
from circuits.evaluation.faithfulness import SIZES, FaithfulnessCurve, area, faithfulness, measure_circuits
from circuits.evaluation.random_circuits import random_circuit
from circuits.evaluation.stability import per_prompt, stability
from circuits.features import Feature, FeatureGraph, LocalReplacement, feature_graph, local_replacement
from circuits.nodes.attribution import attribute_nodes
from circuits.nodes.faithfulness import NodeCurve, node_faithfulness
from circuits.nodes.head_subsets import HeadSubsets, head_subsets
from circuits.nodes.missed import MissedNodes, missed_nodes
from circuits.nodes.scores import NodeScores, NodeSet
from circuits.patching.activations import Patching, patch
from circuits.patching.path_results import HeadEffects, PathPatching
from circuits.patching.paths import head_effects, path_patch
from circuits.patching.roles import Roles, find_roles
from circuits.planting import Planted, planted
from circuits.recall.knockout import Knockout, attention_knockout
from circuits.recall.tracing import CausalTrace, causal_trace
from circuits.tasks import Task, task

__all__ = [
    "CausalTrace", "Circuit", "EdgePruning", "EdgeScores", "FaithfulnessCurve", "Feature", "FeatureGraph", "Graph", "HeadEffects",
    "HeadSubsets", "Header", "Knockout", "LocalReplacement", "MissedNodes", "NodeCurve", "NodeScores", "NodeSet", "Patching",
    "PathPatching", "Planted", "Roles", "SIZES", "Task", "acdc", "area", "attention_knockout", "attribute", "attribute_nodes", "bias",
    "causal_trace", "completeness", "faithfulness", "feature_graph", "find_roles", "head_effects", "head_recovery", "head_subsets",
    "local_replacement", "measure_circuits", "minimality", "missed_nodes", "node_faithfulness", "patch", "path_patch", "per_prompt",
    "planted", "prune_edges", "random_circuit", "recall", "recovery", "repetition", "reuse", "smallest", "stability", "task",
]  # fmt: skip
