"""A linear probe: logistic regression on the embeddings of a frozen image tower.

It measures how well pretrained embeddings separate the grades without training the tower. Chavoshi et al. compare networks
trained for Kellgren–Lawrence grades with such a classifier on BiomedCLIP's embeddings. Zero-shot grading is different: it is
an untrained ``ClipGrader`` with prompts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from clip_koa.head import ImageFeatures
from clip_koa.model import ClipGrader
from knee.errors import UserError
from knee.grades import GradeSet
from knee.nn.padding import cell_weights
from knee.task import Grading


class ProbeGrader(nn.Module):
    """A grader's image tower and a linear classifier on its unit-length embeddings; a ``knee.task.Grader``.

    weight (K, D), bias (K,). The class maps are the weights applied to the unit-length patch embeddings.
    """

    def __init__(self, grader: ClipGrader, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.grader = grader
        self.classifier = nn.Linear(weight.shape[1], weight.shape[0]).requires_grad_(False)
        self.classifier.weight.copy_(weight)
        self.classifier.bias.copy_(bias)

    def forward(self, images: Tensor) -> Grading:
        """images (B, 1, H, W) in [0, 1] → logits (B, K) and class maps (B, K, h, w)."""
        features: ImageFeatures = self.grader.embed(images)
        with torch.autocast(images.device.type, enabled=False):
            pooled = F.normalize(features.pooled.float(), dim=1)
            patches = F.normalize(features.patches.float(), dim=1)
            maps = torch.einsum("bdhw,kd->bkhw", patches, self.classifier.weight)
            return Grading(self.classifier(pooled), maps * cell_weights(images, (maps.shape[2], maps.shape[3])))

    def pooled(self, images: Tensor) -> Tensor:
        """images (B, 1, H, W) in [0, 1] → (B, D), of unit length."""
        return self.grader.pooled(images)


def blank_probe(grader: nn.Module, grade_set: GradeSet) -> ProbeGrader:
    """A probe on ``grader``, to be filled from a checkpoint. Raises UserError if ``grader`` has no image tower."""
    if not isinstance(grader, ClipGrader):
        raise UserError("a linear probe needs the image tower of a text head; write model.head: text")
    dimensions = grader.image_tower.embed_dim
    return ProbeGrader(grader, torch.zeros(grade_set.count, dimensions), torch.zeros(grade_set.count))


def embeddings_of(grader: ClipGrader, batches: Iterable[Tensor]) -> NDArray[np.float32]:
    """Unit-length embeddings (N, D) of all images, batch by batch; batches (B, 1, H, W) in [0, 1].

    Puts the grader into eval mode and computes no gradient.
    """
    grader.eval()
    with torch.no_grad():
        rows = [F.normalize(grader.embed(images).pooled.float(), dim=1).cpu() for images in batches]
    return cast("NDArray[np.float32]", torch.cat(rows).numpy())


def fit_linear_probe(
    grader: ClipGrader,
    embeddings: NDArray[np.float32],
    grades: NDArray[np.int64],
    *,
    count: int,
    inverse_penalty: float = 1.0,
    most_iterations: int = 2000,
) -> ProbeGrader:
    """The probe of a grader's image tower: ``regression`` on its unit-length embeddings (N, D). Raises UserError as that."""
    fitted = regression(
        embeddings, grades, count=count, inverse_penalty=inverse_penalty, most_iterations=most_iterations
    )
    return ProbeGrader(grader, *fitted)


def regression(
    embeddings: NDArray[np.float32],
    grades: NDArray[np.int64],
    *,
    count: int,
    inverse_penalty: float = 1.0,
    most_iterations: int = 2000,
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression of the grades (N,) in [0, count) on embeddings (N, D): weight (K, D), bias (K,).

    Embeddings are standardised for the fit, since CLIP embeddings differ little from each other, and the standardisation is
    folded into the weights. ``inverse_penalty`` is scikit-learn's C. A grade without images is never predicted. Raises
    UserError if all images have the same grade.
    """
    if len(found := np.unique(grades)) < 2:
        raise UserError(
            f"the {len(grades)} labeled training images all have grade {found[0]}, but a probe needs at least two grades; "
            "add images with another grade, or use more of the labels (data.labeled_fraction)"
        )
    center = embeddings.astype(np.float64).mean(0)
    spread = np.maximum(embeddings.astype(np.float64).std(0), 1e-8)
    model = LogisticRegression(C=inverse_penalty, max_iter=most_iterations).fit((embeddings - center) / spread, grades)
    slopes, offsets = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn gives one row for two classes
        slopes, offsets = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-offsets, offsets]) / 2
    weight = np.zeros((count, embeddings.shape[1]))
    bias = np.full(count, -1e4)
    weight[model.classes_] = slopes / spread
    bias[model.classes_] = offsets - weight[model.classes_] @ center
    return torch.tensor(weight).float(), torch.tensor(bias).float()
