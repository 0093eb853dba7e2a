"""The code an entry module can reach inside this package, as one digest per file.

A stage depends on the import closure of its own entry module, not on the package: editing the
evaluation never reruns a training. Python files are hashed as syntax trees without docstrings, so
comments, docstrings and formatting change nothing; other files (templates, schemas) as bytes.
A module may name the data files it reads in a module-level `DATA_FILES` tuple of paths relative to
its own folder.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "ropewalk"
PACKAGE_ROOT = Path(__file__).resolve().parent.parent
CHARACTERS = 12


def closure(*entries: str) -> dict[str, str]:
    """Return `{file relative to src/: digest}` for all that `entries` import from this package.

    An entry is a dotted module name such as `ropewalk.data.pack`.

    Raises:
        ModuleNotFoundError: if an entry module does not exist.
    """
    for entry in entries:
        if _module_file(entry) is None:
            raise ModuleNotFoundError(f"no module {entry} in {PACKAGE_ROOT.parent}")
    found: dict[str, str] = {}
    pending, seen = list(entries), set()
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        file = _module_file(module)
        if file is None:
            continue
        parsed, imports, data_files = _read(file, file.stat().st_mtime_ns)
        found[_relative(file)] = parsed
        for name in data_files:
            path = file.parent / name
            found[_relative(path)] = hashlib.sha256(path.read_bytes()).hexdigest()[:CHARACTERS]
        pending.extend(imports)
        if "." in module:
            pending.append(module.rpartition(".")[0])
    return dict(sorted(found.items()))


def _relative(file: Path) -> str:
    return str(file.relative_to(PACKAGE_ROOT.parent))


def _module_file(module: str) -> Path | None:
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    base = PACKAGE_ROOT.joinpath(*parts[1:])
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def _read(file: Path, _modified_ns: int) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return a Python file's digest, the modules it imports and the data files it names."""
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    imports: list[str] = []
    data_files: tuple[str, ...] = ()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(file, node)
            imports += [source, *(f"{source}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(name, ast.Name) and name.id == "DATA_FILES" for name in targets):
                data_files = tuple(ast.literal_eval(node.value))
    hashed = hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()
    own = tuple(name for name in imports if name.split(".")[0] == PACKAGE)
    return hashed[:CHARACTERS], own, data_files


def _absolute(file: Path, node: ast.ImportFrom) -> str:
    """Return the dotted module that an import statement of `file` names."""
    if not node.level:
        return node.module or ""
    folder = file.parents[node.level - 1].relative_to(PACKAGE_ROOT.parent)
    return ".".join([*folder.parts, *([node.module] if node.module else [])])


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the module and every statement in it, at any depth; expressions hold none."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        for name in ("body", "orelse", "handlers", "finalbody", "cases"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):  # an expression such as a lambda has one body, no list
                pending += inner


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in _statements(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            node.body = node.body[1:]
    return tree
