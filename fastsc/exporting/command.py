"""What `fastsc.export` does with the words of its command line."""

from __future__ import annotations

from pathlib import Path

from fastsc.cli.console import write_line
from fastsc.cli.parser import Parser, folder_name
from fastsc.errors import UserError

# Of files; another is part of a folder's name, as in resnet18.a1_in1k.
ENDINGS = (
    ".bin", ".ckpt", ".engine", ".h5", ".json", ".mlmodel", ".npz", ".pb", ".pickle", ".pkl", ".pt",
    ".pth", ".pte", ".safetensors", ".tar", ".tflite", ".torchscript", ".ts", ".txt", ".yaml",
    ".zip",
)  # fmt: skip


def run(words: list[str]) -> int:
    """Parses the options, converts, checks what came of it, and says where it is."""
    args = _parser().parse_args(words)
    target: Path = args.to
    kind = kind_of(target)
    _check_free(target)
    if kind == "folder" and (args.with_normalization or args.input != "float"):
        raise UserError("--with-normalization and --input are for .onnx and .pt2: timm has its own")
    if kind != "folder" and args.results is not None:
        raise UserError(f"--results: is for the model card of a folder, and {target} has none")
    if args.results is None and args.results_model is not None:
        raise UserError("--results-model: chooses among the models of --results FILE")

    from fastsc.exporting.trained import load_trained  # torch takes seconds; a mistake should not

    if kind == "folder":
        from fastsc.exporting.card import read_figures
        from fastsc.exporting.hub import write_folder

        figures = args.results and read_figures(args.results, args.results_model, Path(args.model))
        trained = load_trained(args.model)
        lines = write_folder(target, trained, figures)
    else:
        from fastsc.exporting.program import Input, write_program

        form: Input = "unit" if args.with_normalization else "normalized"
        if args.input == "uint8":
            form = "uint8"
        lines = write_program(target, load_trained(args.model), form)
    write_line("\n".join(lines))
    return 0


def kind_of(target: Path) -> str:
    """folder, .onnx or .pt2, by the name's ending.

    Raises:
        UserError: It has another ending, as a file has it.
    """
    if target.suffix in (".onnx", ".pt2"):
        return target.suffix
    if target.suffix.lower() in ENDINGS and not target.is_dir():
        raise UserError(
            f"--to {target}: unknown ending {target.suffix}; take FILE.onnx, FILE.pt2, or a "
            "folder's name for timm and the hub"
        )
    return "folder"


def _check_free(target: Path) -> None:
    """Raises UserError where something is at the target's place, or it has no name of text."""
    try:
        str(target).encode()
    except UnicodeEncodeError:
        raise UserError(f"--to {target}: is no UTF-8; name another") from None
    try:
        if target.is_dir() and kind_of(target) == "folder":
            if any(target.iterdir()):
                raise UserError(f"--to {target}: is there already, and not empty; name another")
        elif target.exists() or target.is_symlink():
            raise UserError(f"--to {target}: is there already; remove it, or name another")
    except OSError as error:
        raise UserError(f"--to {target}: {error.strerror}") from None


def _parser() -> Parser:
    parser = Parser(
        prog="python -m fastsc.export",
        description="Write a run's weights in a form that others load, and check that it computes "
        "the same logits.",
    )
    add = parser.add_argument
    add("model", metavar="RUN", help="a run's folder, or its weights.safetensors")
    add(
        "--to",
        metavar="TARGET",
        type=folder_name,
        required=True,
        help="DIR: a folder for timm.create_model('local-dir:DIR', pretrained=True) and the "
        "Hugging Face hub (config.json, model.safetensors, README.md); FILE.onnx; FILE.pt2, of "
        "torch.export. Both files take any number of images",
    )
    add(
        "--with-normalization",
        action="store_true",
        help="of a file: it takes RGB on [0, 1] and normalizes by itself; default: normalized "
        "images",
    )
    add(
        "--input",
        choices=("float", "uint8"),
        default="float",
        help="of a file: float32 (N, 3, H, W), or bytes (N, H, W, 3), which it normalizes; "
        "default: %(default)s",
    )
    add(
        "--results",
        metavar="FILE",
        type=Path,
        help="of a folder: results.json of fastsc.evaluate, whose figures its model card shows",
    )
    add(
        "--results-model",
        metavar="NAME",
        help="which of the models there, where there are several",
    )
    return parser
