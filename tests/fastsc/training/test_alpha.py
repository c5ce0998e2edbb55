"""--ds-target: the multiplier's rule by hand, on a simulated network, and in trainings."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsc.run import checkpoint
from fastsc.training.alpha import FRESH, HIGHEST, LONG, LOWEST, Multiplier
from fastsc.training.collapse import Spread
from tests.fastsc.distributed.test_ranks import ranked, single
from tests.fastsc.runs import events, same_weights
from tests.fastsc.training.test_train_options import run

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

WELL = Spread(10.0, 30.0)
NAN = float("nan")


def test_the_rule_by_hand() -> None:
    it = Multiplier(1.0, 0.2)
    gaps, logs = [], []
    for off in (0.1, 0.2, 0.0):
        assert it.update(0.2 * math.exp(off), WELL) is None
        gaps.append(it.gap)
        logs.append(math.log(it.value))
    assert gaps == pytest.approx([0.1, 0.9 * 0.1 + 0.1 * 0.2, 0.9 * 0.11])
    moves = [0.4 * 0.1, 0.4 * 0.11 + 8 * 0.01, 0.4 * 0.099 - 8 * 0.011]
    assert logs == pytest.approx([moves[0], moves[0] + moves[1], sum(moves)])


def test_a_move_and_alpha_have_limits() -> None:
    it = Multiplier(1.0, 0.1)
    it.update(5.0, WELL)
    assert it.gap == 1.0, "one batch says no more than far off"
    assert it.value == pytest.approx(math.exp(0.2))
    for _ in range(100):
        it.update(5.0, WELL)
    assert it.value == pytest.approx(HIGHEST)
    for _ in range(200):
        it.update(0.0, WELL)
    assert it.gap == pytest.approx(-1.0)
    assert it.value == pytest.approx(LOWEST)


def simulated(
    alpha: float, target: float, *, slope: float, lag: float
) -> list[tuple[float, float]]:
    """(alpha, ds_relative) after each update; log ds = a - slope log(1 + alpha), late and noisy.

    `a` falls over the first 100 updates, as it does by training alone.
    """
    noise, it = random.Random(0), Multiplier(alpha, target)
    log_ds, found = math.log(0.6), []
    for k in range(200):
        a = math.log(0.25) + math.log(0.6 / 0.25) * math.exp(-k / 30)
        log_ds += (a - slope * math.log1p(it.value) - log_ds) / lag
        it.update(math.exp(log_ds + noise.gauss(0, 0.07)), WELL)
        found.append((it.value, math.exp(log_ds)))
    return found


@pytest.mark.parametrize("slope", [0.11, 0.25])
@pytest.mark.parametrize("target", [0.2, 0.16, 0.13])
@pytest.mark.parametrize("alpha", [0.1, 3.0, 100.0])
def test_it_reaches_a_target_from_anywhere(slope: float, target: float, alpha: float) -> None:
    found = simulated(alpha, target, slope=slope, lag=15)
    assert found[-1][1] == pytest.approx(target, rel=0.03)
    assert all(abs(math.log(ds / target)) < 0.06 for _, ds in found[140:]), "it swings"


def test_a_figure_that_is_not_finite_changes_nothing() -> None:
    it = Multiplier(1.0, 0.2)
    it.update(0.3, WELL)
    before = it.state_dict()
    for figures in ((NAN, WELL), (math.inf, WELL), (0.3, Spread(NAN, 3.0))):
        assert it.update(*figures) is None
    assert it.state_dict() == before


def test_the_guard_backs_off_and_says_so_once() -> None:
    it = Multiplier(8.0, 0.01)
    it.update(0.02, WELL)
    high = it.value
    said = it.update(0.02, Spread(2.4, 30.0))
    assert said is not None
    assert f"0.24 of its best; --ds-target backs off from alpha {high:.3g}" in said
    assert it.value == pytest.approx(high / 2)
    assert it.update(0.02, Spread(3.4, 30.0)) is None, "not recovered, and said already"
    assert it.value == pytest.approx(high / 4)
    assert it.update(0.02, Spread(10.0, 10.6)) is None
    assert high / 4 < it.value < high / 3
    for _ in range(20):  # up to its ceiling, which stays while the features are not whole
        assert it.update(0.02, Spread(4.9, 30.0)) is None
    assert it.value == pytest.approx(high / 2)
    for _ in range(10):
        it.update(0.02, WELL)
    assert it.value == pytest.approx(high / 2 * 1.02**10)
    assert it.update(0.02, Spread(10.0, 7.0)) is not None, "another episode"
    missed = it.missed(None)
    assert missed is not None
    assert "the batches' ds_relative ended at 0.02, and --ds-target is 0.01" in missed
    assert "collapsed" in missed


def test_the_scale_of_fresh_weights_is_forgotten() -> None:
    it = Multiplier(1.0, 0.2)
    it.update(0.3, Spread(1000.0, 30.0))
    for _ in range(FRESH - 2):
        it.update(0.3, WELL)
    assert it.value == LOWEST, "they are held for collapsed"
    for _ in range(2):
        it.update(0.3, WELL)
    assert it.value > LOWEST
    assert it.update(0.3, Spread(3.0, 30.0)) is None
    assert it.update(0.3, Spread(2.0, 30.0)) is not None


def test_features_that_collapse_as_the_first_maximum_is_forgotten_stay_collapsed() -> None:
    it = Multiplier(1.0, 0.2)
    for _ in range(FRESH - 3):
        it.update(0.3, WELL)
    began = it.value
    for _ in range(20):
        it.update(0.3, Spread(*(x / 20 for x in WELL)))
    assert it.value < began / 1000


def test_what_is_said_at_the_end() -> None:
    it = Multiplier(1.0, 0.2)
    it.update(0.2, WELL)
    assert it.missed(None) is None
    assert it.missed(0.219) is None
    assert "more epochs" in str(it.missed(0.25))
    for _ in range(LONG + 60):
        it.update(1.0, WELL)
    assert "ds_relative ended at 0.25" in str(it.missed(0.25))
    assert "alpha had reached its limit, 1e+04" in str(it.missed(0.25))


def test_the_state_comes_back_exactly(tmp_path: Path) -> None:
    noise, it = random.Random(1), Multiplier(3.0, 0.15)

    def figures() -> tuple[float, Spread]:
        spread = Spread(noise.choice([10.0, 4.0, 2.0]), noise.uniform(10, 30))
        return noise.uniform(0.1, 0.4), spread

    for _ in range(50):
        it.update(*figures())
    torch.save(it.state_dict(), tmp_path / "state.pt")
    other = Multiplier(3.0, 0.15)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(100):
        now = figures()
        assert it.update(*now) == other.update(*now)
        assert (it.value, it.gap) == (other.value, other.gap)


# --- trainings: 4 steps an epoch ------------------------------------------------------------------

TARGET = ["--ds-target", "0.05", "--epochs", "4", "--lr", "0.05"]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update every third step."""
    monkeypatch.setattr("fastsc.training.alpha.EVERY", 3)


