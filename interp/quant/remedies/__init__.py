"""Remedies against the damage of quantization, tried one by one and in combination: see `interp.quant.remedy`.

A remedy is data: a frozen dataclass that changes the scheme (ranges.py), the model without changing its function (smoothing.py,
rotation.py) or what heads do (head_edits.py, attention_formula.py). `planting.py` makes models in which outliers are known to be.
"""
