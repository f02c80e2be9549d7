"""Suites asked in text: a reader of the prompt scores one, a guesser as declared, prompts fill their length."""

import dataclasses
import itertools
import json
import re
import string
import sys

import numpy as np
import pytest

from infini_jax.cli.main import main
from infini_jax.data.asked import Ground, answers_of, most_units
from infini_jax.data.babi import TASKS as BABI
from infini_jax.data.babi import Babilong
from infini_jax.data.babi.carrying import NOTHING
from infini_jax.data.babi.objects import THINGS
from infini_jax.data.babi.prompts import PROMPTS
from infini_jax.data.babi.scores import answered
from infini_jax.data.babi.world import Story
from infini_jax.data.batch import Rows, generator
from infini_jax.data.ruler import TASKS as RULER
from infini_jax.data.ruler import Ruler
from infini_jax.data.ruler.common_words import different_words
from infini_jax.data.ruler.needles import drawn, listed
from infini_jax.data.slots import Slots
from infini_jax.data.stdlib import reference_text
from infini_jax.data.tokenizers import Bytes, SentencePiece, train_sentencepiece
from infini_jax.data.words import MADE_UP, made_up
from infini_jax.errors import ConfigError
from infini_jax.evals.babilong import BabilongEvaluation
from infini_jax.evals.reading import Reading
from infini_jax.evals.ruler import RulerEvaluation
from infini_jax.evals.slots import SlotsEvaluation
from infini_jax.evals.suites import words_said
from tests.support import suite_readers
from tests.test_evaluations import run_on

HAY = reference_text()[:40_000]
SUITES = [
    *(Ruler(kind) for kind in RULER),
    *(Babilong(kind) for kind in BABI),
    *(Slots(slots=slots, overwrites=overwrites) for slots, overwrites in ((1, 0), (4, 4))),
]


def named(suite) -> str:
    return f"{suite.title}-{suite.kind}-{getattr(suite, 'overwrites', '')}"


def told(suite, text: str) -> str:
    """What a reader says."""
    if isinstance(suite, Ruler):
        return suite_readers.ruler(suite.kind, text)
    return suite_readers.babi(text) if isinstance(suite, Babilong) else suite_readers.slots(text)


def least_of(suite, encode) -> int:
    with pytest.raises(ConfigError) as error:
        suite.text_example(np.random.default_rng(0), 1, encode, HAY)
    found = re.fullmatch(r"length: 1 tokens do not hold .+; give at least (\d+) \(.+\)", str(error.value))
    return int(found.group(1))


@pytest.fixture(scope="module")
def pieces() -> SentencePiece:
    return SentencePiece(train_sentencepiece([HAY, *("\n".join(PROMPTS[kind].examples for kind in PROMPTS)).split("\n")], 500))


@pytest.mark.parametrize("suite", SUITES, ids=named)
def test_a_reader_of_the_prompt_scores_one_and_prompts_fill_their_length(suite, pieces):
    for tokenizer, seed in itertools.product((Bytes(), pieces), range(6)):
        least = least_of(suite, tokenizer.encode)
        tokens = 2 * least + 700 + 37 * seed
        example = suite.text_example(np.random.default_rng(seed), tokens, tokenizer.encode, HAY)
        text, prompt = tokenizer.decode(example.tokens), answers_of(example.references)
        assert example.prompt == len(example.tokens) <= tokens - suite.task.new
        assert all(suite.task.hits(told(suite, text), prompt)), (text[-300:], prompt)
        assert not any(suite.task.hits("", prompt))
        again = suite.text_example(np.random.default_rng(seed), tokens, tokenizer.encode, HAY)
        np.testing.assert_array_equal(example.tokens, again.tokens)
        assert example.references == again.references


