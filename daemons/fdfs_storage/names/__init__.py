"""The directory tree of a volume, kept on its storage. docs/names-protocol.rst tells how."""

from fdfs_storage.names.service import Names, Status

__all__ = ["Names", "Status"]
