"""Procedural skeleton actions: figures that swing a group of limbs, slowly or fast.

The twelve classes are (left arm, right arm, both arms, left leg, right leg, torso and head) x
(slow, fast).  View, shear, noise and lost joints are nuisances; body sizes go with the subjects,
and no subject is both in training and in test.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.hiclr import skeletons

GROUPS = ("left arm", "right arm", "both arms", "left leg", "right leg", "torso and head")
NUM_CLASSES = 2 * len(GROUPS)
_TRAIN_SUBJECTS, _TEST_SUBJECTS = 20, 10
_LENGTH_DEVIATION = 0.1
_AMPLITUDE, _AMPLITUDE_RANGE = 0.9, (0.7, 1.3)
_FOLLOWER_LAG, _FOLLOWER_SHARE = np.pi / 3, 0.5
_WARP = (0.8, 1.25)
_SWAY, _SWAY_CYCLES = 0.05, 4.0
_YAW, _SHEAR, _NOISE = np.pi / 4, 0.2, 0.02
_ABSENT = 0.8

# Bones hang on the pelvis, so that a bending torso carries head and arms along.
_PARENTS = (
    *(0, 0, 20, 2),
    *(20, 4, 5, 6),
    *(20, 8, 9, 10),
    *(0, 12, 13, 14),
    *(0, 16, 17, 18),
    *(1, 7, 7, 11, 11),
)
# Parents before children.
_ORDER = (0, 1, 20, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23, 24)
# The left side of the figure; +x is to its left, y is up, z to the front.  Metres.
_LEFT = {
    4: (0.18, -0.03, 0.0),
    5: (0.08, -0.27, 0.0),
    6: (0.03, -0.25, 0.0),
    7: (0.01, -0.08, 0.0),
    12: (0.09, -0.04, 0.0),
    13: (0.02, -0.42, 0.0),
    14: (0.0, -0.40, 0.0),
    15: (0.0, -0.06, 0.12),
    21: (0.0, -0.07, 0.0),
    22: (-0.02, -0.03, 0.04),
}
_MIDDLE = {1: (0.0, 0.25, 0.0), 20: (0.0, 0.25, 0.0), 2: (0.0, 0.08, 0.0), 3: (0.0, 0.16, 0.0)}
# Per group: (leading bone, following bone, sign).  Legs and arms swing away from the body.
_MOVING = (
    ((5, 6, 1.0),),
    ((9, 10, -1.0),),
    ((5, 6, 1.0), (9, 10, -1.0)),
    ((13, 14, 1.0),),
    ((17, 18, -1.0),),
    ((1, 2, 1.0),),
)


class Clips(NamedTuple):
    """Labelled clips.

    Attributes:
      x: Joints relative to the centre joint (clips, 3, frames, joints, persons), metres.
      y: Classes (clips,).
    """

    x: Any
    y: Any


def rest_bones() -> np.ndarray:
    """The standing figure.

    Returns:
      Vector of each joint from its kinematic parent, 0 at the pelvis, shape (25, 3).
    """
    bones = np.zeros((skeletons.NTU.joints, 3), np.float32)
    for joint, vector in (_LEFT | _MIDDLE).items():
        bones[joint] = vector
        other = skeletons.NTU.mirror[joint]
        if other != joint:
            bones[other] = np.array(vector) * (-1, 1, 1)
    return bones


def make(
    key: jax.Array,
    *,
    num_train: int,
    num_test: int,
    frames: int,
    persons: int,
    cycles: float,
    corrupted: float,
    corruption: float,
) -> tuple[Clips, Clips]:
    """Training and test clips of different subjects; classes in equal shares.

    Args:
      key: Random key.
      num_train: Training clips.
      num_test: Test clips.
      frames: T.
      persons: M; the second figure is absent (zeros) with probability 0.8, else it idles.
      cycles: Swings of a slow clip; a fast one has twice as many.
      corrupted: Share of the entries (frame, joint) that are far off.
      corruption: Standard deviation of these, in metres.

    Returns:
      The clips.
    """
    body_key, train_key, test_key = jax.random.split(key, 3)
    subjects = _TRAIN_SUBJECTS + _TEST_SUBJECTS
    lengths = jnp.exp(_LENGTH_DEVIATION * jax.random.normal(body_key, (subjects, 25)))

    def one(key: jax.Array, label: jax.Array, first: int, count: int) -> jax.Array:
        subject_key, *figure_keys = jax.random.split(key, 1 + persons)
        absent_key = jax.random.fold_in(subject_key, 1)
        subject = jax.random.randint(subject_key, (persons,), first, first + count)
        figures = []
        for person, figure_key in enumerate(figure_keys):
            body = lengths[subject[person]]
            motion_key, view_key = jax.random.split(figure_key)
            moving = _moving(label) if person == 0 else jnp.zeros((2, 25))
            swing = cycles * (1 + label % 2)
            angles = _angles(motion_key, moving, swing, frames)
            seen = _observed(view_key, _positions(angles, body), corrupted, corruption)
            if person:
                seen = jnp.where(jax.random.bernoulli(absent_key, _ABSENT), 0.0, seen)
            figures.append(seen)
        return jnp.stack(figures, axis=-1)

    def many(key: jax.Array, number: int, first: int, count: int) -> Clips:
        labels = jnp.arange(number) % NUM_CLASSES
        keys = jax.random.split(key, number)
        return Clips(jax.vmap(lambda k, y: one(k, y, first, count))(keys, labels), labels)

    return (
        many(train_key, num_train, 0, _TRAIN_SUBJECTS),
        many(test_key, num_test, _TRAIN_SUBJECTS, _TEST_SUBJECTS),
    )


def _moving(label: jax.Array) -> jax.Array:
    """Signed weights of leading and of following bones, (2, 25)."""
    table = np.zeros((len(GROUPS), 2, 25), np.float32)
    for group, parts in enumerate(_MOVING):
        for leading, following, sign in parts:
            table[group, 0, leading] = sign
            table[group, 1, following] = sign * _FOLLOWER_SHARE
    return jnp.asarray(table)[label // 2]


def _angles(key: jax.Array, moving: jax.Array, cycles: jax.Array, frames: int) -> jax.Array:
    """Angle of each bone against its parent's, (frames, 25), radians."""
    keys = jax.random.split(key, 5)
    size = _AMPLITUDE * jax.random.uniform(
        keys[0], (), minval=_AMPLITUDE_RANGE[0], maxval=_AMPLITUDE_RANGE[1]
    )
    phase = jax.random.uniform(keys[1], (), maxval=2 * np.pi)
    warp = jax.random.uniform(keys[2], (), minval=_WARP[0], maxval=_WARP[1])
    time = (jnp.arange(frames) / frames) ** warp
    turn = 2 * np.pi * cycles * time + phase
    swing = size * (
        jnp.sin(turn)[:, None] * moving[0] + jnp.sin(turn - _FOLLOWER_LAG)[:, None] * moving[1]
    )
    rate = jax.random.uniform(keys[3], (25,), maxval=_SWAY_CYCLES)
    start = jax.random.uniform(keys[4], (25,), maxval=2 * np.pi)
    sway = _SWAY * jnp.sin(2 * np.pi * rate * time[:, None] + start)
    return jnp.where(jnp.any(moving != 0, axis=0), swing, sway)