@pytest.mark.parametrize("kind", [*RULER, "qa2"])
def test_one_unit_more_would_not_have_fit(kind):
    """In bytes, where the size of a unit is known."""
    suite = Babilong(kind) if kind in BABI else Ruler(kind)
    hay = "A sentence of 34 letters is here. " * 20
    unit = {"niah_single_1": 89, "niah_multikey_2": 80, "niah_multikey_3": 132, "vt": 89, "cwe": 60, "fwe": 60}.get(kind, 35)
    for seed, extra in enumerate((0, 1, 333, 9000)):
        tokens = 2 * least_of(suite, Bytes().encode) + extra
        example = suite.text_example(np.random.default_rng(seed), tokens, Bytes().encode, hay)
        assert tokens - suite.task.new - unit < len(example.tokens) <= tokens - suite.task.new


@pytest.mark.parametrize("room", [20, 21, 47, 48, 1000, 12_345])
def test_the_most_units_are_those_of_a_search_one_by_one(room):
    def count(units: int) -> int:
        return 20 + 3 * units + units // 7 * 5

    asked = []
    found = most_units(lambda units: (asked.append(units), count(units))[1], 0, count(0), room)
    assert count(found) <= room < count(found + 1)
    assert len(asked) < 16  # a search one by one asks thousands of times


@pytest.mark.parametrize("suite", SUITES[:-2], ids=named)
def test_a_guesser_scores_as_declared(suite):
    """By the form of answers alone: all guesses where they can be listed, else some thousand."""
    random, task = np.random.default_rng(0), suite.task
    if isinstance(suite, Babilong):
        things = [",".join(of) for count in (1, 2, 3) for of in itertools.combinations(THINGS, count)]
        guesses = [*things, NOTHING] if suite.kind == "qa8" else list(task.labels)
        prompts = [task.write(np.random.default_rng(seed), 1, Ground(500, HAY)) for seed in range(20)]
        for prompt in prompts:
            assert sum(task.hits(guess, prompt)[0] for guess in guesses) / len(guesses) == pytest.approx(task.chance)
        return
    prompt = task.write(random, 100, Ground(5000, HAY))
    if suite.kind == "cwe":
        hits = [task.hits(" ".join(different_words(random, 10)), prompt) for _ in range(4000)]
        assert np.mean(hits) == pytest.approx(task.chance, abs=4 * (task.chance / 40_000) ** 0.5)
        return
    forms = {"fwe": lambda: word(random, string.ascii_lowercase, 6), "vt": lambda: word(random, string.ascii_uppercase, 5)}
    guess = forms.get(suite.kind, lambda: drawn(random, task.values))
    assert np.mean([task.hits(" ".join(guess() for _ in prompt.references), prompt) for _ in range(1000)]) == 0.0
    assert 0 < task.chance < 1e-5


def word(random: np.random.Generator, letters: str, count: int) -> str:
    return "".join(random.choice(list(letters), count))


# ---- RULER ---------------------------------------------------------------------------------------------------------------


