"""`build`: one call for every pipeline, with the options checked."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from typing import ParamSpec, Protocol

from fastsc.pipelines.base import Pipeline
from fastsc.pipelines.beton import BetonIndex, open_beton
from fastsc.pipelines.errors import UserError
from fastsc.pipelines.index import Index, scan
from fastsc.pipelines.plan import Settings

# Imported when asked for: a backend that is not installed troubles nobody else.
PIPELINES = {
    "dali": ("fastsc.pipelines.dali", "DaliPipeline"),
    "cpu": ("fastsc.pipelines.cpu", "CpuPipeline"),
    "ffcv": ("fastsc.pipelines.ffcv", "FfcvPipeline"),
    "memory": ("fastsc.pipelines.memory", "MemoryPipeline"),
}
Data = Index | str | os.PathLike[str]
Options = ParamSpec("Options")
Opened = Callable[[str, Data, Settings], Pipeline]


class Build(Protocol[Options]):
    """`build`, whose options are the arguments of Settings."""

    def __call__(
        self, pipeline: str, data: Data, *args: Options.args, **options: Options.kwargs
    ) -> Pipeline: ...


def _with_options_of(settings: Callable[Options, Settings]) -> Callable[[Opened], Build[Options]]:
    """Has a function take the arguments of Settings by name in the place of these.

    Signature and documentation are made of both, so that an option is spelled in one place.
    """

    def decorate(function: Opened) -> Build[Options]:
        def call(
            pipeline: str, data: Data, *args: Options.args, **options: Options.kwargs
        ) -> Pipeline:
            return function(pipeline, data, settings(*args, **options))

        functools.update_wrapper(call, function)
        own = inspect.signature(function)
        parameters = [*own.parameters.values()][:-1]
        parameters += inspect.signature(settings).parameters.values()
        call.__dict__["__signature__"] = own.replace(parameters=parameters)
        call.__doc__ = f"{inspect.getdoc(function)}\n\n{inspect.getdoc(settings)}"
        return call

    return decorate


@_with_options_of(Settings)
def build(pipeline: str, data: Data, settings: Settings) -> Pipeline:
    """A loader of paired clean and perturbed views of one decode.

    Crops, flips, factors and the order are pure functions of (seed, epoch, dataset index): the
    same for every pipeline, batch size, number of workers and number of ranks.

    Args:
        pipeline: "dali", "cpu", "ffcv" or "memory".
        data: An index (`scan`, `from_dataset`), or what `scan` takes: a folder with one folder of
            images per class, or with tars, or a list (.csv); for "ffcv" an index (`open_beton`), or
            an FFCV dataset (.beton).

    Returns:
        An object with `__iter__` (one epoch of PairBatch), `__len__` (batches per epoch),
        `set_epoch`, `state_dict`, `load_state_dict`, `close`.

    Raises:
        UserError: A name, a size or the folder is wrong, or files are broken and on_bad_image is
            "raise"; the message is one line that says what to do.
    """
    if pipeline not in PIPELINES:
        raise UserError(f"no pipeline named {pipeline}; there are {', '.join(PIPELINES)}")
    index = _index_of(pipeline, data)
    index.require(settings.on_bad_image)
    n_usable = len(index) - len(index.left_out)
    if settings.train and n_usable < settings.batch_size:
        raise UserError(
            f"{index.root}: {n_usable} images are less than one batch of {settings.batch_size}; "
            "take a smaller --batch-size"
        )
    module, name = PIPELINES[pipeline]
    loader: Pipeline = getattr(importlib.import_module(module), name)(index, settings)
    loader.warm_up()
    return loader


def _index_of(pipeline: str, data: Data) -> Index:
    if not isinstance(data, Index):
        return open_beton(data) if pipeline == "ffcv" else scan(data)
    if isinstance(data, BetonIndex) != (pipeline == "ffcv"):
        kind = "a beton" if pipeline == "ffcv" else "an image folder, and not a beton"
        raise UserError(f"{data.root}: --pipeline {pipeline} reads {kind}")
    return data
