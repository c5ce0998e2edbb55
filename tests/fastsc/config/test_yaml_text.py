"""YAML that a person did not mean: one line that names the file, within seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastsc import train
from fastsc.config.yaml_text import parse_yaml
from fastsc.errors import UserError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: " + "9" * 5000, "too many digits in line 1"),
        ("alpha: 1\nout: 2024-13-45", "month must be in 1..12 in line 2"),
        ("[" * 5000, "nested too deeply in line 1"),
        ("{" * 5000, "nested too deeply in line 1"),
        ("- " * 5000, "nested too deeply in line 1"),
        (BOMB, "values, with those of its aliases"),
        ("a: &a [*a]", "an alias to what it lies in"),
        ("a: 1\nb: 2\na: 3", "'a' is given twice in line 3"),
        ("a: {b: 1, b: 1}", "'b' is given twice in line 1"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: !!timestamp x", "in line 1"),
        ("? [1, 2]\n: 3", "unhashable key"),
        ("a: \x00", "unreadable"),
    ],
)
def test_what_cannot_be_meant_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=r"^x\.yaml is not YAML: ") as caught:
        parse_yaml(text, "x.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_and_merges_keep_their_meaning() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]"
    assert parse_yaml(text, "x")["b"] == {"x": 1, "y": 3}
    assert parse_yaml(text, "x")["c"] == [{"x": 1, "y": 2}] * 2


@pytest.mark.parametrize(
    "text",
    ["1: 2", "epochs: " + "9" * 4000, "out: [" + "x, " * 900 + "]", "a: 1\n" * 400_000, "{}", "3"],
)
def test_a_recipe_of_any_content_ends_with_2(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert train.main([str(tmp_path / "x.yaml"), "--data", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 500
