"""Coders on disk: the workbench's own folder, and those of other tools.

Written: workbench, saelens (version 6), circuit-tracer (per-layer transcoders). Read: these, and sparsify, dictionary_learning, OpenAI and
Gemma Scope. What a file is, is seen from its content. Weights are safetensors or plain numpy arrays; pickles are refused, and
`convert` makes safetensors of those of transcoder_circuits, dictionary_learning and OpenAI.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from saes.formats import circuit_tracer, foreign, hub, saelens, workbench
from saes.formats.reading import refuse_pickles

if TYPE_CHECKING:
    from saes.coders import Coder

WRITERS: dict[str, "Callable[[Coder, Path], None]"] = {
    "workbench": workbench.write,
    "saelens": saelens.write,
    "circuit-tracer": circuit_tracer.write,
}
READERS: dict[str, tuple[Callable[[Path], bool], "Callable[[Path], Coder]"]] = {
    "workbench": (workbench.is_here, workbench.read),
    "saelens": (saelens.is_here, saelens.read),
    "sparsify": (foreign.is_sparsify, foreign.read_sparsify),
    "circuit-tracer": (circuit_tracer.is_here, circuit_tracer.read),
    "dictionary_learning": (foreign.is_dictionary_learning, foreign.read_dictionary_learning),
    "Gemma Scope": (foreign.is_gemma_scope, foreign.read_gemma_scope),
    "OpenAI": (foreign.is_openai, foreign.read_openai),
}


def is_crosscoder(path: Path) -> bool:
    """Whether a folder holds what `saes.load_crosscoder` reads."""
    from saes.formats.crosscoders import READERS

    return any(is_here(path) for is_here, _ in READERS.values())


def save(coder: "Coder", path: str | Path, format: str = "workbench") -> Path:
    """Writes a coder's folder in a format; what stands there is replaced as a whole."""
    if format not in WRITERS:
        raise ValueError(f"No format {format!r} to write: there are {', '.join(WRITERS)}.")
    WRITERS[format](coder, Path(path))
    return Path(path)


def load(path: str | Path) -> "Coder":
    """The coder in a folder or file of any known format, or of a name on the Hugging Face hub: "hub:owner/repo/folder".

    FileNotFoundError if nothing is there; ValueError naming the tensor, number or file at fault.
    """
    path = hub.fetch(str(path)) if str(path).startswith(hub.PREFIX) else Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No coder at {path}: there is no such folder or file.")
    if is_crosscoder(path):
        raise ValueError(f"{path} holds a crosscoder or cross-layer transcoder: several coders. Call saes.load_crosscoder({str(path)!r}).")
    for is_here, read in READERS.values():
        if is_here(path):
            return read(path)
    refuse_pickles(path)
    held = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else path.name
    raise ValueError(f"{path} is no coder of a known format ({', '.join(READERS)}); it holds {held or 'nothing'}.")
