"""Between one's own data and the net's numbers: inputs scaled, texts one-hot, classes numbered; and back.

An encoder is made from training data, and kept with the net: whatever is predicted later is encoded in the same way.
Rows are counted from 1 in errors, as a reader of the file would.
"""

from .columns import MAX_CATEGORIES
from .inputs import InputEncoder
from .scaling import SCALINGS
from .targets import TASKS, TargetEncoder

__all__ = ["MAX_CATEGORIES", "SCALINGS", "TASKS", "InputEncoder", "TargetEncoder"]
