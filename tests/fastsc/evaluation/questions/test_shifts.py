"""Shifts against distances of pixels, and what the page says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.questions.shifts import question as module
from fastsc.evaluation.questions.shifts.corruptions import (
    CORRUPTIONS,
    GROUPS,
    KINDS,
    case_name,
    severities_of,
    shift,
)
from fastsc.evaluation.questions.shifts.question import Shifts, shifts
from fastsc.evaluation.report import pictures
from fastsc.evaluation.report.page import render
from fastsc.evaluation.report.parts import questions
from fastsc.evaluation.report.questions.shifts import case_words
from fastsc.evaluation.report.sections import section as section_of
from fastsc.evaluation.results.answers import Rows
from fastsc.evaluation.results.evaluated import Evaluated, Evaluation
from fastsc.loading.preprocessing import Preprocessing
from fastsc.pipelines import Pipeline, build, keyed, scan
from tests.fastsc.evaluation import tiny

pytestmark = pytest.mark.heavy

pytest.importorskip("imagecorruptions", reason="pip install imagecorruptions-imaug")

SIDE = 32
N = 5
CORRUPTED = tuple(kind for kinds in CORRUPTIONS.values() for kind in kinds)
CASTS = GROUPS["colour"]


def picture(number: int, side: int = SIDE) -> Any:
    """(side, side, 3) uint8: smooth, with every level in it."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return np.array(small.resize((side, side), Image.Resampling.BICUBIC))


def loader(root: Path, n: int = N, side: int = SIDE, **options: Any) -> Pipeline:
    """n smooth pictures in two class folders, shown as they are."""
    for i in range(n):
        folder = root / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i, side)).save(folder / f"{i:02d}.png")
    chosen: dict[str, Any] = {"batch_size": 2, "val_crop": 1.0}
    chosen |= {"mean": tiny.NO_MEAN, "std": tiny.NO_STD} | options
    return build("memory", scan(root), resolution=side, train=False, workers=1, **chosen)


