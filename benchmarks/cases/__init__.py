"""One module a package of `zoo`, each with ``CASES``, a list of `benchmarks.case.Case`."""
