"""Microbenchmarks of `zoo` against its rivals; see `benchmarks.run`."""
