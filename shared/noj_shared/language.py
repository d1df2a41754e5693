"""Languages with the backend's numbers; what each one's source file is called."""

from __future__ import annotations

from enum import IntEnum


class Language(IntEnum):
    """A language as it stands on the wire. Numbers from 10 up are free for more of them."""

    C11 = 0
    CPP17 = 1
    PYTHON3 = 2
    HANDWRITTEN = 3

    @property
    def title(self) -> str:
        """The name a person reads."""
        return _TITLES[self]

    @property
    def source_name(self) -> str:
        """The file a submission's zip must hold. Raises KeyError for HANDWRITTEN."""
        return SOURCE_NAMES[self]


_TITLES = {
    Language.C11: "C11",
    Language.CPP17: "C++17",
    Language.PYTHON3: "Python 3",
    Language.HANDWRITTEN: "handwritten",
}

SOURCE_NAMES = {
    Language.C11: "main.c",
    Language.CPP17: "main.cpp",
    Language.PYTHON3: "main.py",
}

JUDGED = tuple(SOURCE_NAMES)
"""The languages that can be judged; a runner that names none is taken to speak all of them."""


def language_of_source(name: str) -> Language | None:
    """The language a file name's suffix stands for (`.c`, `.cpp`, `.cc`, `.py`), if any."""
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    return {
        "c": Language.C11,
        "cpp": Language.CPP17,
        "cc": Language.CPP17,
        "cxx": Language.CPP17,
        "py": Language.PYTHON3,
    }.get(suffix)
