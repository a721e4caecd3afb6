"""The workbench's own folder: `coder.json` (config, what is known of the training) and `coder.safetensors`. Nothing is lost in it."""

import json
from pathlib import Path

from interp.safefiles import write_tensors, write_text
from saes.coders import Coder
from saes.config import Config
from saes.formats.reading import json_of, tensors_of, whole_folder

VERSION = 1


def write(coder: Coder, path: Path) -> None:
    tensors = {name: tensor for name, tensor in coder.state_dict().items() if tensor is not None}
    about = {"format": "interp-workbench coder", "version": VERSION, "transcoder": coder.transcoder}
    with whole_folder(path) as folder:
        write_tensors(folder / "coder.safetensors", tensors)
        write_text(folder / "coder.json", json.dumps(about | {"config": coder.config.to_json(), "info": coder.info}, indent=1) + "\n")


def is_here(path: Path) -> bool:
    return (path / "coder.json").is_file()


def read(path: Path) -> Coder:
    about = json_of(path / "coder.json", ["version", "transcoder", "config", "info"])
    if about["version"] != VERSION:
        raise ValueError(f"{path}/coder.json has version {about['version']!r}; this program reads {VERSION}.")
    tensors = tensors_of(path / "coder.safetensors", ["W_enc", "b_enc", "W_dec", "b_dec"], ["threshold", "W_skip"])
    coder = Coder(**tensors, config=Config.from_file(about["config"]), transcoder=about["transcoder"], info=about["info"])
    return coder.requires_grad_(False).eval()