def test_ruler_has_the_thirteen_published_tasks_with_their_room_for_answers():
    tasks = Ruler().tasks()
    assert {name: task.new for name, task in tasks.items()} == {
        **{f"niah_single_{number}": 128 for number in (1, 2, 3)},
        **{f"niah_multikey_{number}": 128 for number in (1, 2, 3)},
        **dict.fromkeys(("niah_multivalue", "niah_multiquery"), 128),
        "vt": 30,
        "cwe": 120,
        "fwe": 50,
        "qa_1": 32,
        "qa_2": 32,
    }
    assert {name for name, task in tasks.items() if task.needs_hay} == {
        *("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
    }


def test_needles_stand_at_any_depth_and_are_as_many_as_published():
    counts = {"niah_single_1": 1, "niah_multikey_1": 4, "niah_multivalue": 4, "niah_multiquery": 4}
    for kind, count in counts.items():
        suite, depths = Ruler(kind), []
        for seed in range(40):
            prompt = suite.task.write(np.random.default_rng(seed), 300, Ground(4000, HAY))
            places = [match.start() / len(prompt.text) for match in re.finditer("One of the special magic", prompt.text)]
            assert len(places) == count
            assert len(prompt.references) == (4 if kind in ("niah_multivalue", "niah_multiquery") else 1)
            depths += places
        assert min(depths) < 0.15
        assert max(depths) > 0.75
    one, several = (Ruler(kind).task.write(np.random.default_rng(0), 9, Ground(4000, HAY)).text for kind in [*counts][::3])
    assert one.startswith("A special magic number is hidden within the following text. Make sure to memorize it.")
    assert several.startswith("Some special magic numbers are hidden within")
    assert re.search(r"What are all the special magic numbers for \S+, \S+, \S+, and \S+ mentioned", several)
    assert listed(["a"]) == "a"


def test_common_words_are_counted_as_published_and_less_often_below_4k():
    for tokens, often, rarely in ((4095, 6, 1), (4096, 30, 3)):
        text = Ruler("cwe").task.write(np.random.default_rng(1), 30, Ground(tokens)).text
        words = re.findall(r"\d+\. (\w+)", text.split("appear most often.\n")[-1].split("\nQuestion")[0])
        counts = sorted(words.count(word) for word in set(words))
        assert counts == [rarely] * 20 + [often] * 10
    many = different_words(np.random.default_rng(0), MADE_UP + 5)
    assert len(set(many)) == MADE_UP + 5
    assert {len(word) for word in many} == {6}


def test_frequent_words_follow_the_zeta_distribution():
    text = Ruler("fwe").task.write(np.random.default_rng(1), 1000, Ground(4000)).text
    words = text.split("coded words. ")[1].split("\nQuestion")[0].split()
    counts = sorted((words.count(word) for word in set(words)), reverse=True)
    assert words.count("...") == counts[0] == int(1000 / (np.pi**2 / 6))
    assert counts == [found for k in range(1, len(counts) + 1) if (found := int(1000 / (np.pi**2 / 6) / k**2))]


SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"Text {article}.{number} says that the code of {article}.{number} is K{article}{number}.",
                    "qas": [
                        {
                            "question": f"What is the code of {article}.{number}?",
                            "is_impossible": False,
                            "answers": [{"text": f"K{article}{number}"}, {"text": f"the K{article}{number}"}],
                        },
                        {"question": "What is not told?", "is_impossible": True, "answers": []},
                    ],
                }
                for number in range(3)
            ]
        }
        for article in range(4)
    ]
}
HOTPOT = [
    {
        "question": f"Where is {number}?",
        "answer": f"P{number}",
        "context": [
            [f"Title {number}", [f"{number} is with A.", " A is far."]],
            ["Common", ["Nothing."]],
            [f"A{number}", ["x"]],
        ],
    }
    for number in range(5)
]


def files(folder) -> dict[str, str]:
    for name, plain in (("squad", SQUAD), ("hotpot", HOTPOT)):
        (folder / f"{name}.json").write_text(json.dumps(plain))
    return {name: str(folder / f"{name}.json") for name in ("squad", "hotpot")}


@pytest.mark.parametrize("kind", ["qa_1", "qa_2"])
def test_questions_stand_behind_their_documents_among_others(kind, tmp_path):
    suite = Ruler(kind, **files(tmp_path))
    for seed, units in itertools.product(range(8), (3, 7, 30)):
        prompt = suite.task.write(np.random.default_rng(seed), units, Ground(4000))
        documents = re.split(r"\n*Document \d+:\n", prompt.text.split("given documents.\n")[1].split("\n\nAnswer the")[0])[1:]
        assert len(documents) == units
        asked = re.search(r"Question: (.+\?) Answer:$", prompt.text).group(1)
        if kind == "qa_1":
            number = re.search(r"of (\S+)\?", asked).group(1)
            assert sum(f"code of {number} is {prompt.references[0]}." in one for one in documents) >= 1
            of_article = {one for one in documents if one.startswith(f"Text {number[0]}.")}
            assert len(of_article) == 3  # all of the article, before others
        else:
            number = re.search(r"is (\d)\?", asked).group(1)
            assert {f"Title {number}\n{number} is with A. A is far.", "Common\nNothing.", f"A{number}\nx"} <= set(documents)
        assert suite.task.hits(f"it is {prompt.references[-1].upper()}!", prompt) == [True]  # any answer will do
        assert suite.task.hits("nothing", prompt) == [False]
    least = least_of(suite, Bytes().encode)
    example = suite.text_example(np.random.default_rng(0), 3 * least, Bytes().encode)
    assert 2 * least < len(example.tokens) <= 3 * least - 32


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "squad: no file of questions is given; give the JSON file of SQuAD 2.0 with --squad"),
        ("no json", "cannot be read as JSON; give the file as it is published"),
        ("[1]", "is not in the form of SQuAD 2.0; give the file as it is published"),
        ('{"data": []}', "holds no question with an answer"),
    ],
)
def test_a_file_of_questions_that_cannot_be_used_is_told_in_one_line(content, said, tmp_path):
    if content is not None:
        (tmp_path / "squad.json").write_text(content)
    suite = Ruler("qa_1", squad="" if content is None else str(tmp_path / "squad.json"))
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        suite.text_example(np.random.default_rng(0), 4000, Bytes().encode)
    assert "\n" not in str(error.value)


