"""What setup.cfg cannot say: the programs beside ``zoo`` are installed inside it."""

from setuptools import find_namespace_packages, find_packages, setup

PROGRAMS = ("experiments", "benchmarks")
programs = find_namespace_packages(
    include=[f"{top}{below}" for top in PROGRAMS for below in ("", ".*")],
    exclude=["benchmarks.results*"],
)
setup(
    packages=[*find_packages(include=["zoo*"]), *(f"zoo.{name}" for name in programs)],
    package_dir={f"zoo.{top}": top for top in PROGRAMS},
)
