"""Manual pages as plain text: three that packages of the development environment install."""

import re
from importlib.metadata import files
from typing import Final

#: Distribution and its page. None of them is about language models.
PAGES: Final = (("fonttools", "ttx.1"), ("sympy", "isympy.1"), ("tqdm", "tqdm.1"))
#: Requests whose arguments are words of the page; the others lay it out.
HEADINGS: Final = frozenset({"SH", "SS", "Sh", "Ss", "It"})
DEFINITION: Final = r"(?ms)^\.de .*?^\.\.$"
WORDS: Final = frozenset({"B", "I", "Nm", "Nd", "Ar", "Fl", "Op", "Pa", "Ql", "Tn", "Ns"})
#: Marks words that continue the line before, and are continued by the next.
INLINE: Final = "\v"
#: roff's escapes, in this order.
ESCAPES: Final = (
    (r"\\f(\[\w*\]|\(..|.)", ""),
    (r"\\\*(\[\w*\]|\(..|.)", ""),
    (r"\\\((aq|cq)", "'"),
    (r"\\\((dq|lq|rq)", '"'),
    (r"\\k.|\\\((la|ra)", ""),
    (r"\\\(ti", "~"),
    (r"\\\(rs", r"\\"),
    (r"\\ ", " "),
    (r"\\-", "-"),
    (r"\\[&c]", ""),
)


def manual_pages() -> str:
    """The pages, one after the other.

    Raises:
        FileNotFoundError: A package of the development environment is not installed as it should.
    """
    return "\n\n".join(plain_text(_source(*page)) for page in PAGES)


def _source(distribution: str, name: str) -> str:
    for path in files(distribution) or ():
        if path.name == name:
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"{distribution} installed no {name}: run make dev-setup")


def plain_text(source: str) -> str:
    """What a terminal shows of a page in roff (man or mdoc), nearly: without indents."""
    lines: list[str] = []
    program = ""
    for line in re.sub(DEFINITION, "", source).splitlines():
        request = re.match(r"[.']\s*(\w*)\s*(.*)", line)
        if request is None:
            lines.append(line)
            continue
        name, rest = request.groups()
        if name not in HEADINGS | WORDS:
            lines.extend([""] if name in ("PP", "Pp", "TP", "IP") else [])
            continue
        words = _words(rest, flag=name == "Fl")
        if name == "Nm":
            program = program or words
            words = words or program
        lines.append(f"\n{words}\n" if name in HEADINGS else f"{INLINE}{words}{INLINE}")
    joint = rf"(?<!\n)\n?{INLINE}+(\n{INLINE}?)?(?!\n)"
    text = re.sub(joint, " ", "\n".join(lines)).replace(INLINE, "")
    for pattern, replacement in ESCAPES:
        text = re.sub(pattern, replacement, text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _words(rest: str, flag: bool) -> str:
    """The arguments of a request without the requests among them; `Fl` writes a hyphen."""
    found: list[str] = []
    for word in rest.replace('"', "").split():
        if word in WORDS:
            flag = word == "Fl"
        else:
            found.append(f"-{word}" if flag else word)
            flag = False
    return re.sub(r" ([.,;:)])(?=\s|$)", r"\1", " ".join(found))