def steps(out: Path) -> dict[int, dict[str, Any]]:
    """The logged steps' figures but for the clock's; of a step that ran twice the last."""
    clock = ("time", "pairs_per_s", "loader_wait")
    return {
        event["step"]: {key: value for key, value in event.items() if key not in clock}
        for event in events(out, "step")
    }


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], marks=pytest.mark.slow),
        ["--paired-fraction", "0.5", "--accumulate", "2", "--ema", "0.9"],
        ["--ds", "js", "--ds-at", "logits", "--ce-views", "clean", "--val-every", "2"],
    ],
)
def test_a_resume_in_mid_epoch_is_exact(
    image_folder: Path, tmp_path: Path, more: list[str]
) -> None:
    words = [*TARGET, *more, "--checkpoint-steps", "1", "--keep-checkpoints", "99"]
    assert run(image_folder, tmp_path / "whole", *words) == 0
    out = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole", out)
    (out / "weights.safetensors").unlink()
    for path in (out / "checkpoints").iterdir():
        if path.name > "step-00000009.pt":
            path.unlink()
    assert run(image_folder, out, *words, "--resume") == 0
    assert events(out, "resume")[0]["step"] == 9
    assert steps(out) == steps(tmp_path / "whole")
    assert same_weights(out, tmp_path / "whole")
    alphas = [event["alpha"] for event in steps(out).values()]
    assert alphas[:4] == [alphas[0]] * 3 + [alphas[3]]
    assert len(set(alphas)) == 6, "begun with, and an update behind each of 3, 6, … 15"


