"""Fine-tuning all weights on labels, all of them or a few of each class."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from experiments.common import loop
from experiments.common.nets import stgcn
from experiments.hiclr import probes, sources, training, views

# Shares of the labels, and of 70 epochs: warm-up 5, a tenth of the rate from 30 and from 55 on.
FRACTIONS = {"finetune": 1.0, "semi_1": 0.01, "semi_10": 0.1}
_WARM_UP, _DROPS = 5 / 70, (30 / 70, 55 / 70)
_SUBSET_SEED = 0


class State(NamedTuple):
    """What fine-tuning changes.

    Attributes:
      params: Encoder and classifier.
      rest: Batch-norm statistics, and the graph.
      optimizer: Momentum.
    """

    params: Any
    rest: Any
    optimizer: Any


class Batch(NamedTuple):
    """Labelled clips: x (N, C, T, V, M) and y (N,)."""

    x: jax.Array
    y: jax.Array


def labelled(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Which clips keep their label: round(fraction x n_c) of each class c, but one at least.

    Args:
      labels: Classes (N,).
      fraction: In (0, 1].

    Returns:
      Sorted indices.
    """
    rng = np.random.default_rng(_SUBSET_SEED)
    chosen = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(own)))
        chosen.append(rng.choice(own, count, replace=False))
    return np.sort(np.concatenate(chosen))


def schedule(num_steps: int, peak: float) -> optax.Schedule:
    """Step sizes: a linear warm-up, then `peak`, then twice a tenth.

    Args:
      num_steps: Steps in all.
      peak: Largest step size.

    Returns:
      Step number to step size.
    """
    warm = max(1, round(_WARM_UP * num_steps))
    # Counted from the end of the warm-up.
    drops = {round(share * num_steps) - warm: training.DECAY for share in _DROPS}
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / warm, peak, max(1, warm - 1)),
            optax.piecewise_constant_schedule(peak, drops),
        ],
        [warm],
    )


class Classifier(nnx.Module):
    """The encoder and one linear layer."""

    def __init__(self, encoder: stgcn.STGCN, num_classes: int, *, rngs: nnx.Rngs) -> None:
        self.encoder = encoder
        self.head = stgcn.Head(
            encoder.feature_dim, num_classes, kernel_init=stgcn.FAN_IN, rngs=rngs
        )

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Logits of clips (N, C, T, V, M), (N, classes)."""
        return self.head(self.encoder(x, key=key))


class Finetuner:
    """A classifier that starts from a pre-trained encoder.

    Args:
      config: The experiment's settings.
      source: The data.
      stream: "joint", "motion" or "bone".
      fraction: Share of the labels.
    """

    def __init__(self, config: Any, source: sources.Source, stream: str, fraction: float) -> None:
        self._config = config
        self._source = source
        self._stream = stream
        self._dropout = config.encoder == "full" and config.dropout > 0
        self._adjacency = source.skeleton.adjacency()
        self._graph = nnx.graphdef(nnx.eval_shape(lambda: self._build(jax.random.key(0))))
        self.num_steps = config.finetune_epochs * source.steps_per_epoch
        self._optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(schedule(self.num_steps, config.finetune_rate), training.SGD_MOMENTUM),
        )
        kept = labelled(np.asarray(source.train.y), fraction)
        data = Batch(source.train.x[kept], source.train.y[kept])
        # An epoch is as long as with all labels, so few clips come often.
        size, total = config.batch_size, len(source.train.y)

        def sample(data: Batch, key: jax.Array, step: jax.Array) -> Batch:
            chosen = jax.random.permutation(key, total)[:size] % len(kept)
            return Batch(data.x[chosen], data.y[chosen])

        self.batches = loop.Resident(data, sample)

    def _build(self, key: jax.Array) -> Classifier:
        rngs = nnx.Rngs(key)
        encoder = training.Network(self._config, self._adjacency, rngs=rngs).encoder
        classifier = Classifier(encoder, self._source.num_classes, rngs=rngs)
        classifier.train()
        return classifier

    def init(self, key: jax.Array, pretrained: training.State) -> State:
        """A new head on the pre-trained encoder.

        Args:
          key: The seed's key.
          pretrained: The seed's state after pre-training.

        Returns:
          The state.
        """
        params, rest = training.split(self._build(key))
        params["encoder"] = pretrained.params["network"]["encoder"]
        rest["encoder"] = pretrained.rest["encoder"]
        return State(params, rest, self._optimizer.init(params))

    def step(
        self, state: State, batch: Batch, key: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """One step of gradient descent.

        Args:
          state: One seed's state.
          batch: Its batch.
          key: Key of this step.

        Returns:
          The new state, and loss and accuracy on the batch.
        """
        x = views.seen(batch.x, self._stream, self._source.skeleton)

        def objective(params: Any) -> tuple[jax.Array, Any]:
            classifier = nnx.merge(self._graph, params, state.rest, copy=True)
            logits = classifier(x, key=key if self._dropout else None)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y).mean()
            return loss, (logits, training.split(classifier)[1])

        (loss, (logits, rest)), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "accuracy": probes.accuracy(logits, batch.y)}
        return State(params, rest, optimizer), metrics

    def logits(self, state: State, x: jax.Array) -> jax.Array:
        """Logits of clips in evaluation mode.

        Args:
          state: One seed's state.
          x: Joint positions (N, C, T, V, M).

        Returns:
          (N, classes).
        """
        classifier = nnx.merge(self._graph, state.params, state.rest, copy=True)
        classifier.eval()

        def encode(clips: jax.Array) -> jax.Array:
            return classifier(views.seen(clips, self._stream, self._source.skeleton))

        return training.chunked(encode, x)
