"""The keys that the tasks of this package add to results.

Which of them a result has depends on the task of its run, so that none is required. A task of
another package adds keys that are not here: read them from the result as a Mapping[str, Any].
"""

from __future__ import annotations

from typing import TypedDict

# One of an image's most likely classes: its name, and its probability in [0, 1].
Candidate = TypedDict("Candidate", {"class": str, "probability": float})

# A class: its name, its examples, and the share of them in [0, 1] that were predicted as such; None
# without examples.
ClassRow = TypedDict("ClassRow", {"class": str, "examples": int, "top1": float | None})


class Mistakes(TypedDict):
    """The most frequent mistakes, in place of a large confusion matrix.

    Attributes:
        classes: number of classes.
        mistakes: [true class, predicted class, count] of each, most frequent first.
        other_mistakes: number of examples in all others.
    """

    classes: int
    mistakes: list[list[int]]
    other_mistakes: int


class TaskScore(TypedDict, total=False):
    """The task's score, in [0, 1]; `Score.of` reads it by the key of any task.

    Attributes:
        top1: of classification, the share of images whose likeliest class is the true one.
    """

    top1: float


class TaskSummary(TaskScore, total=False):
    """What a task adds to an evaluation.

    Attributes:
        loss: mean training loss, in nats for classification.
        top1_without_tta: "top1" without test-time augmentation; only with it.
        top5: share of images whose true class is among the five likeliest, in [0, 1].
        nll: mean negative log-likelihood of the true class, in nats.
        ece: expected calibration error, in [0, 1].
        per_class: a row for each class, in the order of the data set.
        confusion: counts by true (rows) and predicted class (columns), or, with many classes, the
            mistakes.
    """

    loss: float
    top1_without_tta: float
    top5: float
    nll: float
    ece: float
    per_class: list[ClassRow]
    confusion: list[list[int]] | Mistakes


class TaskAgreement(TaskScore, total=False):
    """What a task adds to the row of an exported file; None where a value is not finite.

    Attributes:
        examples: number of images that the file was compared on.
        top5: as of an evaluation, in [0, 1].
        reference_top1: "top1" of the network.
        reference_top5: "top5" of the network.
        agreement: share of images on which both predict the same class, in [0, 1].
        max_abs_logit_diff: largest difference of a logit.
        mean_abs_logit_diff: mean magnitude of the differences of the logits.
        relative_logit_error: norm of the difference over that of the logits, of the median image.
        class_logit_error: median magnitude of the difference, of the class with the largest, over
            the root mean square logit of the median image.
        logit_slope: slope of the file's logits over the network's, of the median image.
        max_abs_logit: largest magnitude of the network's logits.
        reference_nll: "nll" of the network, in nats.
        nll_diff: by how much the file's is larger.
        ece_diff: by how much the file's calibration error is larger.
        max_abs_probability_diff: largest difference of a probability from that of the logits.
    """

    examples: int
    top5: float
    reference_top1: float
    reference_top5: float
    agreement: float
    max_abs_logit_diff: float | None
    mean_abs_logit_diff: float | None
    relative_logit_error: float | None
    class_logit_error: float | None
    logit_slope: float | None
    max_abs_logit: float
    reference_nll: float
    nll_diff: float | None
    ece_diff: float | None
    max_abs_probability_diff: float | None


class TaskPrediction(TypedDict, total=False):
    """What a task predicts for an image.

    Attributes:
        top: of classification, the most likely classes, most likely first.
    """

    top: list[Candidate]


class TaskCheck(TaskScore, total=False):
    """What a task adds to the check on photographs.

    Attributes:
        top5: as of an evaluation, in [0, 1].
    """

    top5: float
