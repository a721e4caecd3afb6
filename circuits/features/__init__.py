"""Feature circuits: what makes a transcoder's feature active, from weights and one run, exactly.

Dunefsky, Chlenski and Nanda 2024, "Transcoders Find Interpretable LLM Feature Circuits", arXiv 2406.11944.
"""

from circuits.features.building import Feature, feature_graph
from circuits.features.graph import FeatureGraph, Node
from circuits.features.replacement import LocalReplacement, local_replacement

__all__ = ["Feature", "FeatureGraph", "LocalReplacement", "Node", "feature_graph", "local_replacement"]
