"""Classification tasks are read as they are published, and scored as the reference package scores them."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest

from infini_jax.analysis.classification import METRICS, accuracy, counts_of, f1, matthews, mean_interval, metric_interval
from infini_jax.analysis.intervals import wilson
from infini_jax.data.classification import TASKS, examples_of, labelled
from infini_jax.data.snapshots import quiet_tfds
from infini_jax.errors import ConfigError

PUBLISHED = {  # fields of an example of each task as TFDS's builders and BabyLM's files name them, and its text and pair
    "cola": ({"sentence": "A b."}, ("A b.", "")),
    "sst2": ({"sentence": "so {good} "}, ("so {good} ", "")),  # braces of a text are no format
    "mrpc": ({"sentence1": "A.", "sentence2": "B."}, ("A.", "B.")),
    "qqp": ({"question1": "A?", "question2": "Bé?"}, ("A?", "Bé?")),
    "mnli": ({"premise": "A.", "hypothesis": "B."}, ("A.", "B.")),
    "qnli": ({"question": "A?", "sentence": "B."}, ("A?", "B.")),
    "rte": ({"sentence1": "A.", "sentence2": "B."}, ("A.", "B.")),
    "boolq": ({"question": "is a", "passage": "A is.\nSo."}, ("is a", "A is.\nSo.")),
    "multirc": ({"paragraph": "P.", "question": "Q?", "answer": "a"}, ("Question: Q? Answer: a", "P.")),
    "wsc": (
        {"text": "Mark fell. He cried.", "span1_text": "Mark", "span2_text": "He", "span1_index": 0, "span2_index": 2},
        ('Does "He" refer to "Mark" in this passage?', "Mark fell. He cried."),
    ),
}


def write_jsonl(file, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def lines_of(task: str, labels) -> list[dict]:
    return [{**PUBLISHED[task][0], "label": label, "idx": number} for number, label in enumerate(labels)]


def read(found, split: str) -> list:
    fields = found.train if split == "train" else found.validation[split]
    return list(examples_of(found, fields, range(len(fields))))


@pytest.fixture
def filtered(tmp_path):
    """BabyLM's glue_filtered, in the folder that the challenge gives."""
    folder = tmp_path / "evaluation_data" / "full_eval" / "glue_filtered"
    for task in PUBLISHED:
        write_jsonl(folder / f"{task}.train.jsonl", lines_of(task, [1, 0, 1]))
        write_jsonl(folder / f"{task}.valid.jsonl", lines_of(task, [0, 1]))
    write_jsonl(folder / "mnli-mm.valid.jsonl", lines_of("mnli", [1]))
    return folder


def test_babylms_files_are_read_from_a_folder_an_archive_and_the_data_folder(filtered, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "glue_filtered.zip", "w") as archive:
        for file in filtered.iterdir():
            archive.write(file, f"glue_filtered/{file.name}")
    monkeypatch.setenv("INFINI_JAX_DATA", str(tmp_path))
    assert TASKS.keys() == PUBLISHED.keys()
    for task, (_, texts) in PUBLISHED.items():
        for path in (str(filtered), str(tmp_path / "glue_filtered.zip"), ""):
            found = labelled(task, path)
            first, *others = found.validation
            assert read(found, "train") == [(texts, 1), (texts, 0), (texts, 1)]
            assert read(found, first) == [(texts, 0), (texts, 1)]
            assert others == (["validation_mismatched"] if task == "mnli" else [])
    assert read(labelled("mnli"), "validation_mismatched") == [(PUBLISHED["mnli"][1], 1)]


GLUE = {  # the files in the archives that TFDS downloads
    "cola": {"CoLA/train.tsv": "gj04\t1\t\tA b.\ngj04\t0\t*\tA b.\n", "CoLA/dev.tsv": "gj04\t1\t\tA b.\n"},
    "mnli": {
        f"MNLI/{name}.tsv": "index\tsentence1\tsentence2\tgold_label\n" + "".join(f"0\tA.\tB.\t{label}\n" for label in labels)
        for name, labels in {
            "train": ("contradiction", "entailment", "neutral"),
            "dev_matched": ("neutral",),
            "dev_mismatched": ("entailment", "contradiction"),
            "test_matched": ("neutral",),
            "test_mismatched": ("neutral",),
        }.items()
    },
}


