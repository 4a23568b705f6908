"""Checks the core's annotations at run time and keeps the tests off accelerators."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# Before the first import of asym: modules that are already loaded stay unchecked.
install_import_hook("asym", "beartype.beartype")