def flat(n_classes: int = 3, side: int = SIDE) -> Classifier:
    """Features are the pixels on [0, 1]."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, n_classes))
    return Classifier(net, "flat", Preprocessing(resolution=side, resize=side))


# --- the question --------------------------------------------------------------------------------


def expected_of(model: Classifier, n: int, cases: Any, seed: int = 0) -> tuple[Any, Any, Any]:
    """Distances between and to other images, and predictions, of all images one by one."""
    # The loader's order: a's images, then b's.
    files = [i for i in range(n) if i % 2 == 0] + [i for i in range(n) if i % 2 == 1]
    pixels = [picture(i) for i in files]

    def answered(image: Any) -> tuple[Any, int]:
        x = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        features = x.flatten()
        with torch.no_grad():
            return features.double().numpy(), int(model.net(x[None])[0].argmax())

    clean = [answered(image) for image in pixels]
    moved, predicted = {}, {"clean": [p for _, p in clean]}
    for kind, severity in cases:
        case = case_name(kind, severity)
        there = [
            answered(shift(image, kind, severity, index=i, seed=seed))
            for i, image in enumerate(pixels)
        ]
        pairs = zip(clean, there, strict=True)
        moved[case] = [np.linalg.norm(a[0] - b[0]) for a, b in pairs]
        predicted[case] = [p for _, p in there]
    cycle = keyed.cycle(np.arange(n), n)
    between = np.empty(n)
    for a, b in zip(cycle, np.roll(cycle, -1), strict=True):
        between[a] = np.linalg.norm(clean[a][0] - clean[b][0])
    return between, moved, predicted


def test_every_figure_by_hand(tmp_path: Path) -> None:
    model = flat()
    labels = np.array([0, 1, 2, 0, 1])
    found = shifts(model, loader(tmp_path), labels=labels, n=None, severities=(2, 5), seed=3)
    cases = [(kind, s) for kind in KINDS for s in severities_of(kind, (2, 5))]
    assert len(cases) == 22 * 2 + 3
    between, moved, predicted = expected_of(model, N, cases, seed=3)
    right = {case: (np.array(p) == labels).astype(float) for case, p in predicted.items()}
    table = found.tables["images"]
    assert table.index.tolist() == list(range(N))
    np.testing.assert_allclose(table.columns["between"], between, rtol=1e-5)
    for case, column in moved.items():
        np.testing.assert_allclose(table.columns[f"moved/{case}"], column, rtol=1e-5)
        assert table.columns[f"predicted/{case}"].tolist() == predicted[case], case
        assert found[f"accuracy/{case}"].value == right[case].mean()
        assert found[f"accuracy/{case}"].method == "Wilson"
        ratio = np.mean(column) / between.mean()
        assert found[f"ds_relative/{case}"].value == pytest.approx(ratio, rel=1e-5)
    assert found["accuracy/clean"].value == right["clean"].mean()
    assert 0 < np.mean(list(right.values())) < 1  # or it shows nothing
    assert 5 < sum(column != predicted["clean"] for column in predicted.values()) < len(cases)
    # Means: of a kind over severities, of a group over kinds.
    kinds = {
        kind: np.mean([right[case_name(kind, s)] for s in severities_of(kind, (2, 5))])
        for kind in KINDS
    }
    moves = {
        kind: np.mean([moved[case_name(kind, s)] for s in severities_of(kind, (2, 5))])
        for kind in KINDS
    }
    unions = {**GROUPS, "corruptions": CORRUPTED, "all": KINDS}
    for kind in KINDS:
        assert found[f"accuracy/{kind}"].value == pytest.approx(kinds[kind])
    for group, own in unions.items():
        value = np.mean([kinds[kind] for kind in own])
        assert found[f"accuracy/{group}"].value == pytest.approx(value)
        ratio = np.mean([moves[kind] for kind in own]) / between.mean()
        assert found[f"ds_relative/{group}"].value == pytest.approx(ratio, rel=1e-5)
    names = [measure.name for measure in found.measures]
    assert len(names) == len(set(names))
    assert {name.split("/")[0] for name in names} == {"accuracy", "ds_relative"}
    assert len(names) == 1 + 7 + 22 + 47 + 7 + 47
    assert found.chance == pytest.approx(1 / 3)
    assert all(found[name].n == N for name in names)
    # What is shown: one image, each kind at the middle severity of two, the larger.
    row = table.index.tolist().index(found.image)
    assert [(prediction.kind, prediction.severity) for prediction in found.predictions] == [
        (k, 5) for k in KINDS
    ]
    for prediction in found.predictions:
        case = case_name(prediction.kind, 5)
        assert prediction.predicted == f"class {predicted[case][row]}"
        assert prediction.right == bool(right[case][row])


def test_batches_parts_and_a_cache_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = flat()
    whole = shifts(model, loader(tmp_path), n=None, severities=(4,))
    monkeypatch.setattr(module, "MOST", 2)
    cache = tiny.Kept()
    other = loader(tmp_path, batch_size=5)
    first = shifts(model, other, n=None, severities=(4,), cache=cache)
    assert len(cache.computed) == 3 * (1 + 25)
    assert cache.computed[:4] == ["clean-0", "clean-1", "clean-2", "gaussian_noise-0"]
    assert cache.settings["fog-1"] == {"images": [2, 3], "severities": (4,), "seed": 0}
    second = shifts(model, other, n=None, severities=(4,), cache=cache)
    assert len(cache.computed) == 3 * (1 + 25)
    for found in (first, second):
        for name, column in whole.tables["images"].columns.items():
            np.testing.assert_allclose(found.tables["images"].columns[name], column, rtol=1e-6)
        assert found.predictions == whole.predictions


def test_where_nothing_is_shifted_nothing_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "shift", lambda pixels, *_, **__: pixels)
    found = shifts(flat(), loader(tmp_path), n=None)
    assert 0 < found["accuracy/clean"].value < 1
    for measure in found.measures:
        same = found["accuracy/clean"].value if measure.name.startswith("accuracy") else 0
        assert found[measure.name].value == pytest.approx(same, abs=1e-12), measure.name


def test_what_is_always_right_is_not_certain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "shift", lambda pixels, *_, **__: pixels)
    model, images = flat(), loader(tmp_path)
    predicted = shifts(model, images, n=None).tables["images"].columns["predicted"]
    found = shifts(model, images, labels=predicted, n=None)
    for name in ("accuracy/clean", "accuracy/fog/3", "accuracy/fog", "accuracy/all"):
        assert found[name].low < 1 == found[name].value, name


def test_only_images_with_a_right_output_are_looked_at(tmp_path: Path) -> None:
    data, model = loader(tmp_path), flat()
    labels = np.array([2, -1, 0, -1, 1])
    found = shifts(model, data, labels=labels, n=None, severities=(1,))
    assert found.tables["images"].index.tolist() == [0, 2, 4]
    assert found.tables["images"].columns["label"].tolist() == [2, 0, 1]
    every = shifts(model, data, n=None, severities=(1,))
    assert every.tables["images"].columns["label"].tolist() == data.index.targets.tolist()
    fewer = shifts(model, data, n=2, severities=(1,))
    assert len(fewer.tables["images"]) == 2


@pytest.mark.parametrize(("known", "of"), [(0, "none"), (1, "1")])
def test_too_few_labels_are_a_mistake_before_anything_is_computed(
    tmp_path: Path, known: int, of: str
) -> None:
    labels = np.full(N, -1)
    labels[:known] = 0
    cache = tiny.Kept()
    with pytest.raises(UserError, match=f"^shifts: .* is of {of}; take a split"):
        shifts(flat(), loader(tmp_path), labels=labels, cache=cache)
    assert not cache.computed


def test_without_the_library_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imagecorruptions", None)
    cache = tiny.Kept()
    with pytest.raises(UserError, match=r"^shifts: .*; pip install imagecorruptions-imaug$"):
        shifts(flat(), loader(tmp_path), cache=cache)
    assert not cache.computed


def test_small_pictures_have_casts_only(tmp_path: Path) -> None:
    found = shifts(flat(side=28), loader(tmp_path, side=28), n=None)
    assert found.left_out == (
        "corruptions: they are made for 32 px and more, and the model sees 28",
    )
    assert found.groups == {"colour": CASTS}
    assert "accuracy/corruptions" not in found.estimates
    assert found["accuracy/all"].value == found["accuracy/colour"].value
    assert found["accuracy/warm/3"].n == N


# --- the page ------------------------------------------------------------------------------------


def page_of(answers: Any) -> tuple[Any, str]:
    """The section of models' answers, and the page as a whole."""
    models = tuple(
        Evaluated(name, {"shifts": answer}, {}, lambda i, _: picture(i), {})
        for name, answer in answers.items()
    )
    of = Evaluation(models, (), {}, lambda i: f"a/{i}<b>.png", lambda i: "a")
    (question,) = questions(of)
    return section_of(question), render(of)


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Shifts:
    model = flat()
    model.classes = ("<i>ant", "<i>dog", "<i>cow")
    return shifts(model, loader(tmp_path_factory.mktemp("data")), n=None, severities=(1, 3))


