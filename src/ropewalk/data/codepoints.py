"""Characters that the engine and the reference read differently, as compact data.

gigatoken 0.10.0 knows Unicode 17. `tokenizers` 0.23.3 splits texts by Unicode 16 and normalises
them by a table that is several versions older. A text with a character below is therefore left to
the reference. `tests/data/test_data_engine.py` derives the lists by asking both libraries about
every character, and fails where another version of either would change them.
"""

import re
from collections.abc import Iterable, Iterator

VERSIONS = {"gigatoken": "0.10.0", "tokenizers": "0.23.3"}  # that this was derived for

# Letters and numbers of Unicode 17, unassigned before: they end words for the reference only.
CLASSES = """
    88F C5C CDC A7CE-A7CF A7D2 A7D4 A7F1 10940-10959 10EC5-10EC7 11DB0-11DDB 11DE0-11DE9
    16EA0-16EB8 16EBB-16ED3 16FF2-16FF6 187F8-187FF 18D09-18D1E 18D80-18DF2 1E6C0-1E6DE 1E6E0-1E6E2
    1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4 1E6FE-1E6FF 2B73A-2B73F 2CEA2-2CEAD 323B0-33479
"""
# Combining marks that change their place, and characters that are joined with the next one, under
# NFC in the newer table only.
NFC = """
    7FD 897-89F 8CA-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1ADD 1AE0-1AEB 1DF6-1DFA A82C 10D24-10D27
    10D69-10D6D 10EAB-10EAC 10EFA-10EFB 10EFD-10EFF 10F46-10F50 10F82-10F85 11070 1133B 11382 11384
    1138B 11390 113B8 113BB 113C2 113C5 113C7-113C9 113CE-113D0 1145E 11839-1183A 11930 11935
    1193D-1193E 11943 119E0 11A34 11A47 11A99 11D42 11D44-11D45 11D97 11F41-11F42 1611E-16129
    1612F 16D63 16D67-16D69 16FF0-16FF1 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF
    1E5EE-1E5EF 1E6E3 1E6E6 1E6EE-1E6EF 1E6F5
"""


def code_points(listed: str) -> Iterator[int]:
    """Yield the code points of ranges written in hexadecimal."""
    for item in listed.split():
        first, _, last = item.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


class Finder:
    """Finds in UTF-8 whether a text has one of some characters, at hardly any cost.

    Most texts lack even the first bytes of the characters, which a search for one byte tells.
    Beyond the Basic Multilingual Plane, the 64 characters around a listed one count as listed.
    """

    def __init__(self, characters: Iterable[int]) -> None:
        prefixes = {chr(character).encode()[:3] for character in characters}
        self._patterns = {lead: _pattern(lead, prefixes) for lead in {p[0] for p in prefixes}}

    def __call__(self, utf8: bytes) -> bool:
        """Return whether a character is there."""
        return any(
            lead in utf8 and pattern.search(utf8) is not None
            for lead, pattern in self._patterns.items()
        )


def _pattern(lead: int, prefixes: Iterable[bytes]) -> re.Pattern[bytes]:
    """Return a pattern for the prefixes with this first byte, grouped by their second."""
    rest: dict[bytes, bytes] = {}
    for prefix in sorted(prefixes):
        if prefix[0] == lead:
            rest[prefix[1:2]] = rest.get(prefix[1:2], b"") + prefix[2:3]
    branches = [
        re.escape(second) + (b"[" + re.escape(thirds) + b"]" if thirds else b"")
        for second, thirds in rest.items()
    ]
    return re.compile(re.escape(bytes([lead])) + b"(?:" + b"|".join(branches) + b")")
