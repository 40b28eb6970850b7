"""Backups of a store as files, and stores made of them.

The log is append-only, so a backup is incremental by nature: each run adds the rows that are new. A directory holds

- ``manifest.json``: what belongs to the backup, replaced as a whole when a run is complete;
- ``log/<partition>/<first>-<last>-<digest>.copy``: rows of the log, as PostgreSQL's binary COPY gives them;
- ``tables/<table>-<digest>.copy``: the tables that are no folds of the log, as text COPY gives them;
- ``lock``, held by whoever works with the directory, and ``restores``, which counts the restores of a manifest.

What the manifest does not name is a rest of a run that was killed, and the next run removes it.
"""
