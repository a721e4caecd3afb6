"""Coders that other tools wrote with `torch.save`, made into a folder of safetensors once and on request: `convert`.

`saes.load` reads no pickle. `convert` reads one through PyTorch's restricted unpickler (`weights_only=True`), which builds tensors, plain
containers and numbers and refuses every other name before anything of it is called. The files of transcoder_circuits hold one object
more, their config, whose class is not installed here and must not be: for exactly that name the unpickler is given `Record`, an empty
class that has no method to run, so the config arrives as plain attributes. An unpickler of our own could do no more, and would be one
more parser to be attacked; opening the file in the tool's own environment instead would run whatever the file says. Everything else -
another name, a pickle that torch did not write, a compressed one - is refused with the lines that convert it where it was made.
"""

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from saes.coders import Coder
from saes.formats import foreign
from saes.formats.reading import chosen, json_of

CONFIG = re.compile(r"(\w+\.)*sae_training\.config\.LanguageModelSAERunnerConfig")
"""The class of transcoder_circuits' configs, in whatever folder it lay."""


class Record:
    """Stands for an object of a class that is not installed: its attributes, and no behaviour."""


def convert(file: str | Path, out: str | Path, format: str = "workbench", *, normalized: bool = False) -> Coder:
    """Reads the coder in a `.pt` of transcoder_circuits, dictionary_learning or OpenAI's sparse_autoencoder, and writes its folder `out`.

    normalized  only for OpenAI's top-k autoencoders, which normalise each row and undo it: True takes what lies between, a coder of
                rows (x - mean) / (std + 1e-5) of their own d numbers (std with d - 1)

    FileNotFoundError; ValueError for a file that is damaged, holds other objects than tensors and plain data, or is no such coder.
    """
    from saes.formats import save

    file = Path(file)
    coder = _coder(_unpickled(file), file, normalized)
    save(coder, out, format)
    return coder


def _unpickled(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"No file {file}.")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (ValueError, RuntimeError, UnpicklingError, EOFError, KeyError, IndexError):  # not the zip that torch.save writes since 1.6
        names = []
    if strange := [name for name in names if not CONFIG.fullmatch(name)]:
        raise ValueError(f"{file} names {', '.join(strange)}, which can run code; it is not read. {_steps(file)}")
    try:
        with torch.serialization.safe_globals([(Record, name) for name in names]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file brings about in the restricted unpickler
        said = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ValueError(f"{file} is damaged, or not what torch.save writes of tensors ({said}); it is not read. {_steps(file)}") from None


def _steps(file: Path) -> str:
    opened = "torch.load(f, weights_only=False)"
    if file.name.endswith((".pkl", ".pkl.gz")):
        opened = "pickle.load(gzip.open(f))" if file.suffix == ".gz" else "pickle.load(open(f, 'rb'))"
    return (
        f"If you trust it, run in the environment that wrote it: data = {opened}; "
        "torch.save({'cfg': vars(data['cfg']), 'state_dict': data['state_dict']}, 'plain.pt') for transcoder_circuits, "
        "or torch.save(dict(data), 'plain.pt') for a state dict; then convert plain.pt."
    )


def _coder(data: Any, file: Path, normalized: bool) -> Coder:
    if isinstance(data, dict) and {"cfg", "state_dict"} <= set(data):
        return _seed(data["cfg"], data["state_dict"], file)
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds {type(data).__name__}; expected a state dict of tensors.")
    tensors = {str(name): value.detach() for name, value in data.items() if isinstance(value, Tensor)}
    if set(foreign.OPENAI) <= set(tensors):
        k = _openai_k(data, file, normalized)
        return foreign.openai_coder(tensors, file, k)
    about = json_of(file.parent / "config.json").get("trainer", {}) if (file.parent / "config.json").is_file() else {}
    if (coder := foreign.dictionary_learning_coder(tensors, about, file)) is not None:
        return coder
    raise ValueError(
        f"{file} holds no coder of transcoder_circuits, dictionary_learning or OpenAI: it has {', '.join(map(str, data)) or 'nothing'}."
    )


def _openai_k(data: dict[Any, Any], file: Path, normalized: bool) -> int | None:
    """None for a ReLU. There, a top-k autoencoder and the normalising of rows go together."""
    activation = data.get("activation", "ReLU")
    if activation == "ReLU":
        return None
    state = data.get("activation_state_dict", {})
    if activation != "TopK" or "k" not in state:
        raise ValueError(f"{file} has activation {activation!r} ({state!r}); of OpenAI's, ReLU and TopK with its k are read.")
    if not normalized:
        raise ValueError(
            f"{file} is a top-k autoencoder that normalises each row, which no coder here does. Convert it with normalized=True "
            "(--normalized), and give it rows (x - mean) / (std + 1e-5); what it returns are such rows."
        )
    return int(state["k"])


def _seed(cfg: Any, state: Any, file: Path) -> Coder:
    """transcoder_circuits: `b_dec` is the centre of the *input*, and a transcoder's output bias is `b_dec_out`."""
    about = dict(cfg) if isinstance(cfg, dict) else vars(cfg)
    if not isinstance(state, dict):
        raise ValueError(f"state_dict of {file} is {type(state).__name__}; expected tensors by name.")
    transcoder = bool(about.get("is_transcoder"))
    last = "b_dec_out" if transcoder else "b_dec"
    tensors = chosen(state, file, ["W_enc", "b_enc", "W_dec", "b_dec", *([last] if transcoder else [])])
    W_enc, centre = tensors["W_enc"], tensors["b_dec"]
    out = {"W_enc": W_enc, "b_enc": foreign.centred(tensors["b_enc"], centre, W_enc), "W_dec": tensors["W_dec"], "b_dec": tensors[last]}
    sites = about.get("hook_point"), about.get("out_hook_point") if transcoder else None
    return foreign.made("relu", None, out, "transcoder_circuits", transcoder, *sites, model=about.get("model_name"))
