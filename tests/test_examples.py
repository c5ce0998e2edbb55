"""The examples run as they stand, and compute what they say."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from fastsc import ContinuityLoss
from fastsc.kernels import ds

pytestmark = pytest.mark.heavy

EXAMPLES = Path(__file__).parent.parent / "examples"
CLASSES, EACH, SIDE = 3, 12, 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of 16 images and a remainder."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label in range(CLASSES):
        (folder := root / f"class{label}").mkdir()
        for i in range(EACH):
            pixels = rng.integers(0, 256, (SIDE, SIDE + i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_of_them_are_tested() -> None:
    assert sorted(p.stem for p in EXAMPLES.glob("*.py")) == [
        "lightning_module",
        "plain_pytorch",
        "repair",
        "timm_task",
    ]


def test_plain_pytorch(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Repeatable from torch's seed alone: the loader is keyed."""
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(load("plain_pytorch").main(str(photos), epochs=2, resolution=32))
    assert len(runs[0]) == 2 * (CLASSES * EACH // 16)
    assert runs[0] == runs[1]
    assert all(math.isfinite(loss) for loss in runs[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"loss {runs[0][0]:.3f}  ds 0.")


def test_repair(photos: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=CLASSES).eval()
    assert 0 < load("repair").main(str(photos), model, resolution=32) < math.inf


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightning_module(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    module = load("lightning_module")
    torch.manual_seed(0)
    assert math.isfinite(module.main(str(photos), epochs=1, resolution=32))
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    model = module.Continuous(CLASSES)
    model.log_dict = lambda *args, **kwargs: None
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    model.training_step((images, torch.tensor([0, 1, 2, 0])), 0).backward()
    assert model.head.weight.grad is not None
    assert model.backbone.conv1.weight.grad is not None
    assert model.backbone.conv1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224"])
def test_timm_task(photos: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DS is that of the features in front of the classifier, for any architecture."""
    module = load("timm_task")
    created: list[dict[str, object]] = []
    create = module.timm.data.create_dataset
    monkeypatch.setattr(
        module.timm.data, "create_dataset", lambda *a, **kw: created.append(kw) or create(*a, **kw)
    )
    torch.manual_seed(0)
    size = 32 if model == "resnet18" else 224
    if model == "resnet18":
        assert math.isfinite(module.main(str(photos), resolution=size, model=model))
        assert len(created) == 1
    net = module.timm.create_model(model, num_classes=CLASSES).eval()
    made = [str(kw.get("transform")) for kw in created]
    assert all("RandomResizedCrop" in text and "Jitter" not in text for text in made)
    task = module.ContinuityTask(net, alpha=2.0)
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    target = torch.tensor([0, 1, 2])
    torch.manual_seed(5)
    result = task(images, target)
    torch.manual_seed(5)
    clean, perturbed = task.jitter.pair(images)
    f, g = (net.forward_head(net.forward_features(x), pre_logits=True) for x in (clean, perturbed))
    torch.testing.assert_close(result["ds"], ds(f, g, "cosine").detach(), rtol=1e-4, atol=1e-7)
    loss_of = ContinuityLoss(2.0, "cosine", ce_views="both")
    expected = loss_of(net(clean), net(perturbed), target, f, g)
    torch.testing.assert_close(result["loss"], expected.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result["output"], net(clean), rtol=1e-4, atol=1e-4)
