"""ImageNet's channel statistics, used to normalize images for published weights."""

from __future__ import annotations

# Of RGB values in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
