"""Networks that two experiments or more use, in flax.nnx."""
