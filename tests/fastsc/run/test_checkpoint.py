"""Checkpoints: whole or absent, the newest one that reads, nothing but plain values."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import safetensors
import torch
import torchvision
from torch import nn

from fastsc.errors import UserError
from fastsc.run.checkpoint import (
    export_safetensors,
    load_model_state,
    load_newest,
    load_safetensors,
    rng_state,
    save,
    set_rng_state,
)

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]


def state(step: int) -> dict[str, object]:
    return {
        "model": {"w": torch.arange(6.0).view(2, 3) + step},
        "step": step,
        "epoch": 1,
        "lr": 0.1,
        "index_hash": "ab" * 32,
        "scaler": {},
        "ema": None,
        "list": [1, 2.5, "x"],
        "rng": rng_state(),
    }


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", state(123), 123)
    assert path.name == "step-00000123.pt"
    loaded = load_newest(tmp_path / "checkpoints")
    assert loaded is not None
    assert (loaded.path, loaded.skipped) == (path, [])
    expected = state(123)
    assert torch.equal(loaded.state["model"]["w"], expected["model"]["w"])  # type: ignore[index]
    for key in ("step", "epoch", "lr", "index_hash", "scaler", "ema", "list"):
        assert loaded.state[key] == expected[key]
    assert names(path.parent) == [path.name], "no temporary file stays"


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "absent") is None
    (tmp_path / "step-1.txt").write_text("no checkpoint")
    assert load_newest(tmp_path) is None


def test_the_newest_two_are_kept_by_step_not_by_time_or_spelling(tmp_path: Path) -> None:
    for step in (9, 10, 99_999_999, 100_000_000):
        save(tmp_path, state(step), step)
    assert names(tmp_path) == ["step-100000000.pt", "step-99999999.pt"]
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert loaded.state["step"] == 100_000_000
    save(tmp_path, state(100_000_001), 100_000_001, keep=3)
    assert len(names(tmp_path)) == 3


def flip_a_bit(data: bytes) -> bytes:
    """In the middle of the largest tensor, where only a checksum tells."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        payload = archive.read(largest)
    at = data.index(payload) + len(payload) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


BROKEN = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "tail": lambda data: data[:-1],
    "garbage": lambda data: os.urandom(4096),
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"hello\n",
    "one bit": lambda data: flip_a_bit(data),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_newest_one_is_named_and_the_one_before_taken(tmp_path: Path, how: str) -> None:
    save(tmp_path, state(5), 5)
    newest = save(tmp_path, state(6), 6)
    newest.write_bytes(BROKEN[how](newest.read_bytes()))
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert loaded.state["step"] == 5
    assert len(loaded.skipped) == 1
    assert loaded.skipped[0].startswith("step-00000006.pt: ")
    assert "\n" not in loaded.skipped[0]
    # The run goes on from 5 and saves at 5.5, so to say: both whole ones are kept.
    newest.rename(tmp_path / "step-00000009.pt")
    save(tmp_path, state(7), 7)
    assert names(tmp_path) == ["step-00000005.pt", "step-00000007.pt"]


def test_one_that_the_disk_does_not_give_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be whole, and the next save would remove it."""
    save(tmp_path, state(5), 5)
    newest = save(tmp_path, state(6), 6)

    def failing(path: Path) -> None:
        if path == newest:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("fastsc.run.checkpoint._check_sums", failing)
    with pytest.raises(UserError, match=r"step-00000006\.pt cannot be read: Input/output error"):
        load_newest(tmp_path)


def test_all_broken_is_a_mistake_that_names_them(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, state(step), step).write_bytes(b"x")
    with pytest.raises(UserError, match=r"step-00000002.*step-00000001"):
        load_newest(tmp_path)


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch attacked",)


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path, state(1), 1)
    torch.save({"model": Attack()}, tmp_path / "step-00000002.pt")
    (tmp_path / "step-00000003.pt").write_bytes(pickle.dumps(Attack()))
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert loaded.state["step"] == 1
    assert len(loaded.skipped) == 2
    assert "attacked" not in names(tmp_path)


def test_a_full_disk_is_a_mistake_and_keeps_the_old_ones(tmp_path: Path) -> None:
    save(tmp_path, state(1), 1)
    big = {"w": torch.zeros(1_000_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"step-00000002.pt cannot be written"):
            save(tmp_path, big, 2)
        net = nn.Linear(1000, 1000)
        with pytest.raises(UserError, match=r"weights.safetensors cannot be written"):
            export_safetensors(tmp_path / "weights.safetensors", net, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["step-00000001.pt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save(tmp_path / "file" / "checkpoints", state(1), 1)


def test_what_weights_only_would_refuse_later_does_not_pass_unseen(tmp_path: Path) -> None:
    """The promise of `save` is on its caller; this is how a breach would show."""
    save(tmp_path, {"path": Path("x")}, 1)
    with pytest.raises(UserError, match="can be read"):
        load_newest(tmp_path)


def test_kill_at_any_moment_leaves_whole_checkpoints(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys, itertools, torch
        from fastsc.run.checkpoint import save
        w = torch.zeros(2_000_000)
        for step in itertools.count(1):
            save(sys.argv[1], {"w": w + step, "step": step}, step)
            print(step, flush=True)
        """
    )
    folder = tmp_path / "checkpoints"
    for wanted in (1, 3, 6):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            done = 0
            while done < wanted:
                done = int(process.stdout.readline())
            process.kill()  # somewhere in the next one
        loaded = load_newest(folder)
        assert loaded is not None
        assert loaded.skipped == []
        assert loaded.state["step"] >= done
        assert (loaded.state["w"] == loaded.state["step"]).all()
    save(folder, state(10**6), 10**6)
    assert not list(folder.glob(".*")), "the next save clears what a killed one left"


