"""The training step: relax, ask the network for its errors, add homeostasis, descend."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asym import equilibrium
from experiments.ep_homeostasis import model, optimizers, settings, sources

# Steps in one turn of the relaxation's loop: a step of a small network takes microseconds, of which
# the loop takes its share.  Convolutions gain nothing and compile long.
_UNROLL = 2


class State(NamedTuple):
    """What training changes.

    Attributes:
      params: Connections by name, and the readout.
      optimizer: Moments of the step rule.
      states: States that the next batch starts from; empty where each starts from zero.
    """

    params: model.Params
    optimizer: Any
    states: model.States


class Learner:
    """A network and its update.

    Args:
      config: The experiment's settings, resolved.
      source: The data that it will see.
      angle_deg: Angle of feedback to forward weights at the start.
    """

    def __init__(self, config: Any, source: sources.Source, angle_deg: float) -> None:
        self.config = config
        self.source = source
        self.field = model.vector_field(config.act, config.loss)
        self.pace = {
            "damping": config.damping,
            "unroll": 1 if config.arch == settings.CNN else _UNROLL,
        }
        self._angle = angle_deg
        self._optimizer = optimizers.make(config, config.epochs * source.steps_per_epoch)

    def init(self, key: jax.Array) -> State:
        """One seed's state before training.

        Args:
          key: The seed's key.

        Returns:
          The state.
        """
        config, source = self.config, self.source
        if config.arch == settings.CNN:
            params = model.init_cnn(
                key,
                in_channels=source.num_inputs,
                num_classes=source.num_classes,
                width_mult=config.width_mult,
                angle_deg=self._angle,
            )
            shape: tuple[int, ...] = (32, 32, source.num_inputs)
        else:
            params = model.init_mlp(
                key,
                (source.num_inputs, *config.hidden, source.num_classes),
                arch=config.arch,
                angle_deg=self._angle,
            )
            shape = (source.num_inputs,)
        states: model.States = {}
        if not config.reset:
            states = model.zero_states(params, jnp.zeros((config.batch_size, *shape)))
        return State(params, self._optimizer.init(params), states)

    def step(
        self, state: State, batch: sources.Batch, key: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """One step of descent.

        Args:
          state: One seed's state.
          batch: Its batch.
          key: Key of this step, for the probes of the Jacobian.

        Returns:
          The new state, and what the batch told: loss, accuracy, homeostatic loss and residual.
        """
        config, vf, params = self.config, self.field, state.params
        x, y = batch.inputs, self.targets(batch.labels)
        u, gradient = self._task_gradient(state, x, y)
        activities = jax.lax.stop_gradient(equilibrium.activate(vf, u))
        told = {
            "loss": vf.loss(params, activities, y) / len(y),
            "accuracy": jnp.mean(self.predictions(params, activities) == batch.labels),
            "residual": jnp.mean(self.residual(params, u, x)),
        }
        if config.homeo_coef:
            told["homeostatic_loss"], extra = self._homeostasis(params, x, activities, key)
            # Before the step rule, as in the released code: Adam sees the sum.
            gradient = jax.tree.map(lambda g, h: g + config.homeo_coef * h, gradient, extra)
        if config.kp_decay:
            gradient = mirrored(gradient)
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        if config.kp_decay:
            params = decayed(params, config.kp_decay)
        return State(params, optimizer, {} if config.reset else u), told

    def _task_gradient(
        self, state: State, x: jax.Array, y: jax.Array
    ) -> tuple[model.States, model.Params]:
        config, vf, params = self.config, self.field, state.params
        data: dict[str, Any] = {"x": x, "y": y}
        steps: dict[str, Any] = {"num_steps": config.t_nudge}
        pace: dict[str, Any] = self.pace
        if config.algo == "online_hep":
            estimate = equilibrium.online_error_vector(
                vf,
                params,
                model.zero_states(params, x),
                num_blocks=config.turns * config.n_phases,
                steps_per_block=config.t_nudge,
                beta=config.beta,
                n=config.n_phases,
                damping=config.damping,
                **data,
            )
            u, delta = estimate
        else:
            start = model.zero_states(params, x) if config.reset else state.states
            u = self.free_states(params, x, start, config.dtype)
            inner, pull_back = jax.vjp(lambda p: model.clamped(p, x), params)
            if config.algo == "bp":
                gradient = equilibrium.bp_grad(vf, inner, u, **data, **steps, **pace)
                return u, pull_back(gradient)[0]
            if config.algo == "hep":
                circle: dict[str, Any] = {"beta": config.beta, "n": config.n_phases}
                delta = equilibrium.ep_error_vector(vf, inner, u, **data, **steps, **circle, **pace)
            elif config.algo == "rbp":
                delta = equilibrium.rbp_error_vector(vf, inner, u, **data, **steps)
            else:
                delta = equilibrium.neumann_rbp_error_vector(vf, inner, u, **data, **steps)
        return u, equilibrium.ep_grad(vf, params, u_free=u, delta=delta, **data)

    def _homeostasis(
        self, params: model.Params, x: jax.Array, activities: model.States, key: jax.Array
    ) -> tuple[jax.Array, model.Params]:
        bypassed = equilibrium.bypassed_field(self.field, x)
        if self.config.homeo_draws:
            eps = equilibrium.gaussian_probes(key, activities, self.config.homeo_draws)
            return equilibrium.homeostatic_grad(bypassed, params, r_free=activities, eps=eps)

        def exact(params: model.Params) -> jax.Array:
            jacobian = equilibrium.activity_jacobian(bypassed, params, r_free=activities)
            return jnp.mean(equilibrium.homeostatic_loss_exact(jacobian))

        return jax.value_and_grad(exact)(params)

    def free_states(
        self,
        params: model.Params,
        x: jax.Array,
        start: model.States | None = None,
        dtype: str = "float32",
    ) -> model.States:
        """States after the free phase.

        Args:
          params: The parameters.
          x: Inputs (B, ...).
          start: States to start from, zero by default.
          dtype: Numbers to relax with.

        Returns:
          The states, in float32.
        """
        low = jax.tree.map(lambda w: w.astype(dtype), (params, x, start))
        if low[2] is None:
            low = (*low[:2], model.zero_states(low[0], low[1]))

        inner = model.clamped(*low[:2])

        def step(u: model.States) -> model.States:
            return equilibrium.next_states(self.field, inner, u, x=low[1])

        u = equilibrium.relax(step, low[2], self.config.t_free, **self.pace)
        return jax.tree.map(lambda v: v.astype(jnp.float32), u)

    def targets(self, labels: jax.Array) -> jax.Array:
        """One-hot targets (B, C) of classes (B,)."""
        return jax.nn.one_hot(labels, self.source.num_classes)

    def scores(self, params: model.Params, activities: model.States) -> jax.Array:
        """Scores (B, C): the readout's, or for squared errors the last layer itself."""
        if self.config.loss == "mse":
            return activities["out"]
        return model.logits(params, activities)

    def predictions(self, params: model.Params, activities: model.States) -> jax.Array:
        """The classes (B,) with the largest scores."""
        return jnp.argmax(self.scores(params, activities), axis=-1)

    def residual(self, params: model.Params, u: model.States, x: jax.Array) -> jax.Array:
        """Distance from rest ||F(u)|| of each sample (B,)."""
        return 10 ** equilibrium.log_residual(equilibrium.vector_field(self.field, params, u, x=x))


def mirrored(gradient: model.Params) -> model.Params:
    """Gradients in which both weights of a pair get the mean of their own two.

    Args:
      gradient: By connection.

    Returns:
      The same tree; biases and unpaired connections are left alone.
    """
    changed = dict(gradient)
    for forward, backward in model.reciprocal_pairs(gradient):
        there, back = gradient[forward]["kernel"], gradient[backward]["kernel"]
        mean = (there + _turned(back)) / 2
        changed[forward] = gradient[forward] | {"kernel": mean}
        changed[backward] = gradient[backward] | {"kernel": _turned(mean)}
    return changed


def decayed(params: model.Params, share: float) -> model.Params:
    """Parameters whose reciprocal kernels have lost a share.

    Args:
      params: By connection.
      share: In [0, 1].

    Returns:
      New parameters.
    """
    changed = dict(params)
    for name in (name for pair in model.reciprocal_pairs(params) for name in pair):
        changed[name] = params[name] | {"kernel": (1 - share) * params[name]["kernel"]}
    return changed


def _turned(kernel: jax.Array) -> jax.Array:
    """Kernels of convolutions have one shape for both ways."""
    return kernel.T if kernel.ndim == 2 else kernel
