"""From a name or a folder to a Hugging Face model: safetensors only, and nothing filled in silently."""

import difflib
import json
import os
import struct
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.engine import seam

MODEL_TYPES = {"gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "gpt_neox": "GPTNeoXForCausalLM"}
_SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CAUSAL_MASKS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")  # constants in old checkpoints
ATTENTION_TENSORS = "attention_gates.safetensors"
"""Parameters of an attention variant (`interp.attention_files`): no part of the Hugging Face checkpoint."""
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted: missing, truncated, of another shape, or a pickle."""


def find_folder(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a bundled name, a local folder, or a hub name (downloaded unless offline)."""
    from interp.zoo import bundled

    if str(name) in bundled():
        return bundled()[str(name)]
    text = str(name)
    near = difflib.get_close_matches(text[:80], bundled(), n=1, cutoff=0.8)
    known = f"{f'Did you mean {near[0]!r}? ' if near else ''}Bundled models: {', '.join(bundled()) or 'none'}."
    try:
        path = Path(name).expanduser()
        if text.strip() and path.is_dir():
            return path.resolve()
        looks_local = path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or path.exists() or not text.strip()
    except (TypeError, RuntimeError, OSError, ValueError):  # not a path, an unknown user's home, a name too long for a file
        raise FileNotFoundError(f"{name!r:.80} names no model. {known} Or give a Hugging Face folder or hub name.") from None
    if looks_local:
        raise FileNotFoundError(
            f"No folder {text!r}{' (it is a file)' if path.is_file() else ''}. {known} Or give a Hugging Face folder or hub name."
        )
    return _download(text, revision, known)


def _download(name: str, revision: str | None, known: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "TRUE")
    try:
        found = snapshot_download(
            name, revision=revision, local_files_only=offline, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = "not in the local cache, and HF_HUB_OFFLINE is set" if offline else f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise FileNotFoundError(f"No folder {name!r} and no model of that name from the hub ({reason}). {known}") from None
    return Path(found)


def check_files(path: Path) -> dict[str, Any]:
    """The checkpoint's config, after its files were found complete. Headers alone are read."""
    config_file = path / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{path} has no config.json; a Hugging Face model folder has one (it holds {_listing(path)}).")
    try:
        config = json.loads(config_file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{config_file} is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_file} holds no JSON object but {config!r:.40}.")
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise CheckpointError(
            f"{config_file} says model_type {kind!r}; supported are {', '.join(MODEL_TYPES)} (GPT-2, OPT, GPT-NeoX/Pythia)."
        )
    if not weight_files(path):
        if list(path.glob("*.bin")) or list(path.glob("*.pt")) or list(path.glob("*.pth")):
            raise CheckpointError(
                f"{path} holds its weights as a pickle ({_listing(path)}), which can run code when it is read. "
                "Convert it once with `interp convert FOLDER NEW_FOLDER`, then load the new folder."
            )
        raise FileNotFoundError(f"{path} has no .safetensors file (it holds {_listing(path)}).")
    return config


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint; those of an index must all be there."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is not an index of safetensors files: {type(error).__name__}: {error}.") from None
        if missing := [n for n in names if not (path / n).is_file()]:
            raise CheckpointError(
                f"{index} names {len(names)} files, of which {', '.join(missing[:3])} {'is' if len(missing) == 1 else 'are'} missing."
            )
        return [path / n for n in names]
    return sorted(p for p in path.glob("*.safetensors") if p.is_file() and p.name != ATTENTION_TENSORS)


def checkpoint_dtype(path: Path) -> torch.dtype:
    """The floating-point type in which the checkpoint's first tensors are stored."""
    for file in weight_files(path):
        for entry in read_header(file).values():
            if entry.get("dtype") in _SAFETENSORS_DTYPES:
                return _SAFETENSORS_DTYPES[entry["dtype"]]
    raise CheckpointError(f"{path} holds no floating-point tensor.")


def read_header(file: Path) -> dict[str, Any]:
    """Names, types and places of a safetensors file's tensors; CheckpointError if it is cut short or not one."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        end = 8 + length + max((e["data_offsets"][1] for k, e in header.items() if k != "__metadata__"), default=0)
        if end != size:
            raise ValueError(f"its header promises {end} bytes and it has {size}")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}. Copy or download it again.") from None
    return {k: v for k, v in header.items() if k != "__metadata__"}


def load_hf(path: Path, device: str, dtype: torch.dtype, device_map: Any = None) -> nn.Module:
    """The Hugging Face model of a checked folder, in eval mode, with attention through the seam."""
    import transformers

    config = check_files(path)
    seam.register()
    model_class = getattr(transformers, MODEL_TYPES[config["model_type"]])
    bar = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # what its load report warns of is refused below
    try:
        hf, info = model_class.from_pretrained(
            path, dtype=dtype, attn_implementation=seam.KEY, use_safetensors=True, local_files_only=True, output_loading_info=True,
            ignore_mismatched_sizes=True, device_map=device_map,
        )  # fmt: skip
    except Exception as error:  # a config of wrong types raises whatever the code that meets it raises
        raise CheckpointError(f"{path} could not be loaded: {type(error).__name__}: {str(error).strip()[:400]}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        if bar:
            transformers.utils.logging.enable_progress_bar()
    _refuse_incomplete(path, info)
    if device_map is None:
        hf = hf.to(device)
    hf.eval()
    for name, tensor in hf.state_dict().items():
        if tensor.device.type != "meta" and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: tensor {name} {tuple(tensor.shape)} holds NaN or infinities.")
    return hf


def _refuse_incomplete(path: Path, info: dict[str, Any]) -> None:
    """Hugging Face would fill what is missing with random numbers."""
    if missing := sorted(map(str, info.get("missing_keys", ()))):
        raise CheckpointError(f"{path} lacks {len(missing)} tensors that its config.json asks for, such as {', '.join(missing[:3])}.")
    if mismatched := list(info.get("mismatched_keys", ())):
        name, found, wanted = mismatched[0][:3]
        raise CheckpointError(
            f"{path}: tensor {name} has shape {tuple(found)}, and config.json asks for {tuple(wanted)} ({len(mismatched)} such tensors)."
        )
    if unexpected := sorted(key for key in map(str, info.get("unexpected_keys", ())) if not key.endswith(_CAUSAL_MASKS)):
        raise CheckpointError(
            f"{path} holds {len(unexpected)} tensors that a model of its config.json does not have, such as {', '.join(unexpected[:3])}: "
            "the numbers of layers or the architecture disagree."
        )


def load_tokenizer(path: Path) -> Any:
    """The folder's tokenizer, or None where it has none."""
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise CheckpointError(f"The tokenizer of {path} could not be loaded: {type(error).__name__}: {str(error)[:200]}") from error


def _listing(path: Path) -> str:
    names = sorted(p.name for p in path.iterdir())
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "nothing"
