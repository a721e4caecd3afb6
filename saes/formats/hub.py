"""Coders by name from the Hugging Face hub: `hub:owner/repo`, `hub:owner/repo/folder/below`, `hub:owner/repo@revision/file.npz`.

Only what a coder is read from is fetched: JSON, YAML, safetensors and npz files of that one folder, or the one file and the JSON beside it.
"""

import os
import re
from pathlib import Path

PREFIX = "hub:"
NAME = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<place>[^\s]*?))?/?")
WEIGHTS, DESCRIPTIONS = ("safetensors", "npz"), ("json", "yaml")


def fetch(name: str) -> Path:
    """The local folder or file of a hub name; downloaded unless it is in the cache or HF_HUB_OFFLINE is set.

    ValueError for a name of another form; FileNotFoundError says why nothing came and what to do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    match = NAME.fullmatch(name)
    place = (match["place"] or "") if match else ""
    if match is None or ".." in place.split("/") or any(sign in place for sign in "*?["):
        raise ValueError(
            f"{name!r} is no name of a coder on the hub; write hub:owner/repo, hub:owner/repo/folder or hub:owner/repo@revision/folder."
        )
    offline = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "TRUE")
    allowed, ignored = patterns(place)
    try:
        root = snapshot_download(
            match["repo"], revision=match["revision"], local_files_only=offline, allow_patterns=allowed, ignore_patterns=ignored
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = (
            "HF_HUB_OFFLINE is set and it is not in the local cache: unset it, or run once where there is a network"
            if offline
            else "check name and network, or copy the folder by hand and give its path"
        )
        raise FileNotFoundError(f"{name} could not be fetched ({reason}). To go on, {advice}.") from None
    found = Path(root) / place
    if not (found.is_file() or found.is_dir() and any(file.suffix.removeprefix(".") in WEIGHTS for file in found.iterdir())):
        raise FileNotFoundError(
            f"{name} holds no {' or '.join(WEIGHTS)} file: name the folder of one coder. Pickles (.pt) are not fetched: download the file "
            "yourself, convert it with saes.convert(FILE, FOLDER), and load that folder."
        )
    return found


def patterns(place: str) -> tuple[list[str], list[str]]:
    """(what to fetch, what not), as the hub matches names: a star also matches a slash."""
    if Path(place).suffix.removeprefix(".") in WEIGHTS:
        above = place.rpartition("/")[0]
        inside = f"{above}/" if above else ""
        return [place, *(f"{inside}*.{end}" for end in DESCRIPTIONS)], [f"{inside}*/*"]
    inside = f"{place}/" if place else ""
    return [f"{inside}*.{end}" for end in (*WEIGHTS, *DESCRIPTIONS)], [f"{inside}*/*"]
