"""Gradients of a batch: the loss, gradient accumulation and sharpness-aware minimization."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnnbench.backend.lazy import keras, tf
from cnnbench.optim.kernels import penalty
from cnnbench.recipe.recipe import Recipe
from cnnbench.training.state import State

if TYPE_CHECKING:
    from cnnbench.compression.distill import Lesson

# The gradient of each weight, and the sums of losses and hits over a batch.
Pass = tuple[list[Any], Any, Any]


def differentiation(
    recipe: Recipe,
    state: State,
    apply: Callable[[Any], Any],
    replicas: int,
    lesson: Lesson | None,
) -> Callable[[Any, Any], Pass]:
    """Returns a function that computes the gradients of the loss of a replica's batch.

    Summed over the replicas, they are the gradients of the mean loss over the whole batch, times
    the optimizer's loss scale.

    Args:
        recipe: the recipe, for loss, penalties, batch size, accumulation and SAM.
        state: the training state.
        apply: maps pixels to the outputs of the model in training mode.
        replicas: number of replicas that share a batch.
        lesson: the distillation, if any; its hints are the model's last outputs.
    """
    task, model, optimizer = recipe.task, state.model, state.optimizer
    batch_size, parts = recipe.data.batch_size, recipe.train.accumulate
    variables = model.trainable_variables
    l1, l2 = recipe.regularization.l1, recipe.regularization.l2
    weight = recipe.model.options().get("auxiliary_weight", 0.0)
    task_outputs = len(model.outputs) - (lesson.guesses if lesson is not None else 0)

    def forward(images: Any, targets: Any) -> tuple[Any, Any, Any]:
        outputs = [tf.cast(output, tf.float32) for output in tf.nest.flatten(apply(images))]
        answer, *auxiliary = task.answers(outputs[:task_outputs])
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
    """Returns the gradients summed over all replicas."""
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def _sharpness_aware(
    differentiate: Callable[[Any, Any], Pass],
    forward: Callable[[Any, Any], tuple[Any, Any, Any]],
    model: Any,
    rho: float,
) -> Callable[[Any, Any], Pass]:
    """Returns a function that computes gradients at w + rho * g / |g|, g the gradient at w.

    Foret et al. 2021, equations 2 and 3, with g summed over all replicas. As in the authors' code,
    both passes use the same dropout masks, and only the first updates batch norm's statistics.
    Loss and hits are those at w.
    """
    variables, state = model.trainable_variables, model.non_trainable_variables

    def twice(images: Any, targets: Any) -> Pass:
        before = [tf.identity(variable.value) for variable in state]
        gradients, loss, hits = differentiate(images, targets)
        gradients = over_replicas(gradients)
        scale = tf.math.divide_no_nan(rho, tf.linalg.global_norm(gradients))
        raised = [v + scale * gradient for v, gradient in zip(variables, gradients, strict=True)]
        values = zip([*variables, *state], [*raised, *before], strict=True)
        # Inside the scope no variable is written.
        with tf.GradientTape() as tape, keras.StatelessScope(values):
            tape.watch(raised)
            upper, _, _ = forward(images, targets)
        return tape.gradient(upper, raised), loss, hits

    return twice


def _in_parts(differentiate: Callable[[Any, Any], Pass], parts: int) -> Callable[[Any, Any], Pass]:
    """Returns a function that sums the passes over equal parts of a batch, one after another."""

    def one_by_one(images: Any, targets: Any) -> Pass:
        total: Any = None
        for part in zip(tf.split(images, parts), tf.split(targets, parts), strict=True):
            # Starts when the previous part's gradients are done and its activations are freed.
            with tf.control_dependencies(total[0] if total else []):
                inputs = [tf.identity(each) for each in part]
            found = differentiate(*inputs)
            total = tf.nest.map_structure(tf.add, total, found) if total else found
        return total

    return one_by_one
