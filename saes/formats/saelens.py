"""SAELens, version 6: `cfg.json` and `sae_weights.safetensors`.

SAELens has no transcoder with top-k, so such a coder is written as a JumpReLU transcoder whose one threshold gives k active features per
row on average (what SAELens does itself for BatchTopK). What the coder was is kept in the metadata, from which it is read back exactly.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.safefiles import write_tensors, write_text
from saes.coders import Coder
from saes.config import Config
from saes.formats.reading import average_threshold, json_of, tensors_of, whole_folder

WEIGHTS = "sae_weights.safetensors"
WRITTEN_FOR = "6.54.12"
"""The release whose files were read; those before 6.0.0 had other keys."""
OWN = "interp_workbench"
KINDS = {"standard": "relu", "gated": "gated", "topk": "topk", "jumprelu": "jumprelu", "transcoder": "relu", "skip_transcoder": "relu",
         "jumprelu_transcoder": "jumprelu", "jumprelu_skip_transcoder": "jumprelu"}  # fmt: skip


def write(coder: Coder, path: Path) -> None:
    threshold = coder.threshold
    if threshold is None and coder.transcoder:
        threshold = average_threshold(coder)
    plain = threshold is not None and not bool(threshold.any())
    if coder.transcoder:
        architecture = ("" if plain else "jumprelu_") + ("skip_" if coder.W_skip is not None else "") + "transcoder"
    elif coder.W_skip is not None:
        raise ValueError("SAELens has no autoencoder with a skip connection; save it with format='workbench'.")
    else:
        architecture = "topk" if threshold is None else "standard" if plain else "jumprelu"
    tensors = {name: getattr(coder, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if threshold is not None and not plain:
        tensors["threshold"] = threshold
    if coder.W_skip is not None:
        tensors["W_skip"] = coder.W_skip
    with whole_folder(path) as folder:
        write_tensors(folder / WEIGHTS, tensors)
        write_text(folder / "cfg.json", json.dumps(_config(coder, architecture), indent=1) + "\n")


def _config(coder: Coder, architecture: str) -> dict[str, Any]:
    metadata = {
        "sae_lens_version": WRITTEN_FOR, "sae_lens_training_version": None, "model_name": coder.info.get("model"),
        "hook_name": coder.input_site, "training_architecture": coder.config.kind,
        OWN: {"config": coder.config.to_json(), "info": coder.info},
    }  # fmt: skip
    out = {
        "d_in": coder.d_in, "d_sae": coder.n_features, "dtype": str(coder.W_dec.dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none", "architecture": architecture,
    }  # fmt: skip
    if coder.transcoder:
        out["d_out"] = coder.d_out
        metadata["hook_name_out"] = coder.target_site
    if architecture == "topk":
        out |= {"k": coder.config.k, "rescale_acts_by_decoder_norm": False}
    return out | {"metadata": metadata}


def is_here(path: Path) -> bool:
    return (path / WEIGHTS).is_file() or (path / "cfg.json").is_file() and "architecture" in json_of(path / "cfg.json")


def read(path: Path) -> Coder:
    about = json_of(path / "cfg.json", ["d_in", "d_sae"])
    architecture = about.get("architecture")
    if architecture not in KINDS:
        raise ValueError(f"{path}/cfg.json has architecture {architecture!r}; of SAELens's, {', '.join(KINDS)} are read.")
    for key, plain in (("normalize_activations", ("none", "expected_average_only_in")), ("reshape_activations", ("none", "hook_z"))):
        if about.get(key, "none") not in plain:
            raise ValueError(f"{path}/cfg.json has {key} {about[key]!r}, which depends on each row; only {' and '.join(plain)} are read.")
    biases = ["b_gate", "b_mag", "r_mag"] if architecture == "gated" else ["b_enc"]
    biases += ["threshold"] if architecture.startswith("jumprelu") else []
    biases += ["W_skip"] if "skip" in architecture else []
    tensors = tensors_of(path / WEIGHTS, ["W_enc", "W_dec", "b_dec", *biases])
    return _coder(about, KINDS[architecture], tensors, "transcoder" in architecture, path).requires_grad_(False).eval()


def _coder(about: dict[str, Any], kind: str, tensors: dict[str, Tensor], transcoder: bool, path: Path) -> Coder:
    metadata = about.get("metadata") or {}
    if kind == "gated":
        gain = tensors.pop("r_mag").exp()
        b_gate, b_enc = tensors.pop("b_gate"), tensors.pop("b_mag")
        if about.get("apply_b_dec_to_input"):  # the same shift for both halves, in their own units
            b_gate = b_gate - tensors["b_dec"] @ tensors["W_enc"]
            b_enc = b_enc - tensors["b_dec"] @ tensors["W_enc"] * gain
        tensors |= {"W_enc": tensors["W_enc"] * gain, "b_enc": b_enc, "threshold": b_enc - gain * b_gate}
    elif about.get("apply_b_dec_to_input"):
        tensors["b_enc"] = tensors["b_enc"] - tensors["b_dec"] @ tensors["W_enc"]
    if kind == "topk" and about.get("rescale_acts_by_decoder_norm"):
        norms = tensors["W_dec"].norm(dim=1)
        tensors |= {"W_enc": tensors["W_enc"] * norms, "b_enc": tensors["b_enc"] * norms, "W_dec": tensors["W_dec"] / norms[:, None]}
    config, info = _known(about, kind, metadata, path)
    if config.kind == "topk":
        tensors.pop("threshold", None)
    elif "threshold" not in tensors:
        tensors["threshold"] = torch.zeros_like(tensors["b_enc"])
    return Coder(**tensors, config=config, transcoder=transcoder, info=info)


def _known(about: dict[str, Any], kind: str, metadata: dict[str, Any], path: Path) -> tuple[Config, dict[str, Any]]:
    """Config and info: our own where the file came from here."""
    if own := metadata.get(OWN):
        return Config.from_file(own["config"]), own["info"]
    if kind == "topk" and "k" not in about:
        raise ValueError(f"{path}/cfg.json lacks k, the number of active features of a topk coder.")
    m, source = int(about["d_sae"]), metadata.get("hook_name")
    target = metadata.get("hook_name_out")
    config = Config(kind=kind, n_features=m, k=int(about.get("k", min(32, m))), input_site=source, target_site=target)  # type: ignore[arg-type]
    return config, {"model": metadata.get("model_name"), "from": "saelens"}
