"""What `fastsc.reproduce` does with the words of its command line."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fastsc.cli.console import require_output, write_line, write_table
from fastsc.cli.parser import Parser, count, folder_name, seed, workers
from fastsc.errors import UserError
from fastsc.reproduction import STUDIES

if TYPE_CHECKING:
    from fastsc.reproduction.session import Session

MORE = """\
Options after -- go to every training: `-- --device cuda --model resnet18`. STUDY `page` trains
nothing: it makes docs/reproduction.md and its figures anew from the committed records."""


def run(words: list[str]) -> int:
    """Parses the options and runs the study; returns the exit status."""
    cut, parser = words.index("--") if "--" in words else len(words), _parser()
    args = parser.parse_args(words[:cut])
    if args.study == "page":
        named = {key for key, value in vars(args).items() if value != parser.get_default(key)}
        if cut < len(words) or named - {"study", "out"}:
            raise UserError("page is made of the committed records: it has no option but --out")
    return _run(args, words[cut + 1 :])


def _parser() -> Parser:
    parser = Parser(
        prog="python -m fastsc.reproduce",
        description="The paper's experiments as one resumable sweep, with a page of what came out.",
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # fmt: off
    add = parser.add_argument
    add("study", metavar="STUDY", help=f"{', '.join(STUDIES)}, a YAML file of that form; or page")
    add("--data", type=folder_name, metavar="DIR", help="the ImageFolder of the study")
    add("--out", type=folder_name, metavar="DIR",
        help="runs/, records/, evaluations/, reproduction.md with its figures")
    add("--quick", action="store_true",
        help="a replication: few arms, seeds of its own, compared with the committed figures")
    add("--arms", nargs="+", metavar="ARM", help="these only")
    add("--seeds", nargs="+", type=seed, metavar="N", help="these, in place of each arm's own")
    add("--jobs", type=workers, default=1, metavar="N",
        help="trainings at a time (default: %(default)s)")
    add("--dry-run", action="store_true", help="print what is left to run and what it costs")
    add("--scale", metavar="NAME", help="another machine's setting, which the study names")
    add("--known", type=folder_name, metavar="DIR",
        help="records of runs that are not run again; default: the committed ones")
    add("--anew", action="store_true", help="run what is committed, too")
    add("--transfer-data", type=folder_name, metavar="DIR",
        help="labelled images for the question transfer; default: Color MNIST, made in OUT")

    trial = parser.add_argument_group("trials; their figures are no result, and their page says so")
    add = trial.add_argument
    add("--limit-images", type=count, metavar="N", help="of training and of validation")
    add("--max-steps", type=count, metavar="N", help="of each training")
    # fmt: on
    return parser


def _run(args: argparse.Namespace, more: list[str]) -> int:
    # Imported here: torch alone takes seconds, and --help should not wait for it.
    from fastsc.reproduction.page.document import write_docs

    if args.study == "page":
        write_docs(RECORDS, args.out or DOCS)
        write_line(f"wrote {args.out or DOCS}/reproduction.md")
        return 0
    from fastsc.reproduction.session import open_session

    for name in ("data", "out"):
        if getattr(args, name) is None:
            raise UserError(f"--{name} is missing; see --help")
    with ExitStack() as resources:
        session = open_session(args, more, _known(args), resources)
        return _carry_out(session, dry=args.dry_run)


def _carry_out(session: Session, *, dry: bool) -> int:
    for line in session.lines:
        write_line(line)
    if dry:
        write_table(session.cost(), columns=140)
        require_output()
        return 0
    return session.run(write_line)


# The committed records and the page, where fastsc runs from its checkout.
_ROOT = Path(__file__).resolve().parents[2]
DOCS = _ROOT / "docs"
RECORDS = DOCS / "runs"


def _known(args: argparse.Namespace) -> Path | None:
    """The folder of records that need not be run again; None where there is none."""
    if args.anew:
        if args.known is not None:
            raise UserError("--anew runs everything, --known names what need not be: give one")
        return None
    if args.known is not None:
        if not args.known.is_dir():
            raise UserError(f"--known {args.known}: there is no such folder")
        return Path(args.known)
    committed = RECORDS / args.study
    return committed if committed.is_dir() else None
