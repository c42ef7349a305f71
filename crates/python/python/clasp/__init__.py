"""Human-centric visual pre-training: pseudo-labels, pre-training, fine-tuning, evaluation, features.

    import clasp

    model = clasp.load("runs/reid")
    features = model.embed(["a.jpg", "b.jpg"])  # float32 [images, channels]

Installing the package also installs the program `clasp`, whose documentation explains every command.
"""

from ._clasp import Error, Images, __version__
from . import metrics
from .commands import evaluate, finetune, label, pretrain, run
from .labels import Labels, LabelStore
from .model import Model, load
from .predictions import (
    AttributePrediction,
    DetectionPrediction,
    ParsingPrediction,
    PosePrediction,
    Prediction,
    ReidPrediction,
    SearchPrediction,
)
from .views import Sample, ViewDataset, views

__all__ = [
    "AttributePrediction",
    "DetectionPrediction",
    "Error",
    "Images",
    "LabelStore",
    "Labels",
    "Model",
    "ParsingPrediction",
    "PosePrediction",
    "Prediction",
    "ReidPrediction",
    "Sample",
    "SearchPrediction",
    "ViewDataset",
    "__version__",
    "evaluate",
    "finetune",
    "label",
    "load",
    "metrics",
    "pretrain",
    "run",
    "views",
]
