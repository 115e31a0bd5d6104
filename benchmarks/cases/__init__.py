"""One module a package of `zoo`, each with ``CASES``: `benchmarks.case.Case`; and their rivals."""
