"""The command line and recipes: what is understood, what is refused, in which words."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastsc.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from fastsc.config.checks import check
from fastsc.config.options import parse
from fastsc.config.recipes import configure, dump, recipe_names
from fastsc.errors import UserError


def test_a_recipe_gives_its_values_and_the_command_line_wins() -> None:
    config = parse(["cifar100", "--data", "d"])
    assert (config.recipe, config.data.data) == ("cifar100", "d")
    assert (config.data.pipeline, config.data.resolution, config.data.crop) == (
        "memory",
        32,
        "reflect",
    )
    assert (config.model.model, config.model.stem) == ("fastsc:resnet8w32", "cifar")
    assert config.data.flip

    words = "--no-flip --strengths 0 .1 .2 .3 --alpha=0 cifar100 --max_steps 7 --data d --crop none"
    config = parse(words.split())
    assert not config.data.flip
    assert config.data.crop == "none"
    assert config.data.strengths == (0.0, 0.1, 0.2, 0.3)
    assert config.method.alpha == 0.0
    assert config.optim.max_steps == 7
    assert config.model.stem == "cifar", "what the command line does not name stays the recipe's"


def test_the_default_alpha_is_that_of_the_kind(tmp_path: Path) -> None:
    def alpha(words: str) -> float:
        return parse([*words.split(), "--data", "d"]).method.alpha

    assert alpha("cifar100") == alpha("cifar100 --ds relative") == 30
    assert alpha("cifar100 --ds sq") == configure("cifar100", data="d", ds="sq").method.alpha == 16
    assert alpha("cifar100 --ds sq --alpha 30") == alpha("cifar100 --alpha=30 --ds sq") == 30
    assert configure("cifar100", data="d", ds="sq", alpha=30).method.alpha == 30
    assert alpha("cifar100 --ds sq --plain") == 0
    (tmp_path / "sq.yaml").write_text("base: cifar100\nds: sq\n")
    assert alpha(f"{tmp_path}/sq.yaml") == 16
    assert alpha(f"{tmp_path}/sq.yaml --ds cosine") == 30
    (tmp_path / "named.yaml").write_text("base: cifar100\nalpha: 30\n")
    assert alpha(f"{tmp_path}/named.yaml --ds sq") == 30
    assert configure(tmp_path / "named.yaml", data="d", ds="sq").method.alpha == 30
    whole = tmp_path / "config.yaml"
    whole.write_text(dump(configure("cifar100", data="d", ds="sq", alpha=30)))
    assert alpha(f"{whole} --epochs 2") == 30


def test_the_defaults_of_the_specification() -> None:
    flat = parse(["imagenet", "--data", "d"]).flat()
    wanted = {
        "strengths": (0.4, 0.4, 0.4, 0.1),
        "on_bad_image": "raise",
        "seed": 0,
        "verify": False,
        "crop": "rrc",
        "flip": True,
        "ds_at": "features",
        "checkpoint_minutes": 5.0,
        "resume": False,
        "num_classes": None,
        "out": None,
    }
    assert {key: flat[key] for key in wanted} == wanted
    assert flat["log_every"] >= 1


def test_field_names_are_unique_over_the_sections() -> None:
    sections = (DataConfig, MethodConfig, ModelConfig, OptimConfig, RunConfig)
    names = [f.name for section in sections for f in dataclasses.fields(section)]
    assert len(names) == len(set(names))
    assert set(TrainConfig().flat()) == {"recipe", *names}


def test_every_field_is_an_option_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["cifar100", "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for name in TrainConfig().flat():
        assert name == "recipe" or f"--{name.replace('_', '-')}" in text
    assert "(default: memory)" in " ".join(text.replace("│", " ").split()), "the recipe's value"


def test_help_without_a_recipe_says_whose_defaults_it_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert not stop.value.code
    assert "recipe imagenet" in " ".join(capsys.readouterr().out.split())


def test_list_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--list-recipes"])
    assert not stop.value.code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24, "a screen"
    assert max(map(len, lines)) <= 80
    listed = []
    for line in lines[:-1]:
        label, about = re.split(" {2,}", line)
        assert len(about.split()) > 4
        first, *others = label.split(", ")
        listed += [first, *(f"{first.partition('-')[0]}{other}" for other in others)]
    assert listed == recipe_names()
    assert {"imagenet", "cifar100", "rn18-16", "rn50-88"} <= set(listed)
    assert lines[-1].startswith("--plain ")


def test_plain_is_cross_entropy_on_clean_views_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to learn"):
        parse(["repair", "--plain", "--data", "d", "--init", "x"])
    for name in recipe_names():
        if name == "repair":
            continue
        usual = configure(name, data="d").flat()
        plain = configure(name, plain=True, data="d")
        assert plain.method.plain
        changed = {key for key, value in plain.flat().items() if usual[key] != value}
        assert changed <= {"recipe", "alpha", "ce_views", "alpha_warmup_epochs", "ds_target"}
        # The name that there was for it stays, in a log and on a command line.
        assert plain.recipe == f"{name}-plain"
        assert plain == configure(f"{name}-plain", data="d")
        check(plain)
    plain = configure("rn18-16", plain=True, data="d")
    assert parse(["--plain", "rn18-16", "--data", "d"]) == plain
    assert parse(["rn18-16-plain", "--data", "d"]) == plain

    path = tmp_path / "mine.yaml"
    path.write_text("base: rn18-16\nds_target: 0.2\nalpha: 3\n")
    plain = parse([str(path), "--plain", "--data", "d", "--lr", "2"])
    assert plain == parse(["rn18-16", "--plain", "--data", "d", "--lr", "2"]).replace(
        recipe="mine-plain"
    )
    assert parse(["imagenet", "--plain", "--data", "d", "--alpha", "3"]).method.alpha == 3
    path.write_text("base: rn18-16-plain\nlr: 2\n")
    assert parse([str(path), "--data", "d"]) == plain.replace(recipe="mine")
    (tmp_path / "config.yaml").write_text(dump(plain))
    assert parse([str(tmp_path / "config.yaml"), "--plain"]) == plain


OTHER = (
    "cifar100 --data d/e --out=-odd --no-flip --verify --lr 5e-5 --num-classes 7 --workers 3 "
    "--strengths 1e-9 2 3 .5 --ds relative --detach-scale --device cuda:1 --val none --seed 12"
)


@pytest.mark.parametrize("words", ["imagenet --data d", OTHER])
def test_a_dumped_configuration_reads_back_equal(tmp_path: Path, words: str) -> None:
    config = parse(words.split())
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    assert parse([str(path)]) == config
    # Another reader of YAML sees the same values: no 5e-05 that it takes for a word.
    plain = yaml.safe_load(path.read_text())
    assert plain == {k: list(v) if isinstance(v, tuple) else v for k, v in config.flat().items()}


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# Mine\nbatch-size: 8\nlr: 1e-3\nmax_steps: null\nstrengths: [0, 0, 0, 0]\n")
    config = parse([str(path), "--data", "d"])
    assert config.recipe == "mine"
    assert (config.optim.batch_size, config.optim.lr, config.optim.max_steps) == (8, 1e-3, None)
    assert config.data.strengths == (0, 0, 0, 0)
    path.write_text("")
    assert parse([str(path), "--data", "d"]).optim == OptimConfig()


MISTAKES = {
    "--alhpa 3": "unrecognized option --alhpa; did you mean --alpha?",
    "--resolution 7.5": "--resolution takes a whole number, not '7.5'",
    "--max-steps 7.5": "--max-steps takes a whole number, not '7.5'",
    "--resolution 2": "--resolution must be at least 8",
    "--batch-size 0": "--batch-size must be at least 1, not 0",
    "--batch-size": "--batch-size needs a value",
    "--alpha nan": "--alpha must be a finite number, not nan",
    "--alpha inf": "--alpha must be a finite number",
    "--alpha -1": "--alpha must be at least 0",
    "--alpha x": "--alpha takes a number, not 'x'",
    "--lr 0": "--lr must be above 0",
    "--epochs 0": "--epochs must be at least 1",
    "--crop foo": "--crop has no choice 'foo'",
    "--pipeline tfdata": "--pipeline has no choice 'tfdata'",
    "--strengths 1 2 3": "--strengths needs 4 values",
    "--strengths 1 2 3 x": "--strengths takes numbers",
    "--resolution-ramp 1 x": "--resolution-ramp takes whole numbers, not '1', 'x'",
    "--strengths .4 .4 .4 .6": "hue must be at most 0.5",
    "--strengths .4 -.4 .4 .1": "contrast must be at least 0",
    "--strengths .4 .4 nan .1": "saturation must be a finite number",
    "--label-smoothing 1": "--label-smoothing must be below 1",
    "--momentum 1": "--momentum must be below 1",
    "--val-crop 0": "--val-crop must be above 0",
    "--val-crop 1.5": "--val-crop must be at most 1",
    "--checkpoint-minutes 0": "--checkpoint-minutes must be above 0",
    "--log-every 0": "--log-every must be at least 1",
    "--ds js": "--ds js belongs to --ds-at logits",
    "--detach-scale": "--ds relative",
    "--ds relative --batch-size 1": "--batch-size must be at least 2",
    "--ds sq --batch-size 4 --accumulate 4": "--ds sq measures between images",
    "--momentum 0": "--no-nesterov",
    "--device tpu": "--device must be",
    "--num-classes 1": "--num-classes must be at least 2",
    "--flip yes": "unrecognized argument yes",
    "--plane": "unrecognized option --plane; did you mean --plain?",
    "--plain=3": "unrecognized",
    "stray": "unrecognized argument stray",
    "--model=": "--model is empty",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_a_mistake_is_one_line(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as mistake:
        parse(["imagenet", "--data", "d", *given.split()])
    message = str(mistake.value)
    assert MISTAKES[given] in message
    assert "\n" not in message
    assert not set(message) & set("│╭─╰")
    out, err = capsys.readouterr()
    assert (out, err) == ("", ""), "nothing is printed: the command prints the one line"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "recipe is missing"),
        (["--data", "d"], "recipe is missing"),
        (["imagenet"], "--data is missing"),
        (["imagnet", "--data", "d"], "did you mean imagenet?"),
        (["nowhere/x.yaml", "--data", "d"], "cannot be read: No such file"),
        (["x.yaml", "--data", "d"], "cannot be read: No such file"),
    ],
)
def test_missing_things(argv: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        parse(argv)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize: 3", "unknown key 'batchsize'; did you mean batch_size?"),
        ("batch_size: 3\nbatch-size: 4", "given twice"),
        ("batch_size: 7.5", "--batch-size takes a whole number"),
        ("batch_size: true", "batch_size cannot be True"),
        ("val: no", "put a word like no into quotes"),
        ("batch_size: null", "batch_size has no value"),
        ("batch_size:", "batch_size has no value"),
        ("flip: 3", "flip must be true or false"),
        ("strengths: .4", "strengths cannot be 0.4"),
        ("strengths: [.4, .4]", "--strengths needs 4 values"),
        ("strengths: [.4, .4, .4, .1, .1]", "--strengths needs 4 values"),
        ("strengths: [.4, .4, .4, x]", "--strengths takes a number, not 'x'"),
        ("lr: [1, 2]", "lr cannot be"),
        ("lr: {a: 1}", "lr cannot be"),
        ("crop: big", "--crop has no choice 'big'"),
        ("- 3", "must hold lines"),
        ("just words", "must hold lines"),
        ("a: [1", "is not YAML"),
        ("\tx: 1", "is not YAML"),
    ],
)
def test_a_bad_recipe_names_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as mistake:
        parse([str(path), "--data", "d"])
    message = str(mistake.value)
    assert str(path) in message
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "given",
    ["--crop foo", "--resolution 7.5", "stray", "--strengths 1 x 3 4", "--lr", "--max-steps x"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_messages_do_not_depend_on_the_terminal(
    given: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["imagenet", "--data", "d", *given.split()]
    with pytest.raises(UserError) as plain:
        parse(argv)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(UserError) as other:
        parse(argv)
    assert str(other.value) == str(plain.value)


def test_unreadable_recipes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not a text file"):
        parse([str(tmp_path / "config.yaml"), "--data", "d"])
    with pytest.raises(UserError, match="is a folder"):
        parse([str(tmp_path), "--data", "d"])


def test_replace_by_flat_names() -> None:
    config = TrainConfig().replace(lr=1.0, out="x", recipe="r")
    assert (config.optim.lr, config.run.out, config.recipe) == (1.0, "x", "r")
    assert TrainConfig().optim.lr != 1.0
    with pytest.raises(TypeError, match="lrr"):
        TrainConfig().replace(lrr=1.0)


def test_configure_is_the_command_line_in_python(tmp_path: Path) -> None:
    words = f"cifar100 --data {tmp_path} --no-flip --lr 1 --strengths 0 .1 .2 .3 --max-steps 7"
    strengths = [0, 0.1, 0.2, 0.3]
    values = {"data": tmp_path, "flip": False, "lr": 1, "strengths": strengths, "max_steps": 7}
    config = configure("cifar100", **values)
    assert config == parse(words.split())
    assert isinstance(config.optim.lr, float)
    (tmp_path / "config.yaml").write_text(dump(config))
    again = configure(tmp_path / "config.yaml", max_steps=None, out=tmp_path)
    assert again == config.replace(max_steps=None, out=str(tmp_path))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "--data is missing"),
        ({"data": "d", "lrr": 1}, "unknown option 'lrr'; did you mean lr?"),
        ({"data": "d", "batch_size": 7.5}, "--batch-size takes a whole number, not '7.5'"),
        ({"data": "d", "batch_size": 0}, "--batch-size must be at least 1"),
        ({"data": "d", "pipeline": "tf"}, "--pipeline has no choice 'tf'"),
        ({"data": "d", "strengths": (1, 2, 3)}, "--strengths needs 4 values"),
        ({"data": "d", "flip": 1}, "flip must be true or false"),
        ({"data": None}, "data has no value"),
    ],
)
def test_mistakes_of_configure(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as mistake:
        configure("imagenet", **values)
    assert words in str(mistake.value)
