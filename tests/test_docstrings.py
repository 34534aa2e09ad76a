"""Docstrings of public functions name every tensor argument."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src/depthany"
OF_TENSORS = re.compile(r"\b(Tensor|NDArray|ndarray)\b")


def public_functions(
    body: list[ast.stmt], of_class: ast.ClassDef | None = None
) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Yields public functions and methods, with the docstring that describes their arguments."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, node)
        if isinstance(node, ast.FunctionDef):
            told = ast.get_docstring(node) or ""
            if node.name == "__init__" and of_class is not None:
                yield node, told + (ast.get_docstring(of_class) or "")
            elif not node.name.startswith("_"):
                yield node, told


def tensor_arguments(function: ast.FunctionDef) -> list[str]:
    """Returns the names of the arguments that are tensors, arrays or collections of them."""
    given = function.args
    annotated = [
        (each.arg, ast.unparse(each.annotation))
        for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)
        if each.annotation is not None
    ]
    return [name for name, kind in annotated if OF_TENSORS.search(kind) and "Callable" not in kind]


def test_docstrings_name_every_tensor_argument() -> None:
    seen, unnamed = 0, []
    for path in sorted(PACKAGE.rglob("*.py")):
        for function, told in public_functions(ast.parse(path.read_text()).body):
            arguments = tensor_arguments(function)
            seen += bool(arguments)
            where = f"{path.relative_to(PACKAGE)}:{function.lineno} {function.name}"
            unnamed += [f"{where}: {name}" for name in arguments if not re.search(rf"\b{name}\b", told)]
    assert seen > 150
    assert not unnamed
