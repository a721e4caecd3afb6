"""Sparse dictionaries of a model's activations: autoencoders and transcoders."""

from saes.coders import Coder
from saes.config import Config, Details
from saes.crosscoders import (
    Block,
    Crosscoder,
    CrosscoderEvaluation,
    Sharing,
    clt_blocks,
    crosscoder_blocks,
    crosscoder_controls,
    crosscoder_replacements,
    evaluate_crosscoder,
    sharing,
    train_crosscoder,
)
from saes.evaluation import Evaluation, Together, evaluate, evaluate_together
from saes.feature_editing import FeatureDose, FeatureEdit, feature_dose_response, feature_edits
from saes.fitting import controls, fit, fit_many
from saes.formats import load
from saes.formats.crosscoders import load_crosscoder
from saes.formats.pickled import convert
from saes.ground_truth import Recovery, cosine, recovery
from saes.replacing import replacements
from saes.training import mlp_transcoders, train
from saes.zoo import bundled, bundled_models

__all__ = [
    "Block", "Coder", "Config", "Crosscoder", "CrosscoderEvaluation", "Details", "Evaluation", "FeatureDose", "FeatureEdit", "Recovery",
    "Sharing", "Together", "bundled", "bundled_models", "clt_blocks", "controls", "convert", "cosine", "crosscoder_blocks",
    "crosscoder_controls", "crosscoder_replacements", "evaluate", "evaluate_crosscoder", "evaluate_together", "feature_dose_response",
    "feature_edits", "fit", "fit_many", "load", "load_crosscoder", "mlp_transcoders", "recovery", "replacements", "sharing", "train",
    "train_crosscoder",
]  # fmt: skip
