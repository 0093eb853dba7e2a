"""Provenance classes: what the authors said, and what is ours."""

import fnmatch
from collections.abc import Mapping

from ropewalk.study.load import SHARED
from ropewalk.study.schema import Study

CLASSES = {
    "seed": "stated in the document the study started from",
    "paper": "stated in the paper",
    "repo": "read in the authors' released code or configurations",
    "assumed": "not stated: our choice",
    "scale": "set by this scale; differs from the paper",
}


def class_of(study: Study, path: str, layers: Mapping[str, str]) -> str:
    """Return the provenance class of one key path; the last matching glob wins.

    What a scale's layer wrote is `scale`, whatever the body's globs say of the paper's own value.
    A path that no glob covers is an empty text, which a test refuses.
    """
    if layers.get(path, "body").startswith(("scale", "overlay")):
        return "scale"
    found = ""
    for pattern, kind in study.file.provenance.items():
        if fnmatch.fnmatchcase(path, pattern):
            found = kind
    return found


def class_of_definition(studies: Mapping[str, Study], study: str, path: str) -> str:
    """Return the class of a key path of a named part, such as `corpora.pile-train.limit_tokens`.

    What the study's own globs say goes before those of the shared file: one corpus may be stated by
    one paper and assumed for another.
    """
    layers = next((s.layers for s in studies.values() if path in s.layers), {})
    return class_of(studies[study], path, layers) or class_of(studies[SHARED], path, layers)


def definition_layers(studies: Mapping[str, Study]) -> dict[str, str]:
    """Return the layers of the models and architectures of all files: key path -> layer."""
    return {
        path: layer
        for study in studies.values()
        for path, layer in study.layers.items()
        if path.startswith(("models.", "architectures."))
    }


def inherited_layers(
    studies: Mapping[str, Study], written: Mapping[str, str], study: str, name: str
) -> dict[str, str]:
    """Return the layers of what a run takes over from its model or from the run it starts from.

    `written` is what `definition_layers` returns.
    """
    prefix, settings = f"runs.{name}", studies[study].runs[name]
    started = studies[study].layers.get(f"{prefix}.start", "body")
    while settings.start is not None:
        above, _, short = settings.start.partition("/")
        settings = studies[above].runs[short]
    models = {key: value for s in studies.values() for key, value in s.file.models.items()}
    model = f"models.{settings.model}"
    architecture = f"architectures.{models[settings.model or ''].architecture}"
    found = {f"{prefix}.tokenizer": written.get(f"{model}.tokenizer", "body")}
    for path, layer in written.items():
        if path.startswith(f"{architecture}."):
            found[f"{prefix}.architecture{path.removeprefix(architecture)}"] = layer
        elif path.startswith(f"{model}.weights."):
            found[f"{prefix}{path.removeprefix(model)}"] = layer
    if studies[study].runs[name].start is not None:  # its weights are those of that run
        found |= {f"{prefix}.weights.kind": started, f"{prefix}.weights.run": started}
    return found
