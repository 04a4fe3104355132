"""Texts that mean something to Hydra, to OmegaConf or to YAML, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

# What a command line can hold: no NUL; and pieces that mean something to Hydra, to OmegaConf or to YAML.
PIECES = [*",'\"\\[]{}()=$!;:#@~+%&|* \n\r\t\x1b\x85\u2028é🚀a1"]
PIECES += ["${", "${x}", "${oc.env:HOME}", "1e5", "null", "true", "???", "choice(a,b)", "--", "-m"]
TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=60),
)
