"""A model with the loaders that show it images, and what its cached answers depend on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from fastsc.cli.console import printable
from fastsc.datasets.colormnist import colormnist_splits
from fastsc.datasets.folders import check_label_key
from fastsc.distributed.devices import DTYPES, Precision
from fastsc.errors import UserError
from fastsc.evaluation.data import Split
from fastsc.evaluation.models.labels import map_labels, map_pairs
from fastsc.evaluation.models.sources import Source
from fastsc.evaluation.options import Options, Strengths
from fastsc.evaluation.pairs_data import Pairs, open_pairs
from fastsc.evaluation.registry import Sizes, Subject
from fastsc.evaluation.results.answers import PartCache
from fastsc.evaluation.results.store import Store
from fastsc.evaluation.transfer_data import transfer_splits
from fastsc.loading.libraries import imagenet_names
from fastsc.pipelines import Index, Pipeline, build, scan
from fastsc.run.environment import version_of

PACKAGES = (  # that figures come from
    "fastsc", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "scikit-image",
    "umap-learn", "captum", "torchattacks", "imagecorruptions-imaug",
)  # fmt: skip
LABELLED = ("gradients", "robustness", "shifts", "bias")  # depend on what is right


class AuxiliaryData(NamedTuple):
    """What some questions use next to the data.

    Attributes:
        transfer: Another data set's training and test part.
        colors: Color MNIST's folders of test digits.
        pairs: Of real pictures.
    """

    transfer: tuple[Index, Index] | None
    colors: dict[str, Index] | None
    pairs: Pairs | None = None


def auxiliary_data(options: Options, split: Split) -> AuxiliaryData:
    """Indexes it.

    Raises:
        UserError: Another data set is asked for that cannot be had; or a field of labels, of
            neither's tars.
    """
    other, folders = options.transfer_data, colormnist_splits(options.data)
    if other is None and options.fine_tune:
        raise UserError("--fine-tune is for another data set; name it with --transfer-data DIR")
    transfer = None
    if other is not None:
        transfer = transfer_splits(
            other, options.seed, options.on_bad_image, options.pipeline, options.label_key
        )
    parts = split.index, *(transfer or ())
    check_label_key(options.label_key, options.data, parts)
    colors = None
    if folders is not None:
        classes = split.index.classes
        colors = {name: scan(path, classes=classes) for name, path in folders.items()}
    pairs = None if options.pairs is None else open_pairs(options.pairs, options.pipeline)
    return AuxiliaryData(transfer, colors, pairs)


def make_subject(
    options: Options,
    name: str,
    split: Split,
    source: Source,
    device: torch.device,
    precision: Precision,
    sizes: Sizes,
    strengths: Strengths,
    perturb: tuple[str, ...],
    auxiliary: AuxiliaryData,
) -> Subject:
    """A model, which is on its device, with its loader."""
    model = source.classifier
    of = auxiliary.pairs
    others = of.split.index.classes if of is not None else ()
    labels = map_labels(split, source, options.class_map, [name for name in others if name])
    if source.synsets is not None and labels.how == "names":
        # torchvision and timm call the same classes differently; here models stand side by side.
        model.classes = imagenet_names()
    wanted = model.preprocessing

    def loader(index: Index, *, bounded: bool = True) -> Pipeline:
        most = model.passes.forward if bounded else None
        return build(
            options.pipeline,
            index,
            batch_size=min(options.batch_size, most or options.batch_size),
            resolution=wanted.resolution,
            train=False,
            val_crop=wanted.val_crop,
            interpolation=wanted.interpolation,
            strengths=strengths,
            perturb=perturb,
            mean=wanted.mean,
            std=wanted.std,
            device=device,
            dtype=DTYPES[precision],
            workers=options.workers,
            on_bad_image=options.on_bad_image,
        )

    transfer = colors = None
    if auxiliary.transfer is not None:
        train, test = auxiliary.transfer
        # What is learned depends on the batch, and so not on the memory that there is.
        transfer = loader(train, bounded=not options.fine_tune), loader(test)
    if auxiliary.colors is not None:
        colors = {name: loader(one) for name, one in auxiliary.colors.items()}
    pairs = None
    if of is not None:
        right = map_pairs(of.split, source, labels)
        if right.reason is not None:
            of = replace(of, left_out=(*of.left_out, right.reason))
        pairs = loader(of.split.index), of, right.targets
    return Subject(
        name=name,
        model=model,
        loader=loader(split.index),
        labels=labels.targets,
        seed=options.seed,
        sizes=sizes,
        class_name=None if options.class_name is None else printable(options.class_name),
        transfer=transfer,
        fine_tune=options.fine_tune,
        colors=colors,
        pairs=pairs,
        left_out={} if labels.reason is None else {"top-1": labels.reason},
    )


def stamp(indices: Iterable[Index]) -> str:
    """Names the files as they are now: a picture may be another under its name and size."""
    digest = hashlib.sha256()
    for index in indices:
        digest.update(index.hash.encode())
        for i in index.usable.tolist():
            time = os.stat(index.place(i).path).st_mtime_ns
            digest.update(time.to_bytes(8, "little", signed=True))
    return digest.hexdigest()


def part_cache(
    store: Store, subject: Subject, stamps: Mapping[str, str], question: str
) -> PartCache:
    """The cache of one question about one model, with all that its answers depend on."""
    loader, labels = subject.loader, subject.labels.tobytes()
    return store.cache(
        question=question,
        model=subject.model.hash,
        data=stamps[question],
        versions={name: version_of(name) for name in PACKAGES},
        labels=hashlib.sha256(labels).hexdigest() if question in LABELLED else None,
        pipeline=loader.name,
        dtype=str(loader.settings.dtype),
        device=loader.device.type,
        decoder=loader.decoder,
    )
