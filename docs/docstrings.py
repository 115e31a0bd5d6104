"""Docstrings as Markdown: doctests become blocks of code, roles of Sphinx plain code."""

import re

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
ROLE = re.compile(r":(?:func|class|meth|mod|attr):`~?([^`]+)`")
TOKENS = re.compile(r"(\]\s*)\[(?=[A-Z]+\])")  # [CLS] [SEP] is no reference


def as_markdown(text: str) -> str:
    text = TOKENS.sub(r"\1\\[", ROLE.sub(r"`\1`", text))
    return DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)


class MarkdownDocstrings(griffe.Extension):
    def on_instance(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
