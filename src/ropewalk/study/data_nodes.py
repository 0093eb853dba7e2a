"""Nodes of the plan, and those of the data room: from the named parts that studies share."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ropewalk.base.manifest import MANIFEST
from ropewalk.base.spec import suggestion
from ropewalk.data.spec import (
    DocumentCorpus,
    FileSource,
    InventoryJob,
    PackJob,
    RecallCorpus,
    Source,
    TokenizeJob,
    TokenizerJob,
    TrainedTokenizer,
    Windows,
    gather_job,
    part_name,
)
from ropewalk.study.config import Config
from ropewalk.study.load import DEFINITIONS, Problems
from ropewalk.study.registry import folder
from ropewalk.study.schema import Study

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One artifact of the plan."""

    stage: str
    wildcards: Mapping[str, str]
    spec: Any  # the stage's spec type
    inputs: Mapping[str, str]  # input name -> manifest path
    manifest: str  # path of the manifest it leaves


class DataBuilder:
    """Collects the nodes of data: inventories, tokenizers, tokens and windows."""

    def __init__(self, config: Config, studies: Mapping[str, Study], problems: Problems) -> None:
        self.config = config
        self.studies = studies
        self.problems = problems
        self.nodes: dict[str, Node] = {}
        self.definitions = {kind: self._merged(kind) for kind in DEFINITIONS}

    def _merged(self, kind: str) -> dict[str, Any]:
        """Return the definitions of one kind of all files; one name has one definition."""
        merged: dict[str, Any] = {}
        for study in self.studies.values():
            for name, value in getattr(study.file, kind).items():
                if name in merged and merged[name] != value:
                    self.problems.add(
                        f"{study.name}: {kind}.{name}: defined differently elsewhere; "
                        "give one of the two another name"
                    )
                merged[name] = value
        return merged

    def _named(self, kind: str, name: str, where: str) -> Any:
        """Return a definition by name; an unknown name is a problem and gives None."""
        known = self.definitions[kind]
        if name not in known:
            self.problems.add(f"{where}: {kind} has no {name!r}; {suggestion(name, known)}")
            return None
        return known[name]

    def _add(
        self, stage: str, spec: Any, inputs: Mapping[str, str | None], **wildcards: str
    ) -> str:
        for kind, value in wildcards.items():
            if not _NAME.fullmatch(value):
                self.problems.add(
                    f"{kind} {value!r}: names become folders; use letters, digits, '.', '_' and '-'"
                )
        path = f"{folder(stage, self.config.results, **wildcards)}/{MANIFEST}"
        present = {name: source for name, source in sorted(inputs.items()) if source is not None}
        self.nodes[path] = Node(
            stage=stage, wildcards=wildcards, spec=spec, inputs=present, manifest=path
        )
        return path

    def _location(self, name: str | None, where: str) -> str | None:
        """Return where a location lies on this machine; unset is legal until a job needs it."""
        if name is None:
            return None
        if name not in self.config.locations:
            self.problems.add(
                f"config.yaml: locations.{name}: missing; {where} reads it "
                "(null plans without the data)"
            )
        return self.config.locations.get(name)

    def _folder(self, source: Source, name: str) -> str | None:
        """Return where a source lies on this machine."""
        location = source.location if isinstance(source, FileSource) else None
        return self._location(location, f"sources.{name}")

    def inventory(self, source: str, where: str) -> str | None:
        """Plan the inventory of a source."""
        found = self._named("sources", source, where)
        if found is None:
            return None
        job = InventoryJob(source=found, folder=self._folder(found, source))
        return self._add("inventory", job, {}, source=source)

    def tokenizer(self, name: str, where: str) -> str | None:
        """Plan a tokenizer."""
        found = self._named("tokenizers", name, where)
        if found is None:
            return None
        if not isinstance(found, TrainedTokenizer):
            return self._add("tokenizer", TokenizerJob(tokenizer=found), {}, tokenizer=name)
        place = f"tokenizers.{name}.corpus"
        corpus = self._named("corpora", found.corpus, place)
        if corpus is None:
            return None
        if not isinstance(corpus, DocumentCorpus):
            self.problems.add(f"{place}: {found.corpus!r} has no documents to train on")
            return None
        source = self._named("sources", corpus.source, f"corpora.{found.corpus}.source")
        if source is None:
            return None
        job = TokenizerJob(
            tokenizer=found,
            source=source,
            corpus=corpus,
            folder=self._folder(source, corpus.source),
        )
        inputs = {"inventory": self.inventory(corpus.source, place)}
        return self._add("tokenizer", job, inputs, tokenizer=name)

    def tokens(self, corpus: str, tokenizer: str, where: str) -> str | None:
        """Plan the tokens of a corpus under a tokenizer."""
        found = self._named("corpora", corpus, where)
        if found is None:
            return None
        inputs: dict[str, str | None] = {"tokenizer": self.tokenizer(tokenizer, where)}
        source, place_on_disk = None, None
        if isinstance(found, RecallCorpus):
            place = f"corpora.{corpus}.filler"
            if isinstance(self.definitions["corpora"].get(found.filler), RecallCorpus):
                self.problems.add(f"{place}: {found.filler!r} is synthetic; name a corpus of text")
                return None
            inputs["filler"] = self.tokens(found.filler, tokenizer, place)
        else:
            source = self._named("sources", found.source, f"corpora.{corpus}.source")
            if source is None:
                return None
            place_on_disk = self._folder(source, found.source)
            inputs["inventory"] = self.inventory(found.source, f"corpora.{corpus}.source")
        names = {"corpus": corpus, "tokenizer": tokenizer}
        parts: dict[str, str | None] = {}
        for part in range(found.parts):
            job = TokenizeJob(corpus=found, part=part, source=source, folder=place_on_disk)
            number = part_name(part)
            parts[f"part:{number}"] = self._add("tokenize", job, inputs, **names, part=number)
        return self._add("gather", gather_job(found), parts, **names)

    def windows(self, name: str, length: int, where: str) -> tuple[str | None, dict[str, str]]:
        """Plan windows of one length; return their path and the tokens they point into."""
        found: Windows | None = self._named("windows", name, where)
        if found is None:
            return None, {}
        place = f"windows.{name}.mixture"
        tokens = {
            f"tokens:{share.corpus}": path
            for share in found.mixture
            if (path := self.tokens(share.corpus, found.tokenizer, place)) is not None
        }
        if not found.mixture:
            self.problems.add(f"{place}: empty; name at least one corpus")
        for share in found.mixture:
            if share.weight <= 0:
                self.problems.add(
                    f"{place}: weight {share.weight} of {share.corpus!r}: must be above 0"
                )
        job = PackJob(windows=found, length_tokens=length)
        return self._add("pack", job, tokens, windows=name, length=str(length)), tokens
