"""Dictionaries over several sites: crosscoders, and the cross-layer transcoders that are a kind of them.

blocks.py      which features read where and write where
crosscoder.py  the trained thing: a coder for each block, whose outputs at a site add up
joint.py       the step that trains all blocks on one loss; training.py runs it over a source of rows
replacing.py   the model with a crosscoder in place; evaluation.py what that costs
sharing.py     which features are shared between sites
"""

from saes.crosscoders.blocks import Block, clt_blocks, crosscoder_blocks
from saes.crosscoders.crosscoder import Crosscoder
from saes.crosscoders.evaluation import CrosscoderEvaluation, evaluate_crosscoder
from saes.crosscoders.replacing import crosscoder_replacements
from saes.crosscoders.sharing import Sharing, sharing
from saes.crosscoders.training import crosscoder_controls, train_crosscoder

__all__ = [
    "Block", "Crosscoder", "CrosscoderEvaluation", "Sharing", "clt_blocks", "crosscoder_blocks", "crosscoder_controls",
    "crosscoder_replacements", "evaluate_crosscoder", "sharing", "train_crosscoder",
]  # fmt: skip
