"""Triton kernels for sparse coders: the same functions as the pure-torch ones of `saes.sparse`, for CUDA tensors.

`saes.sparse` calls them by itself for CUDA tensors when triton is installed (the extra `gpu`; CUDA builds of torch on Linux bring it);
everywhere else it computes in pure torch, which is also the reference in the tests. `status()` says which of the two happens and why,
`use(False)` turns the kernels off. triton is imported by the first call that needs it, never by `import saes`.

    pairs    decoding, gradient of the codes, gradients of decoder and encoder; no atomics: every run sums in the same order
    encoder  pre-activations and the candidates for the k largest of each row in one kernel, with a proof that they are the k largest
"""

from functools import cache
from importlib.util import find_spec
from types import TracebackType

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_wanted: bool | None = None  # a global, no context variable: autograd's threads must see it


class use:
    """Turns the kernels on or off until it is called again, or as a context manager for a block. For the whole process.

    None   the default: CUDA tensors, if triton is installed
    False  never
    True   always; on CPU tensors only in triton's interpreter (TRITON_INTERPRET=1 before triton is imported). ValueError without triton
    """

    def __init__(self, wanted: bool | None):
        global _wanted
        if wanted and not installed():
            raise ValueError("The kernels need triton, which is not installed: pip install 'interp-workbench[gpu]' (Linux).")
        self.before, _wanted = _wanted, wanted

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        global _wanted
        _wanted = self.before


@cache
def installed() -> bool:
    """Whether triton can be imported; it is not imported for this."""
    return find_spec("triton") is not None


def forced() -> bool:
    """Whether `use(True)` holds."""
    return bool(_wanted)


def serve(*tensors: Tensor) -> bool:
    """Whether the kernels compute with these tensors. ValueError where they are forced on CPU tensors outside triton's interpreter."""
    if _wanted is False or any(tensor.dtype not in DTYPES for tensor in tensors):
        return False
    if all(tensor.is_cuda for tensor in tensors):
        return installed()
    if _wanted and not _interpreted():
        places = sorted({str(tensor.device) for tensor in tensors})
        raise ValueError(f"use(True), and tensors on {places}: set TRITON_INTERPRET=1 before triton is imported, or use CUDA tensors.")
    return bool(_wanted)


def on_device_of(tensor: Tensor) -> torch.cuda.device_of:
    """Within it kernels are launched on the tensor's device (triton takes the current one, whatever the tensors are on); no-op on CPUs."""
    return torch.cuda.device_of(tensor)


def _interpreted() -> bool:
    from saes.kernels.pairs import INTERPRETED

    return INTERPRETED


def status() -> str:
    """One sentence: what computes sparse products of CUDA tensors in this process, and why."""
    if _wanted is False:
        return "pure torch: the kernels are turned off by saes.kernels.use(False)"
    if not installed():
        return "pure torch: triton is not installed (the extra `gpu`)"
    if _wanted:
        return "triton kernels, for all tensors: saes.kernels.use(True)"
    return "triton kernels for CUDA tensors" + ("" if torch.cuda.is_available() else "; this process sees no CUDA device: pure torch")
