"""What shows only while decoding: raised or skipped as the user chose, alike in every backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastsc.pipelines import BadImage, Pipeline, UserError, build, scan
from fastsc.pipelines.sweep import verify
from tests.pipelines.conftest import (
    DALI,
    broken_files,
    encoded,
    odd_files,
    opened,
    photograph,
    with_holes,
)


def indices(loader: Pipeline, number: int) -> list[list[int]]:
    loader.set_epoch(number)
    return [batch.index.tolist() for batch in loader]


def images(loader: Pipeline) -> dict[int, torch.Tensor]:
    """Dataset index -> clean view, of one epoch."""
    return {int(i): x for batch in loader for i, x in zip(batch.index, batch.clean, strict=True)}


HOLES = "apple/zz.png", "boat/00.png"


def test_raise_names_the_file(backend: str, folder: Path) -> None:
    index = with_holes(backend, folder / "train", *HOLES)
    with pytest.raises(UserError, match=r"(apple/zz|boat/00)\.png: .*--on-bad-image skip"):
        list(build(backend, index, batch_size=34, resolution=32))
    index = with_holes(backend, folder / "val", "cloud/01.png")
    with pytest.raises(UserError, match=r"cloud/01\.png"):
        list(build(backend, index, batch_size=4, resolution=32, train=False))


def test_skip_fills_the_slot_with_a_keyed_substitute(backend: str, folder: Path) -> None:
    index = with_holes(backend, folder / "train", *HOLES)
    holes = {i for i, path in enumerate(index.paths) if path.endswith(".png")}
    reports: list[BadImage] = []
    loader = build(
        backend,
        index,
        batch_size=34,
        resolution=32,
        on_bad_image="skip",
        report=reports.append,
    )
    whole = build(backend, index.without(dict.fromkeys(holes, "out")), batch_size=32,
                  resolution=32, on_bad_image="skip")  # fmt: skip
    for number in range(3):
        loader.set_epoch(number)
        (views,) = loader
        batch, plan = views.index.tolist(), loader.plan(number)
        expected = plan.order[:34].tolist()
        for slot, wanted in enumerate(expected):
            attempt = 0
            while expected[slot] in holes:
                expected[slot] = plan.substitute(wanted, attempt)
                attempt += 1
        assert batch == expected
        whole.set_epoch(number)
        good = images(whole)
        assert all(torch.equal(x, good[i]) for i, x in zip(batch, views.clean, strict=True))
    loader.close()
    whole.close()
    assert sorted(Path(bad.path).name for bad in reports) == ["00.png", "zz.png"]  # once each
    assert all(bad.reason and bad.substitute for bad in reports)


def test_skip_leaves_the_slot_out_of_validation(backend: str, folder: Path) -> None:
    reports: list[BadImage] = []
    index = with_holes(backend, folder / "val", "cloud/01.png")
    hole = index.paths.index("cloud/01.png")
    for size in (4, 1):  # a batch of one, of the broken file alone, vanishes
        loader = build(
            backend,
            index,
            batch_size=size,
            resolution=32,
            train=False,
            on_bad_image="skip",
            report=reports.append,
        )
        found = indices(loader, 0)
        shown = images(loader)
        whole = build(backend, index.without({hole: "out"}), batch_size=12, resolution=32,
                      train=False, on_bad_image="skip")  # fmt: skip
        good = images(whole)
        assert shown.keys() == good.keys()
        assert all(torch.equal(shown[i], good[i]) for i in good)
        whole.close()
        expected = [list(range(at, min(at + size, 13))) for at in range(0, 13, size)]
        kept = [[i for i in batch if i != hole] for batch in expected]
        assert found == [batch for batch in kept if batch]
        loader.close()
    assert {Path(bad.path).name for bad in reports} == {"01.png"}
    assert all(bad.substitute is None for bad in reports)


@pytest.mark.parametrize("change", ["vanish", "grow", "other bytes"])
@pytest.mark.parametrize("when", ["after the scan", "during the epoch"])
def test_file_that_changes(
    backend: str, folder: Path, change: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsc.pipelines.dali.TOGETHER", 1)  # DALI reads less far ahead
    index = opened(backend, folder / "train")
    options = {"batch_size": 2, "resolution": 32, "on_bad_image": "skip", "timeout": 30}
    expected = images(build(backend, index, **options))  # type: ignore[arg-type]
    loader = build(backend, index, **options)  # type: ignore[arg-type]
    last = int(loader.plan().order[-1])  # further on than anybody reads ahead
    victim, n_bytes = folder / "train" / index.paths[last], int(index.n_bytes[last])
    batches = iter(loader)
    found = {}
    if when == "during the epoch":
        first = next(batches)
        found = {int(i): x for i, x in zip(first.index, first.clean, strict=True)}
    if change == "vanish":
        victim.unlink()
    elif change == "grow":
        victim.write_bytes(victim.read_bytes() + b"\0")
    else:
        victim.write_bytes(b"no JPEG any more".ljust(n_bytes))
    seen = []
    for batch in batches:
        seen += batch.index.tolist()
        found |= {int(i): x for i, x in zip(batch.index, batch.clean, strict=True)}
    # The memory and beton pipelines have what they need: for them nothing has changed.
    assert (last in seen) == (backend in ("memory", "ffcv"))
    assert len(loader) * 2 == 32
    assert all(torch.equal(found[i], expected[i]) for i in found)
    loader.close()


def test_index_leaves_out_what_would_break_a_decoder(backend: str, folder: Path) -> None:
    for name, data in (broken_files() | odd_files()).items():
        (folder / "train" / "door" / name).write_bytes(data)
    index = opened(backend, folder / "train")
    with pytest.raises(UserError, match="door"):
        build(backend, index, batch_size=8, resolution=32)
    loader = build(backend, index, batch_size=8, resolution=32, on_bad_image="skip")
    for number in range(3):
        found = [i for batch in indices(loader, number) for i in batch]
        assert len(found) == len(set(found)) == (32 + len(odd_files())) // 8 * 8
        assert not set(found) & set(index.left_out)
    loader.close()


def test_folder_of_broken_files_ends(backend: str, tmp_path: Path) -> None:
    (tmp_path / "only" / "holes").mkdir(parents=True)
    index = with_holes(backend, tmp_path / "only", *(f"holes/{i}.png" for i in range(3)))
    loader = build(backend, index, batch_size=2, resolution=32, on_bad_image="skip", timeout=30)
    with pytest.raises(UserError, match="images in a row cannot be decoded"):
        list(loader)


@pytest.mark.parametrize("name", [DALI, "cpu"])
def test_failures_of_an_epoch_do_not_depend_on_earlier_ones(folder: Path, name: str) -> None:
    # Only regions that reach below the damage fail, which the header does not show.
    whole = encoded(photograph(5, (160, 160)), "PNG")
    (folder / "train" / "apple" / "zz.png").write_bytes(
        whole[: len(whole) // 2] + bytes(300) + whole[len(whole) // 2 + 300 :]
    )
    options = {"batch_size": 33, "resolution": 32, "on_bad_image": "skip"}
    straight = build(name, folder / "train", **options)  # type: ignore[arg-type]
    history = [indices(straight, number) for number in range(5)]
    fresh = build(name, folder / "train", **options)  # type: ignore[arg-type]
    assert indices(fresh, 4) == history[4]


def test_verify_finds_what_the_header_hides(holey_folder: Path) -> None:
    index = scan(holey_folder / "train")
    index = index.without(verify(index))
    assert {Path(bad.path).name for bad in index.bad_images()} == {"zz.png", "00.png"}
    assert index.hash != scan(holey_folder / "train").hash
    with pytest.raises(UserError, match=r"\(and 1 more\)"):
        index.require("raise")
