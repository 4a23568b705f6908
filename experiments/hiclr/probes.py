"""How good frozen features are: logistic regression, nearest neighbours, the linear protocol.

All of it is traced, so that a probe fits into the training loop and seeds share one program.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from asym import numerics

NEIGHBOURS = 5
_ITERATIONS = 500
_LINEAR_BATCH = 128
_LINEAR_DROP = 0.8
_LINEAR_DEVIATION = 0.02


def logistic_logits(
    features: jax.Array, labels: jax.Array, queries: jax.Array, num_classes: int
) -> jax.Array:
    """Logits by multinomial logistic regression on standardised features.

    Minimises `mean cross entropy + |W|^2 / (2 N)` by accelerated gradient descent with the step
    1/L of its Lipschitz constant, so nothing has to be tuned.

    Args:
      features: Training features (N, F).
      labels: Their classes (N,).
      queries: Test features (Q, F).
      num_classes: Classes.

    Returns:
      Logits of the queries (Q, num_classes).
    """
    mean, deviation = jnp.mean(features, axis=0), jnp.std(features, axis=0)
    deviation = jnp.where(deviation > 0, deviation, 1.0)

    def with_constant(x: jax.Array) -> jax.Array:
        x = (x - mean) / deviation
        return jnp.concatenate([x, jnp.ones((len(x), 1))], axis=1)

    x, target = with_constant(features), jax.nn.one_hot(labels, num_classes)
    count, width = x.shape
    # The last row is the bias, which is not penalised.
    penalty = (jnp.arange(width) < width - 1)[:, None] / count
    largest = jnp.linalg.eigvalsh(x.T @ x / count)[-1]
    step = 1 / (0.5 * largest + 1 / count)

    def descend(carry: tuple, _: None) -> tuple[tuple, None]:
        weights, ahead, inertia = carry
        slope = x.T @ (jax.nn.softmax(x @ ahead, axis=1) - target) / count + penalty * ahead
        moved = ahead - step * slope
        faster = (1 + jnp.sqrt(1 + 4 * inertia**2)) / 2
        # Speed in the wrong direction is dropped, which keeps the fast rate to the end.
        faster = jnp.where(jnp.sum(slope * (moved - weights)) > 0, 1.0, faster)
        share = jnp.where(faster > 1.0, (inertia - 1) / faster, 0.0)
        return (moved, moved + share * (moved - weights), faster), None

    zero = jnp.zeros((width, num_classes))
    (weights, *_), _ = jax.lax.scan(descend, (zero, zero, jnp.ones(())), None, _ITERATIONS)
    return with_constant(queries) @ weights


def nearest_accuracy(
    features: jax.Array,
    labels: jax.Array,
    queries: jax.Array,
    expected: jax.Array,
    num_classes: int,
) -> jax.Array:
    """Accuracy of the vote of the five nearest training clips by cosine.

    Args:
      features: Training features (N, F).
      labels: Their classes (N,).
      queries: Test features (Q, F).
      expected: Their classes (Q,).
      num_classes: Classes.

    Returns:
      A scalar in [0, 1].
    """
    similarity = numerics.normalize(queries) @ numerics.normalize(features).T
    nearest, index = jax.lax.top_k(similarity, min(NEIGHBOURS, len(features)))
    # Of classes with equally many votes the nearer one wins.
    weight = 1 + 1e-3 * nearest[..., None]
    votes = jnp.sum(jax.nn.one_hot(labels[index], num_classes) * weight, axis=1)
    return accuracy(votes, expected)


def linear_protocol_logits(
    key: jax.Array,
    features: jax.Array,
    labels: jax.Array,
    queries: jax.Array,
    num_classes: int,
    *,
    epochs: int,
    rate: float,
) -> jax.Array:
    """Logits of a linear layer trained as the authors do.

    SGD with momentum 0.9, no weight decay, batches of 128, a tenth of the rate after 4/5 of the
    epochs.  The encoder is frozen and nothing is augmented, so features stand in for clips.

    Args:
      key: Random key.
      features: Training features (N, F).
      labels: Their classes (N,).
      queries: Test features (Q, F).
      num_classes: Classes.
      epochs: Passes through the training features.
      rate: Step size.

    Returns:
      Logits of the queries after the last epoch (Q, num_classes).
    """
    count = len(features)
    size = min(_LINEAR_BATCH, count)
    steps = epochs * (count // size)
    optimizer = optax.sgd(
        optax.piecewise_constant_schedule(rate, {int(_LINEAR_DROP * steps): 0.1}), 0.9
    )
    init_key, order_key = jax.random.split(key)
    kernel = _LINEAR_DEVIATION * jax.random.normal(init_key, (features.shape[1], num_classes))
    params = kernel, jnp.zeros(num_classes)

    def loss(params: tuple[jax.Array, jax.Array], chosen: jax.Array) -> jax.Array:
        logits = features[chosen] @ params[0] + params[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()

    def step(carry: tuple, number: jax.Array) -> tuple[tuple, None]:
        params, state = carry
        order = jax.random.permutation(jax.random.fold_in(order_key, number), count)
        updates, state = optimizer.update(jax.grad(loss)(params, order[:size]), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return queries @ params[0] + params[1]


def accuracy(logits: jax.Array, expected: jax.Array) -> jax.Array:
    """Share of rows whose largest entry is at the right place.

    Args:
      logits: (..., Q, classes).
      expected: (Q,).

    Returns:
      Shape (...).
    """
    return jnp.mean(jnp.argmax(logits, axis=-1) == expected, axis=-1)
