"""The layout of a bundle: the version of its format and the names of its files."""

FORMAT_VERSION = 3

FLOAT_PARTS = "float_parts"
"""The entry of quantization.json on operators in float between the layers; absent if there are none."""

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
"""Exists next to SHA256SUMS only while a bundle is being updated."""

ANNOUNCED = "onnxruntime"
"""The entry of quantization.json on the operators that onnxruntime computed in float at the time of export."""

EVIDENCE_FILES = frozenset({VALIDATION_FILE, VALIDATION_PAGE, CARD_FILE})
"""The files that `cpt validate` writes; every other file in SHA256SUMS can change an answer."""

REQUIRED_FILES = (ONNX_FILE, TENSORS_FILE, CONFIG_FILE, QUANTIZATION_FILE, GOLDEN_FILE, CARD_FILE)
"""The files of every bundle; those of a processor depend on the task."""
