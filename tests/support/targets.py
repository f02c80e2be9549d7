"""Made archives in the exact form of published data sets of documents with targets, and a small prepared corpus of such."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infini_jax.data.conditioned import ConditionedConfig
from infini_jax.data.prepare import TokenizerSettings, prepare

FILM = {
    "0": {
        "cast": ["A. Actor as Captain One", "B. Actor as Two"],
        "critical_response": ["a fine film"],
        "director": "C. Director",
        "genre": "comedy",
        "introduction": "The Boat is a film about  a boat.",
        "movieName": "The Boat",
        "rating": ["IMDB: 7/10"],
        "year": "1999",
    },
    "1": "The boat leaves. ",
    "2": "The boat sinks. ",
    "3": "Captain One swims. ",
    "wikiDocumentIdx": 4,
}


def talk(history: list[tuple[str, str]], informed: list[str], film: int = 4, index: str = "wikiDocumentIdx") -> dict:
    """A conversation in the fields of CMU-DoG."""
    said = [{"docIdx": 0, "text": text, "uid": uid, "utcTimestamp": "2018-03-01T00:11:35.166Z"} for uid, text in history]
    times = {f"uid{one}Log{way}Time": "2018-03-01T00:11:05.970Z" for one in (1, 2) for way in ("In", "Out")}
    answers = {f"uid{one}response": {"feedback": None, "response": [1, 4], "type": "finish"} for one in (1, 2)}
    names = {"user1_id": "USR1", "user2_id": "USR2"}
    more = {"date": "2018-03-01T00:11:05.970Z", "rating": 2, "status": 1, "whoSawDoc": informed, index: film}
    return {"history": said, **times, **answers, **names, **more}


HISTORY = [
    ("user2", "Hello\n there!"),
    ("user1", "Have you seen The Boat?"),
    ("user1", "The captain swims."),
    ("user2", "No."),
    ("user1", ""),
]


def write_cmu_dog(folder: Path) -> Path:
    """CMU-DoG's folders with two films and a few conversations; the second film's fields are those of the first release."""
    second = {**FILM, "0": {**FILM["0"], "movieName": "The Train"}, "1": "It leaves.", "index": 5}
    second.pop("wikiDocumentIdx")
    files = {
        "WikiData/The_Boat.json": FILM,
        "WikiData/The_Train.json": second,
        "Conversations/train/00a8.json": talk(HISTORY, ["user1"]),
        "Conversations/train/00b9.json": talk(HISTORY, ["user1", "user2"], 5, "docLinkIdx"),
        "Conversations/valid/01c0.json": talk(HISTORY, ["user1"]),
        "Conversations/valid/01c1.json": talk(HISTORY[1:3], ["user1"], 5),
        "Conversations/test/02d0.json": talk([], ["user1"]),
    }
    for name, plain in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(plain, indent=2))
    return folder


def write_alignments(folder: Path) -> Path:
    """BookSum's alignments with the books and summaries that they name, as its authors' scripts leave them."""
    books, summaries = folder / "all_chapterized_books" / "7-chapters", folder / "finished_summaries" / "shmoop" / "A Book"
    books.mkdir(parents=True)
    summaries.mkdir(parents=True)
    (books / "1.txt").write_text("It was a dark night.\n\nIt rained.\n")
    (books / "book_clean.txt").write_text("It was a dark night.\n\nIt rained.\n\nThen it did not.\n")
    told = {"name": "Chapter 1", "url": "http://", "analysis": ["It rains."]}
    (summaries / "section_0_part_0.txt").write_text(json.dumps({**told, "summary": ["It is dark.", "It is wet."]}))
    (summaries / "overview.json").write_text(json.dumps({**told, "summary": ["All is wet."]}))
    chapter = {
        "bid": "7",
        "is_aggregate": False,
        "source": "shmoop",
        "chapter_path": "all_chapterized_books/7-chapters/1.txt",
        "summary_path": "finished_summaries/shmoop/A Book/section_0_part_0.txt",
        "book_id": "A Book.chapter 1",
        "summary_id": "chapter 1",
    }
    gone = {**chapter, "summary_path": "finished_summaries/shmoop/A Book/section_1_part_0.txt"}
    book = {
        "bid": "7",
        "source": "shmoop",
        "title": "A Book",
        "summary_path": "/export/longsum/booksumm/finished_summaries/shmoop/A Book/overview.json",
        "book_path": "/export/longsum/booksumm/all_chapterized_books/7-chapters/book_clean.txt",
    }
    alignments = folder / "alignments"
    for name, rows in {
        "chapter-level-summary-alignments/chapter_summary_aligned_train_split.jsonl": [chapter, gone],
        "chapter-level-summary-alignments/chapter_summary_aligned_val_split.jsonl": [chapter],
        "book-level-summary-alignments/book_summaries_aligned_train.jsonl": [book],
        "book-level-summary-alignments/book_summaries_aligned_test.jsonl": [book],
    }.items():
        (alignments / name).parent.mkdir(parents=True, exist_ok=True)
        (alignments / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


KMFODA = {
    "bid": 7,
    "is_aggregate": True,
    "source": "shmoop",
    "chapter_path": "all_chapterized_books/7-chapters/1.txt",
    "summary_path": "finished_summaries/shmoop/A Book/section_0_part_0.txt",
    "book_id": "A Book.chapter 1",
    "summary_id": "chapter 1",
    "content": None,
    "summary": '{"name": "Chapter 1", "summary": "It is dark."}',
    "chapter": 'It was a "dark" night,\nand it rained.',
    "chapter_length": 8.0,
    "summary_name": "Chapter 1",
    "summary_url": "http://",
    "summary_text": "It is dark,\nand wet.",
    "summary_analysis": "",
    "summary_length": 5.0,
    "analysis_length": 0.0,
}


def write_kmfoda(folder: Path, kind: str) -> Path:
    """The columns of kmfoda/booksum, as CSV or as Parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        if kind == "csv":
            with (folder / f"{split}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(KMFODA))
                writer.writeheader()
                writer.writerows([KMFODA, KMFODA])
        else:
            (folder / "default" / split).mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist([KMFODA, KMFODA]), folder / "default" / split / "0000.parquet")
    return folder


def write_cleaned(folder: Path) -> Path:
    """The fields of ubaada/booksum-complete-cleaned."""
    told = [
        {"source": "shmoop", "text": "It is wet.", "analysis": ""},
        {"source": "novelguide", "text": "Rain.", "analysis": ""},
    ]
    chapter = {"bid": "7", "book_title": "A Book", "chapter_id": "chapter 1", "text": "It rained.", "summary": told}
    book = {"bid": "7", "title": "A Book", "text": "It rained. Then it did not.", "summary": told[:1]}
    for level, row in {"chapters": {**chapter, "is_aggregate": False}, "books": book}.items():
        (folder / level).mkdir(parents=True, exist_ok=True)
        for split in ("train", "val", "test"):
            (folder / level / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def prepared_dialogues(folder: Path) -> ConditionedConfig:
    """CMU-DoG's made archive, prepared as bytes in $INFINI_JAX_DATA."""
    found, _ = prepare("cmu_dog", TokenizerSettings(), path=write_cmu_dog(folder), jobs=1)
    return ConditionedConfig(found.folder.name)
