"""ROUGE as `rouge_score` has it: n-gram and longest-common-subsequence F1 (Lin 2004)."""

import re

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# A sentence ends after one of these, where white space follows. Abbreviations end one too: the same
# in both texts, and without a model of English that would have to be fetched.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Rouge:
    """Scores texts against references under one set of conventions.

    ROUGE-Lsum takes the union of longest common subsequences sentence by sentence; `full_stops`
    makes a sentence end after . ! ? before white space, and nowhere else, `newlines` where the text
    has a newline. The others read a text as one, whatever ends a line. Tokens are runs of a-z and
    0-9 of the lower-cased text: a text without any, such as a Chinese one, cannot be scored.
    """

    def __init__(self, *, stemmer: bool, sentences: str) -> None:
        """`stemmer` cuts words to their stem by Porter; `sentences`: newlines or full_stops."""
        self._tokenizer = DefaultTokenizer(stemmer)
        self._scorer = RougeScorer(list(METRICS), tokenizer=self._tokenizer)
        self._split = sentences == "full_stops"

    def scorable(self, text: str) -> bool:
        """Return whether a text has any token that ROUGE counts."""
        return bool(self._tokenizer.tokenize(text))

    def scores(self, reference: str, text: str) -> dict[str, float]:
        """Return the F1 of every metric, in [0, 1]; 0 where a text has no token."""
        if self._split:
            reference, text = _lines(reference), _lines(text)
        found = self._scorer.score(reference, text)
        return {name: float(found[name].fmeasure) for name in METRICS}


def _lines(text: str) -> str:
    """Return the text with a sentence a line."""
    return "\n".join(" ".join(part.split()) for part in _SENTENCE_END.split(text.strip()))
