"""Whatever is in a recipe, a study, a log or a weights file: it is read, or a UserError says why.

Every format from a whole file of it, changed: values of other types and sizes, keys left out, bytes
flipped, cut and put in.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fastsc import train
from fastsc.config.recipes import load_recipe
from fastsc.evaluation.models.labels import _read_map
from fastsc.evaluation.models.sources import load_source
from fastsc.models.build import build_net
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD
from fastsc.replaying.history import History
from fastsc.replaying.rebuild import ReplayOptions, rebuild
from fastsc.reproduction.grid import load_study
from fastsc.reproduction.records import read_record
from fastsc.run.log import read_log
from tests.fuzzing import changed, damaged, fuzzed, reads, text_of

ROOT = Path(__file__).parent.parent
OLD = ROOT / "tests" / "old"

RECIPE = yaml.safe_load((OLD / "run" / "config.yaml").read_text())
STUDY = yaml.safe_load((OLD / "study.yaml").read_text())
RECORD = json.loads((OLD / "records" / "both-0.json").read_text())
EVENTS = [json.loads(line) for line in (OLD / "run" / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.slow
@fuzzed
@given(content=st.one_of(changed(RECIPE).map(text_of), damaged(yaml.safe_dump(RECIPE).encode())))
def test_a_recipe(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    reads(lambda: load_recipe(str(tmp_path / "x.yaml")))


@pytest.mark.slow
@fuzzed
@given(content=st.one_of(changed(STUDY).map(text_of), damaged(yaml.safe_dump(STUDY).encode())))
def test_a_study(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    reads(lambda: load_study(str(tmp_path / "x.yaml")))


@pytest.mark.slow
@fuzzed
@given(content=st.one_of(changed(RECORD).map(text_of), damaged(text_of(RECORD))))
def test_a_record(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    reads(lambda: read_record(path))


@pytest.mark.slow
@fuzzed
@given(events=changed(EVENTS), step=st.sampled_from([None, 1, 9, 16]))
def test_a_log(events: list[Any], step: int | None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(OLD / "run", run)
    (run / "log.jsonl").write_bytes(b"\n".join(map(text_of, events)) + b"\n")

    def replayed() -> None:
        history = History.read(run)
        record = history.at(step)
        history.config(record)
        history.broken(record)

    reads(replayed)


@pytest.fixture(scope="module")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps whose images are there."""
    out = tmp_path_factory.mktemp("trained") / "run"
    words = "cifar100 --model fastsc:resnet8w1 --resolution 16 --batch-size 8 --max-steps 2"
    words += f" --pipeline cpu --workers 1 --device cpu --log-every 1 --out {out}"
    assert train.main([*words.split(), "--data", str(image_folder)]) == 0
    return out


@pytest.mark.slow
@settings(fuzzed, max_examples=200)
@given(data=st.data(), rank=st.sampled_from([None, None, 0, 1, -1]))
def test_a_replayed_step(data: st.DataObject, rank: int | None, trained: Path) -> None:
    log, events = trained / "log.jsonl", read_log(trained / "log.jsonl")
    with tempfile.TemporaryDirectory() as home:
        run = Path(home)
        shutil.copy(trained / "config.yaml", run)
        events = data.draw(changed([events[0], *events[1:][-4:]]))
        (run / log.name).write_bytes(b"\n".join(map(text_of, events)) + b"\n")

        def replayed() -> None:
            history = History.read(run)
            rebuild(history, history.at(2), ReplayOptions(rank, None, None, "cpu"))

        reads(replayed)


@pytest.mark.slow
@fuzzed
@given(content=damaged((OLD / "run" / "log.jsonl").read_bytes()))
def test_a_damaged_log(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    reads(lambda: read_log(path))


METADATA = {
    "architecture": "fastsc:resnet8w1", "classes": ["a", "b"], "resolution": 16,
    "stem": "imagenet", "val_crop": 0.875, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD),
    "blurpool": False, "step": 3,
}  # fmt: skip


@pytest.mark.slow
@fuzzed
@given(metadata=changed(METADATA), data=st.data())
def test_a_weights_file(metadata: dict[str, Any], data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = build_net("fastsc:resnet8w1", 2, "imagenet", 16).state_dict()
    save_file(tensors, path, {key: json.dumps(value) for key, value in metadata.items()})
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    reads(lambda: load_source(str(path)))


class _AnyName:
    class model:  # noqa: N801
        n_classes, classes = 3, ("a", "b", "c")

    def find(self, name: str) -> int:
        return -1

    def near(self, name: str) -> str:
        return ""


@pytest.mark.slow
@fuzzed
@given(
    content=st.one_of(changed({"a": 0, "b": "1"}).map(text_of), damaged(b"a: 0\nb: 1\n")),
    name=st.sampled_from(["map.json", "map.yaml"]),
)
def test_a_class_map(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    reads(lambda: _read_map(tmp_path / name, ("a", "b"), _AnyName()))  # type: ignore[arg-type]
