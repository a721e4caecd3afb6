"""How large the stream gets at every layer and token, and every tensor's statistics over documents."""

import streamlit as st

from app import frame, outlier_answers
from app.case import Case
from app.outlier_answers import NormMap, Place
from app.parts import words
from app.parts.chips import chips
from app.parts.colors import sequential
from app.parts.matrix import matrix
from app.parts.metrics import Box, boxes

KEY = "norm_map"
COLUMNS = {
    "tensor": "tensor", "absmax": "largest |x|", "inf_norm": "mean of the prompts' largest |x|", "p50": "median |x|", "p99.9": "99.9 %",
    "kurtosis": "kurtosis", "paper_kurtosis": "kurtosis, paper's", "massive": "massive",
    "outliers": "over 6 σ", "top_dim": "top dim",
    "in_top_dim": "of these in it",
}  # fmt: skip


def section(case: Case) -> None:
    stream(case)
    st.divider()
    corpus(case)


def stream(case: Case) -> None:
    """The prompt's stream, layer by token."""
    st.markdown(
        "##### How long is the stream at every token? :green-badge[live]",
        help="Length of the residual stream's vector; row 'in' enters layer 0. A massive activation is one token far above the rest.",
    )
    frame.shows("norm_prompt", case.prompt)
    st.text_input("Prompt", key="norm_prompt", on_change=_typed)
    chips(case)
    found = frame.attempt(lambda: outlier_answers.norm_map(frame.service(), case))
    if found is None:
        return
    limit = max(place.norm for row in found.places for place in row)
    names = ["in", *(f"L{i}" for i in range(len(found.places) - 1))]
    columns = [f"{found.first + i} {words.visible(t.strip() or t)}" for i, t in enumerate(found.tokens)]
    cells = [[_cell(name, column, place, limit) for column, place in zip(columns, row, strict=True)]
             for name, row in zip(names, found.places, strict=True)]  # fmt: skip
    matrix(
        names, columns, cells, key=KEY, label="Length of the residual stream", slanted=True, fluid=(16, 66), size=(40, 30),
        hint="Click a square: the largest dimension there is traced (the last layer's: one layer earlier).", on_pick=_picked,
    )  # fmt: skip
    cut = f" Showing the last {len(found.tokens)} of {found.first + len(found.tokens)} tokens." if found.first else ""
    edits = "with the edits that are on" if case.active else "unedited model"
    st.html(f'<span class="badge exact">exact</span> <span class="quiet">{edits}; darker is longer, largest {limit:.1f}.{cut}</span>')


def _cell(name: str, column: str, place: Place, limit: float) -> dict[str, str]:
    background, text = sequential(place.norm, limit)
    largest = ", ".join(f"dimension {dim}: {value:+.1f}" for dim, value in place.largest)
    shown = f"{place.norm:.0f}" if place.norm >= 10 else f"{place.norm:.1f}"
    where = "entering layer 0" if name == "in" else f"leaving {name}"
    return {"t": shown, "bg": background, "fg": text, "say": f"{column}, {where}: length {place.norm:.1f}; {largest}"}


def _picked() -> None:
    """The largest dimension of the place; the stream that enters layer 0 is traced where it leaves it."""
    row, column = st.session_state[KEY].picked
    case = frame.case()
    found: NormMap | None = frame.attempt(lambda: outlier_answers.norm_map(frame.service(), case))
    if found is None:
        frame.touched()
        return
    last = max(0, frame.service().model(case.model).n_layers - 2)  # what leaves the last layer no head reads
    frame.change_field("outlier.place", f"{min(max(0, row - 1), last)}.{found.places[row][column].largest[0][0]}")
    frame.change_field("outlier.part", "trace")


def _typed() -> None:
    frame.change(prompt=st.session_state["norm_prompt"])


def corpus(case: Case) -> None:
    """Every tensor over the documents."""
    st.markdown("##### And over documents?", help="One streaming pass; no activation is kept. Columns are sorted by a click.")
    with st.spinner("Measuring every tensor ...", show_time=True):
        found = frame.attempt(lambda: outlier_answers.statistics(frame.service(), case.model, case.outlier.texts))
    if found is None:
        return
    norms, dims = found.inf_norm, found.outlier_dimensions
    boxes("sizes", [
        Box("Max inf-norm", f"{norms['block']:.1f}", f"MLP outputs {norms['mlp']:.1f}", f"Of any tensor {norms['all']:.1f}. "
            "Largest over blocks' outputs of the mean over prompts of the largest |x| (Bondarenko et al. 2023's column for OPT)."),
        Box("Mean kurtosis", f"{found.mean_kurtosis:.1f}", "3 is a Gaussian",
            "The paper's: mean over tensors and prompts, with its epsilon. The table has the scale-free one beside it."),
        Box("Massive activations", str(sum(t.massive for t in found.tensors)), f"in {found.n_tokens:,} tokens",
            "Entries with |x| > 100 and at least 1000 times the median of their tensor (Sun et al. 2024)."),
        Box("LLM.int8 outlier dims", str(len(dims)), ", ".join(map(str, list(dims)[:5])) + (" ..." if len(dims) > 5 else "") or "none",
            "Dimensions in which a norm's output reaches 6 in a quarter of the layers and 6 % of the positions (Dettmers et al. 2022)."),
    ])  # fmt: skip
    table = found.table()[list(COLUMNS)].rename(columns=COLUMNS)
    st.dataframe(table.round(2), hide_index=True, height=300)
    st.caption(f"{outlier_answers.documents(frame.service(), case.model, case.outlier.texts).said}; unedited model.")
