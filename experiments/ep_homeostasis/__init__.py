"""Equilibrium propagation without weight symmetry, cured by a symmetric Jacobian."""
