"""Sparse dictionaries of a model's activations: autoencoders and transcoders."""

from saes.coders import Coder
from saes.config import Config, Details
from saes.evaluation import Evaluation, Together, evaluate, evaluate_together
from saes.fitting import controls, fit, fit_many
from saes.formats import load
from saes.ground_truth import Recovery, cosine, recovery
from saes.replacing import replacements
from saes.training import mlp_transcoders, train
from saes.zoo import bundled, bundled_models

__all__ = [
    "Coder", "Config", "Details", "Evaluation", "Recovery", "Together", "bundled", "bundled_models", "controls", "cosine",
    "evaluate", "evaluate_together", "fit", "fit_many", "load", "mlp_transcoders", "recovery", "replacements", "train",
]  # fmt: skip
