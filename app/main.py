"""The explorer's entry: `interp explore`, or `streamlit run app/main.py`."""

import sys
from pathlib import Path

import streamlit as st

sys.path[:0] = [] if str(Path(__file__).parents[1]) in sys.path else [str(Path(__file__).parents[1])]

from app import frame  # noqa: E402

VIEWS = Path(__file__).parent / "views"

st.set_page_config("Interp workbench", page_icon=Path(__file__).parent / "icon.png", layout="wide")
page = st.navigation(
    [
        st.Page(VIEWS / "start.py", title="Start", icon=":material/home:", url_path="start", default=True),
        st.Page(VIEWS / "heads.py", title="Heads", icon=":material/grid_view:", url_path="heads"),
        st.Page(VIEWS / "circuits.py", title="Patch & circuits", icon=":material/hub:", url_path="circuits"),
        st.Page(VIEWS / "recall.py", title="Recall & bias", icon=":material/psychology:", url_path="recall"),
        st.Page(VIEWS / "features.py", title="Features", icon=":material/lens_blur:", url_path="features"),
        st.Page(VIEWS / "outliers.py", title="Outliers", icon=":material/bolt:", url_path="outliers"),
    ]
)
st.html(Path(__file__).parent / "style.css")
with frame.messages():
    frame.begin(page.url_path)
    frame.sidebar()
    frame.problems()
    page.run()
    frame.finish()
frame.service().warm()  # the default model, in the background, now that the page stands
