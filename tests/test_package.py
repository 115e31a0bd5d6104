"""The package as a whole: what it imports, what it ships, what its README promises."""

import ast
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import zoo

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = [f"zoo.{name}" for name in (*zoo.IDEAS, *zoo.FRAME)]
EVERYTHING = f"import {', '.join(PACKAGES)}\n"

# Nothing but the four dependencies: every extra pretends to be absent.
BLOCK = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    names = {"grain", "orbax", "tyro", "rich", "matplotlib", "tokenizers", "sklearn",
             "tensorflow_datasets", "tensorflow", "torch", "scipy", "chex", "safetensors", "nltk"}
    def find_spec(self, name, path, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_core_imports_without_the_extras_and_they_are_named_when_needed():
    # Dependencies may use what is absent (flax uses rich), so they come first.
    out = run(
        "import jax, flax.nnx, optax, numpy\n"
        + BLOCK
        + """
for name in list(sys.modules):
    if name.partition(".")[0] in Absent.names:
        del sys.modules[name]
sys.meta_path.insert(0, Absent())
"""
        + EVERYTHING
        + """
def message(call):
    try:
        call()
    except ImportError as error:
        print(error)
message(lambda: zoo.spherical.load_embeddings("nowhere"))
message(lambda: zoo.data.open_source("builtin:digits"))
message(lambda: next(zoo.data.Pipeline([{"x": 1}], batch_size=1, seed=0)))
message(lambda: zoo.training.Checkpointer("nowhere"))
"""
    )
    extras = re.findall(r"needs the module '(\w+).*?'.*pip install 'kexue-zoo\[(\w+)\]'", out)
    assert [extra for _, extra in extras] == ["data", "data", "data", "train"], out


def test_tensorflow_is_never_imported():
    out = run(
        EVERYTHING + "import sys\n"
        "source = zoo.data.open_source('builtin:shakespeare')\n"
        "next(zoo.data.Pipeline(source, batch_size=2, seed=0, transform=lambda x: {'n': 1}))\n"
        "print('tensorflow' in sys.modules)"
    )
    assert out.strip() == "False"


def test_importing_a_package_starts_no_device():
    out = run(
        EVERYTHING + "from jax._src import xla_bridge\nprint(xla_bridge.backends_are_initialized())"
    )
    assert out.strip() == "False"


def test_every_package_is_there_after_import_zoo():
    packages = sorted(module.name for module in pkgutil.iter_modules(zoo.__path__) if module.ispkg)
    assert sorted((*zoo.IDEAS, *zoo.FRAME)) == packages
    out = run(
        "import sys, zoo\n"
        "print('jax' in sys.modules, set(dir(zoo)) >= {'smooth', 'training'})\n"
        "print(zoo.smooth.__name__, zoo.training.__name__)"
    )
    assert out.split() == ["False", "True", "zoo.smooth", "zoo.training"]
    with pytest.raises(AttributeError, match=r"no attribute 'smoth'; its packages are averaging"):
        zoo.smoth  # noqa: B018


def test_the_public_surface_can_be_held_in_ones_head():
    names = [name for package in PACKAGES for name in importlib.import_module(package).__all__]
    assert len(names) <= 150, len(names)


def where_to_read():
    """The rows of the page's table: file, function, and the file and line that call it."""
    table = (ROOT / "docs" / "where_to_read.md").read_text().replace("](../", "](")
    link = r"\[[^]]*\]\(([^)#]+)(?:#L(\d+))?\)"
    rows = re.findall(rf"^\| [^|]+ \| {link} \| `(\w+)` \| {link} \|$", table, re.MULTILINE)
    return [(file, function, caller, int(line)) for file, _, function, caller, line in rows]


def test_where_to_read_names_every_idea():
    assert {file.split("/")[1] for file, *_ in where_to_read()} == set(zoo.IDEAS)


@pytest.mark.parametrize(("file", "function", "caller", "line"), where_to_read())
def test_where_to_read_is_true(file, function, caller, line):
    tree = ast.parse((ROOT / file).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    text = (ROOT / caller).read_text()
    lines = {
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Name | ast.Attribute)
        and getattr(node, "id", getattr(node, "attr", None)) == function
    }
    assert line in lines, (
        f"{caller} uses {function} in lines {sorted(lines)}, docs/where_to_read.md says {line}"
    )


@pytest.mark.parametrize("command", ["pip install -e '.[test]' && python -m pytest"])
def test_ci_runs_the_command_of_the_readme(command):
    assert command in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text().replace(" -q ", " ")


def test_what_the_page_of_rivals_names_is_there():
    names = re.findall(r"`(zoo(?:\.\w+)+)", (ROOT / "docs" / "rivals.md").read_text())
    assert len(names) > 50
    for name in names:
        pkgutil.resolve_name(name)


def test_links_in_the_documents_lead_somewhere():
    documents = [
        *ROOT.glob("*.md"),
        *ROOT.glob("experiments/*/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("zoo/*/*.md"),
    ]
    assert len(documents) >= 4
    for document in documents:
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (document.parent / target).exists(), f"{document}: {target}"
