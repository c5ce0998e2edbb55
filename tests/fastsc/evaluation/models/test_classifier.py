"""Any classifier: its representation, its name, and what is refused; and how it sees images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastsc.errors import UserError
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.views import Viewer, choose, one_kind
from fastsc.kernels import pair_view
from fastsc.loading.preprocessing import Preprocessing
from fastsc.pipelines import build
from tests.fastsc.evaluation import tiny

SEEN = Preprocessing(32, 32)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None, num_classes=5)


def test_the_representation_is_the_input_of_the_last_linear_layer() -> None:
    net, x = resnet(), torch.rand(3, 3, 32, 32)
    features, logits = Classifier(net, "net", SEEN)(x)
    with torch.no_grad():
        torch.testing.assert_close(net.fc(features), logits)
        torch.testing.assert_close(net(x), logits)
    assert features.shape == (3, 512)


def test_a_named_module_gives_the_representation_averaged_over_positions() -> None:
    net, x = resnet(), torch.rand(2, 3, 32, 32)
    maps: list[Tensor] = []
    net.layer2.register_forward_hook(lambda m, a, out: maps.append(out))
    model = Classifier(net, "net", SEEN, features="layer2")
    maps.clear()
    features, logits = model(x)
    torch.testing.assert_close(features, maps[0].mean((2, 3)))
    assert logits.shape == (2, 5)


def test_a_convolution_that_a_relu_and_a_mean_follow_is_a_classifier() -> None:
    net, x = torchvision.models.squeezenet1_1(weights=None, num_classes=5), torch.rand(2, 3, 32, 32)
    features, logits = Classifier(net, "squeezenet", SEEN)(x)
    named, same = Classifier(net, "squeezenet", SEEN, features="features")(x)
    assert (features.shape, logits.shape) == ((2, 512), (2, 5))
    torch.testing.assert_close(features, named)
    assert torch.equal(logits, same)


def test_eval_mode_and_no_gradients_for_the_weights() -> None:
    model = Classifier(resnet().train(), "net", SEEN)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Other(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.fc, self.shape = nn.Linear(3, 12), shape

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.mean((2, 3))).reshape(len(x), *self.shape)
        return out


@pytest.mark.parametrize("shape", [(12, 1), (3, 2, 2)])
def test_what_is_no_classifier_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="model odd is not a classifier: for one image it returns"):
        Classifier(Other(shape), "odd", SEEN)


def test_one_output_is_no_classifier() -> None:
    with pytest.raises(UserError, match=r"not a classifier.*\(1, 1\)"):
        tiny.flat(n_classes=1)


def test_weights_that_are_not_finite_are_named() -> None:
    net = resnet()
    with torch.no_grad():
        net.layer3[0].bn1.running_var[2] = float("nan")
    with pytest.raises(UserError, match=r"model net: its weights are not finite \(layer3.0.bn1.r"):
        Classifier(net, "net", SEEN)


def test_other_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match="5 outputs and 2 class names"):
        Classifier(resnet(), "net", SEEN, classes=("a", "b"))
    with pytest.raises(UserError, match="no such module; one as layer2"):
        Classifier(resnet(), "net", SEEN, features="layr2")
    with pytest.raises(UserError, match="does not run on images of 32 pixels"):
        Classifier(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), "net", SEEN)
    unused = resnet()
    unused.extra = nn.Linear(2, 2)
    with pytest.raises(UserError, match="--features extra: model net does not call it"):
        Classifier(unused, "net", SEEN, features="extra")(torch.rand(1, 3, 32, 32))


@pytest.mark.heavy
def test_the_hash_is_of_all_that_changes_an_answer() -> None:
    def name(net: nn.Module, seen: Preprocessing = SEEN, features: str | None = None) -> str:
        return Classifier(net, "any", seen, features=features).hash

    net, changed = resnet(), resnet()
    same = name(net)
    assert name(changed) == same
    with torch.no_grad():
        changed.layer1[0].bn1.running_mean[0] += 1e-3
    others = [
        name(changed),
        name(net, Preprocessing(32, 36)),
        name(net, Preprocessing(32, 32, interpolation="bicubic")),
        name(net, features="layer4"),
    ]
    assert len({same, *others}) == 5


def test_the_hash_is_of_the_function_and_not_of_its_weights_alone() -> None:
    class Tempered(nn.Sequential):
        temperature, power = 1.0, 1

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = super().forward(x**self.power) / self.temperature
            return logits

    def name(temperature: float, power: int) -> str:
        torch.manual_seed(0)
        net = Tempered(nn.Flatten(), nn.Linear(192, 3))
        net.temperature, net.power = temperature, power
        return tiny.classifier(net).hash

    assert name(1, 1) == name(1, 1)
    assert len({name(1, 1), name(2, 1), name(1, 2)}) == 3


# --- how it sees images --------------------------------------------------------------------------


def test_responses_are_those_of_the_loaders_own_views(image_folder: Path) -> None:
    loader = build("cpu", image_folder / "val", batch_size=5, resolution=32, train=False, workers=1)
    viewer = Viewer(Classifier(resnet(), "net", SEEN), loader)
    index, factors = loader.index.usable, loader.plan().factors
    for images, batch in zip(viewer.images(index, ""), loader, strict=True):
        rows = index[images.rows]
        assert rows.tolist() == batch.index.tolist()
        for view, changed in ((batch.clean, None), (batch.perturbed, factors[rows])):
            with torch.no_grad():
                features, logits = viewer.model(view)
            response = viewer.respond(images.pixels, changed)
            assert torch.equal(response.features, features)
            assert torch.equal(response.logits, logits)
            assert torch.equal(response.predicted, logits.argmax(1))
            assert torch.equal(response.confidence, logits.softmax(1).amax(1))


def test_pictures_are_the_pixels_that_the_model_sees(image_folder: Path) -> None:
    loader = build("cpu", image_folder / "val", batch_size=5, resolution=32, train=False, workers=1)
    viewer = Viewer(Classifier(resnet(), "net", SEEN), loader)
    (pixels,) = (images.pixels.clone() for images in viewer.images(np.array([7]), ""))
    assert np.array_equal(viewer.picture(7), pixels[0])
    factors = 1.3, 0.7, 1.2, 0.05
    changed = pair_view(pixels, torch.tensor([factors]), (0, 0, 0), (1, 1, 1))[1][0]
    expected = (255 * changed.permute(1, 2, 0)).round().byte()
    assert np.array_equal(viewer.picture(7, factors), expected)


def test_a_choice_of_images_is_keyed_and_nested(image_folder: Path) -> None:
    loader = build(
        "cpu", image_folder / "train", batch_size=8, resolution=32, train=False, workers=1
    )
    few, more = choose(loader, 5, 0), choose(loader, 20, 0)
    assert set(few) < set(more)
    assert sorted(few) == few.tolist()
    assert choose(loader, None, 0).tolist() == loader.index.usable.tolist()
    assert choose(loader, 5, 1).tolist() != few.tolist()
    among = np.array([3, 9, 30])
    assert choose(loader, 9, 0, among).tolist() == [3, 9, 30]


def test_one_kind_leaves_the_others_alone() -> None:
    assert one_kind("saturation", 0.5, 2).tolist() == [[1, 1, 0.5, 0]] * 2
    assert one_kind("hue", np.array([0.25, -0.5], np.float32), 2)[:, 3].tolist() == [0.25, -0.5]


class Restless(nn.Module):
    """Dropout that evaluation mode does not switch off, of its features or of its logits."""

    def __init__(self, before: float, behind: float) -> None:
        super().__init__()
        self.before, self.behind = before, behind
        self.conv = nn.Conv2d(3, 64, 8, stride=8)
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.conv(x).mean((2, 3)), self.before, training=True)
        return nn.functional.dropout(self.fc(x), self.behind, training=True)


def test_a_model_whose_answers_differ_from_call_to_call_is_refused() -> None:
    torch.manual_seed(0)
    for before, behind, what in ((0.5, 0.0, "features"), (0.0, 0.5, "logits")):
        with pytest.raises(UserError, match=f"each time .* its {what} differ by [0-9.]+ of"):
            Classifier(Restless(before, behind), "restless", SEEN)
    Classifier(Restless(0.0, 0.0), "calm", SEEN)


class Single(nn.Module):
    """For one image at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.view(1, 3 * 32 * 32))
        return out


def test_a_model_for_one_image_at_a_time_is_refused() -> None:
    with pytest.raises(UserError, match="does not take 2 images at once: shape"):
        Classifier(Single(), "single", SEEN)
