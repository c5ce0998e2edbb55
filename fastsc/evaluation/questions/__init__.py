"""One question a module or package, each a function of a model and a loader.

What all of them take:

    model: On the loader's device.
    loader: A validation pipeline (`build(..., train=False)`); its strengths are the box of the
        perturbations.
    labels: (len(index),) int64, the right output of each dataset index, -1 where there is none.
        Default: the loader's classes; of gradients, none.
    n: Images at most, of those that the question can use. None: all of them.
    seed: Of the choice of images, of all draws and of the intervals.
    cache: Of parts; see `fastsc.evaluation.results.answers`.

All raise a UserError where an image does not decode.
"""
