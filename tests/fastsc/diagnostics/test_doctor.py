"""The doctor: its catalog, what it tells, and once the whole command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from rich.console import Console

from fastsc import doctor
from fastsc.diagnostics import command
from fastsc.diagnostics.catalog import PROBES, Result
from fastsc.diagnostics.examine import examine
from fastsc.diagnostics.table import show
from fastsc.pipelines import PIPELINES
from fastsc.pipelines.decode import DECODERS
from fastsc.run import environment

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent.parent.parent
BY_NAME = {(probe.group, probe.name): probe for probe in PROBES}

# ---- the registry --------------------------------------------------------------------------------


def test_every_backend_has_its_row() -> None:
    assert len(BY_NAME) == len(PROBES)
    rows = {group: {p.name for p in PROBES if p.group == group} for group, _ in BY_NAME}
    assert rows["decoders"] == set(DECODERS)
    assert set(PIPELINES) | {f"{name} on cuda" for name in PIPELINES} <= rows["pipelines"]
    assert set(environment.versions()) - {"python", "torch"} <= rows["packages"]
    requirements = [re.match(r"[\w-]+", line) for line in metadata.requires("fastsc") or []]
    core = {name[0] for name in requirements if name and "extra ==" not in name.string}
    assert core - {"torch"} <= rows["packages"]
    of_core = [p for p in PROBES if p.group == "packages" and p.name in core]
    assert {p.name for p in of_core if not p.needed} <= {"timm", "rich", "safetensors"}
    assert {p.after for p in PROBES} <= {p.name for p in PROBES} | {""}
    assert {("torch", "torch"), ("pipelines", "cpu"), ("kernels", "ds")} <= {
        key for key, probe in BY_NAME.items() if probe.needed
    }


@pytest.mark.parametrize(
    ("module", "code", "reason"),
    [
        ("simplejpeg", "raise ImportError('libjpeg.so.8: not found')", "ImportError: libjpeg.so.8"),
        (
            "simplejpeg",
            "import numpy as np\n"
            "def decode_jpeg_header(data): return 64, 80, 'YCbCr', '444'\n"
            "def decode_jpeg(data, space): return np.zeros((64, 80, 3), np.uint8)\n",
            "/255 from PIL, where at most 2 is expected",
        ),
        (
            "sitecustomize",
            "import sys\n"
            "class Hide:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name == 'simplejpeg':\n"
            "            raise ModuleNotFoundError('No module named ' + name)\n"
            "sys.meta_path.insert(0, Hide())\n",
            "decoder simplejpeg is not installed",
        ),
    ],
    ids=["broken", "wrong pixels", "missing"],
)
def test_a_decoder_that_is_broken_wrong_or_missing(
    shadow: Callable[[str, str], None], module: str, code: str, reason: str
) -> None:
    shadow(module, code)
    bad, pil = examine([BY_NAME["decoders", "simplejpeg"], BY_NAME["decoders", "pil"]])
    assert not bad.works
    assert reason in bad.detail
    assert bad.remedy == "pip install 'fastsc[jpeg]'"
    assert pil.works


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTSC_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (result,) = examine([BY_NAME["files", "cache"]])
    assert not result.works
    assert str(tmp_path / "file") in result.detail
    assert "FASTSC_CACHE_DIR" in (result.remedy or "")


@pytest.mark.slow
def test_compiled_code_that_can_be_kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installation that nobody can write to, without a home."""
    (before,) = examine([BY_NAME["files", "compiled"]])
    monkeypatch.setenv("NUMBA_CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    (result,) = examine([BY_NAME["files", "compiled"]])
    assert (before.works, result.works) == (True, False)
    assert before.detail.startswith("kept in ")
    assert "every process compiles anew" in result.detail
    assert "NUMBA_CACHE_DIR" in (result.remedy or "")


# ---- what is told --------------------------------------------------------------------------------


def outcome(*broken: tuple[str, str]) -> list[Result]:
    """Every row of the registry, as if these alone did not work."""
    assert set(broken) <= set(BY_NAME)
    return [
        Result(p, False, "because", p.remedy) if key in broken else Result(p, True, "fine")
        for key, p in BY_NAME.items()
    ]


NO_GPU = (("torch", "GPU"), ("pipelines", "dali on cuda"), ("pipelines", "cpu on cuda"))


@pytest.mark.parametrize(
    ("broken", "status", "said"),
    [
        ((), 0, ["Training on the GPU here: --pipeline dali;", "All is there."]),
        (NO_GPU, 0, ["Training on the CPU here: --pipeline cpu;", "better: a GPU"]),
        ((("pipelines", "dali on cuda"),), 0, ["GPU here: --pipeline cpu;", "fastsc[dali]"]),
        ((*NO_GPU, ("pipelines", "cpu")), 1, ["CPU here: --pipeline dali;"]),
        ((*NO_GPU, ("pipelines", "dali")), 0, ["CPU here: --pipeline cpu;", "fastsc[dali]"]),
        ((("loggers", "wandb"), ("decoders", "simplejpeg")), 0, ["All is there."]),
        ((("decoders", "nvimgcodec"), ("decoders", "simplejpeg")), 0, ["fastsc[jpeg]"]),
        ((("torch", "torch"),), 1, ["Needed: torch torch. "]),
        (
            (("pipelines", "cpu"),),
            1,
            ["traceback: python -m fastsc.diagnostics.probes pipeline cpu"],
        ),
        ((("kernels", "pair_view"),), 1, ["Needed: kernels pair_view. "]),
        (
            tuple(key for key in BY_NAME if key[0] == "pipelines"),
            1,
            ["Needed: pipelines cpu. ", "GPU here: no --pipeline works."],
        ),
    ],
)
def test_status_and_advice(
    broken: tuple[tuple[str, str], ...],
    status: int,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "examine", lambda *_: outcome(*broken))
    assert doctor.main([]) == status
    rows, _, advice = capsys.readouterr().out.partition("\n\n")
    assert len(rows.splitlines()) == len(PROBES)
    assert all(part in advice for part in said), advice
    assert ("Needed: " in advice) == (status == 1)


@pytest.mark.parametrize("terminal", [False, True])
def test_rows_keep_what_stands_in_brackets(
    terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    show(outcome(("decoders", "simplejpeg")), Console(force_terminal=terminal, width=200))
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "simplejpeg" in line)
    for part in ("decoders", "no", "because -> pip install 'fastsc[jpeg]'"):
        assert part in row


def test_the_rows_are_the_same_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "examine", lambda *_: outcome(("decoders", "simplejpeg")))
    assert doctor.main([]) == 0
    with_rich = capsys.readouterr()
    monkeypatch.setitem(sys.modules, "rich.console", None)  # import raises ModuleNotFoundError
    assert doctor.main([]) == 0
    assert capsys.readouterr() == with_rich


