"""Images that are unusual and fine come out right, or are left out by name, on every backend."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from fastsc.pipelines import Index, build
from tests.pipelines.conftest import encoded, odd_files, opened, photograph

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.heavy]

SIZE = 32


def deep_rgb() -> bytes:
    """A PNG of three times 16 bits a pixel, which Pillow cannot write."""
    cv2 = pytest.importorskip("cv2")
    pixels = np.asarray(photograph())[..., ::-1].astype(np.uint16) * 257
    return bytes(cv2.imencode(".png", pixels)[1])


def frames(kind: str) -> bytes:
    """An animated image; the first frame is the photograph."""
    buffer = io.BytesIO()
    rest = [photograph(seed) for seed in (1, 2)]
    photograph().save(buffer, kind, save_all=True, append_images=rest)
    return buffer.getvalue()


@functools.cache
def bomb() -> bytes:
    """400 million pixels in 50 KB."""
    return encoded(Image.new("1", (20_000, 20_000)), "PNG")


def images(backend: str, index: Index) -> dict[str, torch.Tensor]:
    """CLASS/FILE -> the clean view at validation, on [0, 255], of all that a loader yields."""
    loader = build(
        backend, index, batch_size=4, resolution=SIZE, train=False, val_crop=1.0,
        mean=(0, 0, 0), std=(1, 1, 1), on_bad_image="skip", timeout=30,
    )  # fmt: skip
    found = {
        index.paths[int(i)]: 255 * image
        for batch in loader
        for i, image in zip(batch.index, batch.clean, strict=True)
    }
    loader.close()
    return found


def centre(image: Image.Image) -> torch.Tensor:
    """The central square, resized as most backends do it."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return tv.resize(tv.pil_to_tensor(square), [SIZE, SIZE], antialias=True).float()


def differs(image: torch.Tensor, expected: torch.Tensor) -> float:
    return float((image - expected).abs().mean())


def test_odd_files_look_as_they_should(backend: str, folder: Path) -> None:
    train = folder / "train"
    odd = odd_files() | {"deep-rgb.png": deep_rgb(), "frames.webp": frames("WEBP")}
    colors = photograph().quantize(256)
    odd["palette.png"] = encoded(colors, "PNG")
    for name, data in odd.items():
        (train / "boat" / name).write_bytes(data)
    index = opened(backend, train, jpeg_share=0.0, resolution=None)
    found = images(backend, index)
    left_out = {Path(bad.path).name for bad in index.bad_images()}
    assert left_out <= {"frames.webp"}  # an animation is an image, or is named
    grey = photograph().convert("L").convert("RGB")
    other = {"grey.JPEG": grey, "grey16.png": grey, "palette.png": colors.convert("RGB")}
    for name in odd.keys() - left_out - {"long.JPEG", "cmyk.JPEG"}:
        expected = other.get(name, photograph())
        # JPEG at PIL's default quality, and area against bilinear, are worth a level or two. A
        # rotated photograph, a white 16-bit one or swapped channels would be worth tens.
        assert differs(found[f"boat/{name}"], centre(expected)) < 3, name
    assert differs(found["boat/cmyk.JPEG"], centre(photograph())) < 12  # its own conversion
    assert "boat/long.JPEG" in found


def test_extreme_aspect(backend: str, folder: Path) -> None:
    wide = Image.fromarray(np.full((30, 30_000, 3), (200, 100, 50), np.uint8))
    (folder / "train" / "boat" / "wide.png").write_bytes(encoded(wide, "PNG"))
    # A beton of at most 400 pixels a side keeps one row of it.
    found = images(backend, opened(backend, folder / "train", resolution=400, jpeg_share=0.0))
    assert differs(found["boat/wide.png"], torch.tensor([200.0, 100, 50])[:, None, None]) < 1
    assert len(found) == 33


def test_rejected_by_name(backend: str, folder: Path) -> None:
    boat = folder / "train" / "boat"
    (boat / "bomb.png").write_bytes(bomb())
    (boat / "dot.png").write_bytes(encoded(photograph(size=(1, 1)), "PNG"))
    (boat / "sound.JPEG").write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(3000))
    (boat / "frames.JPEG").write_bytes(frames("GIF"))
    (boat / "dangling.JPEG").symlink_to(boat / "nowhere.JPEG")
    (boat / "notes.txt").write_text("no image, and no image's name")
    index = opened(backend, folder / "train")
    reasons = {Path(bad.path).name: bad.reason for bad in index.bad_images()}
    assert "bomb" in reasons["bomb.png"]
    assert "too small" in reasons["dot.png"]
    assert reasons["sound.JPEG"] == "not an image"
    assert "No such file" in reasons["dangling.JPEG"]
    found = images(backend, index)
    # A GIF by a JPEG's name is read where the decoder knows GIF.
    assert len(found) == 32 + ("frames.JPEG" not in reasons)
    assert not {Path(path).name for path in found} & reasons.keys()


UNREADABLE = """
import sys
from pathlib import Path
from fastsc.pipelines import BetonIndex, UserError, build, open_beton, scan
name, folder = sys.argv[1], Path(sys.argv[2])
try:
    index = open_beton(folder / "train.beton") if name == "ffcv" else scan(folder / "train")
    loader = build(name, index, batch_size=4, resolution=32, workers=1, timeout=30)
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.fixture
def public_folder(image_folder: Path) -> Iterator[Path]:
    """A folder that any user may enter, with one class of four images."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "train" / "boat").mkdir(parents=True)
        for i in range(4):
            (root / "train" / "boat" / f"{i}.jpg").write_bytes(encoded(photograph(i)))
        for path in (root, *root.rglob("*")):
            path.chmod(0o755)
        yield root


def test_no_permission(backend: str, public_folder: Path) -> None:
    """As another user than root, whom permissions do not stop."""
    victim = public_folder / "train" / "boat" / "2.jpg"
    if backend == "ffcv":
        victim = opened(backend, public_folder / "train").root
    victim.chmod(0o000)
    program = UNREADABLE
    if os.geteuid() == 0:
        program = "import os; os.setgid(65534); os.setuid(65534)\n" + program
        # What needs root's eyes is imported before they close.
        program = "import ffcv.libffcv, numba\n" * (backend == "ffcv") + program
        program = "import nvidia.dali\n" * (backend == "dali") + program
        program = "import fastsc.pipelines.factory, fastsc.pipelines.memory\n" + program
    done = subprocess.run(
        [sys.executable, "-c", program, backend, str(public_folder)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert victim.name in done.stdout
    assert "Permission denied" in done.stdout
    assert len(done.stdout.splitlines()) == 1
