"""bench.loaders: which rows there are, what is said of one that cannot run, and the plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import loaders, sources
from bench.common import Result, Skipped
from bench.loaders_plot import draw, stage_parts
from fastsc.pipelines import scan
from tests.pipelines.conftest import needs_dali, needs_ffcv

pytestmark = pytest.mark.heavy

SETTLED = {
    "fastsc-cpu/pair", "fastsc-cpu/single", "fastsc-dali/pair", "fastsc-dali/single",
    "fastsc-cpu-tar/pair", "fastsc-cpu-exact/pair", "torchvision-pil-draft/pair",
    "datasets-torchvision/pair", "datasets-torchvision/single",
    "webdataset-torchvision/pair", "webdataset-torchvision/single",
    "fastsc-ffcv/pair", "fastsc-ffcv/single", "torchvision-tensor/pair", "torchvision-pil/pair",
    "albumentations/pair", "dali-own-colour/pair", "dali/single", "ffcv/single", "floor",
}  # fmt: skip


@pytest.fixture
def short(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose epochs are of 64 images, so that a test is quick."""
    monkeypatch.setattr(sources, "MIN_FILES", 64)
    return image_folder


def run(data: Path, tmp_path: Path, *more: str) -> dict[str, dict[str, object]]:
    file = tmp_path / "results.json"
    words = ["--data", str(data), "--rounds", "1", "--workers", "2", "--json", str(file)]
    loaders.main([*words, *more])
    rows = json.loads(file.read_text())["results"]
    return {row["name"]: row for row in rows}


def test_every_settled_name_is_a_row(image_folder: Path, tmp_path: Path) -> None:
    index = scan(image_folder / "train")
    assert set(loaders.makers(tmp_path / "links", index, 1)) >= SETTLED


@pytest.mark.slow
@needs_dali
@needs_ffcv
def test_ours_run_single_and_paired(short: Path, tmp_path: Path) -> None:
    words = ["--only", "loaders/fastsc", "floor", "loaders/dali", "--plot", str(tmp_path / "p.svg")]
    rows = run(short, tmp_path, *words)
    assert len(rows) == 6 + 6 + 2 + 5
    for name, row in rows.items():
        assert row["unit"] == ("pairs/s" if name.endswith("/pair") else "images/s")
        assert row["median"] > 0  # type: ignore[operator]
    assert (tmp_path / "p.svg").stat().st_size > 1000


def test_peers_with_torchvision(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On large photographs, which the one of Pillow's draft mode is for."""
    monkeypatch.setattr(sources, "LARGE", (900, 700))
    words = ["pil-draft", "datasets-torchvision/single", "webdataset-torchvision/single"]
    rows = run(short, tmp_path, "--large", "32", "--workers", "1", "--only", *words)
    assert len(rows) == 3
    for row in rows.values():
        assert row.get("skipped") or row["median"] > 0  # type: ignore[operator]
    assert "skipped" not in rows["loaders/torchvision-pil-draft/pair"]


@needs_dali
@needs_ffcv
def test_stages_of_ours(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.stages.N", 64)
    rows = run(short, tmp_path, "--only", "stages/")
    found = {name.split("/")[1]: set[str]() for name in rows}
    for name, row in rows.items():
        assert row["unit"] == "ms/image"
        found[name.split("/")[1]].add(name.split("/")[2])
    beton = {"read-and-decode", "resize", "pair", "hand-over"}
    assert found == {
        "cpu": {"read", "decode", "resize", "pair", "hand-over"},
        "dali": {"read", "feed", "feed-and-decode", "feed-decode-resize"},
        "ffcv": beton,
        "ffcv-half": beton,
        "ffcv-raw": beton,
    }


def test_a_peer_that_is_missing_is_a_row_that_says_so(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "albumentations", None)
    rows = run(short, tmp_path, "--only", "albumentations", "loaders/floor-decode")
    assert "pip install 'fastsc[bench]'" in str(rows["loaders/albumentations/pair"]["skipped"])
    assert rows["loaders/floor-decode"]["n"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "0"], "--workers must be at least 1"),
        (["--large", "31"], "--large must be at least 32"),
        (["--only", "nothing-of-this-name"], "no case has this in its name"),
        (["--plot", "nowhere/x.svg"], "make it first"),
        (["--data", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes(
    short: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        loaders.main(["--data", str(short), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_stages_of_dali_are_differences(tmp_path: Path) -> None:
    def row(name: str, ms: float) -> Result:
        return Result(f"stages/{name}", ms, ms, ms, "ms/image", 5)

    rows = [
        row("cpu/pair", 0.1), row("dali/read", 0.02), row("dali/feed", 0.01),
        row("dali/feed-and-decode", 0.81), row("dali/feed-decode-resize", 1.51),
        Skipped("stages/ffcv/pair", "not here"),
    ]  # fmt: skip
    parts = stage_parts(rows)
    assert parts["cpu"] == {"pair": 0.1}
    assert parts["dali"] == pytest.approx(
        {"read": 0.02, "feed": 0.01, "decode": 0.8, "resize": 0.7, "pair": 0.1}
    )
    draw(rows, 2, tmp_path / "stages.png")
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")
