"""The model handle: one unmodified Hugging Face model that can be read, edited and run.

    model = interp.load("demo-gpt2")
    logits = model.logits(prompts, edits=[Edit("blocks.3.attn.hook_z", "zero", head=1)])
    cap = model.capture(prompts, ["blocks.*.attn.hook_z"])

Nothing of a call outlives it: hooks are removed, weights are never touched, and callers of several threads take turns.
"""

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import attention_files, loading
from interp.attention_variants import AttentionVariant, as_variant
from interp.edits import Edit, Plan
from interp.engine import hooked, seam
from interp.engine.anatomy import Anatomy, describe
from interp.engine.operations import Layout, Operation, compile_site
from interp.engine.plans import check_plan, resolve_means
from interp.prompts import Prompts
from interp.sites import Site, Sites

if TYPE_CHECKING:
    from interp.checks import CheckReport
    from interp.generation import Generation

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    revision: str | None = None,
    attention: AttentionVariant | str | None = None,
) -> "Model":
    """A model by bundled name ("demo-gpt2"), local Hugging Face folder, or hub name ("gpt2", "EleutherAI/pythia-160m").

    device      auto (CUDA where there is one), cpu, cuda, cuda:1 ...
    dtype       None keeps the checkpoint's; or float64, float32, bfloat16, float16
    device_map  handed to accelerate for checkpoints that do not fit one device, such as "auto"
    attention   None: the formula that the model was trained with (the folder's attention.json; softmax where there is none). Another
                one, such as "clipped" or AttentionVariant("clipped", gamma=-0.02), is put in its place: a model that was not trained
                with it is hurt by it (`interp.attention_variants`)

    Weights come from safetensors alone. FileNotFoundError if there is no such model; CheckpointError (a ValueError) if it is a
    pickle, truncated, lacks tensors or has tensors of another shape.
    """
    path = loading.find_folder(name, revision)
    loading.check_files(path)
    target = loading_dtype(dtype) if dtype is not None else loading.checkpoint_dtype(path)
    hf = loading.load_hf(path, _device(device), target, device_map)
    model = Model(hf, loading.load_tokenizer(path), path)
    own = attention_files.read_variant(path)
    try:
        seam.attach(model.anatomy.blocks, own, attention_files.read_tensors(path, own))
    except ValueError as error:
        raise loading.CheckpointError(f"{path}: {error}") from None
    return model if attention is None else model.with_attention(attention)


def loading_dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype.removeprefix("torch.") in DTYPES:
        return DTYPES[dtype.removeprefix("torch.")]
    raise ValueError(f"Unknown dtype {dtype!r}: there are {', '.join(DTYPES)}.")


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"Unknown device {device!r}: auto, cpu, cuda or cuda:N.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"Device {device!r} was asked for and this PyTorch finds no CUDA; use cpu or auto.")
    return device


