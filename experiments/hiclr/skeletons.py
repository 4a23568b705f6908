"""Which joint is which: edges, centre and mirror image of the skeletons of three recordings."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from asym import graphs


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """A skeleton, as a tree of joints.

    Attributes:
      name: name of the data set.
      parents: for each joint its neighbour towards the root; the root is its own parent.
      center: the joint at which the spatial partition turns round, and the origin of relative
        coordinates.
      mirror: for each joint the one on the other side of the body.
      shoulders: joints (side A, side B) of the line by which a figure is turned to the front.
    """

    name: str
    parents: tuple[int, ...]
    center: int
    mirror: tuple[int, ...]
    shoulders: tuple[int, int]

    @property
    def joints(self) -> int:
        """Number of joints."""
        return len(self.parents)

    @property
    def edges(self) -> np.ndarray:
        """Pairs (joint, parent), shape (joints - 1, 2)."""
        pairs = [(joint, parent) for joint, parent in enumerate(self.parents) if joint != parent]
        return np.asarray(pairs, np.int32)

    def adjacency(self, strategy: graphs.Strategy = "spatial") -> jax.Array:
        """Graph tensor (subsets, joints, joints) of `asym.graphs.skeleton_adjacency`."""
        return graphs.skeleton_adjacency(
            jax.numpy.asarray(self.edges),
            num_nodes=self.joints,
            center=self.center,
            strategy=strategy,
        )


# 0 base of the spine, 1 its middle, 20 between the shoulders, 2 neck, 3 head; 4-7 left and 8-11
# right shoulder, elbow, wrist, hand; 12-15 left and 16-19 right hip, knee, ankle, foot; 21, 22
# tip of the left hand and its thumb, 23, 24 of the right.
NTU = Skeleton(
    name="ntu",
    parents=(
        *(1, 20, 20, 2),
        *(20, 4, 5, 6),
        *(20, 8, 9, 10),
        *(0, 12, 13, 14),
        *(0, 16, 17, 18),
        *(20, 22, 7, 24, 11),
    ),
    center=20,
    mirror=(
        *(0, 1, 2, 3),
        *(8, 9, 10, 11),
        *(4, 5, 6, 7),
        *(16, 17, 18, 19),
        *(12, 13, 14, 15),
        *(20, 23, 24, 21, 22),
    ),
    shoulders=(4, 8),
)

# 0, 1 shoulders, 2 between them, 3 spine, 4, 5 hips, 6 between them, 7, 8 elbows, 9, 10 wrists,
# 11, 12 hands, 13, 14 knees, 15, 16 ankles, 17, 18 feet, 19 head.
MSR_ACTION3D = Skeleton(
    name="msr_action3d",
    parents=(2, 2, 2, 2, 6, 6, 3, 0, 1, 7, 8, 9, 10, 4, 5, 13, 14, 15, 16, 2),
    center=2,
    mirror=(1, 0, 2, 3, 5, 4, 6, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15, 18, 17, 19),
    shoulders=(0, 1),
)

# 0 between the hips, 1 spine, 2 between the shoulders, 3 head; 4-7, 8-11 shoulder, elbow, wrist,
# hand; 12-15, 16-19 hip, knee, ankle, foot.
UTKINECT = Skeleton(
    name="utkinect",
    parents=(1, 2, 2, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18),
    center=2,
    mirror=(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15),
    shoulders=(4, 8),
)

SKELETONS = {skeleton.name: skeleton for skeleton in (NTU, MSR_ACTION3D, UTKINECT)}
