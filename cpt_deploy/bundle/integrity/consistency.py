"""Check facts that a bundle stores in several files, for several kinds of readers.

`cpt export` writes all of them from one source, so a difference means that one file was edited without the others.
"""

from cpt_deploy.bundle.bundle import Bundle
from cpt_deploy.bundle.layout import CONFIG_FILE, QUANTIZATION_FILE
from cpt_deploy.bundle.reading import read_file


def contradictions(bundle: Bundle) -> list[str]:
    """Return the contradictions between the files of a bundle, as sentences."""
    found = bundle.processor.contradictions(bundle.config, lambda name: read_file(bundle.path, name, bundle.digests))
    graph = bundle.quantization.get("graph", {})
    if graph.get("signature", bundle.facts["signature"]) != bundle.facts["signature"]:
        found.append(f"the signature in {CONFIG_FILE} is not that of the graph in {QUANTIZATION_FILE}")
    return found
