"""Compiled training and evaluation steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnnbench.backend.lazy import keras, tf
from cnnbench.errors import UsageError
from cnnbench.recipe.recipe import Recipe
from cnnbench.training.averages import follow, move
from cnnbench.training.gradients import differentiation, over_replicas
from cnnbench.training.state import State

if TYPE_CHECKING:
    from cnnbench.compression.distill import Lesson


def training_steps(
    recipe: Recipe,
    state: State,
    strategy: Any,
    prepare: Callable[[Any], Any],
    *,
    lesson: Lesson | None = None,
    size: int | None = None,
    xla: bool,
) -> Callable[..., tuple[Any, ...]]:
    """Compiles several training steps into one call.

    Args:
        recipe: the recipe, for loss, penalties, batch size, clipping, EMA, SAM and Lookahead.
        state: the training state.
        strategy: a tf.distribute strategy.
        prepare: maps uint8 pixels to the images that the model takes.
        lesson: the distillation, if any; its hints are the model's last outputs.
        size: height and width in pixels that images are resized to; None: not resized.
        xla: whether XLA compiles a step.

    Returns:
        A function of an iterator over batches, the learning rates, (steps,) float32, the sparsity
        after each step, (steps,) float32, whether the step ends an epoch, (steps,) bool, and the
        number of steps to run. It returns, for each step, the sum of losses and of hits over the
        batch, and the sum of all weights, which is not finite if a weight is not. It stops after a
        step whose loss or weights are not finite.
    """
    model, optimizer, variables = state.model, state.optimizer, state.model.trainable_variables
    lookahead, replicas = recipe.train.lookahead, strategy.num_replicas_in_sync
    sized = model if size is None else at_size(model, size)

    def apply(images: Any) -> Any:
        return sized(prepare(images), training=True)

    differentiate = differentiation(recipe, state, apply, replicas, lesson)

    def step(images: Any, targets: Any) -> tuple[Any, Any, Any]:
        gradients, loss, hits = differentiate(images, targets)
        if recipe.train.gradient_clip and replicas > 1:
            # Keras clips gradients before it sums them over the replicas.
            gradients = [gradient / replicas for gradient in over_replicas(gradients)]
        optimizer.apply(gradients, variables)
        # Finite only if all weights, and so all gradients, are.
        total = tf.add_n([tf.cast(tf.reduce_sum(each), tf.float32) for each in variables])
        return loss, hits, total

    compiled = tf.function(step, jit_compile=True) if xla else step

    def run_step(images: Any, targets: Any) -> tuple[Any, Any, Any]:
        if size is not None:  # outside the step, because XLA cannot compile it
            images = tf.image.resize(images, (size, size), antialias=True)
        return compiled(images, targets)

    @tf.function(autograph=True)
    def steps(iterator: Any, rates: Any, sparsities: Any, ends: Any, count: Any) -> tuple[Any, ...]:
        # Elements that are not written are 0.
        arrays = tuple(tf.TensorArray(tf.float32, count, element_shape=()) for _ in range(3))
        i, finite = tf.constant(0), tf.constant(True)
        while i < count and finite:
            optimizer.learning_rate.assign(rates[i])
            if lookahead and optimizer.iterations == 0:
                follow(state.slow, variables, 1.0)
            one = strategy.run(run_step, next(iterator))
            sums = [strategy.reduce(tf.distribute.ReduceOp.SUM, x, axis=None) for x in one]
            # Also at the end of an epoch, because the slow weights are validated and saved.
            if lookahead and (optimizer.iterations % lookahead.every == 0 or ends[i]):
                follow(state.slow, variables, lookahead.share)
            if state.averaged is not None:
                move(state.averaged, model, optimizer.iterations, recipe.train.ema or 0.0)
            if state.masking is not None:
                state.masking.obey(sparsities[i])
            arrays = tuple(array.write(i, x) for array, x in zip(arrays, sums, strict=True))
            finite = tf.math.is_finite(sums[0]) and tf.math.is_finite(sums[2])
            i += 1
        return tuple(array.stack() for array in arrays)

    return steps


def at_size(model: Any, size: int) -> Any:
    """Returns a model with the same layers and weights, for images of another size.

    Args:
        model: the model.
        size: height and width in pixels.

    Raises:
        UsageError: the network has a layer that takes one image size only.
    """
    images = keras.Input((size, size, model.input_shape[-1]), name="images")
    try:
        return keras.models.clone_model(model, images, clone_function=lambda layer: layer)
    except ValueError as error:  # such as a dense layer after flattening
        raise UsageError(
            f"{model.name} cannot take {size}x{size} pixels with the weights of "
            f"{model.input_shape[1]}x{model.input_shape[2]}: {str(error).splitlines()[0]}",
            key="train.image_sizes",
        ) from None


def evaluation_step(
    recipe: Recipe, network: Any, prepare: Callable[[Any], Any]
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Compiles a function that returns the loss and the score of each image of a batch."""
    task = recipe.task

    @tf.function(autograph=False)
    def evaluate(images: Any, targets: Any) -> tuple[Any, Any]:
        outputs = tf.nest.flatten(network(prepare(images), training=False))
        answer, *_ = task.answers([tf.cast(output, tf.float32) for output in outputs])
        return task.losses(recipe.loss, answer, targets), task.hits(answer, targets)

    return evaluate
