"""Class folders to a model's outputs: by name, by WordNet, by order, by a file; or why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from fastsc.errors import UserError
from fastsc.evaluation.data import Split
from fastsc.evaluation.models.classifier import Classifier
from fastsc.evaluation.models.labels import map_labels, map_pairs
from fastsc.evaluation.models.sources import Source
from fastsc.loading.libraries import imagenet_names, imagenet_synsets
from fastsc.loading.preprocessing import Preprocessing
from fastsc.pipelines import Index


def split(*folders: str, labelled: bool = True, left_out: dict[int, str] | None = None) -> Split:
    """Two images a folder."""
    folders = tuple(sorted(folders))
    n = 2 * len(folders)
    side = np.full(n, 8, np.int32)
    paths = tuple(f"{folder}/{i}.jpg" for folder in folders for i in range(2))
    targets = np.repeat(np.arange(len(folders)), 2)
    index = Index(
        Path("photos"), folders, paths, targets, side, side, side.astype(np.int64), left_out or {}
    )
    return Split(index, labelled)


def source(n: int, *classes: str, imagenet: bool = False) -> Source:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, n))
    model = Classifier(net, "net", Preprocessing(4, 4), classes=classes or None)
    if imagenet:
        model.classes = imagenet_names()
    return Source(classifier=model, synsets=imagenet_synsets() if imagenet else None)


def mapped(data: Split, model: Source, **options: Any) -> dict[str, int]:
    """Folder -> output, which is the same for both of its images."""
    targets = map_labels(data, model, **options).targets.reshape(-1, 2)
    assert (targets[:, 0] == targets[:, 1]).all()
    assert targets.dtype == np.int64
    return dict(zip(data.index.classes, targets[:, 0].tolist(), strict=True))


def test_wordnet_names_by_the_order_of_the_synsets() -> None:
    data = split("n01440764", "n02099601", "n15075141")
    for model in (source(1000, imagenet=True), Source(
        classifier=source(1000).classifier, synsets=imagenet_synsets()
    )):  # fmt: skip
        assert mapped(data, model) == {"n01440764": 0, "n02099601": 207, "n15075141": 999}
        found = map_labels(data, model)
        assert (found.reason, found.how) == (None, "names")


def test_a_models_own_wordnet_names_win_over_imagenets_order() -> None:
    """A run on some of ImageNet's classes has its own order."""
    model = source(2, "n15075141", "n01440764")
    assert mapped(split("n01440764", "n15075141"), model) == {"n01440764": 1, "n15075141": 0}


def test_names_of_imagenets_classes() -> None:
    data = split("tench", "Golden_Retriever", "great white shark", "tinca tinca", "toilet paper")
    assert mapped(data, source(1000, imagenet=True)) == {
        "Golden_Retriever": 207,
        "great white shark": 2,
        "tench": 0,
        "tinca tinca": 0,
        "toilet paper": 999,
    }


def test_names_exactly_and_without_case_spaces_and_underscores() -> None:
    model = source(4, "Red Apple", "boat", "BOAT", "big_cloud, cumulus")
    data = split("red_apple", "boat", "BOAT", "Boat", "Big Cloud", "cumulus")
    assert mapped(data, model) == {
        "red_apple": 0,
        "boat": 1,
        "BOAT": 2,
        "Boat": -1,  # two classes are called so
        "Big Cloud": 3,
        "cumulus": 3,
    }


def test_folders_without_a_class_are_counted_without_images_that_are_left_out() -> None:
    model = source(3, "apple", "boat", "cloud")
    found = map_labels(split("apple", "boat", "zebra", left_out={5: "broken"}), model)
    assert found.targets.tolist() == [0, 0, 1, 1, -1, -1]
    assert found.reason is not None
    assert found.reason.startswith("1 of 5 images have no label, since their class folders (zebra)")
    assert "--class-map FILE" in found.reason


def test_by_order_where_the_model_has_no_names() -> None:
    data = split("zebra", "apple", "boat")
    assert mapped(data, source(3)) == {"apple": 0, "boat": 1, "zebra": 2}
    found = map_labels(data, source(3))
    assert (found.reason, found.how) == (None, "order")


def test_by_order_though_a_few_folders_are_called_as_imagenets_classes() -> None:
    model = Source(classifier=source(1000).classifier, synsets=imagenet_synsets())
    folders = ("desk", "lemon", *(f"product-{i:03}" for i in range(998)))
    found = map_labels(split(*folders), model)
    assert (found.targets[::2] == np.arange(1000)).all()
    assert (found.reason, found.how) == (None, "order")
    assert map_pairs(split("product-007", "tench"), model, found).targets.tolist() == [9, 9, -1, -1]
    assert map_labels(split(*folders[:900], *imagenet_synsets()[:100]), model).how == "names"
    assert mapped(split("desk", "lemon", "yak"), model) == {"desk": 526, "lemon": 951, "yak": -1}


