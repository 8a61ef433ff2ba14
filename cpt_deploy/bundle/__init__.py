"""The bundle, the directory that ships: its processor, checksums, golden sample and onnxruntime session."""

from cpt_deploy.bundle.bundle import Bundle
from cpt_deploy.bundle.card import CardFields, EvaluationResult
from cpt_deploy.bundle.formats import FORMATS, chosen_formats
from cpt_deploy.bundle.golden import Golden, compare_golden, read_golden
from cpt_deploy.bundle.integrity.evidence import read_evidence, require_evidence
from cpt_deploy.bundle.processors.by_task import processor_class
from cpt_deploy.bundle.processors.image_processor import ImageProcessor
from cpt_deploy.bundle.processors.images import MAX_PIXELS, decode_image, read_image
from cpt_deploy.bundle.processors.postprocessing import Prediction, softmax, top_k
from cpt_deploy.bundle.processors.preprocessing import Preprocessing
from cpt_deploy.bundle.processors.processor import Processor
from cpt_deploy.bundle.processors.tensor_processor import TensorProcessor
from cpt_deploy.bundle.processors.text_processor import TextProcessor
from cpt_deploy.bundle.runtime.model import OnnxRuntimeModel
from cpt_deploy.bundle.runtime.tensors import initial_states, next_states
from cpt_deploy.bundle.writing import BundleContents, update_validation, write_bundle

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "Bundle",
    "BundleContents",
    "CardFields",
    "EvaluationResult",
    "Golden",
    "ImageProcessor",
    "OnnxRuntimeModel",
    "Prediction",
    "Preprocessing",
    "Processor",
    "TensorProcessor",
    "TextProcessor",
    "chosen_formats",
    "compare_golden",
    "decode_image",
    "initial_states",
    "next_states",
    "processor_class",
    "read_evidence",
    "read_golden",
    "read_image",
    "require_evidence",
    "softmax",
    "top_k",
    "update_validation",
    "write_bundle",
]
