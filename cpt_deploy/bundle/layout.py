"""What a bundle consists of: the version of its format and the names of its files."""

FORMAT_VERSION = 1

LANGUAGE_KIND = "language-model"
"""What config.json says under "cpt" as the "kind" of a language model; classifiers have none."""

FLOAT_PARTS = "float_parts"
"""What quantization.json says of operators in float between the layers; networks without any have no such entry."""

ONNX_FILE = "model.onnx"
TENSORS_FILE = "model.safetensors"
TORCHSCRIPT_FILE = "model.torchscript"
PT2_FILE = "model.pt2"
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
LABELS_FILE = "labels.txt"
QUANTIZATION_FILE = "quantization.json"
GOLDEN_FILE = "golden.safetensors"
VALIDATION_FILE = "validation.json"
VALIDATION_PAGE = "validation.html"
RECIPE_FILE = "train_recipe.yaml"
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "README.md"
SIGNATURE_FILE = "model.sig"
SUMS_FILE = "SHA256SUMS"
PENDING_SUMS_FILE = "SHA256SUMS.pending"
"""Stands beside SHA256SUMS only while a bundle is being updated."""

INPUTS = "inputs"
"""Where config.json, under "cpt", says how images became inputs when the bundle was exported."""

ANNOUNCED = "onnxruntime"
"""What quantization.json says of the operators that onnxruntime computes in float, as export found them."""

EVIDENCE_FILES = frozenset({VALIDATION_FILE, VALIDATION_PAGE, CARD_FILE})
"""What `cpt validate` writes: all other files that SHA256SUMS lists can change an answer."""

REQUIRED_FILES = (
    ONNX_FILE,
    TENSORS_FILE,
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    LABELS_FILE,
    QUANTIZATION_FILE,
    GOLDEN_FILE,
    CARD_FILE,
)
LANGUAGE_FILES = (ONNX_FILE, TENSORS_FILE, CONFIG_FILE, QUANTIZATION_FILE, GOLDEN_FILE, TOKENIZER_FILE, CARD_FILE)
"""What the bundle of a language model has."""
OPTIONAL_FILES = (
    TOKENIZER_FILE,
    TORCHSCRIPT_FILE,
    PT2_FILE,
    VALIDATION_FILE,
    VALIDATION_PAGE,
    RECIPE_FILE,
    SIGNATURE_FILE,
    SUMS_FILE,
    PENDING_SUMS_FILE,
)
