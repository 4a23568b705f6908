"""Equilibrium propagation without weight symmetry: fixed points, error vectors, homeostasis.

A network relaxes to a fixed point, freely and under a small nudge of its output; the difference
tells each neuron its error.  Two things could spoil that error.  The finite nudge does not, if
the nudge goes around a circle in the complex plane (`cauchy_derivative`).  The asymmetry of
forward and feedback weights does, and is cured by making the Jacobian, not the weights, symmetric
(`homeostatic_loss`).

Reference:
    Laborieux and Zenke, "Improving equilibrium propagation without weight symmetry through
    Jacobian homeostasis", ICLR 2024, arXiv 2309.02214; and "Holomorphic equilibrium propagation
    computes exact gradients through finite size oscillations", NeurIPS 2022, arXiv 2209.00530.
"""

from asym.equilibrium.activations import dsilu, shifted_sigmoid, softmax_pool
from asym.equilibrium.cauchy import cauchy_derivative, circle_points
from asym.equilibrium.error_vectors import (
    bp_grad,
    ep_grad,
    error_cosine,
    exact_bp_error_vector,
    exact_ep_error_vector,
    neumann_rbp_error_vector,
    rbp_error_vector,
)
from asym.equilibrium.fields import (
    Relaxation,
    VectorField,
    activate,
    log_residual,
    loss_gradient,
    next_states,
    relax,
    relax_until,
    vector_field,
)
from asym.equilibrium.homeostasis import (
    activity_jacobian,
    bypassed_field,
    feedback_angle,
    gaussian_probes,
    homeostatic_grad,
    homeostatic_loss,
    homeostatic_loss_exact,
    jacobian_symmetry_ratio,
    rotate_feedback,
)
from asym.equilibrium.nudges import (
    CircleDiagnosis,
    OnlineEstimate,
    diagnose_circle,
    ep_error_vector,
    nudged_phase,
    online_error_vector,
)

__all__ = [
    "CircleDiagnosis",
    "OnlineEstimate",
    "Relaxation",
    "VectorField",
    "activate",
    "activity_jacobian",
    "bp_grad",
    "bypassed_field",
    "cauchy_derivative",
    "circle_points",
    "diagnose_circle",
    "dsilu",
    "ep_error_vector",
    "ep_grad",
    "error_cosine",
    "exact_bp_error_vector",
    "exact_ep_error_vector",
    "feedback_angle",
    "gaussian_probes",
    "homeostatic_grad",
    "homeostatic_loss",
    "homeostatic_loss_exact",
    "jacobian_symmetry_ratio",
    "log_residual",
    "loss_gradient",
    "neumann_rbp_error_vector",
    "next_states",
    "nudged_phase",
    "online_error_vector",
    "rbp_error_vector",
    "relax",
    "relax_until",
    "rotate_feedback",
    "shifted_sigmoid",
    "softmax_pool",
    "vector_field",
]
