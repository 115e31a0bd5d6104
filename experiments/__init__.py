"""One folder an experiment: ``python -m experiments`` lists them, ``….NAME`` runs one."""

import ast
import pathlib


def programs() -> dict[str, str]:
    """Name and first line of the docstring of every program here: ``jose``, ``jose.study``."""
    found = {}
    for file in sorted(pathlib.Path(__file__).parent.glob("*/*.py")):
        text = file.read_text(encoding="utf-8")
        if 'if __name__ == "__main__":' in text:
            name = f"{file.parent.name}.{file.stem}".removesuffix(".__main__")
            found[name] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


def listing() -> str:
    """A line for every program."""
    found = programs()
    width = max(map(len, found))
    return "\n".join(f"{name:{width}}  {line}" for name, line in found.items())
