"""circuit-tracer's cross-layer transcoders: `config.yaml`, and `W_enc_<i>.safetensors` and `W_dec_<i>.safetensors` of every layer i from 0.

The first holds `W_enc_<i>` [n_features, d], `b_enc_<i>`, `b_dec_<i>` [d] and maybe `threshold_<i>`; the second `W_dec_<i>` [n_features,
n_layers - i, d], whose slot j writes to layer i + j. A threshold makes a JumpReLU, without one it is a ReLU.

What a reader of these files should know of circuit-tracer 0.5: it sets the features of position 0 to zero; its `forward` raises where a
`W_skip` is there, and its `to_safetensors` never writes one, so none is written here; and its `compute_reconstruction` leaves out last
positions at which no feature is active. It knows no top-k, which is written as a threshold.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from interp.safefiles import write_tensors, write_text
from saes.coders import Coder
from saes.config import Config
from saes.crosscoders.blocks import Block, sites_read, sites_written
from saes.crosscoders.crosscoder import Crosscoder
from saes.formats.circuit_tracer import read_yaml
from saes.formats.reading import average_threshold, tensors_of, whole_folder

FILE = re.compile(r"W_(enc|dec)_(\d+)\.safetensors")
SITE = re.compile(r"blocks\.(\d+)\.(.+)")


def write(crosscoder: Crosscoder, path: Path) -> None:
    """ValueError for what is no cross-layer transcoder of all layers from 0, and for skip terms, which the format cannot hold."""
    names = hooks(crosscoder.blocks, any(coder.W_skip is not None for coder in crosscoder.coders))
    for what, sizes in {
        "size": [coder.n_features for coder in crosscoder.coders],
        "width": crosscoder.split_sizes(crosscoder.writes),
    }.items():
        if len(set(sizes)) > 1:
            raise ValueError(f"circuit-tracer wants one {what} for all layers; given {sizes}.")
    d = crosscoder.widths[crosscoder.writes[0]]
    with whole_folder(path) as folder:
        for i, coder in enumerate(crosscoder.coders):
            own = {f"W_enc_{i}": coder.W_enc.T, f"b_enc_{i}": coder.b_enc, f"b_dec_{i}": coder.b_dec[:d]}
            write_tensors(folder / f"W_enc_{i}.safetensors", own | _threshold(coder, i))
            write_tensors(folder / f"W_dec_{i}.safetensors", {f"W_dec_{i}": coder.W_dec.unflatten(1, (-1, d))})
        write_text(folder / "config.yaml", _yaml(crosscoder, names))


def _threshold(coder: Coder, layer: int) -> dict[str, torch.Tensor]:
    """None where it is a ReLU. Its JumpReLU does not rectify, ours does: a negative threshold would let negative codes through."""
    threshold = (coder.threshold if coder.threshold is not None else average_threshold(coder)).clamp_min(0)
    return {f"threshold_{layer}": threshold} if bool(threshold.any()) else {}


def hooks(blocks: Sequence[Block], skip: bool) -> tuple[str, str]:
    """Names of the sites read and written within a block of the model. ValueError for blocks that the format cannot hold."""
    if skip:
        raise ValueError("circuit-tracer's files of cross-layer transcoders hold no skip term; save with format='workbench'.")
    n, outputs = len(blocks), sites_written(blocks)
    found = [SITE.fullmatch(site) for site in (*(block.reads[0] for block in blocks), *outputs)]
    names = [match[2] for match in found if match]
    layers = [int(match[1]) for match in found if match]
    as_wanted = all(len(block.reads) == 1 and block.writes == outputs[i:] for i, block in enumerate(blocks)) and len(outputs) == n
    if not as_wanted or layers != [*range(n), *range(n)] or len(set(names[:n])) > 1 or len(set(names[n:])) > 1:
        raise ValueError(
            f"circuit-tracer takes cross-layer transcoders of all layers from 0, such as those of saes.clt_blocks(model); this one reads "
            f"{', '.join(sites_read(blocks)[:4])} and writes {', '.join(outputs[:4])}. Save it with format='workbench'."
        )
    return names[0], names[n]


def _yaml(crosscoder: Crosscoder, names: tuple[str, str]) -> str:
    lines: dict[str, Any] = {"model_name": crosscoder.info.get("model"), "model_kind": "cross_layer_transcoder"}
    lines |= {"feature_input_hook": names[0], "feature_output_hook": names[1]}
    if all(coder.threshold is None for coder in crosscoder.coders) and len({c.config.k for c in crosscoder.coders}) == 1:
        lines["interp_workbench_k"] = crosscoder.coders[0].config.k  # ours: a top-k is read back as one
    return "".join(f"{key}: {'null' if value is None else value}\n" for key, value in lines.items())


def is_here(path: Path) -> bool:
    return path.is_dir() and any(FILE.fullmatch(file.name) for file in path.iterdir())


def read(path: Path) -> Crosscoder:
    """All layers. ValueError if some are left out, or if shapes do not agree."""
    layers = {kind: sorted(int(m[2]) for f in path.iterdir() if (m := FILE.fullmatch(f.name)) and m[1] == kind) for kind in ("enc", "dec")}
    n = len(layers["enc"])
    if layers["enc"] != list(range(n)) or layers["dec"] != layers["enc"]:
        raise ValueError(
            f"{path} has W_enc of layers {layers['enc']} and W_dec of {layers['dec']}; it should have both of every layer from 0."
        )
    about = read_yaml(path / "config.yaml")
    inputs, outputs = about.get("feature_input_hook", "hook_resid_mid"), about.get("feature_output_hook", "hook_mlp_out")
    writes = [f"blocks.{i}.{outputs}" for i in range(n)]
    blocks = tuple(Block((f"blocks.{i}.{inputs}",), tuple(writes[i:])) for i in range(n))
    k = int(about["interp_workbench_k"]) if "interp_workbench_k" in about else None
    coders = tuple(_coder(path, i, n, k) for i in range(n))
    widths = {site: coders[0].d_in for block in blocks for site in block.reads} | dict.fromkeys(writes, coders[-1].d_out)
    return Crosscoder(blocks, coders, widths, {"model": about.get("model_name"), "from": "circuit-tracer"})


def _coder(path: Path, i: int, n: int, k: int | None) -> Coder:
    file, other = path / f"W_enc_{i}.safetensors", path / f"W_dec_{i}.safetensors"
    found = tensors_of(file, [f"W_enc_{i}", f"b_enc_{i}", f"b_dec_{i}"], [f"threshold_{i}"])
    W_dec = tensors_of(other, [f"W_dec_{i}"])[f"W_dec_{i}"]
    own, m = found[f"b_dec_{i}"], len(found[f"b_enc_{i}"])
    if W_dec.shape != (wanted := (m, n - i, len(own))):
        raise ValueError(f"W_dec_{i} of {other} is {tuple(W_dec.shape)}; expected [n_features, layers from {i} on, d] = {wanted}.")
    threshold = found.get(f"threshold_{i}", torch.zeros_like(found[f"b_enc_{i}"]))
    info: dict[str, Any] = {"threshold": float(threshold[0])} if k is not None else {}
    kind: Any = "topk" if k is not None else "jumprelu" if bool(threshold.any()) else "relu"
    config = Config(kind=kind, n_features=m, k=k if k is not None else min(32, m))
    b_dec = torch.cat([own, own.new_zeros((n - i - 1) * len(own))])
    W_enc = found[f"W_enc_{i}"].T.contiguous()
    coder = Coder(W_enc, found[f"b_enc_{i}"], W_dec.flatten(1), b_dec, config, None if k is not None else threshold, None, True, info)
    return coder.requires_grad_(False).eval()
