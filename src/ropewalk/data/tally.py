"""What a tokenize job counts: documents in = documents + skipped, by cause."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ropewalk.base.stage import StageError
from ropewalk.data.documents import DAMAGED, Skipped

EXAMPLES = 5  # of each cause, named in the manifest


@dataclasses.dataclass(kw_only=True)
class Tally:
    """Counts so far; plain data, so that a job that was killed goes on counting."""

    documents: int = 0
    tokens: int = 0  # opening and closing tokens included
    bytes: int = 0  # of text, in UTF-8
    longest_tokens: int = 0  # of one document
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # by cause
    subsets: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # documents, tokens
    checked: int = 0  # documents encoded again, whole or in part, by the reference

    def take(self, tokens: int, *, subset: str | None, text_bytes: int) -> None:
        """Count a document."""
        self.documents += 1
        self.tokens += tokens
        self.bytes += text_bytes
        self.longest_tokens = max(self.longest_tokens, tokens)
        if subset is not None:
            counts = self.subsets.setdefault(subset, [0, 0])
            counts[0] += 1
            counts[1] += tokens

    def skip(self, item: Skipped) -> None:
        """Count a record that gives no document."""
        self.skipped[item.cause] += 1
        if item.cause != "not_sampled":
            named = self.examples.setdefault(item.cause, [])
            if len(named) < EXAMPLES:
                named.append(f"{item.id}: {item.reason}" if item.reason else item.id)

    @property
    def damaged(self) -> int:
        """Return how many records could not be read."""
        return sum(n for cause, n in self.skipped.items() if cause in DAMAGED)

    def check_damage(self, limit: int) -> None:
        """Refuse to go on with more damaged records than the corpus allows.

        Raises:
            StageError: naming file, record and reason of the last ones.
        """
        if self.damaged <= limit:
            return
        causes = sorted(DAMAGED & set(self.examples))
        seen = [f"{cause} in {example}" for cause in causes for example in self.examples[cause]]
        raise StageError(
            f"{self.damaged} damaged records are more than corpus.damaged_limit = {limit}: "
            f"{'; '.join(seen)}. Repair the files, or raise damaged_limit to skip and count them"
        )

    def state(self) -> dict[str, Any]:
        """Return the counts as plain data."""
        return {**dataclasses.asdict(self), "skipped": dict(self.skipped)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Tally":
        """Return the tally that gave this state."""
        return cls(**{**state, "skipped": Counter(state["skipped"])})

    @classmethod
    def sum(cls, tallies: Iterable["Tally"]) -> "Tally":
        """Return the counts of several jobs together."""
        total = cls()
        for tally in tallies:
            total.documents += tally.documents
            total.tokens += tally.tokens
            total.bytes += tally.bytes
            total.longest_tokens = max(total.longest_tokens, tally.longest_tokens)
            total.checked += tally.checked
            total.skipped.update(tally.skipped)
            for cause, named in tally.examples.items():
                total.examples[cause] = [*total.examples.get(cause, ()), *named][:EXAMPLES]
            for subset, (documents, tokens) in tally.subsets.items():
                before = total.subsets.get(subset, [0, 0])
                total.subsets[subset] = [before[0] + documents, before[1] + tokens]
        return total

    def facts(self) -> dict[str, Any]:
        """Return the counts as a manifest has them."""
        return {
            "documents_in": self.documents + self.skipped.total(),
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "longest_tokens": self.longest_tokens,
            "skipped": dict(sorted(self.skipped.items())),
            "skipped_examples": dict(sorted(self.examples.items())),
            "subsets": {
                name: {"documents": documents, "tokens": tokens}
                for name, (documents, tokens) in sorted(self.subsets.items())
            },
            "checked_documents": self.checked,
        }

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> "Tally":
        """Return the tally that gave the facts of a manifest."""
        return cls(
            documents=facts["documents"],
            tokens=facts["tokens"],
            bytes=facts["bytes"],
            longest_tokens=facts["longest_tokens"],
            skipped=Counter(facts["skipped"]),
            examples=dict(facts["skipped_examples"]),
            subsets={n: [c["documents"], c["tokens"]] for n, c in facts["subsets"].items()},
            checked=facts["checked_documents"],
        )
