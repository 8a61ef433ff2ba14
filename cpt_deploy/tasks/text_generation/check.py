"""Check a text: splits that cannot be read, words that training lacks, lines of test text that are trained on."""

from pathlib import Path

from cpt_deploy import readable
from cpt_deploy.data.text import load_corpus
from cpt_deploy.data.text.corpora import SPLITS, TextSplit
from cpt_deploy.errors import DataError
from cpt_deploy.tasks.catalogs import DataCheck
from cpt_deploy.tasks.reporting import Reporter

_LONG_LINE = 40
"""Characters of a line from which on its repetition is hardly chance."""


def check_text(name: str, root: Path | None, reporter: Reporter) -> DataCheck:
    """Read all splits, see `Task.check_data`."""
    corpus = load_corpus(name, root)
    texts: dict[TextSplit, str] = {}
    errors = []
    with reporter.bar("reading", len(SPLITS)) as bar:
        for done, split in enumerate(SPLITS, start=1):
            try:
                texts[split] = corpus.text(split)
            except DataError as error:
                errors.append(error.message)
            bar.advance(done)
    words = {split: text.split() for split, text in texts.items()}
    known, lines = {*words.get("train", [])}, {*texts.get("train", "").splitlines()}
    rows: list[tuple[str, ...]] = []
    repeated: list[str] = []
    for split, found in words.items():
        unknown = sum(word not in known for word in found) / max(len(found), 1)
        rows.append((split, f"{len(texts[split]):,}", f"{len(found):,}", f"{len({*found}):,}", readable.share(unknown)))
        if split != "train":
            others = (line for line in texts[split].splitlines() if len(line) >= _LONG_LINE)
            repeated += [f"{split}: {line.strip()}" for line in dict.fromkeys(others) if line in lines]
    return DataCheck(
        sizes={split: f"{len(found):,} words" for split, found in words.items()},
        table=[("split", "characters", "words", "different words", "not in train"), *rows],
        problems={"long lines that training text has too, so that the perplexity on them is no evidence": repeated},
        errors=list(dict.fromkeys(errors)),
        repair="convert or replace the files",
        content={
            "splits": [
                {"split": split, "characters": len(texts[split]), "words": len(found), "different_words": len({*found})}
                for split, found in words.items()
            ],
            "repeated_lines": repeated,
        },
    )
