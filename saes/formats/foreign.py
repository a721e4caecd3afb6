"""Coders of other tools, read only: sparsify, dictionary_learning, OpenAI's sparse_autoencoder, Gemma Scope."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.safefiles import read_tensors
from saes.coders import Coder
from saes.config import Config
from saes.formats.reading import chosen, json_of, tensors_of


def made(
    kind: Any, k: int | None, tensors: dict[str, Tensor], source: str, transcoder: bool = False,
    site: str | None = None, target: str | None = None, model: str | None = None,
) -> Coder:  # fmt: skip
    """A coder of these tensors; where there are no thresholds they are 0."""
    m = len(tensors["b_enc"])
    if kind != "topk" and "threshold" not in tensors:
        tensors["threshold"] = torch.zeros_like(tensors["b_enc"])
    config = Config(kind=kind, n_features=m, k=k if k is not None else min(32, m), input_site=site, target_site=target)
    info = {"from": source, **({"model": model} if model else {})}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return Coder(**tensors, config=config, transcoder=transcoder, info=info).requires_grad_(False).eval()


def centred(bias: Tensor, centre: Tensor, W_enc: Tensor) -> Tensor:
    """The encoder's bias where its input is taken as it is instead of minus a centre: b - centre W. Summed in float64."""
    return (bias.double() - centre.double() @ W_enc.double()).to(bias.dtype)


def _safetensors(path: Path) -> list[Path]:
    return [path] if path.suffix == ".safetensors" else sorted(path.glob("*.safetensors")) if path.is_dir() else []


def _holding(path: Path, *names: str) -> Path | None:
    """The safetensors file here that has all these tensors."""
    return next((file for file in _safetensors(path) if set(names) <= set(read_tensors(file))), None)


# --- sparsify: <hookpoint>/sae.safetensors and cfg.json --------------------------------------------------------------------------


def is_sparsify(path: Path) -> bool:
    return (path / "sae.safetensors").is_file()


def read_sparsify(path: Path) -> Coder:
    """`num_latents` may be 0, meaning d_in x expansion_factor; only an autoencoder subtracts b_dec from its input."""
    about = json_of(path / "cfg.json", ["k"])
    tensors = tensors_of(path / "sae.safetensors", ["encoder.weight", "encoder.bias", "W_dec", "b_dec"], ["W_skip"])
    if about.get("activation", "topk") != "topk":
        raise ValueError(f"{path}/cfg.json has activation {about['activation']!r}; of sparsify's, topk is read.")
    transcoder = bool(about.get("transcode"))
    W_enc, b_enc = tensors.pop("encoder.weight").T, tensors.pop("encoder.bias")
    if not transcoder:
        b_enc = centred(b_enc, tensors["b_dec"], W_enc)
    return made("topk", int(about["k"]), tensors | {"W_enc": W_enc, "b_enc": b_enc}, "sparsify", transcoder, path.name)


# --- dictionary_learning: ae.safetensors (converted from ae.pt) and config.json -----------------------------------------------------

DL = ("encoder.weight", "encoder.bias", "decoder.weight")
DL_GATED = ("encoder.weight", "decoder.weight", "gate_bias", "mag_bias", "r_mag")


def is_dictionary_learning(path: Path) -> bool:
    return (_holding(path, *DL) or _holding(path, *DL_GATED)) is not None


def read_dictionary_learning(path: Path) -> Coder:
    """`config.json` beside the tensors says which class they are of, where their names do not."""
    file = _holding(path, *DL) or _holding(path, *DL_GATED)
    assert file is not None
    about = json_of(file.parent / "config.json").get("trainer", {}) if (file.parent / "config.json").is_file() else {}
    coder = dictionary_learning_coder(read_tensors(file), about, file)
    assert coder is not None
    return coder


