"""The compiled steps: what one call into TensorFlow does to a batch, or to several."""

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
        recipe: its loss, penalties, batch size, precision, and what goes on around the optimizer.
        state: what is trained.
        strategy: of tf.distribute.
        prepare: uint8 pixels to the images that the model takes.
        lesson: of a network that is distilled; its guesses are the model's last outputs.
        size: height and width in pixels that images are scaled to; None: they are not.
        xla: whether XLA compiles a step.

    Returns:
        A function of an iterator over batches, learning rates (steps,) float32, the sparsity after
        each step, (steps,) float32, whether an epoch ends with it, (steps,) bool, and how many of
        them to take. It returns, for each step, the sums over the batch of losses and of hits, and
        a sum of all weights, which is not finite where one of them is not. It stops after a step
        that has a loss or leaves a weight that is not finite.
    """
    model, optimizer, variables = state.model, state.optimizer, state.model.trainable_variables
    lookahead, replicas = recipe.train.lookahead, strategy.num_replicas_in_sync
    seen = model if size is None else at_size(model, size)

    def look(images: Any) -> Any:
        return seen(prepare(images), training=True)

    differentiate = differentiation(recipe, state, look, replicas, lesson)

    def step(images: Any, targets: Any) -> tuple[Any, Any, Any]:
        gradients, loss, hits = differentiate(images, targets)
        if recipe.train.gradient_clip and replicas > 1:
            # Keras bounds the gradients before it adds up those of the replicas.
            gradients = [gradient / replicas for gradient in over_replicas(gradients)]
        optimizer.apply(gradients, variables)
        # Finite if each weight is, and so each gradient that was used.
        total = tf.add_n([tf.cast(tf.reduce_sum(each), tf.float32) for each in variables])
        return loss, hits, total

    compiled = tf.function(step, jit_compile=True) if xla else step

    def run_step(images: Any, targets: Any) -> tuple[Any, Any, Any]:
        if size is not None:  # not in the step, for XLA cannot resize
            images = tf.image.resize(images, (size, size), antialias=True)
        return compiled(images, targets)

    @tf.function(autograph=True)
    def steps(iterator: Any, rates: Any, sparsities: Any, ends: Any, count: Any) -> tuple[Any, ...]:
        # One that was not written is 0.
        arrays = tuple(tf.TensorArray(tf.float32, count, element_shape=()) for _ in range(3))
        i, finite = tf.constant(0), tf.constant(True)
        while i < count and finite:
            optimizer.learning_rate.assign(rates[i])
            if lookahead and optimizer.iterations == 0:
                follow(state.slow, variables, 1.0)
            one = strategy.run(run_step, next(iterator))
            sums = [strategy.reduce(tf.distribute.ReduceOp.SUM, x, axis=None) for x in one]
            # At the end of an epoch too, for slow weights are what is validated and kept.
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
    """Returns a model of the same layers, and so of the same weights, for images of another size.

    Raises:
        UsageError: the network has a layer that takes one size alone.
    """
    images = keras.Input((size, size, model.input_shape[-1]), name="images")
    try:
        return keras.models.clone_model(model, images, clone_function=lambda layer: layer)
    except ValueError as error:  # as a dense layer after images as they are
        raise UsageError(
            f"{model.name} cannot take {size}x{size} pixels with the weights of "
            f"{model.input_shape[1]}x{model.input_shape[2]}: {str(error).splitlines()[0]}",
            key="train.image_sizes",
        ) from None


def evaluation_step(
    recipe: Recipe, network: Any, prepare: Callable[[Any], Any]
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Compiles a function from a batch to the loss and the score of each image."""
    task = recipe.task

    @tf.function(autograph=False)
    def evaluate(images: Any, targets: Any) -> tuple[Any, Any]:
        outputs = tf.nest.flatten(network(prepare(images), training=False))
        answer, *_ = task.answers([tf.cast(output, tf.float32) for output in outputs])
        return task.losses(recipe.loss, answer, targets), task.hits(answer, targets)

    return evaluate
