"""Corruptions of test images: 15 kinds in five severities, to measure robustness with.

Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", section 3. The constants are those of the authors' programs: of CIFAR-10-C
(make_cifar_c.py), or of ImageNet-C (make_imagenet_c.py) where an image has at least 64 pixels a
side. Accuracies come near those on the published files and do not equal them:

- frost is synthetic, where the authors lay photographs of frost over an image;
- motion blur, which snow has too, is a line kernel of ours in place of ImageMagick's;
- the random draws are others, and images are not compressed as JPEG besides, as ImageNet-C's are.

Each is a pure function of an image, (height, width, 1 or 3) uint8, a severity from 1 to 5 and a
random generator, and returns an image of the same shape and type.
"""

from __future__ import annotations

from cnnbench.evaluation.corruptions import blur, digital, noise, weather
from cnnbench.evaluation.corruptions.corruption import SEVERITIES, Corruption, draws

__all__ = ["CORRUPTIONS", "NOTES", "SEVERITIES", "Corruption", "draws"]

# In the order of the paper.
CORRUPTIONS: dict[str, Corruption] = {
    corruption.__name__: corruption
    for corruption in (
        noise.gaussian_noise,
        noise.shot_noise,
        noise.impulse_noise,
        blur.defocus_blur,
        blur.glass_blur,
        blur.motion_blur,
        blur.zoom_blur,
        weather.snow,
        weather.frost,
        weather.fog,
        weather.brightness,
        digital.contrast,
        digital.elastic_transform,
        digital.pixelate,
        digital.jpeg_compression,
    )
}
NOTES = ("frost is synthetic: not comparable", "motion blur and snow use a line kernel of our own")
