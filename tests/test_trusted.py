"""A data set from elsewhere names only types of a list: TFDS imports the modules of the types that a features.json names."""

import json
import sys
from pathlib import Path

import pytest

from infini_jax.data.minimal_pairs import blimp_pairs
from infini_jax.data.snapshots import check_features, own_snapshot
from infini_jax.data.texts import TextFiles
from infini_jax.errors import ConfigError
from tests.support.corpora import write_stories

MODULE = "imported_by_a_data_set"
TEXT = "tensorflow_datasets.core.features.text_feature.Text"
FORMS = {
    "as printed": {"type": f"{MODULE}.X", "content": {}},
    "as TFDS writes it now": {"pythonClassName": f"{MODULE}.X", "jsonFeature": {"json": "{}"}},
    "by the protocol's own name": {"python_class_name": f"{MODULE}.X", "json_feature": {"json": "{}"}},
    "inside of a dictionary": {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {"text": {"pythonClassName": f"{MODULE}.X", "text": {}}}},
    },
    "inside of a string": {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "jsonFeature": {"json": json.dumps({"text": {"type": f"{MODULE}.X", "content": {}}})},
    },
}


@pytest.fixture
def trap(tmp_path, monkeypatch) -> None:
    """A module that can be imported; whether it was, `sys.modules` tells."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{MODULE}.py").write_text("X = None\n")
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small data set as TFDS writes it."""
    folder = tmp_path_factory.mktemp("made")
    return own_snapshot("text_folder", TextFiles(write_stories(folder / "texts", {"a.txt": "a text"})), folder / "tfds")


@pytest.mark.parametrize("form", FORMS)
def test_a_module_that_a_data_set_names_is_not_imported(form, made, trap):
    features = Path(made.folder) / "features.json"
    before = features.read_text()
    features.write_text(json.dumps(FORMS[form]))
    for read in (made.documents, made.places):
        with pytest.raises(
            ConfigError, match=rf"^corpus: .* cannot be read \(its features.json has the type '{MODULE}.X'"
        ) as told:
            read("train")
        assert "\n" not in str(told.value)
    assert MODULE not in sys.modules
    features.write_text(before)
    assert len(made.documents("train")) == 1


@pytest.mark.parametrize("form", FORMS)
def test_minimal_pairs_from_elsewhere_import_nothing(form, trap, tmp_path):
    folder = tmp_path / "blimp" / "one_paradigm" / "0.1.0"
    for name, text in (("dataset_info.json", "{}"), ("features.json", json.dumps(FORMS[form])), ("x.array_record-0", "")):
        write_stories(folder, {name: text})
    blimp_pairs.cache_clear()
    with pytest.raises(ConfigError, match=rf"^blimp.path: .*has the type '{MODULE}.X', which is not a text feature"):
        blimp_pairs(str(tmp_path / "blimp"))
    assert MODULE not in sys.modules


def test_a_feature_may_be_called_type():
    check_features({"featuresDict": {"features": {"type": {"pythonClassName": TEXT, "text": {}}}}, "pythonClassName": TEXT})
    with pytest.raises(ValueError, match="not a text feature"):
        check_features([{"type": "antigravity.X"}])