def test_pairs_have_the_datas_outputs_and_none_without_a_label(tmp_path: Path) -> None:
    data, model = split("apple", "boat", "cloud"), source(3)
    pairs = split("", "cloud", "boat")  # as many as the model has outputs
    found = map_pairs(pairs, model, map_labels(data, model))
    assert dict(zip(pairs.index.paths[::2], found.targets[::2].tolist(), strict=True)) == {
        "/0.jpg": -1, "boat/0.jpg": 1, "cloud/0.jpg": 2,
    }  # fmt: skip
    assert found.reason is None

    (tmp_path / "map.yaml").write_text("apple: 2\nboat: 1\ncloud: 0\nyak: 1\n")
    labels = map_labels(data, model, tmp_path / "map.yaml", ["boat", "yak", "zebra"])
    found = map_pairs(split("boat", "yak", "zebra"), model, labels)
    assert found.targets.tolist() == [1, 1, 1, 1, -1, -1]
    assert found.reason is not None
    assert "labelled zebra: the label is neither a class folder of the data" in found.reason

    (tmp_path / "map.yaml").write_text("yak: 0\n")
    named, bare = source(2, "apple", "yak"), split("photos", labelled=False)
    labels = map_labels(bare, named, tmp_path / "map.yaml", ["apple", "yak"])
    assert map_pairs(split("apple", "yak"), named, labels).targets.tolist() == [0, 0, 0, 0]


def test_never_by_order_where_the_model_has_other_names() -> None:
    found = map_labels(split("zebra", "yak"), source(2, "apple", "boat"))
    assert (found.targets == -1).all()
    assert found.reason == (
        "none of the data's 2 class folders (yak, zebra) is called as one of the model's 2 classes "
        "(apple, boat): --class-map FILE"
    )


def test_a_count_that_does_not_fit() -> None:
    found = map_labels(split("a", "b", "c", "d", "e"), source(10))
    assert (found.targets == -1).all()
    assert found.how == "nothing"
    assert found.reason == (
        "the data has 5 classes and the model 10 outputs, whose names are not known: "
        "--class-map FILE"
    )


def test_unlabelled_images() -> None:
    found = map_labels(split("photos", labelled=False), source(1000, imagenet=True))
    assert found.targets.tolist() == [-1, -1]
    assert found.reason is not None
    assert "no labels" in found.reason


def test_one_class_for_a_model_without_names_is_no_order() -> None:
    assert (map_labels(split("photos"), source(2)).targets == -1).all()


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_map_wins_over_names(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"map.{suffix}"
    content = {"apple": 2, "yak": "boat", "7": "1"}
    text = json.dumps(content) if suffix == "json" else "apple: 2\nyak: boat\n7: '1'\n"
    path.write_text(text)
    model, data = source(3, "apple", "boat", "cloud"), split("apple", "boat", "yak", "7")
    assert mapped(data, model, class_map=path) == {"apple": 2, "boat": 1, "yak": 1, "7": 1}
    found = map_labels(data, model, path)
    assert (found.reason, found.how) == (None, "map")


def test_numbers_with_and_without_leading_zeros() -> None:
    assert mapped(split("1", "02", "010"), source(3, "01", "02", "10")) == {
        "1": 0, "02": 1, "010": 2,
    }  # fmt: skip


def test_folders_that_yaml_would_take_for_other_values(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("yes: 1\nno: yes\n001: 3\n010: 010\n2020-01-01: 0\n1.0: no\n~: 4\n")
    folders = ("yes", "no", "001", "010", "2020-01-01", "1.0", "~")
    model = source(11, "no", "b", "c", "d", "e", "yes", "g", "h", "i", "j", "k")
    assert mapped(split(*folders), model, class_map=path) == {
        "yes": 1, "no": 5, "001": 3, "010": 10, "2020-01-01": 0, "1.0": 0, "~": 4,
    }  # fmt: skip


def test_a_map_of_some_folders_is_never_filled_up_by_order(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"b": 0}')
    found = map_labels(split("a", "b"), source(2), tmp_path / "map.json")
    assert found.targets.tolist() == [-1, -1, 0, 0]
    assert found.reason is not None
    assert "2 of 4 images" in found.reason


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("m.json", '{"appel": 0}', r"no class folder 'appel'; did you mean apple\?"),
        ("m.json", '{"apple": 3}', "apple: the model has outputs 0 to 2, and no 3"),
        ("m.json", '{"apple": -1}', "outputs 0 to 2, and no -1"),
        ("m.json", '{"apple": "17"}', "outputs 0 to 2, and no 17"),
        ("m.json", '{"apple": 1.5}', "no 1.5"),
        ("m.json", '{"apple": true}', "no True"),
        ("m.json", '{"apple": [1]}', r"no \[1\]"),
        ("m.yaml", "apple: bota", r"no one class 'bota'; did you mean boat\?"),
        ("m.json", "{", "not JSON"),
        ("m.yaml", "apple: [", "not YAML"),
        ("m.yaml", "apple: 0\n'apple': 1", "'apple' is given twice"),
        ("m.yaml", "1: 0\n'1': 1", "'1' is given twice"),
        ("m.yaml", "- apple", "line by line, as apple: 3"),
        ("m.yaml", "", "line by line"),
        ("m.yaml", "apple: caf\udce9", "not a text file"),
    ],
)
def test_maps_that_say_nothing(name: str, text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=line) as caught:
        map_labels(split("apple", "boat"), source(3, "apple", "boat", "cloud"), path)
    assert "\n" not in str(caught.value)


def test_a_map_that_is_not_there_or_not_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        map_labels(split("apple"), source(3), tmp_path / "absent.json")
    with pytest.raises(UserError, match="has no class folders to map"):
        map_labels(split("photos", labelled=False), source(3), tmp_path / "absent.json")


def test_whole_names_with_commas_and_numbers() -> None:
    data = split("tench, Tinca tinca", "great white shark, white shark, man-eater")
    assert list(mapped(data, source(1000, imagenet=True)).values()) == [2, 0]
    assert mapped(split("1", "0"), source(2, "apple", "boat")) == {"0": 0, "1": 1}
