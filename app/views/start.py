"""What is this model, what can be looked at, and can its numbers be trusted?"""

from collections.abc import Mapping
from html import escape
from typing import Any

import streamlit as st

from app import frame, links
from app.case import Case
from app.curated import CASES, Curated, stored_results
from app.parts.metrics import escaped
from app.service import short_name

PAGES = (
    ("recall", "Recall & bias", ":material/psychology:", "Which heads remember, which copy, and which favour an answer whatever is asked?"),
    (
        "features",
        "Features",
        ":material/lens_blur:",
        "What do the MLPs compute, feature by feature, and which features bring an answer about?",
    ),
    ("outliers", "Outliers", ":material/bolt:", "Which activations explode, which heads do nothing, and what do 8 bits cost?"),
)


def heading(name: str) -> None:
    st.title("Look inside a language model")
    st.markdown(
        "Pick a prompt, click an attention head, turn it up or down, and see what the model says instead. Swap activations between two "
        "prompts, and run the few edges that do a task alone. See which features its MLPs compute, and what rounding them costs. "
        "Every number on these pages comes from really running the model."
    )
    card = frame.attempt(lambda: _card(name))
    if card is None:
        return
    with st.container(border=True):
        about, sizes = st.columns([5, 6], gap="large", vertical_alignment="center")
        about.markdown(f"##### {escaped(short_name(name))}\n{card.summary}")
        shown = {"family": card.family, **{k: f"{v:,}" for k, v in card.sizes.items()}, "weights": f"{card.megabytes:g} MB"}
        items = "".join(f"<div><span>{escape(label)}</span><b>{escape(size)}</b></div>" for label, size in shown.items())
        sizes.html(f'<div class="sizes">{items}</div>')
        if card.readme:
            with st.expander("Model card: how it was trained and what it measures"):
                st.markdown(card.readme)


def _card(name: str) -> Any:
    from interp.cards import card

    try:
        return card(name)
    except FileNotFoundError:  # a hub name: its folder is known once it is loaded
        return card(frame.service().model(name).path)


def cases(name: str) -> None:
    stored = stored_results(name).get("cases", {})
    st.markdown("### Where to start")
    if not stored:
        st.caption("Nothing is stored for this model; the prompts open all the same, if it knows their words.")
    tiles: list[Curated | None] = [*CASES, None]
    for i in range(0, len(tiles), 4):
        for column, curated in zip(st.columns(4, gap="small"), tiles[i : i + 4], strict=False):
            with column, st.container(border=True, height="stretch"):
                if curated is None:
                    own_prompt(name)
                else:
                    tile(name, curated, stored.get(curated.name))


def tile(name: str, curated: Curated, result: Mapping[str, Any] | None) -> None:
    """One prompt, what the model makes of it, and the way there."""
    st.markdown(f"**{curated.title}**")
    head = result["top_heads"][0]["head"] if result else ""
    st.html(f'<div class="quiet">{escape(curated.question)}</div>' + (answered(curated, result) if result else unanswered(curated)))
    for page, label, icon, case in (
        ("heads", "Look at its heads", ":material/arrow_forward:", curated.case(name, head)),
        ("circuits", "Patch it", ":material/hub:", curated.case(name)),
    ):
        query = links.query(case, Case(frame.service().default))
        st.page_link(f"views/{page}.py", label=label, icon=icon, query_params=query)


def answered(curated: Curated, result: Mapping[str, Any]) -> str:
    """The prompt with the model's answer, the two words compared, and the head that matters most."""
    said = result["next"][0]["text"]
    kind = "right" if curated.is_right(said) else "wrong"
    bars = bar("target", curated.target, result["p"]["target"]) + bar("foil", curated.foil, result["p"]["foil"])
    top = result["top_heads"][0]
    return (
        f'<div class="prompt">{escape(curated.prompt)} <b class="{kind}">{escape(said)}</b></div><div class="duel">{bars}</div>'
        f'<div class="quiet">head {top["head"]} helps most: {top["effect"]:+.1f} logits without it</div>'
    )


def bar(side: str, word: str, p: float) -> str:
    return f'<div><span>{escape(word)}</span><i><u class="{side}" style="width:{100 * p:.1f}%"></u></i><b>{p:.0%}</b></div>'


def unanswered(curated: Curated) -> str:
    words = f"{escape(curated.target)} or {escape(curated.foil)}?"
    return f'<div class="prompt">{escape(curated.prompt)} <b>?</b></div><div class="quiet">{words}</div>'


def own_prompt(name: str) -> None:
    st.markdown("**Your own prompt**")
    st.html('<div class="quiet">Type any text that the model knows the words of, and two words to compare.</div>')
    query = links.query(Case(name), Case(frame.service().default))
    st.page_link("views/heads.py", label="Open the heads page", icon=":material/edit:", query_params=query)


def beyond(name: str) -> None:
    """The pages that are about more than one prompt."""
    st.markdown("### Beyond one prompt")
    query = links.query(Case(name), Case(frame.service().default))
    for column, (page, label, icon, question) in zip(st.columns(len(PAGES), gap="small"), PAGES, strict=True):
        with column, st.container(border=True, height="stretch"):
            st.markdown(f"**{label}**")
            st.html(f'<div class="quiet">{escape(question)}</div>')
            st.page_link(f"views/{page}.py", label=f"Open {label}", icon=icon, query_params=query)


def trust(name: str) -> None:
    st.markdown("### Can its numbers be trusted?")
    st.markdown(
        "The self-check proves on the loaded weights that reading changes nothing, that every edit arrives, that zeroing a head equals "
        "taking its columns out of W_O, that parts sum to the whole, and that the logits are those of Hugging Face."
    )
    if st.button("Run the self-check", key="check", icon=":material/verified:", on_click=frame.touched):
        st.session_state["checked"] = name
    if st.session_state.get("checked") != name:
        return
    with st.spinner("Checking ...", show_time=True):
        report = frame.attempt(lambda: frame.service().check(name))
    if report is None:
        return
    frame_of_checks = report.table()
    passed = int(frame_of_checks["passed"].sum())
    (st.success if report.passed else st.error)(f"{passed} of {len(frame_of_checks)} checks passed.")
    st.dataframe(frame_of_checks, hide_index=True)


def sites(name: str) -> None:
    st.markdown("### What can be read and edited?")
    if not st.toggle("List the sites of this model", key="list_sites", on_change=frame.touched):
        return

    def found() -> Any:
        from interp.description import refused_kinds, site_kinds

        model = frame.service().model(name)
        return site_kinds(model), refused_kinds(model)

    both = frame.attempt(found)
    if both is None:
        return
    kinds, refused = both
    st.dataframe([{"site": k.name, "axes": k.axes, "what it is": k.doc} for k in kinds], hide_index=True)
    st.caption("In a block as blocks.LAYER.NAME. As edits: a2.1*0.5 (head 1 of layer 2), m2:zero@-1 (an MLP at the last position), r1+0.3")
    for kind, reason in refused.items():
        st.caption(f"**{kind}** is refused: {reason}.")


def page() -> None:
    name = frame.model_name()
    heading(name)
    cases(name)
    beyond(name)
    left, right = st.columns(2, gap="large")
    with left:
        trust(name)
    with right:
        sites(name)


page()
