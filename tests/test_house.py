"""Floors, links, packaging, light imports, and a README that tells the truth."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent
FLOORS = ("kernels", "pipelines")


def sources(*folders: str) -> list[Path]:
    """Every Python file of the top-level folders once: links are not followed."""
    found: list[Path] = []
    for folder in folders:
        for where, _, names in os.walk(ROOT / folder):
            found += [Path(where) / name for name in names if name.endswith(".py")]
    assert found
    return sorted(found)


def run(*command: str, cwd: Path = ROOT, check: bool = True) -> str:
    """The command's stdout and stderr together; with check, its failure fails the test."""
    done = subprocess.run(
        command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100
    )
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What packaging and the lint of imports read, to be built or spoilt."""
    target = tmp_path / "checkout"
    target.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("fastsc", *FLOORS, "bench"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


@pytest.mark.parametrize("name", FLOORS)
def test_link_is_relative_and_leads_to_the_top_level_folder(name: str) -> None:
    link = ROOT / "fastsc" / name
    assert link.is_symlink(), f"{link} is no link: is core.symlinks off?"
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name


# `lint-imports` checks the checkout in `make lint`; here, that it sees through the links at all.
@pytest.mark.parametrize(
    ("file", "fault", "contract"),
    [
        ("kernels/__init__.py", "import fastsc.pipelines.errors", "no import runs up"),
        ("fastsc/extra.py", "", "no import runs up"),
        (
            "fastsc/evaluation/questions/gradients.py",
            "import fastsc.evaluation.questions.bias.axes",
            "no question needs another",
        ),
        ("fastsc/config/schema.py", "import bench", "does not need its benchmarks"),
        ("fastsc/config/schema.py", "import fastsc.config.options", "no circles"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("kernels/__init__.py", "from fastsc.config import TrainConfig", "runs up"),
                ("pipelines/errors.py", "import fastsc.config", "runs up"),
                ("pipelines/errors.py", "import bench", "does not need its benchmarks"),
                ("fastsc/loss.py", "import fastsc.jitter", "runs up"),
                ("fastsc/cli/packages.py", "import fastsc.config", "runs up"),
                ("fastsc/run/writer.py", "import fastsc.training.nonfinite", "runs up"),
                ("fastsc/evaluation/run.py", "import fastsc.demos.photographs", "runs up"),
                ("fastsc/training/loop.py", "import fastsc.train", "runs up"),
            )
        ),
    ],
)
def test_an_import_up_the_floors_is_found(copy: Path, file: str, fault: str, contract: str) -> None:
    lint = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"]
    if not Path(lint[0]).is_file():
        pytest.skip("import-linter is not installed")
    path = copy / file
    path.write_text(f"{path.read_text() if path.exists() else ''}\n{fault}\n")
    report = run(*lint, cwd=copy, check=False)
    assert re.search(rf"{contract}.* BROKEN", report), report


def test_the_checkout_as_it_is_keeps_every_contract(copy: Path) -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    if not lint.is_file():
        pytest.skip("import-linter is not installed")
    report = run(str(lint), "--no-logo", "--no-cache", cwd=copy)
    assert "4 kept, 0 broken" in report


def test_no_floor_below_imports_the_program_itself() -> None:
    # `from fastsc import X` names no submodule, so the contracts above cannot see it.
    pattern = re.compile(r"^\s*(from fastsc import|import fastsc$|(from|import) tests\b)", re.M)
    guilty = [path for path in sources(*FLOORS) if pattern.search(path.read_text())]
    assert not guilty


def test_no_second_copy_of_a_module_is_imported() -> None:
    # `import kernels` works from the checkout's root and would split every registry in two.
    pattern = re.compile(rf"^\s*(from|import) ({'|'.join(FLOORS)})\b", re.M)
    guilty = [
        path
        for path in sources("fastsc", *FLOORS, "bench", "tests")
        if pattern.search(path.read_text())
    ]
    assert not guilty
    banned = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert set(banned["flake8-tidy-imports"]["banned-api"]) == set(FLOORS)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("fastsc.ColorJitter", "fastsc.jitter"),
        ("fastsc.ContinuityLoss", "fastsc.loss"),
        ("fastsc.config.TrainConfig", "fastsc.config.schema"),
        ("fastsc.errors.UserError", "fastsc.pipelines.errors"),
        ("fastsc.kernels.ds", "fastsc.kernels.distance"),
        ("fastsc.kernels.pair_view", "fastsc.kernels.views"),
        ("fastsc.pipelines.build", "fastsc.pipelines.factory"),
        ("fastsc.recipe.configure", "fastsc.config.recipes"),
        ("fastsc.trainer.train", "fastsc.training.loop"),
    ],
)
def test_a_name_that_callers_rely_on(name: str, where: str) -> None:
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    assert found is getattr(importlib.import_module(where), attribute)


def test_import_fastsc_is_light() -> None:
    run(
        sys.executable,
        "-c",
        "import sys, fastsc; heavy = {'torch', 'numpy', 'timm'} & set(sys.modules);"
        " assert not heavy, heavy",
    )


@pytest.mark.slow  # and nothing heavy, in the tests of the kernels
def test_kernels_import_nothing_above() -> None:
    above = run(
        sys.executable,
        "-c",
        "import sys; from fastsc.kernels import ds, pair_view;"
        " print(*(m for m in sys.modules if m.startswith('fastsc.')"
        " and not m.startswith('fastsc.kernels')))",
    )
    assert above.split() == []


def test_sdist_and_wheel_hold_every_module_once(copy: Path) -> None:
    build = "from setuptools import build_meta as b; print(b.build_{0}('dist'))"
    for kind in ("sdist", "wheel"):
        run(sys.executable, "-c", build.format(kind), cwd=copy)
    modules = {
        PurePosixPath(path.relative_to(ROOT))
        if path.is_relative_to(ROOT / "fastsc")
        else PurePosixPath("fastsc") / path.relative_to(ROOT)
        for path in sources("fastsc", *FLOORS)
    }

    (wheel,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = Counter(archive.namelist())
        top = {name.split("/")[0] for name in names}
        given = {name for name in names if name.endswith((".yaml", ".j2"))}
    assert {name for name in names if name.endswith(".py")} == {str(m) for m in modules}
    assert max(names.values()) == 1
    assert {name for name in top if not name.endswith(".dist-info")} == {"fastsc"}
    assert "fastsc/py.typed" in names
    folders = ("recipes/*.yaml", "reproduction/studies/*.yaml", "reproduction/page/*.j2")
    wanted = [path for folder in folders for path in (ROOT / "fastsc").glob(folder)]
    assert {str(path.relative_to(ROOT)) for path in wanted} <= given
    assert any(name.endswith("LICENSE") for name in names)

    (sdist,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {m.name.split("/", 1)[-1]: m for m in archive.getmembers() if not m.isdir()}
    assert {str(m) for m in modules} <= set(files)
    assert all(files[str(m)].isfile() for m in modules)  # no link that an unpacker may refuse


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of every fenced block of a language on the front page and in docs/."""
    return [
        (page.name, code)
        for page in PAGES
        for code in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)
    ]


