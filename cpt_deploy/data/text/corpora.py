"""Find text corpora: known ones by name, and any text file or folder of text files by path."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cpt_deploy.bundle.processors.tokenization import plain_text
from cpt_deploy.data.places import candidate_folders
from cpt_deploy.errors import DataError, MissingDataError
from cpt_deploy.image_files import is_hidden
from cpt_deploy.recipe.smoke import MADE_UP
from cpt_deploy.registry import Registry

TextSplit = Literal["train", "valid", "test"]
SPLITS: tuple[TextSplit, ...] = ("train", "valid", "test")
TEXT_SUFFIXES = (".txt", ".tokens", ".raw")
_ABOUT = frozenset({"readme", "license", "licence", "notice", "classes", "labels", "requirements"})
"""Names of text files that are about data and not data."""
_MADE_UP_WORDS = 2000
HELD_OUT = 0.05
"""Share of a single-file text that is held out for validation, and again for testing: its end, the test text last."""

_NAMES: Mapping[str, TextSplit] = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}


@dataclass(frozen=True)
class CorpusInfo:
    """A known corpus.

    Args:
        name: Its name in recipes.
        summary: A short description.
        tokens: Published numbers of words of training, validation and test text, counting line ends; empty if none.
        types: Published number of different words, or 0.
        files: Names of its files of training, validation and test text, or of one file that is divided.
        obtain: How to get it, in one line.
    """

    name: str
    summary: str
    tokens: tuple[int, ...]
    types: int
    files: tuple[str, ...]
    obtain: str


@dataclass(frozen=True)
class Corpus:
    """The files of a corpus.

    Args:
        name: Its name, or its path.
        files: The file of each split; the same file for all splits if `text` divides it.
    """

    name: str
    files: Mapping[TextSplit, Path]

    def text(self, split: TextSplit) -> str:
        r"""Read the text of a split, with `\n` as line ends.

        Raises:
            DataError: If the file cannot be read, is not UTF-8, or has no text.
        """
        path = self.files[split]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"Expected to read text from {path}, but got: {error.strerror or error}") from error
        try:
            text = plain_text(content.decode())
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"Expected UTF-8 text in {path}, but byte {error.start} (line {line}) is {content[error.start]:#04x}",
                hint="convert it: iconv -f LATIN1 -t UTF-8",
            ) from error
        if not text.strip():
            raise DataError(f"Expected text in {path}, but it has none")
        if len(set(self.files.values())) == 1:
            text = _part(text, split)
            if not text.strip():
                raise DataError(f"Expected enough text in {path} to keep a part for {split}, but there is too little")
        return text


@dataclass(frozen=True)
class MadeUpCorpus(Corpus):
    """A text with as many different words as the corpus whose name it has after `MADE_UP`, for smoke runs."""

    def text(self, split: TextSplit) -> str:
        """Return the text of a split: in training every word once."""
        known = self.name.removeprefix(MADE_UP)
        types = corpora.get(known).types if known in corpora else 0
        count = (types or _MADE_UP_WORDS) - 2  # a vocabulary also has the end of a line and <unk>
        words = ["<unk>", *(f"w{number}" for number in range(count if split == "train" else _MADE_UP_WORDS // 2))]
        return "".join(" ".join(words[start : start + 20]) + "\n" for start in range(0, len(words), 20))


corpora: Registry[CorpusInfo] = Registry("corpus")
"""The corpora that a recipe can name; others are given by path."""


def is_corpus(name_or_path: str) -> bool:
    """Return whether a name means text and not images: a known corpus, a text file, or a folder of text files.

    In folders of images and archives there are often text files, too: notes, names of classes, lists of files.
    """
    name_or_path = name_or_path.removeprefix(MADE_UP)
    if name_or_path in corpora:
        return True
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path.suffix in TEXT_SUFFIXES
    if not path.is_dir():
        return path.suffix in TEXT_SUFFIXES
    others = [each for each in path.iterdir() if not is_hidden(each) and (each.is_dir() or each.suffix == ".npz")]
    return not others and bool(_text_files(path))


def load_corpus(name_or_path: str | Path, root: Path | None = None) -> Corpus:
    """Find the files of a corpus. Nothing is downloaded, and no text is read yet.

    Args:
        name_or_path: A known name; a text file, which is divided into 90, 5 and 5 % for training, validation and
            testing; or a folder with one text file for each of the three, recognised by their names.
        root: The folder of a known corpus; by default `$CPT_DATA_DIR/<name>`, then the cache.

    Raises:
        DataError: If files are missing; the message names the files and the folder.
    """
    name = str(name_or_path)
    if name.startswith(MADE_UP):
        return MadeUpCorpus(name, {})
    if name not in corpora:
        path = Path(name).expanduser()
        if path.is_file():
            return Corpus(name, dict.fromkeys(SPLITS, path))
        if not path.is_dir():
            raise MissingDataError(f"Expected a text file or a folder of them at {name}, but found nothing there")
        return Corpus(name, _files_of(name, path, hint="name them train.txt, valid.txt and test.txt"))
    info = corpora.get(name)
    folders = candidate_folders(name, root)
    found = next((folder for folder in folders if folder.is_dir() and _text_files(folder)), None)
    if found is None:
        places = " or ".join(str(folder) for folder in folders[:2])
        raise MissingDataError(f"Expected corpus {name} in {places}, but it is not there", hint=info.obtain)
    exact = [found / file for file in info.files]
    if all(path.is_file() for path in exact):
        return Corpus(name, dict(zip(SPLITS, exact if len(exact) > 1 else exact * len(SPLITS), strict=True)))
    return Corpus(name, _files_of(name, found, hint=info.obtain))


def _files_of(name: str, folder: Path, *, hint: str) -> dict[TextSplit, Path]:
    files = _text_files(folder)
    if len(files) == 1 and _split_of(files[0]) is None:
        return dict.fromkeys(SPLITS, files[0])
    found: dict[TextSplit, Path] = {}
    for path in files:
        split = _split_of(path)
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"Expected one file of {split} text of {name} in {folder}, but got {found[split].name} and {path.name}",
                hint=hint,
            )
        found[split] = path
    missing = [split for split in SPLITS if split not in found]
    if missing:
        raise DataError(
            f"Expected files for training, validation and test text of {name} in {folder}, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            hint=hint,
        )
    return found


def _text_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in TEXT_SUFFIXES and path.is_file() and not is_hidden(path) and path.stem.lower() not in _ABOUT
    )


def _split_of(path: Path) -> TextSplit | None:
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((_NAMES[word] for word in words if word in _NAMES), None)


def _part(text: str, split: TextSplit) -> str:
    """Return a split of a single-file text, cut near its place: at a line end, else between words if there are any."""
    held = int(len(text) * HELD_OUT)
    cuts = [0, _cut(text, len(text) - 2 * held, held), _cut(text, len(text) - held, held), len(text)]
    number = SPLITS.index(split)
    return text[cuts[number] : cuts[number + 1]]


def _cut(text: str, position: int, reach: int) -> int:
    """Return the place after the last line end or space before a position, of the characters within reach."""
    ends = (text.rfind(mark, max(position - reach // 2, 0), position) for mark in ("\n", " "))
    return next((end + 1 for end in ends if end > 0), position)


for _info in (
    CorpusInfo(
        "ptb",
        "Penn Treebank, newspaper text of 10,000 words",
        (929589, 73760, 82430),
        10000,
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
        "set data.root, or CPT_DATA_DIR with a folder ptb in it, to a folder that holds ptb.train.txt, ptb.valid.txt "
        "and ptb.test.txt",
    ),
    CorpusInfo(
        "wikitext-2",
        "articles of Wikipedia",
        (2088628, 217646, 245569),
        33278,
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        "set data.root, or CPT_DATA_DIR with a folder wikitext-2 in it, to a folder that holds wiki.train.tokens, "
        "wiki.valid.tokens and wiki.test.tokens",
    ),
    CorpusInfo(
        "wikitext-103",
        "articles of Wikipedia, 50 times as many",
        (103227021, 217646, 245569),
        267735,
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        "set data.root, or CPT_DATA_DIR with a folder wikitext-103 in it, to a folder that holds wiki.train.tokens, "
        "wiki.valid.tokens and wiki.test.tokens",
    ),
    CorpusInfo(
        "tinyshakespeare",
        "a megabyte of Shakespeare in one file",
        (),
        0,
        ("input.txt",),
        "set data.root, or CPT_DATA_DIR with a folder tinyshakespeare in it, to a folder that holds input.txt",
    ),
):
    corpora.register(_info.name)(_info)
