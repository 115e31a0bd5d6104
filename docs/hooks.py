"""What the site adds to MkDocs: the repository's own pages, tables by reference, formulas.

Every Markdown file, notebook and picture of the repository is a file of the site under its path in
the repository, so that one relative link works in both places. Links to a package lead to its API
page, which is made here, and links to other files to the repository. The comment
``<!-- table: FILE#HEADING N -->`` becomes the N-th table below that heading with the paragraph
before it, ``<!-- gallery -->`` all pictures.
"""

import ast
import html
import json
import pathlib
import posixpath
import re

import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATTERNS = ("*.md", "*/*.md", "*/*/*.md", "*/*/*/*.md", "*/*/*.png", "*/*.ipynb", "docs/*.css")
HIDDEN = re.compile(r"\.|(tests|site|runs|build)/")
PACKAGES = sorted(path.parent.name for path in ROOT.glob("zoo/*/__init__.py"))
LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"<!-- table: (\S+)#(\S+) (\d+) -->")
FORMULA = re.compile(
    r'<span class="arithmatex">\\\((.*?)\\\)</span>'
    r'|<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>',
    re.DOTALL,
)


def sources() -> list[str]:
    """Paths of the repository's files that the site has too."""
    paths = {path.relative_to(ROOT).as_posix() for name in PATTERNS for path in ROOT.glob(name)}
    return sorted(path for path in paths if not HIDDEN.match(path))


def on_files(files, config):
    theme = [file for file in files if not (ROOT / "docs" / file.src_uri).exists()]
    pages = [File.generated(config, f"api/{name}.md", content=api_page(name)) for name in PACKAGES]
    return Files(theme + pages + [site_file(path, config) for path in sources()])


def site_file(path, config):
    if path.endswith(".ipynb"):
        page = notebook_page(path, config.extra["repository"])
        return File.generated(config, path.removesuffix("ipynb") + "md", content=page)
    file = File.generated(config, path, abs_src_path=str(ROOT / path))
    file.dest_uri = path.removeprefix("docs/")
    if path.endswith(".md"):
        folder = file.dest_uri.removesuffix("README.md").removesuffix(".md")
        file.dest_uri = posixpath.join(folder, "index.html")
    return file


def api_page(package):
    """What the package exports, then its modules with everything public in them."""
    exported = [
        f"[`{name.name}`][zoo.{package}.{node.module.split('.')[-1]}.{name.name}]"
        for node in ast.parse((ROOT / "zoo" / package / "__init__.py").read_text()).body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("zoo")
        for name in node.names
    ]
    modules = sorted(path.stem for path in (ROOT / "zoo" / package).glob("[a-z]*.py"))
    parts = [f"# zoo.{package}", f"::: zoo.{package}\n    options: {{members: false}}"]
    parts += [
        f"Names of `zoo.{package}`: {', '.join(exported)}. The rest is imported from its module."
    ]
    parts += [f"## zoo.{package}.{name}\n\n::: zoo.{package}.{name}" for name in modules]
    return "\n\n".join(parts)


def notebook_page(path, repository):
    """Markdown of a notebook, with a link that opens it in Colab."""
    colab = repository.replace("https://github.com", "https://colab.research.google.com/github")
    cells = []
    for cell in json.loads((ROOT / path).read_text())["cells"]:
        text = "".join(cell["source"])
        cells.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    cells.insert(1, f"[Open in Colab]({colab}/blob/main/{path})")
    return "\n\n".join(cells)


def on_page_markdown(markdown, page, config, files):
    here = posixpath.dirname(page.file.src_uri)
    markdown = TABLE.sub(lambda found: table(here, *found.groups()), markdown)
    markdown = markdown.replace("<!-- gallery -->", gallery(here))

    def link(found):
        path = posixpath.normpath(posixpath.join(here, found[1]))
        if path.removeprefix("zoo/") in PACKAGES:
            target = f"api/{path.removeprefix('zoo/')}.md"
        elif (ROOT / path / "README.md").exists():
            target = posixpath.join(path, "README.md")
        elif path.endswith(".ipynb"):
            target = path.removesuffix("ipynb") + "md"
        elif (ROOT / path).exists() and files.get_file_from_path(path) is None:
            return f"]({config.extra['repository']}/blob/main/{path}{found[2] or ''})"
        else:
            return found[0]
        return f"]({posixpath.relpath(target, here)}{found[2] or ''})"

    return LINK.sub(link, markdown)


def table(here, file, heading, number):
    """A table of another page and the paragraph before it, if there is one."""
    path = posixpath.normpath(posixpath.join(here, file))
    text = (ROOT / path).read_text()
    prose = FENCE.sub(lambda code: " " * len(code[0]), text)  # its comments are no headings
    found = list(re.finditer(r"^(#+) (.*)$", prose, re.MULTILINE))
    slugs = [re.sub(r"[^\w -]", "", match[2]).lower().replace(" ", "-") for match in found]
    if heading not in slugs:
        raise PluginError(f"{path} has no heading #{heading}; its headings are {slugs}")
    begin, *rest = found[slugs.index(heading) :]
    ends = [match.start() for match in rest if len(match[1]) <= len(begin[1])]
    blocks = text[begin.end() : ends[0] if ends else None].strip().split("\n\n")
    tables = [index for index, block in enumerate(blocks) if block.startswith("|")]
    if int(number) > len(tables):
        raise PluginError(f"{path}#{heading} has {len(tables)} tables, so there is no {number}")
    index = tables[int(number) - 1]
    first = index - (index > 0 and index - 1 not in tables)
    text = "\n\n".join(blocks[first : index + 1])

    def link(found):
        target = posixpath.join(posixpath.dirname(path), found[1])
        return f"]({posixpath.relpath(target, here)}{found[2] or ''})"

    return LINK.sub(link, text)


def gallery(here):
    """All pictures with their titles, below links to the pages that show them."""
    pages = {path: (ROOT / path).read_text() for path in sources() if path.endswith("README.md")}
    figures, shown_last = [], ""
    for picture in (path for path in sources() if path.endswith(".png")):
        shown = rf"!\[([^]]*)\]\([^)]*{re.escape(posixpath.basename(picture))}\)"
        titles = {page: found[1] for page in pages if (found := re.search(shown, pages[page]))}
        if not titles:
            raise PluginError(f"no README.md shows {picture}")
        # Other pages may show it or a picture of the same name: the nearest page counts.
        page = max(titles, key=lambda page: len(posixpath.commonpath([page, picture])))
        to_picture, to_page = (posixpath.relpath(path, here) for path in (picture, page))
        if page != shown_last:
            heading = re.search(r"^# (.*)", pages[page], re.MULTILINE)[1]
            figures.append(f"## [{heading}]({to_page})")
            shown_last = page
        figures.append(f"![{titles[page]}]({to_picture}){{loading=lazy}}\n\n*{titles[page]}*")
    return "\n\n".join(figures)


def on_page_content(content, **_):
    """Formulas as MathML: no script and no font to load."""

    def formula(found):
        inline, block = found.groups()
        convert = latex2mathml.converter.convert
        math = convert(html.unescape(inline or block), display="inline" if inline else "block")
        if "\\" in math:  # commands it does not know are left as they are
            raise PluginError(f"not understood as LaTeX: {inline or block}")
        return math if inline else f'<div class="formula">{math}</div>'

    return FORMULA.sub(formula, content)
