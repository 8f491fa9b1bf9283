"""Matrices of eight bits: an ONNX graph a quarter as large, whose layers multiply integers (dynamic quantisation)."""

from __future__ import annotations

import re
from pathlib import Path

from polytrain.export.graph import quiet

MATRICES = re.compile(r"\.(qkv|out|fc1|fc2)/")
"""In the name of a node: the four matrices of a transformer layer."""


def quantise(file: Path, to: Path) -> None:
    """Write `file` with the layers' weights as uint8, a scale and a zero point a column; activations are quantised as
    they come. Log-mel, patch embedding, norms and head stay in float32. Needs onnx and onnxruntime.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = [node.name for node in onnx.load(file, load_external_data=False).graph.node]
    with quiet():
        quantize_dynamic(
            file,
            to,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=list(filter(MATRICES.search, names)),
            per_channel=True,
            # Signed weights saturate on x86 without VNNI: the sample's logits were off by 1.4 instead of 0.13.
            weight_type=QuantType.QUInt8,
        )
