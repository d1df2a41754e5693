"""The default checker: an output against an answer, as bytes.

Trailing blanks of a line and blank lines at the end do not count (the rule of the old judge's
SubmissionExecutor.strip); everything else does.
"""

from __future__ import annotations

import io


def matches(output: bytes, answer: bytes) -> bool:
    """Whether the output is right. Memory and time are bounded by the answer's number of lines."""
    ours, theirs = answer.rstrip(), output.rstrip()
    if ours == theirs:
        return True
    # Lines are taken one by one: an output of 64 million line ends must not become a list.
    expected, actual = io.BytesIO(ours), io.BytesIO(theirs)
    while True:
        want, got = expected.readline(), actual.readline()
        if not want or not got:
            return not want and not got
        if want.rstrip() != got.rstrip():
            return False
