"""What all pages share: the service, the case that a person is looking at, the address bar, the sidebar, and messages.

The case lives in the person's own state. Widgets are drawn from it and their callbacks change it; it is written to the address bar
after every run, and read from there when somebody opens a link or goes back.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import streamlit as st

from app import links
from app.case import Case
from app.service import Refused, Service, moved_to, refusing, short_name


@st.cache_resource(max_entries=1, show_spinner=False)
def service() -> Service:
    """One for the whole server."""
    return Service()


# --- the case and the address bar ---------------------------------------------------------------------------------------------


def begin(page: str) -> None:
    """Reads the address bar if it says something new.

    Any widget that was moved in this very run wins: while the browser catches up it still sends the address of some runs ago, and
    reading that would undo the moves since. Hence every widget has a callback that says `touched` (tests/app/test_races.py).
    """
    state, seen = st.session_state, st.query_params.to_dict()
    moved_here, changed_here = state.get("page") != page, state.pop("changed", False)
    if "asked" not in state or (seen != state.get("written") and not changed_here and (seen or not moved_here)):
        state.asked, state.case, state.written = links.read(seen), None, seen
    if moved_here:
        state.shown = set()  # widgets of another page are other widgets, also under the same key
    state.page = page


def finish() -> None:
    """Writes the case to the address bar."""
    state = st.session_state
    if state.case is None:
        return
    wanted = links.query(state.case, default_of(state.case.model))
    # What the browser sent may be older than what was written last and is on its way: going back to it must be written too.
    if st.query_params.to_dict() != wanted or state.get("written") not in (None, wanted):
        st.query_params.from_dict(wanted)
    state.written = wanted


def default_of(model: str) -> Case:
    """What a link need not say."""
    try:
        return replace(service().suggest(model), model=service().default)
    except Refused:
        return Case(service().default)


def model_name() -> str:
    """The model in use, which need not be loaded for this."""
    state = st.session_state
    return state.case.model if state.case is not None else str(state.asked.fields.get("model") or service().default)


def case() -> Case:
    """The case in use; the first call of a visit may load the model to find a prompt that it can read."""
    state = st.session_state
    if state.case is None:
        name = model_name()
        state.case = links.apply(state.asked, replace(default_of(name), model=name))
    return state.case


def change(**fields: Any) -> None:
    """Called by widgets: what is looked at becomes something else."""
    put(replace(case(), **fields))


def change_field(name: str, value: Any) -> None:
    """The same for one field by its dotted name, "patch.site". A cell of one map is none of another, nor a value of one feature."""
    old = case()
    new = links.put(old, name, value)
    if new.patch.axes != old.patch.axes:
        new = links.put(new, "patch.cell", "")
    if (new.feature.layer, new.feature.name, new.feature.coders) != (old.feature.layer, old.feature.name, old.feature.coders):
        new = links.put(new, "feature.clamp", -1.0)
    put(new)


def put(new: Case) -> None:
    st.session_state.case = new
    touched()
    forget_problems()


def touched() -> None:
    """Said by the callback of every widget, also of one that leaves the case as it is: this run is no visit to an address."""
    st.session_state.changed = True


def forget_problems() -> None:
    st.session_state.asked = replace(st.session_state.asked, problems=())


def shows(key: str, value: Any) -> None:
    """Has the widget of this key show a value of the case.

    Only where it does not already: a value that is set is sent to the browser, and would take back what was moved or typed there since
    this run began.
    """
    now = st.session_state.get(key)
    near = isinstance(now, float) and isinstance(value, float) and math.isclose(now, value, abs_tol=1e-9)
    if key not in st.session_state or key not in st.session_state.shown or not (near or now == value):
        st.session_state[key] = value
    st.session_state.shown.add(key)


def this_link(of: Case) -> str:
    """The whole address of a case."""
    return links.link(st.context.url or "", of, default_of(of.model))


# --- the frame ----------------------------------------------------------------------------------------------------------------


def sidebar() -> None:
    """The model picker."""
    names = service().names()
    name = model_name()
    with st.sidebar:
        shows("model", name)
        options = names if name in names else [name, *names]
        st.selectbox("Model", options, key="model", format_func=short_name, on_change=_pick_model, help="Bundled models come first.")
        with st.expander("Open another model"):
            st.text_input(
                "Folder or hub name", key="other_model", placeholder="gpt2, facebook/opt-125m, /path/to/model", on_change=_open_model,
                help="GPT-2, OPT or GPT-NeoX/Pythia with safetensors weights. A hub name may be downloaded.",
            )  # fmt: skip


def _pick_model() -> None:
    _go_to(st.session_state["model"])


def _open_model() -> None:
    name = st.session_state["other_model"].strip()
    touched()
    if name:
        service().allow(name)
        _go_to(name)


def _go_to(name: str) -> None:
    """The same prompt on another model if it can read it, else one of its own."""
    moved = moved_to(case(), name)
    try:
        service().reading(moved)
    except Refused:
        with messages():
            moved = service().suggest(name)
    put(moved)


def problems() -> None:
    """What in the link could not be used."""
    for problem in st.session_state.asked.problems:
        st.warning(problem, icon=":material/link_off:")


@contextmanager
def messages() -> Iterator[None]:
    """Shows what was refused as a message in place of a traceback."""
    try:
        yield
    except Refused as error:
        st.error(str(error), icon=":material/error:")


def attempt(work: Callable[[], Any]) -> Any:
    """What `work` returns, or None after a message where it was refused."""
    with messages():
        return refusing(work)
    return None