# ---- BABILong ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BABI)
def test_stories_have_every_answer_and_facts_that_a_reader_needs_no_more_than(kind):
    task, found, sizes = BABI[kind], set(), set()
    for seed in range(400):
        story: Story = task.tell(np.random.default_rng(seed))
        found.add(frozenset(story.answer.split(",")))
        sizes.add(len(story.facts))
        text = f"\n\n<context>\n{' '.join(story.facts)}\n</context>\n\nQuestion: {story.question}"
        assert set(suite_readers.babi(text).split(",")) == set(story.answer.split(",")), text
    assert len(found) == (8 if kind == "qa8" else len(task.labels))
    assert len(sizes) > 3 or kind == "qa4"


def test_facts_stand_in_order_between_sentences():
    prompt = Babilong("qa2").task.write(np.random.default_rng(3), 200, Ground(9000, HAY))
    context = prompt.text.split("<context>\n")[1].split("\n</context>")[0]
    story = BABI["qa2"].tell(np.random.default_rng(3))
    places, behind = [], 0
    for fact in story.facts:  # some are told twice
        places.append(context.index(fact, behind))
        behind = places[-1] + len(fact)
    assert all(place == 0 or context[place - 2 : place] in (". ", "! ", "? ") for place in places)
    assert max(places) - min(places) > len(context) / 4
    assert prompt.text.startswith("I give you context with the facts about locations and actions")


@pytest.mark.parametrize(
    ("said", "is_right"),
    [
        ("The most recent location of Mary is kitchen. She was in the garden.", True),
        (" KITCHEN", True),
        ("kitchen or garden", False),
        ("the kitchens", False),
        ("I do not know. kitchen", False),
        ("kitchen<example>garden", True),
        ("", False),
    ],
)
def test_an_answer_is_right_where_no_other_label_is_said_in_its_first_sentence(said, is_right):
    assert answered(said, "kitchen", "Where is Mary?", ("kitchen", "garden")) == is_right


def test_labels_of_the_question_do_not_count_and_lists_are_sets():
    places = ("kitchen", "garden", "office")
    assert answered("Before the garden it was in the office", "office", "Where was it before the garden?", places)
    things = (*THINGS, NOTHING)
    assert answered("milk and the apple", "apple,milk", "What is Mary carrying?", things)
    assert not answered("milk", "apple,milk", "What is Mary carrying?", things)
    assert answered("none", "none", "How many objects is Mary carrying?", ("none", "one"))


# ---- slots ---------------------------------------------------------------------------------------------------------------


def test_what_is_said_first_is_new_or_stale():
    task = Slots(slots=3, overwrites=2).task
    prompt = task.write(np.random.default_rng(0), 5, Ground(2000, HAY))
    new, old = prompt.references[0], prompt.others
    assert len(old) == 2
    for said, hit, stale in ((f" {new}.", 1, 0), (f" {old[0]}, not {new}", 0, 1), (" xyz", 0, 0), (f"{new}x {old[1]}", 0, 1)):
        assert (task.hits(said, prompt), task.more(said, prompt)) == ([hit], {"stale": [stale]})
    assert prompt.text.count("User: Set the") == 9
    assert prompt.text.count("Assistant: Noted.") == 5
    assert {made_up(number) for number in range(MADE_UP)} >= {new, *old}