@pytest.mark.usefixtures("often")
def test_what_is_logged_changes_nothing(image_folder: Path, tmp_path: Path) -> None:
    for every in ("1", "7"):
        more = [*TARGET, "--log-every", every, "--csv"]
        assert run(image_folder, tmp_path / every, *more) == 0
    assert same_weights(tmp_path / "1", tmp_path / "7")
    each, few = steps(tmp_path / "1"), steps(tmp_path / "7")
    assert list(few) == [1, 7, 14, 16]
    assert few == {step: each[step] for step in few}
    assert all(isinstance(event["ds_target_gap"], float) for event in few.values())
    head, *_, last = (tmp_path / "7" / "steps.csv").read_text().splitlines()
    assert head.endswith(",ds_target_gap")
    assert float(last.rpartition(",")[2]) == few[16]["ds_target_gap"]
    for event in each.values():
        assert event["loss"] == pytest.approx(event["ce"] + event["alpha"] * event["ds"], rel=1e-5)


def test_two_ranks_have_one_alpha(image_folder: Path, tmp_path: Path) -> None:
    # 12 steps: an update behind the tenth
    more = ["--ds-target", "0.05", "--lr", "0.05", "--epochs", "3", "--val-every", "3"]
    single(image_folder, tmp_path / "one", *more)
    _, seen = ranked(2, image_folder, tmp_path / "two", *more)
    assert seen[0]["alpha"] == seen[1]["alpha"]
    assert seen[0]["alpha"][:10] == [seen[0]["alpha"][0]] * 10
    assert len(set(seen[0]["alpha"])) == 2
    one = [event["alpha"] for event in events(tmp_path / "one", "step")]
    assert seen[0]["alpha"] == pytest.approx(one, rel=1e-3)


def test_the_guard_speaks_in_the_log(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsc.training.alpha.EVERY", 1)
    more = ["--ds", "l2", "--alpha", "300", "--epochs", "12", "--val", "none", "--lr", "3"]
    more += ["--warmup-epochs", "0", "--ds-target", "0.001", "--log-every", "10"]
    assert run(image_folder, tmp_path / "run", *more) == 0
    warnings = [event["reason"] for event in events(tmp_path / "run", "warning")]
    assert any("--ds-target backs off from alpha" in reason for reason in warnings)
    assert "and --ds-target is 0.001" in warnings[-1]
    assert min(event["alpha"] for event in steps(tmp_path / "run").values()) < 300


@pytest.mark.usefixtures("often")
def test_a_skipped_step_is_no_update(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastsc.training.step import Step

    original = Step.train_step

    def train_step(self: Step, batch: Any, **options: Any) -> Any:
        if self.step + 1 == 3:
            batch.clean[0, 0, 0, 0] = float("inf")
        return original(self, batch, **options)

    monkeypatch.setattr(Step, "train_step", train_step)
    assert run(image_folder, tmp_path / "run", *TARGET, "--on-nan", "skip", "--val", "none") == 0
    alphas = [event["alpha"] for event in steps(tmp_path / "run").values()]
    assert alphas[:6] == [30.0] * 6
    assert alphas[6] != 30.0


def test_a_resume_with_another_target_is_refused(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(image_folder, out, "--max-steps", "5") == 0
    for path in (out / "checkpoints").iterdir():  # as they were before there was the option
        state = torch.load(path, weights_only=True)
        del state["multiplier"], state["config"]["ds_target"]
        checkpoint.save(out / "checkpoints", state, state["step"])
    capsys.readouterr()
    assert run(image_folder, out, "--resume", "--ds-target", "0.1") == 2
    assert "--ds-target has changed (None then, 0.1 now)" in capsys.readouterr().err
    assert run(image_folder, out, "--resume") == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--ds-target", "0"], "--ds-target must be above 0"),
        (["--ds-target", "-1"], "--ds-target must be above 0, not -1"),
        (["--ds-target", "nan"], "--ds-target must be a finite number"),
        (["--ds-target", "0.1", "--alpha", "0"], "--alpha is 0: begin above 0"),
        (["--ds-target", "0.1", "--alpha", "1e5"], "between 0.001 and 10000: --alpha 100000"),
        (["--ds-target", "0.1", "--alpha-warmup-epochs", "1"], "leave --alpha-warmup-epochs out"),
        (["--ds-target", "0.1", "--strengths", "0", "0", "0", "0"], "--strengths is 0 0 0 0"),
        (["--ds-target", "0.1", "--paired-fraction", "0.1"], "at least 2 pairs"),
    ],
)
def test_mistakes(
    image_folder: Path,
    tmp_path: Path,
    more: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(image_folder, tmp_path / "run", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "run").exists()