def test_commands_of_the_documentation_exist() -> None:
    commands = "\n".join(code for _, code in blocks(r"\w*"))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    asked = set(re.findall(r"^\s*make ([a-z-]+)", commands, re.M))
    modules = set(re.findall(r"python -m ((?:fastsc|bench)[\w.]*)", commands))
    assert {"demo", "test"} <= asked <= targets
    assert "fastsc.train" in modules
    assert not {name for name in modules if importlib.util.find_spec(name) is None}


def test_options_of_the_documentation_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the commands that are shown; the options of other programs, as torchrun's, aside."""
    shown = re.findall(
        r"(?:python -m fastsc\.|-m fastsc\.)(\w+)((?:[^\n#\\]|\\\n)*)",
        "\n".join(code for _, code in blocks(r"\w*")),
    )
    assert len(shown) > 20
    asked: dict[str, set[str]] = {}
    for command, words in shown:
        ours = words.split(" -- ")[0]
        asked.setdefault(command, set()).update(re.findall(r"(?<= )--[a-z-]+", ours))
    helps = {"train": [["imagenet"]], "prepare": [[], ["beton"], ["tar"], ["colormnist"]]}
    for command, options in asked.items():
        for kind in helps.get(command, [[]]):
            with suppress(SystemExit):
                importlib.import_module(f"fastsc.{command}").main([*kind, "--help"])
        text = capsys.readouterr().out
        unknown = options - set(re.findall(r"--[a-z-]+", text)) - {"--list-recipes"}
        assert not unknown, f"fastsc.{command} has no {sorted(unknown)}"


def test_the_page_of_the_other_commands_has_their_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    blocks_of = dict(re.findall(r"^## ([^\n]+)\n\n```text\n(.*?)^```$", page, re.M | re.S))
    commands = {p.stem for p in (ROOT / "fastsc").glob("*.py") if "run_command(" in p.read_text()}
    assert {words.split()[0] for words in blocks_of} == commands - {"train"}
    assert len(blocks_of) == page.count("\n## ")
    monkeypatch.setenv("COLUMNS", "100")
    for words, shown in blocks_of.items():
        command, *kind = words.split()
        with suppress(SystemExit):
            importlib.import_module(f"fastsc.{command}").main([*kind, "--help"])
        text = capsys.readouterr().out
        # The usage is laid out otherwise by each version of Python.
        assert shown.strip().split("\n\n")[1:] == text.strip().split("\n\n")[1:], "`make options`"


@pytest.mark.parametrize(
    ("page", "code"),
    [pytest.param(*block, id=f"{block[0]}-{i}") for i, block in enumerate(blocks("python"))],
)
@pytest.mark.usefixtures("undrawn")
def test_python_of_the_documentation_runs(
    page: str, code: str, image_folder: Path, tmp_path: Path
) -> None:
    small = code.replace("DIR", str(image_folder)).replace('"RUN"', repr(str(tmp_path / "run")))
    for large, little in (
        ("range(90)", "range(2)"),
        ("batch_size=64", "batch_size=8"),
        ("resolution=224", "resolution=32"),
        ("n=4", "n=2"),
    ):
        small = small.replace(large, little)
    exec(compile(small, page, "exec"), {})


def test_the_front_page_is_short_and_its_figures_are_the_studys() -> None:
    page = (ROOT / "README.md").read_text()
    assert len(page.splitlines()) <= 150
    study = (ROOT / "docs" / "reproduction-details.md").read_text()
    study = study.split("\n## CIFAR-100\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| .*\(`([\w-]+)`\) \|(.*)\|$", page, re.M)
    assert len(rows) == 5
    for arm, figures in rows:
        (row,) = re.findall(rf"^\| [^|]*\(`{arm}`\) \|(.*)\|$", study, re.M)[:1]
        cells = [cell.strip() for cell in row.split("|")]
        # Without the column of epochs.
        assert [cell.strip() for cell in figures.split("|")] == cells[1:]


def test_pages_lead_to_each_other() -> None:
    """`make docs` checks anchors, too, and what lies outside."""
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[0] == "#!/usr/bin/env bash"
    assert "make test" in script.read_text()
    assert "run: make test" in (ROOT / ".github" / "workflows" / "test.yml").read_text()
