"""Format the JSON files of a bundle."""

import json
import re
from collections.abc import Mapping
from typing import Any

_NUMBERS = re.compile(r"\[\n\s+((?:[-+.\deE]+,\n\s+)*[-+.\deE]+)\n\s*\]")


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return JSON that is formatted for people."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    # Put lists of numbers on one line. A string cannot match, since its line breaks are escaped.
    lines = _NUMBERS.sub(lambda found: f"[{' '.join(found.group(1).split())}]", text)
    return f"{lines}\n".encode()
