"""Numbers from features and images; nothing here knows how they were made.

In reading order: `frechet` (FID and sFID from sums that merge), `manifold` (precision and recall), `metrics` (all
scores of one set, enter by `score_features`; distance to the training images), `judge` (which class an image shows),
`adherence` (how well an image follows a structure map), `reconstruction` (an image against its copy; not re-exported,
since it brings the networks of LPIPS).
"""

from eval.scores.adherence import measure
from eval.scores.judge import class_accuracy, train_judge
from eval.scores.metrics import distance_to_training, frechet_distance, peak_signal_to_noise, score_features

__all__ = [
    "class_accuracy",
    "distance_to_training",
    "frechet_distance",
    "measure",
    "peak_signal_to_noise",
    "score_features",
    "train_judge",
]
