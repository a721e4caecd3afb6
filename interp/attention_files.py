"""A model's attention variant on disk: `attention.json` beside its config, `attention_gates.safetensors` where it has parameters.

The folder is otherwise a plain Hugging Face one, and plain Hugging Face loading of it is silently another model: it applies softmax.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from interp import safefiles
from interp.attention_variants import AttentionVariant, VariantAttention, tensor_names
from interp.engine.anatomy import Anatomy
from interp.loading import ATTENTION_TENSORS, CheckpointError

FILE = "attention.json"


def read_variant(folder: Path) -> AttentionVariant:
    """What `attention.json` says; plain softmax where there is none. CheckpointError quoting what is wrong with it."""
    file = folder / FILE
    if not file.is_file():
        return AttentionVariant()
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"it holds no JSON object but {data!r:.40}")
        return AttentionVariant.from_json(data)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file} describes no attention: {error}") from None


def read_tensors(folder: Path, spec: AttentionVariant) -> dict[str, Tensor] | None:
    """The variant's parameters, None for kinds without any."""
    if not spec.is_learned:
        return None
    file = folder / ATTENTION_TENSORS
    if not file.is_file():
        raise CheckpointError(f"{folder} has {spec} attention by its {FILE}, and lacks {ATTENTION_TENSORS} with its parameters.")
    try:
        return safefiles.read_tensors(file)
    except ValueError as error:
        raise CheckpointError(f"{error} Copy or download it again.") from None


def variant_tensors(anatomy: Anatomy) -> dict[str, Tensor]:
    """The parameters of an attached variant, by their names on disk."""
    variants = [block.variant for block in anatomy.blocks]
    if variants[0] is None:
        return {}
    named = tensor_names(variants[0].spec, len(variants))
    return {name: v.get_parameter(p).detach().clone() for layer, p, name in named if (v := variants[layer]) is not None}


def write_variant(folder: Path, anatomy: Anatomy) -> None:
    """`attention.json` and the parameters of what is attached; neither for plain attention, and old ones go."""
    for name in (FILE, ATTENTION_TENSORS):
        (folder / name).unlink(missing_ok=True)
    spec = variant_of(anatomy)
    if spec.kind == "softmax":
        return
    safefiles.write_text(folder / FILE, json.dumps(spec.to_json(), indent=1) + "\n")
    if spec.is_learned:
        safefiles.write_tensors(folder / ATTENTION_TENSORS, variant_tensors(anatomy), metadata={"format": "pt"})


def variant_of(anatomy: Anatomy) -> AttentionVariant:
    """The variant that all layers have."""
    first = anatomy.blocks[0].variant
    return AttentionVariant() if first is None else first.spec


def plain_state(hf: nn.Module) -> dict[str, Tensor]:
    """The state dict that the unmodified Hugging Face class has: without parameters of variants."""
    inside = tuple(f"{name}." for name, module in hf.named_modules() if isinstance(module, VariantAttention))
    return {name: tensor for name, tensor in hf.state_dict().items() if not name.startswith(inside)} if inside else hf.state_dict()
