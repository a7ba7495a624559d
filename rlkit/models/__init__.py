"""Find base models, load them, and know what their language-model head computes.

Importing this package is cheap; `rlkit.models.load` and `rlkit.models.hidden` import transformers.
"""

from rlkit.models.config import (
    SCHEMAS,
    AttentionImpl,
    ChatTemplate,
    DType,
    LoRAConfig,
    ModelConfig,
    QuantConfig,
    QuantKind,
    Switch,
    TuningKind,
)

__all__ = [
    "SCHEMAS",
    "AttentionImpl",
    "ChatTemplate",
    "DType",
    "LoRAConfig",
    "ModelConfig",
    "QuantConfig",
    "QuantKind",
    "Switch",
    "TuningKind",
]