@dataclass(frozen=True, eq=False)
class Capture(Mapping[str, Tensor]):
    """What `model.capture` read: site name -> tensor in TransformerLens's axes, padded to the longest prompt."""

    tensors: Mapping[str, Tensor]
    prompts: Prompts
    logits: Float[Tensor, "row pos vocab"] | None = None
    """The run's logits, where gradients were asked for."""
    model: "Model | None" = field(default=None, repr=False)

    def __getitem__(self, site: str) -> Tensor:
        try:
            return self.tensors[str(site)]
        except KeyError:
            raise KeyError(
                f"{site!r} was not captured; there are {', '.join(list(self.tensors)[:8])}{' ...' if len(self.tensors) > 8 else ''}."
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def tl(self) -> Any:
        """TransformerLens's ActivationCache of these tensors, for its analyses. Imports transformer_lens (seconds)."""
        from transformer_lens.ActivationCache import ActivationCache

        assert self.model is not None
        return ActivationCache(dict(self.tensors), model=self.model.bridge())


class Model:
    """A loaded model. See the module's text; sizes are attributes, `hf` is the Hugging Face model itself."""

    def __init__(self, hf: Any, tokenizer: Any, path: Path):
        self.hf: Any = hf
        self.tokenizer = tokenizer
        self.path = path
        self.anatomy: Anatomy = describe(hf)
        self.lock = threading.RLock()
        """Held while hooks sit on the model; the forked sweep puts none and does not need it."""
        a = self.anatomy
        self.family, self.n_layers, self.n_heads = a.family, a.n_layers, a.n_heads
        self.d_model, self.d_head, self.d_mlp, self.n_ctx, self.d_vocab = a.d_model, a.d_head, a.d_mlp, a.n_ctx, a.d_vocab

    @property
    def attention(self) -> AttentionVariant:
        """The formula of its attention: plain softmax, or a variant."""
        return attention_files.variant_of(self.anatomy)

    def with_attention(self, variant: AttentionVariant | str, tensors: Mapping[str, Tensor] | None = None) -> "Model":
        """This model with another attention formula, sharing its weights; "softmax" is plain attention.

        tensors  parameters of kinds that have some, by their names on disk (`blocks.0.attn.weight`, `interp.attention_variants`)

        A model that was not trained with the variant is hurt by it; results carry the variant in the model's name.
        """
        spec = as_variant(variant)
        own = attention_files.variant_of(self.anatomy)
        if spec.is_learned and tensors is None:
            if spec != own:
                raise ValueError(f"{spec} attention has parameters, which {self.name} was not trained with; give them as tensors=.")
            tensors = attention_files.variant_tensors(self.anatomy)
        shared: dict[int, Any] = {id(t): t for t in (*self.hf.parameters(), *self.hf.buffers())}
        other = Model(copy.deepcopy(self.hf, shared), self.tokenizer, self.path)
        seam.attach(other.anatomy.blocks, spec, tensors)
        return other

    def __repr__(self) -> str:
        attention = "" if self.attention.kind == "softmax" or self.attention != self._trained_attention else f"{self.attention} attention, "
        sizes = f"{self.n_layers} layers, {self.n_heads} heads, d_model {self.d_model}"
        return f"Model({self.name}, {self.family}, {sizes}, {attention}{self.dtype}, {self.device})"

    @property
    def name(self) -> str:
        """Its folder's name, and its attention where that is not the folder's own."""
        given = self.attention
        return self.path.name if given == self._trained_attention else f"{self.path.name} with {given} attention"

    @cached_property
    def _trained_attention(self) -> AttentionVariant:
        return attention_files.read_variant(self.path)

    @property
    def device(self) -> torch.device:
        """Where the token ids go in."""
        return self.anatomy.token_embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.anatomy.token_embed.weight.dtype

    @cached_property
    def _sites(self) -> Sites:
        return Sites(self.anatomy)

    def sites(self) -> Sites:
        """Every place that can be read and edited, in causal order."""
        return self._sites

    # --- text -------------------------------------------------------------------------------------------------------------

    def encode(self, texts: str | Sequence[str], bos: bool | None = None) -> Prompts:
        """Prompts of texts. `bos`: prepend the tokenizer's BOS token; None does so where it has one.

        Text that the tokenizer cannot represent, that is empty, or that is longer than the model's context is refused.
        """
        tokenizer = self._tokenizer()
        if not isinstance(texts, Iterable):
            raise ValueError(f"model.encode takes a text or a list of texts; given {texts!r:.60}.")
        texts = [texts] if isinstance(texts, str) else list(texts)
        start = tokenizer.bos_token_id
        if bos and start is None:
            raise ValueError(f"bos=True, but the tokenizer of {self.name} has no BOS token.")
        rows = []
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"model.encode takes text; given {text!r:.60}. Prompts.from_ids takes token ids.")
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if not ids:
                raise ValueError(f"The text {text!r} has no tokens; Prompts.from_ids takes ids, such as BOS alone.")
            self._refuse_unknown(text, ids)
            rows.append([start, *ids] if start is not None and bos is not False else ids)
        return self.check_prompts(Prompts.from_ids(rows))

    def _refuse_unknown(self, text: str, ids: Sequence[int]) -> None:
        unknown = self._tokenizer().unk_token_id
        pieces = self._tokenizer()
        if unknown is None or unknown not in ids or pieces.unk_token in text or unknown in (pieces.bos_token_id, pieces.eos_token_id):
            return
        words = pieces.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text) if hasattr(pieces, "backend_tokenizer") else []
        lost = [word for (word, _), token in zip(words, ids, strict=False) if token == unknown]
        named = ", ".join(dict.fromkeys(repr(w.replace("Ġ", " ").strip()) for w in lost)) or "a word"
        raise ValueError(f"{self.name} does not know {named} of {text!r}; `interp describe {self.name}` shows words that it knows.")

    def decode(self, ids: Sequence[int] | Tensor) -> list[str]:
        """The text of each token id, for display."""
        tokenizer = self._tokenizer()
        return [tokenizer.decode([int(i)]) for i in ids]

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError(f"{self.path} has no tokenizer, so text cannot be encoded; give token ids with Prompts.from_ids.")
        return self.tokenizer

    def check_prompts(self, prompts: "Prompts | str | Sequence[str]") -> Prompts:
        """The prompts on the model's device (text is encoded); ValueError if they do not fit the model."""
        if not isinstance(prompts, Prompts):
            return self.encode(prompts)
        if prompts.width > self.n_ctx:
            raise ValueError(f"Prompt {int(prompts.lengths.argmax())} has {prompts.width} tokens; {self.name} takes at most {self.n_ctx}.")
        low, high = (int(x) for x in prompts.ids.aminmax())
        if low < 0 or high >= self.d_vocab:
            raise ValueError(f"Token id {low if low < 0 else high} is outside the vocabulary of {self.name}: 0-{self.d_vocab - 1}.")
        return prompts if prompts.ids.device == self.device and prompts.lengths.device == self.device else prompts.to(self.device)

    # --- running ----------------------------------------------------------------------------------------------------------

    def logits(
        self, prompts: "Prompts | str | Sequence[str]", edits: Edit | Sequence[Edit] = (), grad: bool = False
    ) -> Float[Tensor, "row pos vocab"]:
        """Logits of one forward with `edits` applied to every prompt; gradients are kept with grad=True."""
        prompts = self.check_prompts(prompts)
        return self._run(prompts, self._prepare(prompts, edits), [], grad, want_logits=True)[1]

    def capture(
        self, prompts: "Prompts | str | Sequence[str]", sites: str | Sequence[str], edits: Edit | Sequence[Edit] = (), grad: bool = False
    ) -> Capture:
        """The tensors at `sites` (names or patterns such as "blocks.*.attn.hook_z") of one forward with `edits`.

        The forward stops after the last site. With grad=True the tensors belong to the graph of `.logits`.
        """
        prompts = self.check_prompts(prompts)
        reads = self.sites().expand(sites)
        store, logits = self._run(prompts, self._prepare(prompts, edits), reads, grad, want_logits=grad)
        return Capture({site.name: store[site.name] for site in reads}, prompts, logits if grad else None, self)

    def generate(
        self, prompts: "Prompts | str | Sequence[str]", edits: Edit | Sequence[Edit] = (), max_new_tokens: int = 20, **options: Any
    ) -> "Generation":
        """Continuations with the edits active; see `interp.generation.generate`."""
        from interp.generation import generate

        return generate(self, self.check_prompts(prompts), edits, max_new_tokens, **options)

    def check(self, prompts: Prompts | None = None) -> "CheckReport":
        """The honesty checks on the loaded weights; see `interp.checks`."""
        from interp.checks import check_model

        return check_model(self, prompts)

    def bridge(self) -> Any:
        """A TransformerLens TransformerBridge on a copy of this model (TransformerLens rewrites the module it is given)."""
        with self.lock:
            if not hasattr(self, "_bridge"):
                from interp.bridge import to_bridge

                self._bridge = to_bridge(self)
            return self._bridge

    def refuse_gates(self, what: str) -> None:
        """ValueError where attention has gates, which read the block's input too, for methods that know q, k and v alone."""
        if self.attention.is_gate:
            raise ValueError(f"{what} follows what attention reads through q, k and v; {self.name} has {self.attention} gates beside them.")

    def check_whole(self) -> None:
        """ValueError where modules of `hf` were replaced after loading: hooks would sit on modules that no forward runs."""
        if lost := self.anatomy.lost(self.hf):
            raise ValueError(
                f"{', '.join(lost[:3])} of {self.name} was replaced since the model was loaded, and what was put there is not described. "
                "Describe it anew with interp.Model(model.hf, model.tokenizer, model.path), or put the module back."
            )

    def mean(self, prompts: Prompts, site: str, batch: int = 64) -> Tensor:
        """Mean of a site over all real positions of the prompts: [head, d] or [d]."""
        total, count = torch.zeros((), device=self.device), 0
        for i in range(0, len(prompts), batch):
            part = prompts[torch.arange(i, min(i + batch, len(prompts)))]
            x = self.capture(part, [site])[site]
            real = torch.arange(part.width, device=x.device) < part.lengths[:, None]
            total, count = total + x[real].double().sum(0), count + int(real.sum())
        return (total / count).to(self.dtype)

    def _prepare(self, prompts: Prompts, edits: Edit | Sequence[Edit]) -> dict[str, list[Operation]]:
        plan = check_plan(self.sites(), prompts, edits)
        (plan,) = resolve_means([plan], lambda site: self.mean(prompts, site))
        return compile_plan(self.sites(), plan, Layout.padded(prompts.lengths, prompts.width), prompts.lengths)

    def _run(self, prompts: Prompts, operations: Mapping[str, list[Operation]], reads: Sequence[Site], grad: bool, want_logits: bool):
        self.check_whole()
        call = hooked.Call(reads, operations, (len(prompts), prompts.width), grad)
        last = None if want_logits or not reads else max(site.layer for site in reads)

        def forward() -> Any:
            if want_logits:
                return self.hf(prompts.ids, use_cache=False).logits
            self.anatomy.body(prompts.ids, use_cache=False)
            return None

        with self.lock, torch.set_grad_enabled(grad):
            logits = hooked.run(self.anatomy, call, forward, last_layer=max(last, 0) if last is not None else None)
        return call.store, logits


def compile_plan(sites: Sites, plan: Plan, layout: Layout, lengths: Tensor) -> dict[str, list[Operation]]:
    """Operations per site of one plan that changes every row of the layout."""
    rows = np.arange(len(layout.prompt))
    by_site: dict[str, list[tuple[Edit, np.ndarray]]] = {}
    for edit in plan:
        by_site.setdefault(edit.site, []).append((edit, rows))
    return {name: compile_site(sites.get(name), entries, layout, lengths) for name, entries in by_site.items()}