def test_json_mistakes_are_one_line_before_anything_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def untimely(*_: object) -> NoReturn:
        raise AssertionError("tried before the mistake was found")

    monkeypatch.setattr(command, "examine", untimely)
    os.mkfifo(pipe := tmp_path / "pipe")  # that nobody reads
    for path in (tmp_path, tmp_path / "none" / "out.json", pipe):
        assert doctor.main(["--json", str(path)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith(f"fastsc.doctor: --json {path} cannot be written: ")
    assert list(tmp_path.iterdir()) == [pipe]


def test_without_a_folder_for_temporary_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full or read-only: the doctor is who is asked then."""
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc"])
    assert doctor.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastsc.doctor: No usable temporary directory")
    assert said.endswith("; TMPDIR=FOLDER takes another\n")


def test_json_into_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "examine", lambda *_: [])
    monkeypatch.setattr(command, "advice", lambda _: [])
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    while doctor.main(["--json", str(pipe)]) == 2:  # it has not opened it yet
        time.sleep(0.05)
    text, _ = reader.communicate(timeout=10)
    assert json.loads(text)


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_waits_for_no_torch(words: list[str]) -> None:
    code = (
        "import sys, contextlib, fastsc.doctor\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    fastsc.doctor.main({words}) if {words} else None\n"
        "heavy = {'torch', 'numpy', 'nvidia', 'numba'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert ("--json" in done.stdout) == bool(words)


# ---- the whole -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_whole_doctor(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "fastsc.doctor", "--json", str(tmp_path / "out.json")],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert os.listdir(tmp_path / "tmp") == []

    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{word} is no JSON")

    document = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    lines, results = done.stdout.splitlines(), document["results"]
    assert [(row["group"], row["name"]) for row in results] == list(BY_NAME)
    for line, row in zip(lines, results, strict=False):
        assert set(row) == {"name", "group", "works", "detail", "remedy"}
        status = "works" if row["works"] else "no"
        tail = f" -> {row['remedy']}" if row["remedy"] else ""
        words = f"{row['group']} {row['name']} {status} {row['detail']}{tail}"
        assert " ".join(line.split()) == " ".join(words.split())
    assert lines[len(PROBES)] == ""
    assert "--pipeline " in lines[len(PROBES) + 1]

    works = {(row["group"], row["name"]): row["works"] for row in results}
    assert all(works[key] for key, probe in BY_NAME.items() if probe.needed)
    assert works["decoders", "pil"]
    assert works["pipelines", "memory"]
    assert works["distributed", "gloo"]
    assert works["torch", "GPU"] == torch.cuda.is_available()
    versions = environment.versions()
    assert document["metadata"]["versions"] == versions
    assert works["pipelines", "dali"] == (versions["nvidia-dali"] is not None)
    hardware = document["metadata"]["hardware"]
    assert f"{len(os.sched_getaffinity(0))} cores" in hardware["cpu"]
    assert len(hardware["gpus"]) == torch.cuda.device_count()


def test_by_hand_a_probe_shows_its_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastsc.diagnostics.probes", "decoder", "no-such"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["detail"].startswith("no decoder named no-such; there are ")
    assert "Traceback" in done.stderr
