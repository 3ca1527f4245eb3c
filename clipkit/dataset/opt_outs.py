"""What robots meta tags and X-Robots-Tag headers say about images, for pages and for images alike."""

import re
from collections.abc import Iterable

__all__ = ["OPT_OUTS", "OPT_OUT_HEADERS", "agent_of", "directives_of", "meta_opts_out", "opts_out", "reserves_rights"]

OPT_OUTS = frozenset(("noai", "noimageai", "noindex", "noimageindex", "noml", "none"))
"""Directives that keep images out of training data; `none` is short for `noindex, nofollow`."""

OPT_OUT_HEADERS = ("x-robots-tag", "tdm-reservation")

_ANY = re.compile("|".join(sorted(OPT_OUTS)))
# A directive with a value is neither an agent nor, by its value, an opt-out: `max-image-preview: none`.
_VALUED = re.compile(r"\b(?:max-snippet|max-image-preview|max-video-preview|unavailable_after)\s*:\s*[^\s,]*")
_WORD = re.compile(r"([^\s,:]+)(\s*:)?")
_AGENT = re.compile(r"[a-z*][\w.*-]*")  # and not the `15:` of a time


def agent_of(user_agent: str) -> str:
    """The product token of a User-Agent header in lower case, which is the name that directives address: "clipkit/0.1 (x)" -> "clipkit"."""
    return re.split(r"[/\s]", user_agent.strip(), maxsplit=1)[0].lower()


def opts_out(values: Iterable[str], agent: str) -> bool:
    """Whether header values (or contents of robots meta tags) keep images out for `agent`, a lower-case product token.

    A value lists directives, between commas or spaces. `NAME:` in front of one addresses NAME alone, up to the next name or the end
    of the value: `noarchive, otherbot: noindex, clipkit: noai` says noarchive to all, noindex to otherbot and noai to clipkit.
    """
    for value in values:
        lowered = value.lower()
        if not _ANY.search(lowered):
            continue
        addressee = "*"
        for word, colon in _WORD.findall(_VALUED.sub("", lowered)):
            if colon and _AGENT.fullmatch(word):
                addressee = word
            elif word in OPT_OUTS and addressee in ("*", agent):
                return True
    return False


def directives_of(header: str, values: Iterable[str]) -> list[str]:
    """What the values of a header (name in lower case) say in the words of X-Robots-Tag; nothing for other headers."""
    if header == "x-robots-tag":
        return list(values)
    return ["noai"] if header == "tdm-reservation" and reserves_rights(values) else []


def meta_opts_out(name: str, content: str, agent: str) -> bool:
    """Whether a page's `<meta name= content=>` keeps its images out: robots, the agent's own name, or tdm-reservation."""
    name = name.strip().lower()
    if name == "tdm-reservation":
        return reserves_rights([content])
    return name in ("robots", agent) and opts_out([content], agent)


def reserves_rights(values: Iterable[str]) -> bool:
    """Whether values of a `tdm-reservation` header or meta tag reserve the rights to text and data mining (TDM Reservation Protocol)."""
    return any(value.strip() == "1" for value in values)
