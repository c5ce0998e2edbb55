"""The pictures of the README, made of drawn shapes: `python docs/pictures.py`.

Eight kinds of shapes in random colors are drawn into an ImageFolder, two small networks are trained
on them by command, with cross-entropy alone and with the constraint, and both are evaluated. Writes
docs/images/pairs.png and OUT/page/report.html, of which docs/images/report.png is a screenshot by
chromium, where there is one. Takes some minutes on two cores.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fastsc.evaluation.models.sources import load_classifier
from fastsc.pipelines import IMAGENET_MEAN, IMAGENET_STD, build

IMAGES = Path(__file__).parent / "images"
SIDE, SCALE = 64, 4  # pixels of an image, and by how much larger it is drawn
PER_CLASS = {"train": 120, "val": 40}
SHAPES = ("circle", "crescent", "cross", "heart", "ring", "square", "star", "triangle")
SHOWN = ("circle", "crescent", "heart", "star", "triangle")
ARMS = {"cross-entropy": ["--plain"], "with the constraint": []}
COLORS = ("#888888", "#1f77b4")


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/pictures")
    data = out / "shapes"
    write_shapes(data)
    runs = [out / f"run-{i}" for i in range(len(ARMS))]
    for run, options in zip(runs, ARMS.values(), strict=True):
        command(
            "train", "cifar100", "--data", data, "--out", run, "--model", "fastsc:resnet8w16",
            "--resolution", SIDE, "--epochs", 12, "--batch-size", 32, "--pipeline", "memory",
            "--resume", *options,
        )  # fmt: skip
    draw_pairs(IMAGES / "pairs.png", data / "val", runs)
    page = out / "page"
    names = [name.replace(" ", "-") for name in ARMS]
    command(
        "evaluate",
        *runs,
        "--names",
        *names,
        "--data",
        data,
        "--out",
        page,
        "--images",
        60,
        "--only",
        "continuity",
        "neighbours",
        "gradients",
    )
    screenshot(page / "report.html", IMAGES / "report.png")


def command(name: str, *words: object) -> None:
    subprocess.run([sys.executable, "-m", f"fastsc.{name}", *map(str, words)], check=True)


# ---- drawing the data ----------------------------------------------------------------------------


def write_shapes(folder: Path) -> None:
    """FOLDER/train/SHAPE/*.png and FOLDER/val/SHAPE/*.png, the same at every call."""
    rng = np.random.default_rng(0)
    for part, n in PER_CLASS.items():
        for shape in SHAPES:
            place = folder / part / shape
            place.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                draw_shape(shape, rng).save(place / f"{i:03}.png")


def draw_shape(shape: str, rng: np.random.Generator) -> Image.Image:
    """One shape at a random place, of a random size, angle and color, on another color."""
    side = SIDE * SCALE
    background, color = random_colors(rng)
    image = Image.new("RGB", (side, side), background)
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    radius = side * rng.uniform(0.22, 0.36)
    x, y = rng.uniform(radius, side - radius, 2)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape in ("circle", "ring", "crescent"):
        draw.ellipse(box, fill=255)
    if shape == "ring":
        draw.ellipse(tuple(np.add(box, np.array([1, 1, -1, -1]) * radius * 0.45)), fill=0)
    elif shape == "crescent":
        draw.ellipse(tuple(np.add(box, np.array([1, -1, 1, -1]) * radius * 0.45)), fill=0)
    elif shape != "circle":
        turn = rng.uniform(-0.4, 0.4)
        corners = outline(shape) * radius @ rotation(turn) + (x, y)
        draw.polygon([tuple(corner) for corner in corners], fill=255)
    image.paste(color, mask=mask)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def random_colors(rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Two colors that differ by at least 80 of 255 in grey."""
    while True:
        pair = rng.integers(20, 236, (2, 3))
        if abs(np.diff(pair @ (0.299, 0.587, 0.114))) >= 80:
            return [tuple(color) for color in pair.tolist()]


def rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def outline(shape: str) -> NDArray[np.float64]:
    """Corners (n, 2) of a polygon within the unit circle."""
    if shape == "cross":
        arm, end = 0.32, 0.95
        quarter = np.array([[-arm, -end], [arm, -end], [arm, -arm]])
        return np.concatenate([quarter @ rotation(i * math.pi / 2) for i in range(4)])
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 60)
        x = 16 * np.sin(t) ** 3
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([x, -y], 1) / 17
    n = {"triangle": 3, "square": 4, "star": 10}[shape]
    angles = 2 * math.pi * np.arange(n) / n - math.pi / 2
    lengths = np.where(np.arange(n) % 2, 0.42, 1.0) if shape == "star" else np.ones(n)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * lengths[:, None]


# ---- the pictures --------------------------------------------------------------------------------


def draw_pairs(path: Path, data: Path, runs: list[Path]) -> None:
    """A pair of views per column, and under it how far each network's representation moves."""
    loader = build("memory", data, batch_size=8 * 40, resolution=SIDE, train=False, val_crop=1.0)
    (batch,) = loader
    assert batch.perturbed is not None
    distances = np.stack([relative_distances(run, batch.clean, batch.perturbed) for run in runs])
    shown = [int(np.flatnonzero(batch.target.numpy() == SHAPES.index(shape))[0]) for shape in SHOWN]
    figure = Figure(figsize=(9, 4.6), facecolor="white")
    grid = figure.add_gridspec(3, len(shown), height_ratios=(1, 1, 0.62), hspace=0.06, wspace=0.12)
    grid.update(left=0.11, right=0.985, top=0.99, bottom=0.13)
    for column, row in enumerate(shown):
        for line, view in enumerate((batch.clean, batch.perturbed)):
            axes = figure.add_subplot(grid[line, column])
            axes.imshow(pixels(view[row]))
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(("clean\nx", "perturbed\nx′ = P(x)")[line], rotation=0, labelpad=32)
                axes.yaxis.label.set_verticalalignment("center")
        axes = figure.add_subplot(grid[2, column])
        axes.barh((1, 0), distances[:, row], color=COLORS, height=0.7)
        axes.set(xlim=(0, 1.28 * distances[:, shown].max()), xticks=[], yticks=[])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        for y, distance in zip((1, 0), distances[:, row], strict=True):
            axes.text(distance, y, f" {distance:.2f}", va="center", fontsize=10)
        if column == 0:
            axes.set_ylabel("how far\nit moves", rotation=0, labelpad=32)
            axes.yaxis.label.set_verticalalignment("center")
    means = distances.mean(axis=1)
    for i, (name, color) in enumerate(zip(ARMS, COLORS, strict=True)):
        label = f"{name}: {means[i]:.2f} over {distances.shape[1]} pairs"
        figure.text(0.13 + 0.42 * i, 0.045, "■ ", color=color, fontsize=12)
        figure.text(0.15 + 0.42 * i, 0.045, label, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


@torch.inference_mode()
def relative_distances(
    run: Path, clean: torch.Tensor, perturbed: torch.Tensor
) -> NDArray[np.float32]:
    """‖f − f′‖ of every pair over the mean distance of two different images, (N,)."""
    model = load_classifier(str(run)).eval()
    f, g = (model(view)[0] for view in (clean, perturbed))
    between = torch.pdist(f).mean()
    return ((f - g).norm(dim=1) / between).numpy()


def pixels(view: torch.Tensor) -> NDArray[np.uint8]:
    """A normalized view (3, H, W) as bytes (H, W, 3)."""
    rgb = view.permute(1, 2, 0) * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)
    return (rgb * 255).round().clamp(0, 255).byte().numpy()


def screenshot(page: Path, picture: Path) -> None:
    """The top of the page, 1200 by 1500 CSS pixels."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print(f"no chromium: {picture} stays as it is")
        return
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,1500",
         f"--screenshot={picture.resolve()}", page.resolve().as_uri()],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
