"""A model whose sites are replaced by what a crosscoder makes of them, as edits that the engine runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.edits import Edit, Plan
from interp.models import Model
from interp.prompts import Prompts
from saes.crosscoders.crosscoder import Crosscoder
from saes.replacing import flat, placed


def targets_of(crosscoder: Crosscoder, model: Model, only: Sequence[str] | None = None) -> list[str]:
    """The sites that are replaced, in causal order. KeyError if the model lacks a site, ValueError if widths differ or none writes one."""
    for site in (*crosscoder.reads, *crosscoder.writes):
        d = int(torch.Size(model.sites().get(site).shape(1, 1)).numel())
        if d != crosscoder.widths[site]:
            raise ValueError(f"{site} of {model.name} is {d} wide, and the crosscoder's {crosscoder.widths[site]}: it is of another model.")
    chosen = crosscoder.writes if only is None else tuple(only)
    if strange := [site for site in chosen if site not in crosscoder.writes]:
        raise ValueError(f"The crosscoder does not write to {strange[0]}; it writes to {', '.join(crosscoder.writes)}.")
    order = {site.name: i for i, site in enumerate(model.sites())}
    return sorted(dict.fromkeys(chosen), key=lambda site: order[site])


@torch.no_grad()
def crosscoder_replacements(model: Model, prompts: Prompts, crosscoder: Crosscoder, only: Sequence[str] | None = None) -> Plan:
    """Edits that put the reconstruction at every site that is written to, or at those of `only`.

    A block is encoded when the first of its sites is due, from the stream as the sites before it were left by then. So the features of a
    cross-layer transcoder's layer read what the replaced layers before it make, and what they write later is kept until it is due. A
    crosscoder whose one code reads all sites reads the clean run.
    """
    plan: Plan = ()
    outputs: dict[int, dict[str, Tensor]] = {}
    for target in targets_of(crosscoder, model, only):
        writers = [i for i, block in enumerate(crosscoder.blocks) if target in block.writes]
        due = [i for i in writers if i not in outputs]
        if due:
            reads = list(dict.fromkeys(site for i in due for site in crosscoder.blocks[i].reads))
            captured = model.capture(prompts, reads, edits=plan)
            rows = {site: flat(captured[site]) for site in reads}
            dtype = rows[reads[0]].dtype
            for i in due:
                written = crosscoder.coders[i](crosscoder.side_by_side(i, rows))
                sizes = crosscoder.split_sizes(crosscoder.blocks[i].writes)
                outputs[i] = dict(zip(crosscoder.blocks[i].writes, written.to(dtype).split(sizes, -1), strict=True))
        whole = torch.stack([outputs[i][target] for i in writers]).sum(0)
        plan = (*plan, Edit(target, "patch", value=placed(model, target, whole, prompts)))
    return plan
