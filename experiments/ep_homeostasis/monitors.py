"""What is measured on a network: accuracy, alignment of its errors, symmetry, rest."""

import jax
import jax.numpy as jnp
import numpy as np

from asym import equilibrium
from experiments.common import terminal
from experiments.ep_homeostasis import model, settings, sources, training

# Samples of the alignment of errors and of the dense Jacobian (the paper's 10).
_ALIGNED, _DENSE = 100, 10
_CHUNK = 1000
# Sets with as many classes are judged by their five best guesses too.
_MANY_CLASSES = 100
# Above them an error vector from the circle is not to be trusted.
LARGEST_LOG_RESIDUAL = -3.0
LARGEST_DEFECT = 0.05


def measure(
    learner: training.Learner, params: model.Params, test: sources.Examples
) -> dict[str, jax.Array]:
    """Everything about one seed's network.

    Args:
      learner: The network's functions.
      params: Its parameters.
      test: Test examples.

    Returns:
      Scalars: `accuracy` (and `top5`), `residual` of the free phase, `cos_<layer>` between the
      errors of equilibrium propagation and backpropagation, `symmetry` of the Jacobian and
      `angle` of the weights, where they exist.
    """
    # Images that are constants of a program would be normalised by the compiler, slowly.
    test = sources.Examples(*jax.lax.optimization_barrier((test.images, test.labels)))
    found = _accuracies(learner, params, test)
    x, y = _first(learner, test, _ALIGNED)
    u = learner.free_states(params, x)
    steps = learner.config.t_nudge
    errors = equilibrium.ep_error_vector(
        learner.field, params, u, x=x, y=y, num_steps=steps, damping=learner.config.damping
    )
    exact = equilibrium.rbp_error_vector(learner.field, params, u, x=x, y=y, num_steps=steps)
    cosines = equilibrium.error_cosine(estimate=errors, reference=exact)
    # The last layer's error starts with the nudge and always points the same way.
    found |= {f"cos_{layer}": jnp.mean(c) for layer, c in cosines.items() if layer != "out"}
    if sum(v[0].size for v in jax.tree.leaves(u)) < settings.MOST_UNITS:
        few = {layer: v[:_DENSE] for layer, v in equilibrium.activate(learner.field, u).items()}
        bypassed = equilibrium.bypassed_field(learner.field, x[:_DENSE])
        jacobian = equilibrium.activity_jacobian(bypassed, params, r_free=few)
        found["symmetry"] = jnp.mean(equilibrium.jacobian_symmetry_ratio(jacobian))
    if pairs := model.reciprocal_pairs(params):
        found["angle"] = equilibrium.feedback_angle(params, pairs)
    return found


def _first(
    learner: training.Learner, test: sources.Examples, count: int
) -> tuple[jax.Array, jax.Array]:
    x = sources.prepare(jnp.asarray(test.images[:count]), learner.source.moments)
    return x, learner.targets(jnp.asarray(test.labels[:count]))


def _accuracies(
    learner: training.Learner, params: model.Params, test: sources.Examples
) -> dict[str, jax.Array]:
    """Over chunks, so that a large test set fits; the last one is filled up with no class."""
    total = len(test.labels)
    chunk = min(total, _CHUNK)
    missing = -total % chunk
    images = jnp.pad(test.images, [(0, missing)] + [(0, 0)] * (test.images.ndim - 1))
    labels = jnp.pad(test.labels, (0, missing), constant_values=-1)

    def count(part: sources.Examples) -> dict[str, jax.Array]:
        x = sources.prepare(part.images, learner.source.moments)
        u = learner.free_states(params, x)
        activities = equilibrium.activate(learner.field, u)
        scores = learner.scores(params, activities)
        residual = learner.residual(params, u, x)
        sums = {
            "accuracy": jnp.sum(jnp.argmax(scores, axis=-1) == part.labels),
            "residual": jnp.sum(jnp.where(part.labels >= 0, residual, 0)),
        }
        if learner.source.num_classes >= _MANY_CLASSES:
            best = jax.lax.top_k(scores, 5)[1]
            sums["top5"] = jnp.sum(best == part.labels[:, None])
        return sums

    folded = [part.reshape(-1, chunk, *part.shape[1:]) for part in (images, labels)]
    sums = jax.lax.map(count, sources.Examples(*folded))
    return {name: jnp.sum(values) / total for name, values in sums.items()}


def circle_problem(log_residual: float, defect: float, n: int) -> str:
    """What is wrong with a circle of nudges, or nothing.

    Args:
      log_residual: Logarithm of the distance from rest.
      defect: Relative error of the mean value over the circle.
      n: Phases. With two the defect is the second Taylor coefficient, large and harmless.

    Returns:
      A phrase; empty if the circle can be trusted.
    """
    if log_residual > LARGEST_LOG_RESIDUAL:
        return f"the nudged phases do not come to rest (residual 10^{log_residual:.1f})"
    if n > 2 and defect > LARGEST_DEFECT:
        return (
            f"the circle of {n} nudges leaves the domain of convergence (defect {defect:.2f}); "
            f"a smaller beta helps, more phases do not"
        )
    return ""


def warn_of_circle(
    learner: training.Learner, params: model.Params, test: sources.Examples, where: str
) -> None:
    """Tell the user if the error vectors of finite nudges cannot be trusted.

    Args:
      learner: The network's functions.
      params: Parameters with a leading axis of seeds.
      test: Test examples, of which a few are used.
      where: What it is about.
    """
    config = learner.config
    if config.n_phases < 2:
        return
    x, y = _first(learner, test, _ALIGNED)

    @jax.jit
    @jax.vmap
    def diagnose(params: model.Params) -> tuple[jax.Array, jax.Array]:
        found = equilibrium.diagnose_circle(
            learner.field,
            params,
            learner.free_states(params, x),
            x=x,
            y=y,
            num_steps=config.t_nudge,
            beta=config.beta,
            n=config.n_phases,
            damping=config.damping,
        )
        # The typical sample at the worst nudge.
        return jnp.max(jnp.median(found.log_residual, axis=1)), jnp.median(found.defect)

    residual, defect = map(np.asarray, diagnose(params))
    problem = circle_problem(float(residual.max()), float(defect.max()), config.n_phases)
    if problem:
        tell(problem, where)


def tell(problem: str, where: str) -> None:
    """Warn the user.

    Args:
      problem: From `circle_problem`.
      where: What it is about.
    """
    terminal.warn(f"{where}: {problem}; its error vectors are biased")
