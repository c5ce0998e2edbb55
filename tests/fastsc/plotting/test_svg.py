"""What the two kinds of SVG have in common: ids that are used, and bytes that repeat."""

from __future__ import annotations

import re

import pytest

from fastsc.plotting.svg import text_of, theme, with_ids

TEXT = '<defs><path id="b"/><path id="a"/><g id="c"/></defs><use href="#a"/><g fill="url(#b)"/>'


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, TEXT.replace(' id="c"', "")),
        (
            "i",
            '<defs><path id="i1"/><path id="i0"/><g/></defs><use href="#i0"/><g fill="url(#i1)"/>',
        ),
    ],
)
def test_ids_that_nothing_refers_to_go(name: str | None, expected: str) -> None:
    assert with_ids(TEXT, name) == expected


def drawn() -> str:
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(theme("#010203", "#040506", "#070809", 10.0, line=0.8)):
        figure = Figure(figsize=(2, 2))
        axes = figure.subplots()
        axes.plot([0, 1], [-1, 2], marker="o")
        axes.set_title("$5 a month$")
        return text_of(figure)


def test_a_figure_gives_the_same_bytes_with_its_words_as_text() -> None:
    text = drawn()
    assert text == drawn()
    assert text.startswith("<svg")
    assert not re.search(r"<metadata|dc:date|xlink:href", text)
    assert ">$5 a month$</text>" in text
    assert {"#010203", "#040506", "#070809"} <= set(re.findall(r"#[0-9a-f]{6}", text))
