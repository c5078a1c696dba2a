"""fdfsfuse: a FastDFS-compatible distributed file system that is mounted like a disk."""

__version__ = "0.1.0"
