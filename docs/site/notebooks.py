"""Run the notebooks without Jupyter: `python docs/site/notebooks.py` fills their outputs anew; a test runs them, too.

All code cells of a notebook run in one namespace, in a new folder. The outputs are what is printed and the value of the
last expression: as a PNG if it is a matplotlib figure, otherwise as text.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def run(path: Path, folder: Path) -> dict[str, Any]:
    """The notebook with the outputs of its cells, run in `folder`; an exception in a cell is raised."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    with contextlib.chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                count += 1
                cell["outputs"] = outputs("".join(cell["source"]), namespace, f"{path.name}[{count}]", count)
                cell["execution_count"] = count
    return notebook


def outputs(source: str, namespace: dict[str, Any], name: str, count: int) -> list[dict[str, Any]]:
    """Run one cell; what it prints and what its last expression is, in the form of nbformat 4."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    said, value = io.StringIO(), None
    with contextlib.redirect_stdout(said):
        exec(compile(tree, name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    found: list[dict[str, Any]] = []
    if said.getvalue():
        found.append({"output_type": "stream", "name": "stdout", "text": said.getvalue().splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        if hasattr(value, "savefig"):
            picture = io.BytesIO()
            value.savefig(picture, format="png", dpi=60, bbox_inches="tight")
            data = {"image/png": [base64.b64encode(picture.getvalue()).decode()], "text/plain": ["<Figure>"]}
        result = {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}
        found.append(result)
    return found


def main(names: Sequence[str]) -> None:
    """Fill the outputs of the notebooks with these names, or of all."""
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # commands begin with `python`
    )
    for path in NOTEBOOKS:
        if not names or path.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                text = json.dumps(run(path, Path(folder)), indent=1, ensure_ascii=False).replace(f"{folder}/", "")
            path.write_text(text + "\n", encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: {len(text) // 1000} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