@pytest.mark.usefixtures("undrawn")
def test_what_the_page_says(answer: Shifts) -> None:
    section, html = page_of({"m": answer})
    said = [text.replace("\u00a0", " ") for text in section.statements[0].sentences]
    value = answer["accuracy/corruptions"].value
    assert said[0].startswith("Over 15 kinds of corruption at severities 1 and 3, ")
    shown = float(said[0].split("severities 1 and 3, ")[1].split(" %")[0])
    assert shown == pytest.approx(100 * value, abs=6)
    assert "n = 5) of answers are right, against " in said[0]
    assert said[0].endswith(" unchanged.")
    assert said[1].startswith("Over 10 color casts that are none of the four changes, ")
    kinds = {kind: answer[f"accuracy/{kind}"].value for kind in KINDS}
    worst = min(kinds, key=lambda kind: kinds[kind])
    assert said[2].startswith(f"Worst is {case_words(worst)}")
    assert "Guessing would be right in 33.3" in section.reference
    words = {row[-1].text: row[0].text for table in section.tables for row in table.rows}
    assert set(words) == {measure.name for measure in answer.measures}
    assert words["accuracy/brightness/3"] == "added brightness, severity 3"  # not ±300 %
    assert words["accuracy/channel_swap"] == "swapped channels"
    assert words["ds_relative/colour"] == "color casts"
    assert len(section.charts[0].charts) == 2
    assert "<i>" not in html  # a class's name, in the lines under the pictures
    assert "&lt;i&gt;dog" in html


@pytest.mark.usefixtures("undrawn")
def test_the_worst_kind_and_its_worst_severity(answer: Shifts) -> None:
    columns = dict(answer.tables["images"].columns)
    for name in columns:
        if name.startswith("correct"):
            columns[name] = np.ones(N)
    columns |= {"correct/fog": np.full(N, 0.6), "correct/fog/1": np.ones(N)}
    columns["correct/fog/3"] = np.array([1.0, 0, 0, 0, 0])
    rows = Rows(answer.tables["images"].index, columns)
    section, _ = page_of({"m": replace(answer, tables={"images": rows})})
    said = section.statements[0].sentences[2].replace("\u00a0", " ")
    assert (
        said == "Worst is fog over its severities: 60.0 % (60.0 to 60.0 %), and 20 % at severity 3."
    )


@pytest.mark.usefixtures("undrawn")
def test_pictures_are_those_that_the_model_saw(
    answer: Shifts, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    kept = pictures.data_uri

    def data_uri(pixels: Any) -> str:
        shown.append(pixels)
        return kept(pixels)

    monkeypatch.setattr(pictures, "data_uri", data_uri)
    section, _ = page_of({"m": answer})
    (gallery,) = section.galleries
    assert [len(card.shots) for card in gallery.cards] == [4, 5, 5, 5, 11]
    first = shown[: 25 + 5]
    assert np.array_equal(first[0], picture(answer.image))
    fog = shift(picture(answer.image), "fog", 3, index=answer.image, seed=answer.seed)
    assert any(np.array_equal(fog, one) for one in first)
    lines = [card.lines[0] for card in gallery.cards]
    wrong = [prediction for prediction in answer.predictions if not prediction.right]
    for prediction in wrong:
        assert any(
            f"{case_words(prediction.kind)} ({prediction.predicted})" in line for line in lines
        )
    assert sum(line.count("(") for line in lines) == len(wrong)


@pytest.mark.usefixtures("undrawn")
def test_several_models_and_missing_parts(answer: Shifts) -> None:
    casts = replace(
        answer,
        groups={"colour": CASTS},
        measures=tuple(m for m in answer.measures if m.columns[0].startswith(("correct/warm",))),
        image=answer.image + 1,
    )
    section, html = page_of({"whole": answer, "part": casts})
    assert len(section.statements) == 2
    assert section.galleries[0].cards[0].lines[1] == "part: not asked about this picture"
    assert len(section.charts[1].charts) == 2
    assert "warm" in html
    first, _ = page_of({"part": replace(casts, measures=(), predictions=())})
    assert not first.galleries
    assert first.statements[0].sentences == ()
