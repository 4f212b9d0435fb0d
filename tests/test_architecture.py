"""Rules of the source that import contracts cannot say."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "clara"

PRIVATE_MEMBERS = {
    "model/adapters.py": {"_active_adapter", "_disable_adapters"},  # PEFT's
    "model/attention.py": {"_attn_implementation"},  # transformers'
    "model/network.py": {"_forward_hooks", "_modules"},  # torch's
    "model/decoder.py": {"_linear_pointwise", "_parameters", "_reorder_linear_weight"},  # torch's
    "model/apple/vocabulary.py": {"_Hash"},  # hashlib's, a type
    "train/loop.py": {"_n_gpu"},  # of transformers' Trainer
    "train/processes.py": {"_reset_state"},  # accelerate's
    "ingest/read_packages.py": {"_p"},  # python-pptx's
    "ingest/process.py": {"_exit"},  # of os: public, in spite of its name
}
"""Private members of libraries, by the only file that touches them. A new one needs a reason beside it there."""

SHARED_CLASS_NAMES = {"ClaraRetriever"}
"""Class names that may occur twice: one retriever for each framework, as its users expect."""

STAGE_NAMES = {"scp", "instruct", "end-to-end", "end_to_end", "retriever"}  # "reader" is a word of many meanings


@cache
def trees() -> dict[str, ast.Module]:
    """Every source file, parsed, by its path within the package."""
    return {str(path.relative_to(SOURCE)): ast.parse(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}


def own_names(tree: ast.Module) -> Iterator[str]:
    """Names that a file defines: functions, classes, variables, attributes of ``self``."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(ast.Name("self" | "cls"), name, ast.Store()):
                yield name


def private_attributes(tree: ast.Module) -> set[str]:
    """Names with one leading underscore that a file reads or sets of something."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_private_members_of_libraries_are_touched_in_one_file_each() -> None:
    own = {name for tree in trees().values() for name in own_names(tree)}
    found = {path: private_attributes(tree) - own for path, tree in trees().items()}
    assert {path: names for path, names in found.items() if names} == PRIVATE_MEMBERS


def test_no_class_name_occurs_twice() -> None:
    found = defaultdict(list)
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name not in SHARED_CLASS_NAMES:
                found[node.name].append(path)
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_no_stage_is_compared_by_name_outside_the_stages() -> None:
    outside = {path: tree for path, tree in trees().items() if not path.startswith("train/stages/")}
    compared = {
        (path, ast.unparse(node))
        for path, tree in outside.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare | ast.match_case) and strings(node) & STAGE_NAMES
    }
    assert compared == set()


def strings(node: ast.AST) -> set[str]:
    """String constants below a node."""
    return {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}


def test_what_refuses_a_question_names_no_option_of_the_command_line() -> None:
    """A client of the server, an agent and a Python program cannot type it; ``k`` and ``mode`` are theirs too."""
    answering = ("pipeline.py", "answering.py", "llm_answering.py", "conversation.py", "messages.py", "model/")
    refusals = {"InputError", "TooLongError", "NothingFoundError", "StoreEmptyError"}
    named = {
        (path, text)
        for path, tree in trees().items()
        if path.startswith(answering)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in refusals
        for text in strings(node)
        if re.search(r"--[a-z]|\bclara [a-z]", text)
    }
    assert named == set()


def test_why_a_file_was_not_read_names_the_command_that_has_the_option() -> None:
    """The server has options of the same names for other things, and no ``--ocr``."""
    texts = {text for path, tree in trees().items() if path.startswith("ingest/") for text in strings(tree)}
    assert {text for text in texts if re.search(r"(?<!clara index) --[a-z]", text)} == set()
