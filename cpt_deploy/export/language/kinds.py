"""Write integer language models as ONNX, each by the writer of its kind."""

from cpt_deploy.errors import ConversionError
from cpt_deploy.export.language.lstm_onnx import lstm_signature, write_lstm_onnx
from cpt_deploy.export.language.transformer_onnx import transformer_signature, write_transformer_onnx
from cpt_deploy.integer.language import IntegerLanguageModel, IntegerLstm, IntegerTransformer
from cpt_deploy.signature import Signature


def language_signature(model: IntegerLanguageModel) -> Signature:
    """Return the signature of an exported model.

    Raises:
        ConversionError: If the model is of no known kind.
    """
    if isinstance(model, IntegerLstm):
        return lstm_signature(model)
    if isinstance(model, IntegerTransformer):
        return transformer_signature(model)
    raise _unknown(model)


def write_language_onnx(
    model: IntegerLanguageModel, *, opset: int | None = None, metadata: dict[str, str] | None = None
) -> bytes:
    """Return a model as a serialized ONNX file.

    Args:
        model: The frozen model.
        opset: ONNX opset, 19 to 25; None is the lowest with the smallest types for the weights, see
            `graph.chosen_opset`.
        metadata: Entries of the file's metadata_props.

    Raises:
        ConversionError: If it is of no known kind.
        UsageError: If the opset is out of range.
    """
    if isinstance(model, IntegerLstm):
        return write_lstm_onnx(model, opset=opset, metadata=metadata)
    if isinstance(model, IntegerTransformer):
        return write_transformer_onnx(model, opset=opset, metadata=metadata)
    raise _unknown(model)


def _unknown(model: IntegerLanguageModel) -> ConversionError:
    return ConversionError(f"Expected an integer language model with an ONNX form, but got {type(model).__name__}")
