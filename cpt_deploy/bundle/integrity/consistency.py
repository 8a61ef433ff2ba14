"""Check facts that a bundle stores in several files (for several kinds of readers): labels and preprocessing.

`cpt export` writes all of them from one source, so a difference means that one file was edited without the others.
"""

from collections.abc import Mapping
from typing import Any

from cpt_deploy.bundle.bundle import Bundle
from cpt_deploy.bundle.language.bundle import LanguageBundle
from cpt_deploy.bundle.layout import CONFIG_FILE, INPUTS, LABELS_FILE, PREPROCESSOR_FILE, TOKENIZER_FILE
from cpt_deploy.bundle.opened import read_json
from cpt_deploy.bundle.processors.descriptions import described_ends, described_preprocessing
from cpt_deploy.bundle.processors.preprocessing import Preprocessing


def exported_preprocessing(bundle: Bundle) -> Preprocessing | None:
    """Return the preprocessing at the time of export, from config.json; `None` if it has none."""
    try:
        return Preprocessing.from_dict(bundle.facts[INPUTS])
    except (KeyError, TypeError, ValueError):
        return None


def exported_labels(bundle: Bundle) -> tuple[str, ...]:
    """Return the labels from config.json, or those of labels.txt if it has none."""
    names = bundle.config.get("label_names")
    return tuple(str(name) for name in names) if isinstance(names, list) else bundle.labels


def contradictions(bundle: Bundle) -> list[str]:
    """Return the contradictions between the files of a classifier's bundle, as sentences."""
    exported = exported_preprocessing(bundle)
    found = [] if exported is None else preprocessing_differences(bundle.preprocessing, exported, CONFIG_FILE)
    if exported is None:
        found.append(f"{CONFIG_FILE} does not have the preprocessing with which the bundle was exported")
    written = read_json(bundle.path, PREPROCESSOR_FILE, bundle.digests)
    found += _differing(PREPROCESSOR_FILE, written, described_preprocessing(bundle.preprocessing), "its entry cpt")
    # compare with the exported preprocessing, so that one edit gives one sentence
    ends = described_ends(bundle.labels, exported or bundle.preprocessing)
    return found + _differing(CONFIG_FILE, bundle.config, ends, f"{LABELS_FILE} and {PREPROCESSOR_FILE}")


def language_contradictions(bundle: LanguageBundle) -> list[str]:
    """Return the contradictions between the files of a language model's bundle, as sentences."""
    found = []
    if bundle.facts.get("tokenizer_sha256") != bundle.digests[TOKENIZER_FILE]:
        found.append(f"{TOKENIZER_FILE} is not the exported one, by its digest in {CONFIG_FILE}")
    expected = {"vocab_size": bundle.manifest.vocabulary}
    return found + _differing(CONFIG_FILE, bundle.config, expected, "its own description of the model")


def preprocessing_differences(served: Preprocessing, known: Preprocessing, source: str) -> list[str]:
    """Return the differences of a bundle's preprocessing from another one, as one sentence or an empty list.

    Args:
        served: The preprocessing of preprocessor_config.json.
        known: The preprocessing to compare with.
        source: Where `known` is from.
    """
    ours, theirs = served.to_dict(), known.to_dict()
    differing = [f"{key} is {ours[key]} instead of {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    return [f"{PREPROCESSOR_FILE} is not as in {source}: {', '.join(differing)}"] if differing else []


def _differing(name: str, found: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> list[str]:
    keys = [key for key, value in expected.items() if found.get(key) != value]
    return [f"{', '.join(keys)} of {name} contradict{'s' if len(keys) == 1 else ''} {source}"] if keys else []
