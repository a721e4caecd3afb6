"""Feature circuits: what makes a transcoder's feature active, from weights and one run, exactly.

Dunefsky, Chlenski and Nanda 2024, "Transcoders Find Interpretable LLM Feature Circuits", arXiv 2406.11944.
"""

from circuits.features.backward import Readouts, direction_readouts, edges, feature_readouts, logit_readouts
from circuits.features.building import Feature, feature_graph
from circuits.features.decomposition import Decomposition, decompose, expand
from circuits.features.graph import FeatureGraph, Node
from circuits.features.paths import FeaturePaths, feature_paths
from circuits.features.replacement import LocalReplacement, local_replacement
from circuits.features.weights import Connections, Overlap, connections, deembedding, logit_effects, overlap, virtual_weights

__all__ = [
    "Connections", "Decomposition", "Feature", "FeatureGraph", "FeaturePaths", "LocalReplacement", "Node", "Overlap", "Readouts",
    "connections", "decompose", "deembedding", "direction_readouts", "edges", "expand", "feature_graph", "feature_paths",
    "feature_readouts", "local_replacement", "logit_effects", "logit_readouts", "overlap", "virtual_weights",
]  # fmt: skip
