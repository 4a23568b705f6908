"""Three-vectors and quaternions, held as separate components.

A component is an array of any batch shape, the same for all components of a state.  Simulators
therefore read and write whole arrays of one component (structure of arrays), which the compiler
fuses and vectorises over the batch; a single vehicle is the case of scalars.  `unpack` and `pack`
exchange components for the last axis of one array (array of structures).

Quaternions are (w, x, y, z) and rotate from the body to the world.
"""

from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Component = float | Float[Array, "*batch"]
Tree = TypeVar("Tree")


class Vector(NamedTuple):
    """A vector of three components."""

    x: Component
    y: Component
    z: Component


class Quaternion(NamedTuple):
    """A quaternion ``w + x i + y j + z k``."""

    w: Component
    x: Component
    y: Component
    z: Component


def pack(components: Tree) -> Float[Array, "*batch size"]:
    """Stacks components along a new last axis, in their order.

    Args:
        components: a pytree of equally shaped arrays.

    Returns:
        One array; its last axis counts the components.
    """
    leaves = jax.tree.leaves(components)
    chex.assert_equal_shape(leaves)
    return jnp.stack(leaves, axis=-1)


def unpack(array: Float[Array, "*batch size"], like: Tree) -> Tree:
    """Splits the last axis into components; the inverse of `pack`.

    Args:
        array: the packed components.
        like: a pytree whose leaves are the components, in their order; their values do not count.

    Returns:
        A pytree like ``like``.

    Raises:
        AssertionError: the last axis does not have one entry for each component.
    """
    leaves, structure = jax.tree.flatten(like)
    chex.assert_axis_dimension(array, -1, len(leaves))
    return jax.tree.unflatten(structure, [array[..., place] for place in range(len(leaves))])


def dot(a: Vector, b: Vector) -> Component:
    """Inner product ``a . b``.

    Args:
        a: a vector.
        b: another one.

    Returns:
        One component.
    """
    return a.x * b.x + a.y * b.y + a.z * b.z


def squared_norm(a: Vector) -> Component:
    """Squared length ``|a|^2``.

    Args:
        a: a vector.

    Returns:
        One component, not negative.
    """
    return dot(a, a)


def cross(a: Vector, b: Vector) -> Vector:
    """Cross product ``a x b``.

    Args:
        a: left factor.
        b: right factor; exchanging the two turns the sign.

    Returns:
        The product.
    """
    return Vector(
        a.y * b.z - a.z * b.y,
        a.z * b.x - a.x * b.z,
        a.x * b.y - a.y * b.x,
    )


def quat_mul(left: Quaternion, right: Quaternion) -> Quaternion:
    """Hamilton product ``left (x) right``: as rotations, first ``right``, then ``left``.

    Args:
        left: left factor.
        right: right factor.

    Returns:
        The product.
    """
    return Quaternion(
        left.w * right.w - left.x * right.x - left.y * right.y - left.z * right.z,
        left.w * right.x + left.x * right.w + left.y * right.z - left.z * right.y,
        left.w * right.y + left.y * right.w + left.z * right.x - left.x * right.z,
        left.w * right.z + left.z * right.w + left.x * right.y - left.y * right.x,
    )


def quat_rotate(rotation: Quaternion, vector: Vector) -> Vector:
    """Rotates ``v + w t + u x t`` with ``t = 2 u x v`` and ``u = (x, y, z)``.

    The formula is linear in the vector for any quaternion, and a rotation for one of length 1.

    Args:
        rotation: from the body to the world.
        vector: in the body's frame.

    Returns:
        The vector in the world's frame.

    Reference:
        Eschmann, Albani and Loianno, arXiv 2311.13081, authors' code.
    """
    axis = Vector(rotation.x, rotation.y, rotation.z)
    half = cross(axis, vector)
    turned = Vector(2 * half.x, 2 * half.y, 2 * half.z)
    again = cross(axis, turned)
    return Vector(
        vector.x + rotation.w * turned.x + again.x,
        vector.y + rotation.w * turned.y + again.y,
        vector.z + rotation.w * turned.z + again.z,
    )


def rotated_up(rotation: Quaternion, length: Component) -> Vector:
    """`quat_rotate` of ``(0, 0, length)``, without its products by zero.

    Args:
        rotation: from the body to the world.
        length: of the vector along the body's z axis.

    Returns:
        The vector in the world's frame.
    """
    along_x, along_y = 2 * rotation.y * length, -2 * rotation.x * length
    return Vector(
        rotation.w * along_x - rotation.z * along_y,
        rotation.w * along_y + rotation.z * along_x,
        length + rotation.x * along_y - rotation.y * along_x,
    )


def quat_to_matrix(rotation: Quaternion) -> tuple[Vector, Vector, Vector]:
    """Rows of the rotation matrix, with the diagonal in the form ``1 - 2(y^2 + z^2)``.

    Args:
        rotation: from the body to the world; not normalised here.

    Returns:
        The three rows.

    Reference:
        Eschmann, Albani and Loianno, arXiv 2311.13081, authors' code (observation).
    """
    w, x, y, z = rotation
    return (
        Vector(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        Vector(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        Vector(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


def quat_derivative(rotation: Quaternion, angular_velocity: Vector) -> Quaternion:
    """Change of an orientation, ``dq/dt = 1/2 q (x) (0, omega)``.

    Args:
        rotation: from the body to the world.
        angular_velocity: in rad/s, in the body's frame.

    Returns:
        The derivative, in 1/s.
    """
    w, x, y, z = rotation
    a, b, c = angular_velocity
    return Quaternion(
        -0.5 * (x * a + y * b + z * c),
        0.5 * (w * a + y * c - z * b),
        0.5 * (w * b + z * a - x * c),
        0.5 * (w * c + x * b - y * a),
    )


def quat_normalize(rotation: Quaternion) -> Quaternion:
    """The quaternion of length 1 in the same direction.

    Args:
        rotation: not zero.

    Returns:
        ``q / |q|``.
    """
    w, x, y, z = rotation
    length = jnp.sqrt(w * w + x * x + y * y + z * z)
    return Quaternion(w / length, x / length, y / length, z / length)
