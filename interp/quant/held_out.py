"""Held-out documents of the demo models' corpus: some to measure on, as many others to find ranges on. Page and command take the same."""

from dataclasses import dataclass

from interp.atlas import Corpus, encode
from interp.prompts import Prompts

SEED = 2  # the demo models were trained on seed 0


@dataclass(frozen=True, eq=False)
class HeldOut:
    """As many documents to measure on as to calibrate on; none is in both."""

    prompts: Prompts
    calibration: Prompts
    families: tuple[str, ...]
    """The kind of each document that is measured on."""


def held_out(n: int, seed: int = SEED) -> HeldOut:
    """n documents of each, in turns, at even distances in a pool of 8192."""
    pool = list(Corpus(seed).pool(0, "last"))
    if not 1 <= n <= len(pool) // 2:
        raise ValueError(f"n is 1 to {len(pool) // 2} documents; given {n}.")
    chosen = pool[:: len(pool) // (2 * n)][: 2 * n]
    rows = [encode(document) for document in chosen]
    return HeldOut(Prompts.from_ids(rows[1::2]), Prompts.from_ids(rows[0::2]), tuple(document.family for document in chosen[1::2]))