def dictionary_learning_coder(found: dict[str, Tensor], about: dict[str, Any], file: Path) -> Coder | None:
    """Of its classes: AutoEncoder, AutoEncoderTopK, BatchTopKSAE, GatedAutoEncoder, JumpReluAutoEncoder, MatryoshkaBatchTopKSAE.

    All but JumpReluAutoEncoder subtract their bias from the input. A `threshold` of -1 is one that was never set. Gated and JumpReLU codes
    are in units of decoder rows of norm 1. None if the names are of none of them.
    """
    source, site, k = "dictionary_learning", about.get("submodule_name"), int(found["k"]) if "k" in found else about.get("k")
    if {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"} <= set(found):
        t = chosen(found, file, ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
        if k is None:
            return made("jumprelu", None, _unit_decoder(t), source, site=site)
        t |= {"b_enc": centred(t["b_enc"], t["b_dec"], t["W_enc"])}
        return made("matryoshka", k, t | {"threshold": _level(t, file)}, source, site=site)
    if set(DL_GATED) <= set(found):
        t = chosen(found, file, [*DL_GATED, "decoder_bias"])
        shared, gain, centre = t["encoder.weight"].T, t["r_mag"].exp(), t["decoder_bias"]
        gate, b_enc = centred(t["gate_bias"], centre, shared), centred(t["mag_bias"], centre, shared * gain)
        out = {"W_enc": shared * gain, "b_enc": b_enc, "W_dec": t["decoder.weight"].T, "b_dec": centre, "threshold": b_enc - gain * gate}
        return made("gated", None, _unit_decoder(out), source, site=site)
    if not set(DL) <= set(found):
        return None
    bias = next((name for name in ("b_dec", "bias", "decoder.bias") if name in found), "b_dec")
    t = chosen(found, file, [*DL, bias], ["threshold"])
    W_enc, W_dec, b_dec, b_enc = t["encoder.weight"].T, t["decoder.weight"].T, t[bias], t["encoder.bias"]
    out = {"W_enc": W_enc, "b_enc": b_enc if bias == "decoder.bias" else centred(b_enc, b_dec, W_enc), "W_dec": W_dec, "b_dec": b_dec}
    if "BatchTopK" in str(about.get("dict_class", "")):
        return made("batchtopk", k, out | {"threshold": _level(t | {"b_enc": b_enc}, file)}, source, site=site)
    return made("topk" if k is not None else "relu", k, out, source, site=site)


def _level(tensors: dict[str, Tensor], file: Path) -> Tensor:
    """One threshold for all features. ValueError if it was never set: which features are active would depend on the batch."""
    level = tensors.get("threshold")
    given = None if level is None else level.tolist()
    if level is None or level.numel() != 1 or float(level) < 0:
        raise ValueError(
            f"{file} has threshold {given!r}: a BatchTopK coder whose threshold was never set depends on "
            "its batch. Set it to the pre-activation above which k features lie on average."
        )
    return torch.full_like(tensors["b_enc"], float(level))


def _unit_decoder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function with decoder rows of norm 1 (a row of zeros stays)."""
    norm = tensors["W_dec"].norm(dim=1)
    norm = torch.where(norm > 0, norm, 1.0)
    scaled = {name: tensors[name] * norm for name in ("W_enc", "b_enc", "threshold")}
    return tensors | scaled | {"W_dec": tensors["W_dec"] / norm[:, None]}


# --- OpenAI: pre_bias, latent_bias, encoder.weight, decoder.weight -----------------------------------------------------------------

OPENAI = ("pre_bias", "latent_bias", "encoder.weight", "decoder.weight")


def is_openai(path: Path) -> bool:
    return _holding(path, *OPENAI) is not None


def read_openai(path: Path) -> Coder:
    """A ReLU; or top-k where config.json beside it gives k."""
    file = _holding(path, *OPENAI)
    assert file is not None
    k = json_of(file.parent / "config.json").get("k") if (file.parent / "config.json").is_file() else None
    return openai_coder(tensors_of(file, OPENAI), file, k)


def openai_coder(found: dict[str, Tensor], file: Path, k: int | None) -> Coder:
    """A ReLU where k is None."""
    tensors = chosen(found, file, OPENAI)
    W_enc, centre = tensors["encoder.weight"].T, tensors["pre_bias"]
    out = {"W_enc": W_enc, "b_enc": centred(tensors["latent_bias"], centre, W_enc), "W_dec": tensors["decoder.weight"].T, "b_dec": centre}
    return made("topk" if k is not None else "relu", k, out, "openai")


# --- Gemma Scope: params.npz, or safetensors with small letters ----------------------------------------------------------------------

GEMMA = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")


def is_gemma_scope(path: Path) -> bool:
    return _npz(path) is not None or _holding(path, *GEMMA) is not None


def _npz(path: Path) -> Path | None:
    files = [path] if path.suffix == ".npz" else sorted(path.glob("*.npz")) if path.is_dir() else []
    return files[0] if files else None


def read_gemma_scope(path: Path) -> Coder:
    """JumpReLU of either release: W_enc [d, n] and W_dec [n, d], with `affine_skip_connection` in transcoders of the second."""
    if (file := _npz(path)) is not None:
        found = _arrays(file)
    else:
        file = _holding(path, *GEMMA)
        assert file is not None
        found = read_tensors(file)
    small = chosen({name.lower(): tensor for name, tensor in found.items()}, file, GEMMA, ["affine_skip_connection"])
    out = {
        "W_enc": small["w_enc"],
        "W_dec": small["w_dec"],
        "b_enc": small["b_enc"],
        "b_dec": small["b_dec"],
        "threshold": small["threshold"],
    }
    skip = small.get("affine_skip_connection")
    if skip is not None:
        out["W_skip"] = skip.T
    return made("jumprelu", None, out, "gemma-scope", transcoder="transcoder" in str(path).lower() or skip is not None)


def _arrays(file: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: torch.as_tensor(archive[name]) for name in archive.files}
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is not an archive of plain arrays: {error}.") from None
