"""mkdocs hook: files outside of docs/ as pages of the site, and that every public name is in it."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PUBLIC = ("fastsc", "fastsc.kernels", "fastsc.pipelines", "fastsc.config", "fastsc.trainer",
          "fastsc.recipe", "fastsc.errors")  # fmt: skip


def on_files(files: Files, config: Any) -> Files:
    """README is the overview; what pages link to outside of docs/ becomes part of the site."""
    check_public_names()
    overview = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=overview))
    outside = ["CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"]
    for page in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"]:
        outside += re.findall(
            r"\]\((?:\.\./)*((?:kernels|examples|bench)/[^)#]+)", page.read_text(encoding="utf-8")
        )
    for name in sorted(set(outside)):
        files.append(File.generated(config, name, content=(ROOT / name).read_bytes()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links that lead out of docs/ in the checkout stay within the site."""
    if page.file.src_uri in ("index.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        return markdown.replace("](docs/", "](")
    return markdown if "/" in page.file.src_uri else markdown.replace("](../", "](")


def check_public_names() -> None:
    """Raises PluginError for a public name without docstring, or on no page of the API."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/api/*.md"))
    shown = {id(imported(name)) for name in re.findall(r"^::: (\S+)", pages, re.M)}
    missing = []
    for module in PUBLIC:
        for name in importlib.import_module(module).__all__:
            value = imported(f"{module}.{name}")
            if not (inspect.isclass(value) or inspect.isfunction(value)):
                continue  # a constant
            if not inspect.getdoc(value):
                missing.append(f"{module}.{name} has no docstring")
            if id(value) not in shown:
                missing.append(f"{module}.{name} is on no page of docs/api")
    if missing:
        raise PluginError("; ".join(missing))


def imported(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
