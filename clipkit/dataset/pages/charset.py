"""Bytes of a page -> text, in the encoding that a browser would take."""

import codecs
import re

__all__ = ["decode_page"]

_ENCODINGS = {
    "utf-8": "utf-8", "ascii": "cp1252", "iso8859-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932",
    "euc_kr": "cp949", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874", "big5": "big5hkscs", "utf-16": "utf-16-le",
} | {
    name: name
    for name in (
        "gb18030", "big5hkscs", "euc_jp", "iso2022_jp", "cp932", "cp949", "cp866", "cp874", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic",
        "utf-16-le", "utf-16-be", *(f"cp125{i}" for i in range(9)), *(f"iso8859-{i}" for i in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
    )
}  # fmt: skip
_META_CHARSET = re.compile(rb"""(?i)<meta[^>]{0,500}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""")
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def decode_page(page: bytes, content_type: str) -> str:
    """The page as text. Its encoding is told, in this order, by byte order mark, Content-Type, meta tag, being UTF-8; else windows-1252."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if page.startswith(mark):
            return page[len(mark) :].decode(encoding, "replace")
    header = re.search(r"""(?i)charset\s*=\s*["']?\s*([\w.:-]{1,40})""", content_type)
    meta = _META_CHARSET.search(page[:4096])
    declared = _encoding(header[1]) if header else None
    if declared is None and meta is not None:
        # A page whose meta tag could be read as ASCII is not in UTF-16, whatever it says.
        declared = (_encoding(meta[1].decode("ascii", "replace")) or "").replace("utf-16-le", "utf-8").replace("utf-16-be", "utf-8") or None
    if declared is not None:
        return page.decode(declared, "replace")
    try:
        return page.decode("utf-8")
    except UnicodeDecodeError:
        return page.decode("cp1252", "replace")


def _encoding(label: str) -> str | None:
    """The codec that browsers use for a label; None for what is no encoding of web pages."""
    try:
        return _ENCODINGS.get(codecs.lookup(label.strip()).name)
    except (LookupError, ValueError):
        return None
