"""What a run can be told, from a recipe, the command line or Python."""

from fastsc.config.schema import (
    SECTIONS,
    STEERED_ALPHA,
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)

__all__ = [
    "SECTIONS",
    "STEERED_ALPHA",
    "DataConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
]
