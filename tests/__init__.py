"""All tests. The helpers in tests/common show both sides of a failed assert, as tests do."""

import pytest

pytest.register_assert_rewrite("tests.common")
