"""A storage's place in the cluster: who it is, its trackers and its group, and getting data back.

``identity.py`` and ``place.py`` say who this storage is, by its disk and by the trackers;
``membership.py`` keeps it joined to all trackers, over one ``tracker_task.py`` each;
``data_source.py`` and ``founder.py`` settle what a new storage begins with; ``recovery.py`` fetches
the files of a disk that was lost.
"""
