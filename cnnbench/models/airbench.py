"""airbench94: Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import Field

from cnnbench.backend.lazy import keras, tf
from cnnbench.models.layers.blocks import Activation, activate, drop, norm
from cnnbench.models.register import add_model
from cnnbench.registry.limits import Rate

# Filters of the three stages, section 3.1.
WIDTHS = (64, 256, 256)
# Added to the eigenvalues before inversion, so that noise is not amplified.
WHITENING_EPSILON = 5e-4


def airbench(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    width: Annotated[float, Field(gt=0, le=16)] = 1.0,
    activation: Activation = "gelu",
    dropout: Rate = 0.0,
) -> keras.Model:
    """A whitening convolution and three stages of two convolutions, with pooling after the first.

    The 2x2 kernel of the first convolution is not trained: `whiten` computes it from training
    images. The other kernels are initialized as identities on their input channels (dirac, section
    3.3). Batch norms have no scale, and the logits have no bias. Deviations: the epsilon of the
    batch norms is 1e-5, the bias of the first convolution is trained to the end, and the logits use
    Glorot uniform initialization, 2.4 times as large as PyTorch's default.
    """
    x = inputs = keras.Input(input_shape, name="images")
    filters = 2 * 2 * 2 * input_shape[-1]
    whitening = keras.layers.Conv2D(filters, 2, name="stem_whiten")
    x = activate(whitening(x), activation, "stem_act")
    whitening.kernel.trainable = False
    for stage, base in enumerate(WIDTHS, start=1):
        filters = max(1, round(width * base))
        for i in (1, 2):
            x = _identity_conv(x, filters, f"stage{stage}_conv{i}")
            if i == 1:
                x = keras.layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
            x = norm(x, f"stage{stage}_norm{i}", momentum=0.6, scale=False)
            x = activate(x, activation, f"stage{stage}_act{i}")
    x = keras.layers.GlobalMaxPooling2D(name="head_pool")(x)
    x = keras.layers.Rescaling(1 / 9, name="head_scale")(x)
    x = drop(x, dropout, "head_dropout")
    x = keras.layers.Dense(classes, use_bias=False, dtype="float32", name="logits")(x)
    return keras.Model(inputs, x, name=name)


def whiten(model: Any, images: Any) -> None:
    """Sets the first kernel to whiten patches: uncorrelated outputs of variance 1, and negatives.

    Section 3.2: the filters are the eigenvectors of the patches' second-moment matrix, each divided
    by the square root of its eigenvalue, followed by their negatives.

    Args:
        model: a model from `airbench`.
        images: (images, height, width, channels) float32, normalized as the model expects.
    """
    rows, columns = images.shape[1] - 1, images.shape[2] - 1
    corners = [images[:, y : y + rows, x : x + columns] for y in (0, 1) for x in (0, 1)]
    patches = tf.reshape(tf.concat(corners, -1), (-1, 4 * images.shape[-1]))
    moments = tf.matmul(patches, patches, transpose_a=True) / len(patches)
    values, vectors = tf.linalg.eigh(tf.cast(moments, tf.float64))
    filters = tf.cast(vectors / tf.sqrt(values + WHITENING_EPSILON), tf.float32)
    kernel = model.get_layer("stem_whiten").kernel
    kernel.assign(tf.reshape(tf.concat([filters, -filters], 1), kernel.shape))


def _identity_conv(x: Any, filters: int, name: str) -> Any:
    # PyTorch's default for convolutions: uniform in +-1 / sqrt(fan in).
    uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    layer = keras.layers.Conv2D(
        filters, 3, padding="same", use_bias=False, kernel_initializer=uniform, name=name
    )
    channels, out = x.shape[-1], layer(x)
    same = min(channels, filters)
    identity = tf.pad(tf.eye(channels, same)[None, None], ((1, 1), (1, 1), (0, 0), (0, 0)))
    kernel = tf.convert_to_tensor(layer.kernel)
    layer.kernel.assign(tf.concat([identity, kernel[..., same:]], -1))
    return out


add_model(
    "airbench94",
    partial(airbench, "airbench94"),
    (1_971_352, 118_147_360),
    family="airbench",
    source="Jordan 2024, section 3.1",
    min_size=9,
    native=(32, 32, 3),
    classes=10,
    from_images=whiten,
)
