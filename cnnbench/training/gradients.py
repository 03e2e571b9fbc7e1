"""Gradients of a batch: the loss, accumulation in parts, and sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnnbench.backend.lazy import keras, tf
from cnnbench.optim.kernels import penalty
from cnnbench.recipe.recipe import Recipe
from cnnbench.training.state import State

if TYPE_CHECKING:
    from cnnbench.compression.distill import Lesson

# Of a batch: the gradient of each weight, and the sums of losses and of hits.
Pass = tuple[list[Any], Any, Any]


def differentiation(
    recipe: Recipe,
    state: State,
    look: Callable[[Any], Any],
    replicas: int,
    lesson: Lesson | None,
) -> Callable[[Any, Any], Pass]:
    """Returns a function that differentiates the loss of a replica's batch.

    Summed over the replicas, the gradients are those of the mean over the whole batch, scaled as
    the optimizer wants.

    Args:
        recipe: its loss, penalties, batch size, accumulation and sharpness-aware minimisation.
        state: what is trained.
        look: pixels to the outputs of the model in training.
        replicas: how many replicas share a batch.
        lesson: of a network that is distilled; its guesses are the model's last outputs.
    """
    task, model, optimizer = recipe.task, state.model, state.optimizer
    batch_size, parts = recipe.data.batch_size, recipe.train.accumulate
    variables = model.trainable_variables
    l1, l2 = recipe.regularization.l1, recipe.regularization.l2
    weight = recipe.model.options().get("auxiliary_weight", 0.0)
    answered = len(model.outputs) - (lesson.guesses if lesson is not None else 0)

    def forward(images: Any, targets: Any) -> tuple[Any, Any, Any]:
        outputs = [tf.cast(output, tf.float32) for output in tf.nest.flatten(look(images))]
        answer, *auxiliary = task.answers(outputs[:answered])
        losses = task.losses(recipe.loss, answer, targets)
        if lesson is not None:
            losses = lesson.losses(images, outputs, losses)
        loss = tf.reduce_sum(losses) / batch_size
        for other in auxiliary:
            others = task.losses(recipe.loss, other, targets)
            loss += weight * tf.reduce_sum(others) / batch_size
        if l1 or l2:
            loss += penalty(variables, l1, l2) / (replicas * parts)
        return optimizer.scale_loss(loss), losses, answer

    def differentiate(images: Any, targets: Any) -> Pass:
        with tf.GradientTape() as tape:
            loss, losses, answer = forward(images, targets)
        hits = tf.cast(task.hits(answer, targets), tf.float32)
        return tape.gradient(loss, variables), tf.reduce_sum(losses), tf.reduce_sum(hits)

    once: Callable[[Any, Any], Pass] = differentiate
    if recipe.train.sam:
        once = _sharpness_aware(once, forward, model, recipe.train.sam.rho)
    return once if parts == 1 else _in_parts(once, parts)


def over_replicas(gradients: list[Any]) -> list[Any]:
    """Returns the sums of the replicas' gradients, the same on each."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def _sharpness_aware(
    differentiate: Callable[[Any, Any], Pass],
    forward: Callable[[Any, Any], tuple[Any, Any, Any]],
    model: Any,
    rho: float,
) -> Callable[[Any, Any], Pass]:
    """Returns a function that differentiates at w + rho * g / |g|, g the gradient at weights w.

    Foret et al. 2021, equations 2 and 3, with g of all replicas together. As in the authors' code,
    both passes drop the same units, and batch norm's statistics are moved by the first alone; the
    loss and the hits are those at w.
    """
    variables, state = model.trainable_variables, model.non_trainable_variables

    def twice(images: Any, targets: Any) -> Pass:
        before = [tf.identity(variable.value) for variable in state]
        gradients, loss, hits = differentiate(images, targets)
        gradients = over_replicas(gradients)
        scale = tf.math.divide_no_nan(rho, tf.linalg.global_norm(gradients))
        raised = [v + scale * gradient for v, gradient in zip(variables, gradients, strict=True)]
        values = zip([*variables, *state], [*raised, *before], strict=True)
        # Within the scope no variable is written.
        with tf.GradientTape() as tape, keras.StatelessScope(values):
            tape.watch(raised)
            upper, _, _ = forward(images, targets)
        return tape.gradient(upper, raised), loss, hits

    return twice


def _in_parts(differentiate: Callable[[Any, Any], Pass], parts: int) -> Callable[[Any, Any], Pass]:
    """Returns a function that adds up the passes over equal parts of a batch, one at a time."""

    def one_by_one(images: Any, targets: Any) -> Pass:
        total: Any = None
        for part in zip(tf.split(images, parts), tf.split(targets, parts), strict=True):
            # Not before the last part's gradients are there, and what they needed is freed.
            with tf.control_dependencies(total[0] if total else []):
                begun = [tf.identity(each) for each in part]
            found = differentiate(*begun)
            total = tf.nest.map_structure(tf.add, total, found) if total else found
        return total

    return one_by_one