def test_what_tfdss_own_builder_makes_of_glues_archives_is_read(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.text import glue

    class Archives:
        """What the builder gets from TFDS in place of a download: the unpacked archives."""

        downloaded_size = 0

        def download_and_extract(self, url: str) -> str:
            return str(tmp_path / "unpacked")

    for task, files in GLUE.items():
        for name, content in {**files, "CoLA/test.tsv": "index\tsentence\n0\tA b.\n"}.items():
            (tmp_path / "unpacked" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "unpacked" / name).write_text(content)
        with quiet_tfds():
            builder = glue.Glue(data_dir=tmp_path / "tfds", config=task, file_format="array_record")
            builder._make_download_manager = lambda **_: Archives()
            builder.download_and_prepare()
    cola, mnli = (labelled(task, str(tmp_path / "tfds")) for task in ("cola", "mnli"))
    assert sorted(read(cola, "train")) == [(("A b.", ""), 0), (("A b.", ""), 1)]
    assert read(cola, "validation") == [(("A b.", ""), 1)]
    assert (mnli.classes, cola.metrics(), mnli.metrics()) == ((0, 1, 2), ("matthews", "accuracy"), ("accuracy",))
    assert sorted(read(mnli, "train")) == [(("A.", "B."), number) for number in range(3)]
    assert read(mnli, "validation_matched") == [(("A.", "B."), 1)]
    assert sorted(read(mnli, "validation_mismatched")) == [(("A.", "B."), 0), (("A.", "B."), 2)]


def test_super_glue_of_tfds_is_read_and_what_is_damaged_is_refused(tmp_path):
    """Written with the names and features of TFDS's own builder, which needs TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    kinds = {"span1_index": np.int32, "span2_index": np.int32}

    class SuperGlue(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        BUILDER_CONFIGS = [  # noqa: RUF012
            tfds.core.BuilderConfig(name=name, version="1.0.2") for name in ("boolq", "multirc", "wsc")
        ]

        def _info(self):
            name = self.builder_config.name
            texts = {field: kinds.get(field, tfds.features.Text()) for field in PUBLISHED[name][0]}
            idx = tfds.features.FeaturesDict(dict.fromkeys(("paragraph", "question", "answer"), np.int32))
            label = tfds.features.ClassLabel(names=["False", "True"])
            features = {**texts, "idx": idx if name == "multirc" else np.int32, "label": label}
            return tfds.core.DatasetInfo(builder=self, description="made", features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(["False", "True"]),
                "validation": self._generate_examples(["True"]),
                "test": self._generate_examples([-1]),
            }

        def _generate_examples(self, labels):
            name = self.builder_config.name
            for number, label in enumerate(labels):
                idx = dict.fromkeys(("paragraph", "question", "answer"), number) if name == "multirc" else number
                yield number, {**PUBLISHED[name][0], "idx": idx, "label": label}

    for task in ("boolq", "multirc", "wsc"):
        with quiet_tfds():
            SuperGlue(data_dir=tmp_path, config=task, file_format="array_record").download_and_prepare()
        found = labelled(task, str(tmp_path))
        assert found.classes == (0, 1)
        assert sorted(read(found, "train")) == [(PUBLISHED[task][1], 0), (PUBLISHED[task][1], 1)]
        assert read(found, "validation") == [(PUBLISHED[task][1], 1)]
    folder = tmp_path / "super_glue" / "wsc" / "1.0.2"
    assert read(labelled("wsc", str(folder)), "validation") == [(PUBLISHED["wsc"][1], 1)]
    unlabelled = dataclasses.replace(found, validation={"test": [{**PUBLISHED["wsc"][0], "label": -1}]})
    with pytest.raises(ConfigError, match=r"^finetune.path: .* has the label -1, which no training example has"):
        read(unlabelled, "test")
    for record in folder.glob("*.array_record*"):
        record.unlink()
    with pytest.raises(ConfigError, match="only they are read without TensorFlow"):
        labelled("wsc", str(tmp_path))


def test_a_task_of_ones_own_has_words_for_labels_and_a_pair_or_none(tmp_path):
    write_jsonl(
        tmp_path / "tone.train.jsonl", [{"text": "a", "label": "warm"}, {"text": "b", "text_pair": "c", "label": "cold"}]
    )
    write_jsonl(tmp_path / "tone.valid.jsonl", [{"text": "d", "text_pair": None, "label": "warm"}])
    found = labelled("tone", str(tmp_path))
    assert (found.classes, found.metrics()) == (("cold", "warm"), ("accuracy", "f1", "matthews"))
    assert read(found, "train") == [(("a", ""), 1), (("b", "c"), 0)]
    assert read(found, "validation") == [(("d", ""), 1)]


@pytest.mark.parametrize(
    ("train", "valid", "problem"),
    [
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n', None, "has no own.valid.jsonl; put it beside the other"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 1}\n', "", "has one label alone"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n', '{"text": "c"}\n', "lacks 'label'"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n', '{"text": "c", "label": 2}\n', "the labels are 0, 1"),
        ("[1]\n", "", "own.train.jsonl line 1 is not a JSON object"),
        ("{", "", "own.train.jsonl line 1 is not JSON"),
        (None, "", "own is not in .*; put BabyLM's evaluation_data"),
    ],
)
def test_files_that_are_no_task_are_refused_in_one_line(tmp_path, train, valid, problem):
    for name, content in (("train", train), ("valid", valid)):
        if content is not None:
            (tmp_path / f"own.{name}.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=problem) as error:
        read(labelled("own", str(tmp_path)), "validation")
    assert error.value.field == "finetune.path"
    assert "\n" not in str(error.value)


def pairs(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and those said, of every quality; some have a class alone."""
    random = np.random.default_rng(seed)
    right = random.choice(classes, 1 + seed, p=random.dirichlet(np.ones(classes)))
    other = random.choice(classes, 1 + seed, p=random.dirichlet(np.ones(classes)))
    return right, np.where(random.random(1 + seed) < random.random(), right, other)


def test_metrics_are_those_of_scikit_learn_on_a_hundred_random_pairs():
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(100):
        right, said = pairs(2, seed)
        counts = counts_of(right, said, 2)
        assert accuracy(counts) == pytest.approx(metrics.accuracy_score(right, said))
        assert f1(counts) == pytest.approx(metrics.f1_score(right, said, zero_division=0.0))
        assert matthews(counts) == pytest.approx(metrics.matthews_corrcoef(right, said), abs=1e-12)
        right, said = pairs(4, seed)
        assert matthews(counts_of(right, said, 4)) == pytest.approx(metrics.matthews_corrcoef(right, said), abs=1e-12)


def test_metrics_are_those_of_a_table_by_hand_and_zero_where_nothing_is_defined():
    counts = np.array([[5, 1], [2, 4]])  # 4 hits, 1 false alarm, 2 missed
    assert accuracy(counts) == 9 / 12
    assert f1(counts) == 8 / 11
    assert matthews(counts) == pytest.approx((5 * 4 - 1 * 2) / np.sqrt(5 * 6 * 7 * 6))
    np.testing.assert_allclose(matthews(np.stack([counts, counts.T])), [matthews(counts), matthews(counts.T)])
    none = np.array([[7, 0], [0, 0]])
    assert (accuracy(none), f1(none), matthews(none)) == (1.0, 0.0, 0.0)


def test_an_interval_of_f1_and_matthews_holds_the_truth_about_as_often_as_it_says():
    """200 draws of 150 items from known shares: the nominal 95 % within four standard errors of a share of 200, 6.2 points."""
    shares = np.array([[0.5, 0.1], [0.15, 0.25]])
    draws = np.random.default_rng(1).multinomial(150, shares.ravel(), 200).reshape(-1, 2, 2)
    for metric in ("f1", "matthews"):
        truth = float(METRICS[metric](shares))
        inside = np.mean([low <= truth <= high for low, high in (metric_interval(metric, one) for one in draws)])
        assert inside == pytest.approx(0.95, abs=0.062)


def test_a_score_without_errors_has_an_interval_and_that_of_the_accuracy_is_wilsons():
    perfect = np.array([[20, 0], [0, 20]])
    for metric in ("f1", "matthews"):
        low, high = metric_interval(metric, perfect)
        assert 0.8 < low < 1.0 == high
    assert metric_interval("accuracy", perfect) == wilson(40, 40)


def test_the_interval_of_a_mean_is_that_of_independent_errors():
    mean, low, high = mean_interval([(0.5, 0.4, 0.6), (0.8, 0.7, 0.85)])
    assert (mean, low, high) == pytest.approx((0.65, 0.65 - np.hypot(0.1, 0.1) / 2, 0.65 + np.hypot(0.1, 0.05) / 2))
    assert mean_interval([(0.3, 0.2, 0.5)]) == pytest.approx((0.3, 0.2, 0.5))
