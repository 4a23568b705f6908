"""Checks the core's annotations at run time, keeps the tests off accelerators, compiles fast."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# ./test runs two workers, which share the cores; more threads would only get in their way.
os.environ.setdefault("PJRT_NPROC", "1")
# Tests run each program for moments: compiling it with LLVM's optimisations takes twice as long as
# all the rest. Processes that the tests start inherit it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from jaxtyping import install_import_hook

# Before the first import of asym: modules that are already loaded stay unchecked.
install_import_hook("asym", "beartype.beartype")
