"""Names sessions: a mount's line to the storage that keeps a volume's tree.

`open_session` opens one as a context manager (``manager.py``). In reading order: ``session.py`` is
the session and how it outlives connections; ``pending.py`` has its calls without an answer, and
``calls.py`` the types of the answers; ``opening.py`` makes a connection ready,
``sending.py``, ``reading.py`` and ``frames.py`` what is done there; ``arriving.py`` deals with what
arrives, and ``lease.py`` says until when that may be relied upon.
"""

from fdfsfuse.client.names.lease import boottime
from fdfsfuse.client.names.manager import open_session
from fdfsfuse.client.names.session import NamesSession
from fdfsfuse.client.views import Candidate, Finder

__all__ = ["Candidate", "Finder", "NamesSession", "boottime", "open_session"]
