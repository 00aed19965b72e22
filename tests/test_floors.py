"""The floors: the ground of utils < models < VOC12 < the rest of utils < the scripts and so on."""
import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GROUND = ("utils/colour_map.py", "utils/errors.py", "utils/files.py", "utils/parallel.py", "utils/progress.py",
          "utils/__init__.py")
FOLDERS = {"models": 1, "VOC12": 2, "utils": 3}
SCRIPTS = 4
FILES = [path.relative_to(ROOT).as_posix() for folder in (".", *FOLDERS, "demo", "benchmarks")
         for path in sorted((ROOT / folder).glob("*.py"))]
# These are about options.
COMMAND_LINE = ("utils/augmentation.py", "utils/cli.py", "utils/comparison.py", "utils/data_options.py",
                "utils/engine_options.py", "utils/options.py", "utils/run_source.py", "utils/train_options.py")
FLAG = re.compile(r"(?<![\w-])--[a-z_]+")


def floor(file):
    return 0 if file in GROUND else FOLDERS.get(file.partition("/")[0], SCRIPTS)


def nodes(tree, skip=lambda node: False):
    """The nodes of a file, without those for which `skip` is true and without what runs only as a script."""
    for node in ast.iter_child_nodes(tree):
        if not skip(node) and not (isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"):
            yield node
            yield from nodes(node, skip)


def imported_files(tree):
    """The files of this repository that a file imports, inside functions too."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from {f"{name.replace('.', '/')}{end}" for end in (".py", "/__init__.py")}.intersection(FILES)


def test_imports_go_down():
    trees = {file: ast.parse((ROOT / file).read_text(encoding="utf-8")) for file in FILES}
    assert {floor(file) for file in FILES} == {0, 1, 2, 3, 4}
    upward = [f"{file} imports {other}" for file, tree in trees.items() for other in imported_files(tree)
              if floor(other) > floor(file)]
    assert not upward, "\n".join(upward)


def test_no_message_of_a_lower_floor_names_a_flag():
    """Except in docstrings, and in the parsers and mains of the scripts in VOC12."""
    def is_exempt(node):
        return isinstance(node, ast.FunctionDef) and file.startswith("VOC12/") and node.name in ("build_parser", "main")

    def is_docstring(node):
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)

    found = []
    for file in FILES:
        if floor(file) < SCRIPTS and file not in COMMAND_LINE:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            found += [f"{file}:{node.lineno}: {flag}" for node in nodes(tree, lambda n: is_exempt(n) or is_docstring(n))
                      if isinstance(node, ast.Constant) and isinstance(node.value, str)
                      for flag in FLAG.findall(node.value)]
    assert not found, "\n".join(found)
