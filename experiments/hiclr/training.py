"""One step of pre-training: three views, a momentum encoder, a queue, a loss with a direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from asym import contrastive, numerics
from experiments.common.nets import stgcn
from experiments.hiclr import sources, views

SGD_MOMENTUM = 0.9
DECAY = 0.1
# Clips encoded at once when features are measured.
_CHUNK = 300
# Method -> number of views, anchor and direction of the consistency.
RECIPES: dict[str, tuple[int, contrastive.Anchor, contrastive.Direction]] = {
    "random": (1, "adjacent", "strong_to_weak"),
    "skeletonclr": (1, "adjacent", "strong_to_weak"),
    "aimclr": (2, "adjacent", "strong_to_weak"),
    "hiclr": (3, "adjacent", "strong_to_weak"),
    "naive_strong": (3, "adjacent", "strong_to_weak"),
    "hiclr_flat": (3, "weakest", "strong_to_weak"),
    "hiclr_symmetric": (3, "adjacent", "symmetric"),
    "hiclr_reverse": (3, "adjacent", "weak_to_strong"),
}


class State(NamedTuple):
    """What pre-training changes.

    Attributes:
      params: The query network and the value of masked joints.
      rest: Batch-norm statistics of the query network, and its graph.
      key_params: The key network, which follows.
      key_rest: Its own statistics, and the graph.
      optimizer: Momentum of the query network.
      queue: Earlier keys as columns (D, K).
      pointer: Column of the oldest one.
    """

    params: Any
    rest: Any
    key_params: Any
    key_rest: Any
    optimizer: Any
    queue: jax.Array
    pointer: jax.Array


class Details(NamedTuple):
    """What one step did, for metrics and for claims about it.

    Attributes:
      loss: Parts of the objective.
      total: The objective; `loss.total` unless the strong view enters InfoNCE.
      gradients: Wrt the embedding of each view, weakest first (views, N, D).
      keys: What was pushed into the queue (N, D).
    """

    loss: contrastive.HierarchicalLoss
    total: jax.Array
    gradients: jax.Array
    keys: jax.Array


class Witness(NamedTuple):
    """Embeddings of a batch, not scaled to unit length, and the queue that they are compared with.

    Attributes:
      views: Weakest first (views, N, D).
      keys: Of the key encoder (N, D).
      queue: Unit columns (D, K).
    """

    views: Any
    keys: Any
    queue: Any


class Network(nnx.Module):
    """The encoder and the projector behind it."""

    def __init__(self, config: Any, adjacency: jax.Array, *, rngs: nnx.Rngs) -> None:
        kernel_init = {"fan_in": stgcn.FAN_IN, "normal": stgcn.NORMAL}[config.kernel_init]
        blocks = (
            stgcn.three_blocks(config.hidden_channels)
            if config.encoder == "mini"
            else stgcn.ten_blocks(config.hidden_channels, config.hidden_dim, config.dropout)
        )
        self.encoder = stgcn.STGCN(
            adjacency,
            blocks,
            dtype=jnp.bfloat16 if config.bfloat16 else None,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        width = self.encoder.feature_dim
        self.head = stgcn.Head(
            width, config.feature_dim, hidden=width, kernel_init=kernel_init, rngs=rngs
        )

    def __call__(self, x: jax.Array, **options: Any) -> jax.Array:
        """Embeddings of clips (N, C, T, V, M), (N, D)."""
        return self.head(self.encoder(x, **options))


def num_steps(config: Any, source: sources.Source) -> int:
    """How long a method is pre-trained.

    Args:
      config: The experiment's settings.
      source: Its data.

    Returns:
      Steps; 0 for the encoder that stays as it was drawn.
    """
    if config.method == "random":
        return 0
    return config.steps or config.epochs * source.steps_per_epoch


def split(module: nnx.Module) -> tuple[Any, Any]:
    """The state of a network.

    Args:
      module: The network.

    Returns:
      Parameters, and the rest.
    """
    _, params, *rest = nnx.split(module, nnx.Param, ...)
    return params, rest[0]


def chunked(encode: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """A function of clips, on so many at a time as memory holds.

    Args:
      encode: Clips (n, ...) to rows (n, width).
      x: Clips (N, ...).

    Returns:
      (N, width).
    """
    count = len(x)
    size = min(count, _CHUNK)
    chunks = -(-count // size)
    padded = jnp.pad(x, [(0, chunks * size - count), *[(0, 0)] * (x.ndim - 1)])
    rows = jax.lax.map(encode, padded.reshape(chunks, size, *x.shape[1:]))
    return rows.reshape(chunks * size, -1)[:count]


class Learner:
    """The networks and their update by one method, on one stream.

    Args:
      config: The experiment's settings.
      source: The data that it will see.
      stream: "joint", "motion" or "bone".
    """

    def __init__(self, config: Any, source: sources.Source, stream: str) -> None:
        self._config = config
        self._skeleton = source.skeleton
        self._stream = stream
        self._count, self._anchor, self._direction = RECIPES[config.method]
        self._adjacency = source.skeleton.adjacency()
        self._augmenter = views.Augmenter(config, source.skeleton, stream)
        self._graph = nnx.graphdef(nnx.eval_shape(lambda: self._build(jax.random.key(0))))
        dropping = config.encoder == "full" and config.dropout > 0
        self._edges = (
            {"drop_edges": config.dropout_graph, "add_edges": config.add_graph}
            if "dae" in config.strong_aug
            else {}
        )
        self._draws = dropping
        last_epoch = (num_steps(config, source) - 1) // source.steps_per_epoch
        self._mines = last_epoch > config.mining_epoch
        drop_at = (config.lr_drop_epoch + 1) * source.steps_per_epoch
        schedule = optax.piecewise_constant_schedule(config.learning_rate, {drop_at: DECAY})
        # Everything decays, batch norm and the masked value too, and before the momentum.
        self._optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, SGD_MOMENTUM)
        )

    def _build(self, key: jax.Array) -> Network:
        network = Network(self._config, self._adjacency, rngs=nnx.Rngs(key))
        network.train()
        return network

    def init(self, key: jax.Array) -> State:
        """One seed's state before training.

        Args:
          key: The seed's key.

        Returns:
          The state.
        """
        query_key, own_key, queue_key = jax.random.split(key, 3)
        network, rest = split(self._build(query_key))
        key_network, key_rest = network, rest
        if self._config.key_init == "independent":
            key_network, key_rest = split(self._build(own_key))
        params = {"network": network, "masked": jnp.zeros(())}
        queue = contrastive.queue_init(
            queue_key, dim=self._config.feature_dim, size=self._config.queue_size
        )
        return State(
            params,
            rest,
            key_network,
            key_rest,
            self._optimizer.init(params),
            queue,
            jnp.zeros((), jnp.int32),
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
          The new state, and the parts of the loss and the gradient's length of each view.
        """
        state, details = self.advance(state, batch, key)
        metrics = {"loss": details.total, "info_nce": details.loss.info_nce}
        for name, value in zip(views.NAMES[1:], details.loss.consistency, strict=False):
            metrics[f"consistency_{name}"] = value
        for name, gradient in zip(views.NAMES, details.gradients, strict=False):
            metrics[f"gradient_{name}"] = jnp.linalg.norm(gradient)
        return state, metrics

    def advance(self, state: State, batch: sources.Batch, key: jax.Array) -> tuple[State, Details]:
        """`step`, telling everything.

        Args:
          state: One seed's state.
          batch: Its batch.
          key: Key of this step.

        Returns:
          The new state, and what happened.
        """
        key_view_key, views_key, key_forward, query_forward = jax.random.split(key, 4)

        def embed(params: Any) -> tuple[list[jax.Array], Any]:
            return self._embed(params, state.rest, batch.x, views_key, query_forward)

        embeddings, pull_back, rest = jax.vjp(embed, state.params, has_aux=True)
        key_params = contrastive.ema_update(
            target=state.key_params,
            online=state.params["network"],
            momentum=self._config.momentum,
        )
        key_view = self._augmenter.key_view(key_view_key, batch.x)
        keys, key_rest = self._forward(key_params, state.key_rest, key_view, key_forward)
        keys = numerics.normalize(keys)

        def objective(embeddings: list[jax.Array]) -> tuple[jax.Array, Any]:
            total, parts = self.objective(embeddings, keys, state.queue, batch.epoch)
            return total, (total, parts)

        gradients, (total, parts) = jax.grad(objective, has_aux=True)(embeddings)
        queue, pointer = contrastive.queue_push(queue=state.queue, pointer=state.pointer, keys=keys)
        (gradient,) = pull_back(gradients)
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        details = Details(parts, total, jnp.stack(gradients), keys)
        return State(params, rest, key_params, key_rest, optimizer, queue, pointer), details

    def witness(self, state: State, x: jax.Array, key: jax.Array) -> Witness:
        """Embeddings of a batch as a training step would see them.

        Args:
          state: One seed's state.
          x: Clips (N, C, T, V, M).
          key: Random key.

        Returns:
          The embeddings and what they are compared with.
        """
        key_view_key, views_key, key_forward, query_forward = jax.random.split(key, 4)
        embeddings, _ = self._embed(state.params, state.rest, x, views_key, query_forward)
        key_view = self._augmenter.key_view(key_view_key, x)
        keys, _ = self._forward(state.key_params, state.key_rest, key_view, key_forward)
        return Witness(jnp.stack(embeddings), keys, state.queue)

    def _embed(
        self, params: Any, rest: Any, x: jax.Array, views_key: jax.Array, forward_key: jax.Array
    ) -> tuple[list[jax.Array], Any]:
        """Each view in a pass, and so in a batch norm, of its own."""
        made = self._augmenter.growing(views_key, x, params["masked"], self._count)
        found = []
        for index, view in enumerate(made):
            edges = self._edges if index == 2 else {}
            key = jax.random.fold_in(forward_key, index)
            z, rest = self._forward(params["network"], rest, view, key, **edges)
            found.append(z)
        return found, rest

    def objective(
        self, weakest_first: Sequence[jax.Array], keys: jax.Array, queue: jax.Array, epoch: Any
    ) -> tuple[jax.Array, contrastive.HierarchicalLoss]:
        """The loss of the method.

        Args:
          weakest_first: Embeddings of the views, each (N, D), of any length.
          keys: Embeddings of the key encoder (N, D), unit length.
          queue: Earlier keys (D, K).
          epoch: Which pass through the data.

        Returns:
          The scalar to descend, and its parts.
        """
        config = self._config
        parts = contrastive.hiclr_loss(
            weakest_first=weakest_first,
            key=keys,
            queue=queue,
            temperature=config.temperature,
            # Mining costs a sort of the queue: a run too short for it is spared.
            mining=epoch > config.mining_epoch if self._mines else False,
            top_k=config.topk,
            direction=self._direction,
            anchor=self._anchor,
            normalize=True,
        )
        if config.method != "naive_strong":
            return parts.total, parts
        contrasts = [
            contrastive.multi_positive_nce(logits, parts.positive_mask) for logits in parts.logits
        ]
        return jnp.mean(jnp.stack(contrasts)), parts

    def _forward(
        self, network: Any, rest: Any, x: jax.Array, key: jax.Array, **edges: float
    ) -> tuple[jax.Array, Any]:
        merged = nnx.merge(self._graph, network, rest, copy=True)
        given = key if self._draws or edges else None
        z = merged(x, key=given, **edges)
        return z, split(merged)[1]

    def features(self, state: State, x: jax.Array) -> jax.Array:
        """Features of clips in evaluation mode: running statistics, no dropout.

        Args:
          state: One seed's state.
          x: Joint positions (N, C, T, V, M).

        Returns:
          Features before the projector (N, feature_dim of the encoder).
        """
        network = nnx.merge(self._graph, state.params["network"], state.rest, copy=True)
        network.eval()

        def encode(clips: jax.Array) -> jax.Array:
            return network.encoder(views.seen(clips, self._stream, self._skeleton))

        return chunked(encode, x)
