"""The demo's parts: the photographs, the command, the table, the picture; and once the whole."""

from __future__ import annotations

import filecmp
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastsc.config.options import parse
from fastsc.datasets import photographs
from fastsc.datasets.photographs import MARKER, PER_CLASS, PHOTOGRAPHS, write_photographs
from fastsc.demo import main
from fastsc.demos import photographs as demo
from fastsc.demos.photographs import Measured
from fastsc.errors import UserError

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

pytest.importorskip("skimage", reason="the photographs come with scikit-image: fastsc[eval]")
pytest.importorskip("sklearn", reason="the photographs come with scikit-learn: fastsc[eval]")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("demo") / "photos")


def measured(n: int) -> Measured:
    rng = np.random.default_rng(n)
    return Measured(0.5, 0.125, 0.25, rng.random(n), rng.random(n))


def test_photographs_are_an_image_folder_of_varied_jpegs(photos: Path) -> None:
    sizes = set()
    for split, per_class in PER_CLASS.items():
        classes = sorted((photos / split).iterdir())
        assert [c.name for c in classes] == [name for name, _, _ in PHOTOGRAPHS]
        for folder in classes:
            files = sorted(folder.iterdir())
            assert len(files) == per_class
            for file in files:
                with Image.open(file) as image:
                    image.load()
                    assert (image.format, image.mode) == ("JPEG", "RGB")
                    assert 60 <= min(image.size) <= max(image.size) <= 320
                    assert np.asarray(image).std() > 5  # no empty sky
                    sizes.add(image.size)
    assert len(sizes) > 200


def test_photographs_are_the_same_bytes_every_time_and_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len({path.read_bytes() for path in photos.rglob("*.jpg")}) == 320  # no crop twice
    monkeypatch.setattr(photographs, "PER_CLASS", {"train": 3, "val": 1})
    (tmp_path / f".photos.{os.getpid()}.part" / "train" / "cat").mkdir(parents=True)  # of a kill
    again = write_photographs(tmp_path / "photos")
    names = [str(p.relative_to(again)) for p in again.rglob("*.jpg")]
    same, different, failed = filecmp.cmpfiles(photos, again, names, shallow=False)
    assert (len(same), different, failed) == (40, [], [])
    assert os.listdir(tmp_path) == ["photos"]

    (again / "train" / "cat" / "00.jpg").unlink()
    assert write_photographs(again) == again
    assert not (again / "train" / "cat" / "00.jpg").exists()


def test_photographs_leave_a_users_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    with pytest.raises(UserError, match="choose another --out"):
        write_photographs(tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["mine.jpg"]


def test_photographs_name_the_package_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs, "PHOTOGRAPHS", (("cat", "no_such_package", "cat.png"),))
    with pytest.raises(UserError, match=r"no_such_package.*pip install"):
        write_photographs(tmp_path / "photos")
    assert not list(tmp_path.iterdir())


def test_free_name_never_names_what_exists(tmp_path: Path) -> None:
    assert photographs.free_name(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert photographs.free_name(tmp_path / "run") == tmp_path / "run-3"


@pytest.mark.parametrize("steps", [1, 7, 8, 120])
def test_command_is_one_that_the_trainer_takes(steps: int) -> None:
    words = demo.training_command(Path("photos"), Path("run"), steps, "cpu")
    assert words[:3] == ["-m", "fastsc.train", "imagenet"]
    config = parse(words[2:])
    assert config.optim.max_steps == steps
    per_epoch = 240 // config.optim.batch_size
    assert (config.optim.epochs - 1) * per_epoch < steps <= config.optim.epochs * per_epoch


def test_table_shows_the_run_and_both_networks() -> None:
    log = [{"event": "header", "pipeline": "cpu", "device": "cpu", "ds": "cosine"}] + [
        {"event": "step", "step": s, "pairs_per_s": 100.0, "loader_wait": 0.02} for s in (1, 10)
    ]
    out = io.StringIO()
    table = demo.results_table(log, measured(2)._replace(top1=0.1), measured(2))
    Console(file=out, width=100).print(table)
    for part in ("10 steps", "100 pairs/s", "2%", "10.0%", "50.0%", "0.1250", "0.250", "cpu"):
        assert part in out.getvalue(), part


@pytest.mark.parametrize("n", [1, 5, pytest.param(10, marks=pytest.mark.slow)])
def test_picture_is_a_png_that_shows_every_pair(tmp_path: Path, n: int) -> None:
    colors = np.linspace(40, 215, 2 * n).astype(np.uint8)
    views = np.zeros((2 * n, 32, 32, 3), np.uint8)
    views[..., 0], views[..., 1] = colors[:, None, None], 255  # no text has such colors
    path = tmp_path / "pairs.png"
    demo.draw_pairs(path, views[:n], views[n:], [f"c{i}" for i in range(n)], *[measured(n)] * 2)
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    for red in colors:
        shown = np.all(pixels == (red, 255, 0), axis=-1)
        assert shown.sum() > 100 * 100, red


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--steps", "0"]) == 2
    assert main(["--out", str(tmp_path), "--steps", "100001"]) == 2
    (tmp_path / "file").touch()
    assert main(["--out", str(tmp_path / "file")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("fastsc.demo: ") for line in lines)


@pytest.mark.timeout(300)
def test_the_whole_demo_in_a_few_steps(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.setattr(demo, "has_dali", lambda: False)
    monkeypatch.setattr(demo, "RESOLUTION", 32)
    monkeypatch.setattr(
        demo, "draw_pairs", lambda path, clean, perturbed, names, before, after: path.touch()
    )
    assert main(["--out", str(tmp_path), "--steps", "3"]) == 0
    printed = capfd.readouterr().out
    assert "DALI is not installed" in printed
    assert "--pipeline cpu" in printed
    assert sorted(os.listdir(tmp_path)) == ["pairs.png", "photos", "run"]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    val = next(line for line in reversed(log) if line["event"] == "epoch")["val"]

    # The demo's own measures are the log's: same weights, same images, same factors, same partners.
    *_, after = demo.compare(tmp_path / "run")
    assert after.top1 == pytest.approx(val["top1"])
    assert after.ds == pytest.approx(val["ds"], rel=1e-3)
    assert after.ds_relative == pytest.approx(val["ds_relative"], rel=1e-3)
    assert (photos / MARKER).is_file()
