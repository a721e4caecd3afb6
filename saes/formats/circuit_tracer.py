"""circuit-tracer's per-layer transcoders: `config.yaml` and `layer_<i>.safetensors` for every layer from 0.

Both its matrices are [n_features, d]; `W_skip` is [d, d], applied as x @ W_skip.T. A threshold makes a JumpReLU; without one it is a ReLU,
or a top-k where config.yaml says `activation: topk` and `k`. Its released versions know no top-k, so one is written as a threshold.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from interp.safefiles import write_tensors, write_text
from saes.coders import Coder
from saes.config import Config
from saes.formats.reading import average_threshold, chosen, tensors_of, whole_folder

FILE = re.compile(r"layer_(\d+)\.safetensors")
NAMES = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
THRESHOLD = "activation_function.threshold"


def write(coder: Coder, path: Path) -> None:
    """One transcoder, as the layer of its target site (layer 0 if it has none)."""
    write_set([coder], path, first=_layer(coder))


def write_set(coders: Sequence[Coder], path: Path, first: int = 0) -> None:
    """Transcoders of all layers in order: the set that circuit-tracer attributes through."""
    if not coders:
        raise ValueError("A set of transcoders needs at least one.")
    for coder in coders:
        if not coder.transcoder:
            raise ValueError("circuit-tracer takes transcoders; this coder is an autoencoder. Save it with format='saelens'.")
        if coder.n_features != coders[0].n_features:
            raise ValueError(f"circuit-tracer wants one size for all layers; given {[c.n_features for c in coders]}.")
    with whole_folder(path) as folder:
        for layer, coder in enumerate(coders, first):
            write_tensors(folder / f"layer_{layer}.safetensors", _tensors(coder))
        write_text(folder / "config.yaml", _yaml(coders))


def _tensors(coder: Coder) -> dict[str, torch.Tensor]:
    threshold = coder.threshold if coder.threshold is not None else average_threshold(coder)
    threshold = threshold.clamp_min(0)  # its JumpReLU does not rectify, ours does: a negative threshold would let negative codes through
    out: dict[str, torch.Tensor] = {"W_enc": coder.W_enc.T, "W_dec": coder.W_dec, "b_enc": coder.b_enc, "b_dec": coder.b_dec}
    if bool(threshold.any()):
        out[THRESHOLD] = threshold
    return out | ({"W_skip": coder.W_skip} if coder.W_skip is not None else {})


def _yaml(coders: Sequence[Coder]) -> str:
    hooks = {"feature_input_hook": coders[0].input_site, "feature_output_hook": coders[0].target_site}
    lines = {"model_name": coders[0].info.get("model"), "model_kind": "transcoder_set"}
    lines |= {key: re.sub(r"^blocks\.\d+\.", "", site) if site else None for key, site in hooks.items()}
    if all(coder.threshold is None for coder in coders) and len({coder.config.k for coder in coders}) == 1:  # ours: read back exactly
        lines["interp_workbench_k"] = coders[0].config.k
    return "".join(f"{key}: {'null' if value is None else value}\n" for key, value in lines.items())


def is_here(path: Path) -> bool:
    return bool(_files(path))


def _files(path: Path) -> dict[int, Path]:
    files = [path] if path.is_file() else list(path.iterdir())
    return {int(match[1]): file for file in files if (match := FILE.fullmatch(file.name))}


def read(path: Path) -> Coder:
    """The one layer that lies in a folder, or a layer's file."""
    files = _files(path)
    if len(files) > 1:
        raise ValueError(f"{path} holds layers {min(files)}-{max(files)}; load one file, such as {files[min(files)]}, or use read_set.")
    return _read(*next(iter(files.items())))


def read_set(path: str | Path) -> list[Coder]:
    """All layers in order. They must begin at 0 and leave none out."""
    files = _files(Path(path))
    if sorted(files) != list(range(len(files))) or not files:
        raise ValueError(f"{path} holds layers {sorted(files)}; a set has every layer from 0.")
    return [_read(layer, files[layer]) for layer in range(len(files))]


def _read(layer: int, file: Path) -> Coder:
    tensors = tensors_of(file, list(NAMES), ["W_skip", THRESHOLD])
    about = read_yaml(file.parent / "config.yaml")
    k = about.get("interp_workbench_k") or (about.get("k") if about.get("activation") == "topk" else None)
    threshold = tensors.pop(THRESHOLD, None)
    if threshold is None and k is None:
        threshold = torch.zeros_like(tensors["b_enc"])
    kind: Any = "topk" if k is not None else "jumprelu" if bool(threshold is not None and threshold.any()) else "relu"
    m = len(tensors["b_enc"])
    sites = [f"blocks.{layer}.{about[key]}" if about.get(key) else None for key in ("feature_input_hook", "feature_output_hook")]
    config = Config(kind=kind, n_features=m, k=int(k) if k else min(32, m), input_site=sites[0], target_site=sites[1])
    info: dict[str, Any] = {"model": about.get("model_name"), "from": "circuit-tracer"}
    if k is not None and threshold is not None:
        info["threshold"] = float(threshold[0])
    tensors["W_enc"] = chosen(tensors, file, ["W_enc"])["W_enc"].T
    coder = Coder(**tensors, config=config, threshold=None if k is not None else threshold, transcoder=True, info=info)
    return coder.requires_grad_(False).eval()


def read_yaml(path: Path) -> dict[str, str]:
    """The `key: value` lines of the file; nested values are not needed here."""
    if not path.is_file():
        return {}
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if re.match(r"\w+:", line))
    return {key: value.strip().strip("'\"") for key, value in pairs if value.strip() not in ("", "null", "~")}


def _layer(coder: Coder) -> int:
    match = re.match(r"blocks\.(\d+)\.", coder.target_site or coder.input_site or "")
    return int(match[1]) if match else 0
