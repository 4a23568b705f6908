"""The training step: analyse the batch, scale what reaches the encoders, descend."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from asym import fusion, multimodal
from experiments.arl import data, methods, model, sources
from experiments.arl.methods import AUDIO, VISUAL

# Columns of `State.curves`.
CURVES = ("log_dependence", "log_inverse_variance", "gap", "k_audio", "k_visual")

_BOOST = 5.0
# Below it a modality counts as unused; its logarithm must stay finite.
_SMALLEST_SHARE = 1e-12
_DECAY = 0.1


class State(NamedTuple):
    """What training changes.

    Attributes:
      encoders: Weights of both encoders.
      statistics: Running moments of batch normalisation; empty for the MLP.
      head: Layers of the fusion head.
      optimizer: Momentum.
      curves: Sums over the steps of each epoch, shape (epochs, len(CURVES)).
    """

    encoders: Any
    statistics: Any
    head: Any
    optimizer: Any
    curves: jax.Array


def learning_rate(
    peak: float, *, decay_epochs: tuple[int, ...], steps_per_epoch: int
) -> optax.Schedule:
    """The step size by step: times 0.1 at each milestone, one epoch early.

    The released code advances its schedule at the start of each epoch instead of at its end.

    Args:
      peak: Step size at first.
      decay_epochs: Milestones.
      steps_per_epoch: Steps in an epoch.

    Returns:
      A schedule.
    """

    def rate(count: jax.Array) -> jax.Array:
        epoch = count // steps_per_epoch
        passed = sum((epoch + 1 >= milestone for milestone in decay_epochs), jnp.int32(0))
        return peak * _DECAY**passed

    return rate


class Learner:
    """The network and its update by one method.

    Args:
      config: The experiment's settings.
      source: The data that it will see.
    """

    def __init__(self, config: Any, source: sources.Source) -> None:
        self._config = config
        self._source = source
        abstract = nnx.eval_shape(lambda: self._build(jax.random.key(0)))
        self._graph, self._width = nnx.graphdef(abstract), abstract.width
        schedule = learning_rate(
            config.learning_rate,
            decay_epochs=config.decay_epochs,
            steps_per_epoch=source.steps_per_epoch,
        )
        # PyTorch's order: clipped gradient, then weight decay, then momentum.
        self._optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, config.momentum)
        )

    def _build(self, key: jax.Array) -> model.Encoders:
        return model.Encoders(self._config.encoder, self._source.shapes, rngs=nnx.Rngs(key))

    def init(self, key: jax.Array) -> State:
        """One seed's state before training.

        Args:
          key: The seed's key.

        Returns:
          The state.
        """
        encoder_key, head_key = jax.random.split(key)
        encoders, statistics = nnx.state(self._build(encoder_key), nnx.Param, nnx.BatchStat)
        head = model.init_head(
            head_key,
            self._config.fusion,
            width=self._width,
            num_classes=self._source.num_classes,
        )
        return State(
            encoders,
            statistics,
            head,
            self._optimizer.init((encoders, head)),
            jnp.zeros((self._config.epochs, len(CURVES))),
        )

    def step(
        self, state: State, batch: sources.Batch, key: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """One step of gradient descent.

        Args:
          state: One seed's state.
          batch: Its batch.
          key: Key of this step.

        Returns:
          The new state, and the losses and the accuracy on the batch.
        """
        picture_key, noise_key = jax.random.split(key)
        examples, labels = self._training_inputs(batch.examples, picture_key), batch.examples.labels

        # One forward pass of the encoders: batch normalisation must not see the batch twice.
        def encode(encoders: Any) -> Any:
            return self._encode(encoders, state.statistics, examples, train=True)

        features, pull_back, statistics = jax.vjp(encode, state.encoders, has_aux=True)
        logits = model.fuse(self._config.fusion, state.head, features)
        analysis = self._analyse(logits)
        strength = self._strength(analysis, batch)
        warming_up = batch.epoch < self._config.start
        gamma = batch.recipe.auxiliary * jnp.where(warming_up, 1.0, self._config.gamma)

        def objective(head: Any, features: Any) -> tuple[jax.Array, jax.Array]:
            scaled = [
                multimodal.grad_scale(each, k) for each, k in zip(features, strength, strict=True)
            ]
            through = model.fuse(self._config.fusion, head, scaled)
            parts = multimodal.arl_loss(
                fused=through.fused, unimodal=through.unimodal, labels=labels, gamma=gamma
            )
            loss = _selected(batch.recipe.only, parts.total, parts.unimodal)
            return loss, loss

        (of_head, of_features), loss = jax.grad(objective, (0, 1), has_aux=True)(
            state.head, features
        )
        (of_encoders,) = pull_back(of_features)
        if self._config.method == methods.OGM_GE:
            of_encoders = self._modulated(of_encoders, logits, labels, noise_key)
        gradient, norm = multimodal.clip_global_norm((of_encoders, of_head), self._config.clip_norm)
        params = (state.encoders, state.head)
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, params)
        encoders, head = optax.apply_updates(params, updates)
        row = self._curve_point(analysis, strength)
        curves = state.curves.at[batch.epoch].add(row)
        prediction = _selected(batch.recipe.only, logits.fused, jnp.stack(logits.unimodal))
        metrics = {
            "loss": loss,
            "accuracy": _accuracy(prediction, labels),
            "gradient_norm": norm,
        } | dict(zip(CURVES, row, strict=True))
        return State(encoders, statistics, head, optimizer, curves), metrics

    def _training_inputs(self, examples: data.Examples, key: jax.Array) -> data.Examples:
        if self._config.dataset == sources.DIGITS:
            return examples
        pictures = data.augmented(key, examples.visual, self._config.image_size)
        return examples._replace(audio=examples.audio.astype(jnp.float32), visual=pictures)

    def _encode(self, encoders: Any, statistics: Any, examples: data.Examples, train: bool) -> Any:
        network = nnx.merge(self._graph, encoders, statistics, copy=True)
        network.train() if train else network.eval()
        features = network(examples.audio, examples.visual)
        return features, nnx.state(network, nnx.BatchStat)

    def _analyse(self, logits: fusion.FusedLogits) -> multimodal.ModalityAnalysis:
        return multimodal.modality_analysis(
            logits.unimodal, sharpness=self._config.T, entropy_floor=self._config.entropy_floor
        )

    def _strength(self, analysis: multimodal.ModalityAnalysis, batch: sources.Batch) -> jax.Array:
        """The strengths k of both modalities, by the recipe of the batch."""
        balanced = multimodal.asymmetric_coefficients(
            dependence=analysis.dependence,
            inverse_variance=jnp.full(2, 0.5),
            sharpness=self._config.T,
        )
        from_start = {"none": jnp.zeros(2), "boost": jnp.array([_BOOST - 1, 0.0])}
        warmed_up = {
            "analysis": analysis.coefficient,
            "uniform": jnp.full(2, 0.5),
            "balanced": balanced,
        }
        acts = batch.epoch >= self._config.start
        kinds = from_start | {kind: jnp.where(acts, k, 0.0) for kind, k in warmed_up.items()}
        return jnp.stack([kinds[kind] for kind in methods.STRENGTHS])[batch.recipe.strength]

    def _modulated(
        self, gradient: Any, logits: fusion.FusedLogits, labels: jax.Array, key: jax.Array
    ) -> Any:
        """OGM-GE on the kernels: the better modality is slowed down, and both get noise."""
        factors = multimodal.ogm_ge_coefficients(
            logits.unimodal, labels, alpha=self._config.ogm_alpha
        )
        leaves, tree = jax.tree_util.tree_flatten_with_path(gradient)
        keys = jax.random.split(key, len(leaves))
        changed = []
        for (path, leaf), leaf_key in zip(leaves, keys, strict=True):
            if leaf.ndim > 1:
                factor = factors[AUDIO if path[0].key == "audio" else VISUAL]
                deviation = jnp.std(leaf, ddof=1)
                leaf = factor * leaf + deviation * jax.random.normal(leaf_key, leaf.shape)
            changed.append(leaf)
        return jax.tree.unflatten(tree, changed)

    def _curve_point(self, analysis: multimodal.ModalityAnalysis, strength: jax.Array) -> jax.Array:
        shares = jnp.stack([analysis.dependence, analysis.inverse_variance])
        logs = jnp.log(jnp.maximum(shares, _SMALLEST_SHARE))
        ratios = logs[:, AUDIO] - logs[:, VISUAL]
        return jnp.stack([*ratios, jnp.abs(ratios[0] - ratios[1]), *strength])

    def accuracies(self, state: State, test: data.Examples) -> dict[str, jax.Array]:
        """Accuracy of the prediction, and of each modality alone, on the test examples.

        Args:
          state: One seed's state.
          test: Its test examples.

        Returns:
          `accuracy` (for `unimodal_*` that of its modality), and where both modalities were
          trained `accuracy_audio` and `accuracy_visual`.
        """

        def right(example: data.Examples) -> jax.Array:
            one = jax.tree.map(lambda x: x[None], example)
            if self._config.dataset != sources.DIGITS:
                pictures = data.centred(one.visual, self._config.image_size)
                one = one._replace(audio=one.audio.astype(jnp.float32), visual=pictures)
            features, _ = self._encode(state.encoders, state.statistics, one, train=False)
            logits = model.fuse(self._config.fusion, state.head, features)
            return jnp.stack([_accuracy(z, one.labels) for z in (logits.fused, *logits.unimodal)])

        # In parts, because the features of all test pictures at once would not fit.
        found = jax.lax.map(right, test, batch_size=min(self._config.batch_size, len(test.labels)))
        fused, audio, visual = jnp.mean(found, axis=0)
        if methods.is_unimodal(self._config.method):
            only = methods.RECIPES[self._config.method].only
            return {"accuracy": (audio, visual)[only]}
        return {"accuracy": fused, "accuracy_audio": audio, "accuracy_visual": visual}


def _selected(only: jax.Array, fused: jax.Array, unimodal: jax.Array) -> jax.Array:
    """What belongs to the fused prediction, or to the one modality that trains."""
    return jnp.where(only < 0, fused, unimodal[jnp.maximum(only, 0)])


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)
