"""What a model folder says about itself, read from its files alone: no weights, no torch.

card("demo-gpt2").sizes        {"layers": 4, "heads": 4, ...}
card("demo-gpt2").summary      the first paragraph of its README.md
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.zoo import bundled

FAMILIES = {"gpt2": "GPT-2", "opt": "OPT", "gpt_neox": "GPT-NeoX (Pythia)"}
_KEYS = {
    "layers": ("n_layer", "num_hidden_layers"),
    "heads": ("n_head", "num_attention_heads"),
    "d_model": ("n_embd", "hidden_size"),
    "context": ("n_positions", "max_position_embeddings"),
    "vocabulary": ("vocab_size",),
}


@dataclass(frozen=True)
class Card:
    """A model folder's own account of itself."""

    name: str
    folder: Path
    family: str
    """With its attention formula where that is not softmax."""
    sizes: Mapping[str, int]
    """layers, heads, d_model, context and vocabulary, as far as config.json says."""
    megabytes: float
    """Of its weights on disk."""
    readme: str
    """README.md without its metadata block; empty where there is none."""
    training: Mapping[str, Any]
    """training.json of the bundled models: config, tokens seen, seconds."""

    @property
    def summary(self) -> str:
        """The first paragraph of the README, or the sizes in words."""
        for block in self.readme.split("\n\n"):
            text = " ".join(block.split())
            if text and not text.startswith(("#", "|", "```", "<", "-")):
                return text
        shown = ", ".join(f"{value:,} {name}" for name, value in self.sizes.items())
        return f"{self.family}: {shown}."


def card(name: str | Path) -> Card:
    """The card of a bundled name or of a model folder; FileNotFoundError if there is no such folder."""
    folder = bundled().get(str(name), Path(name).expanduser())
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"No model folder {str(name)!r}; bundled models: {', '.join(bundled()) or 'none'}.")
    return _read(folder)


def _read(folder: Path) -> Card:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sizes = {name: int(config[key]) for name, keys in _KEYS.items() for key in keys if isinstance(config.get(key), int)}
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    readme = folder / "README.md"
    training, attention = folder / "training.json", folder / "attention.json"
    family = FAMILIES.get(config.get("model_type", ""), str(config.get("model_type")))
    if attention.is_file():
        family += f", {json.loads(attention.read_text(encoding='utf-8')).get('kind')} attention"
    return Card(
        name=folder.name, folder=folder, family=family, sizes=sizes,
        megabytes=round(weights, 1), readme=_without_metadata(readme.read_text(encoding="utf-8")) if readme.is_file() else "",
        training=json.loads(training.read_text(encoding="utf-8")) if training.is_file() else {},
    )  # fmt: skip


def _without_metadata(text: str) -> str:
    """A model card may begin with YAML between two lines of dashes."""
    parts = text.split("---\n", 2)
    return parts[2].strip() if text.startswith("---\n") and len(parts) == 3 else text.strip()
