"""The work of digest.py itself, which knows nothing of workflows: files, words, near duplicates, TF-IDF, Markdown."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = {".md", ".txt", ".rst", ".py"}
PASSED_BY = {"node_modules", "venv", "build", "dist", "__pycache__"}  # beside all hidden folders
MOST_FILES = 2_000  # what comes after these, in order of path, is counted in the report, not read
MOST_BYTES = 1_000_000  # a larger file is listed as skipped
SHINGLE = 5  # words in a row
SKETCH = 128  # hashes kept of a document: exact up to 128 different shingles, beyond that within about 0.04
NEAR = 0.7  # documents that share this much of their shingles are near duplicates

Json = dict[str, Any]


def find_files(folder: Path, out: Path) -> Json:
    """The texts under `folder` in order of path, those that cannot be read, and how many were left off."""
    files: list[str] = []
    skipped: list[Json] = []
    for path, reason in sorted(walk(folder, out)):
        name = os.fsencode(path).decode("utf-8", "replace")
        if name != path:
            skipped.append({"path": name, "reason": "its name is not UTF-8"})
        elif reason:
            skipped.append({"path": name, "reason": reason})
        else:
            files.append(name)
    return {"files": files[:MOST_FILES], "skipped": skipped, "left_off": max(0, len(files) - MOST_FILES)}


def walk(folder: Path, out: Path) -> Iterator[tuple[str, str]]:
    """Each text with what speaks against reading it. Hidden folders, tools' folders, links, `out` are passed by."""
    unreadable: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=unreadable.append):
        folders[:] = [name for name in folders if name[0] != "." and name not in PASSED_BY and Path(place, name) != out]
        for file in (Path(place, name) for name in names):
            if file.suffix.lower() in SUFFIXES:
                yield file.relative_to(folder).as_posix(), why_not(file)
    for error in unreadable:
        yield Path(error.filename).relative_to(folder).as_posix(), f"cannot be read: {error.strerror}"


def why_not(file: Path) -> str:
    """Why a file cannot be read, as far as this shows without opening it; else an empty text."""
    try:
        kind = file.stat()
    except OSError as error:
        return unread(error)
    if not stat.S_ISREG(kind.st_mode):
        return "not a regular file"
    return f"larger than {MOST_BYTES:,} bytes" if kind.st_size > MOST_BYTES else ""


def unread(error: OSError) -> str:
    return "vanished" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"


def read_file(folder: Path, path: str, keep: int) -> Json:
    """A document measured, or the reason why not."""
    try:
        with (folder / path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)  # it may have grown since it was found
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return {"path": path, "reason": "not UTF-8"}
    except OSError as error:
        return {"path": path, "reason": unread(error)}
    words = words_of(text)
    if len(content) > MOST_BYTES or not words:
        too_large = f"larger than {MOST_BYTES:,} bytes"
        return {"path": path, "reason": too_large if words else "no words" if text.strip() else "empty"}
    return {"path": path, "bytes": len(content), **measure(words, keep)}


def words_of(text: str) -> list[str]:
    """The words of a text, all runs of letters, in one spelling: case folded, accents composed."""
    return re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold())


def measure(words: list[str], keep: int) -> Json:
    """What ranking and comparing need of a document: its `keep` most frequent terms counted, and a sketch of it."""
    counts = Counter(word for word in words if 3 <= len(word) <= 30)
    often = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:keep]
    shingles, sketch = sketch_of(words)
    return {"words": len(words), "counts": dict(often), "shingles": shingles, "sketch": sketch}