@pytest.mark.parametrize(
    ("slots", "overwrites", "said"), [(0, 1, "slots: 0"), (33, 1, "slots: 33"), (4, 980, "overwrites: 980")]
)
def test_slots_that_cannot_be_are_refused(slots, overwrites, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        _ = Slots(slots=slots, overwrites=overwrites).task


# ---- evaluations ---------------------------------------------------------------------------------------------------------

CASES = {
    "ruler": RulerEvaluation(lengths=(2200,), kinds=("niah_single_1", "niah_multivalue"), examples=2, rows=4),
    "babilong": BabilongEvaluation(lengths=(2500,), kinds=("qa1", "qa5"), examples=2, rows=4),
    "slots": SlotsEvaluation(lengths=(1500,), overwrites=(0, 2), examples=2, rows=4),
}


@pytest.mark.parametrize("name", CASES)
def test_right_words_score_one_and_others_nothing(name):
    run, evaluation = run_on("python_stdlib"), CASES[name]
    evaluation.check(run)
    for cell in evaluation.cells(run):
        for is_right in (True, False):
            readings = []
            for example in evaluation.draw(run, cell):
                words = told(cell.config, Bytes().decode(example.tokens)) if is_right else "?"
                said = np.resize(Bytes().encode(f" {words}. \n"), evaluation.new_tokens(example))
                blank = np.zeros(0)
                readings.append(Reading(example.labels, blank, blank, blank, said, example.references))
            figures = {one.metric: one for one in evaluation.figures(run, cell, readings)}
            assert figures["score"].value == is_right
            assert figures["score"].low < figures["score"].high
            assert figures["score"].labels == cell.labels
            assert set(figures) == ({"score", "stale"} if name == "slots" else {"score"})


@pytest.mark.parametrize("kind", ["nonsense", "qa_1"])
def test_unknown_tasks_and_missing_files_are_told_before_anything_is_read(kind):
    with pytest.raises(ConfigError, match=r"^(kinds: 'nonsense' is not known|squad: no file)"):
        RulerEvaluation(kinds=(kind,), lengths=(3000,)).check(run_on("python_stdlib"))


def test_what_stands_behind_the_end_of_a_document_is_not_said(pieces):
    end = dataclasses.make_dataclass("Ends", ["end", "decode"])(7, lambda tokens: " ".join(map(str, tokens)))
    assert words_said(end, np.array([3, 4, 7, 5])) == "3 4"
    assert words_said(Bytes(), Bytes().encode("all of it")) == "all of it"


def test_a_python_without_its_language_reference_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ConfigError, match=r"^data: this Python has no language reference; name a file"):
        reference_text.__wrapped__()


def test_cells_of_one_length_are_asked_in_the_same_text():
    """What sets tasks apart is the question, not the stretch of the corpus."""
    evaluation, run = CASES["babilong"], run_on("python_stdlib")
    random = [generator(Rows(1, 2500, 0, "test"), 2500, 0) for _ in range(2)]
    first, second = (evaluation.hay(run, cell, one) for cell, one in zip(evaluation.cells(run), random, strict=True))
    assert first == second


def test_a_suite_is_asked_by_the_command_line(tmp_path, capsys):
    tiny = "--model.layers 1 --model.d-model 16 --model.heads 1 --model.segment 32 --train.sequence 64 --train.batch 2"
    given = f"train local python_stdlib {tiny} --budget.amount 1 --evaluation.documents 0 --results {tmp_path}"
    main(given.split())
    main(f"evaluate {tmp_path / 'run'} --task babilong --kinds qa6 --lengths 2k --examples 2".split())
    assert "qa6" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "evaluation-babilong.json").read_text())
    assert [(one["metric"], one["labels"]["kind"]) for one in record["measures"]] == [("score", "qa6")]