def test_rng_state_is_restored(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.rand(3)
    save(tmp_path, {"rng": rng_state()}, 1)
    expected = torch.rand(4)
    loaded = load_newest(tmp_path)
    assert loaded is not None
    set_rng_state(loaded.state["rng"])
    assert torch.equal(torch.rand(4), expected)


def test_state_of_another_model_is_refused_with_what_differs() -> None:
    resnet = torchvision.models.resnet18
    net = resnet(num_classes=10)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(UserError, match=r"run/x.pt holds another model: fc.weight is \(7, 512\)"):
        load_model_state(net, resnet(num_classes=7).state_dict(), "run/x.pt")
    other = torchvision.models.resnet34(num_classes=10).state_dict()
    with pytest.raises(UserError, match=r"are unknown here, layer1.2.conv1.weight first"):
        load_model_state(net, other, "x")
    with pytest.raises(UserError, match=r"1 tensors are missing there, fc.bias first"):
        load_model_state(net, {k: v for k, v in before.items() if k != "fc.bias"}, "x")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    good = resnet(num_classes=10).state_dict()
    load_model_state(net, good, "x")
    assert all(torch.equal(v, good[k]) for k, v in net.state_dict().items())


def test_a_network_that_asks_for_its_version_loads() -> None:
    """A file of tensors says of none; torchvision's MNASNets do not load without."""
    net, other = (torchvision.models.mnasnet0_5(num_classes=3) for _ in range(2))
    load_model_state(net, dict(other.state_dict()), "w")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())


@pytest.mark.filterwarnings("ignore::UserWarning")  # quantized tensors are deprecated
def test_tensors_that_torch_does_not_copy_are_refused_with_its_reason() -> None:
    net = torch.nn.Linear(3, 2)
    weight = net.weight.detach()
    quantized = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    for other in (weight.to_sparse(), quantized, weight.to("meta")):
        state = {**net.state_dict(), "weight": other}
        with pytest.raises(RuntimeError, match="in loading state_dict"):
            torch.nn.Linear(3, 2).load_state_dict(state)
        with pytest.raises(UserError, match=r"w\.pt does not load: .*weight") as caught:
            load_model_state(net, state, "w.pt")
        assert "\n" not in str(caught.value)


def test_exported_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=3).to(memory_format=torch.channels_last)
    metadata = {
        "architecture": "resnet18",
        "classes": ["a", "ü", 'c"'],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "resolution": 32,
        "stem": "cifar",
    }
    path = tmp_path / "out" / "weights.safetensors"
    export_safetensors(path, net, metadata)
    assert names(path.parent) == [path.name]
    state, read = load_safetensors(path)
    assert read == metadata
    other = torchvision.models.resnet18(num_classes=3)
    other.load_state_dict(state)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())
    assert net.conv1.weight.is_contiguous(memory_format=torch.channels_last), "left as it was"
    # Any reader of safetensors sees JSON strings.
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["resolution"]) == 32


def test_tied_weights_can_be_exported(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    export_safetensors(tmp_path / "w.safetensors", net, {})
    state, metadata = load_safetensors(tmp_path / "w.safetensors")
    assert metadata == {}
    assert torch.equal(state["0.weight"], state["1.weight"])


def test_a_weights_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="is not a weights file"):
        load_safetensors(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="is not a weights file"):
        load_safetensors(tmp_path / "absent.safetensors")
