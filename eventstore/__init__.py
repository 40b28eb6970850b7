"""The log: commands in, events appended under the partition's lock, snapshots, and the PostgreSQL that keeps them."""
