"""The client for programs without trio: plain blocking calls, from any thread.

::

    from fdfsfuse.blocking import Client

    client = Client("10.0.0.1")             # one for the whole program
    file_id = client.upload("photo.jpg")
"""

from fdfsfuse.blocking.client import Client, DownloadStream
from fdfsfuse.client.plans.reading import FileDetails

__all__ = ["Client", "DownloadStream", "FileDetails"]
