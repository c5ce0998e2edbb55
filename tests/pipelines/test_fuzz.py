"""A thousand mutated JPEGs through every backend: `make test-slow`.

What is mutated, and how, follows from the seeds below. Every mutant must come out as an image or
be named with a reason; nothing may crash or hang; the good images beside them must not change by a
bit.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastsc.pipelines import BetonIndex
from tests.pipelines.conftest import FFCV, encoded, opened, photograph

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.slow, pytest.mark.heavy]

SEED, N_MUTANTS, N_GOOD = 20201109, 1000, 200

# In a process of its own, since what it looks for is a crash. The good images are compared with
# those of a loader that is never given a mutant: the same dataset indices, so the same crops.
PROGRAM = """
import sys
from pathlib import Path
import torch
from fastsc.pipelines import build, open_beton, scan

name, path = sys.argv[1], Path(sys.argv[2])
index = open_beton(path) if name == "ffcv" else scan(path)
mutants = {i for i, p in enumerate(index.paths) if p.startswith("mutants")}
reported = {}
options = dict(batch_size=32, resolution=64, on_bad_image="skip", workers=2, timeout=60)

def images(index, **more):
    loader = build(name, index, **options, **more)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            for i, clean, perturbed in zip(batch.index.tolist(), batch.clean, batch.perturbed):
                assert clean.isfinite().all() and perturbed.isfinite().all()
                yield epoch, i, clean, perturbed
    loader.close()

def note(bad):
    reported[bad.path] = bad.reason

seen = {(e, i): (c, p) for e, i, c, p in images(index, report=note)}
compared = 0
for e, i, clean, perturbed in images(index.without({i: "left out" for i in mutants})):
    if (e, i) in seen:
        assert torch.equal(seen[e, i][0], clean) and torch.equal(seen[e, i][1], perturbed), i
        compared += 1
assert all(index.left_out.values()) and all(reported.values())
assert {index.path(i) for i in index.left_out} | reported.keys() <= {index.path(i) for i in mutants}
shown = {i for _, i in seen} & mutants
named = {i for i in mutants if i in index.left_out or index.path(i) in reported}
# An epoch drops less than a batch, and another drops others.
assert len(mutants - shown - named) <= 2, sorted(mutants - shown - named)
assert compared > 300, compared
"""


def sources() -> list[bytes]:
    """Whole JPEGs of several kinds."""
    images = [photograph(seed, (100 + 9 * seed, 90)) for seed in range(4)]
    return [
        encoded(images[0], quality=90),
        encoded(images[1], quality=75, progressive=True),
        encoded(images[2], quality=95, restart_marker_blocks=2),
        encoded(images[3], quality=85, optimize=True),
        encoded(images[0].convert("L"), quality=90),
        encoded(images[1].convert("CMYK"), quality=90),
        encoded(images[2], quality=100, subsampling=0),
        encoded(images[3], quality=30, comment=b"x" * 500),
    ]


def mutant(seed: int) -> bytes:
    """One of the sources with bytes flipped, cut off or out, or spliced in from another."""
    rng = np.random.default_rng([SEED, seed])
    pool = sources()
    data, other = (bytearray(pool[k]) for k in rng.integers(len(pool), size=2))
    kind = seed % 4
    if kind == 0:  # bits anywhere
        for place in rng.integers(len(data), size=int(rng.integers(1, 17))):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:  # cut; every other with an end marker, so that it looks whole
        del data[int(rng.integers(1, len(data))) :]
        if rng.integers(2):
            data += b"\xff\xd9"
    elif kind == 2:  # a piece of another over or into it
        start, at = int(rng.integers(len(other))), int(rng.integers(len(data)))
        piece = other[start : start + int(rng.integers(1, 400))]
        end = at + len(piece) if rng.integers(2) else at
        data[at:end] = piece
    else:  # a piece cut out, or the first bytes of the header
        at = int(rng.integers(len(data))) if rng.integers(2) else int(rng.integers(300))
        del data[at : at + int(rng.integers(1, 200))]
    return bytes(data)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class folder with the mutants, and good images before and behind them."""
    root = tmp_path_factory.mktemp("fuzz") / "train"
    for name in ("good", "mutants", "whole"):
        (root / name).mkdir(parents=True)
    for i in range(N_MUTANTS):
        (root / "mutants" / f"{i:04d}.JPEG").write_bytes(mutant(i))
    for i in range(N_GOOD):
        name = ("good", "whole")[i % 2]
        (root / name / f"{i:04d}.JPEG").write_bytes(encoded(photograph(i), quality=90))
    return root


def run(name: str, data: Path) -> None:
    """The program above, to its end."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(data)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.timeout(1000)
def test_mutated_files(backend: str, fuzzed: Path) -> None:
    # A beton of them: what its writer cannot decode it leaves out, by name.
    run(backend, opened(backend, fuzzed).root)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", [FFCV])
def test_mutated_samples(name: str, tmp_path: Path) -> None:
    """Bytes of a beton that rot in their places, after it was read back."""
    root = tmp_path / "train"
    for folder, n in (("good", N_GOOD), ("mutants", N_MUTANTS)):
        (root / folder).mkdir(parents=True)
        for i in range(n):
            jpeg = encoded(photograph(i % 50, (80, 60)), quality=90)
            (root / folder / f"{i:04d}.JPEG").write_bytes(jpeg)
    index = opened(name, root, jpeg_share=1.0)
    assert isinstance(index, BetonIndex)
    with open(index.root, "r+b") as file:
        for i in index.usable.tolist():
            if index.paths[i].startswith("mutants"):
                place, size = int(index.samples.offsets[i]), int(index.samples.n_bytes[i])
                file.seek(place)
                data = mutate_in_place(file.read(size), i)
                file.seek(place)
                file.write(data)
    run(name, index.root)


def mutate_in_place(sample: bytes, seed: int) -> bytes:
    """The same number of bytes, some of them others."""
    rng, data = np.random.default_rng([SEED, 7, seed]), bytearray(sample)
    at, n = int(rng.integers(len(data))), int(rng.integers(1, 300))
    if seed % 3 == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif seed % 3 == 1:
        data[at:] = bytes(len(data) - at)
    else:
        data[at : at + n] = rng.bytes(len(data[at : at + n]))
    return bytes(data)
