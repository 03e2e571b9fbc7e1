"""Corruptions of test images: 15 kinds at five severities, to measure robustness.

Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", section 3. The constants are those of the authors' programs: of ImageNet-C
(make_imagenet_c.py) for images of at least 64x64 pixels, else of CIFAR-10-C (make_cifar_c.py).
Accuracies are close to those on the published files, but not equal:

- frost is synthetic, while the authors overlay photographs of frost;
- motion blur, also part of snow, uses our own line kernel instead of ImageMagick's;
- the random draws differ, and images are not also compressed as JPEG, as those of ImageNet-C are.

Each is a pure function of an image, (height, width, 1 or 3) uint8, a severity from 1 to 5 and a
random generator, and returns an image of the same shape and dtype.
"""

from __future__ import annotations

from cnnbench.evaluation.corruptions import blur, digital, noise, weather
from cnnbench.evaluation.corruptions.corruption import SEVERITIES, Corruption, draws

__all__ = ["CORRUPTIONS", "NOTES", "SEVERITIES", "Corruption", "draws"]

# In the paper's order.
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
