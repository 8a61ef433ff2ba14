"""Render the model card of a language model: README.md with the front matter that the Hugging Face Hub reads."""

from collections.abc import Mapping, Sequence

from cpt_deploy.bundle.card import CardFields, EvaluationResult, cell, front_matter, origin, results_section
from cpt_deploy.bundle.language.manifest import LanguageManifest

_USE = """\
## Use

```sh
cpt generate . "the company said"   # here
cpt serve .                         # over HTTP: /generate, /score
sha256sum --check SHA256SUMS
```

`model.onnx` runs in any ONNX runtime. Its inputs are tokens and a state, its outputs logits and the next state; names
and shapes are in `config.json` under `cpt.language`. `quantization.json` has the quantization parameters of each
tensor, and `golden.safetensors` has tokens with the logits that a runtime has to reproduce. The package tokenizers
reads `tokenizer.json`.
"""


def render_language_card(
    name: str,
    fields: CardFields,
    *,
    facts: Mapping[str, object],
    manifest: LanguageManifest,
    results: Sequence[EvaluationResult],
) -> str:
    """Return the model card as Markdown.

    Args:
        name: Name of the model.
        fields: The author's part of the card.
        facts: Short facts in the order of the table, e.g. bits.
        manifest: The model's tensors, state and context.
        results: Measured figures; they become the model index.
    """
    front = front_matter(name, fields, results, task="text-generation")
    state = ", ".join(
        f"`{entry.input}` {entry.datatype} ({', '.join(map(str, entry.shape))})" for entry in manifest.states
    )
    parts = [
        f"---\n{front}---\n\n# {name}\n",
        fields.description or f"A language model with {manifest.vocabulary} tokens, {origin(fields)}",
        "",
        "| | |\n|---|---|",
        "| input | `tokens`, int64 (N, T) |",
        f"| state | {cell(state or 'none')} |",
        f"| output | `logits`, float32 (N, T, {manifest.vocabulary}) |",
        f"| context | {manifest.context or 'unbounded, in the state'} |",
        *(f"| {cell(key.replace('_', ' '))} | {cell(value)} |" for key, value in facts.items()),
        "",
        *results_section(results),
        _USE,
    ]
    return "\n".join(parts)
