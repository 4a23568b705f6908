"""The training step of ASL: metric learning on directions, norm-ratio loss on lengths."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from asym import numerics, retrieval, similarity
from experiments.asl import data, model

# The baseline's schedule is written for 25 epochs.
BASELINE_EPOCHS = 25
# Unit features times this: the triplet's softplus then has a useful slope in short runs.
TRIPLET_RADIUS = 8.0
# Which output of the network carries the length, by the value of --norm_feature.
FEATURE = {"proj": "projection", "pool": "pool"}


class Batch(NamedTuple):
    """G groups of K views of one image each.

    Attributes:
      images: In [0, 1] or uint8, shape (G, K, H, W, 3).
      scales: Share of the content that each view kept, shape (G, K).
      labels: Class of each group, shape (G,).
      direction_known: Whether the group's views are ordered by content, shape (G,).
      norm_weight: Weight of the norm-ratio (or regression) loss, scalar.
    """

    images: Any
    scales: Any
    labels: Any
    direction_known: Any
    norm_weight: Any


class Source(NamedTuple):
    """One seed's resident training data.

    Attributes:
      training: Images and scales.
      order: Key of the epochs' permutations.
      norm_weight: Weight of the norm-ratio loss, scalar.
    """

    training: data.Training
    order: jax.Array
    norm_weight: jax.Array


class State(NamedTuple):
    """What training changes.

    Attributes:
      params: Weights.
      statistics: Running moments of batch normalisation.
      optimizer: Adam's moments.
    """

    params: Any
    statistics: Any
    optimizer: Any


def sample(source: Source, key: jax.Array, step: jax.Array, *, groups: int, views: int) -> Batch:
    """Groups by a random permutation of the classes an epoch, views without replacement.

    Args:
      source: The training data.
      key: Key of this step.
      step: Training step.
      groups: Classes in a batch (G).
      views: Views of each (K).

    Returns:
      The batch.
    """
    num_classes, num_views = source.training.scales.shape
    steps_per_epoch = num_classes // groups
    epoch_key = jax.random.fold_in(source.order, step // steps_per_epoch)
    order = jax.random.permutation(epoch_key, num_classes)
    start = (step % steps_per_epoch) * groups
    labels = jax.lax.dynamic_slice_in_dim(order, start, groups)
    draws = jax.random.uniform(key, (groups, num_views))
    chosen = jnp.argsort(draws, axis=1)[:, :views]
    return Batch(
        images=source.training.images[labels[:, None], chosen],
        scales=source.training.scales[labels[:, None], chosen],
        labels=labels,
        direction_known=jnp.ones((groups,), bool),
        norm_weight=source.norm_weight,
    )


def learning_rate(name: str, peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """The step size by step.

    Args:
      name: `warmup_cosine`, or `baseline` for the published trainer's factor by epoch.
      peak: Largest step size.
      steps: Training steps in all.
      warmup_steps: Linear warm-up of `warmup_cosine`.

    Returns:
      A schedule.
    """
    if name == "warmup_cosine":
        warmup = min(warmup_steps, steps // 2)
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps)

    def baseline(count: jax.Array) -> jax.Array:
        epoch = jnp.floor(count * BASELINE_EPOCHS / steps)
        warm = 0.99 * epoch / 5 + 0.01
        decay = 0.5 * (jnp.cos(jnp.pi * (epoch - 10) / 15) + 1)
        return peak * jnp.where(epoch < 5, warm, jnp.where(epoch < 10, 1.0, decay))

    return baseline


class Learner:
    """The network and its update for one training variant.

    Args:
      config: The experiment's settings.
      variant: `metric`, `asl`, `asl_reversed` or `norm_regress`.
      num_classes: Classes of the training data.
    """

    def __init__(self, config: Any, variant: str, num_classes: int) -> None:
        self._config = config
        self._variant = variant
        self._num_classes = num_classes
        self._graph = nnx.graphdef(nnx.eval_shape(lambda: self._build(jax.random.key(0))))
        schedule = learning_rate(
            config.schedule, config.learning_rate, config.steps, config.warmup_steps
        )
        self._optimizer = optax.adam(schedule)

    def _build(self, key: jax.Array) -> model.CopyDetector:
        return model.CopyDetector(
            self._config.backbone,
            num_classes=self._num_classes,
            with_scale_head=self._variant == "norm_regress",
            rngs=nnx.Rngs(key),
        )

    def init(self, key: jax.Array) -> State:
        """One seed's state before training.

        Args:
          key: The seed's key.

        Returns:
          The state.
        """
        detector = self._build(key)
        if self._config.backbone_weights:
            model.load_backbone(detector, self._config.backbone_weights)
        params, statistics = nnx.state(detector, nnx.Param, nnx.BatchStat)
        return State(params, statistics, self._optimizer.init(params))

    def features(self, state: State, images: jax.Array) -> model.Features:
        """Test-time features: running statistics, no Waveblock.

        Args:
          state: One seed's state.
          images: In [0, 1], shape (B, H, W, 3).

        Returns:
          Features of each image.
        """
        detector = nnx.merge(self._graph, state.params, state.statistics, copy=True)
        detector.eval()
        return detector(images)

    def step(
        self, state: State, batch: Batch, key: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """One Adam step on the weighted losses.

        Args:
          state: One seed's state.
          batch: Its batch.
          key: Key of this step.

        Returns:
          The new state and the losses.
        """
        (_, (statistics, metrics)), gradient = jax.value_and_grad(self._loss, has_aux=True)(
            state.params, state.statistics, batch, key
        )
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), statistics, optimizer), metrics

    def _loss(self, params: Any, statistics: Any, batch: Batch, key: jax.Array) -> Any:
        config = self._config
        wave_key, pair_key = jax.random.split(key)
        detector = nnx.merge(self._graph, params, statistics, copy=True)
        detector.train()
        groups, views = batch.scales.shape
        images = unit_range(batch.images).reshape(groups * views, *batch.images.shape[2:])
        features = detector(images, key=wave_key if config.waveblock else None)

        def grouped(x: jax.Array) -> jax.Array:
            return x.reshape(groups, views, *x.shape[1:])

        norm_feature = grouped(getattr(features, FEATURE[config.norm_feature]))
        metric = grouped(features.projection)
        if config.triplet_normalize:
            metric = TRIPLET_RADIUS * numerics.normalize(metric)
        # Equal scales are what "no direction" means to every pair sampling.
        scales = jnp.where(batch.direction_known[:, None], batch.scales, 1.0)
        scales = -scales if self._variant == "asl_reversed" else scales
        hi, lo = _pairs(pair_key, scales, config.pair_sampling)
        by_pairs = self._variant in ("asl", "asl_reversed") and config.pair_sampling != "all_pairs"
        losses = retrieval.asl_loss(
            norm_feature,
            grouped(features.logits),
            jnp.repeat(batch.labels[:, None], views, axis=1),
            hi=hi,
            lo=lo,
            metric_features=metric,
            cross_entropy_weight=config.w_ce,
            triplet_weight=config.w_tri,
            norm_ratio_weight=batch.norm_weight if by_pairs else 0.0,
            smoothing=config.smoothing,
            margin=config.margin,
        )
        total, direction = losses.total, losses.norm_ratio
        if self._variant in ("asl", "asl_reversed") and config.pair_sampling == "all_pairs":
            direction = similarity.norm_ratio_loss_all_pairs(norm_feature, scales)
            total += batch.norm_weight * direction
        elif self._variant == "norm_regress":
            error = jnp.square(grouped(features.scale) - batch.scales)
            known = jnp.broadcast_to(batch.direction_known[:, None], error.shape)
            direction = numerics.masked_mean(error, known)
            total += batch.norm_weight * direction
        metrics = {
            "loss": total,
            "cross_entropy": losses.cross_entropy,
            "triplet": losses.triplet,
            "direction_loss": direction,
        }
        return total, (nnx.state(detector, nnx.BatchStat), metrics)


def unit_range(images: jax.Array) -> jax.Array:
    """Pixels as floats in [0, 1].

    Args:
      images: uint8, or floats that already are.

    Returns:
      Floats of the same shape.
    """
    return images / jnp.float32(255) if images.dtype == jnp.uint8 else images


def _pairs(key: jax.Array, scales: jax.Array, sampling: str) -> tuple[jax.Array, jax.Array]:
    if sampling == "random_one":
        return similarity.sample_scale_pairs(key, scales)
    return similarity.select_extreme_pairs(scales)
