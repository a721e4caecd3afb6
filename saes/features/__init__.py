"""What features are: dashboards, activations on a prompt, logit weights, and known variables that they tell."""

from saes.features.activations import FeatureActivations, feature_activations
from saes.features.atlas import atlas_sample, atlas_variables
from saes.features.detection import Confusion, Detection, confusion, detect, halves
from saes.features.examples import TOP, Examples, Statistics
from saes.features.export import export_html
from saes.features.recording import Recorded, recorded
from saes.features.reporting import feature_report, feature_reports
from saes.features.reports import Example, Label, Report, Reports, load_reports
from saes.features.variables import Variables
from saes.features.weights import LogitWeights, encoder_decoder_cosine, logit_weights, nearest_features

__all__ = [
    "TOP", "Confusion", "Detection", "Example", "Examples", "FeatureActivations", "Label", "LogitWeights", "Recorded", "Report", "Reports",
    "Statistics", "Variables", "atlas_sample", "atlas_variables", "confusion", "detect", "encoder_decoder_cosine", "export_html",
    "feature_activations", "feature_report", "feature_reports", "halves", "load_reports", "logit_weights", "nearest_features", "recorded",
]  # fmt: skip