def sketch_of(words: list[str]) -> tuple[int, list[int]]:
    """How many different shingles a text has, and the smallest of their hashes, at most SKETCH of them.

    The bottom-k sketch of Broder, "On the resemblance and containment of documents" (1997), with a hash that is the
    same in every process (Python's own `hash` of a text is not).
    """
    shingles = {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
    hashes = {int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") for text in shingles}
    return len(shingles), sorted(hashes)[:SKETCH]


def similarity(one: list[int], other: list[int]) -> float:
    """The share of all shingles of two texts that both have (Jaccard), from their sketches."""
    union = sorted({*one, *other})
    if max(len(one), len(other)) == SKETCH:  # one sketch may lack some hashes: only the smallest can be compared
        union = union[:SKETCH]
    return len(set(one) & set(other) & set(union)) / len(union)


def near_duplicates(documents: list[Json]) -> list[Json]:
    """All pairs of documents that share at least NEAR of their shingles, the most alike first."""
    found = []
    having: dict[int, list[int]] = defaultdict(list)  # hash: the documents so far that have it
    for number, one in enumerate(documents):
        shared = Counter(itertools.chain.from_iterable(having[value] for value in one["sketch"]))
        for other in (documents[at] for at, common in shared.items() if common >= NEAR * len(one["sketch"])):
            share = similarity(one["sketch"], other["sketch"])
            if share >= NEAR:
                first, second = sorted([one["path"], other["path"]])
                found.append({"first": first, "second": second, "similarity": round(share, 3)})
        for value in one["sketch"]:
            having[value].append(number)
    return sorted(found, key=lambda pair: (-pair["similarity"], pair["first"], pair["second"]))


def rank(documents: list[Json], top: int = 10) -> Json:
    """The terms that stand out by TF-IDF: `overall`, summed over all documents, and `each` document's by its path.

    tf is the term's share of the document's words, idf = ln((1 + documents) / documents with the term). A word that is
    everywhere weighs nearly nothing, so no list of stop words is needed.
    """
    having = Counter(term for document in documents for term in document["counts"])
    sums: dict[str, float] = defaultdict(float)
    each = {}
    for document in documents:
        scores = {}
        for term, count in document["counts"].items():
            scores[term] = count / document["words"] * math.log((1 + len(documents)) / having[term])
            sums[term] += scores[term]
        each[document["path"]] = [{**one, "count": document["counts"][one["term"]]} for one in best_of(scores, top)]
    overall = [{**one, "documents": having[one["term"]]} for one in best_of(sums, top)]
    return {"overall": overall, "each": each}


def best_of(scores: dict[str, float], top: int) -> list[Json]:
    """The highest scores, rounded first, so that equal ones are in order of the alphabet everywhere."""
    ordered = sorted((-round(score, 6), term) for term, score in scores.items())
    return [{"term": term, "score": -score} for score, term in ordered[:top]]


def as_report(data: Json) -> Json:
    """What report.json holds: the same for the same files, so it has no times."""
    documents = [{key: one[key] for key in ("path", "bytes", "words")} for one in data["documents"]]
    return {
        "folder": data["folder"],
        "terms": data["ranking"]["overall"],
        "duplicates": data["duplicates"],
        "skipped": data["skipped"],
        "left_off": data["left_off"],
        "documents": [{**one, "terms": data["ranking"]["each"][one["path"]]} for one in documents],
    }


def as_markdown(report: Json) -> str:
    """The same for people."""
    lines = [f"# Digest of {code(report['folder'])}", "", "## Terms that stand out", ""]
    lines += [f"1. {one['term']} ({one['score']:.4f}, in {one['documents']} documents)" for one in report["terms"]]
    lines += ["", "## Near duplicates", ""]
    for pair in report["duplicates"]:
        lines.append(f"- {pair['similarity']:.0%}: {code(pair['first'])} and {code(pair['second'])}")
    lines += ["", f"## Documents ({len(report['documents'])})", ""]
    for one in report["documents"]:
        best = ", ".join(f"{term['term']} {term['count']}" for term in one["terms"][:5])
        lines.append(f"- {code(one['path'])}, {one['words']:,} words: {best}")
    lines += ["", "## Skipped", ""]
    lines += [f"- {code(one['path'])}: {one['reason']}" for one in report["skipped"]]
    lines += [f"- {report['left_off']:,} more files"] if report["left_off"] else []
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    """A name as Markdown shows it literally, on one line."""
    return "`" + "".join(sign if sign.isprintable() and sign != "`" else "?" for sign in text) + "`"


def write(path: Path, text: str) -> None:
    """Put a whole file in place, or none: a report that is there is never half a report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # the step is committed after this; its report must not be lost where the commit is not
    part.replace(path)
