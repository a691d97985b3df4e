"""Hides torch from a command under test: users do not have it, and transformers takes seconds to import it."""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]