def _positions(angles: jax.Array, lengths: jax.Array) -> jax.Array:
    """Forward kinematics: bones turned about z by the sum of the angles up to them, (3, T, 25)."""
    total: list[jax.Array] = [angles[:, 0]] * 25
    place: list[jax.Array] = [jnp.zeros((3, len(angles)))] * 25
    for joint, bone in ((j, rest_bones()[j]) for j in _ORDER[1:]):
        parent = _PARENTS[joint]
        total[joint] = total[parent] + angles[:, joint]
        cos, sin = jnp.cos(total[joint]), jnp.sin(total[joint])
        x, y, z = bone
        turned = jnp.stack([x * cos - y * sin, x * sin + y * cos, jnp.full_like(cos, z)])
        place[joint] = place[parent] + lengths[joint] * turned
    return jnp.stack(place, axis=-1)


def _observed(key: jax.Array, x: jax.Array, corrupted: float, corruption: float) -> jax.Array:
    """What a sensor sees from some side, relative to the centre joint."""
    keys = jax.random.split(key, 5)
    yaw = jax.random.uniform(keys[0], (), minval=-_YAW, maxval=_YAW)
    cos, sin, zero, one = jnp.cos(yaw), jnp.sin(yaw), jnp.zeros(()), jnp.ones(())
    turn = jnp.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos]).reshape(3, 3)
    share = jax.random.uniform(keys[1], (3, 3), minval=-_SHEAR, maxval=_SHEAR)
    sheared = jnp.where(jnp.eye(3, dtype=bool), 1.0, share)
    x = jnp.einsum("ab,bc,ctv->atv", sheared, turn, x, precision=jax.lax.Precision.HIGHEST)
    x = x + _NOISE * jax.random.normal(keys[2], x.shape)
    far = jax.random.bernoulli(keys[3], corrupted, x.shape[1:])
    x = x + jnp.where(far, corruption * jax.random.normal(keys[4], x.shape), 0.0)
    return x - x[:, :, skeletons.NTU.center, None]
