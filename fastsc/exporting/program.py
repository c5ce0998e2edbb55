"""ONNX and torch.export: the network as a program that needs none of its code."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastsc.cli.packages import needed
from fastsc.errors import UserError, first_line
from fastsc.exporting.place import made_whole
from fastsc.exporting.trained import CLOSE, Trained

Input = Literal["normalized", "unit", "uint8"]
_WORDS = {
    "normalized": "float32 (N, 3, {0}, {0}), normalized",
    "unit": "float32 (N, 3, {0}, {0}), RGB on [0, 1]",
    "uint8": "uint8 (N, {0}, {0}, 3), RGB",
}
CHECKED = 1, 3  # batch sizes that the written file is compared at

Answer = Callable[[Tensor], Tensor]


class Served(nn.Module):
    """forward(images) -> logits (N, C), with the normalization that the form of input needs."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained, form: Input) -> None:
        super().__init__()
        self.net, self.form = trained.net, form
        for name in ("mean", "std"):
            values = torch.tensor(getattr(trained.preprocessing, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalized(images))
        return logits

    def normalized(self, images: Tensor) -> Tensor:
        """What the network takes, (N, 3, R, R), of images in the form of this program."""
        if self.form == "uint8":
            images = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        return images if self.form == "normalized" else (images - self.mean) / self.std

    def example(self, trained: Trained, n: int) -> Tensor:
        """n images of noise in the form that `forward` takes."""
        if self.form == "normalized":
            return trained.images(n)
        unit = torch.sigmoid(trained.images(n))
        return unit if self.form == "unit" else (unit * 255).byte().permute(0, 2, 3, 1).contiguous()


def write_program(target: Path, trained: Trained, form: Input) -> list[str]:
    """Writes FILE.onnx or FILE.pt2, loads it, and compares its logits with the network's.

    Returns:
        What a person should know of it, a line each.

    Raises:
        UserError: A package is missing, the network cannot be exported, the file does not compute
            the same, or the disk does not take it; nothing is left behind.
    """
    write = _write_onnx if target.suffix == ".onnx" else _write_pt2
    if target.suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            needed(package, str(target), extra="export")
    served = Served(trained, form).eval().requires_grad_(False)
    side = trained.preprocessing.resolution
    words = _WORDS[form].format(side)
    facts = {
        "architecture": trained.architecture.name,
        "classes": trained.classes,
        "resolution": side,
        "val_crop": trained.preprocessing.val_crop,
        "mean": trained.preprocessing.mean,
        "std": trained.preprocessing.std,
        "input": words,
    }
    with made_whole(target, folder=False) as part:
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                answer = write(served, served.example(trained, 2), part, facts)
                differences = [
                    trained.difference(answer(images), served.normalized(images))
                    for images in (served.example(trained, n) for n in CHECKED)
                ]
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001, exporters raise anything
            raise UserError(
                f"{trained.architecture.name} cannot be exported as {target.suffix}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from None
        if not all(difference <= CLOSE for difference in differences):  # NaN is not
            raise UserError(
                f"{target}: its logits differ from the network's by {max(differences):.2g} of the "
                "largest; nothing was written"
            )
    return [
        f"wrote {target}: {words} -> logits (N, {len(trained.classes)}), any N",
        f"its logits differ from the network's by {max(differences):.1g} of the largest",
    ]


def _write_onnx(served: Served, example: Tensor, part: Path, facts: dict[str, Any]) -> Answer:
    import onnx
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(
        served,
        (example,),
        str(part),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    model = onnx.load(str(part))
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(part))
    session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return answer


def _write_pt2(served: Served, example: Tensor, part: Path, facts: dict[str, Any]) -> Answer:
    program = torch.export.export(
        served, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    # Into memory first: where the disk is full, torch's own writer aborts the process.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"fastsc.json": json.dumps(facts)})
    part.write_bytes(buffer.getbuffer())
    loaded = torch.export.load(part).module()

    def answer(images: Tensor) -> Tensor:
        logits: Tensor = loaded(images)
        return logits

    return answer
