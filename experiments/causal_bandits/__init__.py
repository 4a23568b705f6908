"""Causal bandits: a superfluous edge only costs samples, a missing one biases for ever."""
