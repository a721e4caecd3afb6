"""Crosscoders on disk: the workbench's own folder, which loses nothing, and circuit-tracer's cross-layer transcoders.

Own folder: `crosscoder.json` (blocks, widths, config and info of each coder) and `crosscoder.safetensors` (`<block>/<tensor>`).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from interp.safefiles import write_tensors, write_text
from saes.coders import Coder
from saes.config import Config
from saes.crosscoders.blocks import Block
from saes.crosscoders.crosscoder import Crosscoder
from saes.formats import circuit_tracer_clt
from saes.formats.reading import chosen, json_of, read_tensors, whole_folder

VERSION = 1
NEEDED, OPTIONAL = ("W_enc", "b_enc", "W_dec", "b_dec"), ("threshold", "W_skip")


def write(crosscoder: Crosscoder, path: Path) -> None:
    tensors = {
        f"{i}/{name}": tensor
        for i, coder in enumerate(crosscoder.coders)
        for name, tensor in coder.state_dict().items()
        if tensor is not None
    }
    coders = [{"config": c.config.to_json(), "transcoder": c.transcoder, "info": c.info} for c in crosscoder.coders]
    about = {"format": "interp-workbench crosscoder", "version": VERSION, "widths": dict(crosscoder.widths), "info": dict(crosscoder.info)}
    about |= {"blocks": [vars(block) | coder for block, coder in zip(crosscoder.blocks, coders, strict=True)]}
    with whole_folder(path) as folder:
        write_tensors(folder / "crosscoder.safetensors", tensors)
        write_text(folder / "crosscoder.json", json.dumps(about, indent=1) + "\n")


def is_here(path: Path) -> bool:
    return (path / "crosscoder.json").is_file()


def read(path: Path) -> Crosscoder:
    about = json_of(path / "crosscoder.json", ["version", "widths", "blocks", "info"])
    if about["version"] != VERSION:
        raise ValueError(f"{path}/crosscoder.json has version {about['version']!r}; this program reads {VERSION}.")
    file = path / "crosscoder.safetensors"
    found = read_tensors(file)
    coders = []
    for i, block in enumerate(about["blocks"]):
        tensors = chosen(found, file, [f"{i}/{name}" for name in NEEDED], [f"{i}/{name}" for name in OPTIONAL])
        named = {name.split("/", 1)[1]: tensor for name, tensor in tensors.items()}
        coder = Coder(**named, config=Config.from_file(block["config"]), transcoder=block["transcoder"], info=block["info"])
        coders.append(coder.requires_grad_(False).eval())
    blocks = tuple(Block(tuple(block["reads"]), tuple(block["writes"])) for block in about["blocks"])
    return Crosscoder(blocks, tuple(coders), about["widths"], about["info"])


WRITERS: dict[str, Callable[[Crosscoder, Path], None]] = {"workbench": write, "circuit-tracer": circuit_tracer_clt.write}
READERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Crosscoder]]] = {
    "workbench": (is_here, read),
    "circuit-tracer": (circuit_tracer_clt.is_here, circuit_tracer_clt.read),
}


def check_writable(blocks: Sequence[Block], skip: bool, format: str) -> None:
    """ValueError if a crosscoder of these blocks cannot be written in the format: to be called before its training."""
    if format not in WRITERS:
        raise ValueError(f"No format {format!r} to write a crosscoder in: there are {', '.join(WRITERS)}.")
    if format == "circuit-tracer":
        circuit_tracer_clt.hooks(blocks, skip)


def save(crosscoder: Crosscoder, path: str | Path, format: str = "workbench") -> Path:
    """Writes a crosscoder's folder in a format; what stands there is replaced as a whole."""
    check_writable(crosscoder.blocks, any(coder.W_skip is not None for coder in crosscoder.coders), format)
    WRITERS[format](crosscoder, Path(path))
    return Path(path)


def load_crosscoder(path: str | Path) -> Crosscoder:
    """The crosscoder or cross-layer transcoder in a folder. FileNotFoundError if nothing is there; ValueError naming what is at fault."""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"No crosscoder at {path}: there is no such folder.")
    for here, reader in READERS.values():
        if here(path):
            return reader(path)
    held = ", ".join(sorted(p.name for p in path.iterdir())[:8])
    raise ValueError(f"{path} is no crosscoder of a known format ({', '.join(READERS)}); it holds {held or 'nothing'}.")
