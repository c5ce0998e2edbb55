"""Folders for timm and the hub: equal logits by timm's own loader, and a card with the figures."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.evaluation.models.sources import load_classifier
from fastsc.export import main
from fastsc.recipe import configure, dump
from tests.fastsc.exporting.conftest import CLASSES, MEAN, STD, Run

pytestmark = pytest.mark.heavy

timm = pytest.importorskip("timm")


def exported(run: Path, *words: str) -> Path:
    target = run.parent / "hub"
    assert main([str(run), "--to", str(target), *words]) == 0
    return target


def logits(run: Path, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the exported folder by timm, and of the run by the evaluation's loader."""
    loaded = timm.create_model(f"local-dir:{run.parent / 'hub'}", pretrained=True).eval()
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return loaded(images), load_classifier(str(run))(images)[1]


@pytest.mark.parametrize(
    ("architecture", "side"),
    [
        ("timm:test_resnet", 64),
        ("timm:test_efficientnet", 64),
        pytest.param("timm:test_convnext", 64, marks=pytest.mark.slow),
        ("timm:test_vit", 96),  # another resolution than its own 160
        ("resnet18", 40),
        pytest.param("resnet50", 64, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", 64, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 64, marks=pytest.mark.slow),
        pytest.param("vit_b_32", 64, marks=pytest.mark.slow),
        pytest.param("densenet121", 64, marks=pytest.mark.slow),
        pytest.param("timm:resnet50", 64, marks=pytest.mark.slow),
        pytest.param("timm:efficientnet_b0", 64, marks=pytest.mark.slow),
        pytest.param("timm:convnext_atto", 64, marks=pytest.mark.slow),
        pytest.param("timm:vit_tiny_patch16_224", 96, marks=pytest.mark.slow),
    ],
)
def test_timm_computes_the_same_logits(make_run: Run, architecture: str, side: int) -> None:
    run = make_run(architecture, side)
    exported(run)
    theirs, ours = logits(run, side)
    if architecture.startswith("timm:"):
        assert torch.equal(theirs, ours)
    else:  # another implementation of the network
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_the_folder_says_how_images_are_made(make_run: Run) -> None:
    target = exported(make_run())
    model = timm.create_model(f"local-dir:{target}", pretrained=True)
    data = timm.data.resolve_model_data_config(model)
    assert tuple(data["input_size"]) == (3, 64, 64)
    assert tuple(data["mean"]) == MEAN
    assert tuple(data["std"]) == STD
    assert data["crop_pct"] == pytest.approx(0.8)
    assert data["interpolation"] == "bilinear"
    config = json.loads((target / "config.json").read_text())
    assert config["num_classes"] == len(CLASSES)
    assert config["label_names"][:2] == ["ant", "bee"]


def results(path: Path, evaluated: list[str], *names: str) -> dict[str, Any]:
    """A results.json as fastsc.evaluate writes it, with one question; returns it."""
    figures = {"top1": 0.625, "top1_perturbed": 0.5, "ds_relative": 0.1406, "flips": None}
    rows = [
        {"model": name, "question": "continuity", "name": figure,
         "value": value and value + i / 100, "low": value and value / 2,
         "high": value and value * 1.5, "n": 1234, "seed": 0}
        for i, name in enumerate(names)
        for figure, value in figures.items()
    ]  # fmt: skip
    metadata = {"data": "/somewhere/photos", "split": "val", "date": "2026-11-01"}
    document = {"metadata": {**metadata, "models": evaluated}, "results": rows}
    path.write_text(json.dumps(document))
    return document


def test_the_card_has_the_figures_of_results_json(make_run: Run, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    run, file = make_run(), tmp_path / "results.json"
    document = results(file, ["elsewhere", str(run)], "without", "with")
    target = exported(run, "--results", str(file), "--results-model", "with")
    card = hub.ModelCard.load(target / "README.md")
    rows = {row["name"]: row for row in document["results"] if row["model"] == "with"}
    shown = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert shown == {
        "top-1": rows["top1"]["value"],
        "top-1, perturbed views": rows["top1_perturbed"]["value"],
        "ds_relative": rows["ds_relative"]["value"],
    }
    assert {result.dataset_name for result in card.data.eval_results} == {"photos"}
    assert card.data.library_name == "timm"
    for row in rows.values():
        value, low, high = (row[key] for key in ("value", "low", "high"))
        line = (
            "| – | – | 1,234 |"
            if value is None
            else (f"| {value:.4g} | {low:.4g} to {high:.4g} | 1,234 |")
        )
        assert line in card.text
    assert "/somewhere" not in card.text


def test_figures_of_another_network_are_refused_unless_it_is_named(
    make_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = make_run(), tmp_path / "results.json"
    words = [str(run), "--to", str(tmp_path / "hub"), "--results", str(file)]
    results(file, ["torchvision:resnet152"], "resnet152")
    assert main(words) == 2
    assert "is of torchvision:resnet152, not of" in capsys.readouterr().err
    assert not (tmp_path / "hub").exists()
    assert main([*words, "--results-model", "resnet152"]) == 0
    results(file, [str(run / "weights.safetensors")], "run")
    assert main([*words[:2], str(tmp_path / "hub2"), *words[3:]]) == 0


@pytest.mark.parametrize("plain", [False, True])
def test_the_card_says_how_it_was_trained(make_run: Run, plain: bool) -> None:
    run = make_run()
    (run / "config.yaml").write_text(dump(configure("cifar100", plain=plain, data="x")))
    text = (exported(run) / "README.md").read_text()
    assert ("with cross-entropy alone" in text) == plain
    assert ("semantic-continuity" in text) != plain
    assert "Exported by fastsc" in text


def test_a_card_without_figures(make_run: Run) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(exported(make_run()) / "README.md")
    assert card.data.eval_results is None
    assert "Measured" not in card.text


@pytest.mark.slow  # each of these exports is made above, and in test_program
def test_the_documentations_commands(
    make_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "export.md").read_text()
    commands = re.findall(r"^python -m fastsc.export (.*)$", page, re.M)
    assert len(commands) == 3
    run = make_run()
    monkeypatch.chdir(tmp_path)
    for command in commands:
        if ".onnx" in command and importlib.util.find_spec("onnxscript") is None:
            continue
        assert main(command.replace("RUN", str(run)).split()) == 0
    (code,) = re.findall(r"^```py\n(.*?)^```", page, re.M | re.S)
    exec(compile(code, "export.md", "exec"), {})
