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
from tests.fastsc.exporting.conftest import CLASSES, MEAN, STD, Run

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
        ("timm:test_convnext", 64),
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


def results(path: Path, *models: str) -> dict[str, Any]:
    """A results.json as fastsc.evaluate writes it, with one question; returns it."""
    rows = [
        {"model": model, "question": "continuity", "name": name, "value": value,
         "low": value / 2, "high": value * 1.5, "n": 1234, "seed": 0}
        for i, model in enumerate(models)
        for name, value in (("top1", 0.625 + i / 100), ("ds_relative", 0.1406 + i / 100))
    ]  # fmt: skip
    document = {
        "metadata": {"data": "/somewhere/photos", "split": "val", "date": "2026-11-01"},
        "results": rows,
    }
    path.write_text(json.dumps(document))
    return document


def test_the_card_has_the_figures_of_results_json(make_run: Run, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    document = results(tmp_path / "results.json", "without", "with")
    run = make_run()
    target = exported(run, "--results", str(tmp_path / "results.json"), "--results-model", "with")
    card = hub.ModelCard.load(target / "README.md")
    wanted = {row["name"]: row["value"] for row in document["results"] if row["model"] == "with"}
    shown = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert shown == {"accuracy": wanted["top1"], "ds_relative": wanted["ds_relative"]}
    assert {result.dataset_name for result in card.data.eval_results} == {"photos"}
    assert card.data.library_name == "timm"
    for name, value in wanted.items():
        assert f"| {value:.4g} |" in card.text, name
    assert "/somewhere" not in card.text


def test_a_card_without_figures(make_run: Run) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(exported(make_run()) / "README.md")
    assert card.data.eval_results is None
    assert "Measured" not in card.text


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
