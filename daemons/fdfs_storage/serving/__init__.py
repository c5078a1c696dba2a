"""Answering the requests of FastDFS clients.

``service.py`` reads requests and knows who answers which; ``objects.py``, ``uploads.py``,
``downloads.py``, ``derived.py`` and ``path_binlog.py`` have the handlers. What these do on the disk
goes through `fdfs_storage.store`.
"""
