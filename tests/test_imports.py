"""Heavy imports come before threads: TFDS, while it is imported, breaks what other threads import, such as a bar's."""

import ast
import json
import threading
from pathlib import Path

import pytest
from rich.console import Console

import infini_jax
from infini_jax.cli.progress import corpus_progress
from infini_jax.data.prepare import TokenizerSettings
from infini_jax.errors import ConfigError
from tests.support.commands import spawned
from tests.support.corpora import write_stories

PACKAGE = Path(infini_jax.__file__).parent
LOADED = ["tensorflow_datasets", "array_record", "infini_jax.data.builders", "sentencepiece"]
REPORT = f"""
import atexit, json, sys
seen = {{"loaded": [], "replaced": []}}
from rich.live import Live
start = Live.start
def recorded(live, *arguments, **options):
    seen["loaded"].append([name for name in {LOADED} if name in sys.modules])
    from etils import epy
    replace = epy.lazy_imports
    def told(*arguments, **options):
        seen["replaced"].append(sys._getframe(1).f_globals["__name__"])
        return replace(*arguments, **options)
    epy.lazy_imports = told
    return start(live, *arguments, **options)
Live.start = recorded
atexit.register(lambda: print(json.dumps(seen), file=sys.stderr))
"""


def imports_tfds(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(one.name.split(".")[0] == "tensorflow_datasets" for one in node.names)
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tensorflow_datasets"


def test_one_function_imports_tfds_and_what_it_loads():
    """`load_tfds` imports it by name, and with it the builders, which need it as a base class."""
    found = [
        str(file.relative_to(PACKAGE))
        for file in sorted(PACKAGE.rglob("*.py"))
        if any(map(imports_tfds, ast.walk(ast.parse(file.read_text()))))
    ]
    assert found == ["data/builders.py"]


def test_a_bar_whose_packages_cannot_be_loaded_does_not_begin():
    threads = threading.active_count()
    bar = corpus_progress("unheard_of", TokenizerSettings(), Console())
    with pytest.raises(ConfigError, match=r"^corpus: 'unheard_of' is not known"):
        bar.__enter__()
    assert threading.active_count() == threads


def test_a_corpus_is_prepared_with_all_packages_loaded_before_the_bar_begins(tmp_path):
    """And from then on no module that is imported puts an `__import__` of its own in the place of Python's."""
    stories = write_stories(tmp_path / "stories", {f"{number}.txt": f"story {number}, at night " * 90 for number in range(9)})
    command = ["corpus", "prepare", "text_folder", "--path", str(stories), "--jobs", "1"]
    more = ["--tokenizer", "sentencepiece", "--vocab", "280"]
    done = spawned([*command, *more], REPORT, INFINI_JAX_DATA=str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stderr) == {"loaded": [LOADED], "replaced": []}
